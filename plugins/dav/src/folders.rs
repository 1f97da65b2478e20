//! Folders are made one after another: two requests that make the same one at once are where other clients lose puts.

use std::collections::BTreeSet;

use chatkeep_store::{Result, StoreError};
use reqwest::{StatusCode, Url};
use tokio::sync::Mutex;

use crate::errors;
use crate::http::{Ask, Http};

/// The folders below the root that are known to be there.
#[derive(Default)]
pub(crate) struct Folders {
    known: Mutex<BTreeSet<String>>,
}

impl Folders {
    /// Makes `path` (segments without slashes at the ends) and what is above it, below the root.
    pub(crate) async fn ensure(&self, http: &Http, root: &Url, path: &str) -> Result<()> {
        let mut known = self.known.lock().await;
        if path.is_empty() || known.contains(path) {
            return Ok(());
        }
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for folder in ends.map(|end| &path[..end]) {
            if !known.contains(folder) {
                make(http, &below(root, folder)).await?;
                known.insert(folder.to_owned());
            }
        }
        Ok(())
    }

    /// Somebody else has removed folders.
    pub(crate) async fn forget(&self) {
        self.known.lock().await.clear();
    }
}

/// The address of a folder.
pub(crate) fn below(root: &Url, folder: &str) -> Url {
    let mut url = root.clone();
    if !folder.is_empty() {
        url.set_path(&format!("{}{folder}/", root.path()));
    }
    url
}

/// Makes a folder, unless it is there.
pub(crate) async fn make(http: &Http, url: &Url) -> Result<()> {
    let answer = http.exchange(Ask::new("MKCOL", url.clone())).await?;
    match answer.status {
        // RFC 4918, 9.3.1: 405 is "there is something already", also when somebody else was faster
        status if status.is_success() || status == StatusCode::METHOD_NOT_ALLOWED => Ok(()),
        StatusCode::CONFLICT | StatusCode::NOT_FOUND => Err(StoreError::Offline(
            format!("the folder that `{}` is to be made in is not there", url.path()).into(),
        )),
        _ => Err(errors::of_answer(&answer, url, "make a folder")),
    }
}
