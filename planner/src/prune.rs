//! What to delete from a store, in two phases: mark what nobody needs, and delete it a week later if that still holds.
//!
//! A mistake here loses backups, so everything that is in doubt stays:
//! - a listing that is not trusted ([`StoreView::listing_trusted`]) plans nothing;
//! - an entry is deleted when it is forgotten, and so are all entries that name it as their parent;
//! - a pack is deleted when no entry that stays references it, and after those that are forgotten;
//! - an entry that is listed and not known (not read yet, not readable) may reference any pack and have any older entry
//!   as parent: none of these is touched;
//! - between mark and deletion lie [`MARKED_FOR_MIN_US`] *and* [`ENTRIES_AFTER_MARK_MIN`] entries. Packs go up before the
//!   entry that names them, and entries in their order; so an upload under way when its pack was marked as unreferenced
//!   has come to its end, even if the device slept in between;
//! - while the clock is behind the newest entry, nothing is marked and nothing deleted. A mark dated in the future waits.

use std::collections::{BTreeMap, BTreeSet};

use crate::retention::RetentionPlan;

/// How long an object stays marked before it is deleted, in microseconds: seven days. Long enough to notice that a
/// backup is not what it should be, or to mend a second device that wrote here by mistake.
pub const MARKED_FOR_MIN_US: i64 = 7 * 24 * 3_600_000_000;

/// How many entries are written between mark and deletion: the one that was under way, and one that knew of the mark.
pub const ENTRIES_AFTER_MARK_MIN: u64 = 2;

/// A listing that lacks more than this many of a hundred objects that are known to be there deletes nothing.
pub const SHRINKAGE_MAX_PERCENT: usize = 5;

/// Whether a listing lacks so much of what is known to be there that nothing it shows leads to a deletion.
pub fn listing_shrank(expected: usize, lacking: usize) -> bool {
    lacking.saturating_mul(100) > expected.saturating_mul(SHRINKAGE_MAX_PERCENT)
}

/// The name of a pack.
pub type PackName = [u8; 16];

/// An object that may be deleted. A keyring never is, so this cannot name one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prunable {
    /// The entry with this number.
    Entry(u64),
    /// The pack with this name.
    Pack(PackName),
}

/// That nobody needed an object: since when, by the clock and by the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// µs since 1970.
    pub marked_at_us: i64,
    /// The newest entry then.
    pub marked_at_seq: u64,
}

/// What an entry that was read needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownEntry {
    /// The entry it was written on; 0 for a base.
    pub parent_seq: u64,
    /// The packs it names.
    pub packs: Vec<PackName>,
}

/// What the daemon knows about a store.
#[derive(Debug, Clone, Copy)]
pub struct StoreView<'a> {
    /// Entries and packs of the listing, with their length in bytes.
    pub objects: &'a BTreeMap<Prunable, u64>,
    /// Every entry that was read or written. One that is neither listed nor forgotten is taken to be on its way up.
    pub entries: &'a BTreeMap<u64, KnownEntry>,
    /// Packs that an entry not written yet will name: of a capture or an upload under way. They are left alone.
    pub packs_in_use: &'a BTreeSet<PackName>,
    /// What was marked before.
    pub marks: &'a BTreeMap<Prunable, Mark>,
    /// The newest entry that was published.
    pub newest_seq: u64,
    /// When that one was captured, µs since 1970.
    pub newest_taken_at_us: i64,
    /// False when the listing failed, lacks what is known to be there, or when an entry of it could not be read.
    pub listing_trusted: bool,
}

/// What to do about objects that nobody needs.
#[must_use = "a plan does nothing until it is carried out"]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunePlan {
    /// Nobody needs these, for the first time.
    pub mark: Vec<(Prunable, Mark)>,
    /// Somebody needs these again, or they are gone: forget their marks.
    pub unmark: Vec<Prunable>,
    /// To delete one by one from the first: entries before their parents, and before the packs that only they name.
    /// Their marks go with them. A pack's name follows from its content: a capture that comes up with one of these while
    /// they are deleted must wait for the end and upload it anew.
    pub delete: Vec<Prunable>,
    /// Marked, and to be looked at again.
    pub waiting: Vec<Prunable>,
    /// What [`PrunePlan::delete`] frees, in bytes.
    pub delete_bytes: u64,
}

