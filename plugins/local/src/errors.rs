//! What the kernel says, as what the caller does next.

use std::io;

use chatkeep_store::StoreError;
use rustix::io::Errno;

/// Sorts an error of a file call; `what` completes "cannot …" for the log.
pub(crate) fn of(error: impl Into<io::Error>, what: &'static str) -> StoreError {
    let error = error.into();
    let errno = Errno::from_io_error(&error);
    let cause = Box::new(FileError { what, source: error });
    match errno {
        Some(Errno::NOSPC | Errno::DQUOT) => StoreError::Quota(cause),
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => StoreError::Permission(cause),
        // a drive pulled out, a network file system whose server is gone, a FUSE file system whose process died
        Some(
            Errno::NODEV
            | Errno::NXIO
            | Errno::NOMEDIUM
            | Errno::STALE
            | Errno::NOTCONN
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::TIMEDOUT,
        ) => StoreError::Offline(cause),
        Some(Errno::NAMETOOLONG) => {
            StoreError::Invalid { reason: "the file system takes no names as long as these".to_owned() }
        }
        _ => StoreError::Transient(cause),
    }
}

/// Something that is not ours stands where a folder or an object of ours should be.
pub(crate) fn in_the_way(name: &str) -> StoreError {
    StoreError::Invalid {
        reason: format!("`{name}` in the folder of the store is in the way: it is not ours"),
    }
}

#[derive(Debug)]
struct FileError {
    what: &'static str,
    source: io::Error,
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot {}", self.what)
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use chatkeep_store::ErrorKind;

    use super::*;

    #[test]
    fn each_error_leads_to_what_helps() {
        for (errno, kind) in [
            (Errno::NOSPC, ErrorKind::Quota),
            (Errno::DQUOT, ErrorKind::Quota),
            (Errno::ACCESS, ErrorKind::Permission),
            (Errno::PERM, ErrorKind::Permission),
            (Errno::ROFS, ErrorKind::Permission),
            (Errno::STALE, ErrorKind::Offline),
            (Errno::NOTCONN, ErrorKind::Offline),
            (Errno::NODEV, ErrorKind::Offline),
            (Errno::NAMETOOLONG, ErrorKind::Invalid),
            (Errno::IO, ErrorKind::Transient),
            (Errno::INTR, ErrorKind::Transient),
        ] {
            assert_eq!(of(errno, "test").kind(), kind, "{errno:?}");
        }
    }
}
