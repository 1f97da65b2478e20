//! The header of the wal-index (`-shm`). Pure.
//!
//! It is written by whoever commits, in two copies, without a lock that a reader would have to take: a reader
//! accepts it only if both copies are equal and the checksum is right (walIndexTryHdr in SQLite).

use crate::wal::{Checksum, Salt};

/// Bytes to read: two copies of the header, checkpoint information and the lock bytes.
pub(crate) const LEN: usize = 136;
/// The byte of the index on which every process that has the database open in WAL mode holds a shared lock.
pub(crate) const DEAD_MAN_BYTE: i64 = 128;
const COPY_LEN: usize = 48;
const VERSION: u32 = 3_007_000;

/// What a commit publishes. Its words are in the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexHeader {
    /// Grows by one with every commit; starts at 0 when the index is made anew.
    pub(crate) change: u32,
    /// 0 while nothing was ever written.
    pub(crate) page_size: u32,
    /// Last committed frame of the log.
    pub(crate) frames: u32,
    /// Size of the database; 0 when the log has told nothing, then the file's size counts.
    pub(crate) pages: u32,
    /// Checksum of the last committed frame.
    pub(crate) checksum: Checksum,
    pub(crate) salt: Salt,
}

impl IndexHeader {
    /// `None` while a writer is in the middle of changing it, or when this is no index.
    pub(crate) fn parse(bytes: &[u8; LEN]) -> Option<IndexHeader> {
        let (first, second) = (&bytes[..COPY_LEN], &bytes[COPY_LEN..2 * COPY_LEN]);
        let word = |at: usize| u32::from_ne_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
        let sum = Checksum::default().add(&first[..40], cfg!(target_endian = "big"));
        let initialised = first[12] != 0;
        if first != second || !initialised || word(0) != VERSION || sum != Checksum(word(40), word(44)) {
            return None;
        }
        let page_size = match u16::from_ne_bytes([first[14], first[15]]) {
            1 => 65536,
            size => u32::from(size),
        };
        if page_size != 0 && (page_size < 512 || !page_size.is_power_of_two()) {
            return None;
        }
        let mut salt = [0; 8];
        salt.copy_from_slice(&first[32..40]);
        Some(IndexHeader {
            change: word(8),
            page_size,
            frames: word(16),
            pages: word(20),
            checksum: Checksum(word(24), word(28)),
            salt,
        })
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    /// An index as SQLite publishes it, for tests.
    pub(crate) fn encode(header: &IndexHeader, page_size_field: u16) -> [u8; LEN] {
        let mut copy = Vec::new();
        copy.extend(VERSION.to_ne_bytes());
        copy.extend([0; 4]);
        copy.extend(header.change.to_ne_bytes());
        copy.extend([1, 0]);
        copy.extend(page_size_field.to_ne_bytes());
        for word in [header.frames, header.pages, header.checksum.0, header.checksum.1] {
            copy.extend(word.to_ne_bytes());
        }
        copy.extend(header.salt);
        let sum = Checksum::default().add(&copy, cfg!(target_endian = "big"));
        copy.extend(sum.0.to_ne_bytes());
        copy.extend(sum.1.to_ne_bytes());
        let mut bytes = [0; LEN];
        bytes[..COPY_LEN].copy_from_slice(&copy);
        bytes[COPY_LEN..2 * COPY_LEN].copy_from_slice(&copy);
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn sample(page_size_field: u16) -> [u8; LEN] {
        let (checksum, salt) = (Checksum(11, 12), *b"saltsalt");
        let header = IndexHeader { change: 7, page_size: 0, frames: 3, pages: 9, checksum, salt };
        fixtures::encode(&header, page_size_field)
    }

    #[test]
    fn a_whole_header_is_read() {
        let header = IndexHeader::parse(&sample(4096)).unwrap();
        assert_eq!((header.change, header.page_size, header.frames, header.pages), (7, 4096, 3, 9));
        assert_eq!((header.checksum, header.salt), (Checksum(11, 12), *b"saltsalt"));
    }

    #[test]
    fn page_size_65536_is_stored_as_one_and_none_yet_as_zero() {
        assert_eq!(IndexHeader::parse(&sample(1)).unwrap().page_size, 65536);
        assert_eq!(IndexHeader::parse(&sample(0)).unwrap().page_size, 0);
        assert_eq!(IndexHeader::parse(&sample(513)), None);
    }

    #[test]
    fn a_header_caught_while_it_is_written_is_refused() {
        for bit in 0..2 * COPY_LEN * 8 {
            let mut bytes = sample(4096);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(IndexHeader::parse(&bytes), None, "bit {bit}");
        }
        // Changed alike in both copies: the checksum tells.
        for bit in 0..40 * 8 {
            let mut bytes = sample(4096);
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes[COPY_LEN + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(IndexHeader::parse(&bytes), None, "bit {bit} of both");
        }
        assert_eq!(IndexHeader::parse(&[0; LEN]), None);
    }
}
