//! However the clock runs and whatever entries take, chains stay short and whole.

use chatkeep_planner::levels::CHAIN_LINKS_MAX;
use chatkeep_planner::{
    ChainLink, EntryPlan, Level, LevelPolicy, advance_chain, chain_of, plan_entry, plan_restore,
};
use proptest::prelude::*;

const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3600 * SECOND_US;
const DAY_US: i64 = 24 * HOUR_US;

/// The policy of a database so large that bytes alone never make a base due.
const BY_COUNT: LevelPolicy = LevelPolicy { base_floor_bytes: u64::MAX };

/// A log, with what every entry names, and the chain as a daemon carries it along.
struct Log {
    parents: Vec<u64>,
    chain: Vec<ChainLink>,
    now_us: i64,
    policy: LevelPolicy,
}

impl Log {
    fn new(now_us: i64, policy: LevelPolicy) -> Self {
        Self { parents: vec![0], chain: Vec::new(), now_us, policy }
    }

    fn plan(&self) -> EntryPlan {
        plan_entry(&self.chain, self.now_us, self.policy)
    }

    fn write(&mut self, plan: EntryPlan, bytes: u64) {
        let seq = self.parents.len() as u64;
        let newest = ChainLink { seq, level: plan.level, taken_at_us: self.now_us, bytes };
        assert!(plan.parent_seq < seq);
        assert_eq!(plan.parent_seq == 0, plan.level == Level::Base);
        self.parents.push(plan.parent_seq);
        advance_chain(&mut self.chain, plan.parent_seq, newest);
        assert!(self.chain.is_sorted_by_key(|link| link.level), "levels fall from child to parent");
    }

    /// The chain carried along is the one that the entries name.
    fn check_chain(&self) {
        let newest = self.parents.len() as u64 - 1;
        let parent_of = |seq: u64| self.parents.get(usize::try_from(seq).unwrap_or(0)).copied();
        let seqs: Vec<u64> = self.chain.iter().map(|link| link.seq).collect();
        assert_eq!(chain_of(newest, parent_of).as_ref(), Ok(&seqs));
        assert_eq!(plan_restore(newest, parent_of).map(|plan| plan.entries), Ok(seqs));
    }

    fn bytes_above_base(&self) -> u64 {
        self.chain.iter().filter(|link| link.level < Level::Base).map(|link| link.bytes).sum()
    }
}

/// How the clock moves from one entry to the next: bursts, pauses, and jumps of a clock that is set.
fn clock_step() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => 0..10 * SECOND_US,
        3 => 0..2 * HOUR_US,
        2 => 0..3 * DAY_US,
        1 => -2 * HOUR_US..2 * HOUR_US,
        1 => -400 * DAY_US..400 * DAY_US,
        1 => Just(i64::MIN / 4),
        1 => Just(i64::MAX / 4),
    ]
}

