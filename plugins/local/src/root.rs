//! The folder of the store: whether it is there, and whether it is the one we used.
//!
//! Nothing below it is held open between calls, so that the drive can be unmounted; each call opens the folder anew and
//! looks for the marker before it believes that an object is missing or writes one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use chatkeep_store::{Result, StoreError, StoreKey};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::{errors, leftovers};

/// Shows that this folder is the store, and not the empty place where a drive is to be mounted.
pub(crate) const MARKER: &str = "chatkeep-store";

const MARKER_TEXT: &[u8] =
    b"This folder holds encrypted backups of Chatkeep. Leave this file here: without it, an\n\
empty folder is taken for the place of a drive that is not mounted.\n";

/// Whether an empty folder may become a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstUse {
    Allowed,
    Refused,
}

#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    first_use: FirstUse,
    /// Whether the store was seen since the start: from then on it is never begun anew.
    seen: AtomicBool,
    /// Folders whose own names are known to be on the disk. Another thread may have made a folder that it has not
    /// synced yet, and an object in it must not be acknowledged before.
    durable: Mutex<BTreeSet<String>>,
}

impl Root {
    pub(crate) fn at(path: PathBuf, first_use: FirstUse) -> Self {
        Self { path, first_use, seen: AtomicBool::new(false), durable: Mutex::new(BTreeSet::new()) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the folder for one call.
    pub(crate) fn open(&self) -> Result<OwnedFd> {
        if !self.seen.load(Ordering::Acquire) {
            return self.open_first();
        }
        let folder = open_folder(&self.path).map_err(|errno| self.sort(errno))?;
        // without the marker but with objects it is still the store: somebody has tidied up
        if !has_marker(&folder)? && is_empty(&folder)? {
            return Err(not_mounted(&self.path));
        }
        Ok(folder)
    }

    /// Opens the folder for the first time since the start, and makes a store of it if that is allowed.
    fn open_first(&self) -> Result<OwnedFd> {
        let folder = match open_folder(&self.path) {
            Err(Errno::NOENT) if self.first_use == FirstUse::Allowed => self.make()?,
            other => other.map_err(|errno| self.sort(errno))?,
        };
        if !has_marker(&folder)? {
            let empty = is_empty(&folder)?;
            if self.first_use == FirstUse::Refused && empty {
                return Err(not_mounted(&self.path));
            }
            match write_marker(&folder) {
                // a store on a drive that became full or read-only is still one
                Err(StoreError::Quota(_) | StoreError::Permission(_)) if !empty => {}
                written => written?,
            }
        }
        leftovers::remove_old(&folder);
        self.seen.store(true, Ordering::Release);
        Ok(folder)
    }

    /// Opens the folder of `key`, as far as there is one. `None`: no object can have this key.
    pub(crate) fn parent_of(&self, key: &StoreKey) -> Result<Option<OwnedFd>> {
        let root = self.open()?;
        if is_marker(key) { Ok(None) } else { walk(root, folders(key)) }
    }

    /// Opens the folder of `key`, and makes it durably where it is missing.
    pub(crate) fn make_parent_of(&self, key: &StoreKey) -> Result<OwnedFd> {
        let mut folder = self.open()?;
        if is_marker(key) {
            return Err(errors::in_the_way(MARKER));
        }
        let mut path = String::new();
        for segment in folders(key) {
            path = if path.is_empty() { segment.to_owned() } else { format!("{path}/{segment}") };
            folder = self.step_into(&folder, segment, &path)?;
        }
        Ok(folder)
    }

    fn step_into(&self, folder: &OwnedFd, segment: &str, path: &str) -> Result<OwnedFd> {
        let made = match rustix::fs::mkdirat(folder, segment, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errors::of(errno, "make a folder")),
        };
        let next = match open_below(folder, segment) {
            Ok(next) => next,
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(errors::in_the_way(path)),
            Err(errno) => return Err(errors::of(errno, "open a folder")),
        };
        let known = || self.durable().contains(path);
        if made || !known() {
            sync(folder)?;
            self.durable().insert(path.to_owned());
        }
        Ok(next)
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.durable.lock().expect("nothing panics while it holds the set")
    }

    /// Makes the folder itself. Not those above it: where they are missing, a drive is.
    fn make(&self) -> Result<OwnedFd> {
        match rustix::fs::mkdir(&self.path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.sort(errno)),
        }
        if let Some(above) = self.path.parent() {
            sync(&open_folder(above).map_err(|errno| self.sort(errno))?)?;
        }
        open_folder(&self.path).map_err(|errno| self.sort(errno))
    }

