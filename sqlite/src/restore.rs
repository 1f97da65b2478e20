//! Writing a state back: beside the target, proven, and renamed into place last.
//!
//! Until the rename nothing but a hidden temporary file exists, and it is removed when anything fails. The target is
//! left alone while any program has it open, and whatever SQLite would mistake for its log or journal goes first.

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::digest::{Digest, Kind, lock_byte_page, page_digest, xor};
use crate::error::RestoreError;
use crate::os::{any_lock, identity_of, index_in_use, open_elsewhere, read_at};
use crate::verify::{Integrity, check_integrity};

/// Longest file name of Linux file systems, in bytes.
const NAME_MAX: usize = 255;
/// What SQLite keeps beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];
/// The file is read back in pieces of this many bytes.
const PIECE_LEN: usize = 1 << 20;
/// So many names `<file>.before-<label>-<n>` are tried.
const KEPT_MAX: u32 = 1000;

/// What to do with a file that already has the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it, and fail.
    Refuse,
    /// Rename it to `<file_name>.before-<label>`.
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
    /// Pages that have their image; bit 0 is page 1.
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

    /// Writes one page, unless it was written before: entries are read from the newest to the oldest.
    ///
    /// Pages beyond the size of the database are ignored: an older entry had them.
    pub fn write_page(&mut self, pgno: u32, image: &[u8]) -> Result<(), RestoreError> {
        if image.len() != self.page_size as usize || pgno == 0 {
            return Err(invalid("an image is not one page"));
        }
        if pgno > self.page_count || pgno == self.lock_page {
            return Ok(());
        }
        let (word, bit) = ((pgno as usize - 1) / 64, 1_u64 << ((pgno - 1) % 64));
        if self.written[word] & bit != 0 {
            return Ok(());
        }
        // A page of zeros is a hole: the file begins empty.
        if image.iter().any(|byte| *byte != 0) {
            let offset = u64::from(pgno - 1) * u64::from(self.page_size);
            self.file.write_all_at(image, offset).map_err(doing("writing the restored database"))?;
        }
        self.written[word] |= bit;
        self.missing -= 1;
        Ok(())
    }

    /// Every page has its image: older entries need not be read.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
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
        let target = self.target()?;
        if target.is_some() && existing == Existing::Refuse {
            return Err(RestoreError::Exists);
        }
        let bytes = u64::from(self.page_count) * u64::from(self.page_size);
        self.file.set_len(bytes).map_err(doing("setting the length of the restored database"))?;
        if self.digest_of_file()? != expected {
            return Err(RestoreError::DigestMismatch);
        }
        let integrity = match kind {
            Kind::Opaque => Integrity::Opaque,
            Kind::Plain => check_integrity(self.directory.as_fd(), &self.temporary)?,
        };
        if let Some(target) = &target {
            let mode = Mode::from_raw_mode(target.mode() & 0o777);
            rustix::fs::fchmod(&self.file, mode)
                .map_err(|e| doing("setting the mode of the file")(e.into()))?;
        }
        self.file.sync_all().map_err(doing("writing the restored database"))?;
        refuse_if_in_use(&self.directory, &self.name)?;
        let kept_beside = self.put_in_place(target.is_some(), label)?;
        rustix::fs::fsync(&self.directory).map_err(|e| doing("writing the folder")(e.into()))?;
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

    /// Moves what is there out of the way, and the new file to its name; when that fails, all back.
    fn put_in_place(&mut self, exists: bool, label: &str) -> Result<Option<String>, RestoreError> {
        let mut moved = Vec::new();
        let mut kept = None;
        let result = (|| {
            if exists {
                let name = self.keep(label)?;
                moved.push((self.name.clone(), name.clone()));
                for suffix in BESIDE {
                    let (from, to) = (format!("{}{suffix}", self.name), format!("{name}{suffix}"));
                    match rustix::fs::renameat(&self.directory, &from, &self.directory, &to) {
                        Ok(()) => moved.push((from, to)),
                        Err(Errno::NOENT) => {}
                        Err(error) => return Err(error),
                    }
                }
                kept = Some(name);
            } else {
                // Left over from a database that is gone: they would be replayed into the restored one.
                for suffix in BESIDE {
                    match rustix::fs::unlinkat(
                        &self.directory,
                        format!("{}{suffix}", self.name),
                        AtFlags::empty(),
                    ) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            self.rename_new(&self.temporary, &self.name)
        })();
        match result {
            Ok(()) => {
                self.renamed = true;
                Ok(kept)
            }
            Err(error) => {
                for (from, to) in moved.into_iter().rev() {
                    let _ = self.rename_new(&to, &from);
                }
                Err(if error == Errno::EXIST {
                    RestoreError::Exists
                } else {
                    doing("renaming")(error.into())
                })
            }
        }
    }

    /// Renames the target to a name that nothing has, nor anything SQLite would take for its log.
    fn keep(&self, label: &str) -> Result<String, Errno> {
        let label: String = label.chars().map(|c| if c == '/' || c.is_control() { '-' } else { c }).collect();
        for count in 1..=KEPT_MAX {
            let number = if count == 1 { String::new() } else { format!("-{count}") };
            let name = format!("{}.before-{label}{number}", self.name);
            let free = |suffix: &&str| {
                let beside = format!("{name}{suffix}");
                let found = rustix::fs::statat(&self.directory, beside, AtFlags::SYMLINK_NOFOLLOW);
                matches!(found, Err(Errno::NOENT))
            };
            if !BESIDE.iter().all(free) {
                continue;
            }
            match self.rename_new(&self.name, &name) {
                Err(Errno::EXIST) => {}
                Ok(()) => return Ok(name),
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }

    fn rename_new(&self, from: &str, to: &str) -> Result<(), Errno> {
        rustix::fs::renameat_with(&self.directory, from, &self.directory, to, RenameFlags::NOREPLACE)
    }
}

impl Drop for RestoreWriter {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = rustix::fs::unlinkat(&self.directory, self.temporary.as_str(), AtFlags::empty());
        }
    }
}

fn create_temporary(directory: &OwnedFd, file_name: &str) -> Result<(String, File), RestoreError> {
    loop {
        let random = std::hash::RandomState::new().build_hasher().finish();
        let tail = format!(".chatkeep-{random:016x}");
        let mut stem = file_name;
        while 1 + stem.len() + tail.len() > NAME_MAX {
            let mut chars = stem.chars();
            chars.next_back();
            stem = chars.as_str();
        }
        let name = format!(".{stem}{tail}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(directory, name.as_str(), flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => return Ok((name, File::from(fd))),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(doing("creating the restored database")(error.into())),
        }
    }
}

/// Fails while a program has the target, its log or its index open.
fn refuse_if_in_use(directory: &OwnedFd, name: &str) -> Result<(), RestoreError> {
    let looking = "looking at the target";
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(directory, format!("{name}{suffix}"), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::LOOP) => continue,
            Err(error) => return Err(doing(looking)(error.into())),
        };
        let locked = match suffix {
            "" => any_lock(&file),
            "-shm" => index_in_use(&file),
            _ => Ok(false),
        };
        let locked = locked.map_err(doing("asking for locks"))?;
        let pid = open_elsewhere(identity_of(&file).map_err(doing(looking))?);
        if locked || pid.is_some() {
            let why = match pid {
                Some(pid) => format!("process {pid} has it open"),
                None => "a process has it locked".to_owned(),
            };
            return Err(RestoreError::InUse { pid, why });
        }
    }
    Ok(())
}

fn invalid(reason: &str) -> RestoreError {
    RestoreError::Invalid { reason: reason.to_owned() }
}

pub(crate) fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> RestoreError {
    move |source| RestoreError::Io { doing, source }
}
