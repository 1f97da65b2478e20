//! The dirty map: the newest committed image of every page that changed since the table was written.
//!
//! Images are in memory up to a limit, beyond it in a file that has no name any more.
//! Frames of a transaction are *staged* until its commit frame was accepted, then *published* together.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::os::read_at;

/// Where an image is.
enum Place {
    Memory(Box<[u8]>),
    Spilled(u64),
}

struct Entry {
    place: Place,
    /// Which cut it came after: see [`Dirty::cut`].
    generation: u64,
}

/// How much is kept at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// An entry takes about 70 bytes of memory, beside its image.
    pub(crate) pages: usize,
    /// Length of the spill file in bytes.
    pub(crate) spill: u64,
}

impl Limits {
    /// A transaction larger than this (a VACUUM) is better read from the file.
    pub(crate) const FOLLOWING: Limits = Limits { pages: 1 << 20, spill: 1 << 30 };
    /// A pass has no other way: it needs all that is in the log.
    pub(crate) const PASS: Limits = Limits { pages: 4 << 20, spill: 16 << 30 };
}

pub(crate) struct Dirty {
    published: HashMap<u32, Entry>,
    staged: HashMap<u32, Place>,
    page_size: usize,
    in_memory: usize,
    memory_max: usize,
    limits: Limits,
    spill_path: PathBuf,
    spill: Option<File>,
    spill_len: u64,
    free: Vec<u64>,
    generation: u64,
    /// Entries that came after the last cut.
    newer: u64,
}

impl Dirty {
    /// `spill_path` is the name under which the spill file exists for a moment; `memory_max` in bytes.
    pub(crate) fn new(spill_path: PathBuf, memory_max: usize) -> Dirty {
        Dirty {
            published: HashMap::new(),
            staged: HashMap::new(),
            page_size: 0,
            in_memory: 0,
            memory_max,
            limits: Limits::FOLLOWING,
            spill_path,
            spill: None,
            spill_len: 0,
            free: Vec::new(),
            generation: 1,
            newer: 0,
        }
    }

    /// From now on.
    pub(crate) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.published.clear();
        self.staged.clear();
        self.in_memory = 0;
        self.spill = None;
        self.spill_len = 0;
        self.free.clear();
        self.newer = 0;
    }

    /// Keeps an image until [`publish`](Self::publish) or [`unstage`](Self::unstage).
    pub(crate) fn stage(&mut self, pgno: u32, image: &[u8]) -> io::Result<()> {
        if image.len() != self.page_size {
            if !(self.published.is_empty() && self.staged.is_empty()) {
                return Err(io::Error::other("pages of two sizes in one log"));
            }
            self.page_size = image.len();
        }
        match self.staged.get_mut(&pgno) {
            Some(Place::Memory(kept)) => kept.copy_from_slice(image),
            Some(Place::Spilled(offset)) => {
                let offset = *offset;
                self.spill()?.write_all_at(image, offset)?;
            }
            None => {
                if self.published.len() + self.staged.len() >= self.limits.pages {
                    return Err(too_many());
                }
                let place = self.place(image)?;
                self.staged.insert(pgno, place);
            }
        }
        Ok(())
    }

    fn place(&mut self, image: &[u8]) -> io::Result<Place> {
        if self.in_memory + image.len() <= self.memory_max {
            self.in_memory += image.len();
            return Ok(Place::Memory(image.into()));
        }
        let end = self.spill_len + image.len() as u64;
        if self.free.is_empty() && end > self.limits.spill {
            return Err(too_many());
        }
        let offset = self.free.pop().unwrap_or(self.spill_len);
        self.spill()?.write_all_at(image, offset)?;
        self.spill_len = self.spill_len.max(offset + image.len() as u64);
        Ok(Place::Spilled(offset))
    }

    fn spill(&mut self) -> io::Result<&File> {
        if self.spill.is_none() {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&self.spill_path)?;
            std::fs::remove_file(&self.spill_path)?;
            self.spill = Some(file);
        }
        self.spill.as_ref().ok_or_else(|| io::Error::other("no spill file"))
    }

    fn release(&mut self, place: &Place) {
        match place {
            Place::Memory(image) => self.in_memory -= image.len(),
            Place::Spilled(offset) => self.free.push(*offset),
        }
    }

    /// What was staged is committed: it replaces the older images.
    pub(crate) fn publish(&mut self) {
        let generation = self.generation;
        for (pgno, place) in std::mem::take(&mut self.staged) {
            match self.published.insert(pgno, Entry { place, generation }) {
                Some(old) => {
                    self.newer += u64::from(old.generation != generation);
                    self.release(&old.place);
                }
                None => self.newer += 1,
            }
        }
    }

    /// What was staged was not committed (or not yet).
    pub(crate) fn unstage(&mut self) {
        for (_, place) in std::mem::take(&mut self.staged) {
            self.release(&place);
        }
    }

    pub(crate) fn contains(&self, pgno: u32) -> bool {
        self.published.contains_key(&pgno)
    }

    /// Reads an image into `buffer` (exactly one page long); `false` when the page is not dirty.
    pub(crate) fn read(&self, pgno: u32, buffer: &mut [u8]) -> io::Result<bool> {
        match self.published.get(&pgno).map(|entry| &entry.place) {
            None => Ok(false),
            Some(Place::Memory(image)) => {
                buffer.copy_from_slice(image);
                Ok(true)
            }
            Some(Place::Spilled(offset)) => {
                let spill = self.spill.as_ref().ok_or_else(|| io::Error::other("no spill file"))?;
                if read_at(spill, buffer, *offset)? < buffer.len() {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                Ok(true)
            }
        }
    }

    /// How many pages are dirty.
    pub(crate) fn len(&self) -> usize {
        self.published.len()
    }

    /// Numbers of the dirty pages, sorted.
    pub(crate) fn pages(&self) -> Vec<u32> {
        let mut pages: Vec<u32> = self.published.keys().copied().collect();
        pages.sort_unstable();
        pages
    }

    /// Draws a line: what is published from now on is newer than everything so far.
    pub(crate) fn cut(&mut self) -> u64 {
        self.newer = 0;
        self.generation += 1;
        self.generation - 1
    }

    /// Takes back what [`cut`](Self::cut) meant for [`newer`](Self::newer): everything is unshipped again.
    pub(crate) fn uncut(&mut self) {
        self.newer = self.published.len() as u64;
    }

    /// Drops what was published before the cut.
    pub(crate) fn forget(&mut self, cut: u64) {
        let mut places = Vec::new();
        for (_, entry) in self.published.extract_if(|_, entry| entry.generation <= cut) {
            places.push(entry.place);
        }
        for place in &places {
            self.release(place);
        }
        if self.published.is_empty() && self.staged.is_empty() {
            self.clear();
        }
    }

    /// How many pages were published after the last cut.
    pub(crate) fn newer(&self) -> u64 {
        self.newer
    }
}

