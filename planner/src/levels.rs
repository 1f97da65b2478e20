//! Which entry comes next: what it holds and whose child it is.
//!
//! An entry holds every page that changed since its *parent*, an older entry. Its *level* says how far back that is: a
//! plain [`Level::Entry`] has the newest entry as parent; one of a higher level has the newest entry whose level is at
//! least its own, so that later restores jump over everything in between. A [`Level::Base`] has no parent and holds
//! every page. From any entry over its parents down to the base levels never fall, and that way, the *chain*, is what a
//! restore of that entry reads:
//!
//! ```text
//! seq      1     2 … 12   13     14 … 24   25     26   27
//! level    base  0 …  0   dozen   0 …  0   dozen   0    0      chain of 27: 27 26 25 13 1
//! ```
//!
//! How long a chain gets follows from the longest runs of one level ([`Level::run_max`]):
//!
//! | level | is due after | or when this begins (UTC) | longest run |
//! | --- | --- | --- | --- |
//! | entry | | | 11 |
//! | dozen | 12 entries | | 11 |
//! | gross | 12 dozens | | 12 |
//! | hour | 13 grosses (1872 entries) | an hour | 5 |
//! | quarter of a day | 6 hours | 6 hours | 3 |
//! | day | 4 quarters | a day | 6 |
//! | week | 7 days | a week, on a Thursday as 1970 did | 3 |
//! | month | 4 weeks | 28 days, counted from 1970 | 6 |
//! | base | 7 months | 196 days, counted from 1970 | 1 |
//!
//! 11 + 11 + 12 + 5 + 3 + 6 + 3 + 6 + 1 = 58 entries, [`CHAIN_LINKS_MAX`]; issue 3 asks for 60 at most. The runs are
//! such that with a clock that runs well nothing is due by count above the gross: 24 hours are a day, 4 weeks a month
//! of 28 days. 13 grosses are more than one entry every two seconds for an hour, which is the most that captures make.

use crate::restore::ChainError;

/// The longest chain, in entries, when every plan is carried out at once.
///
/// A plan that comes late costs one entry more for each entry that was written at a lower level than planned since the
/// last one that was as planned; [`plan_entry`] says why that is all.
pub const CHAIN_LINKS_MAX: usize = 58;

/// The longest chain a reader follows, in entries. Far above what is written, so that a daemon that was late for
/// months writes nothing that cannot be read; there to end the work for numbers made up by a store.
pub const CHAIN_LINKS_READ_MAX: usize = 65_536;

const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3600 * SECOND_US;
const DAY_US: i64 = 24 * HOUR_US;

/// How much of the past an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// What changed since the entry before.
    Entry = 0,
    /// What 12 entries hold.
    Dozen = 1,
    /// What 12 dozens hold.
    Gross = 2,
    /// An hour.
    Hour = 3,
    /// Six hours.
    QuarterDay = 4,
    /// A day.
    Day = 5,
    /// Seven days.
    Week = 6,
    /// Four weeks.
    Month = 7,
    /// Everything. Has no parent.
    Base = 8,
}

impl Level {
    /// All of them, lowest first.
    pub const ALL: [Self; 9] = [
        Self::Entry,
        Self::Dozen,
        Self::Gross,
        Self::Hour,
        Self::QuarterDay,
        Self::Day,
        Self::Week,
        Self::Month,
        Self::Base,
    ];

    /// The level with this number, as an entry names it.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The most entries of this level in a row in a chain.
    pub fn run_max(self) -> usize {
        match self {
            Self::Gross => 12,
            Self::Entry | Self::Dozen => 11,
            Self::Day | Self::Month => 6,
            Self::Hour => 5,
            Self::QuarterDay | Self::Week => 3,
            Self::Base => 1,
        }
    }

