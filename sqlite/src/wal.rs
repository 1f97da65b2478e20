//! The write-ahead log, byte by byte (sqlite.org/walformat.html). Pure.
//!
//! A log is a header and frames. Every frame carries the salt of its generation and a checksum that runs from
//! the header through all frames before it: [`Chain`] accepts the next frame only if both are right. So a
//! frame that was accepted is the very frame its writer put after the very frames accepted before it; the
//! rest of an older generation, a torn write or a torn read does not pass (64 bits of checksum).

/// Length of the header of a log.
pub(crate) const HEADER_LEN: usize = 32;
/// Length of the header of a frame; the page image follows.
pub(crate) const FRAME_HEADER_LEN: usize = 24;
/// The only version there is. A log that says otherwise (the `wal2` branch) is not followed.
const VERSION: u32 = 3_007_000;
/// Magic of a log whose checksums add little-endian words; one more for big-endian words.
const MAGIC: u32 = 0x377f_0682;

/// Two numbers, compared as bytes, that name a generation of a log: the second one is random.
pub(crate) type Salt = [u8; 8];

/// SQLite's running checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Checksum(pub(crate) u32, pub(crate) u32);

impl Checksum {
    /// Adds `bytes` (a multiple of 8 long), read as 32-bit words of the byte order given.
    #[must_use]
    pub(crate) fn add(self, bytes: &[u8], big_endian: bool) -> Self {
        let word = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        let Checksum(mut a, mut b) = self;
        for pair in bytes.chunks_exact(8) {
            a = a.wrapping_add(word([pair[0], pair[1], pair[2], pair[3]])).wrapping_add(b);
            b = b.wrapping_add(word([pair[4], pair[5], pair[6], pair[7]])).wrapping_add(a);
        }
        Checksum(a, b)
    }

    /// As stored in logs: big-endian whatever the byte order of the sum.
    pub(crate) fn from_stored(bytes: &[u8]) -> Self {
        Checksum(be32(bytes, 0), be32(bytes, 4))
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The place up to which a log was read, and all that is needed to accept the frame after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) salt: Salt,
    pub(crate) big_endian: bool,
    pub(crate) page_size: u32,
    /// Number of the last frame accepted; 0 when none was.
    pub(crate) frame: u32,
    /// Checksum of that frame, or of the header.
    pub(crate) checksum: Checksum,
}

/// Where frame `number` (from 1) begins in a log of this page size.
pub(crate) fn frame_offset(page_size: u32, number: u32) -> u64 {
    HEADER_LEN as u64 + u64::from(number - 1) * (FRAME_HEADER_LEN as u64 + u64::from(page_size))
}

/// The page number of a frame, if it belongs to this generation. Proves nothing: the checksum is not looked at.
pub(crate) fn page_of_head(head: &[u8; FRAME_HEADER_LEN], salt: Salt) -> Option<u32> {
    (head[8..16] == salt).then(|| be32(head, 0)).filter(|pgno| *pgno != 0)
}

/// One accepted frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) pgno: u32,
    /// Size of the database in pages if this frame ends a transaction, else 0.
    pub(crate) commit_pages: u32,
    pub(crate) image: &'a [u8],
}

impl Chain {
    /// The chain at the header of a log. `None` when the bytes are not a whole and valid header.
    pub(crate) fn parse_header(bytes: &[u8]) -> Option<Chain> {
        if bytes.len() < HEADER_LEN {
            return None;
        }
        let page_size = be32(bytes, 8);
        let size_possible = (512..=65536).contains(&page_size) && page_size.is_power_of_two();
        if !size_possible {
            return None;
        }
        let (version, chain) = Chain::parse_any_version(bytes)?;
        (version == VERSION).then_some(chain)
    }

    /// Whether this is the header of a log in a version that is not known.
    pub(crate) fn is_of_another_version(bytes: &[u8; HEADER_LEN]) -> bool {
        Chain::parse_any_version(bytes).is_some_and(|(version, _)| version != VERSION)
    }

    fn parse_any_version(bytes: &[u8]) -> Option<(u32, Chain)> {
        let magic = be32(bytes, 0);
        if magic & !1 != MAGIC {
            return None;
        }
        let big_endian = magic & 1 == 1;
        let checksum = Checksum::default().add(&bytes[..24], big_endian);
        let mut salt = [0; 8];
        salt.copy_from_slice(&bytes[16..24]);
        let chain = Chain { salt, big_endian, page_size: be32(bytes, 8), frame: 0, checksum };
        (checksum == Checksum::from_stored(&bytes[24..32])).then_some((be32(bytes, 4), chain))
    }

    /// Bytes of one frame with its image.
    pub(crate) fn frame_len(&self) -> usize {
        FRAME_HEADER_LEN + self.page_size as usize
    }

    /// Where frame `number` (from 1) begins in the log.
    pub(crate) fn offset_of(&self, number: u32) -> u64 {
        frame_offset(self.page_size, number)
    }

