//! What can go wrong, sorted by what the caller does next.

use std::io;

/// Why the state before is not connected to the state now, so that the whole file has to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapReason {
    /// There is no table of pages to compare with: the first capture, or the table was lost.
    FirstSight,
    /// Chatkeep was not running, and the log no longer has the place where it stopped.
    Restarted,
    /// The write-ahead log was reset, and the commits found do not add up to those counted.
    Missed,
    /// The log was reset and its index re-made meanwhile: the counter says nothing.
    IndexRemade,
    /// The log was reset and a writer went away meanwhile: it may have left a commit nobody published.
    WriterLeft,
    /// The index or the log could not be read, or contradicted each other, for too long.
    Unreadable,
    /// The index went back behind what was read (power failed).
    Undone,
    /// The database was closed and opened more than once, or written in between.
    Reopened,
    /// The file, its log or its index was replaced.
    Replaced,
    /// The database was written without a write-ahead log, or without an index.
    WrittenDirectly,
    /// The page size changed.
    PageSize,
    /// The events of the folder were too many to be kept by the kernel.
    EventsLost,
    /// A capture that had read the whole file was not committed.
    Aborted,
    /// More changed at once than is kept beside, or there was no room to keep it.
    TooManyChanges,
}

impl GapReason {
    /// A fixed word for status output and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FirstSight => "first sight",
            Self::Restarted => "restarted",
            Self::Missed => "missed commits",
            Self::IndexRemade => "index re-made",
            Self::WriterLeft => "writer left",
            Self::Unreadable => "unreadable",
            Self::Undone => "undone",
            Self::Reopened => "reopened",
            Self::Replaced => "replaced",
            Self::WrittenDirectly => "written directly",
            Self::PageSize => "page size",
            Self::EventsLost => "events lost",
            Self::Aborted => "aborted",
            Self::TooManyChanges => "too many changes",
        }
    }
}

impl std::fmt::Display for GapReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A capture, or a look, that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The database or its folder does not exist. Wait for it to appear.
    #[error("the database does not exist")]
    Missing,
    /// No quiet moment was found. Try again later, with back-off; the reason is for the status.
    #[error("the database was not quiet: {reason}")]
    NotQuiet {
        /// What was in the way.
        reason: String,
    },
    /// What was collected belongs to a page table that is no more. Begin the collection again.
    #[error("the pages collected belong to an older page table")]
    Outdated,
    /// The caller asked to stop.
    #[error("the capture was cancelled")]
    Cancelled,
    /// The file is certainly not an SQLite database. The user has to look.
    #[error("not a database: {reason}")]
    NotADatabase {
        /// What tells it.
        reason: String,
    },
    /// The file lies where it cannot be captured soundly. The user has to move it.
    #[error("cannot be captured here: {reason}")]
    Unsupported {
        /// Why not.
        reason: String,
    },
    /// Reading the database, or Chatkeep's own state, or the sink failed.
    #[error("{doing} failed")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl CaptureError {
    pub(crate) fn not_quiet(reason: impl Into<String>) -> Self {
        Self::NotQuiet { reason: reason.into() }
    }
}

/// Why a look at a log did not succeed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Something moved while it was read: look again.
    Again,
    /// The connection to the state before is lost.
    Gap(GapReason),
    Io(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Io(error)
    }
}

/// A restore that failed. Where nothing else is said, the target is as it was, and nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A program has the target open. Close it, then try again.
    #[error("the target is in use: {why}")]
    InUse {
        /// Who, if that could be seen.
        pid: Option<u32>,
        /// What tells it.
        why: String,
    },
    /// The target exists, and was not to be replaced.
    #[error("the target exists")]
    Exists,
    /// What was written is not the state that was captured. Another recovery point may be good.
    #[error("the pages do not add up to the captured state")]
    DigestMismatch,
    /// It failed at the very end, and what had been there could not get its name back. Nothing is lost: rename it by
    /// hand, the database together with its log.
    #[error("{why}; what was there is now called {names}, because its name was taken meanwhile")]
    LeftAside {
        /// The files, separated by commas.
        names: String,
        /// Why the restore failed.
        why: String,
    },
    /// The database is in place, but it is not certain that it will be after a power failure.
    #[error("the database is restored, but writing its folder to the disk failed")]
    InPlaceUnsynced {
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Not every page was given.
    #[error("{count} pages are missing")]
    MissingPages {
        /// How many.
        count: u32,
    },
    /// Name, page size or a page cannot be. A bug, or a damaged recovery point.
    #[error("not restorable: {reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// The file system failed.
    #[error("{doing} failed")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Turns an `io::Error` into a [`CaptureError`] that says what was being done.
pub(crate) fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> CaptureError {
    move |source| CaptureError::Io { doing, source }
}
