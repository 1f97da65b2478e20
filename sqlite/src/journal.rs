//! A rollback journal that an app left behind when it was killed, read as the next one to open the database would
//! (pager_playback in SQLite).
//!
//! It has the images that pages had before the transaction began, and the size of the database then. It is a sequence
//! of segments: a header that fills a sector, and as many records as it says. A segment is written to the disk before
//! its header says how many there are, and only then are those pages written to the database. So what a segment does
//! not count yet has not reached the database.
//!
//! SQLite takes whatever it does not understand for the end of the journal. Here what cannot be the end of a sound
//! journal is a doubt, and with a doubt nothing is captured.

use std::fs::File;

use crate::digest::lock_byte_page;
use crate::dirty::Dirty;
use crate::error::{GapReason, Trouble};
use crate::os::{Stat, read_at};

const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// The part of the header that says something.
const HEADER_LEN: usize = 28;
/// Instead of a number of records: as many as there are (`synchronous = OFF`).
const UNCOUNTED: u32 = u32::MAX;
/// A record is a page number, an image and a checksum.
const RECORD_EXTRA: usize = 8;
/// Every so many bytes of an image, from its end, one counts in the checksum.
const CHECKSUM_STEP: usize = 200;
/// The journal of one of several databases that were to be changed together ends with this many bytes.
const SUPER_JOURNAL_LEN: u64 = 16;

/// The database as it was when the transaction began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Original {
    pub(crate) page_size: u32,
    pub(crate) pages: u32,
}

struct Header {
    records: u32,
    nonce: u32,
    pages: u32,
    sector: u32,
    page_size: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Header> {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let possible = bytes[..8] == MAGIC;
        possible.then(|| Header {
            records: word(8),
            nonce: word(12),
            pages: word(16),
            sector: word(20),
            page_size: word(24),
        })
    }

    /// Sizes as SQLite writes them.
    fn is_sound(&self) -> bool {
        let size = |bytes: u32| bytes.is_power_of_two() && (512..=65536).contains(&bytes);
        size(self.sector) && size(self.page_size)
    }
}

/// Publishes the original images as dirty pages. `None` when there is a doubt: then nothing is published.
pub(crate) fn roll_back(journal: &File, dirty: &mut Dirty) -> Result<Option<Original>, Trouble> {
    dirty.unstage();
    let read = read_journal(journal, dirty);
    match read {
        Ok(Some(_)) => dirty.publish(&mut |_, _, _| false),
        _ => dirty.unstage(),
    }
    read
}

fn read_journal(journal: &File, dirty: &mut Dirty) -> Result<Option<Original>, Trouble> {
    let len = Stat::of_file(journal)?.size;
    let Some(first) = read_header(journal, 0)?.filter(Header::is_sound) else { return Ok(None) };
    if u64::from(first.sector) > len || names_a_super_journal(journal, len)? {
        return Ok(None);
    }
    let (page_len, sector) = (first.page_size as usize, u64::from(first.sector));
    let record_len = (page_len + RECORD_EXTRA) as u64;
    let original = Original { page_size: first.page_size, pages: first.pages };
    let mut record = vec![0; record_len as usize];
    let mut header = first;
    let mut at = 0;
    loop {
        at += sector;
        let uncounted = header.records == UNCOUNTED;
        if uncounted && at != sector {
            return Ok(None);
        }
        let records = if uncounted { (len - at) / record_len } else { u64::from(header.records) };
        for _ in 0..records {
            let read = read_at(journal, &mut record, at)?;
            let valid = read == record.len() && is_intact(&record, header.nonce, original.page_size);
            if !valid && uncounted {
                // What is left of an older, longer journal has another nonce.
                return Ok(Some(original));
            }
            if !valid {
                return Ok(None);
            }
            at += record_len;
            let pgno = word(&record, 0);
            if pgno <= original.pages {
                keep(dirty, pgno, &record[4..4 + page_len])?;
            }
        }
        at = at.next_multiple_of(sector);
        if at + sector > len {
            return Ok(Some(original));
        }
        match read_header(journal, at)? {
            None => return Ok(Some(original)),
            Some(next) if next.pages == original.pages => header = next,
            Some(_) => return Ok(None),
        }
    }
}

fn keep(dirty: &mut Dirty, pgno: u32, image: &[u8]) -> Result<(), Trouble> {
    dirty.stage(pgno, image, None).map_err(|error| {
        tracing::warn!(%error, "the pages of a rollback journal cannot be kept");
        Trouble::Gap(GapReason::TooManyChanges)
    })
}

fn read_header(journal: &File, at: u64) -> std::io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_LEN];
    let read = read_at(journal, &mut bytes, at)?;
    Ok(if read == HEADER_LEN { Header::parse(&bytes) } else { None })
}

/// Whether the transaction was one on several databases: another file decides whether it was committed.
fn names_a_super_journal(journal: &File, len: u64) -> std::io::Result<bool> {
    let mut tail = [0; SUPER_JOURNAL_LEN as usize];
    let read = read_at(journal, &mut tail, len.saturating_sub(SUPER_JOURNAL_LEN))?;
    Ok(read == tail.len() && tail[8..] == MAGIC)
}