    /// Accepts the next frame if it continues the chain; otherwise nothing changes.
    pub(crate) fn accept<'a>(&mut self, raw: &'a [u8]) -> Option<Frame<'a>> {
        if raw.len() < self.frame_len() || raw[8..16] != self.salt {
            return None;
        }
        let pgno = be32(raw, 0);
        let image = &raw[FRAME_HEADER_LEN..self.frame_len()];
        let checksum = self.checksum.add(&raw[..8], self.big_endian).add(image, self.big_endian);
        if pgno == 0 || checksum != Checksum::from_stored(&raw[16..24]) {
            return None;
        }
        self.checksum = checksum;
        self.frame += 1;
        Some(Frame { pgno, commit_pages: be32(raw, 4), image })
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    /// Writes logs as SQLite does, for tests.
    pub(crate) struct LogWriter {
        pub(crate) bytes: Vec<u8>,
        pub(crate) chain: Chain,
    }

    impl LogWriter {
        pub(crate) fn new(page_size: u32, big_endian: bool, salt: Salt) -> Self {
            let mut bytes = Vec::new();
            for word in [MAGIC | u32::from(big_endian), VERSION, page_size, 0] {
                bytes.extend(word.to_be_bytes());
            }
            bytes.extend(salt);
            let checksum = Checksum::default().add(&bytes, big_endian);
            bytes.extend(checksum.0.to_be_bytes());
            bytes.extend(checksum.1.to_be_bytes());
            LogWriter { bytes, chain: Chain { salt, big_endian, page_size, frame: 0, checksum } }
        }

        pub(crate) fn frame(&mut self, pgno: u32, commit_pages: u32, fill: u8) {
            let image = vec![fill; self.chain.page_size as usize];
            let mut head = Vec::new();
            head.extend(pgno.to_be_bytes());
            head.extend(commit_pages.to_be_bytes());
            let order = self.chain.big_endian;
            let sum = self.chain.checksum.add(&head, order).add(&image, order);
            head.extend(self.chain.salt);
            head.extend(sum.0.to_be_bytes());
            head.extend(sum.1.to_be_bytes());
            self.bytes.extend(head);
            self.bytes.extend(image);
            self.chain.checksum = sum;
            self.chain.frame += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::fixtures::LogWriter;
    use super::*;
    use proptest::prelude::*;

    /// Frames of `bytes` up to the last commit, as (pgno, first byte of the image).
    fn committed(bytes: &[u8]) -> Vec<(u32, u8)> {
        let Some(mut chain) = Chain::parse_header(bytes) else { return Vec::new() };
        let (mut frames, mut done) = (Vec::new(), 0);
        for raw in bytes[HEADER_LEN..].chunks(chain.frame_len()) {
            let Some(frame) = chain.accept(raw) else { break };
            frames.push((frame.pgno, frame.image[0]));
            if frame.commit_pages != 0 {
                done = frames.len();
            }
        }
        frames.truncate(done);
        frames
    }

    #[test]
    fn every_page_size_and_both_byte_orders_are_read() {
        for page_size in [512, 1024, 4096, 65536] {
            for big_endian in [false, true] {
                let mut log = LogWriter::new(page_size, big_endian, *b"saltsalt");
                log.frame(1, 0, 10);
                log.frame(2, 2, 20);
                log.frame(3, 0, 30);
                let chain = Chain::parse_header(&log.bytes).unwrap();
                assert_eq!((chain.page_size, chain.big_endian), (page_size, big_endian));
                assert_eq!(committed(&log.bytes), [(1, 10), (2, 20)]);
            }
        }
    }

    #[test]
    fn a_header_with_any_bit_flipped_is_refused() {
        let log = LogWriter::new(512, false, *b"saltsalt");
        // Bytes 12..16 (the checkpoint number) and the salts are covered by the checksum as well.
        for at in 0..HEADER_LEN * 8 {
            let mut bytes = log.bytes.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            assert_eq!(Chain::parse_header(&bytes), None, "bit {at}");
        }
    }

    #[test]
    fn frames_of_an_older_generation_do_not_continue_a_newer_one() {
        let mut old = LogWriter::new(512, false, *b"old salt");
        for page in 1..=4 {
            old.frame(page, 4, 1);
        }
        let mut new = LogWriter::new(512, false, *b"new salt");
        new.frame(9, 9, 2);
        let mut file = old.bytes.clone();
        file[..new.bytes.len()].copy_from_slice(&new.bytes);
        assert_eq!(committed(&file), [(9, 2)]);
    }

    proptest! {
        /// Any prefix of a log, with any one byte changed, gives a prefix of its transactions and nothing else.
        #[test]
        fn a_damaged_or_cut_log_gives_whole_transactions_from_its_beginning(
            sizes in proptest::collection::vec(1_usize..5, 1..8), cut in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(), flip in 0_u8..=255, big_endian in any::<bool>(),
        ) {
            let mut log = LogWriter::new(512, big_endian, *b"saltsalt");
            let (mut all, mut ends, mut fill) = (Vec::new(), vec![0], 0_u8);
            for size in sizes {
                for i in 1..=size {
                    fill = fill.wrapping_add(1);
                    log.frame(i as u32, if i == size { 5 } else { 0 }, fill);
                    all.push((i as u32, fill));
                }
                ends.push(all.len());
            }
            let mut bytes = log.bytes;
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            bytes.truncate(cut.index(bytes.len() + 1));
            let got = committed(&bytes);
            prop_assert!(ends.contains(&got.len()), "{} frames are no whole transactions", got.len());
            prop_assert_eq!(&got[..], &all[..got.len()]);
        }
    }
}
