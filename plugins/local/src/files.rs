//! The calls of the contract, on files.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use chatkeep_store::key::SEGMENTS_MAX;
use chatkeep_store::listing::ListingCheck;
use chatkeep_store::{
    ListPrefix, ObjectMeta, PutCondition, PutReceipt, Result, StoreError, StoreKey, Usage, clamp_range,
};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::root::{MARKER, Root, name as name_of, open_below, sync, walk};
use crate::{errors, leftovers};

/// Writes beside the final place, waits for the disk, then moves into place: what is visible is whole and durable.
pub(crate) fn put(root: &Root, key: &StoreKey, body: &[u8], condition: PutCondition) -> Result<PutReceipt> {
    let folder = root.make_parent_of(key)?;
    let name = name_of(key);
    if condition == PutCondition::CreateIfAbsent && kind_of(&folder, name)?.is_some() {
        // spares the disk the work; the move below decides
        return Err(occupied(&folder, key)?);
    }
    let temporary = Temporary::write(&folder, body)?;
    let moved = match condition {
        PutCondition::CreateIfAbsent => temporary.move_to_free(name),
        PutCondition::Overwrite => temporary.move_to(name),
    };
    match moved {
        Ok(()) => {}
        Err(Errno::EXIST) if condition == PutCondition::CreateIfAbsent => {
            return Err(occupied(&folder, key)?);
        }
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => return Err(errors::in_the_way(key.as_str())),
        Err(errno) => return Err(errors::of(errno, "move an object into place")),
    }
    sync(&folder)?;
    Ok(PutReceipt { len: body.len() as u64 })
}

/// Gives a file that has these bytes, and is on the disk, a second name: half the writing where the store is on the same
/// file system. Where that cannot be, puts the bytes.
pub(crate) fn put_file(root: &Root, key: &StoreKey, body: &[u8], file: &Path) -> Result<PutReceipt> {
    let len = body.len() as u64;
    let folder = root.make_parent_of(key)?;
    let name = name_of(key);
    // A link never replaces anything, and appears in one step.
    match rustix::fs::linkat(rustix::fs::CWD, file, &folder, name, AtFlags::empty()) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Err(occupied(&folder, key)?),
        // another file system, one without links, or somebody else's file
        Err(_) => return put(root, key, body, PutCondition::CreateIfAbsent),
    }
    let linked = stat_of(&folder, name)?;
    let is_it = |stat: &rustix::fs::Stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size as u64 == len
    };
    if !linked.as_ref().is_some_and(is_it) {
        rustix::fs::unlinkat(&folder, name, AtFlags::empty())
            .map_err(|errno| errors::of(errno, "take back a name"))?;
        return put(root, key, body, PutCondition::CreateIfAbsent);
    }
    sync(&folder)?;
    Ok(PutReceipt { len })
}

pub(crate) fn get(root: &Root, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
    let file = open_object(root, key)?;
    let failed = |error: std::io::Error| errors::of(error, "read an object");
    let len = file.metadata().map_err(failed)?.len();
    let range = match range {
        None => 0..len,
        Some(range) => clamp_range(&range, len)?,
    };
    let mut body = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut body, range.start).map_err(failed)?;
    Ok(Bytes::from(body))
}

pub(crate) fn head(root: &Root, key: &StoreKey) -> Result<ObjectMeta> {
    let file = open_object(root, key)?;
    let len = file.metadata().map_err(|error| errors::of(error, "look at an object"))?.len();
    Ok(ObjectMeta { key: key.clone(), len })
}

pub(crate) fn delete(root: &Root, key: &StoreKey) -> Result<()> {
    let Some(folder) = root.parent_of(key)? else { return Ok(()) };
    let name = name_of(key);
    // what is not a file is not an object, and not ours to delete
    if kind_of(&folder, name)? != Some(FileType::RegularFile) {
        return Ok(());
    }
    match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
        Ok(()) => sync(&folder),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errors::of(errno, "delete an object")),
    }
}

/// Names all files below `prefix` whose names are keys. What else lies there (temporary files, links, whatever people
/// put into folders) is not ours and not named: unlike at a service, nobody can hide an object by renaming it who
/// could not delete it as well.
pub(crate) fn list(root: &Root, prefix: &str) -> Result<Vec<ObjectMeta>> {
    let mut listing = ListingCheck::new(prefix)?;
    let prefix = ListPrefix::parse(prefix)?;
    let folder = root.open()?;
    let below = prefix.as_str().split('/').filter(|segment| !segment.is_empty());
    let mut count = 0;
    if let Some(folder) = walk(folder, below)? {
        list_folder(&folder, prefix.as_str(), &mut listing, &mut count)?;
    }
    listing.finish(Some(count))
}

pub(crate) fn usage(root: &Root) -> Result<Usage> {
    let folder = root.open()?;
    let stat =
        rustix::fs::fstatvfs(&folder).map_err(|errno| errors::of(errno, "ask how full the drive is"))?;
    // what all objects take up would cost a listing
    Ok(Usage {
        used: None,
        total: Some(stat.f_blocks.saturating_mul(stat.f_frsize)),
        free: Some(stat.f_bavail.saturating_mul(stat.f_frsize)),
    })
}