    /// The span of time one entry of this level stands for, in microseconds; `None` for those that go by count alone.
    pub fn span_us(self) -> Option<i64> {
        match self {
            Self::Entry | Self::Dozen | Self::Gross => None,
            Self::Hour => Some(HOUR_US),
            Self::QuarterDay => Some(6 * HOUR_US),
            Self::Day => Some(DAY_US),
            Self::Week => Some(7 * DAY_US),
            Self::Month => Some(28 * DAY_US),
            Self::Base => Some(196 * DAY_US),
        }
    }

    /// The number of the span of this level that `time_us` (µs since 1970, UTC) lies in.
    ///
    /// No calendar and no time zone: months of 28 days begin with a week, as weeks with a day and days with an hour.
    pub fn bucket(self, time_us: i64) -> Option<i64> {
        self.span_us().map(|span_us| time_us.div_euclid(span_us))
    }

    fn next(self) -> Self {
        Self::from_number(self.number() + 1).unwrap_or(Self::Base)
    }
}

/// One entry of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainLink {
    /// Its number.
    pub seq: u64,
    /// Its level.
    pub level: Level,
    /// When it was captured by the clock of the device, µs since 1970.
    pub taken_at_us: i64,
    /// What it takes in the store with its packs, in bytes.
    pub bytes: u64,
}

/// The user's choice about entries. How long a chain gets is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelPolicy {
    /// A chain may have this many bytes above its base, however small the base is.
    pub base_floor_bytes: u64,
}

impl Default for LevelPolicy {
    fn default() -> Self {
        Self { base_floor_bytes: 4 << 20 }
    }
}

/// What the next entry is.
#[must_use = "a plan does nothing until it is carried out"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPlan {
    /// Its level.
    pub level: Level,
    /// The entry since which it holds what changed; 0 for a base, which has none.
    pub parent_seq: u64,
}

impl EntryPlan {
    /// The next entry at `level`, whatever is due: for a daemon that cannot carry out the plan in time.
    ///
    /// A chain without an entry of at least that level has no base; then the entry must be one.
    pub fn at_level(chain: &[ChainLink], level: Level) -> Self {
        match chain.iter().find(|link| link.level >= level) {
            Some(parent) if level < Level::Base => Self { level, parent_seq: parent.seq },
            _ => Self { level: Level::Base, parent_seq: 0 },
        }
    }
}

/// Decides about the next entry, to be captured now.
///
/// `chain` is that of the newest entry, newest first, down to its base; empty before the first entry. The highest
/// level that is due wins:
/// - a level is due by count when the run of the level below is full and would get one more;
/// - from the hour on it is due by time when `now_us` lies in a later hour (day …) than the newest entry of at least
///   that level. While the clock is behind the newest entry nothing is due by time. An entry dated in the future, by a
///   clock that was wrong, does not stop the count of hours: then time is counted from the earliest entry after it;
/// - a base is due as well when the entries above the last one take more bytes than it does, so that a restore reads
///   about twice the database at most.
///
/// The daemon may carry out a lower plan ([`EntryPlan::at_level`]) and ask again. What was due by count stays due, since
/// an overlong run only goes away by an entry of a higher level; so does what was due by time, unless the clock is set.
/// Every entry below its plan makes the chain longer by one at most, and the first one as planned makes all runs
/// regular again: 58 + 8 entries at most if every plan is carried out eight entries late.
pub fn plan_entry(chain: &[ChainLink], now_us: i64, policy: LevelPolicy) -> EntryPlan {
    let level = if is_base_due(chain, policy) {
        Level::Base
    } else {
        due_by_count(chain, due_by_time(chain, now_us))
    };
    EntryPlan::at_level(chain, level)
}

/// Brings the chain of the newest entry up to date after the next one: those that it jumps over go.
pub fn advance_chain(chain: &mut Vec<ChainLink>, parent_seq: u64, newest: ChainLink) {
    chain.retain(|link| link.seq <= parent_seq);
    chain.insert(0, newest);
}

