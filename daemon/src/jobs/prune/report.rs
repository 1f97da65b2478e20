//! What a prune did, or would do.

use std::collections::{BTreeMap, BTreeSet};

use chatkeep_ipc::Error;
use chatkeep_planner::prune::MARKED_FOR_MIN_US;
use chatkeep_planner::{Prunable, PrunePlan};

use super::{Known, Plan};

/// What a run did, or would do.
#[derive(Debug, Clone, Default)]
pub struct PruneReport {
    /// Points that were forgotten now.
    pub newly_forgotten: usize,
    /// Points that are forgotten and in the store, those included that were just deleted; newest first.
    pub points: Vec<ForgottenPoint>,
    /// Objects that were deleted, how many of them entries, and their bytes.
    pub deleted_objects: usize,
    /// See above.
    pub deleted_points: usize,
    /// See above.
    pub deleted_bytes: u64,
    /// Objects that wait, and their bytes.
    pub waiting_objects: usize,
    /// See above.
    pub waiting_bytes: u64,
    /// Why nothing, or not everything, was deleted.
    pub hindrance: Option<Error>,
    /// It was decided what stays: not so when the listing could not be believed.
    pub planned: bool,
}

/// A point that nobody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForgottenPoint {
    /// Its number.
    pub seq: u64,
    /// What it added to the store, in bytes.
    pub bytes: u64,
    /// When it is deleted at the earliest, µs since 1970; 0 for now.
    pub until_us: i64,
}

impl PruneReport {
    /// What becomes of everything when all goes well.
    pub(super) fn of(known: &Known, plan: &Plan) -> Self {
        let len = |object: &Prunable| match object {
            Prunable::Entry(seq) => known.listing.entries.get(seq).copied().unwrap_or(0),
            Prunable::Pack(name) => known.listing.packs.get(name).copied().unwrap_or(0),
        };
        let PrunePlan { mark, delete, waiting, delete_bytes, .. } = &plan.prune;
        let new = mark.iter().map(|(object, _)| object);
        Self {
            newly_forgotten: plan.to_forget(known).len(),
            points: points(known, plan),
            deleted_objects: delete.len(),
            deleted_points: delete.iter().filter(|object| matches!(object, Prunable::Entry(_))).count(),
            deleted_bytes: *delete_bytes,
            waiting_objects: mark.len() + waiting.len(),
            waiting_bytes: new.chain(waiting).map(len).sum(),
            hindrance: None,
            planned: true,
        }
    }
}

/// The forgotten points, newest first.
fn points(known: &Known, plan: &Plan) -> Vec<ForgottenPoint> {
    let PrunePlan { mark, delete, waiting, .. } = &plan.prune;
    let marked: BTreeMap<_, _> = mark.iter().copied().chain(known.marks.clone()).collect();
    let deleted: BTreeSet<&Prunable> = delete.iter().collect();
    let point = |object: &Prunable| {
        let Prunable::Entry(seq) = object else { return None };
        let found = known.points.get(seq).or_else(|| known.forgotten.get(seq))?;
        let until_us = match marked.get(object) {
            _ if deleted.contains(object) => 0,
            Some(mark) => mark.marked_at_us.saturating_add(MARKED_FOR_MIN_US),
            None => return None,
        };
        Some(ForgottenPoint { seq: *seq, bytes: found.bytes, until_us })
    };
    let new = mark.iter().map(|(object, _)| object);
    let mut points: Vec<_> = new.chain(waiting).chain(delete).filter_map(point).collect();
    points.sort_unstable_by_key(|point| std::cmp::Reverse(point.seq));
    points
}
