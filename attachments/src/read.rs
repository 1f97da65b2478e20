//! Reading one file of a folder that its program may write to at any moment.

use std::io;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, retry_on_intr};
use rustix::time::{ClockId, clock_gettime};

use crate::chunk::{CHUNK_LEN_MAX, Chunk, UNCUT_LEN_MAX, first_cut};
use crate::folder::Folder;
use crate::found::Found;
use crate::os::{self, FILE, NS_PER_S, is_gone, nanoseconds};

/// Two writes within this time may get the same time of change: a tick of the kernel's clock is 1 to 10 ms.
const TICK_NS: i64 = 20_000_000;

/// The same on file systems that keep seconds (FAT: two of them).
const COARSE_TICK_NS: i64 = 2 * NS_PER_S;

/// What a file had, all of it passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Bytes, as in [`Found`].
    pub len: u64,
    /// Chunks; an empty file has none.
    pub chunks: u64,
}

/// Why a file was not read. Chunks passed on before are of no use: drop them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It is not as it was found: written, replaced or gone, or changed so lately that the next change might not show.
    /// Try again after the next walk.
    #[error("the file changed")]
    Changed,
    /// The file cannot be read: no permission, or the disk failed. Tell the user.
    #[error("the file cannot be read")]
    Unreadable(#[source] io::Error),
    /// Whoever takes the chunks failed.
    #[error("the chunks were not taken")]
    Sink(#[source] io::Error),
}

impl From<Errno> for ReadError {
    fn from(errno: Errno) -> Self {
        // `AGAIN`: a program holds a lease on the file, it is about to be written
        if is_gone(errno) || errno == Errno::AGAIN { Self::Changed } else { Self::Unreadable(errno.into()) }
    }
}

impl Folder {
    /// Reads a file, cut into chunks named under `key`, if it is as it was `found` and stays so to the end.
    ///
    /// Needs about 8 MiB of memory at most. Not seen are writes through a mapping that was written to before the file
    /// was found and was not written back since: the kernel notes their time later, and the next walk sees that.
    pub fn read(
        &self,
        found: &Found,
        key: &[u8; 32],
        sink: &mut dyn FnMut(Chunk<'_>) -> io::Result<()>,
    ) -> Result<Read, ReadError> {
        let mut reading = self.begin(found)?;
        let mut chunks = 0;
        while let Some(chunk) = reading.next(key)? {
            sink(chunk).map_err(ReadError::Sink)?;
            chunks += 1;
        }
        Ok(Read { len: found.len, chunks })
    }

    /// Begins to read a file, for whoever has other things to do between its chunks. As [`read`](Self::read).
    pub fn begin(&self, found: &Found) -> Result<Reading, ReadError> {
        let file = os::open_below(self.fd(), found.path.as_bytes(), FILE)?;
        let start_ns = now_ns();
        check(&file, found)?;
        os::leave_no_trace(&file);
        let capacity = if found.len <= UNCUT_LEN_MAX { found.len as usize } else { 2 * CHUNK_LEN_MAX };
        let buffer = Vec::with_capacity(capacity);
        Ok(Reading { file, found: found.clone(), start_ns, buffer, given: 0, left: found.len })
    }
}

/// A file that is being read.
#[derive(Debug)]
pub struct Reading {
    file: OwnedFd,
    found: Found,
    start_ns: i64,
    buffer: Vec<u8>,
    /// Bytes at the front of the buffer that were given away.
    given: usize,
    /// Bytes of the file that are not in the buffer yet.
    left: u64,
}

impl Reading {
    /// The file, as it was found.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The next chunk. Nothing when there are no more, and the file is as it was found: only then do those before count.
    pub fn next(&mut self, key: &[u8; 32]) -> Result<Option<Chunk<'_>>, ReadError> {
        if self.left > 0 && self.buffer.len() - self.given < CHUNK_LEN_MAX {
            self.buffer.drain(..self.given);
            self.given = 0;
            self.fill()?;
        }
        let rest = &self.buffer[self.given..];
        if rest.is_empty() {
            check(&self.file, &self.found)?;
            if is_too_fresh(self.found.ctime_ns, self.start_ns, now_ns()) {
                return Err(ReadError::Changed);
            }
            return Ok(None);
        }
        let cut = if self.found.len <= UNCUT_LEN_MAX { rest.len() } else { first_cut(rest) };
        self.given += cut;
        Ok(Some(Chunk::new(key, &rest[..cut])))
    }

    fn fill(&mut self) -> Result<(), ReadError> {
        while self.left > 0 && self.buffer.len() < self.buffer.capacity() {
            let count = retry_on_intr(|| rustix::io::read(&self.file, spare_capacity(&mut self.buffer)))?;
            // shorter or longer than it was found
            self.left =
                self.left.checked_sub(count as u64).filter(|_| count > 0).ok_or(ReadError::Changed)?;
        }
        Ok(())
    }
}

fn check(file: &OwnedFd, found: &Found) -> Result<(), ReadError> {
    let stat = rustix::fs::fstat(file)?;
    let unchanged = os::is_file(&stat) && Found::new(found.path.clone(), &stat).is_same_file_as(found);
    if unchanged { Ok(()) } else { Err(ReadError::Changed) }
}

/// Whether a write while it was read (`start_ns` to `end_ns`) could have left the time of change as it was.
fn is_too_fresh(ctime_ns: i64, start_ns: i64, end_ns: i64) -> bool {
    // where the clock of files has no more than hundredths, it may have no more than seconds
    let tick_ns = if ctime_ns % 10_000_000 == 0 { COARSE_TICK_NS } else { TICK_NS };
    ctime_ns > start_ns.saturating_sub(tick_ns) && ctime_ns < end_ns.saturating_add(tick_ns)
}

fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    nanoseconds(now.tv_sec, now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ctime_ns: i64, expected: bool) {
        const START: i64 = 1_700_000_000 * NS_PER_S;
        assert_eq!(is_too_fresh(START + ctime_ns, START, START + NS_PER_S), expected);
    }

    #[test]
    fn a_file_is_fresh_within_a_tick_of_being_read() {
        check(-TICK_NS - 1, false);
        check(-TICK_NS + 1, true);
        check(NS_PER_S / 2 + 1, true);
        check(NS_PER_S + TICK_NS - 1, true);
    }

    #[test]
    fn a_time_far_ahead_is_not_fresh() {
        check(NS_PER_S + TICK_NS + 1, false);
        check(1000 * NS_PER_S, false);
    }

    #[test]
    fn a_coarse_clock_has_long_ticks() {
        check(-2 * NS_PER_S, false);
        check(-NS_PER_S, true);
        check(NS_PER_S, true);
        check(3 * NS_PER_S, false);
    }
}
