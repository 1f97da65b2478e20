//! How many requests and bytes a store may cost in a month, how they are spread over it, and what they cost.

/// What was asked of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Puts, lists and what else is billed like them.
    pub writes: u64,
    /// Gets and heads.
    pub reads: u64,
    /// Deletes, which nobody bills.
    pub deletes: u64,
    /// Bytes sent.
    pub bytes_up: u64,
    /// Bytes fetched.
    pub bytes_down: u64,
}

impl Spent {
    /// Requests of all kinds.
    pub fn requests(&self) -> u64 {
        self.writes + self.reads + self.deletes
    }

    /// Bytes in both directions.
    pub fn bytes(&self) -> u64 {
        self.bytes_up + self.bytes_down
    }

    /// Both together.
    pub fn add(&mut self, more: Self) {
        self.writes += more.writes;
        self.reads += more.reads;
        self.deletes += more.deletes;
        self.bytes_up += more.bytes_up;
        self.bytes_down += more.bytes_down;
    }
}

/// The most a store may cost in a month of the calendar (UTC). `None`: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// Requests of all kinds.
    pub requests_max: Option<u64>,
    /// Bytes in both directions.
    pub bytes_max: Option<u64>,
}

/// A month, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Month {
    /// Months since January 1970.
    pub number: u32,
    /// How long it has lasted, in milliseconds.
    pub elapsed_ms: u64,
    /// How long it lasts, in milliseconds.
    pub len_ms: u64,
}

const DAY_MS: u64 = 86_400_000;

impl Month {
    /// The month of a time, in milliseconds since 1970 (UTC).
    pub fn of(now_ms: u64) -> Self {
        let (year, month, day) = civil(now_ms / DAY_MS);
        let number = (year - 1970) * 12 + (month - 1);
        let elapsed_ms = (u64::from(day) - 1) * DAY_MS + now_ms % DAY_MS;
        Self { number, elapsed_ms, len_ms: days_of(year, month) * DAY_MS }
    }
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u32, u32, u32) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year as u32, month as u32, day as u32)
}

fn days_of(year: u32, month: u32) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Of a budget so much is there at the beginning of the month, beside the share of the days: a tenth, for a first backup and
/// for days on which much is written.
const AHEAD: u64 = 10;

impl Budget {
    /// Whether anything is left for this month.
    pub fn is_left(&self, spent: &Spent) -> bool {
        self.requests_max.is_none_or(|max| spent.requests() < max)
            && self.bytes_max.is_none_or(|max| spent.bytes() < max)
    }

    /// How long the next capture waits so that the budget lasts for the month, in milliseconds: nothing while less was used
    /// than its share of the month and a tenth. Fewer captures hold more each: that is what saves requests.
    pub fn wait_ms(&self, spent: &Spent, month: Month) -> u64 {
        let wait = |used: u64, max: Option<u64>| max.map_or(0, |max| wait_for(used, max, month));
        wait(spent.requests(), self.requests_max).max(wait(spent.bytes(), self.bytes_max))
    }
}

/// When the share of the month has caught up with what was used.
fn wait_for(used: u64, max: u64, month: Month) -> u64 {
    let beyond_ahead = u128::from(used.saturating_sub(max / AHEAD));
    let spread = u128::from(max - max / AHEAD).max(1);
    let due_ms = (beyond_ahead * u128::from(month.len_ms) / spread).min(u128::from(month.len_ms));
    (due_ms as u64).saturating_sub(month.elapsed_ms)
}

/// What a store charges, in millionths of a currency's unit (USD where it is one of the known lists).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prices {
    /// For a thousand puts or lists.
    pub writes_1000: u64,
    /// For a thousand gets or heads.
    pub reads_1000: u64,
    /// For a GB (10⁹ bytes) kept for a month.
    pub gb_month: u64,
    /// For a GB fetched.
    pub gb_down: u64,
}

