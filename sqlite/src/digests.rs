//! The digests of all pages, while the whole file is read: in memory for a database of two gigabytes, beyond that in
//! a file that has no name any more.

use std::io;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::pool::{Pool, Slot};

/// Digests of one block.
const COUNT: usize = 256;
const BLOCK_LEN: usize = COUNT * size_of::<Digest>();
/// In bytes: those of 524,288 pages.
const MEMORY_MAX: usize = 8 << 20;
const SPILL_MAX: u64 = 64 << 30;

/// Of page 1 and up. None has a digest of zeros: it means that the page was not read.
pub(crate) struct Digests {
    blocks: Vec<Slot>,
    pool: Pool,
    window: Window,
    changed: bool,
}

/// One block, held to be read or changed.
struct Window {
    block: usize,
    bytes: Vec<u8>,
}

impl Window {
    fn new() -> Window {
        Window { block: usize::MAX, bytes: vec![0; BLOCK_LEN] }
    }

    fn digest(&mut self, at: usize) -> &mut Digest {
        let digests = self.bytes.as_chunks_mut::<{ size_of::<Digest>() }>().0;
        &mut digests[at]
    }
}

pub(crate) const UNREAD: Digest = [0; 16];

impl Digests {
    /// `spill_path` is the name under which the spill file exists for a moment.
    pub(crate) fn new(spill_path: PathBuf) -> Digests {
        let mut pool = Pool::new(spill_path, MEMORY_MAX, SPILL_MAX);
        pool.clear(BLOCK_LEN);
        Digests { blocks: Vec::new(), pool, window: Window::new(), changed: false }
    }

    /// Makes room for so many pages.
    pub(crate) fn grow(&mut self, pages: u32) -> io::Result<()> {
        while self.blocks.len() < (pages as usize).div_ceil(COUNT) {
            self.blocks.push(self.pool.put(&[0; BLOCK_LEN])?);
        }
        Ok(())
    }

    /// There must be room for the page.
    pub(crate) fn get(&mut self, pgno: u32) -> io::Result<Digest> {
        Ok(*self.at(pgno)?)
    }

    /// There must be room for the page. Returns the digest it had.
    pub(crate) fn set(&mut self, pgno: u32, digest: &Digest) -> io::Result<Digest> {
        let old = std::mem::replace(self.at(pgno)?, *digest);
        self.changed = true;
        Ok(old)
    }

    fn at(&mut self, pgno: u32) -> io::Result<&mut Digest> {
        let at = pgno as usize - 1;
        if self.window.block != at / COUNT {
            self.flush()?;
            self.window.block = usize::MAX;
            self.pool.read(self.blocks[at / COUNT], &mut self.window.bytes)?;
            self.window.block = at / COUNT;
        }
        Ok(self.window.digest(at % COUNT))
    }

    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.changed) {
            self.pool.write(self.blocks[self.window.block], &self.window.bytes)?;
        }
        Ok(())
    }

    /// Nothing is changed any more.
    pub(crate) fn finish(mut self) -> io::Result<Finished> {
        self.flush()?;
        Ok(Finished { blocks: self.blocks, pool: self.pool })
    }
}

/// Digests that do not change any more.
pub(crate) struct Finished {
    blocks: Vec<Slot>,
    pool: Pool,
}

impl Finished {
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { digests: self, window: Window::new() }
    }
}

/// Reads digests in about the order of their pages.
pub(crate) struct Reader<'a> {
    digests: &'a Finished,
    window: Window,
}

impl Reader<'_> {
    /// There must be such a page.
    pub(crate) fn get(&mut self, pgno: u32) -> io::Result<Digest> {
        let at = pgno as usize - 1;
        if self.window.block != at / COUNT {
            self.digests.pool.read(self.digests.blocks[at / COUNT], &mut self.window.bytes)?;
            self.window.block = at / COUNT;
        }
        Ok(*self.window.digest(at % COUNT))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn digest(of: u32) -> Digest {
        crate::digest::page_digest(&[1; 32], of, b"x")
    }

    #[test]
    fn digests_in_memory_and_in_the_file_are_what_was_set_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut digests = Digests::new(folder.path().join("spill"));
        digests.pool = Pool::new(folder.path().join("spill"), 2 * BLOCK_LEN, 1 << 20);
        digests.pool.clear(BLOCK_LEN);
        let pages = 5 * COUNT as u32 + 3;
        for pgno in 1..=pages {
            digests.grow(pgno).unwrap();
            assert_eq!(digests.set(pgno, &digest(pgno)).unwrap(), UNREAD);
        }
        for pgno in [pages, 1, 700, 701] {
            assert_eq!(digests.set(pgno, &digest(pgno + 1)).unwrap(), digest(pgno));
        }
        assert_eq!(digests.get(700).unwrap(), digest(701));
        let finished = digests.finish().unwrap();
        let mut reader = finished.reader();
        for pgno in 1..=pages {
            let of = pgno + u32::from([pages, 1, 700, 701].contains(&pgno));
            assert_eq!(reader.get(pgno).unwrap(), digest(of), "page {pgno}");
        }
    }
}
