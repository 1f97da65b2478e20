//! Writing files back: never through a link, never over what is there, and so that a restore that was cut off goes on.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{
    AtFlags, FallocateFlags, FlockOperation, Mode, RenameFlags, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::{Errno, retry_on_intr};

use crate::chunk::{ChunkId, id};
use crate::folder::Folder;
use crate::leftovers;
use crate::os::{self, FILE, NS_PER_S, is_gone, nanoseconds};
use crate::path::RelPath;

/// Writes files into one folder. Several threads may use it at once.
///
/// Folders that are missing are made for the user alone (`0700`) and left so: their permissions are not recorded.
#[derive(Debug)]
pub struct Restorer {
    /// Locked as long as this lives.
    folder: Folder,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    restored: Restored,
    /// Folders whose names are to be written to the disk at the end.
    unsynced: BTreeSet<Box<[u8]>>,
}

/// How much a restore wrote.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Files written.
    pub written: u64,
    /// Their length together.
    pub bytes: u64,
    /// Files that were there already.
    pub already_there: u64,
}

/// A file that is to be there.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Where.
    pub path: &'a RelPath,
    /// In bytes.
    pub len: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Permissions. Only those within `0o777` are set: a restore makes no program run as somebody else.
    pub mode: u32,
    /// What a file that is there already must have in it. Without it, length and time of writing decide.
    pub content: Option<Content<'a>>,
}

/// What is in a file.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// Under which the chunks have their names.
    pub key: &'a [u8; 32],
    /// Its chunks in order, each with its length.
    pub chunks: &'a [(ChunkId, u64)],
}

/// What [`Restorer::file`] found.
#[derive(Debug)]
#[must_use]
pub enum Begun<'a> {
    /// Nothing: write the content.
    Write(FileWriter<'a>),
    /// The file itself: nothing to do.
    AlreadyThere,
}

/// Why a file, or the whole restore, failed. What was there before is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Another restore writes into this folder. Wait for it.
    #[error("another restore is writing into the folder")]
    Busy,
    /// Something else has the name of the file. Leave it, or let the user decide.
    #[error("another file is in its place")]
    Exists,
    /// Where a folder of its path is to be, there is a file, a link, or another file system. The user decides.
    #[error("something that is no folder is in the way")]
    InTheWay,
    /// More or less was written than the file is to have. A bug, or a damaged recovery point.
    #[error("the content does not have the length of the file")]
    Length,
    /// A name that only temporary files of a restore have. A damaged recovery point.
    #[error("the name is reserved")]
    Reserved,
    /// The file system failed (also: the disk is full).
    #[error("{doing} failed")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> RestoreError {
    move |error| RestoreError::Io { doing, source: error.into() }
}

impl Restorer {
    /// Begins to restore into `folder`, or goes on. Removes what a restore that was cut off left half-written.
    pub fn create(folder: &Folder) -> Result<Self, RestoreError> {
        let folder = folder.open_again().map_err(failed("opening the folder"))?;
        // where a network file system has no locks for folders, two restores at once would remove each other's
        // temporary files and fail, no more
        let locked = rustix::fs::flock(folder.fd(), FlockOperation::NonBlockingLockExclusive);
        if locked == Err(Errno::AGAIN) {
            return Err(RestoreError::Busy);
        }
        leftovers::remove(folder.fd());
        Ok(Self { folder, state: Mutex::default() })
    }

