//! The folder itself, held open.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::os::{self, FOLDER};

/// A folder of attachments. Everything is reached from here, so it stays the same folder if it is renamed meanwhile.
///
/// While it is held, its file system cannot be unmounted: hold it for one round, not for ever.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
}

impl Folder {
    /// Opens the folder at `path`, unless its last segment is a symbolic link. Links before it are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, FOLDER)
    }

    /// The same, for a path of which the user said that it is a link and meant to be.
    pub fn open_through_link(path: &Path) -> io::Result<Self> {
        Self::open_with(path, FOLDER.difference(OFlags::NOFOLLOW))
    }

    /// For a folder that somebody else opened (a portal, a caller on D-Bus).
    pub fn from_fd(fd: &OwnedFd) -> io::Result<Self> {
        Self::open_in(fd.as_fd())
    }

    /// The folder once more, with a position and locks of its own.
    pub(crate) fn open_again(&self) -> io::Result<Self> {
        Self::open_in(self.fd())
    }

    fn open_in(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = retry_on_intr(|| rustix::fs::openat(fd, ".", FOLDER, Mode::empty()))?;
        Ok(Self::new(fd))
    }

    fn open_with(path: &Path, flags: OFlags) -> io::Result<Self> {
        // without the slash (or `/.`) at its end, which would lead through a link
        let path = path.components().as_path();
        let fd = retry_on_intr(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))?;
        Ok(Self::new(fd))
    }

    fn new(fd: OwnedFd) -> Self {
        os::leave_no_trace(&fd);
        Self { fd }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a folder below; an empty path is this one.
    pub(crate) fn open_below(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return retry_on_intr(|| rustix::fs::openat(self.fd(), ".", FOLDER, Mode::empty()));
        }
        os::open_below(self.fd(), path, FOLDER)
    }
}
