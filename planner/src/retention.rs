//! Which recovery points to keep, and which to forget. What forgetting deletes from a store is decided in [`crate::prune`].
//!
//! A point is kept by its age: everything for two days, an hour's point for two weeks after that hour, a day's for three
//! months, a month's for ever. A point is an hour's when its level is at least [`Level::Hour`] and it is the highest, or
//! first of the highest, of its hour; so of several bases within one month, one stays for ever. A point is also kept by
//! its rank, whatever any clock says: a device that was off for a year, or whose clock stands at 1970, keeps its latest
//! points.
//!
//! A kept point needs its parents down to its base; they are carried. The newest point is always kept, and so its
//! chain. The parent of every entry to come is in that chain or newer than it: a plan stays right while the log grows.

use std::collections::{BTreeMap, BTreeSet};

use crate::levels::Level;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// How long recovery points are kept, by age *and* by count: a point goes only when both let it go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Every point is kept for this long, in milliseconds.
    pub everything_for_ms: u64,
    /// One point of each hour, until this long after its end. 0 keeps none for its hour, likewise below.
    pub hourly_for_ms: u64,
    /// One point of each day.
    pub daily_for_ms: u64,
    /// One point of each month (of 28 days); `None` is for ever.
    pub monthly_for_ms: Option<u64>,
    /// So many of the newest points are kept, however old they are. 0 counts as 1.
    pub latest: usize,
    /// So many of the newest points of hours, and above.
    pub hourly: usize,
    /// So many of the newest points of days, and above.
    pub daily: usize,
    /// So many of the newest points of months, and above.
    pub monthly: usize,
}

impl Default for RetentionPolicy {
    fn default() -> Self {
        Self {
            everything_for_ms: 48 * HOUR_MS,
            hourly_for_ms: 14 * DAY_MS,
            daily_for_ms: 90 * DAY_MS,
            monthly_for_ms: None,
            latest: 100,
            hourly: 48,
            daily: 30,
            monthly: 12,
        }
    }
}

/// A recovery point, as its entry describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointInfo {
    /// Its number.
    pub seq: u64,
    /// The entry it was written on; 0 for a base.
    pub parent_seq: u64,
    /// Its level.
    pub level: Level,
    /// When it was captured by the clock of the device, µs since 1970.
    pub taken_at_us: i64,
    /// Kept because the user said so.
    pub pinned: bool,
}

/// What becomes of the points. Each one given to [`plan_retention`] is in exactly one list, newest first.
#[must_use = "a plan does nothing until it is carried out"]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// Points to offer to the user.
    pub keep: Vec<u64>,
    /// Points that are needed to restore others, and so can be restored as well.
    pub carry: Vec<u64>,
    /// Points to delete, one by one from the first: children come before their parents, so those that are left when a
    /// crash ends the deletion still have theirs.
    pub forget: Vec<u64>,
}

/// Decides which of `points` to keep under `policy`. Of two points with one number the last counts.
///
/// A point dated in the future counts as new until its date has passed. A point that lacks a parent (a listing that
/// came short, a damaged store) is kept by its age like the others, but never counts as one of the latest or as the one
/// of its hour: that must be one that restores.
pub fn plan_retention(points: &[PointInfo], now_us: i64, policy: &RetentionPolicy) -> RetentionPlan {
    let points: BTreeMap<u64, PointInfo> = points.iter().map(|point| (point.seq, *point)).collect();
    let whole = whole_points(&points);
    let mut kept: BTreeSet<u64> = by_rank(&points, &whole, policy);
    kept.extend(by_age(&points, &whole, now_us, policy));
    kept.extend(points.values().filter(|point| point.pinned).map(|point| point.seq));
    kept.extend(points.keys().last());

    let mut plan = RetentionPlan::default();
    let mut needed = BTreeSet::new();
    for point in points.values().rev() {
        let list = if kept.contains(&point.seq) {
            &mut plan.keep
        } else if needed.contains(&point.seq) {
            &mut plan.carry
        } else {
            plan.forget.push(point.seq);
            continue;
        };
        list.push(point.seq);
        // parents come later in this walk; one that is not older than its child is none
        needed.insert(point.parent_seq);
    }
    plan
}

