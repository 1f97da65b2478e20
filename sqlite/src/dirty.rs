//! The dirty map: the newest committed image of every page that changed since the table was written, and, where it is
//! at hand, the image the page had then.
//!
//! Frames of a transaction are *staged* until its commit frame was accepted, then *published* together.

use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;

use crate::pagemap::PageMap;
use crate::pool::{Pool, Slot, too_many};

/// Bytes of images from before that are kept at most: patches against them save at most so much.
const BASES_MAX: usize = 64 << 20;

/// One dirty page.
#[derive(Debug, Clone, Copy)]
struct Cell {
    image: Slot,
    /// The image the table is about.
    base: Option<Slot>,
}

/// A frame of a transaction that is not known to be committed yet.
#[derive(Debug, Clone, Copy)]
struct Staged {
    image: Slot,
    frame: Option<NonZeroU32>,
}

/// How much is kept at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// A page takes 8 bytes of memory, beside its image, where its neighbours are dirty as well, and some 150 at most.
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

/// What happens to a page when its transaction is published: given its number, its frame, and, if the page was not
/// dirty, room for the image the table is about. Returns whether it put that image there.
pub(crate) type Publish<'a> = &'a mut dyn FnMut(u32, Option<NonZeroU32>, Option<&mut [u8]>) -> bool;

pub(crate) struct Dirty {
    published: PageMap<Cell>,
    staged: PageMap<Staged>,
    pool: Pool,
    limits: Limits,
    bases: usize,
}

impl Dirty {
    /// `spill_path` is the name under which the spill file exists for a moment; `memory_max` in bytes.
    pub(crate) fn new(spill_path: PathBuf, memory_max: usize) -> Dirty {
        let limits = Limits::FOLLOWING;
        Dirty {
            published: PageMap::default(),
            staged: PageMap::default(),
            pool: Pool::new(spill_path, memory_max, limits.spill),
            limits,
            bases: 0,
        }
    }

