//! What is asked of a store, and how fast it may be sent to. It is here and not in plugins, because every
//! byte crosses our socket: no plugin has to cooperate.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::process::lock;

/// Uploads are sent in pieces of this length, and may be held between two of them.
pub const CHUNK_LEN: usize = 64 << 10;

/// What was asked of a store since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Objects that were put, or tried to be.
    pub puts: u64,
    /// Objects that were read, whole or in part.
    pub gets: u64,
    /// Objects that were asked for their length.
    pub heads: u64,
    /// Listings.
    pub lists: u64,
    /// Objects that were deleted.
    pub deletes: u64,
    /// Everything else: opening, usage, sign-in, secrets, locks.
    pub others: u64,
    /// Bytes of objects sent.
    pub bytes_up: u64,
    /// Bytes of objects and listings received.
    pub bytes_down: u64,
}

/// What a request is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Put,
    Get,
    Head,
    List,
    Delete,
    Other,
}

/// The controls of one store. Shared by whoever steers it and the [`PluginStore`](crate::PluginStore) that obeys.
#[derive(Debug, Default)]
pub struct StoreControl {
    requests: [AtomicU64; 6],
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    throttle: Throttle,
}

impl StoreControl {
    /// Without limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many bytes a second may be sent; `None` is no limit. Holds from the next piece of a running upload on.
    pub fn set_limit(&self, bytes_per_s: Option<u64>) {
        self.throttle.set_limit(bytes_per_s);
    }

    /// What was asked of the store so far.
    pub fn counters(&self) -> Counters {
        let requests = |kind: Kind| self.requests[kind as usize].load(Ordering::Relaxed);
        Counters {
            puts: requests(Kind::Put),
            gets: requests(Kind::Get),
            heads: requests(Kind::Head),
            lists: requests(Kind::List),
            deletes: requests(Kind::Delete),
            others: requests(Kind::Other),
            bytes_up: self.bytes_up.load(Ordering::Relaxed),
            bytes_down: self.bytes_down.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn count(&self, kind: Kind) {
        self.requests[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Waits until so many bytes may be sent, and counts them.
    pub(crate) async fn send(&self, bytes: usize) {
        self.throttle.take(bytes).await;
        self.bytes_up.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A limit of bytes a second, as a bucket that fills at that rate and holds a quarter of a second of it.
///
/// Who takes may leave it in debt by one piece, so a piece larger than the bucket passes, too.
#[derive(Debug)]
struct Throttle {
    bucket: Mutex<Bucket>,
    limit: watch::Sender<Option<u64>>,
}

#[derive(Debug)]
struct Bucket {
    bytes: f64,
    filled: Instant,
}

impl Default for Throttle {
    fn default() -> Self {
        let bucket = Bucket { bytes: 0.0, filled: Instant::now() };
        Self { bucket: Mutex::new(bucket), limit: watch::Sender::new(None) }
    }
}

impl Throttle {
    /// Sets the limit; `None` is none. Who waits now waits by the new one.
    fn set_limit(&self, bytes_per_s: Option<u64>) {
        *lock(&self.bucket) = Bucket { bytes: 0.0, filled: Instant::now() };
        self.limit.send_replace(bytes_per_s.map(|limit| limit.max(1)));
    }

    async fn take(&self, bytes: usize) {
        let mut changes = self.limit.subscribe();
        loop {
            let Some(limit) = *changes.borrow_and_update() else { return };
            let Some(wait) = lock(&self.bucket).take(bytes, limit, Instant::now()) else { return };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // the sender is in `self`
                _ = changes.changed() => {}
            }
        }
    }
}

impl Bucket {
    /// Takes so many bytes, or says how long to wait before asking again.
    fn take(&mut self, bytes: usize, limit: u64, now: Instant) -> Option<Duration> {
        let limit = limit as f64;
        self.bytes = (self.bytes + limit * (now - self.filled).as_secs_f64()).min(limit / 4.0);
        self.filled = now;
        if self.bytes < 0.0 {
            // at least a millisecond: less could be rounded to no wait at all
            return Some(Duration::from_secs_f64((-self.bytes / limit).max(0.001)));
        }
        self.bytes -= bytes as f64;
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use super::*;

    async fn seconds_for(control: &StoreControl, bytes: usize) -> u64 {
        let begin = Instant::now();
        for _ in 0..bytes / CHUNK_LEN {
            control.send(CHUNK_LEN).await;
        }
        begin.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept_whatever_the_length_of_a_piece() {
        let control = StoreControl::new();
        assert_eq!(seconds_for(&control, 8 << 20).await, 0);
        for limit in [10_000, 1 << 20] {
            control.set_limit(Some(limit));
            let seconds = seconds_for(&control, 8 << 20).await;
            let expected = (8 << 20) / limit;
            assert!(seconds.abs_diff(expected) <= 1 + expected / 50, "{seconds} s at {limit} bytes/s");
        }
        assert_eq!(control.counters().bytes_up, 3 * (8 << 20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_lifted_frees_who_waits() {
        let control = Arc::new(StoreControl::new());
        control.set_limit(Some(1));
        let sender = tokio::spawn({
            let control = Arc::clone(&control);
            async move { seconds_for(&control, 8 << 20).await }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        control.set_limit(None);
        assert_eq!(sender.await.unwrap(), 5);
    }
}
