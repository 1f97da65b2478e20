//! What the file system says about a file without reading it.

use rustix::fs::Stat;

use crate::os::{NS_PER_S, nanoseconds};
use crate::path::RelPath;

/// A file must not have been written for this long before it is read: downloads and recordings come in pieces.
const SETTLE_NS: i64 = 2 * NS_PER_S;

/// A time further ahead than this is no fresh write but a wrong clock.
const AHEAD_MAX_NS: i64 = NS_PER_S;

/// A regular file, as a walk saw it. Times are nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: RelPath,
    /// In bytes.
    pub len: u64,
    /// When its content was last written, or what a program said so.
    pub mtime_ns: i64,
    /// When anything about it last changed. Only the kernel sets it.
    pub ctime_ns: i64,
    /// Its number on the file system.
    pub inode: u64,
    /// The permissions, within `0o7777`.
    pub mode: u32,
}

impl Found {
    pub(crate) fn new(path: RelPath, stat: &Stat) -> Self {
        Self {
            path,
            len: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec as i64),
            inode: stat.st_ino,
            mode: stat.st_mode & 0o7777,
        }
    }

    /// Whether the kernel says that nothing was written in between.
    ///
    /// Every write sets the time of change, so its being the same is the proof; that it was old enough to tell two
    /// writes apart is what [`Folder::read`](crate::Folder::read) sees to.
    pub(crate) fn is_same_file_as(&self, other: &Self) -> bool {
        (self.len, self.mtime_ns, self.ctime_ns, self.inode)
            == (other.len, other.mtime_ns, other.ctime_ns, other.inode)
    }
}

/// Whether a file is done being written, as far as one can tell: reading earlier costs work, not correctness.
///
/// It is when it was last written 2 s ago or more. A time in the future says nothing, so there a file counts as done
/// when it is as it was at the walk before (`previous`, which should be 2 s ago or more): a wrong clock must not keep
/// a file out of the backup for ever.
pub fn is_settled(found: &Found, previous: Option<&Found>, now_ns: i64) -> bool {
    let age_ns = now_ns.saturating_sub(found.mtime_ns);
    if age_ns >= SETTLE_NS {
        return true;
    }
    let clock_is_wrong = age_ns < -AHEAD_MAX_NS;
    clock_is_wrong && previous.is_some_and(|previous| previous.is_same_file_as(found))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const NOW: i64 = 1_700_000_000 * NS_PER_S;

    fn written(mtime_ns: i64) -> Found {
        let path = RelPath::parse(b"a").unwrap();
        Found { path, len: 1, mtime_ns, ctime_ns: mtime_ns, inode: 1, mode: 0o600 }
    }

    #[track_caller]
    fn check(ago_ns: i64, alone: bool, as_before: bool) {
        let found = written(NOW - ago_ns);
        assert_eq!(is_settled(&found, None, NOW), alone, "seen for the first time");
        assert_eq!(is_settled(&found, Some(&found.clone()), NOW), as_before, "as it was before");
        let shorter = Found { len: 0, ..found.clone() };
        assert_eq!(is_settled(&found, Some(&shorter), NOW), alone, "still growing");
    }

    #[test]
    fn a_file_settles_two_seconds_after_the_last_write() {
        check(SETTLE_NS, true, true);
        check(SETTLE_NS - 1, false, false);
        check(0, false, false);
    }

    #[test]
    fn a_time_a_little_ahead_is_a_fresh_write() {
        check(-AHEAD_MAX_NS, false, false);
    }

    #[test]
    fn a_wrong_clock_keeps_no_file_out_for_ever() {
        check(-AHEAD_MAX_NS - 1, false, true);
        check(-1_000_000 * NS_PER_S, false, true);
    }

    #[test]
    fn times_at_the_bounds_do_not_overflow() {
        assert!(is_settled(&written(i64::MIN), None, i64::MAX));
        assert!(!is_settled(&written(i64::MAX), None, i64::MIN));
    }
}
