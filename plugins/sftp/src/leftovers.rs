//! Temporary files: all in one folder whose name no key can have, so that a listing of objects never meets them.

use std::sync::Arc;

use chatkeep_store::temporary::{AGE_MIN, FOLDER, is_of_another_run, new_name};

use crate::files;
use crate::live::{Facts, Live};
use crate::session::Session;
use crate::wire::{FileKind, Request};

impl Live {
    pub(crate) fn temporary(&self) -> Temporary {
        let path = format!("{}/{FOLDER}/{}", self.root, new_name());
        Temporary { path, session: Arc::clone(&self.session), there: true }
    }

    /// Removes old temporary files. What cannot be read or removed stays: it only takes up room.
    pub(crate) async fn remove_old(&self, facts: Facts) {
        let folder = self.path(FOLDER);
        let (Some(now_s), Ok(Some(found))) = (facts.now_s, files::read_folder(&self.session, &folder).await)
        else {
            return;
        };
        let mut removed = 0_u32;
        for file in found.iter().filter(|file| file.attributes.kind() == Some(FileKind::File)) {
            let age_s = file.attributes.modified_s.map(|modified_s| now_s.saturating_sub(modified_s));
            let old = age_s.is_some_and(|age_s| u64::from(age_s) >= AGE_MIN.as_secs());
            let name = String::from_utf8_lossy(&file.name);
            if old && is_of_another_run(&name) {
                removed +=
                    u32::from(self.carry_out(&Request::remove(&format!("{folder}/{name}"))).await.is_ok());
            }
        }
        if removed > 0 {
            tracing::info!(removed, "removed temporary files that a crash had left");
        }
    }
}

/// A temporary file; removed when this is dropped and it is there.
pub(crate) struct Temporary {
    pub(crate) path: String,
    session: Arc<Session>,
    pub(crate) there: bool,
}

impl Temporary {
    pub(crate) async fn remove(&mut self) {
        // if that fails, a later sweep finds it
        let _ = files::carry_out(&self.session, &Request::remove(&self.path)).await;
        self.there = false;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.there {
            self.session.mention(&Request::remove(&self.path));
        }
    }
}