impl Prices {
    /// The published list for a scheme, where everybody who has it pays about the same: S3 Standard (us-east-1), Cloud
    /// Storage Standard (regional) and Azure Blob Hot, as of November 2026. Whoever pays something else says so.
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" => Some(Self { writes_1000: 5_000, reads_1000: 400, gb_month: 23_000, gb_down: 90_000 }),
            "gs" => Some(Self { writes_1000: 5_000, reads_1000: 400, gb_month: 20_000, gb_down: 120_000 }),
            "az" => Some(Self { writes_1000: 5_500, reads_1000: 440, gb_month: 18_000, gb_down: 87_000 }),
            _ => None,
        }
    }

    /// What was spent, and `kept` bytes for a whole month, in millionths of the unit.
    pub fn cost(&self, spent: &Spent, kept: u64) -> u64 {
        let per = |amount: u64, price: u64, unit: u128| u128::from(amount) * u128::from(price) / unit;
        let sum = per(spent.writes, self.writes_1000, 1000)
            + per(spent.reads, self.reads_1000, 1000)
            + per(kept, self.gb_month, 1_000_000_000)
            + per(spent.bytes_down, self.gb_down, 1_000_000_000);
        u64::try_from(sum).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn month(days: u64) -> Month {
        Month { number: 0, elapsed_ms: days * DAY_MS, len_ms: 30 * DAY_MS }
    }

    fn requests(writes: u64) -> Spent {
        Spent { writes, ..Spent::default() }
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        let at = |seconds: u64| Month::of(seconds * 1000);
        assert_eq!(at(0), Month { number: 0, elapsed_ms: 0, len_ms: 31 * DAY_MS });
        // 2024-02-29 12:00:00 UTC
        let leap = at(1_709_208_000);
        assert_eq!(leap.number, 54 * 12 + 1);
        assert_eq!((leap.elapsed_ms, leap.len_ms), (28 * DAY_MS + 12 * HOUR_MS, 29 * DAY_MS));
        // 2026-11-26 00:00:00, and the last second of that year
        assert_eq!((at(1_795_651_200).number, at(1_795_651_200).elapsed_ms), (56 * 12 + 10, 25 * DAY_MS));
        assert_eq!(at(1_798_761_599).number, 56 * 12 + 11);
        assert_eq!(at(1_798_761_600), Month { number: 57 * 12, elapsed_ms: 0, len_ms: 31 * DAY_MS });
        // 2100 is no leap year
        assert_eq!(at(4_107_542_400).len_ms, 31 * DAY_MS);
        assert_eq!(Month::of(4_105_123_200_000).len_ms, 28 * DAY_MS);
    }

    #[test]
    fn without_a_bound_nothing_waits() {
        let spent = requests(u64::MAX / 4);
        assert!(Budget::default().is_left(&spent));
        assert_eq!(Budget::default().wait_ms(&spent, month(1)), 0);
    }

    #[test]
    fn who_uses_less_than_the_share_of_the_month_waits_for_nothing() {
        let budget = Budget { requests_max: Some(1000), bytes_max: None };
        assert_eq!(budget.wait_ms(&requests(100), month(0)), 0);
        assert_eq!(budget.wait_ms(&requests(500), month(15)), 0);
        assert!(budget.wait_ms(&requests(101), month(0)) > 0);
    }

    #[test]
    fn a_budget_lasts_for_the_month_however_much_there_is_to_send() {
        let budget = Budget { requests_max: Some(1000), bytes_max: None };
        let (mut now, mut used) = (0, 0);
        while now < 30 * DAY_MS {
            let at = Month { elapsed_ms: now, ..month(0) };
            if budget.wait_ms(&requests(used), at) == 0 && budget.is_left(&requests(used)) {
                used += 2;
            }
            now += 60_000;
        }
        assert!((990..=1001).contains(&used), "{used} of 1000 requests");
    }

    #[test]
    fn bytes_are_bounded_like_requests() {
        let budget = Budget { requests_max: None, bytes_max: Some(1 << 30) };
        let spent = Spent { bytes_up: 1 << 30, ..Spent::default() };
        assert!(!budget.is_left(&spent));
        assert_eq!(budget.wait_ms(&spent, month(10)), 20 * DAY_MS);
    }

    #[test]
    fn nothing_overflows() {
        let all =
            Spent { writes: 1 << 60, reads: 1 << 60, deletes: 0, bytes_up: 1 << 62, bytes_down: 1 << 62 };
        let budget = Budget { requests_max: Some(u64::MAX), bytes_max: Some(0) };
        assert!(!budget.is_left(&all));
        assert_eq!(budget.wait_ms(&all, month(0)), 30 * DAY_MS);
        Prices { writes_1000: u64::MAX, reads_1000: 1, gb_month: 1, gb_down: 1 }.cost(&all, u64::MAX);
    }

    #[test]
    fn money_is_that_of_the_list() {
        let prices = Prices::of_scheme("s3").expect("a known list");
        // a million puts are 5 dollars, a million gets 40 cents, a GB kept 2.3 cents
        assert_eq!(prices.cost(&requests(1_000_000), 0), 5_000_000);
        assert_eq!(prices.cost(&Spent { reads: 1_000_000, ..Spent::default() }, 0), 400_000);
        assert_eq!(prices.cost(&Spent::default(), 1_000_000_000), 23_000);
        assert_eq!(Prices::of_scheme("sftp"), None);
    }
}
