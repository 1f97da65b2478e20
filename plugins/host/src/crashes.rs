//! When a plugin that crashed may be started again. Pure: [`crate::process`] waits and starts.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How crashes are answered.
#[derive(Debug, Clone, Copy)]
pub struct CrashPolicy {
    /// The wait after the first crash; it doubles with each further one.
    pub first_wait: Duration,
    /// So many crashes …
    pub crashes_max: usize,
    /// … within this time switch the plugin off.
    pub window: Duration,
}

impl Default for CrashPolicy {
    fn default() -> Self {
        Self { first_wait: Duration::from_secs(1), crashes_max: 5, window: Duration::from_mins(10) }
    }
}

/// The crashes of one plugin.
#[derive(Debug)]
pub(crate) struct CrashLog {
    policy: CrashPolicy,
    crashes: VecDeque<Instant>,
    /// How it ended last, once it is switched off.
    off: Option<String>,
}

/// Whether a plugin may be started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MayStart {
    /// Once so much time has passed.
    In(Duration),
    /// Not any more. It ended like this last.
    Off(String),
}

impl CrashLog {
    pub(crate) fn new(policy: CrashPolicy) -> Self {
        Self { policy, crashes: VecDeque::new(), off: None }
    }

    /// Takes note of a crash. `true` if it was one too many.
    pub(crate) fn crashed(&mut self, how: &str, now: Instant) -> bool {
        self.crashes.push_back(now);
        self.forget(now);
        if self.crashes.len() >= self.policy.crashes_max {
            self.off = Some(how.to_owned());
        }
        self.off.is_some()
    }

    pub(crate) fn may_start(&mut self, now: Instant) -> MayStart {
        if let Some(how) = &self.off {
            return MayStart::Off(how.clone());
        }
        self.forget(now);
        let Some(last) = self.crashes.back() else { return MayStart::In(Duration::ZERO) };
        let wait = self.policy.first_wait * (1 << (self.crashes.len() - 1).min(16));
        MayStart::In(wait.saturating_sub(now - *last))
    }

    /// Begins anew.
    pub(crate) fn reset(&mut self) {
        self.crashes.clear();
        self.off = None;
    }

    pub(crate) fn is_off(&self) -> bool {
        self.off.is_some()
    }

    fn forget(&mut self, now: Instant) {
        while self.crashes.front().is_some_and(|crash| now - *crash > self.policy.window) {
            self.crashes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn each_crash_doubles_the_wait_and_the_fifth_is_the_last() {
        let (mut log, begin) = (CrashLog::new(CrashPolicy::default()), Instant::now());
        assert_eq!(log.may_start(begin), MayStart::In(secs(0)));
        for (at, wait) in [(0, 1), (10, 2), (20, 4), (30, 8)] {
            assert!(!log.crashed("signal 9", begin + secs(at)));
            assert_eq!(log.may_start(begin + secs(at)), MayStart::In(secs(wait)));
            assert_eq!(log.may_start(begin + secs(at + 9)), MayStart::In(secs(0)));
        }
        assert!(log.crashed("signal 11", begin + secs(40)));
        let much_later = begin + secs(100_000);
        assert_eq!(log.may_start(much_later), MayStart::Off("signal 11".to_owned()));
        log.reset();
        assert_eq!(log.may_start(much_later), MayStart::In(secs(0)));
    }

    #[test]
    fn crashes_are_forgotten_after_the_window() {
        let (mut log, begin) = (CrashLog::new(CrashPolicy::default()), Instant::now());
        for number in 0..20 {
            assert!(!log.crashed("signal 9", begin + secs(number * 151)));
        }
        assert_eq!(log.may_start(begin + secs(19 * 151 + 601)), MayStart::In(secs(0)));
    }
}