    /// Begins to write one file, unless it is there. The name appears when [`FileWriter::finish`] returns.
    pub fn file(&self, wanted: Wanted<'_>) -> Result<Begun<'_>, RestoreError> {
        let (folder_path, name) = wanted.path.split();
        if wanted.path.as_bytes().split(|&byte| byte == b'/').any(leftovers::is_ours) {
            return Err(RestoreError::Reserved);
        }
        let folder = self.make_folder(folder_path)?;
        match is_there(folder.as_fd(), name, &wanted)? {
            Some(true) => {
                self.state().restored.already_there += 1;
                return Ok(Begun::AlreadyThere);
            }
            Some(false) => return Err(RestoreError::Exists),
            None => {}
        }
        let (file, temporary) = leftovers::create(folder.as_fd()).map_err(failed("making a file"))?;
        let writer = FileWriter {
            restorer: self,
            folder,
            temporary: Some(temporary),
            file: File::from(file),
            name: name.to_vec(),
            len: wanted.len,
            written: 0,
            mtime_ns: wanted.mtime_ns,
            mode: wanted.mode,
        };
        writer.reserve()?;
        Ok(Begun::Write(writer))
    }

    /// Waits until the names of all files are on the disk. Their content already is.
    pub fn finish(mut self) -> Result<Restored, RestoreError> {
        let state = std::mem::take(self.state.get_mut().expect(NO_PANIC));
        for path in &state.unsynced {
            let synced = self.folder.open_below(path).and_then(rustix::fs::fsync);
            match synced {
                // a file system that has nothing to write for a folder
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(failed("writing a folder to the disk")(errno)),
            }
        }
        Ok(state.restored)
    }

    /// Opens a folder below, and makes it and those above it where they are missing.
    fn make_folder(&self, path: &[u8]) -> Result<OwnedFd, RestoreError> {
        // also where nothing is made: who made it may have been killed before it was on the disk
        self.sync_at_the_end(path);
        match self.folder.open_below(path) {
            Ok(folder) => return Ok(folder),
            Err(errno) if is_gone(errno) => {}
            Err(errno) => return Err(no_folder(errno)),
        }
        let mut folder = self.folder.open_below(b"").map_err(no_folder)?;
        for segment in path.split(|&byte| byte == b'/') {
            match rustix::fs::mkdirat(&folder, segment, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("making a folder")(errno)),
            }
            folder = os::open_below(folder.as_fd(), segment, os::FOLDER).map_err(no_folder)?;
        }
        Ok(folder)
    }

    fn sync_at_the_end(&self, mut path: &[u8]) {
        let mut state = self.state();
        // where one is noted, all above it are
        while state.unsynced.insert(path.into()) && !path.is_empty() {
            let above = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
            path = &path[..above];
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

impl Drop for Restorer {
    fn drop(&mut self) {
        // closing is not enough: a child that this program is just starting has the descriptor, too, for a moment
        let _ = rustix::fs::flock(self.folder.fd(), FlockOperation::Unlock);
    }
}

const NO_PANIC: &str = "nothing panics while it holds the state";

fn no_folder(errno: Errno) -> RestoreError {
    match errno {
        Errno::NOTDIR | Errno::LOOP | Errno::XDEV => RestoreError::InTheWay,
        errno => failed("opening a folder")(errno),
    }
}

/// Writes one file. Dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub struct FileWriter<'a> {
    restorer: &'a Restorer,
    folder: OwnedFd,
    /// Until it has its name.
    temporary: Option<Vec<u8>>,
    file: File,
    name: Vec<u8>,
    len: u64,
    written: u64,
    mtime_ns: i64,
    mode: u32,
}

impl FileWriter<'_> {
    /// Writes what comes next.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        if bytes.len() as u64 > self.len - self.written {
            return Err(RestoreError::Length);
        }
        self.file.write_all(bytes).map_err(failed("writing a file"))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Puts the file into its place, whole and on the disk, with its permissions and its time.
    pub fn finish(mut self) -> Result<(), RestoreError> {
        if self.written != self.len {
            return Err(RestoreError::Length);
        }
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec {
                tv_sec: self.mtime_ns.div_euclid(NS_PER_S),
                tv_nsec: self.mtime_ns.rem_euclid(NS_PER_S),
            },
        };
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(self.mode & 0o777))
            .map_err(failed("setting permissions"))?;
        rustix::fs::futimens(&self.file, &times).map_err(failed("setting the time of a file"))?;
        self.file.sync_all().map_err(failed("writing a file to the disk"))?;
        match self.move_into_place() {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(RestoreError::Exists),
            Err(errno) => return Err(failed("moving a file into its place")(errno)),
        }
        let mut state = self.restorer.state();
        state.restored.written += 1;
        state.restored.bytes += self.len;
        Ok(())
    }

    /// A full disk shows before anything is fetched.
    fn reserve(&self) -> Result<(), RestoreError> {
        if self.len == 0 {
            return Ok(());
        }
        match retry_on_intr(|| rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, self.len)) {
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                Err(failed("making room for a file")(errno))
            }
            // not every file system can
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Fails with `EXIST` if anything has the name already.
    fn move_into_place(&mut self) -> Result<(), Errno> {
        let Some(from) = &self.temporary else { return Ok(()) };
        let (from, to) = (from.as_slice(), self.name.as_slice());
        match rustix::fs::renameat_with(&self.folder, from, &self.folder, to, RenameFlags::NOREPLACE) {
            Ok(()) => self.temporary = None,
            // NFS and some FUSE file systems do not know the flag, but a link never replaces anything either; the
            // temporary name goes when this is dropped
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(&self.folder, from, &self.folder, to, AtFlags::empty())?;
            }
            Err(errno) => return Err(errno),
        }
        Ok(())
    }
}