    fn sort(&self, errno: Errno) -> StoreError {
        match errno {
            Errno::NOENT => not_mounted(&self.path),
            Errno::NOTDIR => {
                StoreError::Invalid { reason: format!("`{}` is not a folder", self.path.display()) }
            }
            errno => errors::of(errno, "open the folder of the store"),
        }
    }
}

/// The folders of a key.
pub(crate) fn folders(key: &StoreKey) -> impl Iterator<Item = &str> {
    let folders = key.as_str().rsplit_once('/').map_or("", |(folders, _)| folders);
    folders.split('/').filter(|segment| !segment.is_empty())
}

/// The name of a key in its folder.
pub(crate) fn name(key: &StoreKey) -> &str {
    key.as_str().rsplit_once('/').map_or(key.as_str(), |(_, name)| name)
}

/// Opens a folder some segments below `folder`; `None` where there is no such folder, or a link instead.
pub(crate) fn walk<'a>(folder: OwnedFd, segments: impl Iterator<Item = &'a str>) -> Result<Option<OwnedFd>> {
    let mut folder = folder;
    for segment in segments {
        folder = match open_below(&folder, segment) {
            Ok(next) => next,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(errors::of(errno, "open a folder")),
        };
    }
    Ok(Some(folder))
}

/// Opens a folder directly below another one, and no link to one.
pub(crate) fn open_below(folder: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| rustix::fs::openat(folder, name, flags, Mode::empty()))
}

/// Waits until the names in a folder are on the disk.
pub(crate) fn sync(folder: &OwnedFd) -> Result<()> {
    retry_on_intr(|| rustix::fs::fsync(folder))
        .map_err(|errno| errors::of(errno, "write a folder to the disk"))
}

/// The folder of the store itself may be a link: that is the user's choice.
fn open_folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry_on_intr(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))
}

/// The marker's name is a valid key, but no object has it.
fn is_marker(key: &StoreKey) -> bool {
    key.as_str().split('/').next() == Some(MARKER)
}

fn has_marker(folder: &OwnedFd) -> Result<bool> {
    match rustix::fs::statat(folder, MARKER, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errors::of(errno, "look for the marker of the store")),
    }
}

/// Whether nothing in the folder can be ours: `lost+found` or a hidden file does not make a store.
fn is_empty(folder: &OwnedFd) -> Result<bool> {
    let failed = |errno: Errno| errors::of(errno, "read the folder of the store");
    for entry in Dir::read_from(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_str().is_ok_and(|name| StoreKey::try_from(name).is_ok()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn write_marker(folder: &OwnedFd) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = |error: std::io::Error| errors::of(error, "write the marker of the store");
    let marker = match rustix::fs::openat(folder, MARKER, flags, Mode::RUSR | Mode::WUSR) {
        Ok(marker) => marker,
        Err(Errno::ISDIR | Errno::LOOP) => return Err(errors::in_the_way(MARKER)),
        Err(errno) => return Err(failed(errno.into())),
    };
    let mut marker = File::from(marker);
    marker.write_all(MARKER_TEXT).and_then(|()| marker.sync_all()).map_err(failed)?;
    sync(folder)
}

fn not_mounted(path: &Path) -> StoreError {
    let reason = format!(
        "the store is not in `{}`: its drive is not mounted, or the folder was moved",
        path.display()
    );
    StoreError::Offline(reason.into())
}
