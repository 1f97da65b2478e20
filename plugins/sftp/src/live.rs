//! A session, and what is known of the folder of the store at its other end.

use std::collections::BTreeSet;
use std::sync::Arc;

use chatkeep_store::temporary::FOLDER;
use chatkeep_store::{Result, StoreError};
use tokio::sync::Mutex;

use crate::errors::Failure;
use crate::files::{self, Done};
use crate::session::{Session, Tuning};
use crate::target::{Folder, Target};
use crate::wire::{Extension, FileKind, Mode, Request, STATUS_NO_SUCH_FILE};

/// A session that stands.
pub(crate) struct Live {
    pub(crate) session: Arc<Session>,
    /// The folder of the store, without a slash at its end.
    pub(crate) root: String,
    /// Folders below it that are known to be there.
    pub(crate) folders: Mutex<BTreeSet<String>>,
}

/// What was found out by trying.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Facts {
    /// A file can have two names: then taking a name is atomic.
    pub(crate) links: bool,
    /// The clock of the server, in seconds since 1970.
    pub(crate) now_s: Option<u32>,
}

impl Live {
    pub(crate) async fn connect(target: &Target, tuning: Tuning) -> Result<Self> {
        let session = Arc::new(Session::connect(target, tuning).await?);
        let root = match &target.folder {
            Folder::Absolute(path) => path.clone(),
            Folder::OfHome(path) => {
                let home = files::real_path(&session, ".").await;
                format!("{}/{path}", home.map_err(|f| f.sort("find the home folder"))?.trim_end_matches('/'))
            }
        };
        let live = Self { session, root, folders: Mutex::default() };
        live.find_root(!target.read_only).await?;
        Ok(live)
    }

    /// Looks for the folder of the store, and makes it where only that one folder is missing.
    async fn find_root(&self, make: bool) -> Result<()> {
        let found =
            files::stat(&self.session, &self.root).await.map_err(|f| f.sort("look for the folder"))?;
        match found.map(|attributes| attributes.kind()) {
            // a server that does not say what it is: the first call will show
            Some(Some(FileKind::Folder) | None) => Ok(()),
            Some(_) => {
                Err(StoreError::Invalid { reason: format!("`{}` at the server is no folder", self.root) })
            }
            None if make => match self.carry_out(&Request::mkdir(&self.root)).await {
                Err(failure) if failure.is(STATUS_NO_SUCH_FILE) => Err(self.gone()),
                made => made.map_err(|failure| failure.sort("make the folder of the store")),
            },
            None => Err(self.gone()),
        }
    }

    /// Tries what a put needs, on files that are removed again.
    pub(crate) async fn try_out(&self) -> Result<Facts> {
        self.make_folder(FOLDER).await?;
        let (mut one, mut other) = (self.temporary(), self.temporary());
        let failed = |failure: Failure| failure.sort("write into the folder of the store");
        let file = files::open(&self.session, &one.path, Mode::Create).await.map_err(failed)?;
        let now_s = file.attributes().await.map_err(failed)?.modified_s;
        drop(file);
        let links = self.session.can(Extension::Hardlink)
            && match self.carry_out(&Request::hardlink(&one.path, &other.path)).await {
                Ok(()) => true,
                Err(Failure::Refused { .. }) => false,
                Err(failure) => return Err(failed(failure)),
            };
        one.remove().await;
        other.there = links;
        if links {
            other.remove().await;
        }
        Ok(Facts { links, now_s })
    }

    /// A store whose folder is missing is not an empty store.
    pub(crate) fn gone(&self) -> StoreError {
        StoreError::Offline(format!("the folder `{}` of the store is not at the server", self.root).into())
    }

    pub(crate) fn path(&self, below: &str) -> String {
        if below.is_empty() { self.root.clone() } else { format!("{}/{below}", self.root) }
    }

    pub(crate) async fn carry_out(&self, request: &Request) -> Done<()> {
        files::carry_out(&self.session, request).await
    }

    /// Makes a folder and those above it, one after another: each is there when the next one is made.
    pub(crate) async fn make_folder(&self, path: &str) -> Result<()> {
        let mut known = self.folders.lock().await;
        if path.is_empty() || known.contains(path) {
            return Ok(());
        }
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for folder in ends.map(|end| &path[..end]) {
            if known.contains(folder) {
                continue;
            }
            let full = self.path(folder);
            match self.carry_out(&Request::mkdir(&full)).await {
                Ok(()) => self.sync_folder(folder.rsplit_once('/').map_or("", |(above, _)| above)).await?,
                Err(failure) if failure.is(STATUS_NO_SUCH_FILE) => return Err(self.gone()),
                Err(Failure::Store(error)) => return Err(error),
                // version 3 has no code for "is there already"
                Err(failure) => {
                    match files::stat(&self.session, &full).await.map(|f| f.and_then(|a| a.kind())) {
                        Ok(Some(FileKind::Folder)) => {}
                        Ok(Some(_)) => {
                            let reason = format!(
                                "`{folder}` in the folder of the store is in the way: it is not ours"
                            );
                            return Err(StoreError::Invalid { reason });
                        }
                        _ => return Err(failure.sort("make a folder")),
                    }
                }
            }
            known.insert(folder.to_owned());
        }
        Ok(())
    }

    /// Waits until the names in a folder are on the disk. OpenSSH opens folders like files, and syncs what is open.
    pub(crate) async fn sync_folder(&self, folder: &str) -> Result<()> {
        if !self.session.can(Extension::Fsync) {
            return Ok(());
        }
        match files::open(&self.session, &self.path(folder), Mode::Read).await {
            Ok(folder) => folder.sync().await.map_err(|failure| failure.sort("write a folder to the disk")),
            Err(Failure::Refused { .. }) => Ok(()),
            Err(Failure::Store(error)) => Err(error),
        }
    }
}
