//! Calls of the kernel, so that no link leads out of the folder, and what its answers mean.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

pub(crate) const NS_PER_S: i64 = 1_000_000_000;

/// For a folder whose names are to be read.
pub(crate) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// For a file that is to be read. Not blocking: a pipe somebody put there would never answer.
pub(crate) const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Opens what is at `path` below `folder`: through no link, not outside, and on the same file system.
///
/// One call where there is `openat2` (Linux 5.6), else one call for each segment. The path must be parsed.
pub(crate) fn open_below(folder: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let opened = retry_on_intr(|| rustix::fs::openat2(folder, path, flags, Mode::empty(), resolve));
    match opened {
        // not in this kernel, forbidden by a sandbox, a path longer than one call takes, or something that only the
        // long way tells apart
        Err(
            Errno::NOSYS | Errno::PERM | Errno::NAMETOOLONG | Errno::AGAIN | Errno::INVAL | Errno::TOOBIG,
        ) => open_by_steps(folder, path, flags),
        other => other,
    }
}

/// The same, segment by segment.
fn open_by_steps(folder: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut held: Option<OwnedFd> = None;
    let device = rustix::fs::fstat(folder)?.st_dev;
    let mut segments = path.split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        // passing through needs no right to read
        let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = if last { flags } else { through };
        let at = held.as_ref().map_or(folder, AsFd::as_fd);
        let next = retry_on_intr(|| rustix::fs::openat(at, segment, flags, Mode::empty()))?;
        let stat = rustix::fs::fstat(&next)?;
        // a file of an overlay may be on another device than its folder; a folder may not
        if stat.st_dev != device && FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(Errno::XDEV);
        }
        held = Some(next);
    }
    held.ok_or(Errno::NOENT)
}

/// Reads without a mark of it (the time of access), where we are allowed to: only of our own files.
pub(crate) fn leave_no_trace(opened: impl AsFd) {
    // a mere courtesy to the disk: a failure changes nothing
    let _ = rustix::fs::fcntl_setfl(opened, OFlags::NOATIME);
}

/// The name no longer stands for what it stood for: gone, or a link or something else instead.
pub(crate) fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE | Errno::NXIO)
}

pub(crate) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Nanoseconds since 1970, as far as they go (1677 to 2262).
pub(crate) fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(NS_PER_S).saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs::File;
    use std::os::unix::fs::symlink;

    use super::*;

    type Open = fn(BorrowedFd<'_>, &[u8], OFlags) -> Result<OwnedFd, Errno>;

    /// Both ways have to agree.
    fn check(open: Open) {
        let folder = tempfile::tempdir().unwrap();
        let root = File::open(folder.path()).unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"s").unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/file"), b"f").unwrap();
        symlink(outside.path(), folder.path().join("a/out")).unwrap();
        symlink("b", folder.path().join("a/in")).unwrap();
        symlink("file", folder.path().join("a/b/link")).unwrap();
        let open = |path: &str, flags| open(root.as_fd(), path.as_bytes(), flags);

        assert!(open("a/b/file", FILE).is_ok());
        assert!(open("a/b", FOLDER).is_ok());
        for path in ["a/out/secret", "a/in/file", "a/b/link", "a/none", "none/file", "a/b/file/x"] {
            let errno = open(path, FILE).unwrap_err();
            assert!(is_gone(errno), "{path}: {errno:?}");
        }
        assert!(is_gone(open("a/out", FOLDER).unwrap_err()));
        assert!(is_gone(open("a/b/file", FOLDER).unwrap_err()));
    }

    #[test]
    fn no_link_is_followed_in_one_call() {
        check(open_below);
    }

    #[test]
    fn no_link_is_followed_step_by_step() {
        check(open_by_steps);
    }

    #[test]
    fn another_file_system_is_not_entered() {
        let root = File::open("/").unwrap();
        for open in [open_below as Open, open_by_steps as Open] {
            assert_eq!(open(root.as_fd(), b"proc/self", FOLDER).map(|_| ()), Err(Errno::XDEV));
        }
    }

    #[test]
    fn times_before_1970_and_past_all_bounds_have_a_number() {
        assert_eq!(nanoseconds(-1, 999_999_999), -1);
        assert_eq!(nanoseconds(i64::MAX, 1), i64::MAX);
        assert_eq!(nanoseconds(i64::MIN, 1), i64::MIN + 1);
    }
}
