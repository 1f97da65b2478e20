//! One object on its way into the main store.

use chatkeep_planner::{SourceId, UploadId};

use crate::archive::Archive;
use crate::keyring::Keys;
use crate::log::Log;
use crate::spool::{Spool, Spooled};
use crate::writer::Written;

/// How an upload ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// The store was asked whether the log is still ours, and said yes.
    pub confirmed: bool,
    /// The store lacks something that the next increment would need.
    pub rebase: bool,
    /// It does not permit to be asked: what it has is what this device remembers.
    pub blind: bool,
    /// The object was not uploaded: it is not in the queue any more as it was written.
    pub spoiled: bool,
}

/// One upload.
pub struct UploadOrder {
    /// Whose.
    pub source: SourceId,
    /// Its number.
    pub upload: UploadId,
    /// The object.
    pub object: Spooled,
    /// Where it goes.
    pub archive: Archive,
    /// Opens a pack that is there already.
    pub keys: Keys,
    /// Its queue.
    pub spool: Spool,
    /// For an entry: the point it publishes.
    pub publishes: Option<Written>,
    /// Where the log stands. One that is not confirmed is asked about first: is it still ours?
    pub log: Box<Log>,
}
