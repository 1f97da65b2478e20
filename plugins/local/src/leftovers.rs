//! What a crash leaves: temporary files, whose names no object can have.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use chatkeep_store::StoreKey;
use chatkeep_store::key::SEGMENTS_MAX;
use rustix::fs::{AtFlags, Dir, FileType};

use crate::root::open_below;

/// Temporary files start with this. No segment of a key starts with a dot.
pub(crate) const PREFIX: &str = ".chatkeep-tmp-";

/// How old a temporary file must be before it is nobody's: longer than any put takes, also one of another program or
/// of another machine on a shared drive whose clock is a little off.
const AGE_MIN: Duration = Duration::from_hours(24);

/// A name that no other put of this process uses, and hardly one of another process.
pub(crate) fn new_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let nanos =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    format!("{PREFIX}{}-{number}-{nanos:x}", std::process::id())
}

/// Removes old temporary files. What cannot be read or removed stays: it only takes up room.
pub(crate) fn remove_old(root: &OwnedFd) {
    let removed = sweep(root, SEGMENTS_MAX);
    if removed > 0 {
        tracing::info!(removed, "removed temporary files that a crash had left");
    }
}

fn sweep(folder: &OwnedFd, depth: usize) -> u64 {
    let Ok(entries) = Dir::read_from(folder) else { return 0 };
    let mut removed = 0;
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name.starts_with(PREFIX) {
            let gone = is_old(folder, name) && rustix::fs::unlinkat(folder, name, AtFlags::empty()).is_ok();
            removed += u64::from(gone);
        } else if depth > 1 && entry.file_type() != FileType::RegularFile && StoreKey::try_from(name).is_ok()
        {
            removed += open_below(folder, name).map_or(0, |below| sweep(&below, depth - 1));
        }
    }
    removed
}

fn is_old(folder: &OwnedFd, name: &str) -> bool {
    let Ok(stat) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    let old = SystemTime::now().duration_since(written).is_ok_and(|age| age >= AGE_MIN);
    old && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}
