//! Whatever the points, the policy and the clock: the newest stays, chains stay whole, nothing is in two lists.

use std::collections::{BTreeMap, BTreeSet};

use chatkeep_planner::{
    ChainLink, EntryPlan, Level, LevelPolicy, PointInfo, RetentionPlan, RetentionPolicy, advance_chain,
    plan_entry, plan_restore, plan_retention,
};
use proptest::prelude::*;

const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;
const START_US: i64 = 20_000 * DAY_US;

/// One entry: how far the clock moved, whether it is pinned, how far below its plan it is.
type Step = (i64, bool, u8);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let clock = prop_oneof![
        4 => 0..HOUR_US / 10,
        4 => 0..2 * HOUR_US,
        2 => 0..3 * DAY_US,
        1 => -DAY_US..DAY_US,
        1 => -300 * DAY_US..300 * DAY_US,
    ];
    let pinned = prop::bool::weighted(0.02);
    let below = prop_oneof![9 => Just(0_u8), 1 => 1..4_u8];
    prop::collection::vec((clock, pinned, below), 1..300)
}

/// The log a daemon writes.
fn log(steps: &[Step]) -> Vec<PointInfo> {
    let mut chain: Vec<ChainLink> = Vec::new();
    let mut now_us = START_US;
    let mut points = Vec::new();
    for (seq, (step_us, pinned, below)) in (1..).zip(steps) {
        now_us += step_us;
        let due = plan_entry(&chain, now_us, LevelPolicy::default()).level;
        let level = Level::from_number(due.number().saturating_sub(*below)).expect("it is below a level");
        let EntryPlan { level, parent_seq } = EntryPlan::at_level(&chain, level);
        advance_chain(&mut chain, parent_seq, ChainLink { seq, level, taken_at_us: now_us, bytes: 100_000 });
        points.push(PointInfo { seq, parent_seq, level, taken_at_us: now_us, pinned: *pinned });
    }
    points
}

fn policy() -> impl Strategy<Value = RetentionPolicy> {
    let days = |most: u64| (0..most).prop_map(|days| days * 86_400_000);
    let ages = (days(3), days(20), days(100), prop::option::of(days(400)));
    let counts = (0..20_usize, 0..10_usize, 0..10_usize, 0..4_usize);
    let by_both = (ages, counts).prop_map(|(ages, counts)| RetentionPolicy {
        everything_for_ms: ages.0,
        hourly_for_ms: ages.1,
        daily_for_ms: ages.2,
        monthly_for_ms: ages.3,
        latest: counts.0,
        hourly: counts.1,
        daily: counts.2,
        monthly: counts.3,
    });
    prop_oneof![4 => by_both, 1 => Just(RetentionPolicy::default())]
}

/// When the plan is made, from the newest entry.
fn later() -> impl Strategy<Value = i64> {
    prop_oneof![3 => 0..400 * DAY_US, 1 => -400 * DAY_US..0, 1 => Just(10_000 * DAY_US)]
}

fn check_lists(points: &[PointInfo], plan: &RetentionPlan) {
    let mut listed: Vec<u64> =
        [&plan.keep, &plan.carry, &plan.forget].into_iter().flatten().copied().collect();
    listed.sort_unstable();
    let seqs: BTreeSet<u64> = points.iter().map(|point| point.seq).collect();
    assert!(listed.iter().eq(&seqs), "{listed:?} of {seqs:?}");
    let staying: BTreeSet<u64> = plan.keep.iter().chain(&plan.carry).copied().collect();
    assert!(points.iter().filter(|point| point.pinned).all(|point| staying.contains(&point.seq)));
    assert!(seqs.last().is_none_or(|newest| plan.keep.contains(newest)));
}

/// All these points restore, out of these alone.
fn check_whole(points: &[PointInfo], seqs: impl IntoIterator<Item = u64>) {
    let parents: BTreeMap<u64, u64> = points.iter().map(|point| (point.seq, point.parent_seq)).collect();
    for seq in seqs {
        let plan = plan_restore(seq, |seq| parents.get(&seq).copied());
        assert!(plan.is_ok(), "{plan:?}");
    }
}