fn list_folder(folder: &OwnedFd, path: &str, listing: &mut ListingCheck, count: &mut u64) -> Result<()> {
    let failed = |errno: Errno| errors::of(errno, "read a folder");
    for entry in Dir::read_from(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let key = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        if key == MARKER || StoreKey::try_from(key.as_str()).is_err() {
            continue;
        }
        let Some(stat) = stat_of(folder, name)? else { continue };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                listing.push(&key, u64::try_from(stat.st_size).unwrap_or(0))?;
                *count += 1;
            }
            FileType::Directory if key.split('/').count() < SEGMENTS_MAX => match open_below(folder, name) {
                Ok(below) => list_folder(&below, &key, listing, count)?,
                // gone, or something else, since it was read
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(failed(errno)),
            },
            _ => {}
        }
    }
    Ok(())
}

fn open_object(root: &Root, key: &StoreKey) -> Result<File> {
    let not_found = || StoreError::NotFound { key: key.clone() };
    let folder = root.parent_of(key)?.ok_or_else(not_found)?;
    // not blocking: a pipe somebody put there would never answer
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match retry_on_intr(|| rustix::fs::openat(&folder, name_of(key), flags, Mode::empty())) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Err(not_found()),
        Err(errno) => return Err(errors::of(errno, "open an object")),
    };
    let is_file = file.metadata().map_err(|error| errors::of(error, "look at an object"))?.is_file();
    if is_file { Ok(file) } else { Err(not_found()) }
}

/// Why a key cannot be created: an object has it, or something that is not ours.
fn occupied(folder: &OwnedFd, key: &StoreKey) -> Result<StoreError> {
    Ok(match kind_of(folder, name_of(key))? {
        // gone again by now: then it was one
        None | Some(FileType::RegularFile) => StoreError::AlreadyExists { key: key.clone() },
        Some(_) => errors::in_the_way(key.as_str()),
    })
}

fn kind_of(folder: &OwnedFd, name: &str) -> Result<Option<FileType>> {
    Ok(stat_of(folder, name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)))
}

fn stat_of(folder: &OwnedFd, name: &str) -> Result<Option<rustix::fs::Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errors::of(errno, "look at a file")),
    }
}

/// A file with the bytes of an object that has no key yet. Dropped before it has one, it is deleted.
struct Temporary<'a> {
    folder: &'a OwnedFd,
    name: Option<String>,
}

impl<'a> Temporary<'a> {
    /// The bytes are on the disk when this returns.
    fn write(folder: &'a OwnedFd, body: &[u8]) -> Result<Self> {
        let failed = |error: std::io::Error| match Errno::from_io_error(&error) {
            Some(Errno::FBIG) => StoreError::TooLarge { len: body.len() as u64, len_max: None },
            _ => errors::of(error, "write an object"),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = leftovers::new_name();
        let file = retry_on_intr(|| rustix::fs::openat(folder, &name, flags, Mode::RUSR | Mode::WUSR))
            .map_err(|errno| failed(errno.into()))?;
        let temporary = Self { folder, name: Some(name) };
        let mut file = File::from(file);
        file.write_all(body).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(temporary)
    }

    fn move_to(mut self, name: &str) -> rustix::io::Result<()> {
        let from = self.name.as_deref().unwrap_or_default();
        rustix::fs::renameat(self.folder, from, self.folder, name)?;
        self.name = None;
        Ok(())
    }

    /// Fails with `EXIST` if anything has the name already.
    fn move_to_free(mut self, name: &str) -> rustix::io::Result<()> {
        let from = self.name.as_deref().unwrap_or_default();
        match rustix::fs::renameat_with(self.folder, from, self.folder, name, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.name = None;
                Ok(())
            }
            // NFS and some FUSE file systems do not know the flag, but a link never replaces anything either;
            // the temporary name goes when this is dropped
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.link_to_free(name),
            Err(errno) => Err(errno),
        }
    }

    fn link_to_free(&self, name: &str) -> rustix::io::Result<()> {
        let from = self.name.as_deref().unwrap_or_default();
        rustix::fs::linkat(self.folder, from, self.folder, name, AtFlags::empty())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // what cannot be deleted now is deleted as a leftover later
            let _ = rustix::fs::unlinkat(self.folder, name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// The way of file systems that cannot rename without replacing, which are hard to come by in a test.
    #[test]
    fn a_link_creates_an_object_once_and_leaves_no_temporary_file() {
        let place = tempfile::tempdir().unwrap();
        let folder = OwnedFd::from(File::open(place.path()).unwrap());
        let create = |body: &[u8]| Temporary::write(&folder, body).unwrap().link_to_free("1");
        assert_eq!(create(b"first"), Ok(()));
        assert_eq!(create(b"second"), Err(Errno::EXIST));
        assert_eq!(std::fs::read(place.path().join("1")).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