/// Several entries that come at one pace.
fn stretch() -> impl Strategy<Value = (i64, usize)> {
    (clock_step(), prop_oneof![4 => 1..4_usize, 1 => 1..400_usize])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// 58 entries at most, at any point, whatever the clock does.
    #[test]
    fn a_chain_carried_out_as_planned_is_at_most_58_entries(
        stretches in prop::collection::vec(stretch(), 1..60),
    ) {
        let mut log = Log::new(1_800_000_000 * SECOND_US, BY_COUNT);
        for (step_us, entries) in stretches {
            for _ in 0..entries {
                log.now_us = log.now_us.saturating_add(step_us);
                log.write(log.plan(), 1);
                prop_assert!(log.chain.len() <= CHAIN_LINKS_MAX, "{} entries", log.chain.len());
            }
            log.check_chain();
        }
    }

    /// Entries below their plan make a chain longer by one each, until one is as planned: 66 for eight of them.
    #[test]
    fn a_plan_that_comes_late_costs_one_entry_for_each_it_is_late(
        stretches in prop::collection::vec(stretch(), 1..40),
        lateness in prop::collection::vec((0..=8_usize, 0..9_u8), 1..50),
    ) {
        let mut log = Log::new(1_800_000_000 * SECOND_US, BY_COUNT);
        let mut lateness = lateness.into_iter().cycle();
        let mut below_plan = 0;
        let mut allowed = 0;
        for (step_us, entries) in stretches {
            for _ in 0..entries {
                log.now_us = log.now_us.saturating_add(step_us);
                let mut plan = log.plan();
                let is_promotion = plan.level > Level::Entry && !log.chain.is_empty();
                if is_promotion && below_plan == 0 {
                    allowed = lateness.next().map_or(0, |it| it.0);
                }
                if is_promotion && below_plan < allowed {
                    let instead = lateness.next().map_or(0, |it| it.1) % plan.level.number();
                    let instead = Level::from_number(instead).expect("it is below a level");
                    plan = EntryPlan::at_level(&log.chain, instead);
                    below_plan += 1;
                } else {
                    below_plan = 0;
                }
                log.write(plan, 1);
                prop_assert!(log.chain.len() <= CHAIN_LINKS_MAX + below_plan);
            }
            log.check_chain();
        }
    }

    /// What is due does not go away by writing something lower, on a clock that runs forward.
    #[test]
    fn a_plan_that_is_put_off_does_not_get_lower(
        stretches in prop::collection::vec((0..3 * DAY_US, 1..300_usize), 1..40),
        instead in prop::collection::vec(0..9_u8, 1..9),
    ) {
        let mut log = Log::new(1_800_000_000 * SECOND_US, BY_COUNT);
        for (step_us, entries) in stretches {
            for _ in 0..entries {
                log.now_us = log.now_us.saturating_add(step_us);
                log.write(log.plan(), 1);
            }
        }
        let due = log.plan();
        for instead in instead.into_iter().filter(|level| *level < due.level.number()) {
            let level = Level::from_number(instead).expect("it is below a level");
            log.write(EntryPlan::at_level(&log.chain, level), 1);
            log.now_us = log.now_us.saturating_add(SECOND_US);
            prop_assert!(log.plan().level >= due.level, "{:?} after {due:?}", log.plan());
        }
    }

    /// Behind the newest entry's date, only counts promote: the plan is that of a chain that was all written just now.
    #[test]
    fn a_clock_that_goes_back_makes_nothing_due(
        stretches in prop::collection::vec(stretch(), 1..40),
        back_us in 1..1000 * DAY_US,
    ) {
        let mut log = Log::new(1_800_000_000 * SECOND_US, BY_COUNT);
        for (step_us, entries) in stretches {
            for _ in 0..entries {
                log.now_us = log.now_us.saturating_add(step_us);
                log.write(log.plan(), 1);
            }
        }
        let back_us = log.now_us.saturating_sub(back_us);
        let back = plan_entry(&log.chain, back_us, log.policy);
        log.chain.iter_mut().for_each(|link| link.taken_at_us = back_us);
        prop_assert_eq!(back, plan_entry(&log.chain, back_us, log.policy));
    }

    /// Twice the base (or base and floor), and the one entry that went over.
    #[test]
    fn a_restore_reads_about_twice_the_base(
        entries in prop::collection::vec((clock_step(), 0..3_000_000_u64), 1..400),
        base_bytes in 1..20_000_000_u64,
    ) {
        let policy = LevelPolicy::default();
        let mut log = Log::new(1_800_000_000 * SECOND_US, policy);
        for (step_us, bytes) in entries {
            log.now_us = log.now_us.saturating_add(step_us);
            let plan = log.plan();
            log.write(plan, if plan.level == Level::Base { base_bytes } else { bytes });
            prop_assert!(log.bytes_above_base() <= base_bytes.max(policy.base_floor_bytes) + bytes);
        }
    }

    /// Links in any order, of any level: a plan comes out, and its parent is in the chain.
    #[test]
    fn a_chain_that_nobody_wrote_gives_a_plan_all_the_same(
        links in prop::collection::vec((any::<u64>(), 0..9_u8, any::<i64>(), any::<u64>()), 0..100),
        now_us in any::<i64>(),
    ) {
        let chain: Vec<ChainLink> = links
            .into_iter()
            .filter_map(|(seq, level, taken_at_us, bytes)| {
                Some(ChainLink { seq, level: Level::from_number(level)?, taken_at_us, bytes })
            })
            .collect();
        let plan = plan_entry(&chain, now_us, LevelPolicy::default());
        let parent = chain.iter().find(|link| link.seq == plan.parent_seq && link.level >= plan.level);
        prop_assert!(plan.level == Level::Base || parent.is_some());
    }
}

/// What the runs of the levels are made for: with a good clock nothing above the gross is due by count.
#[test]
fn a_year_of_hours_has_the_levels_of_its_calendar() {
    let mut log = Log::new(0, BY_COUNT);
    let mut written = [0_u32; 9];
    for hour in 0..364 * 24 {
        for entry in 0..5 {
            log.now_us = hour * HOUR_US + entry * 700 * SECOND_US;
            let plan = log.plan();
            written[usize::from(plan.level.number())] += 1;
            log.write(plan, 1);
        }
    }
    let [.., hours, quarters, days, weeks, months, bases] = written;
    assert_eq!((bases, months, weeks, days), (2, 13 - 2, 52 - 13, 364 - 52));
    assert_eq!((quarters, hours), (364 * 4 - 364, 364 * 24 - 364 * 4));
}

/// The bound is met, not only kept: counts alone fill the lower runs.
#[test]
fn a_day_of_one_entry_a_second_keeps_a_chain_of_at_most_58() {
    let mut log = Log::new(0, BY_COUNT);
    let mut longest = 0;
    for second in 0..86_400 {
        log.now_us = second * SECOND_US;
        log.write(log.plan(), 1);
        longest = longest.max(log.chain.len());
    }
    assert!((40..=CHAIN_LINKS_MAX).contains(&longest), "{longest} entries");
}
