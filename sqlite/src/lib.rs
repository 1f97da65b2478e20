//! Reads live SQLite databases of other programs consistently from outside, and writes them back proven.
//!
//! Nothing here opens a live database with the SQLite library, takes a lock on it, or writes beside it: databases
//! and their logs are read through read-only descriptors, and what was read is accepted only with a proof that it
//! is one committed state. [`LiveDatabase`] follows the write-ahead log commit by commit; where the proof fails it
//! reads the whole file while following. A capture is built on the newest entry, on an older one, or on none. [`RestoreWriter`] writes a state back beside the target, recomputes the
//! digest over all pages, asks SQLite what it thinks of it, and renames it into place.

mod types;

mod digest;
mod error;

mod index;
mod wal;

mod os;
mod watch;

mod pagemap;
mod pool;

mod digests;
mod dirty;
mod journal;
mod run;
mod slots;
mod table;
mod tail;
mod tracker;

mod images;
mod versions;

mod capture;
mod collect;
mod follow;
mod live;
mod rest;
mod scan;
mod several;

mod place;
mod restore;
mod verify;

pub use collect::Collection;
pub use digest::{Digest, Kind, lock_byte_page, page_digest};
pub use error::{CaptureError, GapReason, RestoreError};
pub use live::LiveDatabase;
pub use restore::{Existing, RestoreWriter, Restored};
pub use several::wait_any;
pub use types::{Build, Capture, LiveConfig, Look, Mode, PageSink};
pub use verify::{Integrity, RowCounts, count_rows};
pub use watch::Waker;
