//! When a call is given up. The only clock of a call: neither end has another time limit.

use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::process::lock;

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A body that moves fewer than `floor` bytes a second over this time is given up.
    pub window: Duration,
    /// See `window`, in bytes a second. A line of a modem is five times faster.
    pub floor: u64,
    /// For an answer to a call that moves no object.
    pub answer: Duration,
    /// While a plugin sends an object on, or fetches it, nothing crosses our socket. So for an answer to a call that
    /// moves one there is more time, by its length and this many bytes a second: half of what a mobile contract is
    /// slowed down to when its volume is used up.
    pub answer_floor: u64,
    /// What an object counts as whose length is not known before: the size that packs are made.
    pub unknown_len: u64,
    /// For the first line of a listing: a store that walks folders needs a call for each.
    pub listing: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            window: Duration::from_mins(1),
            floor: 1024,
            answer: Duration::from_mins(1),
            answer_floor: 4096,
            unknown_len: 8 << 20,
            listing: Duration::from_mins(10),
        }
    }
}

impl Patience {
    /// For the answer to a call about an object of this length.
    pub(crate) fn for_object(&self, len: Option<u64>) -> Duration {
        let seconds = len.unwrap_or(self.unknown_len) / self.answer_floor.max(1);
        self.answer.saturating_add(Duration::from_secs(seconds))
    }
}

/// What one call does at the moment.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// A body moves, in one direction or the other.
    Moving,
    /// We hold the body back ourselves, for the sake of a limit.
    Held,
    /// Everything was sent, nothing has come.
    Waiting,
}

/// The progress of one call: whoever moves its bytes says so, and [`Progress::watch`] gives it up.
#[derive(Debug)]
pub(crate) struct Progress {
    phase: Mutex<(Phase, Instant)>,
    moved: AtomicU64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { phase: Mutex::new((Phase::Waiting, Instant::now())), moved: AtomicU64::new(0) }
    }

    pub(crate) fn moving(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        self.enter(Phase::Moving);
    }

    pub(crate) fn held(&self) {
        self.enter(Phase::Held);
    }

    pub(crate) fn waiting(&self) {
        self.enter(Phase::Waiting);
    }

    fn enter(&self, phase: Phase) {
        let mut current = lock(&self.phase);
        if std::mem::discriminant(&current.0) != std::mem::discriminant(&phase) {
            *current = (phase, Instant::now());
        }
    }

    /// Runs `call`, but gives it up when it makes too little progress; says then why.
    pub(crate) async fn watch<T>(
        &self,
        patience: &Patience,
        answer: Duration,
        call: impl Future<Output = T>,
    ) -> Result<T, String> {
        tokio::select! {
            biased;
            done = call => Ok(done),
            why = self.stalled(patience, answer) => Err(why),
        }
    }

    async fn stalled(&self, patience: &Patience, answer: Duration) -> String {
        // how much had moved when, in the phase that began then
        let mut mark = (Instant::now(), self.moved.load(Ordering::Relaxed));
        let needed = patience.floor * patience.window.as_secs().max(1);
        loop {
            let (phase, since) = *lock(&self.phase);
            let allowed = if matches!(phase, Phase::Waiting) { answer } else { patience.window };
            tokio::time::sleep((allowed / 6).max(Duration::from_millis(1))).await;
            let ((phase, begun), now) = (*lock(&self.phase), Instant::now());
            let moved = self.moved.load(Ordering::Relaxed);
            if begun != since || matches!(phase, Phase::Held) || moved - mark.1 >= needed {
                mark = (now, moved);
                continue;
            }
            match phase {
                Phase::Waiting if now - begun >= answer => {
                    return format!("no answer in {} s", answer.as_secs());
                }
                Phase::Moving if now - mark.0.max(begun) >= patience.window => {
                    let seconds = patience.window.as_secs();
                    return format!("only {} bytes moved in {seconds} s", moved - mark.1);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    async fn seconds_until_given_up(call: impl AsyncFnOnce(&Progress)) -> Option<u64> {
        let (progress, patience, begin) = (Progress::new(), Patience::default(), Instant::now());
        let answer = patience.for_object(Some(16 << 20));
        let done = progress.watch(&patience, answer, call(&progress)).await;
        done.is_err().then(|| begin.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up_and_a_slow_one_is_not() {
        let trickle = seconds_until_given_up(async |progress| {
            loop {
                progress.moving(500);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let seconds = trickle.await.unwrap();
        assert!((60..=80).contains(&seconds), "{seconds}");
        // 16 MiB at 2 Mbit/s in pieces of 64 KiB
        let slow = seconds_until_given_up(async |progress| {
            for _ in 0..256 {
                progress.moving(64 << 10);
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        });
        assert_eq!(slow.await, None);
        let slowest = seconds_until_given_up(async |progress| {
            for _ in 0..64 {
                progress.moving(16 << 10);
                tokio::time::sleep(Duration::from_secs(15)).await;
            }
        });
        assert_eq!(slowest.await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_limit_of_ours_holds_back_is_not_given_up() {
        let held = seconds_until_given_up(async |progress| {
            for _ in 0..10 {
                progress.held();
                tokio::time::sleep(Duration::from_mins(10)).await;
                progress.moving(64 << 10);
            }
        });
        assert_eq!(held.await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_as_long_as_the_object_at_the_slowest_line() {
        let uploading = seconds_until_given_up(async |progress| {
            progress.moving(16 << 20);
            progress.waiting();
            tokio::time::sleep(Duration::from_secs(64 * 64)).await;
        });
        assert_eq!(uploading.await, None);
        let hanging = seconds_until_given_up(async |progress| {
            progress.moving(16 << 20);
            progress.waiting();
            std::future::pending::<()>().await;
        });
        let seconds = hanging.await.unwrap();
        let allowed = 60 + (16 << 20) / 4096;
        assert!((allowed..allowed * 5 / 4).contains(&seconds), "{seconds}");
    }
}
