//! What the caller gives and gets.

use std::io;
use std::path::PathBuf;

use crate::collect::Collection;
use crate::digest::{Digest, Kind};
use crate::error::GapReason;

/// Which database, and where its table of pages lives.
#[derive(Debug, Clone)]
pub struct LiveConfig {
    /// The database file. It is only ever read.
    pub path: PathBuf,
    /// Key of all page digests.
    pub digest_key: [u8; 32],
    /// A folder of our own: page table, and for moments the names of spill files.
    pub state_dir: PathBuf,
    /// File name stem of the table.
    pub name: String,
}

/// How the database is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Some process has it open in WAL mode: its log is followed, commit by commit.
    Following,
    /// Nobody has it open in WAL mode: the file is read when it was written, and the read is validated.
    AtRest,
    /// The database was deleted; what was known of it last can still be captured.
    Gone,
}

impl Mode {
    /// A fixed word for status output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Following => "following",
            Self::AtRest => "at rest",
            Self::Gone => "gone",
        }
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Pages changed since the last capture, as far as they are known without reading the whole file.
    pub pending_pages: u64,
    /// The same in bytes.
    pub pending_bytes: u64,
    /// There are unshipped changes, or the whole file is due to be read.
    pub changed: bool,
    /// How the database is being read.
    pub mode: Mode,
    /// Why the next capture reads the whole file, if it does.
    pub gap: Option<GapReason>,
    /// Why the database is read with caution, whatever it does: it lies on a file system where less can be proved.
    pub caution: Option<&'static str>,
    /// Commits this look found in the log.
    pub commits: u64,
}

/// What a capture is built on.
#[derive(Debug, Clone, Copy)]
pub struct Build<'a> {
    /// The entry whose pages the capture changes: it has all pages that changed since. 0 for none: it has all pages.
    pub parent: u64,
    /// Pages collected for the same parent, which are not given again unless they changed since.
    pub collected: Option<&'a Collection>,
}

impl Build<'_> {
    /// Built on this entry, with nothing collected.
    pub fn on(parent: u64) -> Self {
        Build { parent, collected: None }
    }
}

/// Takes the pages of a capture while it is being made.
pub trait PageSink {
    /// Pages follow: all of them (`is_base`), or those that changed since the parent.
    fn begin(&mut self, page_size: u32, is_base: bool) -> io::Result<()>;
    /// One page. It may come again: the later image wins. Pages beyond the capture's `page_count` are to be ignored
    /// (the database shrank while it was read).
    ///
    /// `base` is the image the page had at the parent, where it is at hand; its digest was proved.
    fn page(&mut self, pgno: u32, image: &[u8], base: Option<&[u8]>) -> io::Result<()>;
    /// Forget all pages so far: the attempt came to nothing. `begin` follows, or the capture fails.
    fn restart(&mut self) -> io::Result<()>;
}

/// One consistent committed state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// The sink got every page, those collected before included.
    pub is_base: bool,
    /// The entry it is built on; 0 for a base. Not the one that was asked for, when of that nothing is known: then it is
    /// a base.
    pub parent: u64,
    /// Plain or encrypted.
    pub kind: Kind,
    /// In bytes.
    pub page_size: u32,
    /// Size of the database in pages.
    pub page_count: u32,
    /// `PRAGMA user_version`; 0 for an encrypted database.
    pub user_version: u32,
    /// `PRAGMA application_id`; 0 for an encrypted database.
    pub application_id: u32,
    /// XOR of the digests of all pages but the lock-byte page.
    pub state_digest: Digest,
    /// How many pages it has, those collected before included, each counted once.
    pub pages: u32,
    /// How many pages differ from the last committed capture (all, when there was none).
    pub changed_pages: u32,
    /// How often the image at the parent was given along.
    pub bases: u32,
    /// Nothing differs from the last committed capture: no entry is needed for what it says.
    pub unchanged: bool,
    /// Why the whole file was read, if it was.
    pub gap: Option<GapReason>,
    /// Bytes read from the file and its log for this capture.
    pub bytes_read: u64,
    /// The database was deleted, and its last state is captured already: there are no pages.
    pub gone: bool,
}
