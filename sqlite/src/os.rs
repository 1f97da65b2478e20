//! The few things asked of the operating system: held read-only descriptors, identities, locks of others.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// First of the bytes that SQLite's locks on a database file are on; PENDING.
const PENDING_BYTE: i64 = 0x4000_0000;
/// RESERVED: somebody prepares a change.
const RESERVED_BYTE: i64 = PENDING_BYTE + 1;
/// The range a reader has a shared lock in, and a writer an exclusive one on.
const SHARED_FIRST: i64 = PENDING_BYTE + 2;
const SHARED_LEN: i64 = 510;

/// A database file and those SQLite keeps beside it.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub(crate) db: PathBuf,
    pub(crate) wal: PathBuf,
    pub(crate) shm: PathBuf,
    pub(crate) journal: PathBuf,
    /// A second log, of databases in the mode `wal2`.
    pub(crate) wal2: PathBuf,
}

impl Paths {
    pub(crate) fn new(db: &Path) -> Paths {
        let beside = |suffix: &str| {
            let mut name = db.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Paths {
            wal: beside("-wal"),
            shm: beside("-shm"),
            journal: beside("-journal"),
            wal2: beside("-wal2"),
            db: db.to_owned(),
        }
    }
}

/// Names a file as long as somebody holds it open: afterwards the number is given away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// What changes when a file is written: compared before and after reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) identity: Identity,
    pub(crate) size: u64,
    /// Nanoseconds since the epoch.
    pub(crate) modified_ns: i128,
    pub(crate) changed_ns: i128,
}

impl Stat {
    fn of(meta: &Metadata) -> Stat {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Stat {
            identity: Identity { device: meta.dev(), inode: meta.ino() },
            size: meta.len(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Of the file that has this name now; `None` when none has.
    pub(crate) fn of_path(path: &Path) -> io::Result<Option<Stat>> {
        absent(std::fs::metadata(path)).map(|meta| meta.as_ref().map(Stat::of))
    }

    pub(crate) fn of_file(file: &File) -> io::Result<Stat> {
        file.metadata().map(|meta| Stat::of(&meta))
    }
}

/// Nothing has this name.
pub(crate) fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// "No such file" as an answer instead of an error.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens for reading only; `None` when there is no such file. Never creates, never blocks on a FIFO.
pub(crate) fn open_read(path: &Path) -> io::Result<Option<File>> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let Some(file) = absent(OpenOptions::new().read(true).custom_flags(flags).open(path))? else {
        return Ok(None);
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(Some(file))
}

/// Reads at `offset` until `buffer` is full or the file ends; returns how much there was.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A kind of lock that would be in the way of the one asked about.
#[derive(Debug, Clone, Copy)]
enum Against {
    /// Any lock.
    Any,
    /// Exclusive locks only.
    Exclusive,
}

/// Asks whether somebody else has a lock on these bytes. Takes none (`F_OFD_GETLK`).
fn locked(file: &File, start: i64, len: i64, against: Against) -> io::Result<bool> {
    let wanted = match against {
        Against::Any => libc::F_WRLCK,
        Against::Exclusive => libc::F_RDLCK,
    };
    let mut question = libc::flock {
        l_type: wanted as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut question))?;
    Ok(i32::from(question.l_type) != libc::F_UNLCK)
}

/// Whether any process has the database of this index open in WAL mode.
pub(crate) fn index_in_use(shm: &File) -> io::Result<bool> {
    locked(shm, crate::index::DEAD_MAN_BYTE, 1, Against::Any)
}

/// Whether somebody writes the database file itself now, or waits for readers to do so (EXCLUSIVE, PENDING).
pub(crate) fn being_written(db: &File) -> io::Result<bool> {
    Ok(locked(db, PENDING_BYTE, 1, Against::Exclusive)?
        || locked(db, SHARED_FIRST, SHARED_LEN, Against::Exclusive)?)
}

/// Whether somebody has begun to write: a journal beside the file belongs to it then.
pub(crate) fn reserved(db: &File) -> io::Result<bool> {
    locked(db, RESERVED_BYTE, 1, Against::Any)
}

/// Whether anybody has any lock on the database file.
pub(crate) fn any_lock(db: &File) -> io::Result<bool> {
    locked(db, PENDING_BYTE, 2 + SHARED_LEN, Against::Any)
}

macro_rules! caution {
    ($name:literal) => {
        Some(concat!(
            "it is on ",
            $name,
            ": captured only after 2 s in which nobody wrote, and what another machine writes may go unnoticed"
        ))
    };
}

/// Why a file on this file system has to be read with caution; `None` for one of this machine alone.
///
/// Where other machines can write, there are no events of it, perhaps no locks, and what is read may be old. An app on
/// this machine goes through the same kernel: its locks, events and writes are seen as ever.
pub(crate) fn caution_about(file: &File) -> io::Result<Option<&'static str>> {
    // linux/magic.h, and the sources of the file systems that are not in it
    Ok(match rustix::fs::fstatfs(file)?.f_type as u64 & 0xffff_ffff {
        0x6969 => caution!("NFS"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => caution!("SMB/CIFS"),
        0x0102_1997 => caution!("9p"),
        0x6573_5546 => caution!("FUSE"),
        0x00c3_6400 => caution!("Ceph"),
        0x5346_414f => caution!("AFS"),
        0x786f_4256 => caution!("a shared folder of a virtual machine"),
        _ => None,
    })
}

/// Names an open file.
pub(crate) fn identity_of(file: &File) -> io::Result<Identity> {
    Stat::of_file(file).map(|stat| stat.identity)
}

/// Whether another process that we may look at has this very file open (`/proc/*/fd`).
///
/// Best effort: processes of other users cannot be seen.
pub(crate) fn open_elsewhere(file: Identity) -> Option<u32> {
    let own = std::process::id();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == own {
            continue;
        }
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let open = std::fs::metadata(descriptor.path())
                .is_ok_and(|meta| Identity { device: meta.dev(), inode: meta.ino() } == file);
            if open {
                return Some(pid);
            }
        }
    }
    None
}
