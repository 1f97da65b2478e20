//! Servers in Go (rclone, and what is built on its library) overwrite by removing the old file first: for a moment there
//! is none. Calls of this process that meet the moment look again; others see an object that is missing for it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, MutexGuard};

/// One overwrite at a time.
#[derive(Default)]
pub(crate) struct Overwrites {
    one: Mutex<()>,
    /// Begun and ended ones: odd while one is running.
    steps: AtomicU64,
}

/// An overwrite that is running.
pub(crate) struct Overwriting<'a> {
    of: &'a Overwrites,
    _one: MutexGuard<'a, ()>,
}

impl Overwrites {
    pub(crate) async fn begin(&self) -> Overwriting<'_> {
        let one = self.one.lock().await;
        self.steps.fetch_add(1, Ordering::SeqCst);
        Overwriting { of: self, _one: one }
    }

    /// To be taken before looking.
    pub(crate) fn mark(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    /// Whether an overwrite ran at some time since the mark was taken.
    pub(crate) fn ran_since(&self, mark: u64) -> bool {
        !mark.is_multiple_of(2) || self.mark() != mark
    }

    /// While this is held, none runs.
    pub(crate) async fn pause(&self) -> MutexGuard<'_, ()> {
        self.one.lock().await
    }
}

impl Drop for Overwriting<'_> {
    fn drop(&mut self) {
        self.of.steps.fetch_add(1, Ordering::SeqCst);
    }
}
