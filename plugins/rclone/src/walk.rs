//! Listings: folder by folder, and each of them complete, or there is no listing.
//!
//! rclone can list recursively, but of several errors it reports one, and a folder that is missing below is then the
//! same "directory not found" as a prefix that has nothing. Walking here, each answer belongs to one folder.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use chatkeep_store::listing::ListingCheck;
use chatkeep_store::{ListPrefix, ObjectMeta, Result, StoreError, StoreKey};
use futures_util::future::try_join_all;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::child::Rclone;
use crate::control::Failure;
use crate::errors::{Asked, shown};
use crate::session::{Item, Session, brief};
use crate::upload::{is_old, is_temporary};

/// Folders that are asked for at once.
const PARALLEL: usize = 4;

/// What a walk finds.
pub(crate) struct Found {
    pub(crate) objects: Vec<ObjectMeta>,
    /// Files that some upload left behind, a day ago or earlier.
    pub(crate) leftovers: Vec<String>,
}

/// One walk. All of it on one rclone, which counts its errors under a name of its own.
struct Walk<'a> {
    session: &'a Session,
    rclone: Arc<Rclone>,
    group: Value,
    /// Whether the folder of the store has to be there, even if nothing is in it.
    folders: bool,
}

pub(crate) async fn list(session: &Session, backend: &Backend, prefix: &str) -> Result<Found> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut listing = ListingCheck::new(prefix)?;
    let prefix = ListPrefix::parse(prefix)?;
    let rclone = session.rclone().await?;
    let partial_before = rclone.partial_listings();
    let group = json!(format!("listing/{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let walk = Walk { session, rclone, group, folders: backend.folders };
    let walked = walk.all(prefix.as_str(), &mut listing).await;
    let counted = walk.end_count().await;
    let (count, leftovers) = walked?;
    if let Some(error) = counted? {
        return Err(incomplete(shown(&error)));
    }
    if walk.rclone.partial_listings() != partial_before {
        return Err(incomplete("the service did not look everywhere".to_owned()));
    }
    Ok(Found { objects: listing.finish(Some(count))?, leftovers })
}

impl Walk<'_> {
    /// Pushes every object below the prefix; answers how many, and what is left over.
    async fn all(&self, prefix: &str, listing: &mut ListingCheck) -> Result<(u64, Vec<String>)> {
        let now = SystemTime::now();
        let (mut count, mut leftovers) = (0, Vec::new());
        let Some(top) = self.folder(prefix).await? else {
            self.confirm_missing(prefix).await?;
            return Ok((count, leftovers));
        };
        let mut folders = Vec::new();
        let mut answers = vec![(prefix.to_owned(), top)];
        loop {
            for (folder, items) in answers {
                for item in items {
                    let path = joined(&folder, &item.name);
                    if item.is_dir {
                        StoreKey::try_from(path.as_str()).map_err(StoreError::UntrustedListing)?;
                        folders.push(path);
                    } else if is_temporary(&item.name) {
                        leftovers.extend(is_old(&item.name, now).then_some(path));
                    } else {
                        listing.push(&path, item.len()?)?;
                        count += 1;
                    }
                }
            }
            if folders.is_empty() {
                return Ok((count, leftovers));
            }
            let wave = folders.split_off(folders.len().saturating_sub(PARALLEL));
            answers = try_join_all(wave.into_iter().map(|folder| self.named_folder(folder))).await?;
        }
    }

    async fn named_folder(&self, folder: String) -> Result<(String, Vec<Item>)> {
        match self.folder(&folder).await? {
            Some(items) => Ok((folder, items)),
            None => Err(incomplete("a folder is named and then not found".to_owned())),
        }
    }

    /// What lies in a folder, or `None` if there is no such folder.
    async fn folder(&self, folder: &str) -> Result<Option<Vec<Item>>> {
        #[derive(Deserialize)]
        struct Answer {
            list: Vec<Item>,
        }
        let arguments =
            json!({"fs": self.session.spec, "remote": folder, "opt": brief(false), "_group": self.group});
        let answer: Result<Answer, Failure> = self.rclone.control.call("operations/list", &arguments).await;
        match answer {
            Ok(answer) => Ok(Some(answer.list)),
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(self.session.sorter.sort(failure, Asked::Other)),
        }
    }

    /// Believes that a folder is missing if the one above it does not name it: "not found" is also what some say of a
    /// folder that they may not look into.
    async fn confirm_missing(&self, folder: &str) -> Result<()> {
        let mut folder = folder;
        loop {
            // rclone has counted it as an error
            self.end_count().await?;
            if folder.is_empty() {
                let gone = || StoreError::Offline("the folder of the store is not there".into());
                return if self.folders { Err(gone()) } else { Ok(()) };
            }
            let (above, name) = folder.rsplit_once('/').unwrap_or(("", folder));
            if let Some(items) = self.folder(above).await? {
                let named = items.iter().any(|item| item.is_dir && item.name == name);
                let reason = || incomplete("a folder is named and then not found".to_owned());
                return if named { Err(reason()) } else { Ok(()) };
            }
            folder = above;
        }
    }

    /// The last error that was counted since the count began, and begins it anew. Some backends leave out a file or
    /// folder that they may not read, say that all went well, and only count an error.
    async fn end_count(&self) -> Result<Option<String>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Stats {
            errors: u64,
            #[serde(default)]
            last_error: String,
        }
        let group = json!({"group": self.group});
        let failed = |failure| self.session.sorter.sort(failure, Asked::Other);
        let stats: Stats = self.rclone.control.call("core/stats", &group).await.map_err(failed)?;
        let deleted: Result<IgnoredAny, Failure> =
            self.rclone.control.call("core/stats-delete", &group).await;
        deleted.map_err(failed)?;
        Ok((stats.errors > 0).then_some(stats.last_error))
    }
}

fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn incomplete(reason: String) -> StoreError {
    StoreError::IncompleteListing { reason }
}