    /// From now on.
    pub(crate) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
        self.pool.limit_spill(limits.spill);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        (self.published, self.staged) = (PageMap::default(), PageMap::default());
        self.pool.clear(self.pool.page_len());
        self.bases = 0;
    }

    /// Keeps an image, of this frame of a log, until [`publish`](Self::publish) or [`unstage`](Self::unstage).
    pub(crate) fn stage(&mut self, pgno: u32, image: &[u8], frame: Option<NonZeroU32>) -> io::Result<()> {
        if image.len() != self.pool.page_len() {
            if !(self.published.is_empty() && self.staged.is_empty()) {
                return Err(io::Error::other("pages of two sizes in one log"));
            }
            self.pool.clear(image.len());
        }
        let slot = if let Some(staged) = self.staged.get(pgno) {
            self.pool.write(staged.image, image)?;
            staged.image
        } else {
            if self.published.len() + self.staged.len() >= self.limits.pages {
                return Err(too_many());
            }
            self.pool.put(image)?
        };
        self.staged.insert(pgno, Staged { image: slot, frame });
        Ok(())
    }

    /// What was staged is committed: it replaces the older images.
    pub(crate) fn publish(&mut self, each: Publish) {
        let mut room = vec![0; self.pool.page_len()];
        for (pgno, staged) in self.staged.drain() {
            let base = match self.published.get(pgno) {
                Some(old) => {
                    self.pool.release(old.image);
                    each(pgno, staged.frame, None);
                    old.base
                }
                None if self.bases * room.len() < BASES_MAX => {
                    let found = each(pgno, staged.frame, Some(&mut room));
                    // Without room there is no patch, and nothing else is lost.
                    if found { self.pool.put(&room).ok() } else { None }
                }
                None => {
                    each(pgno, staged.frame, None);
                    None
                }
            };
            let before = self.published.insert(pgno, Cell { image: staged.image, base });
            self.bases += usize::from(before.is_none() && base.is_some());
        }
    }

    /// What was staged was not committed (or not yet).
    pub(crate) fn unstage(&mut self) {
        for (_, staged) in self.staged.drain() {
            self.pool.release(staged.image);
        }
    }

    pub(crate) fn contains(&self, pgno: u32) -> bool {
        self.published.get(pgno).is_some()
    }

    /// Reads an image into `buffer` (exactly one page long); `false` when the page is not dirty.
    pub(crate) fn read(&self, pgno: u32, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(cell) = self.published.get(pgno) else { return Ok(false) };
        self.pool.read(cell.image, buffer)?;
        Ok(true)
    }

    /// Reads the image the table is about; `false` when it is not at hand.
    pub(crate) fn read_base(&self, pgno: u32, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(base) = self.published.get(pgno).and_then(|cell| cell.base) else { return Ok(false) };
        self.pool.read(base, buffer)?;
        Ok(true)
    }

    /// How many pages are dirty.
    pub(crate) fn len(&self) -> usize {
        self.published.len()
    }

    /// Numbers of the dirty pages, sorted.
    pub(crate) fn pages(&self) -> impl Iterator<Item = u32> {
        self.published.iter().map(|(pgno, _)| pgno)
    }

    /// Numbers of the dirty pages whose base is at hand, sorted.
    pub(crate) fn pages_with_base(&self) -> impl Iterator<Item = u32> {
        self.published.iter().filter(|(_, cell)| cell.base.is_some()).map(|(pgno, _)| pgno)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    impl Dirty {
        fn publish_plainly(&mut self) {
            self.publish(&mut |_, _, _| false);
        }
    }

    #[test]
    fn neither_entries_nor_the_spill_file_grow_beyond_their_limits() {
        let dir = tempfile::tempdir().unwrap();
        let staged = |limits, count: u32| {
            let mut dirty = Dirty::new(dir.path().join("spill"), 512);
            dirty.limit(limits);
            (1..=count).flat_map(|page| dirty.stage(page, &[0; 512], None)).count()
        };
        assert_eq!(staged(Limits { pages: 3, spill: 1 << 20 }, 9), 3);
        // One in memory, four in the file.
        assert_eq!(staged(Limits { pages: 100, spill: 4 * 512 }, 9), 5);
        let mut dirty = Dirty::new(dir.path().join("spill"), 0);
        dirty.limit(Limits { pages: 100, spill: 2 * 512 });
        for _ in 0..5 {
            // What was replaced makes room.
            dirty.stage(1, &[0; 512], None).unwrap();
            dirty.publish_plainly();
        }
    }

    #[test]
    fn the_newest_image_of_a_transaction_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut dirty = Dirty::new(dir.path().join("spill"), 1024);
        for page in 1..=8_u32 {
            dirty.stage(page, &[page as u8; 512], None).unwrap();
        }
        dirty.stage(7, &[70; 512], None).unwrap();
        dirty.publish_plainly();
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
        dirty.stage(1, &[1; 512], None).unwrap();
        dirty.publish_plainly();
        dirty.stage(1, &[9; 512], None).unwrap();
        dirty.stage(2, &[9; 512], None).unwrap();
        dirty.unstage();
        let mut image = [0; 512];
        assert!(dirty.read(1, &mut image).unwrap() && image == [1; 512]);
        assert!(!dirty.contains(2));
    }

    #[test]
    fn the_image_from_before_is_asked_for_once_and_stays_the_first_one() {
        let mut dirty = Dirty::new("nowhere/spill".into(), 1 << 20);
        let mut asked = Vec::new();
        for fill in 1..=3 {
            dirty.stage(5, &[fill; 512], NonZeroU32::new(u32::from(fill))).unwrap();
            dirty.publish(&mut |pgno, frame, room| {
                asked.push((pgno, frame.map(NonZeroU32::get), room.is_some()));
                room.is_some_and(|room| {
                    room.fill(100 + fill);
                    true
                })
            });
        }
        assert_eq!(asked, [(5, Some(1), true), (5, Some(2), false), (5, Some(3), false)]);
        let mut image = [0; 512];
        assert!(dirty.read(5, &mut image).unwrap() && image == [3; 512]);
        assert!(dirty.read_base(5, &mut image).unwrap() && image == [101; 512]);
        assert_eq!(dirty.pages_with_base().collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn without_room_for_the_image_from_before_the_new_one_is_kept_all_the_same() {
        let mut dirty = Dirty::new("nowhere/spill".into(), 512);
        dirty.limit(Limits { pages: 100, spill: 0 });
        dirty.stage(5, &[1; 512], None).unwrap();
        dirty.publish(&mut |_, _, room| room.is_some());
        let mut image = [0; 512];
        assert!(dirty.read(5, &mut image).unwrap() && image == [1; 512]);
        assert!(!dirty.read_base(5, &mut image).unwrap());
    }
}