/// The numbers of the entries that a restore of `seq` reads, newest first, down to its base.
///
/// `parent_of` gives the parent an entry names (0: none), or `None` for an entry that there is not. A parent that is
/// not older than its child is refused, so this ends for every store.
pub fn chain_of(seq: u64, mut parent_of: impl FnMut(u64) -> Option<u64>) -> Result<Vec<u64>, ChainError> {
    let mut chain = Vec::new();
    let mut next = Some(seq);
    while let Some(seq) = next {
        if chain.len() == CHAIN_LINKS_READ_MAX {
            return Err(ChainError::TooLong);
        }
        let parent = parent_of(seq).ok_or(ChainError::MissingEntry { seq })?;
        chain.push(seq);
        next = next_of_chain(seq, parent)?;
    }
    Ok(chain)
}

/// What a restore reads after entry `seq` that names `parent_seq`: its parent, or nothing more after a base.
///
/// For a reader that learns an entry's parent by reading it; [`chain_of`] is for one that knows them all.
pub fn next_of_chain(seq: u64, parent_seq: u64) -> Result<Option<u64>, ChainError> {
    match parent_seq {
        0 => Ok(None),
        parent_seq if parent_seq < seq => Ok(Some(parent_seq)),
        parent_seq => Err(ChainError::ParentNotOlder { seq, parent_seq }),
    }
}

/// Whether there is no base, or more bytes above it than a restore should read.
fn is_base_due(chain: &[ChainLink], policy: LevelPolicy) -> bool {
    let Some(base_at) = chain.iter().position(|link| link.level == Level::Base) else {
        return true;
    };
    let above = chain[..base_at].iter().fold(0_u64, |sum, link| sum.saturating_add(link.bytes));
    above > chain[base_at].bytes.max(policy.base_floor_bytes)
}

/// The highest level that is due by time; [`Level::Entry`] if none is.
fn due_by_time(chain: &[ChainLink], now_us: i64) -> Level {
    let clock_went_back = chain.first().is_some_and(|newest| now_us < newest.taken_at_us);
    if clock_went_back {
        return Level::Entry;
    }
    let is_due = |level: &Level| {
        let Some(newest_at) = chain.iter().position(|link| link.level >= *level) else {
            return false;
        };
        let since_us = if chain[newest_at].taken_at_us <= now_us {
            Some(chain[newest_at].taken_at_us)
        } else {
            chain[..newest_at].iter().map(|link| link.taken_at_us).min()
        };
        since_us.is_some_and(|since_us| level.bucket(now_us) > level.bucket(since_us))
    };
    Level::ALL.into_iter().rev().find(is_due).unwrap_or(Level::Entry)
}

