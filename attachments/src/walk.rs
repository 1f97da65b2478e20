//! Every regular file of the folder, in order.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::{Errno, retry_on_intr};

use crate::folder::Folder;
use crate::found::Found;
use crate::leftovers;
use crate::os::{self, FOLDER, is_gone};
use crate::path::{PathError, RelPath};

/// Endings of files that a program is still fetching, in any case.
const UNFINISHED_ENDINGS: [&[u8]; 4] = [b".part", b".tmp", b".crdownload", b".download"];

/// Beginnings of files that programs keep beside those they edit (LibreOffice, GLib).
const UNFINISHED_BEGINNINGS: [&[u8]; 2] = [b".~lock", b".goutputstream-"];

/// More problems are counted and no longer named.
const PROBLEMS_MAX: usize = 1000;

/// What a walk came across.
#[must_use = "files below a problem are not gone"]
#[derive(Debug, Default)]
pub struct Walked {
    /// Files told.
    pub files: u64,
    /// Their length together.
    pub bytes: u64,
    /// Left out, on purpose.
    pub skipped: Skipped,
    /// Left out, because it could not be looked at; the first 1000.
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub problems_unnamed: u64,
}

impl Walked {
    /// Whether a file may be there that the walk could not see: one that it did not tell is not known to be gone.
    pub fn may_hide(&self, path: &RelPath) -> bool {
        self.problems_unnamed > 0 || self.problems.iter().any(|problem| path.is_within(&problem.path))
    }

    fn problem(&mut self, path: RelPath, why: Why) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { path, why });
        } else {
            self.problems_unnamed += 1;
        }
    }
}

/// How much was left out, and why.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Symbolic links.
    pub links: u64,
    /// Sockets, pipes, devices.
    pub specials: u64,
    /// Names of files that a program has not finished: `.part`, `.tmp`, `.crdownload`, `.download` at the end;
    /// `.~lock`, `.goutputstream-` at the start; leftovers of a restore.
    pub unfinished: u64,
    /// Folders on which another file system is mounted.
    pub mounts: u64,
}

/// Something that could not be looked at: a file, or a folder with all that is below.
#[derive(Debug)]
pub struct Problem {
    /// Where.
    pub path: RelPath,
    /// What was in the way.
    pub why: Why,
}

/// What can be in the way of a walk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// No permission, or the disk failed.
    #[error("cannot be looked at")]
    Unreadable(#[source] io::Error),
    /// The folder is [`RelPath::SEGMENTS_MAX`] deep, and what is in it would be deeper.
    #[error("too deep")]
    TooDeep,
    /// Something in the folder has a path longer than [`RelPath::LEN_MAX`].
    #[error("the path is too long")]
    TooLong,
}

impl Folder {
    /// Tells every regular file, sorted by path as bytes.
    ///
    /// Only looks, and opens no file: one that must not be read is told, and fails when it is read. What comes
    /// and goes meanwhile is told or not. Fails only if the folder itself cannot be read, or was deleted: then nothing
    /// is known about its files.
    pub fn walk(&self, tell: &mut dyn FnMut(Found)) -> io::Result<Walked> {
        let mut walk = Walk { tell, walked: Walked::default(), path: Vec::new(), failed: None };
        let folder = self.open_again()?;
        walk.folder(folder.fd(), 1);
        if let Some(errno) = walk.failed {
            return Err(errno.into());
        }
        // a folder that was deleted looks like an empty one
        if rustix::fs::fstat(self.fd())?.st_nlink == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(walk.walked)
    }
}

struct Walk<'a> {
    tell: &'a mut dyn FnMut(Found),
    walked: Walked,
    /// Of the folder or file that is looked at.
    path: Vec<u8>,
    /// Why the folder itself cannot be read.
    failed: Option<Errno>,
}