/// Points that have all their parents.
fn whole_points(points: &BTreeMap<u64, PointInfo>) -> BTreeSet<u64> {
    let mut whole = BTreeSet::new();
    // oldest first: a parent that is not older than its child is never among them
    for point in points.values() {
        if point.parent_seq == 0 || whole.contains(&point.parent_seq) {
            whole.insert(point.seq);
        }
    }
    whole
}

/// The newest points of each class, by their place in the log alone.
fn by_rank(
    points: &BTreeMap<u64, PointInfo>,
    whole: &BTreeSet<u64>,
    policy: &RetentionPolicy,
) -> BTreeSet<u64> {
    let ranks = [
        (Level::Entry, policy.latest.max(1)),
        (Level::Hour, policy.hourly),
        (Level::Day, policy.daily),
        (Level::Month, policy.monthly),
    ];
    let newest_of = |(level, count)| {
        let of_level = move |seq: &&u64| points[*seq].level >= level;
        whole.iter().rev().filter(of_level).take(count).copied()
    };
    ranks.into_iter().flat_map(newest_of).collect()
}

/// The points that are young enough for what they are.
fn by_age<'a>(
    points: &'a BTreeMap<u64, PointInfo>,
    whole: &'a BTreeSet<u64>,
    now_us: i64,
    policy: &RetentionPolicy,
) -> impl Iterator<Item = u64> + 'a {
    let classes = [
        (Level::Hour, Some(policy.hourly_for_ms)),
        (Level::Day, Some(policy.daily_for_ms)),
        (Level::Month, policy.monthly_for_ms),
    ];
    let everything = Some(policy.everything_for_ms);
    let of_spans = classes.map(|(level, _)| one_of_each_span(points, whole, level));
    points.values().filter_map(move |point| {
        let broken = !whole.contains(&point.seq);
        let by_class = classes.iter().zip(&of_spans).any(|((level, for_ms), of_spans)| {
            let stands_for_span = point.level >= *level && (broken || of_spans.contains(&point.seq));
            stands_for_span
                && *for_ms != Some(0)
                && is_younger(span_end_us(*level, point.taken_at_us), now_us, *for_ms)
        });
        let by_itself = is_younger(i128::from(point.taken_at_us), now_us, everything);
        (by_class || by_itself).then_some(point.seq)
    })
}

/// Of the points of at least this level, one of each hour (day, month): of the highest level, which most others need as
/// a parent anyhow, and of these the first, so that it does not change from day to day.
fn one_of_each_span(points: &BTreeMap<u64, PointInfo>, whole: &BTreeSet<u64>, level: Level) -> BTreeSet<u64> {
    let mut best: BTreeMap<Option<i64>, PointInfo> = BTreeMap::new();
    for point in whole.iter().map(|seq| points[seq]).filter(|point| point.level >= level) {
        let of_span = best.entry(level.bucket(point.taken_at_us)).or_insert(point);
        if point.level > of_span.level {
            *of_span = point;
        }
    }
    best.into_values().map(|point| point.seq).collect()
}

/// When the hour (day, month) ends that a point stands for, and its age begins. Were it the point's own time, the one of
/// an hour would go before others of that hour, and one of these would take its place after it was forgotten.
fn span_end_us(level: Level, taken_at_us: i64) -> i128 {
    let span_us = i128::from(level.span_us().unwrap_or(1));
    (i128::from(taken_at_us).div_euclid(span_us) + 1) * span_us
}

