//! Temporary files: all in one folder whose name no key can have, so that a listing of objects never meets them.

use std::sync::Arc;

use chatkeep_store::temporary::{AGE_MIN, FOLDER, is_of_another_run, new_name};
use reqwest::{StatusCode, Url};

use crate::connection::{Connection, propfind};
use crate::errors;
use crate::http::{Ask, Http};

/// A temporary file; removed when this is dropped, unless it was handed on.
pub(crate) struct Temporary {
    pub(crate) url: Url,
    http: Arc<Http>,
    ours: bool,
}

impl Temporary {
    pub(crate) fn new(http: Arc<Http>, root: &Url) -> Self {
        let mut url = root.clone();
        url.set_path(&format!("{}{FOLDER}/{}", root.path(), new_name()));
        Self { url, http, ours: true }
    }

    /// From here on the file may be an object: a drop must not remove anything.
    pub(crate) fn hand_over(&mut self) {
        self.ours = false;
    }

    /// It did not become one.
    pub(crate) async fn remove(&mut self) {
        self.ours = true;
        if self.http.exchange(Ask::new("DELETE", self.url.clone())).await.is_ok() {
            self.ours = false;
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let (true, Ok(runtime)) = (self.ours, tokio::runtime::Handle::try_current()) {
            let (http, url) = (Arc::clone(&self.http), self.url.clone());
            // if that fails, a later sweep finds it
            runtime.spawn(async move { http.exchange(Ask::new("DELETE", url)).await.map(|_| ()) });
        }
    }
}

/// Removes old temporary files. What cannot be read or removed stays: it only takes up room.
pub(crate) async fn remove_old(connection: &Connection) {
    let ask = propfind(connection.folder(FOLDER), "1");
    let Ok(answer) = connection.http.exchange(ask).await else { return };
    if answer.status != StatusCode::MULTI_STATUS {
        return;
    }
    // by the server's own clock, whatever ours says
    let (Some(now), Ok(entries)) = (errors::clock_of(&answer), crate::multistatus::parse(&answer.body))
    else {
        return;
    };
    let mut removed = 0_u32;
    for entry in entries.iter().filter(|entry| entry.failed.is_none() && !entry.properties.collection) {
        let name = entry.href.rsplit('/').next().unwrap_or_default();
        let written =
            entry.properties.modified.as_deref().and_then(|text| httpdate::parse_http_date(text).ok());
        let age = written.and_then(|written| now.duration_since(written).ok());
        if !is_of_another_run(name) || age.is_none_or(|age| age < AGE_MIN) {
            continue;
        }
        let mut url = connection.folder(FOLDER);
        url.set_path(&format!("{}{name}", url.path()));
        let gone = connection.http.exchange(Ask::new("DELETE", url)).await;
        removed += u32::from(gone.is_ok_and(|answer| answer.status.is_success()));
    }
    if removed > 0 {
        tracing::info!(removed, "removed temporary files that a crash had left");
    }
}
