//! Which objects a restore reads, and in which order.

use crate::levels::chain_of;

/// What a restore will read.
#[must_use = "a plan does nothing until it is carried out"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePlan {
    /// The entries by their number, newest first. Whole pages may be taken in this order, and of a page that several
    /// entries hold the first one met counts; patches are applied oldest first.
    pub entries: Vec<u64>,
}

/// Why a recovery point cannot be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The target, or a parent on the way to its base, is not in the store.
    #[error("entry {seq} is missing from the store")]
    MissingEntry {
        /// The newest one that is missing.
        seq: u64,
    },
    /// An entry names a parent that is not older than itself: no entry of ours does.
    #[error("entry {seq} names entry {parent_seq} as its parent, which is not older")]
    ParentNotOlder {
        /// The entry.
        seq: u64,
        /// The parent it names.
        parent_seq: u64,
    },
    /// There are more entries down to the base than any writer makes.
    #[error("too many entries down to the base")]
    TooLong,
}

/// Which entries a restore of `target` needs, newest first: from the target over its parents down to its base.
///
/// `parent_of` gives the parent an entry names (0: none), or `None` for an entry that the store does not list. A listing
/// is no proof, but what it does not name cannot be restored from it.
pub fn plan_restore(
    target: u64,
    parent_of: impl FnMut(u64) -> Option<u64>,
) -> Result<RestorePlan, ChainError> {
    Ok(RestorePlan { entries: chain_of(target, parent_of)? })
}

/// Whether an entry is the one that a newer entry was written on: the newer one names the digest of its parent. A store
/// that mixes entries of two histories fails here.
pub fn follows(named_parent_digest: &[u8; 32], parent_digest: &[u8; 32]) -> bool {
    named_parent_digest == parent_digest
}

/// Which recovery point somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The newest.
    Newest,
    /// The one with this number.
    Seq(u64),
    /// The last one taken at this time or before it.
    Before {
        /// Microseconds since 1970, UTC.
        taken_at_us: u64,
    },
}

/// Picks a recovery point from `points`, each with its number and the time it was taken (µs since 1970).
///
/// "Newest" goes by number: the log's order holds even where the device's clock was set back. A time can only be
/// compared with times; of several points with one time it is the one that came last.
pub fn choose_point(points: &[(u64, u64)], target: Target) -> Option<u64> {
    match target {
        Target::Newest => points.iter().map(|(seq, _)| *seq).max(),
        Target::Seq(wanted) => points.iter().any(|(seq, _)| *seq == wanted).then_some(wanted),
        Target::Before { taken_at_us } => points
            .iter()
            .filter(|(_, taken_at)| *taken_at <= taken_at_us)
            .max_by_key(|(seq, taken_at)| (*taken_at, *seq))
            .map(|(seq, _)| *seq),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::levels::CHAIN_LINKS_READ_MAX;

    /// Points as (seq, parent).
    #[track_caller]
    fn check(points: &[(u64, u64)], target: u64, expected: Result<&[u64], ChainError>) {
        let parents: BTreeMap<u64, u64> = points.iter().copied().collect();
        let plan = plan_restore(target, |seq| parents.get(&seq).copied());
        assert_eq!(
            plan.as_ref().map(|plan| plan.entries.as_slice()),
            expected.as_ref().map(|entries| *entries)
        );
    }

    #[test]
    fn a_restore_reads_from_the_target_over_its_parents_to_its_base() {
        check(&[(1, 0), (2, 1), (3, 2), (4, 1), (5, 4), (6, 5)], 5, Ok(&[5, 4, 1]));
    }

    #[test]
    fn a_base_alone_is_enough() {
        check(&[(7, 0)], 7, Ok(&[7]));
    }

    #[test]
    fn what_no_parent_names_may_be_missing() {
        check(&[(5, 0), (9, 5)], 9, Ok(&[9, 5]));
    }

    #[test]
    fn a_gap_is_named_and_never_skipped() {
        check(&[(1, 0), (2, 1), (4, 3)], 4, Err(ChainError::MissingEntry { seq: 3 }));
        check(&[(2, 1), (3, 2)], 3, Err(ChainError::MissingEntry { seq: 1 }));
        check(&[], 3, Err(ChainError::MissingEntry { seq: 3 }));
    }

    #[test]
    fn a_parent_that_is_not_older_is_refused() {
        check(&[(1, 0), (2, 2)], 2, Err(ChainError::ParentNotOlder { seq: 2, parent_seq: 2 }));
        check(&[(2, 3), (3, 2)], 3, Err(ChainError::ParentNotOlder { seq: 2, parent_seq: 3 }));
        check(&[(1, u64::MAX)], 1, Err(ChainError::ParentNotOlder { seq: 1, parent_seq: u64::MAX }));
    }

    #[test]
    fn a_chain_without_end_is_given_up() {
        assert_eq!(plan_restore(u64::MAX, |seq| Some(seq - 1)), Err(ChainError::TooLong));
        let longest = plan_restore(CHAIN_LINKS_READ_MAX as u64, |seq| Some(seq - 1));
        assert_eq!(longest.map(|plan| plan.entries.len()), Ok(CHAIN_LINKS_READ_MAX));
    }

    #[test]
    fn an_entry_follows_only_the_parent_it_names() {
        assert!(follows(&[1; 32], &[1; 32]));
        let mut other = [1; 32];
        other[31] = 0;
        assert!(!follows(&[1; 32], &other));
    }

    const POINTS: [(u64, u64); 4] = [(3, 300), (1, 100), (4, 300), (2, 200)];

    #[test]
    fn the_newest_point_is_the_last_of_the_log() {
        assert_eq!(choose_point(&POINTS, Target::Newest), Some(4));
        // 6 was taken after the clock had been set back
        assert_eq!(choose_point(&[(5, 900), (6, 100)], Target::Newest), Some(6));
        assert_eq!(choose_point(&[], Target::Newest), None);
    }

    #[test]
    fn a_numbered_point_is_itself_or_nothing() {
        assert_eq!(choose_point(&POINTS, Target::Seq(2)), Some(2));
        assert_eq!(choose_point(&POINTS, Target::Seq(9)), None);
    }

    #[test]
    fn a_time_finds_the_last_point_up_to_it() {
        let before = |taken_at_us| choose_point(&POINTS, Target::Before { taken_at_us });
        assert_eq!(before(99), None);
        assert_eq!(before(100), Some(1));
        assert_eq!(before(299), Some(2));
        assert_eq!(before(300), Some(4));
        assert_eq!(before(u64::MAX), Some(4));
    }
}
