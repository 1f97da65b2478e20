//! Temporary files of a restore, and what a crash leaves of them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::os::{FOLDER, open_below};
use crate::path::RelPath;

const BEGINNING: &[u8] = b".chatkeep-restore-";

/// Whether only a restore gives such names.
pub(crate) fn is_ours(name: &[u8]) -> bool {
    name.starts_with(BEGINNING)
}

/// Makes a hidden file that nobody else can read yet.
pub(crate) fn create(folder: BorrowedFd<'_>) -> Result<(OwnedFd, Vec<u8>), Errno> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = [BEGINNING, format!("{}-{number}", std::process::id()).as_bytes()].concat();
        match retry_on_intr(|| rustix::fs::openat(folder, name.as_slice(), flags, Mode::RUSR | Mode::WUSR)) {
            Ok(file) => return Ok((file, name)),
            // one that could not be removed, of a process that had our number
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Removes all temporary files in a folder and below. What cannot be read or removed stays: it only takes up room.
pub(crate) fn remove(folder: BorrowedFd<'_>) {
    remove_in(folder, RelPath::SEGMENTS_MAX);
}

fn remove_in(folder: BorrowedFd<'_>, depth: usize) {
    let Ok(entries) = Dir::read_from(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_bytes();
        let kind = entry.file_type();
        if is_ours(name) && matches!(kind, FileType::RegularFile | FileType::Unknown) {
            // a folder is not removed by this
            let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
        } else if matches!(kind, FileType::Directory | FileType::Unknown)
            && depth > 1
            && name != b"."
            && name != b".."
            && let Ok(below) = open_below(folder, name, FOLDER)
        {
            remove_in(below.as_fd(), depth - 1);
        }
    }
}