fn is_intact(record: &[u8], nonce: u32, page_size: u32) -> bool {
    let (pgno, image) = (word(record, 0), &record[4..record.len() - 4]);
    let mut sum = nonce;
    let mut at = image.len() - CHECKSUM_STEP;
    while at > 0 {
        sum = sum.wrapping_add(u32::from(image[at]));
        at = at.saturating_sub(CHECKSUM_STEP);
    }
    pgno != 0 && pgno != lock_byte_page(page_size) && sum == word(record, record.len() - 4)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::Write;

    use super::*;

    const PAGE_LEN: usize = 512;

    /// Writes journals as SQLite does, with sectors of 512 bytes.
    #[derive(Clone)]
    struct Writer(Vec<u8>);

    impl Writer {
        fn segment(&mut self, records: u32, nonce: u32, pages: &[(u32, u8)]) {
            self.0.resize(self.0.len().next_multiple_of(512), 0);
            let start = self.0.len();
            self.0.extend(MAGIC);
            for word in [records, nonce, 9, 512, PAGE_LEN as u32] {
                self.0.extend(word.to_be_bytes());
            }
            self.0.resize(start + 512, 0);
            for (pgno, fill) in pages {
                self.0.extend(pgno.to_be_bytes());
                self.0.extend([*fill; PAGE_LEN]);
                // Bytes 312 and 112 count.
                self.0.extend((nonce + 2 * u32::from(*fill)).to_be_bytes());
            }
        }

        /// Page numbers and their fill; `None` for a doubt.
        fn read(&self) -> Option<Vec<(u32, u8)>> {
            let mut journal = tempfile::tempfile().unwrap();
            journal.write_all(&self.0).unwrap();
            let mut dirty = Dirty::new("nowhere/spill".into(), 1 << 20);
            let original = roll_back(&journal, &mut dirty).unwrap();
            if original.is_none() {
                assert_eq!(dirty.len(), 0);
            }
            assert!(original.is_none_or(|original| original == Original { page_size: 512, pages: 9 }));
            let mut image = [0; PAGE_LEN];
            original.map(|_| {
                let pages: Vec<u32> = dirty.pages().collect();
                let mut fill = |pgno| (dirty.read(pgno, &mut image).unwrap(), image[7]).1;
                pages.into_iter().map(|pgno| (pgno, fill(pgno))).collect()
            })
        }
    }

    /// Two segments, and the third as it is while it is being written.
    fn counted() -> Writer {
        let mut journal = Writer(Vec::new());
        journal.segment(2, 70, &[(1, 10), (4, 40)]);
        journal.segment(1, 71, &[(5, 50)]);
        journal.segment(0, 72, &[(6, 60)]);
        journal
    }

    #[test]
    fn counted_segments_are_taken_and_what_is_not_counted_yet_is_not() {
        assert_eq!(counted().read(), Some(vec![(1, 10), (4, 40), (5, 50)]));
        let mut begun = Writer(Vec::new());
        begun.segment(0, 70, &[(1, 10)]);
        assert_eq!(begun.read(), Some(vec![]));
    }

    #[test]
    fn without_counts_the_length_counts_up_to_the_rest_of_an_older_journal() {
        let mut journal = Writer(Vec::new());
        journal.segment(UNCOUNTED, 70, &[(1, 10), (4, 40)]);
        let whole = journal.0.len();
        assert_eq!(journal.read(), Some(vec![(1, 10), (4, 40)]));
        let mut older = Writer(Vec::new());
        older.segment(UNCOUNTED, 7, &[(1, 1), (2, 2), (3, 3)]);
        journal.0.extend(&older.0[whole..]);
        assert_eq!(journal.read(), Some(vec![(1, 10), (4, 40)]));
        journal.0.truncate(whole - 1);
        assert_eq!(journal.read(), Some(vec![(1, 10)]));
    }

    #[test]
    fn pages_that_were_added_by_the_transaction_are_dropped() {
        let mut journal = Writer(Vec::new());
        journal.segment(2, 70, &[(9, 10), (10, 40)]);
        assert_eq!(journal.read(), Some(vec![(9, 10)]));
    }

    #[test]
    fn what_cannot_be_a_sound_journal_is_a_doubt() {
        let doubtful = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut journal = counted();
            change(&mut journal.0);
            assert_eq!(journal.read(), None);
        };
        doubtful(&|bytes| bytes[0] = 0);
        doubtful(&|bytes| bytes[22] = 3);
        doubtful(&|bytes| bytes[27] = 1);
        doubtful(&|bytes| bytes[15] ^= 1);
        // Byte 112 of the first image; its number; a record that is not there.
        doubtful(&|bytes| bytes[512 + 4 + 112] ^= 1);
        doubtful(&|bytes| bytes[512 + 3] = 0);
        doubtful(&|bytes| bytes[11] = 9);
        doubtful(&|bytes| bytes.truncate(700));
        doubtful(&|bytes| bytes.truncate(20));
        // Another size in a later segment; several databases.
        let second = (512 + 2 * (PAGE_LEN + RECORD_EXTRA)).next_multiple_of(512);
        doubtful(&|bytes| bytes[second + 19] = 8);
        doubtful(&|bytes| bytes[second + 8..second + 12].fill(0xff));
        doubtful(&|bytes| bytes.extend([&[0; 8][..], &MAGIC].concat()));
    }

    #[test]
    fn every_prefix_is_a_doubt_or_what_sqlite_would_take() {
        let whole = counted();
        let allowed = [vec![(1, 10), (4, 40)], vec![(1, 10), (4, 40), (5, 50)]];
        for len in 0..whole.0.len() {
            let read = Writer(whole.0[..len].to_vec()).read();
            assert!(read.as_ref().is_none_or(|read| allowed.contains(read)), "{len}: {read:?}");
        }
    }
}