/// Whether something is not older than this. `None` is for ever, and what is dated in the future is not old.
fn is_younger(dated_us: i128, now_us: i64, for_ms: Option<u64>) -> bool {
    let age_us = i128::from(now_us) - dated_us;
    for_ms.is_none_or(|for_ms| age_us <= i128::from(for_ms) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;
    const DAY_US: i64 = 24 * HOUR_US;

    /// Keeps nothing but the newest.
    const NOTHING: RetentionPolicy = RetentionPolicy {
        everything_for_ms: 0,
        hourly_for_ms: 0,
        daily_for_ms: 0,
        monthly_for_ms: Some(0),
        latest: 0,
        hourly: 0,
        daily: 0,
        monthly: 0,
    };

    fn point(seq: u64, parent_seq: u64, level: Level, taken_at_us: i64) -> PointInfo {
        PointInfo { seq, parent_seq, level, taken_at_us, pinned: false }
    }

    #[track_caller]
    fn check(points: &[PointInfo], now_us: i64, policy: RetentionPolicy, [keep, carry, forget]: [&[u64]; 3]) {
        let plan = plan_retention(points, now_us, &policy);
        assert_eq!(
            (plan.keep.as_slice(), plan.carry.as_slice(), plan.forget.as_slice()),
            (keep, carry, forget)
        );
    }

    #[test]
    fn nothing_comes_of_nothing() {
        check(&[], 0, RetentionPolicy::default(), [&[], &[], &[]]);
    }

    #[test]
    fn the_newest_point_is_kept_with_its_chain_whatever_the_policy() {
        let points = [
            point(1, 0, Level::Base, 0),
            point(2, 1, Level::Entry, 0),
            point(3, 1, Level::Dozen, 0),
            point(4, 3, Level::Entry, 0),
        ];
        check(&points, 1000 * DAY_US, NOTHING, [&[4], &[3, 1], &[2]]);
    }

    #[test]
    fn a_point_is_kept_for_as_long_as_its_level_says() {
        let policy =
            RetentionPolicy { latest: 0, hourly: 0, daily: 0, monthly: 0, ..RetentionPolicy::default() };
        let points = [
            point(1, 0, Level::Base, 0),
            point(2, 1, Level::Day, DAY_US),
            point(3, 2, Level::Hour, DAY_US + HOUR_US),
            point(4, 3, Level::Entry, DAY_US + HOUR_US + 1),
            point(5, 0, Level::Base, 1000 * DAY_US),
        ];
        let at = DAY_US + HOUR_US;
        check(&points, at + 2 * DAY_US, policy, [&[5, 4, 3, 2, 1], &[], &[]]);
        check(&points, at + 2 * DAY_US + 2, policy, [&[5, 3, 2, 1], &[], &[4]]);
        // their hour ends at `at + HOUR_US`, and their day at `2 * DAY_US`
        check(&points, at + HOUR_US + 14 * DAY_US, policy, [&[5, 3, 2, 1], &[], &[4]]);
        check(&points, at + HOUR_US + 14 * DAY_US + 1, policy, [&[5, 2, 1], &[], &[4, 3]]);
        check(&points, 92 * DAY_US, policy, [&[5, 2, 1], &[], &[4, 3]]);
        check(&points, 92 * DAY_US + 1, policy, [&[5, 1], &[], &[4, 3, 2]]);
        check(&points, at + 100_000 * DAY_US, policy, [&[5, 1], &[], &[4, 3, 2]]);
    }

    #[test]
    fn months_end_where_the_policy_says_so() {
        let policy = RetentionPolicy { monthly_for_ms: Some(365 * DAY_MS), ..NOTHING };
        let points = [point(1, 0, Level::Base, 0), point(2, 0, Level::Base, 400 * DAY_US)];
        // the first month has 28 days
        check(&points, 393 * DAY_US, policy, [&[2, 1], &[], &[]]);
        check(&points, 393 * DAY_US + 1, policy, [&[2], &[], &[1]]);
    }

    #[test]
    fn of_several_bases_in_a_month_the_first_stays_for_ever() {
        let points: Vec<PointInfo> =
            (1..=6).map(|seq| point(seq, 0, Level::Base, seq as i64 * 5 * DAY_US)).collect();
        let policy = RetentionPolicy { monthly_for_ms: None, ..NOTHING };
        // the sixth begins the second month
        check(&points, 9999 * DAY_US, policy, [&[6, 1], &[], &[5, 4, 3, 2]]);
    }

    #[test]
    fn a_base_stands_for_its_month_rather_than_the_month_itself() {
        let points = [
            point(1, 0, Level::Base, 0),
            point(2, 1, Level::Month, 28 * DAY_US),
            point(3, 0, Level::Base, 40 * DAY_US),
            point(4, 3, Level::Month, 56 * DAY_US),
        ];
        let policy = RetentionPolicy { monthly_for_ms: None, ..NOTHING };
        check(&points, 9999 * DAY_US, policy, [&[4, 3, 1], &[], &[2]]);
    }

    #[test]
    fn counts_hold_whatever_the_clock_says() {
        let points: Vec<PointInfo> = (1..=9)
            .map(|seq| {
                let level = if seq % 3 == 1 { Level::Month } else { Level::Hour };
                point(seq, if seq == 1 { 0 } else { seq - 1 }, level, 0)
            })
            .collect();
        let policy = RetentionPolicy { latest: 2, monthly: 2, ..NOTHING };
        check(&points, i64::MAX, policy, [&[9, 8, 7, 4], &[6, 5, 3, 2, 1], &[]]);
    }

    #[test]
    fn pinned_points_stay_with_their_chain() {
        let mut points = [
            point(1, 0, Level::Base, 0),
            point(2, 1, Level::Entry, 0),
            point(3, 2, Level::Entry, 0),
            point(4, 3, Level::Entry, 0),
            point(5, 0, Level::Base, 0),
        ];
        points[2].pinned = true;
        check(&points, 1000 * DAY_US, NOTHING, [&[5, 3], &[2, 1], &[4]]);
    }

    #[test]
    fn a_point_dated_in_the_future_is_not_old() {
        let points = [
            point(1, 0, Level::Base, 5000 * DAY_US),
            point(2, 1, Level::Entry, 5000 * DAY_US),
            point(3, 0, Level::Base, DAY_US),
        ];
        check(&points, DAY_US, NOTHING, [&[3, 2, 1], &[], &[]]);
        check(&points, i64::MIN, NOTHING, [&[3, 2, 1], &[], &[]]);
    }

    #[test]
    fn a_point_without_its_parent_is_kept_by_age_and_takes_nobodys_place() {
        let policy = RetentionPolicy { everything_for_ms: DAY_MS, latest: 2, ..NOTHING };
        let points = [
            point(1, 0, Level::Base, 0),
            point(2, 1, Level::Entry, 0),
            point(5, 4, Level::Entry, 0),
            point(6, 5, Level::Entry, 0),
            point(7, 4, Level::Entry, 0),
        ];
        check(&points, DAY_US, policy, [&[7, 6, 5, 2, 1], &[], &[]]);
        check(&points, DAY_US + 1, policy, [&[7, 2, 1], &[], &[6, 5]]);
    }

    #[test]
    fn a_point_without_its_parent_is_kept_for_as_long_as_its_level_says() {
        let policy = RetentionPolicy { hourly_for_ms: DAY_MS, ..NOTHING };
        let points = [
            point(1, 0, Level::Base, 0),
            point(3, 2, Level::Entry, 0),
            point(4, 2, Level::Hour, 0),
            point(5, 0, Level::Base, DAY_US),
        ];
        let end_of_hour = HOUR_US + DAY_US;
        check(&points, end_of_hour, policy, [&[5, 4, 1], &[], &[3]]);
        check(&points, end_of_hour + 1, policy, [&[5], &[], &[4, 3, 1]]);
    }

    /// The clock was set back within the hour: the one of the hour is dated before others of it.
    #[test]
    fn when_the_one_of_an_hour_goes_none_of_that_hour_takes_its_place() {
        let policy = RetentionPolicy { hourly_for_ms: DAY_MS, ..NOTHING };
        let points = [
            point(1, 0, Level::Base, 0),
            point(2, 1, Level::Hour, HOUR_US + 9),
            point(3, 1, Level::Day, HOUR_US),
            point(4, 0, Level::Base, 40 * HOUR_US),
        ];
        check(&points, 26 * HOUR_US, policy, [&[4, 3], &[1], &[2]]);
        let after = 26 * HOUR_US + 1;
        check(&points, after, policy, [&[4], &[], &[3, 2, 1]]);
        let half_deleted = [points[0], points[1], points[3]];
        check(&half_deleted, after, policy, [&[4], &[], &[2, 1]]);
    }

    #[test]
    fn the_newest_that_restores_is_kept_beside_the_newest() {
        let points =
            [point(1, 0, Level::Base, 0), point(2, 1, Level::Entry, 0), point(4, 3, Level::Entry, 0)];
        check(&points, DAY_US, NOTHING, [&[4, 2], &[1], &[]]);
    }

    #[test]
    fn parents_that_are_not_older_end_no_walk_and_carry_nothing() {
        let points =
            [point(1, 1, Level::Entry, 0), point(2, 3, Level::Entry, 0), point(3, u64::MAX, Level::Entry, 0)];
        check(&points, DAY_US, NOTHING, [&[3], &[], &[2, 1]]);
    }

    #[test]
    fn of_two_points_with_one_number_the_last_counts() {
        let points = [point(1, 0, Level::Base, 0), point(1, 0, Level::Base, 7), point(1, 0, Level::Base, 9)];
        check(&points, DAY_US, NOTHING, [&[1], &[], &[]]);
    }
}
