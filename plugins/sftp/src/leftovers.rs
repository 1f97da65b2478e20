//! Temporary files: all in one folder whose name no key can have, so that a listing of objects never meets them.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::files;
use crate::live::{Facts, Live};
use crate::session::Session;
use crate::wire::{FileKind, Request};

/// The folder, directly below the root.
pub(crate) const FOLDER: &str = ".chatkeep-tmp";

/// How old a temporary file must be before it is nobody's: longer than any put takes, also one of another machine.
const AGE_MIN: Duration = Duration::from_hours(24);

/// Tells this process from all others that write into the store.
static RUN: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));

impl Live {
    pub(crate) fn temporary(&self) -> Temporary {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = format!("{:016x}-{}", *RUN, COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = format!("{}/{FOLDER}/{name}", self.root);
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

/// Whether a temporary file may be removed: it is one, and not of this process, whose puts may be running.
fn is_of_another_run(name: &str) -> bool {
    let Some((run, number)) = name.split_once('-') else { return false };
    let hex =
        run.len() == 16 && run.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    hex && number.parse::<u64>().is_ok() && run != format!("{:016x}", *RUN)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_other_runs_are_swept() {
        assert!(is_of_another_run("0123456789abcdef-17"));
        assert!(!is_of_another_run(&format!("{:016x}-1", *RUN)));
        for name in
            ["", "a-1", "0123456789abcdef", "0123456789abcdef-", "0123456789abcdef-x", "0123456789ABCDEF-1"]
        {
            assert!(!is_of_another_run(name), "{name}");
        }
    }
}