/// The highest level that is due by count, or else `level`, which is due anyhow.
fn due_by_count(chain: &[ChainLink], mut level: Level) -> Level {
    // an entry behind one of a higher level counts as one of that: no chain of ours has any, and whatever a chain
    // looks like, its length is bounded
    let mut runs = [0_usize; Level::ALL.len()];
    let mut highest = Level::Entry;
    for link in chain {
        highest = highest.max(link.level);
        runs[usize::from(highest.number())] += 1;
    }
    for below in &Level::ALL[..Level::ALL.len() - 1] {
        let run = runs[usize::from(below.number())];
        let one_more = usize::from(level == *below);
        if level <= *below && run + one_more > below.run_max() {
            level = below.next();
        }
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of these runs above a base, lowest level first, all taken at `taken_at_us`, a byte each.
    fn chain(runs: &[(Level, usize)], taken_at_us: i64) -> Vec<ChainLink> {
        let levels = runs.iter().flat_map(|(level, run)| std::iter::repeat_n(*level, *run));
        let levels: Vec<Level> = levels.chain([Level::Base]).collect();
        let newest = levels.len() as u64;
        let link = |(at, level)| ChainLink { seq: newest - at, level, taken_at_us, bytes: 1 };
        (0..).zip(levels).map(link).collect()
    }

    /// Every run below `level` as long as it gets.
    fn full_below(level: Level) -> Vec<(Level, usize)> {
        Level::ALL.into_iter().filter(|it| *it < level).map(|it| (it, it.run_max())).collect()
    }

    #[track_caller]
    fn check(chain: &[ChainLink], now_us: i64, level: Level, parent_seq: u64) {
        let plan = plan_entry(chain, now_us, LevelPolicy::default());
        assert_eq!(plan, EntryPlan { level, parent_seq });
    }

    #[test]
    fn the_first_entry_is_a_base() {
        check(&[], 0, Level::Base, 0);
    }

    #[test]
    fn the_next_entry_follows_the_newest() {
        check(&chain(&[], 0), 5, Level::Entry, 1);
        check(&chain(&[(Level::Entry, 10)], 0), 5, Level::Entry, 11);
    }

    #[test]
    fn the_twelfth_entry_is_a_dozen_that_holds_what_all_hold() {
        check(&chain(&[(Level::Entry, 11)], 0), 5, Level::Dozen, 1);
        check(&chain(&[(Level::Entry, 11), (Level::Dozen, 1)], 0), 5, Level::Dozen, 2);
    }

    #[test]
    fn a_full_run_of_every_level_leads_to_the_next_one() {
        for level in Level::ALL.into_iter().skip(1) {
            let parent_seq = u64::from(level < Level::Base);
            check(&chain(&full_below(level), 0), 5, level, parent_seq);
        }
    }

    #[test]
    fn the_longest_chain_is_58_entries() {
        let longest = chain(&full_below(Level::Base), 0);
        assert_eq!(longest.len(), CHAIN_LINKS_MAX);
        assert_eq!(Level::ALL.into_iter().map(Level::run_max).sum::<usize>(), CHAIN_LINKS_MAX);
    }

    #[test]
    fn every_span_of_time_begins_with_an_entry_of_its_level() {
        let spans = [
            (HOUR_US, Level::Hour),
            (6 * HOUR_US, Level::QuarterDay),
            (DAY_US, Level::Day),
            (7 * DAY_US, Level::Week),
            (28 * DAY_US, Level::Month),
        ];
        for (begins_us, level) in spans {
            let before = chain(&[(Level::Entry, 3)], begins_us - 1);
            check(&before, begins_us - 1, Level::Entry, 4);
            check(&before, begins_us, level, 1);
            check(&chain(&[(Level::Entry, 3)], begins_us), begins_us + 1, Level::Entry, 4);
        }
        check(&chain(&[(Level::Entry, 3)], 196 * DAY_US - 1), 196 * DAY_US, Level::Base, 0);
    }

    #[test]
    fn spans_before_1970_begin_like_the_others() {
        check(&chain(&[], -1), 0, Level::Base, 0);
        check(&chain(&[], -HOUR_US - 1), -HOUR_US, Level::Hour, 1);
        check(&chain(&[], -HOUR_US), -1, Level::Entry, 1);
    }

    #[test]
    fn the_parent_is_the_newest_entry_of_at_least_the_same_level() {
        let links = chain(&[(Level::Entry, 2), (Level::Gross, 1), (Level::Day, 2)], 0);
        check(&links, HOUR_US, Level::Hour, 3);
        check(&links, DAY_US, Level::Day, 3);
        check(&links, 7 * DAY_US, Level::Week, 1);
    }

    #[test]
    fn what_is_due_stays_due_until_it_is_done() {
        let late = chain(&[(Level::Entry, 19)], 0);
        check(&late, 5, Level::Dozen, 1);
        // somebody wrote dozens where a gross was due
        let late = chain(&[(Level::Dozen, 12)], 0);
        check(&late, 5, Level::Gross, 1);
        // and entries where an hour was
        let mut late = chain(&[(Level::Entry, 5)], 0);
        late[0].taken_at_us = HOUR_US + 1;
        check(&late, HOUR_US + 2, Level::Hour, 1);
    }

    #[test]
    fn a_clock_that_goes_back_makes_nothing_due() {
        let links = chain(&[(Level::Entry, 3)], 50 * DAY_US);
        for back_us in [1, HOUR_US, 40 * DAY_US, 60 * DAY_US] {
            check(&links, 50 * DAY_US - back_us, Level::Entry, 4);
        }
        check(&links, i64::MIN, Level::Entry, 4);
    }

    #[test]
    fn a_clock_that_goes_forth_and_back_makes_nothing_due() {
        let mut links = chain(&[(Level::Entry, 2)], 100 * DAY_US);
        links[1].taken_at_us = 50 * DAY_US;
        // two hours after the entry before the newest, days before the newest
        check(&links, 50 * DAY_US + 2 * HOUR_US, Level::Entry, 3);
    }

    #[test]
    fn levels_that_fall_down_a_chain_count_as_the_highest_before() {
        let mut links = chain(&[(Level::Day, 1), (Level::Entry, 5)], 0);
        check(&links, 5, Level::Entry, 7);
        links.splice(1..1, std::iter::repeat_n(links[1], 5));
        check(&links, 5, Level::Week, 1);
    }

    #[test]
    fn an_entry_from_a_wrong_future_does_not_stop_the_hours() {
        let mut links = chain(&[(Level::Entry, 2)], 1000 * DAY_US);
        links[0].taken_at_us = HOUR_US;
        links[1].taken_at_us = HOUR_US + 5;
        check(&links, HOUR_US + 9, Level::Entry, 3);
        check(&links, 2 * HOUR_US, Level::Hour, 1);
    }

    #[test]
    fn a_base_is_due_when_a_restore_would_read_twice_as_much() {
        let policy = LevelPolicy { base_floor_bytes: 100 };
        let level_after = |base_bytes, above_bytes| {
            let mut links = chain(&[(Level::Entry, 2)], 0);
            links[0].bytes = above_bytes - 1;
            links[2].bytes = base_bytes;
            plan_entry(&links, 0, policy).level
        };
        assert_eq!(level_after(10, 100), Level::Entry);
        assert_eq!(level_after(10, 101), Level::Base);
        assert_eq!(level_after(1000, 1000), Level::Entry);
        assert_eq!(level_after(1000, 1001), Level::Base);
        assert_eq!(level_after(u64::MAX - 1, u64::MAX), Level::Base);
    }

    #[test]
    fn a_chain_without_a_base_gets_one() {
        let mut links = chain(&[(Level::Entry, 2), (Level::Day, 1)], 0);
        links.pop();
        check(&links, 5, Level::Base, 0);
        assert_eq!(EntryPlan::at_level(&links, Level::Week), EntryPlan { level: Level::Base, parent_seq: 0 });
    }

    #[test]
    fn a_lower_level_has_the_parent_of_that_level() {
        let links = chain(&[(Level::Entry, 2), (Level::Dozen, 1), (Level::Day, 2)], 0);
        let parents = Level::ALL.map(|level| EntryPlan::at_level(&links, level).parent_seq);
        assert_eq!(parents, [6, 4, 3, 3, 3, 3, 1, 1, 0]);
    }

    #[test]
    fn the_chain_moves_on_over_what_an_entry_jumps() {
        let mut links = chain(&[(Level::Entry, 3), (Level::Day, 1)], 0);
        let newest = ChainLink { seq: 6, level: Level::Hour, taken_at_us: 0, bytes: 1 };
        advance_chain(&mut links, 2, newest);
        assert_eq!(links.iter().map(|link| link.seq).collect::<Vec<_>>(), [6, 2, 1]);
        advance_chain(&mut links, 0, ChainLink { seq: 7, level: Level::Base, ..newest });
        assert_eq!(links.iter().map(|link| link.seq).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn levels_have_the_numbers_that_entries_name() {
        for (number, level) in (0..).zip(Level::ALL) {
            assert_eq!((level.number(), Level::from_number(number)), (number, Some(level)));
        }
        assert_eq!(Level::from_number(9), None);
        assert_eq!(Level::from_number(u8::MAX), None);
    }
}
