//! Writing a state back: beside the target, proven, and renamed into place last.
//!
//! Until the rename nothing but a hidden temporary file exists, and it is removed when anything fails. The target is
//! left alone while any program has it open. How it is replaced is in [`place`](crate::place).

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::{Digest, Kind, lock_byte_page, page_digest, xor};
use crate::error::RestoreError;
use crate::os::read_at;
use crate::place::{Place, refuse_if_in_use};
use crate::verify::{Integrity, check_integrity};

/// Longest file name of Linux file systems, in bytes.
const NAME_MAX: usize = 255;
/// Most pages of a database (SQLITE_MAX_PAGE_COUNT).
const PAGES_MAX: u32 = 0xffff_fffe;
/// Between the name of a database and 16 random hexadecimal digits: a restore under way.
const TEMPORARY_MARK: &str = ".chatkeep-";
const WRITING: &str = "writing the restored database";
/// The file is read back in pieces of this many bytes.
const PIECE_LEN: usize = 1 << 20;

/// What to do with a file that already has the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it, and fail.
    Refuse,
    /// Rename it, and what SQLite keeps beside it, to `<file_name>.before-<label>`.
    KeepBeside,
}

/// A database that is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Its name in the directory.
    pub path_name: String,
    /// What an existing file was renamed to.
    pub kept_beside: Option<String>,
    /// What SQLite says about it.
    pub integrity: Integrity,
    /// Its length.
    pub bytes: u64,
}

/// Writes one state into a new file beside the target.
pub struct RestoreWriter {
    directory: OwnedFd,
    name: String,
    temporary: String,
    renamed: bool,
    file: File,
    page_size: u32,
    page_count: u32,
    lock_page: u32,
    key: [u8; 32],
    /// Pages that have an image, as far as the highest of them; bit 0 is page 1.
    written: Vec<u64>,
    missing: u32,
}

impl RestoreWriter {
    /// Begins a restore of `file_name` in `directory`. Fails at once while a program has the target open.
    pub fn create(
        directory: OwnedFd,
        file_name: &str,
        page_size: u32,
        page_count: u32,
        digest_key: [u8; 32],
    ) -> Result<Self, RestoreError> {
        if file_name.is_empty() || file_name == "." || file_name == ".." || file_name.contains(['/', '\0']) {
            return Err(invalid("the name is no file name"));
        }
        let possible = (512..=65536).contains(&page_size) && page_size.is_power_of_two();
        if !possible && page_count > 0 {
            return Err(invalid("the page size is impossible"));
        }
        if page_count > PAGES_MAX {
            return Err(invalid("no database has so many pages"));
        }
        refuse_if_in_use(&directory, file_name)?;
        let lock_page = if possible { lock_byte_page(page_size) } else { 0 };
        let (temporary, file) = create_temporary(&directory, file_name)?;
        Ok(RestoreWriter {
            directory,
            name: file_name.to_owned(),
            temporary,
            renamed: false,
            file,
            page_size,
            page_count,
            lock_page,
            key: digest_key,
            written: vec![0; (page_count as usize).div_ceil(64)],
            missing: page_count - u32::from((1..=page_count).contains(&lock_page)),
        })
    }

    /// Writes one page over what it was before: entries are read from the oldest to the newest.
    ///
    /// Pages beyond the size of the database are kept until the end: an older entry had them, and a later one may say
    /// that some of its pages are made of them.
    pub fn write_page(&mut self, pgno: u32, image: &[u8]) -> Result<(), RestoreError> {
        if image.len() != self.page_size as usize || pgno == 0 {
            return Err(invalid("an image is not one page"));
        }
        if pgno == self.lock_page {
            return Ok(());
        }
        let (word, bit) = place_of(pgno);
        if word >= self.written.len() {
            self.written.resize(word + 1, 0);
        }
        let is_new = self.written[word] & bit == 0;
        // A page of zeros is a hole: the file begins empty.
        if !is_new || image.iter().any(|byte| *byte != 0) {
            self.file.write_all_at(image, self.offset_of(pgno)).map_err(doing(WRITING))?;
        }
        self.written[word] |= bit;
        self.missing -= u32::from(is_new && pgno <= self.page_count);
        Ok(())
    }

    /// Reads what a page is so far; `false` when it was never written.
    pub fn read_page(&self, pgno: u32, image: &mut [u8]) -> Result<bool, RestoreError> {
        if image.len() != self.page_size as usize || pgno == 0 {
            return Err(invalid("an image is not one page"));
        }
        let (word, bit) = place_of(pgno);
        if self.written.get(word).is_none_or(|written| written & bit == 0) {
            return Ok(false);
        }
        let read = read_at(&self.file, image, self.offset_of(pgno));
        let read = read.map_err(doing("reading the restored database"))?;
        image[read..].fill(0); // a hole at the end
        Ok(true)
    }

    fn offset_of(&self, pgno: u32) -> u64 {
        u64::from(pgno - 1) * u64::from(self.page_size)
    }

    /// Every page has an image.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// How many pages the database has.
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// How many pages have no image yet.
    pub fn missing(&self) -> u32 {
        self.missing
    }

