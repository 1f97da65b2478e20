//! Objects are whole files: written beside their place, counted, synced, and given their name last.

use std::ops::Range;

use bytes::Bytes;
use chatkeep_store::temporary::FOLDER;
use chatkeep_store::{PutCondition, PutReceipt, Result, StoreError, StoreKey, clamp_range};

use crate::errors::Failure;
use crate::files::{self, Done};
use crate::leftovers::Temporary;
use crate::live::{Facts, Live};
use crate::wire::{Attributes, Extension, FileKind, Mode, Request, STATUS_NO_SUCH_FILE};

impl Live {
    /// An object has this key, or none has; a store that is not there is neither.
    pub(crate) async fn find(&self, key: &StoreKey) -> Result<Option<Attributes>> {
        let failed = |failure: Failure| failure.sort("look for a file");
        let found = files::lstat(&self.session, &self.path(key.as_str())).await.map_err(failed)?;
        match found.filter(|attributes| matches!(attributes.kind(), Some(FileKind::File) | None)) {
            None if files::stat(&self.session, &self.root).await.map_err(failed)?.is_none() => {
                Err(self.gone())
            }
            found => Ok(found),
        }
    }

    pub(crate) async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        if let Some(range) = &range {
            clamp_range(range, u64::MAX)?;
        }
        let failed = |failure: Failure| failure.sort("read a file");
        let file = match files::open(&self.session, &self.path(key.as_str()), Mode::Read).await {
            Err(Failure::Refused { .. }) if self.find(key).await?.is_none() => {
                return Err(StoreError::NotFound { key: key.clone() });
            }
            opened => opened.map_err(failed)?,
        };
        let attributes = file.attributes().await.map_err(failed)?;
        if matches!(attributes.kind(), Some(FileKind::Folder | FileKind::Other)) {
            return Err(StoreError::NotFound { key: key.clone() });
        }
        let len = attributes.len.ok_or_else(|| StoreError::Transient("the server tells no length".into()))?;
        let part = range.map_or(Ok(0..len), |range| clamp_range(&range, len))?;
        file.read(part).await.map_err(failed)
    }

    pub(crate) async fn put(
        &self,
        key: &StoreKey,
        body: &Bytes,
        condition: PutCondition,
        facts: Facts,
    ) -> Result<PutReceipt> {
        let folder = key.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
        self.make_folder(FOLDER).await?;
        self.make_folder(folder).await?;
        let mut temporary = self.temporary();
        let kept = self.write(&temporary, body).await;
        let kept = match kept {
            Err(failure) => return Err(self.out_of_room(failure, body.len() as u64).await),
            Ok(kept) => kept,
        };
        if kept != body.len() as u64 {
            tracing::warn!(
                kept,
                sent = body.len(),
                "the server kept another number of bytes than it was sent"
            );
            return Err(StoreError::Corrupt { key: key.clone() });
        }
        let published = match self.publish(&mut temporary, key, condition, facts).await {
            // somebody has tidied up folders
            Err(failure) if failure.is(STATUS_NO_SUCH_FILE) => {
                self.folders.lock().await.clear();
                self.make_folder(folder).await?;
                self.publish(&mut temporary, key, condition, facts).await
            }
            published => published,
        };
        if published.is_err() {
            temporary.remove().await;
        }
        published.map_err(|failure| failure.sort("move a file into place"))?;
        self.sync_folder(folder).await?;
        Ok(PutReceipt { len: kept })
    }

    async fn write(&self, temporary: &Temporary, body: &Bytes) -> Done<u64> {
        let path = &temporary.path;
        let file = match files::open(&self.session, path, Mode::Create).await {
            Err(failure) if failure.is(STATUS_NO_SUCH_FILE) => {
                self.folders.lock().await.clear();
                self.make_folder(FOLDER).await?;
                files::open(&self.session, path, Mode::Create).await?
            }
            opened => opened?,
        };
        file.write_all(body).await
    }

    /// Gives a whole file its name. Where files can have two names, the second name is taken or it is not; else the server
    /// looks first and renames then.
    async fn publish(
        &self,
        temporary: &mut Temporary,
        key: &StoreKey,
        condition: PutCondition,
        facts: Facts,
    ) -> Done<()> {
        let target = self.path(key.as_str());
        if condition == PutCondition::Overwrite {
            if !self.session.can(Extension::PosixRename) {
                return Err(Failure::Store(StoreError::Unsupported { what: "replace an object" }));
            }
            self.carry_out(&Request::posix_rename(&temporary.path, &target)).await?;
            temporary.there = false;
            return Ok(());
        }
        let exists = || Failure::Store(StoreError::AlreadyExists { key: key.clone() });
        if !facts.links && files::lstat(&self.session, &target).await?.is_some() {
            return Err(exists());
        }
        let request = if facts.links {
            Request::hardlink(&temporary.path, &target)
        } else {
            Request::rename(&temporary.path, &target)
        };
        match self.carry_out(&request).await {
            Ok(()) if facts.links => {
                temporary.remove().await;
                Ok(())
            }
            Ok(()) => {
                temporary.there = false;
                Ok(())
            }
            // version 3 has no code for "is there already"
            Err(Failure::Refused { .. }) if files::lstat(&self.session, &target).await?.is_some() => {
                Err(exists())
            }
            Err(failure) => Err(failure),
        }
    }

    /// A write that failed, failed for lack of room if there is none.
    async fn out_of_room(&self, failure: Failure, len: u64) -> StoreError {
        let refused = matches!(failure, Failure::Refused { .. });
        if refused
            && self.session.can(Extension::Statvfs)
            && let Ok((free, _)) = files::room(&self.session, &self.root).await
            && free < len
        {
            return StoreError::Quota(format!("{free} bytes are free at the server, not {len}").into());
        }
        failure.sort("write a file")
    }
}
