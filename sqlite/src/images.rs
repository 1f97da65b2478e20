//! Finding the image that the table is about: in the database file, or in a frame of its log.
//!
//! The digest in the table is the proof, and the only one: where a page is looked for can be wrong, and then it is not
//! found. An image that is torn, or newer, or of another page, does not have the digest.

use std::fs::File;
use std::io;
use std::num::NonZeroU32;

use crate::digest::{Digest, page_digest};
use crate::os::read_at;
use crate::pagemap::PageMap;
use crate::run::frame_heads;
use crate::table::Table;
use crate::wal::{Chain, FRAME_HEADER_LEN, frame_offset};

/// The newest frame of each page in a part of a log, from its beginning.
#[derive(Default)]
pub(crate) struct Frames(PageMap<NonZeroU32>);

impl Frames {
    pub(crate) fn insert(&mut self, pgno: u32, frame: NonZeroU32) {
        self.0.insert(pgno, frame);
    }

    /// Walks a log from its beginning up to `end`, which was read before. Reads the heads of the frames only.
    pub(crate) fn up_to(wal: &File, end: &Chain) -> io::Result<Frames> {
        let mut frames = Frames::default();
        frame_heads(wal, end, &mut |pgno, frame| frames.insert(pgno, frame))?;
        Ok(frames)
    }
}

/// A log whose frames may have an image.
#[derive(Clone, Copy)]
pub(crate) struct Log<'a> {
    pub(crate) wal: &'a File,
    pub(crate) frames: &'a Frames,
}

/// The state the table is about.
pub(crate) struct Known<'a> {
    pub(crate) key: &'a [u8; 32],
    pub(crate) table: &'a Table,
    /// The file that is held.
    pub(crate) db: Option<&'a File>,
}

impl Known<'_> {
    /// Reads the image that the table is about into `buffer`; `false` when it is not there any more.
    pub(crate) fn find(&self, pgno: u32, log: Option<Log>, buffer: &mut [u8]) -> io::Result<bool> {
        let page_size = self.table.header().map_or(0, |header| header.page_size);
        if page_size as usize != buffer.len() {
            return Ok(false);
        }
        let Some(slot) = self.table.slot(pgno)? else { return Ok(false) };
        self.find_digest(pgno, &slot.digest, log, buffer)
    }

    /// The same, where the digest is known already.
    pub(crate) fn find_digest(
        &self,
        pgno: u32,
        digest: &Digest,
        log: Option<Log>,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let page_len = buffer.len();
        let in_log = log.and_then(|log| Some((log.wal, log.frames.0.get(pgno)?)));
        if let Some((wal, frame)) = in_log {
            let offset = frame_offset(page_len as u32, frame.get()) + FRAME_HEADER_LEN as u64;
            if read_at(wal, buffer, offset)? == page_len && page_digest(self.key, pgno, buffer) == *digest {
                return Ok(true);
            }
        }
        let Some(db) = self.db else { return Ok(false) };
        let offset = u64::from(pgno - 1) * page_len as u64;
        let read = read_at(db, buffer, offset)?;
        // Beyond the end of the file SQLite sees zeros.
        buffer[read..].fill(0);
        Ok(page_digest(self.key, pgno, buffer) == *digest)
    }
}
