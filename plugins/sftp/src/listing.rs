//! Folder by folder: a folder that cannot be read to its end, or that holds what is not ours, ends the listing.

use chatkeep_store::listing::ListingCheck;
use chatkeep_store::temporary::FOLDER;
use chatkeep_store::{InvalidKey, ListPrefix, ObjectMeta, Result, StoreError, StoreKey};
use futures_util::stream::{self, StreamExt as _};

use crate::files;
use crate::live::Live;
use crate::wire::{Attributes, FileKind, Name};

impl Live {
    /// Names every object below a prefix.
    pub(crate) async fn list(&self, prefix: &str, parallel: u16) -> Result<Vec<ObjectMeta>> {
        let mut listing = ListingCheck::new(prefix)?;
        let prefix = ListPrefix::parse(prefix)?;
        let (mut level, mut count) = (vec![prefix.as_str().to_owned()], 0);
        while !level.is_empty() {
            let mut answers = stream::iter(std::mem::take(&mut level))
                .map(|folder| async move { (self.read_folder(&folder).await, folder) })
                .buffer_unordered(parallel.into());
            while let Some((names, folder)) = answers.next().await {
                let Some(names) = names? else {
                    self.may_be_missing(&folder, &prefix).await?;
                    continue;
                };
                for (path, kind, len) in names {
                    match kind {
                        FileKind::File => {
                            listing.push(&path, len)?;
                            count += 1;
                        }
                        FileKind::Folder => {
                            StoreKey::try_from(path.as_str()).map_err(StoreError::UntrustedListing)?;
                            level.push(path);
                        }
                        FileKind::Other => return Err(foreign(&path)),
                    }
                }
            }
        }
        listing.finish(Some(count))
    }

    /// That there is no folder to list is an answer only for the one that was asked for, in a store that is there.
    async fn may_be_missing(&self, folder: &str, prefix: &ListPrefix) -> Result<()> {
        if folder != prefix.as_str() {
            return Err(StoreError::IncompleteListing {
                reason: "a folder vanished while it was read".to_owned(),
            });
        }
        let root = files::stat(&self.session, &self.root).await;
        match root.map_err(|failure| failure.sort("look for the folder of the store"))? {
            Some(_) if !folder.is_empty() => Ok(()),
            _ => Err(self.gone()),
        }
    }

    /// What lies directly in a folder, by its path below the root; `None`: there is no such folder.
    async fn read_folder(&self, folder: &str) -> Result<Option<Vec<(String, FileKind, u64)>>> {
        let failed = |failure: crate::errors::Failure| failure.sort("list a folder");
        let names = match files::read_folder(&self.session, &self.path(folder)).await {
            Err(crate::errors::Failure::Refused { .. }) if self.is_file(folder).await? => return Ok(None),
            names => names.map_err(failed)?,
        };
        let Some(names) = names else { return Ok(None) };
        let mut found = Vec::with_capacity(names.len());
        for Name { name, attributes } in names {
            let name = String::from_utf8_lossy(&name);
            let path = if folder.is_empty() { name.into_owned() } else { format!("{folder}/{name}") };
            let told = |attributes: &Attributes| Some((attributes.kind()?, attributes.len?));
            let mut known = told(&attributes);
            if known.is_none() {
                // not every server says it in a listing
                let attributes = files::lstat(&self.session, &self.path(&path)).await.map_err(failed)?;
                known = attributes.as_ref().and_then(told);
            }
            let (kind, len) = known.ok_or_else(|| foreign(&path))?;
            if path != FOLDER || kind != FileKind::Folder {
                found.push((path, kind, len));
            }
        }
        Ok(Some(found))
    }

    /// Whether an object was asked for as if it were a folder.
    async fn is_file(&self, path: &str) -> Result<bool> {
        let Ok(key) = StoreKey::try_from(path) else { return Ok(false) };
        Ok(self.find(&key).await?.is_some())
    }
}

fn foreign(path: &str) -> StoreError {
    let shown = path.chars().take(60).flat_map(char::escape_debug).collect();
    StoreError::UntrustedListing(InvalidKey { shown, reason: "it is neither a file nor a folder" })
}
