//! All that the scheduler can be told, and all that it can ask for.

/// A moment on a clock that only goes forward, in milliseconds since the service started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

/// A watched source: one archive, one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SourceId(pub u32);

/// A sealed object in the spool. Unique over the scheduler's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UploadId(pub u64);

/// What happened. Events about a source that was not added, or was removed, change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A source is watched from now on. Adding it twice changes nothing.
    SourceAdded {
        /// Which.
        source: SourceId,
    },
    /// A source is no longer watched, and what waited is forgotten. A capture that runs must still be answered, and is
    /// waited for if the source is added again; an upload that runs no longer counts, and its answer changes nothing.
    SourceRemoved {
        /// Which.
        source: SourceId,
    },
    /// A look at the database found changes that are not captured yet. Repeats while they stay so.
    Changed {
        /// Which.
        source: SourceId,
        /// How much there is to capture, in bytes. A repeat with the same number is no new activity.
        pending_bytes: u64,
    },
    /// Captures of a source that nobody asked for wait for so long: its store is to be asked less often. The last word on
    /// this counts.
    Spare {
        /// Which.
        source: SourceId,
        /// From now, in milliseconds.
        wait_ms: u64,
    },
    /// A person asked for a backup: goes ahead of debounce, back-off and pause.
    CaptureNow {
        /// Which.
        source: SourceId,
    },
    /// A capture ended well.
    CaptureDone {
        /// Which.
        source: SourceId,
        /// Whether there are changes already that this capture does not hold.
        more: bool,
    },
    /// A capture failed; what it was to hold is still to be captured.
    CaptureFailed {
        /// Which.
        source: SourceId,
        /// When to try again.
        retry: Retry,
    },
    /// An object waits in the spool. The order of these events is the order of the uploads of a source.
    Enqueued {
        /// Whose.
        source: SourceId,
        /// Which.
        upload: UploadId,
        /// Whether it is the last object of a recovery point, the one that publishes it.
        entry: bool,
    },
    /// An object has reached the store.
    UploadDone {
        /// Whose.
        source: SourceId,
        /// Which.
        upload: UploadId,
    },
    /// An object has not reached the store, or nobody knows.
    UploadFailed {
        /// Whose.
        source: SourceId,
        /// Which.
        upload: UploadId,
        /// When to try again.
        retry: Retry,
    },
    /// The store of a source answers again.
    StoreReachable {
        /// Whose store.
        source: SourceId,
    },
    /// The user paused the service: only [`Event::CaptureNow`] starts anything, a capture and the uploads it is for.
    Paused,
    /// The pause is over.
    Resumed,
    /// The service shuts down: from here on nothing is started.
    Stopping,
    /// Time passed.
    Tick,
}

/// When to try again what failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// After the back-off of the policy.
    Backoff,
    /// Not before the store wants it, as far as [`RETRY_AFTER_MAX_MS`](crate::policy::RETRY_AFTER_MAX_MS) allows.
    After {
        /// How long to wait, in milliseconds.
        ms: u64,
    },
    /// After the back-off, or as soon as [`Event::StoreReachable`] comes; the next back-off is then a short one again.
    WhenReachable,
    /// Not by itself: the next [`Event::Resumed`], [`Event::CaptureNow`] or [`Event::StoreReachable`] ends the waiting.
    Never,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Capture this source; answer with [`Event::CaptureDone`] or [`Event::CaptureFailed`], exactly once.
    Capture {
        /// Which.
        source: SourceId,
    },
    /// Upload this object; answer with [`Event::UploadDone`] or [`Event::UploadFailed`], exactly once.
    Upload {
        /// Whose.
        source: SourceId,
        /// Which.
        upload: UploadId,
    },
}
