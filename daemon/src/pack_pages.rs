//! Which pages a pack holds, in few bytes: with it a pack that is lost can be made again from the live database.
//!
//! ```text
//!  8  the newest entry that is known to name the pack      4  page size
//!     runs of page numbers, each: first number minus the end of the run before ‖ length, both LEB128
//! ```
//!
//! A pack of a base is one run. Packs that build on other pages are not remembered: they cannot be made again without these.

use chatkeep_format::PageSet;

/// The pages of a pack, and as of when they are these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackPages {
    /// The newest entry that is known to name it: pages that did not change since then are what it holds.
    pub seq: u64,
    /// Bytes of a page.
    pub page_size: u32,
    /// First page and number of pages of each run, ascending.
    runs: Vec<(u32, u32)>,
}

impl PackPages {
    /// Of the pages of a pack that entry `seq` names; nothing when it builds on others, or has no pages.
    pub fn of(pages: &PageSet, seq: u64) -> Option<Self> {
        if pages.has_bases() {
            return None;
        }
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for (pgno, _) in pages.iter() {
            match runs.last_mut() {
                Some((first, len)) if *first + *len == pgno => *len += 1,
                _ => runs.push((pgno, 1)),
            }
        }
        (!runs.is_empty()).then_some(Self { seq, page_size: pages.page_size(), runs })
    }

    /// The same pages, named by entry `seq`.
    #[must_use]
    pub fn as_of(self, seq: u64) -> Self {
        Self { seq, ..self }
    }

    /// The page numbers, ascending.
    pub fn pages(&self) -> impl Iterator<Item = u32> {
        self.runs.iter().flat_map(|(first, len)| *first..*first + *len)
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    /// It always has a page.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// As the catalogue keeps it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = [&self.seq.to_le_bytes()[..], &self.page_size.to_le_bytes()].concat();
        let mut end = 0;
        for (first, len) in &self.runs {
            put_varint(&mut out, first - end);
            put_varint(&mut out, *len);
            end = first + len;
        }
        out
    }

    /// Reads it back; nothing for what was not written like this.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (seq, rest) = bytes.split_first_chunk()?;
        let (page_size, mut rest) = rest.split_first_chunk()?;
        let (mut runs, mut end) = (Vec::new(), 0_u32);
        while !rest.is_empty() {
            let gap = take_varint(&mut rest)?;
            let len = take_varint(&mut rest)?;
            let first = end.checked_add(gap).filter(|first| *first > 0 && len > 0)?;
            end = first.checked_add(len)?;
            runs.push((first, len));
        }
        let page_size = u32::from_le_bytes(*page_size);
        let possible = (512..=65_536).contains(&page_size) && page_size.is_power_of_two();
        (possible && !runs.is_empty()).then_some(Self { seq: u64::from_le_bytes(*seq), page_size, runs })
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(value).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn set(pages: &[u32]) -> PageSet {
        let mut builder = PageSet::builder(512);
        for pgno in pages {
            builder.push(*pgno, &[*pgno as u8; 512], None);
        }
        builder.finish()
    }

    #[track_caller]
    fn check(pages: &[u32], len: usize) {
        let known = PackPages::of(&set(pages), 9).unwrap();
        let bytes = known.encode();
        assert_eq!(bytes.len(), 12 + len);
        assert_eq!(PackPages::decode(&bytes).unwrap(), known);
        assert_eq!(known.pages().collect::<Vec<_>>(), pages);
        assert_eq!(known.len(), pages.len() as u64);
    }

    #[test]
    fn a_base_is_a_range_of_three_bytes() {
        check(&(1..=1024).collect::<Vec<_>>(), 3);
    }

    #[test]
    fn single_pages_take_two_bytes_or_a_few_more() {
        check(&[3], 2);
        check(&[1, 3, 5, 6, 7, 200_000], 2 + 2 + 2 + 4);
    }

    #[test]
    fn pages_that_cannot_be_made_again_are_not_remembered() {
        let mut builder = PageSet::builder(512);
        let before: Vec<u8> = (0..512_u32).map(|at| (at * at) as u8).collect();
        let mut after = before.clone();
        after[7] ^= 1;
        builder.push(1, &after, Some(&before));
        assert_eq!(PackPages::of(&builder.finish(), 9), None);
        assert_eq!(PackPages::of(&PageSet::default(), 9), None);
    }

    #[test]
    fn what_the_cache_garbled_is_nothing() {
        let bytes = PackPages::of(&set(&[1, 2, 9]), 9).unwrap().encode();
        for len in 0..bytes.len() {
            if let Some(read) = PackPages::decode(&bytes[..len]) {
                assert!(read.pages().all(|pgno| pgno > 0), "{len}");
            }
        }
        let head = [&9_u64.to_le_bytes()[..], &512_u32.to_le_bytes()].concat();
        for runs in [&[0xff_u8, 0xff, 0xff, 0xff, 0xff, 1][..], &[0, 1], &[1, 0], &[1]] {
            assert_eq!(PackPages::decode(&[&head[..], runs].concat()), None, "{runs:?}");
        }
    }
}
