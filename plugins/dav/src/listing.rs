//! Folder by folder: an answer that is not whole, or that names what does not belong there, ends the listing.

use chatkeep_store::listing::ListingCheck;
use chatkeep_store::opening::undo_percent_encoding;
use chatkeep_store::temporary::FOLDER;
use chatkeep_store::{InvalidKey, ListPrefix, ObjectMeta, Result, StoreError, StoreKey};
use futures_util::stream::{self, StreamExt as _};
use reqwest::{StatusCode, Url};

use crate::connection::{Connection, Found, propfind};
use crate::errors;
use crate::multistatus::{self, Entry, Properties};

impl Connection {
    /// Names every object below a prefix.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let mut listing = ListingCheck::new(prefix)?;
        let prefix = ListPrefix::parse(prefix)?;
        let (mut level, mut count) = (vec![prefix.as_str().to_owned()], 0);
        while !level.is_empty() {
            let mut answers = stream::iter(std::mem::take(&mut level))
                .map(|folder| async move { (self.read_folder(&folder).await, folder) })
                .buffer_unordered(self.parallel.into());
            while let Some((children, folder)) = answers.next().await {
                let Some(children) = children? else {
                    self.may_be_missing(&folder, &prefix).await?;
                    continue;
                };
                for (path, properties) in children {
                    if properties.collection {
                        StoreKey::try_from(path.as_str()).map_err(StoreError::UntrustedListing)?;
                        level.push(path);
                    } else {
                        let len = properties.len.ok_or_else(|| incomplete("a file has no length"))?;
                        listing.push(&path, len)?;
                        count += 1;
                    }
                }
            }
        }
        listing.finish(Some(count))
    }

    /// That there is no folder to list is an answer only for the one that was asked for, in a store that is there.
    async fn may_be_missing(&self, folder: &str, prefix: &ListPrefix) -> Result<()> {
        if folder != prefix.as_str() {
            return Err(incomplete("a folder vanished while it was read"));
        }
        match self.find(&self.root).await? {
            Found::Folder(_) if !folder.is_empty() => Ok(()),
            _ => Err(self.gone()),
        }
    }

    async fn is_object(&self, path: &str) -> Result<bool> {
        let Ok(key) = StoreKey::try_from(path) else { return Ok(false) };
        Ok(matches!(self.find(&self.object(&key)).await?, Found::File(_)))
    }

    /// What lies directly in a folder, by its path below the root; `None`: there is no such folder.
    async fn read_folder(&self, folder: &str) -> Result<Option<Vec<(String, Properties)>>> {
        let url = self.folder(folder);
        let answer = self.http.exchange(propfind(url.clone(), "1")).await?;
        match answer.status {
            StatusCode::MULTI_STATUS => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            // Apache's answer where an object was asked for as if it were a folder
            StatusCode::BAD_REQUEST if self.is_object(folder).await? => return Ok(None),
            _ => return Err(errors::of_answer(&answer, &url, "list a folder")),
        }
        let entries = multistatus::parse(&answer.body).map_err(|reason| incomplete(&reason))?;
        children(&url, folder, entries)
    }
}

fn children(url: &Url, folder: &str, entries: Vec<Entry>) -> Result<Option<Vec<(String, Properties)>>> {
    let here = undo_percent_encoding(url.path()).unwrap_or_default();
    let here = here.strip_suffix(b"/").unwrap_or(&here);
    let mut itself = None;
    let mut children = Vec::with_capacity(entries.len());
    for entry in entries {
        if let Some(code) = entry.failed {
            return Err(incomplete(&format!("the server could not read something in it ({code})")));
        }
        let path = path_of(url, &entry.href).ok_or_else(|| outside(&entry.href))?;
        let rest = path.strip_prefix(here).ok_or_else(|| outside(&entry.href))?;
        match rest {
            b"" | b"/" => itself = Some(entry.properties.collection),
            [b'/', name @ ..] => {
                let name = String::from_utf8_lossy(name);
                let name = if entry.properties.collection { name.trim_end_matches('/') } else { &name };
                if folder.is_empty() && name == FOLDER && entry.properties.collection {
                    continue;
                }
                // depth 1 was asked for
                if name.contains('/') {
                    return Err(outside(&entry.href));
                }
                let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                children.push((path, entry.properties));
            }
            _ => return Err(outside(&entry.href)),
        }
    }
    match itself {
        Some(true) => Ok(Some(children)),
        // an object, asked for as if it were a folder
        Some(false) if children.is_empty() => Ok(None),
        _ => Err(incomplete("the folder itself is missing in it")),
    }
}

/// The path of an entry, decoded. What comes before it is not compared: a server behind a proxy may not know its name.
fn path_of(url: &Url, href: &str) -> Option<Vec<u8>> {
    undo_percent_encoding(url.join(href).ok()?.path())
}

fn outside(href: &str) -> StoreError {
    let shown = href.chars().take(60).flat_map(char::escape_debug).collect();
    StoreError::UntrustedListing(InvalidKey {
        shown,
        reason: "it does not lie in the folder that was listed",
    })
}

fn incomplete(reason: &str) -> StoreError {
    StoreError::IncompleteListing { reason: reason.to_owned() }
}