fn without(points: &[PointInfo], gone: &[u64]) -> Vec<PointInfo> {
    points.iter().filter(|point| !gone.contains(&point.seq)).copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_stays_restores_and_the_newest_and_pinned_stay(
        (steps, policy, later_us) in (steps(), policy(), later()),
    ) {
        let points = log(&steps);
        let now_us = points[points.len() - 1].taken_at_us + later_us;
        let plan = plan_retention(&points, now_us, &policy);
        check_lists(&points, &plan);
        let rest = without(&points, &plan.forget);
        check_whole(&rest, rest.iter().map(|point| point.seq));
    }

    /// A crash between two deletions leaves no point without its parents, not even one that was to go.
    #[test]
    fn a_deletion_that_ends_early_leaves_whole_chains(
        (steps, policy, later_us) in (steps(), policy(), later()),
        part in 0.0..1.0_f64,
    ) {
        let points = log(&steps);
        let now_us = points[points.len() - 1].taken_at_us + later_us;
        let plan = plan_retention(&points, now_us, &policy);
        let deleted = (plan.forget.len() as f64 * part) as usize;
        let rest = without(&points, &plan.forget[..deleted]);
        check_whole(&rest, rest.iter().map(|point| point.seq));
        // and what is to stay is the same as before
        let again = plan_retention(&rest, now_us, &policy);
        prop_assert_eq!(&again.keep, &plan.keep);
        prop_assert_eq!(&again.carry, &plan.carry);
        prop_assert_eq!(&again.forget[..], &plan.forget[deleted..]);
    }

    /// Entries written after the plan was made find their parents among what stays.
    #[test]
    fn a_plan_stays_right_while_the_log_grows(
        (before, after, policy, later_us) in (steps(), steps(), policy(), later()),
    ) {
        let steps = [before.clone(), after].concat();
        let points = log(&steps);
        let known = &points[..before.len()];
        let now_us = known[known.len() - 1].taken_at_us + later_us;
        let plan = plan_retention(known, now_us, &policy);
        let rest = without(&points, &plan.forget);
        check_whole(&rest, rest.iter().map(|point| point.seq));
    }

    /// Young points and points dated in the future stay, by the words of the policy.
    #[test]
    fn nothing_young_is_forgotten((steps, policy, later_us) in (steps(), policy(), later())) {
        let points = log(&steps);
        let now_us = points[points.len() - 1].taken_at_us + later_us;
        let plan = plan_retention(&points, now_us, &policy);
        let young_us = now_us - policy.everything_for_ms as i64 * 1000;
        let latest = &points[points.len().saturating_sub(policy.latest.max(1))..];
        let must_stay = points.iter().filter(|point| point.taken_at_us >= young_us).chain(latest);
        for point in must_stay {
            prop_assert!(plan.keep.contains(&point.seq), "{point:?}");
        }
    }

    /// Every hour (day, month) that the policy covers and that has a point of its level keeps one of it.
    #[test]
    fn every_span_of_time_keeps_a_point((steps, policy, later_us) in (steps(), policy(), later())) {
        let points = log(&steps);
        let now_us = points[points.len() - 1].taken_at_us + later_us;
        let plan = plan_retention(&points, now_us, &policy);
        let classes = [
            (Level::Hour, Some(policy.hourly_for_ms)),
            (Level::Day, Some(policy.daily_for_ms)),
            (Level::Month, policy.monthly_for_ms),
        ];
        for (level, for_ms) in classes {
            let span_us = level.span_us().expect("a level with a span");
            let since_us = for_ms.map_or(i64::MIN, |for_ms| now_us - for_ms as i64 * 1000);
            let covered = |point: &&PointInfo| point.level >= level && point.taken_at_us - span_us >= since_us;
            let buckets: BTreeSet<_> =
                points.iter().filter(covered).map(|point| level.bucket(point.taken_at_us)).collect();
            let kept: BTreeSet<_> = points
                .iter()
                .filter(|point| plan.keep.contains(&point.seq))
                .map(|point| level.bucket(point.taken_at_us))
                .collect();
            prop_assert!(buckets.is_subset(&kept), "{level:?}");
        }
    }

    /// Some points are missing, and their children with holes in their chains: no panic, and whole ones stay whole.
    #[test]
    fn points_with_missing_parents_are_handled(
        (steps, policy, later_us) in (steps(), policy(), later()),
        missing in prop::collection::btree_set(1..300_u64, 0..20),
    ) {
        let mut points = log(&steps);
        let now_us = points[points.len() - 1].taken_at_us + later_us;
        points.retain(|point| !missing.contains(&point.seq));
        let parents: BTreeMap<u64, u64> = points.iter().map(|point| (point.seq, point.parent_seq)).collect();
        let restores = |seq: u64, parents: &BTreeMap<u64, u64>| {
            plan_restore(seq, |seq| parents.get(&seq).copied()).is_ok()
        };
        let plan = plan_retention(&points, now_us, &policy);
        check_lists(&points, &plan);
        let rest = without(&points, &plan.forget);
        let parents_left = rest.iter().map(|point| (point.seq, point.parent_seq)).collect();
        for point in &rest {
            prop_assert_eq!(restores(point.seq, &parents), restores(point.seq, &parents_left));
        }
        let restoring = points.iter().rev().map(|point| point.seq).filter(|seq| restores(*seq, &parents));
        for seq in restoring.take(policy.latest.max(1)) {
            prop_assert!(plan.keep.contains(&seq), "{seq} is one of the latest that restore");
        }
        prop_assert_eq!(plan_retention(&rest, now_us, &policy).forget, Vec::<u64>::new());
    }

    /// Points that nobody wrote: any numbers, any parents.
    #[test]
    fn no_points_make_it_panic(
        points in prop::collection::vec(
            (0..20_u64, 0..20_u64, 0..9_u8, any::<i64>(), any::<bool>()), 0..40),
        now_us in any::<i64>(),
        policy in policy(),
    ) {
        let points: Vec<PointInfo> = points
            .into_iter()
            .filter_map(|(seq, parent_seq, level, taken_at_us, pinned)| {
                Some(PointInfo { seq, parent_seq, level: Level::from_number(level)?, taken_at_us, pinned })
            })
            .collect();
        let last_of_each: BTreeMap<u64, PointInfo> = points.iter().map(|point| (point.seq, *point)).collect();
        let plan = plan_retention(&points, now_us, &policy);
        check_lists(&last_of_each.into_values().collect::<Vec<_>>(), &plan);
    }
}