impl Walk<'_> {
    /// Tells what is in `folder`; `segments` is how many a path in it has.
    fn folder(&mut self, folder: BorrowedFd<'_>, segments: usize) {
        let names = match self.names(folder) {
            Ok(names) => names,
            Err(errno) => return self.trouble(errno),
        };
        for name in names {
            let len = self.path.len();
            if len > 0 {
                self.path.push(b'/');
            }
            if let Some(name) = name.strip_suffix(b"/") {
                self.path.extend_from_slice(name);
                self.enter(folder, name, segments);
            } else {
                self.path.extend_from_slice(&name);
                self.file(folder, &name);
            }
            self.path.truncate(len);
        }
    }

    /// The names in a folder that are to be looked at. Those of folders end in a slash, which makes the order of names
    /// the order of paths: `a.jpg` comes before what is in `a/`.
    fn names(&mut self, folder: BorrowedFd<'_>) -> Result<Vec<Box<[u8]>>, Errno> {
        let mut names = Vec::new();
        // a copy of the descriptor: opened anew it would leave the time of access
        for entry in Dir::new(rustix::io::fcntl_dupfd_cloexec(folder, 0)?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                // not every file system says
                FileType::Unknown => match stat(folder, name) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(errno) if is_gone(errno) => continue,
                    // told as a problem when it is looked at
                    Err(_) => FileType::RegularFile,
                },
                kind => kind,
            };
            match kind {
                FileType::Directory => names.push([name, b"/"].concat().into_boxed_slice()),
                FileType::RegularFile if is_unfinished(name) => self.walked.skipped.unfinished += 1,
                FileType::RegularFile => names.push(name.into()),
                FileType::Symlink => self.walked.skipped.links += 1,
                _ => self.walked.skipped.specials += 1,
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn enter(&mut self, folder: BorrowedFd<'_>, name: &[u8], segments: usize) {
        if segments >= RelPath::SEGMENTS_MAX {
            return self.problem(Why::TooDeep);
        }
        match enter(folder, name) {
            Ok(below) => self.folder(below.as_fd(), segments + 1),
            Err(Errno::XDEV) => self.walked.skipped.mounts += 1,
            Err(errno) => self.trouble(errno),
        }
    }

    fn file(&mut self, folder: BorrowedFd<'_>, name: &[u8]) {
        let stat = match stat(folder, name) {
            Ok(stat) => stat,
            Err(errno) => return self.trouble(errno),
        };
        // something else since its name was read: seen next time
        if !os::is_file(&stat) {
            return;
        }
        match RelPath::parse(&self.path) {
            Ok(path) => {
                let found = Found::new(path, &stat);
                self.walked.files += 1;
                self.walked.bytes = self.walked.bytes.saturating_add(found.len);
                (self.tell)(found);
            }
            Err(PathError::TooLong) => self.problem(Why::TooLong),
            // the kernel gives no such names
            Err(error) => {
                self.problem(Why::Unreadable(io::Error::new(io::ErrorKind::InvalidFilename, error)));
            }
        }
    }

    fn trouble(&mut self, errno: Errno) {
        if self.path.is_empty() {
            self.failed = Some(errno);
        } else if !is_gone(errno) {
            self.problem(Why::Unreadable(errno.into()));
        }
    }

    /// Names the path, or the nearest folder above that can be named.
    fn problem(&mut self, why: Why) {
        let mut path = &self.path[..];
        let named = loop {
            match (RelPath::parse(path), path.iter().rposition(|&byte| byte == b'/')) {
                (Ok(named), _) => break Some(named),
                (Err(_), Some(slash)) => path = &path[..slash],
                (Err(_), None) => break None,
            }
        };
        match named {
            Some(named) => self.walked.problem(named, why),
            None => self.walked.problems_unnamed += 1,
        }
    }
}

fn enter(folder: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let below = os::open_below(folder, name, FOLDER)?;
    // a subvolume of btrfs is no mount, but its numbers of files are its own
    if rustix::fs::fstat(&below)?.st_dev != rustix::fs::fstat(folder)?.st_dev {
        return Err(Errno::XDEV);
    }
    os::leave_no_trace(&below);
    Ok(below)
}

fn stat(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    retry_on_intr(|| rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW))
}

fn is_unfinished(name: &[u8]) -> bool {
    let ends_in = |ending: &&[u8]| {
        name.len().checked_sub(ending.len()).is_some_and(|at| name[at..].eq_ignore_ascii_case(ending))
    };
    UNFINISHED_ENDINGS.iter().any(ends_in)
        || UNFINISHED_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        || leftovers::is_ours(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_files_are_known_by_their_names() {
        for name in
            ["a.part", "A.TMP", "x.jpg.crdownload", "x.download", ".~lock.a.odt#", ".goutputstream-X1"]
        {
            assert!(is_unfinished(name.as_bytes()), "{name}");
        }
        for name in ["part", "a.partial", "tmp", "a.tmp.jpg", "~lock", "download", ""] {
            assert!(!is_unfinished(name.as_bytes()), "{name}");
        }
    }
}
