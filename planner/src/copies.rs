//! What a copy of an archive in another store lacks, in the order in which it goes up, and what is deleted from it.
//!
//! A copy is an archive that can be restored from by itself at any moment: packs go up before the entry that names them,
//! entries after their parents. One that is only a little behind gets every entry. One that was away for longer gets what
//! a restore of the newest point and of the pinned ones needs, and none of the steps in between: that it lacks them is
//! no damage.

use std::collections::{BTreeMap, BTreeSet};

use crate::levels::next_of_chain;
use crate::prune::{KnownEntry, MARKED_FOR_MIN_US, PackName, Prunable, listing_shrank};

/// A copy that lacks at most so many of the newest entries gets each of them: an hour of a lively chat at most, or a few
/// minutes without the network.
pub const FOLLOWED_MAX: usize = 16;

/// What is known of an archive, and of how far a copy has come.
#[derive(Debug, Clone, Copy)]
pub struct CopyView<'a> {
    /// Every entry that can be sent, those of forgotten points as well.
    pub entries: &'a BTreeMap<u64, KnownEntry>,
    /// Of these, the ones that go along only where another one builds on them.
    pub forgotten: &'a BTreeSet<u64>,
    /// Points that somebody wants kept.
    pub pins: &'a [u64],
    /// The newest entry that the copy got; 0 for none.
    pub copied_seq: u64,
    /// The copy is to have all points, also those that it missed.
    pub everything: bool,
}

/// One entry that the copy lacks, or of which it lacks packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    /// The entry.
    pub seq: u64,
    /// The entry that it builds on, which has to be on the copy before it; 0 for none.
    pub parent_seq: u64,
    /// Packs to send before the entry.
    pub packs: Vec<PackName>,
    /// Whether the entry itself is to be sent.
    pub entry: bool,
}

/// What to send, in this order.
#[must_use = "a plan does nothing until it is carried out"]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyPlan {
    /// From the oldest entry to the newest.
    pub steps: Vec<CopyStep>,
    /// Points that the copy will lack all the same.
    pub lacking: usize,
}

/// Decides what a copy gets. `has` says whether it has an object already.
///
/// Packs that are missing of an entry that it has are sent, too. An entry of which some ancestor is neither known nor
/// there is left out, for it cannot be restored from the copy.
pub fn plan_copy(view: &CopyView<'_>, mut has: impl FnMut(Prunable) -> bool) -> CopyPlan {
    let offered = || view.entries.keys().copied().filter(|seq| !view.forgotten.contains(seq));
    let there: BTreeSet<u64> =
        view.entries.keys().copied().filter(|seq| has(Prunable::Entry(*seq))).collect();
    let new: Vec<u64> = offered().filter(|seq| *seq > view.copied_seq && !there.contains(seq)).collect();
    let mut wanted: BTreeSet<u64> =
        there.iter().copied().filter(|seq| !view.forgotten.contains(seq)).collect();
    if view.everything {
        wanted.extend(offered());
    } else if new.len() <= FOLLOWED_MAX {
        wanted.extend(new);
    }
    wanted.extend(offered().next_back());
    wanted.extend(view.pins.iter().copied().filter(|seq| view.entries.contains_key(seq)));
    with_ancestors(view, &mut wanted, &mut has);
    let lacking = offered().filter(|seq| !there.contains(seq) && !wanted.contains(seq)).count();
    CopyPlan { steps: steps(view, &wanted, &there, has), lacking }
}

/// Adds what entries build on, and takes those away of which something is neither known nor there.
fn with_ancestors(view: &CopyView<'_>, wanted: &mut BTreeSet<u64>, has: &mut impl FnMut(Prunable) -> bool) {
    let mut waiting: Vec<u64> = wanted.iter().copied().collect();
    while let Some(seq) = waiting.pop() {
        let parent = view.entries.get(&seq).map_or(0, |entry| entry.parent_seq);
        if parent > 0 && parent < seq && view.entries.contains_key(&parent) && wanted.insert(parent) {
            waiting.push(parent);
        }
    }
    let mut whole = BTreeSet::new();
    for seq in &*wanted {
        let parent = next_of_chain(*seq, view.entries[seq].parent_seq);
        // What is known and wanted was looked at before: it is older.
        let stands = parent.is_ok_and(|parent| {
            parent.is_none_or(|parent| {
                let known = view.entries.contains_key(&parent);
                if known { whole.contains(&parent) } else { has(Prunable::Entry(parent)) }
            })
        });
        if stands {
            whole.insert(*seq);
        }
    }
    *wanted = whole;
}

