//! The clocks, read here and nowhere else: everything that decides gets the time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use chatkeep_planner::Millis;

/// Wall time in µs since 1970; for people, never for ordering.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// Time since the service started.
#[derive(Debug, Clone, Copy)]
pub struct Monotonic(Instant);

impl Monotonic {
    /// Zero is now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Milliseconds since [`Monotonic::start`].
    pub fn now(&self) -> Millis {
        Millis(self.0.elapsed().as_millis() as u64)
    }

    /// The instant of `at`.
    pub fn instant(&self, at: Millis) -> Instant {
        self.0 + std::time::Duration::from_millis(at.0)
    }
}

/// Tells the time, in µs since 1970: [`now_us`], but for simulations.
#[derive(Clone)]
pub struct Clock(std::sync::Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// A clock that tells what `now_us` says.
    pub fn new(now_us: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(std::sync::Arc::new(now_us))
    }

    /// The time.
    pub fn now_us(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(now_us)
    }
}
