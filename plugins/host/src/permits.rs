//! How many calls run at once: fewer when a store asks for fewer, and one more for each stretch that went well.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::process::lock;

/// A store that asked for fewer requests is not taken to ask again because of calls that were already on their way.
const ONE_ASKING: Duration = Duration::from_secs(1);

/// Permits to call: at most as many as a limit that moves between 1 and `max`.
#[derive(Debug)]
pub(crate) struct Permits {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    max: usize,
    limit: usize,
    used: usize,
    /// Calls that went well since the limit last moved.
    good: usize,
    halved: Option<Instant>,
}

/// One call in progress.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Permits>);

impl Permits {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let max = max.max(1);
        let state = State { max, limit: max, used: 0, good: 0, halved: None };
        Arc::new(Self { state: Mutex::new(state), freed: Notify::new() })
    }

    pub(crate) async fn acquire(self: &Arc<Self>) -> Permit {
        loop {
            let freed = self.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // before looking, so that what is freed in between is not missed
            freed.as_mut().enable();
            {
                let mut state = lock(&self.state);
                if state.used < state.limit {
                    state.used += 1;
                    return Permit(Arc::clone(self));
                }
            }
            freed.await;
        }
    }

    /// A call went well: after as many as may run at once, one more may.
    pub(crate) fn went_well(&self) {
        let mut state = lock(&self.state);
        state.good += 1;
        if state.good >= state.limit && state.limit < state.max {
            state.limit += 1;
            state.good = 0;
            self.freed.notify_waiters();
        }
    }

    /// The store asked for fewer: half as many may run.
    pub(crate) fn slow_down(&self) {
        let (mut state, now) = (lock(&self.state), Instant::now());
        if state.halved.is_none_or(|halved| now - halved >= ONE_ASKING) {
            state.limit = (state.limit / 2).max(1);
            state.good = 0;
            state.halved = Some(now);
        }
    }

    /// Sets the most that may run.
    pub(crate) fn set_max(&self, max: usize) {
        let mut state = lock(&self.state);
        if state.max != max.max(1) {
            state.max = max.max(1);
            state.limit = state.max;
            self.freed.notify_waiters();
        }
    }

    pub(crate) fn limit(&self) -> usize {
        lock(&self.state).limit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        lock(&self.0.state).used -= 1;
        self.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn half_as_many_run_after_one_asking_and_one_more_after_each_good_stretch() {
        let permits = Permits::new(8);
        permits.slow_down();
        permits.slow_down();
        assert_eq!(permits.limit(), 4, "calls that were on their way are one asking");
        tokio::time::advance(ONE_ASKING).await;
        permits.slow_down();
        assert_eq!(permits.limit(), 2);
        for expected in [2, 3, 3, 3, 4] {
            permits.went_well();
            assert_eq!(permits.limit(), expected);
        }
        for _ in 0..100 {
            permits.went_well();
        }
        assert_eq!(permits.limit(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_run_than_the_limit_and_a_freed_permit_goes_to_who_waits() {
        let permits = Permits::new(2);
        let (first, _second) = (permits.acquire().await, permits.acquire().await);
        let waiting = tokio::spawn({
            let permits = Arc::clone(&permits);
            async move { permits.acquire().await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.await.is_ok());
    }
}