/// Decides what to delete of a store whose points were judged by [`crate::plan_retention`].
///
/// `retention` is made of published points only: one that is to stay and is not listed makes the listing one that is not
/// trusted. A known entry that it does not judge (written since) stays, with its packs.
pub fn plan_prune(view: &StoreView<'_>, retention: &RetentionPlan, now_us: i64) -> PrunePlan {
    let mut staying = retention.keep.iter().chain(&retention.carry);
    let listed_all = staying.all(|seq| view.objects.contains_key(&Prunable::Entry(*seq)));
    if !view.listing_trusted || !listed_all {
        return PrunePlan::default();
    }
    let unneeded = Unneeded::find(view, retention);
    let clock_is_behind = now_us < view.newest_taken_at_us;
    let mut plan = PrunePlan {
        unmark: view.marks.keys().filter(|object| !unneeded.has(**object)).copied().collect(),
        ..PrunePlan::default()
    };
    let mark = Mark { marked_at_us: now_us, marked_at_seq: view.newest_seq };
    let mut deleted = BTreeSet::new();
    for (object, needed_by) in unneeded.in_order() {
        let last_ones_go = needed_by.iter().all(|seq| deleted.contains(seq));
        let in_doubt = clock_is_behind || unneeded.is_in_doubt(object);
        match view.marks.get(&object) {
            None if in_doubt => {}
            None => plan.mark.push((object, mark)),
            Some(mark) if !in_doubt && last_ones_go && is_ripe(*mark, view.newest_seq, now_us) => {
                if let Prunable::Entry(seq) = object {
                    deleted.insert(seq);
                }
                plan.delete_bytes = plan.delete_bytes.saturating_add(view.objects[&object]);
                plan.delete.push(object);
            }
            Some(_) => plan.waiting.push(object),
        }
    }
    plan
}

/// Whether a mark is old enough by the clock and by the log.
pub fn is_ripe(mark: Mark, newest_seq: u64, now_us: i64) -> bool {
    let marked_for_us = now_us.saturating_sub(mark.marked_at_us);
    let entries_after = newest_seq.saturating_sub(mark.marked_at_seq);
    marked_for_us >= MARKED_FOR_MIN_US && entries_after >= ENTRIES_AFTER_MARK_MIN
}

/// Known entries that are not forgotten, and their parents: that a plan of retention was made for another log, or by a
/// mistake, deletes nothing that one of them needs.
fn staying_entries(view: &StoreView<'_>, retention: &RetentionPlan) -> BTreeSet<u64> {
    let forgotten: BTreeSet<u64> = retention.forget.iter().copied().collect();
    let mut staying = BTreeSet::new();
    for (seq, entry) in view.entries.iter().rev() {
        if *seq >= view.newest_seq || !forgotten.contains(seq) || staying.contains(seq) {
            staying.extend([*seq, entry.parent_seq]);
        }
    }
    staying
}

/// Listed objects that nothing that stays needs, each with the listed entries that have to go before it does.
#[derive(Default)]
struct Unneeded {
    entries: BTreeMap<u64, Vec<u64>>,
    packs: BTreeMap<PackName, Vec<u64>>,
    /// The newest entry that is listed and not known; what is older may be its parent.
    newest_unknown: Option<u64>,
}

impl Unneeded {
    fn find(view: &StoreView<'_>, retention: &RetentionPlan) -> Self {
        let mut unneeded = Self::default();
        for object in view.objects.keys().copied() {
            match object {
                Prunable::Entry(seq) if view.entries.contains_key(&seq) => {
                    unneeded.entries.insert(seq, Vec::new());
                }
                Prunable::Entry(seq) => unneeded.newest_unknown = unneeded.newest_unknown.max(Some(seq)),
                Prunable::Pack(name) => {
                    unneeded.packs.insert(name, Vec::new());
                }
            }
        }
        unneeded.packs.retain(|name, _| !view.packs_in_use.contains(name));
        let staying = staying_entries(view, retention);
        for (seq, entry) in view.entries {
            if staying.contains(seq) {
                unneeded.entries.remove(seq);
                for name in &entry.packs {
                    unneeded.packs.remove(name);
                }
            } else if view.objects.contains_key(&Prunable::Entry(*seq)) {
                unneeded.entries.entry(entry.parent_seq).and_modify(|children| children.push(*seq));
                for name in &entry.packs {
                    unneeded.packs.entry(*name).and_modify(|named_by| named_by.push(*seq));
                }
            }
        }
        unneeded
    }

    fn has(&self, object: Prunable) -> bool {
        match object {
            Prunable::Entry(seq) => self.entries.contains_key(&seq),
            Prunable::Pack(name) => self.packs.contains_key(&name),
        }
    }

    /// Whether an entry that nobody has read may need it.
    fn is_in_doubt(&self, object: Prunable) -> bool {
        match object {
            Prunable::Entry(seq) => self.newest_unknown.is_some_and(|unknown| seq < unknown),
            Prunable::Pack(_) => self.newest_unknown.is_some(),
        }
    }

    /// In an order in which they may go: entries from the newest to the oldest, then packs.
    fn in_order(&self) -> impl Iterator<Item = (Prunable, &[u64])> {
        let entries = self.entries.iter().rev().map(|(seq, after)| (Prunable::Entry(*seq), after.as_slice()));
        let packs = self.packs.iter().map(|(name, after)| (Prunable::Pack(*name), after.as_slice()));
        entries.chain(packs)
    }
}
