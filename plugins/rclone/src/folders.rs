//! Folders are made one after another, each once.
//!
//! Two uploads that find a folder missing at the same time make it twice on a service where names need not be unique
//! (Google Drive); one of the two then hides what lies in the other.

use std::collections::BTreeSet;

use chatkeep_store::{Result, StoreKey};
use serde_json::json;
use tokio::sync::Mutex;

use crate::errors::Asked;
use crate::session::Session;

/// The folders that are known to be there.
#[derive(Debug, Default)]
pub(crate) struct Folders {
    made: Mutex<BTreeSet<String>>,
}

impl Folders {
    /// Makes the folder of the store.
    pub(crate) async fn make_top(&self, session: &Session) -> Result<()> {
        self.make(session, std::iter::once("")).await
    }

    /// Makes the folders that `key` lies in.
    pub(crate) async fn make_for(&self, session: &Session, key: &StoreKey) -> Result<()> {
        self.make(session, above(key.as_str())).await
    }

    async fn make<'a>(&self, session: &Session, folders: impl Iterator<Item = &'a str>) -> Result<()> {
        // held across the calls: that is the point of it
        let mut made = self.made.lock().await;
        for folder in folders {
            if !made.contains(folder) {
                let arguments = json!({"fs": session.spec, "remote": folder});
                session.order("operations/mkdir", &arguments, Asked::Other).await?;
                made.insert(folder.to_owned());
            }
        }
        Ok(())
    }

    /// After a put failed: somebody may have deleted them.
    pub(crate) async fn forget(&self) {
        self.made.lock().await.clear();
    }
}

/// `a`, `a/b` for `a/b/c`. Not the folder of the store: if that vanishes, it is away, not to be made anew.
fn above(key: &str) -> impl Iterator<Item = &str> {
    key.match_indices('/').map(|(at, _)| &key[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_of_a_key_come_from_the_top() {
        assert!(above("a/b/c").eq(["a", "a/b"]));
        assert!(above("a").eq([""; 0]));
    }
}
