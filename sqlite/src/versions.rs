//! Images of pages as they were at a few older entries, the *marks*: patches of later captures are made against them.
//!
//! They are worth some bytes in a store and nothing else: what finds no room, or does not survive a restart, is lost
//! silently, and its page travels whole.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::pool::{Pool, Slot};

/// In memory, and in the spill file, in bytes.
const MEMORY_MAX: usize = 4 << 20;
const SPILL_MAX: u64 = 64 << 20;

/// An image, and since which entry the page had it.
struct Version {
    from: u64,
    slot: Slot,
}

pub(crate) struct Versions {
    /// By page number, and the last entry that the image is of.
    kept: BTreeMap<(u32, u64), Version>,
    pool: Pool,
    marks: Vec<u64>,
}

impl Versions {
    /// `spill_path` is the name under which the spill file exists for a moment.
    pub(crate) fn new(spill_path: PathBuf) -> Versions {
        let pool = Pool::new(spill_path, MEMORY_MAX, SPILL_MAX);
        Versions { kept: BTreeMap::new(), pool, marks: Vec::new() }
    }

    pub(crate) fn clear(&mut self) {
        self.kept.clear();
        self.pool.clear(self.pool.page_len());
    }

    /// From now on later captures may be built on these entries, and on no others.
    pub(crate) fn set_marks(&mut self, marks: &[u64]) {
        marks.clone_into(&mut self.marks);
        let unused = self.kept.extract_if(.., |(_, to), version| !covers(marks, version.from, *to));
        for (_, version) in unused.collect::<Vec<_>>() {
            self.pool.release(version.slot);
        }
        if self.kept.is_empty() {
            self.clear();
        }
    }

    /// Whether an image that a page had from one entry to another is worth keeping.
    pub(crate) fn wants(&self, from: u64, to: u64) -> bool {
        covers(&self.marks, from, to)
    }

    /// Keeps the image that a page had from one entry to another, both included, if there is room.
    pub(crate) fn keep(&mut self, pgno: u32, from: u64, to: u64, image: &[u8]) {
        if image.len() != self.pool.page_len() {
            if !self.kept.is_empty() {
                return;
            }
            self.pool.clear(image.len());
        }
        let Ok(slot) = self.pool.put(image) else { return };
        if let Some(old) = self.kept.insert((pgno, to), Version { from, slot }) {
            self.pool.release(old.slot);
        }
    }

    /// Reads the image that a page had at this entry; `false` when it is not at hand.
    pub(crate) fn read(&self, pgno: u32, at: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let Some((_, version)) = self.kept.range((pgno, at)..=(pgno, u64::MAX)).next() else {
            return Ok(false);
        };
        if version.from > at || self.pool.page_len() != buffer.len() {
            return Ok(false);
        }
        self.pool.read(version.slot, buffer)?;
        Ok(true)
    }
}

fn covers(marks: &[u64], from: u64, to: u64) -> bool {
    marks.iter().any(|mark| (from..=to).contains(mark))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn fill_at(versions: &Versions, pgno: u32, at: u64) -> Option<u8> {
        let mut image = [0; 512];
        versions.read(pgno, at, &mut image).unwrap().then_some(image[7])
    }

    #[test]
    fn a_page_has_at_each_entry_the_image_of_then() {
        let mut versions = Versions::new("nowhere/spill".into());
        versions.set_marks(&[3, 5, 9]);
        versions.keep(7, 2, 4, &[1; 512]);
        versions.keep(7, 5, 5, &[2; 512]);
        versions.keep(8, 1, 9, &[3; 512]);
        let of_seven: Vec<_> = (1..=6).map(|at| fill_at(&versions, 7, at)).collect();
        assert_eq!(of_seven, [None, Some(1), Some(1), Some(1), Some(2), None]);
        assert_eq!((fill_at(&versions, 8, 9), fill_at(&versions, 9, 9)), (Some(3), None));
    }

    #[test]
    fn what_covers_no_mark_is_dropped_and_makes_room() {
        let mut versions = Versions::new("nowhere/spill".into());
        versions.pool = Pool::new("nowhere/spill".into(), 2 * 512, 0);
        versions.set_marks(&[3, 5]);
        assert!(versions.wants(1, 3) && versions.wants(4, 6) && !versions.wants(4, 4));
        versions.keep(1, 2, 4, &[1; 512]);
        versions.keep(1, 5, 6, &[2; 512]);
        versions.keep(2, 5, 6, &[3; 512]);
        assert_eq!(fill_at(&versions, 2, 5), None, "there was no room");
        versions.set_marks(&[5]);
        versions.keep(2, 5, 6, &[3; 512]);
        assert_eq!((fill_at(&versions, 1, 3), fill_at(&versions, 1, 5)), (None, Some(2)));
        assert_eq!(fill_at(&versions, 2, 5), Some(3));
    }
}
