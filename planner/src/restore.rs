//! Which objects a restore reads, and in which order.

use std::collections::BTreeSet;

/// What a restore will read.
#[must_use = "a plan does nothing until it is carried out"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePlan {
    /// The entries by their number, newest first: of a page that several hold, the first one met counts.
    pub entries: Vec<u64>,
}

/// Why a recovery point cannot be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestorePlanError {
    /// An entry between the base and the target is not in the store.
    #[error("entry {seq} is missing from the store")]
    MissingEntry {
        /// The newest one that is missing.
        seq: u64,
    },
    /// The target names a base that is newer than itself: no entry of ours does.
    #[error("the entry names a base that is newer than itself")]
    BaseAfterTarget,
}

/// Which entries a restore of `target` needs, newest first: all from the target down to its base.
///
/// `listed` is what the store names. A listing is no proof, but what it does not name cannot be restored from it.
pub fn plan_restore(
    listed: &BTreeSet<u64>,
    target: u64,
    base_seq: u64,
) -> Result<RestorePlan, RestorePlanError> {
    if base_seq > target {
        return Err(RestorePlanError::BaseAfterTarget);
    }
    // ends at the first gap: a target and base made up by a store cost no more steps than it lists entries
    let mut entries = Vec::new();
    for seq in (base_seq..=target).rev() {
        if !listed.contains(&seq) {
            return Err(RestorePlanError::MissingEntry { seq });
        }
        entries.push(seq);
    }
    Ok(RestorePlan { entries })
}

/// The packs of one entry in the order in which a restore applies them, newest first: after the pages in the entry
/// itself, from the last pack to the first.
pub fn packs_newest_first<T>(packs: &[T]) -> impl Iterator<Item = &T> {
    packs.iter().rev()
}

/// Whether an entry follows another in the log: the newer one must name the digest of the older one. A store that
/// mixes entries of two histories fails here.
pub fn follows(newer_prev: &[u8; 32], older_digest: &[u8; 32]) -> bool {
    newer_prev == older_digest
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
    use super::*;

    #[track_caller]
    fn check(listed: &[u64], target: u64, base_seq: u64, expected: Result<&[u64], RestorePlanError>) {
        let listed = listed.iter().copied().collect();
        let plan = plan_restore(&listed, target, base_seq);
        assert_eq!(
            plan.as_ref().map(|plan| plan.entries.as_slice()),
            expected.as_ref().map(|entries| *entries)
        );
    }

    #[test]
    fn a_restore_reads_from_the_target_down_to_its_base() {
        check(&[1, 2, 3, 4, 5], 4, 2, Ok(&[4, 3, 2]));
    }

    #[test]
    fn a_base_alone_is_enough() {
        check(&[7], 7, 7, Ok(&[7]));
    }

    #[test]
    fn what_lies_outside_target_and_base_may_be_missing() {
        check(&[5, 6], 6, 5, Ok(&[6, 5]));
    }

    #[test]
    fn a_gap_is_named_and_never_skipped() {
        check(&[1, 2, 4], 4, 1, Err(RestorePlanError::MissingEntry { seq: 3 }));
        check(&[2, 3], 3, 1, Err(RestorePlanError::MissingEntry { seq: 1 }));
        check(&[], 3, 1, Err(RestorePlanError::MissingEntry { seq: 3 }));
    }

    #[test]
    fn a_base_after_its_target_is_refused() {
        check(&[1, 2], 1, 2, Err(RestorePlanError::BaseAfterTarget));
    }

    #[test]
    fn numbers_made_up_by_a_store_cost_nothing() {
        check(&[u64::MAX], u64::MAX, 0, Err(RestorePlanError::MissingEntry { seq: u64::MAX - 1 }));
        check(&[u64::MAX], u64::MAX, u64::MAX, Ok(&[u64::MAX]));
    }

    #[test]
    fn packs_are_applied_from_the_last_to_the_first() {
        assert!(packs_newest_first(&["a", "b", "c"]).eq(&["c", "b", "a"]));
    }

    #[test]
    fn an_entry_follows_only_the_one_it_names() {
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