fn steps(
    view: &CopyView<'_>,
    wanted: &BTreeSet<u64>,
    there: &BTreeSet<u64>,
    mut has: impl FnMut(Prunable) -> bool,
) -> Vec<CopyStep> {
    let mut planned = BTreeSet::new();
    let step = |seq: &u64| {
        let entry = &view.entries[seq];
        let lacks = |name: &&PackName| !has(Prunable::Pack(**name)) && planned.insert(**name);
        let packs: Vec<PackName> = entry.packs.iter().filter(lacks).copied().collect();
        CopyStep { seq: *seq, parent_seq: entry.parent_seq, packs, entry: !there.contains(seq) }
    };
    wanted.iter().map(step).filter(|step| step.entry || !step.packs.is_empty()).collect()
}

/// What of a queue need not go up any more, because the store was away for so long that something newer stands for it: all
/// but what the newest entry and the pinned ones build on. The first stays in any case: nobody knows whether it went up, and
/// its number tells another installation that continues the log.
///
/// `waiting` are the entries of the queue with their parents, by their number.
pub fn plan_queue(waiting: &BTreeMap<u64, u64>, pins: &[u64]) -> Vec<u64> {
    let first = waiting.keys().next().copied();
    let newest = waiting.keys().next_back().copied();
    let pinned = pins.iter().copied().filter(|seq| waiting.contains_key(seq));
    let mut open: Vec<u64> = newest.into_iter().chain(pinned).collect();
    let mut stays: BTreeSet<u64> = first.into_iter().collect();
    while let Some(seq) = open.pop() {
        if stays.insert(seq) || Some(seq) == first {
            let parent = waiting.get(&seq).copied().filter(|parent| *parent < seq);
            open.extend(parent.filter(|parent| waiting.contains_key(parent)));
        }
    }
    waiting.keys().copied().filter(|seq| !stays.contains(seq)).collect()
}

/// What a complete listing of a copy shows, against what is known.
#[derive(Debug, Clone, Copy)]
pub struct CopyListing<'a> {
    /// Entries and packs of the listing.
    pub objects: &'a BTreeSet<Prunable>,
    /// What some known entry is or names, forgotten or waiting ones included.
    pub named: &'a BTreeSet<Prunable>,
    /// What was deleted from the main store.
    pub gone: &'a BTreeSet<Prunable>,
    /// Since when nothing known names an object, µs since 1970, as [`CopyPrunePlan::unnamed_since`] said the last time.
    pub unnamed_since: &'a BTreeMap<Prunable, i64>,
    /// How many objects were known to be there.
    pub expected: usize,
    /// How many of these the listing lacks.
    pub lacking: usize,
}

/// What to delete from a copy.
#[must_use = "a plan does nothing until it is carried out"]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyPrunePlan {
    /// To delete one by one from the first: entries before their parents, packs after all entries.
    pub delete: Vec<Prunable>,
    /// To be remembered until the next listing.
    pub unnamed_since: BTreeMap<Prunable, i64>,
}