    /// Proves what was written, and puts it in place. `label` names a kept file: `<file_name>.before-<label>`.
    pub fn finish(
        mut self,
        expected: Digest,
        kind: Kind,
        existing: Existing,
        label: &str,
    ) -> Result<Restored, RestoreError> {
        if self.missing > 0 {
            return Err(RestoreError::MissingPages { count: self.missing });
        }
        if self.target()?.is_some() && existing == Existing::Refuse {
            return Err(RestoreError::Exists);
        }
        let bytes = u64::from(self.page_count) * u64::from(self.page_size);
        self.file.set_len(bytes).map_err(doing("setting the length of the restored database"))?;
        if self.digest_of_file()? != expected {
            return Err(RestoreError::DigestMismatch);
        }
        let integrity = match kind {
            Kind::Opaque => Integrity::Opaque,
            Kind::Plain => check_integrity(self.directory.as_fd(), &self.temporary),
        };
        if let Some(target) = self.target()? {
            let mode = Mode::from_raw_mode(target.mode() & 0o777);
            rustix::fs::fchmod(&self.file, mode)
                .map_err(|e| doing("setting the mode of the file")(e.into()))?;
        }
        self.file.sync_all().map_err(doing(WRITING))?;
        let place = Place { directory: &self.directory, name: &self.name };
        let kept_beside = place.take_over(&self.temporary, existing, label, &|| {})?;
        self.renamed = true;
        rustix::fs::fsync(&self.directory)
            .map_err(|error| RestoreError::InPlaceUnsynced { source: error.into() })?;
        Ok(Restored { path_name: self.name.clone(), kept_beside, integrity, bytes })
    }

    /// What has the name now.
    fn target(&self) -> Result<Option<std::fs::Metadata>, RestoreError> {
        let looking = doing("looking at the target");
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = match rustix::fs::openat(&self.directory, self.name.as_str(), flags, Mode::empty()) {
            Ok(fd) => File::from(fd).metadata().map_err(looking)?,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(looking(error.into())),
        };
        if target.is_file() { Ok(Some(target)) } else { Err(invalid("the target is not a regular file")) }
    }

    fn digest_of_file(&self) -> Result<Digest, RestoreError> {
        let mut state = Digest::default();
        let page_len = self.page_size as usize;
        let mut piece = vec![0; PIECE_LEN];
        let mut pgno = 1;
        while pgno <= self.page_count {
            let offset = u64::from(pgno - 1) * u64::from(self.page_size);
            let got =
                read_at(&self.file, &mut piece, offset).map_err(doing("reading the restored database"))?;
            if got < page_len {
                return Err(RestoreError::DigestMismatch);
            }
            for image in piece[..got].chunks_exact(page_len) {
                if pgno != self.lock_page {
                    xor(&mut state, &page_digest(&self.key, pgno, image));
                }
                pgno += 1;
            }
        }
        Ok(state)
    }
}

impl Drop for RestoreWriter {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = rustix::fs::unlinkat(&self.directory, self.temporary.as_str(), AtFlags::empty());
        }
    }
}

/// A page's word and bit among those written.
fn place_of(pgno: u32) -> (usize, u64) {
    ((pgno as usize - 1) / 64, 1 << ((pgno - 1) % 64))
}

fn create_temporary(directory: &OwnedFd, file_name: &str) -> Result<(String, File), RestoreError> {
    let mut stem = file_name;
    while 1 + stem.len() + TEMPORARY_MARK.len() + 16 > NAME_MAX {
        let mut chars = stem.chars();
        chars.next_back();
        stem = chars.as_str();
    }
    let prefix = format!(".{stem}{TEMPORARY_MARK}");
    remove_old_temporaries(directory, &prefix);
    loop {
        let random = std::hash::RandomState::new().build_hasher().finish();
        let name = format!("{prefix}{random:016x}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(directory, name.as_str(), flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => File::from(fd),
            Err(Errno::EXIST) => continue,
            Err(error) => return Err(doing("creating the restored database")(error.into())),
        };
        // Says that it is in use. Where it cannot be locked, nobody could find it unlocked either.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        // Another restore may have taken it for an old one before it was locked.
        if file.metadata().map_err(doing("creating the restored database"))?.nlink() > 0 {
            return Ok((name, file));
        }
    }
}

/// Removes what restores of the same file left behind that were cut short. Best effort.
fn remove_old_temporaries(directory: &OwnedFd, prefix: &str) {
    let Ok(entries) = Dir::read_from(directory) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().to_str() else { continue };
        let digits = name.strip_prefix(prefix).unwrap_or_default();
        let ours = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !ours {
            continue;
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(directory, name, flags, Mode::empty()) else { continue };
        let regular = rustix::fs::fstat(&file).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
        });
        if regular && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
        }
    }
}

fn invalid(reason: &str) -> RestoreError {
    RestoreError::Invalid { reason: reason.to_owned() }
}

pub(crate) fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> RestoreError {
    move |source| RestoreError::Io { doing, source }
}