impl Drop for FileWriter<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            // what stays is removed by the next restore
            let _ = rustix::fs::unlinkat(&self.folder, name.as_slice(), AtFlags::empty());
        }
    }
}

/// Whether the name is taken, and if so, by the file that is wanted.
fn is_there(folder: BorrowedFd<'_>, name: &[u8], wanted: &Wanted<'_>) -> Result<Option<bool>, RestoreError> {
    let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed("looking for a file")(errno)),
    };
    let mtime_ns = nanoseconds(stat.st_mtime, stat.st_mtime_nsec as i64);
    let alike = os::is_file(&stat)
        && u64::try_from(stat.st_size) == Ok(wanted.len)
        && is_same_time(mtime_ns, wanted.mtime_ns);
    let same = match wanted.content {
        Some(content) if alike => has_content(folder, name, content)?,
        _ => alike,
    };
    Ok(Some(same))
}

/// Whether a file has the time that was set, as far as its file system keeps it.
fn is_same_time(kept_ns: i64, set_ns: i64) -> bool {
    // FAT: every other second; exFAT: hundredths; others: microseconds; NTFS and SMB: 100 ns
    let steps = [(NS_PER_S, 2 * NS_PER_S), (10_000_000, 10_000_000), (1000, 1000), (100, 100)];
    kept_ns == set_ns
        || steps.into_iter().any(|(unit, step)| kept_ns % unit == 0 && kept_ns.abs_diff(set_ns) < step as u64)
}

fn has_content(folder: BorrowedFd<'_>, name: &[u8], content: Content<'_>) -> Result<bool, RestoreError> {
    let file = match os::open_below(folder, name, FILE) {
        Ok(file) => File::from(file),
        Err(errno) if is_gone(errno) => return Ok(false),
        Err(errno) => return Err(failed("opening a file that is there")(errno)),
    };
    // chunk by chunk of the record, wherever this version would cut
    for &(expected, len) in content.chunks {
        let mut hasher = blake3::Hasher::new_keyed(content.key);
        let hashed = io::copy(&mut io::Read::take(&file, len), &mut hasher)
            .map_err(failed("reading a file that is there"))?;
        if hashed != len || id(&hasher.finalize()) != expected {
            return Ok(false);
        }
    }
    let rest = io::copy(&mut io::Read::take(&file, 1), &mut io::sink());
    Ok(rest.map_err(failed("reading a file that is there"))? == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_same_as_far_as_the_file_system_keeps_them() {
        const S: i64 = NS_PER_S;
        for (kept, set, expected) in [
            (5, 5, true),
            (5, 6, false),
            (100 * S, 101 * S + 7, true),
            (100 * S, 102 * S, false),
            (-2 * S, -S - 1, true),
            (100 * S + 20_000_000, 100 * S + 25_000_001, true),
            (100 * S + 20_000_000, 100 * S + 30_000_000, false),
            (100, 199, true),
            (101, 199, false),
        ] {
            assert_eq!(is_same_time(kept, set), expected, "{kept} {set}");
        }
    }
}