fn too_many() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "too many pages changed at once")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn neither_entries_nor_the_spill_file_grow_beyond_their_limits() {
        let dir = tempfile::tempdir().unwrap();
        let staged = |limits, count: u32| {
            let mut dirty = Dirty::new(dir.path().join("spill"), 512);
            dirty.limit(limits);
            (1..=count).flat_map(|page| dirty.stage(page, &[0; 512])).count()
        };
        assert_eq!(staged(Limits { pages: 3, spill: 1 << 20 }, 9), 3);
        // One in memory, four in the file.
        assert_eq!(staged(Limits { pages: 100, spill: 4 * 512 }, 9), 5);
        let mut dirty = Dirty::new(dir.path().join("spill"), 0);
        dirty.limit(Limits { pages: 100, spill: 2 * 512 });
        for _ in 0..5 {
            // What was replaced makes room.
            dirty.stage(1, &[0; 512]).unwrap();
            dirty.publish();
        }
    }

    #[test]
    fn images_beyond_the_limit_are_spilled_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut dirty = Dirty::new(dir.path().join("spill"), 1024);
        for page in 1..=8_u32 {
            dirty.stage(page, &[page as u8; 512]).unwrap();
        }
        dirty.stage(7, &[70; 512]).unwrap();
        dirty.publish();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the spill file has no name");
        let mut image = [0; 512];
        for (page, fill) in [(1, 1), (2, 2), (7, 70), (8, 8)] {
            assert!(dirty.read(page, &mut image).unwrap());
            assert_eq!(image, [fill; 512]);
        }
    }

    #[test]
    fn a_transaction_that_was_not_committed_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let mut dirty = Dirty::new(dir.path().join("spill"), 1024);
        dirty.stage(1, &[1; 512]).unwrap();
        dirty.publish();
        dirty.stage(1, &[9; 512]).unwrap();
        dirty.stage(2, &[9; 512]).unwrap();
        dirty.unstage();
        let mut image = [0; 512];
        assert!(dirty.read(1, &mut image).unwrap() && image == [1; 512]);
        assert!(!dirty.contains(2));
    }

    #[test]
    fn forgetting_a_cut_keeps_what_came_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut dirty = Dirty::new(dir.path().join("spill"), 0);
        for page in [1, 2] {
            dirty.stage(page, &[1; 512]).unwrap();
        }
        dirty.publish();
        assert_eq!(dirty.newer(), 2);
        let cut = dirty.cut();
        dirty.stage(2, &[2; 512]).unwrap();
        dirty.publish();
        assert_eq!(dirty.newer(), 1);
        dirty.forget(cut);
        assert_eq!(dirty.pages(), [2]);
        let mut image = [0; 512];
        assert!(dirty.read(2, &mut image).unwrap() && image == [2; 512]);
    }
}
