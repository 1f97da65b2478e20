//! Times and durations as people write and read them. UTC, so that it means the same on every machine.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds of one second.
pub(crate) const SECOND: u64 = 1_000_000;

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// `2026-11-24 08:30:00` for microseconds since 1970.
pub(crate) fn date_time(time: u64) -> String {
    let seconds = time / SECOND;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// The date of a day since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    (era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year)
        .checked_sub(719_468)
}

/// A moment: a date with or without time, `@SECONDS`, or an age.
pub(crate) fn parse_moment(text: &str, now: u64) -> Option<u64> {
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.parse::<u64>().ok()?.checked_mul(SECOND);
    }
    if let Some(age) = parse_duration(text) {
        return now.checked_sub(age);
    }
    let text = text.trim().trim_end_matches('Z').trim_end_matches(" UTC");
    let (date, clock) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let mut parts = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let mut clock = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next().unwrap_or(Some(0))?);
    if !(1970..=9999).contains(&year) || parts.next().is_some() || clock.next().is_some() {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let days = days_since_1970(year, month, day)?;
    // the 31st of a month with 30 days would silently be the 1st of the next
    (civil(days) == (year, month, day)).then_some(())?;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second) * SECOND)
}

/// `45s`, `90m`, `12h`, `3d`, `2w` in microseconds.
pub(crate) fn parse_duration(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 604_800,
        _ => return None,
    };
    text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(unit)?.checked_mul(SECOND)
}

/// `12 s ago`, `3 h ago`; `never` for 0.
pub(crate) fn age(time: u64, now: u64) -> String {
    match time {
        0 => "never".into(),
        _ if time > now => "just now".into(),
        _ => format!("{} ago", span((now - time) / SECOND)),
    }
}

/// Seconds in the largest unit that fits.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const NOW: u64 = 1_795_509_000 * SECOND; // 2026-11-24 08:30:00

    #[test]
    fn dates_are_the_calendar_s() {
        assert_eq!(date_time(0), "1970-01-01 00:00:00");
        assert_eq!(date_time(951_782_400 * SECOND), "2000-02-29 00:00:00");
        assert_eq!(date_time(NOW), "2026-11-24 08:30:00");
        assert_eq!(date_time(4_102_444_799 * SECOND), "2099-12-31 23:59:59");
    }

    #[test]
    fn moments_are_read_in_every_form() {
        for text in ["2026-11-24T08:30", "2026-11-24 08:30:00", "2026-11-24T08:30:00Z", "@1795509000"] {
            assert_eq!(parse_moment(text, 0), Some(NOW), "{text}");
        }
        assert_eq!(parse_moment("90m", NOW), Some(NOW - 5400 * SECOND));
        assert_eq!(parse_moment("2000-02-29", 0), Some(951_782_400 * SECOND));
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in
            ["", "yesterday", "2026-02-30", "2026-13-01", "2026-11-24T25:00", "1969-12-31", "@", "9w9", "m"]
        {
            assert_eq!(parse_moment(text, NOW), None, "{text}");
        }
        assert_eq!(parse_moment("99999d", NOW), None, "before 1970");
    }

    #[test]
    fn every_day_comes_back() {
        for days in (0..60_000).step_by(7) {
            let (year, month, day) = civil(days);
            assert_eq!(days_since_1970(year, month, day), Some(days));
        }
    }

    #[test]
    fn ages_are_short() {
        assert_eq!(age(0, NOW), "never");
        assert_eq!(age(NOW - 12 * SECOND, NOW), "12 s ago");
        assert_eq!(age(NOW - 3 * 86_400 * SECOND, NOW), "3 days ago");
        assert_eq!(age(NOW + 1, NOW), "just now");
    }
}
