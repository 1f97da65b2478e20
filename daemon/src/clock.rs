//! The clocks, read here and nowhere else: everything that decides gets the time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use chatkeep_planner::Millis;

/// Wall time in µs since 1970; for people, never for ordering.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// `2026-11-24 08:30:00`, UTC, for seconds since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
pub fn date_time(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_read_them() {
        assert_eq!(date_time(0), "1970-01-01 00:00:00");
        assert_eq!(date_time(1_795_509_000), "2026-11-24 08:30:00");
        assert_eq!(date_time(1_709_210_096), "2024-02-29 12:34:56");
    }
}
