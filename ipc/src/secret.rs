//! Secrets cross the bus as pipes, never in a message.
//!
//! A bus monitor gets its own copy of every message and of every descriptor. What is in a message, or in a memfd, it
//! reads unnoticed; what is in a pipe can be read once, so a theft is seen as an early end of file.

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::Error;

/// The longest secret that is read: a page, which is what any pipe takes at once. A service account of Google has 2,400 bytes.
pub const SECRET_LEN_MAX: usize = 4096;
/// How long the writer may take until it closes its end.
pub const SECRET_TIMEOUT: Duration = Duration::from_secs(5);

/// Pipes read at one time; more callers wait their turn, the runtime's blocking threads stay free for others.
static READERS: Semaphore = Semaphore::const_new(16);

/// A password or the digits of a key: wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes `bytes` over.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// The bytes themselves.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// A pipe with the secret in it and its write end closed: what a client passes as an argument.
    pub fn into_pipe(self) -> io::Result<OwnedFd> {
        if self.0.len() > SECRET_LEN_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the secret is longer than 4096 bytes"));
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        File::from(write).write_all(&self.0)?; // fits into any pipe, cannot block
        Ok(read)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// The write end of a caller's pipe, for a key that the service generates.
#[derive(Debug)]
pub struct KeyOut(OwnedFd);

impl KeyOut {
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, Error> {
        require_pipe(&fd, OFlags::WRONLY)?;
        Ok(Self(fd))
    }

    /// Writes `text` and a newline, and closes the pipe. Does not block: an empty pipe takes it at once.
    pub fn write(self, text: &str) -> Result<(), Error> {
        let failed =
            |what: &str| Error::InvalidSecret(format!("the new key could not be handed over: {what}"));
        let mut line = Zeroizing::new(Vec::with_capacity(text.len() + 1));
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        let flags = rustix::fs::fcntl_getfl(&self.0).map_err(|error| failed(&error.to_string()))?;
        rustix::fs::fcntl_setfl(&self.0, flags | OFlags::NONBLOCK)
            .map_err(|error| failed(&error.to_string()))?;
        match rustix::io::write(&self.0, &line) {
            Ok(written) if written == line.len() => Ok(()),
            Ok(_) => Err(failed("the pipe is full")),
            Err(error) => Err(failed(&error.to_string())),
        }
    }
}

/// Reads a secret from the read end of a pipe until its end.
pub(crate) async fn read_secret(fd: OwnedFd) -> Result<Secret, Error> {
    require_pipe(&fd, OFlags::RDONLY)?;
    let _turn = READERS.acquire().await.map_err(|_| Error::Internal("the reader is closed".into()))?;
    tokio::task::spawn_blocking(move || read_to_end(&fd, SECRET_TIMEOUT))
        .await
        .map_err(|_| Error::Internal("reading the secret failed".into()))?
}

fn require_pipe(fd: &OwnedFd, mode: OFlags) -> Result<(), Error> {
    let status = rustix::fs::fstat(fd).map_err(|error| Error::InvalidSecret(error.to_string()))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Fifo {
        return Err(Error::InvalidSecret("secrets are passed by pipe; this descriptor is none".into()));
    }
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|error| Error::InvalidSecret(error.to_string()))?;
    if flags & OFlags::ACCMODE != mode {
        return Err(Error::InvalidSecret("this is the wrong end of the pipe".into()));
    }
    Ok(())
}

fn read_to_end(fd: &OwnedFd, timeout: Duration) -> Result<Secret, Error> {
    let io_error =
        |error: rustix::io::Errno| Error::InvalidSecret(format!("the pipe cannot be read: {error}"));
    // else a monitor that drains the pipe between poll and read would keep this thread for good
    let flags = rustix::fs::fcntl_getfl(fd).map_err(io_error)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(io_error)?;
    let deadline = Instant::now() + timeout;
    // one byte of room past the limit and the newline, so "too long" is noticed; never grows, so no stale copies
    let mut buffer = Zeroizing::new(vec![0_u8; SECRET_LEN_MAX + 2]);
    let mut filled = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let late = || Error::SecretTimeout("the pipe was not closed within 5 seconds".into());
        if left.is_zero() {
            return Err(late());
        }
        let borrowed = fd.as_fd();
        let mut waiting = [PollFd::new(&borrowed, PollFlags::IN)];
        let timespec = left.try_into().map_err(|_| Error::Internal("the timeout is out of range".into()))?;
        match poll(&mut waiting, Some(&timespec)) {
            Ok(0) => return Err(late()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(io_error(error)),
        }
        match rustix::io::read(fd, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            // another holder of the pipe was quicker; it may still be closed, or time runs out
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(io_error(error)),
        }
        if filled == buffer.len() {
            break;
        }
    }
    if filled > 0 && buffer[filled - 1] == b'\n' {
        filled -= 1;
    }
    match filled {
        0 => Err(Error::InvalidSecret("the pipe was empty".into())),
        1..=SECRET_LEN_MAX => Ok(Secret(Zeroizing::new(buffer[..filled].to_vec()))),
        _ => Err(Error::InvalidSecret("the secret is longer than 4096 bytes".into())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn read_bytes(bytes: &[u8]) -> Result<Secret, Error> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        File::from(write).write_all(bytes).unwrap();
        read_to_end(&read, Duration::from_secs(1))
    }

    #[test]
    fn one_newline_at_the_end_is_dropped() {
        assert_eq!(read_bytes(b"word\n").unwrap().as_bytes(), b"word");
        assert_eq!(read_bytes(b"word\n\n").unwrap().as_bytes(), b"word\n");
        assert_eq!(read_bytes(b" word ").unwrap().as_bytes(), b" word ");
    }

    #[test]
    fn the_length_limit_is_exact() {
        assert_eq!(read_bytes(&[b'x'; SECRET_LEN_MAX]).unwrap().as_bytes().len(), SECRET_LEN_MAX);
        let mut with_newline = vec![b'x'; SECRET_LEN_MAX];
        with_newline.push(b'\n');
        assert_eq!(read_bytes(&with_newline).unwrap().as_bytes().len(), SECRET_LEN_MAX);
        assert!(matches!(read_bytes(&[b'x'; SECRET_LEN_MAX + 1]), Err(Error::InvalidSecret(_))));
        assert!(matches!(read_bytes(&[b'x'; 4 * SECRET_LEN_MAX]), Err(Error::InvalidSecret(_))));
    }

    #[test]
    fn nothing_is_no_secret() {
        assert!(matches!(read_bytes(b""), Err(Error::InvalidSecret(_))));
        assert!(matches!(read_bytes(b"\n"), Err(Error::InvalidSecret(_))));
    }

    #[test]
    fn a_pipe_that_stays_open_times_out() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let answer = read_to_end(&read, Duration::from_millis(50));
        assert!(matches!(answer, Err(Error::SecretTimeout(_))));
        drop(write);
    }

    #[test]
    fn only_the_right_end_of_a_pipe_is_taken() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        assert!(require_pipe(&read, OFlags::RDONLY).is_ok());
        assert!(require_pipe(&write, OFlags::RDONLY).is_err());
        assert!(KeyOut::new(read).is_err());
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(matches!(require_pipe(&file, OFlags::RDONLY), Err(Error::InvalidSecret(_))));
    }

    #[test]
    fn printing_a_secret_shows_nothing() {
        let secret = Secret::new(Zeroizing::new(b"hunter2".to_vec()));
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
    }
}