/// Decides what to delete from a copy: what was deleted from the main store, and what nothing known has named for a week,
/// at its beginning and at its end. A listing that shrank decides nothing. While an entry stays that nothing known names,
/// no pack is deleted: it may need any of them.
pub fn plan_copy_prune(listing: &CopyListing<'_>, now_us: i64) -> CopyPrunePlan {
    if listing_shrank(listing.expected, listing.lacking) {
        return CopyPrunePlan { delete: Vec::new(), unnamed_since: listing.unnamed_since.clone() };
    }
    let mut plan = CopyPrunePlan::default();
    let (mut entries, mut packs) = (Vec::new(), Vec::new());
    let mut entry_stays = false;
    for object in listing.objects.difference(listing.named).copied() {
        // A time in the future was told by a clock that was wrong.
        let since = listing.unnamed_since.get(&object).copied().filter(|since| *since <= now_us);
        let ripe = since.is_some_and(|since| now_us.saturating_sub(since) >= MARKED_FOR_MIN_US);
        let goes = ripe || listing.gone.contains(&object);
        match object {
            Prunable::Entry(_) if goes => entries.push(object),
            Prunable::Pack(_) if goes => packs.push(object),
            Prunable::Entry(_) => entry_stays = true,
            Prunable::Pack(_) => {}
        }
        plan.unnamed_since.insert(object, since.unwrap_or(now_us));
    }
    plan.delete.extend(entries.into_iter().rev());
    if !entry_stays {
        plan.delete.extend(packs);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u8) -> PackName {
        [n; 16]
    }

    /// Entries as (seq, parent), each with one pack of its own number.
    fn entries(links: &[(u64, u64)]) -> BTreeMap<u64, KnownEntry> {
        let known = |(seq, parent_seq): &(u64, u64)| {
            (*seq, KnownEntry { parent_seq: *parent_seq, packs: vec![name(*seq as u8)] })
        };
        links.iter().map(known).collect()
    }

    /// The entries that go up, from a copy that has those in `there` with their packs.
    #[track_caller]
    fn sent(view: &CopyView<'_>, there: &[u64]) -> Vec<u64> {
        let has = |object: Prunable| match object {
            Prunable::Entry(seq) => there.contains(&seq),
            Prunable::Pack(name) => there.contains(&u64::from(name[0])),
        };
        let plan = plan_copy(view, has);
        assert!(plan.steps.iter().all(|step| step.packs == [name(step.seq as u8)] && step.entry));
        plan.steps.into_iter().map(|step| step.seq).collect()
    }

    /// A base, then entries one on the other.
    fn row(len: u64) -> BTreeMap<u64, KnownEntry> {
        entries(&(1..=len).map(|seq| (seq, seq - 1)).collect::<Vec<_>>())
    }

    fn view(entries: &BTreeMap<u64, KnownEntry>) -> CopyView<'_> {
        const NONE: &BTreeSet<u64> = &BTreeSet::new();
        CopyView { entries, forgotten: NONE, pins: &[], copied_seq: 0, everything: false }
    }

    #[test]
    fn a_copy_that_follows_gets_every_entry_after_its_parent() {
        let known = row(5);
        assert_eq!(sent(&view(&known), &[]), [1, 2, 3, 4, 5]);
        let followed = CopyView { copied_seq: 3, ..view(&known) };
        assert_eq!(sent(&followed, &[1, 2, 3]), [4, 5]);
        assert_eq!(sent(&followed, &[1, 2, 3, 4, 5]), [0; 0]);
    }

    /// A base with 40 entries, and one that stands for all of them.
    fn long() -> BTreeMap<u64, KnownEntry> {
        let mut links: Vec<(u64, u64)> = (1..=40).map(|seq| (seq, seq - 1)).collect();
        links.extend([(41, 1), (42, 41)]);
        entries(&links)
    }

    #[test]
    fn one_that_was_away_gets_the_newest_point_and_the_pinned_ones() {
        let known = long();
        assert_eq!(sent(&view(&known), &[]), [1, 41, 42]);
        let back = CopyView { copied_seq: 5, pins: &[7, 90], ..view(&known) };
        assert_eq!(sent(&back, &[1, 2, 3, 4, 5]), [6, 7, 41, 42]);
        let whole = CopyView { everything: true, ..back };
        assert_eq!(sent(&whole, &[1, 2, 3, 4, 5]), (6..=42).collect::<Vec<_>>());
    }

    #[test]
    fn what_it_missed_does_not_come_later_and_is_counted() {
        let known = long();
        let caught_up = CopyView { copied_seq: 42, ..view(&known) };
        let there = [1, 2, 41, 42];
        assert_eq!(sent(&caught_up, &there), [0; 0]);
        let plan = plan_copy(&caught_up, |object| match object {
            Prunable::Entry(seq) => there.contains(&seq),
            Prunable::Pack(_) => true,
        });
        assert_eq!(plan.lacking, 38);
    }

    #[test]
    fn forgotten_entries_go_along_only_where_something_builds_on_them() {
        let known = row(4);
        let forgotten = BTreeSet::from([1, 4]);
        assert_eq!(sent(&CopyView { forgotten: &forgotten, ..view(&known) }, &[]), [1, 2, 3]);
    }

    #[test]
    fn what_builds_on_something_that_nobody_has_is_left_out() {
        let known = entries(&[(1, 0), (4, 3), (5, 4), (6, 1), (8, 9)]);
        assert_eq!(sent(&view(&known), &[]), [1, 6]);
        assert_eq!(sent(&view(&known), &[3]), [1, 4, 5, 6], "entry 3 is not known and is there");
    }

    #[test]
    fn packs_that_are_lost_are_sent_again_once() {
        let mut known = row(3);
        known.get_mut(&3).unwrap_or_else(|| unreachable!()).packs.push(name(1));
        let has = |object: Prunable| !matches!(object, Prunable::Pack(pack) if pack == name(1));
        let step = CopyStep { seq: 1, parent_seq: 0, packs: vec![name(1)], entry: false };
        assert_eq!(plan_copy(&view(&known), has).steps, [step]);
    }

    #[track_caller]
    fn check_queue(waiting: &[(u64, u64)], pins: &[u64], dropped: &[u64]) {
        assert_eq!(plan_queue(&waiting.iter().copied().collect(), pins), dropped);
    }

    #[test]
    fn of_a_queue_the_first_the_newest_and_the_pinned_ones_stay_with_what_they_build_on() {
        check_queue(&[], &[], &[]);
        check_queue(&[(5, 4)], &[], &[]);
        check_queue(&[(5, 4), (6, 5), (7, 6)], &[], &[]);
        let queue = [(5, 4), (6, 5), (7, 6), (8, 7), (9, 3), (10, 9), (11, 10), (12, 9)];
        check_queue(&queue, &[], &[6, 7, 8, 10, 11]);
        check_queue(&queue, &[7, 3, 40], &[8, 10, 11]);
        check_queue(&queue, &[11], &[6, 7, 8]);
    }

    const WEEK: i64 = MARKED_FOR_MIN_US;

    fn entry(seq: u64) -> Prunable {
        Prunable::Entry(seq)
    }

    fn pack(n: u8) -> Prunable {
        Prunable::Pack(name(n))
    }

    #[track_caller]
    fn check_prune(
        gone: &[Prunable],
        since: &[(Prunable, i64)],
        (expected, lacking): (usize, usize),
        deleted: &[Prunable],
    ) {
        let listing = CopyListing {
            objects: &BTreeSet::from([entry(1), entry(2), entry(3), pack(1), pack(2), pack(3)]),
            named: &BTreeSet::from([entry(1), pack(1)]),
            gone: &gone.iter().copied().collect(),
            unnamed_since: &since.iter().copied().collect(),
            expected,
            lacking,
        };
        assert_eq!(plan_copy_prune(&listing, 10 * WEEK).delete, deleted);
    }

    #[test]
    fn what_nothing_names_goes_when_it_was_seen_so_a_week_ago_too() {
        let all = [entry(2), entry(3), pack(2), pack(3)];
        let since = |us: i64| all.map(|object| (object, us));
        let goes = [entry(3), entry(2), pack(2), pack(3)];
        check_prune(&[], &[], (6, 0), &[]);
        check_prune(&[], &since(9 * WEEK), (6, 0), &goes);
        check_prune(&[], &since(9 * WEEK + 1), (6, 0), &[]);
        check_prune(&[], &since(11 * WEEK), (6, 0), &[]);
        check_prune(&all, &[], (6, 0), &goes);
        check_prune(&[entry(1), pack(1)], &[], (6, 0), &[]);
    }

    #[test]
    fn packs_wait_for_the_entries_that_may_need_them() {
        check_prune(&[entry(3), pack(3)], &[], (6, 0), &[entry(3)]);
        check_prune(&[entry(3), entry(2), pack(3)], &[], (6, 0), &[entry(3), entry(2), pack(3)]);
    }

    #[test]
    fn a_listing_that_shrank_deletes_nothing() {
        let all = [entry(2), entry(3), pack(2), pack(3)];
        check_prune(&all, &[], (100, 5), &[entry(3), entry(2), pack(2), pack(3)]);
        check_prune(&all, &[], (100, 6), &[]);
        check_prune(&all, &[], (6, 1), &[]);
    }

    #[test]
    fn what_is_needed_again_begins_its_week_anew() {
        let objects = BTreeSet::from([entry(1)]);
        let none = BTreeSet::new();
        let mut since = BTreeMap::new();
        for (named, now) in [(&none, 0), (&objects, 1), (&none, WEEK)] {
            let listing = CopyListing {
                objects: &objects,
                named,
                gone: &none,
                unnamed_since: &since,
                expected: 1,
                lacking: 0,
            };
            let plan = plan_copy_prune(&listing, now);
            assert_eq!(plan.delete, []);
            since = plan.unnamed_since;
        }
        assert_eq!(since, BTreeMap::from([(entry(1), WEEK)]));
    }
}
