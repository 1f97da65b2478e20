//! What the device remembers of points that the policy let go: they are not offered any more, and still in the store.
//!
//! A point moves from the list of points to the forgotten ones before its entry is marked, and back only after the mark
//! is gone. So whatever a crash leaves, nothing that is offered to anybody is on its way to be deleted. Lost marks only
//! mean that the waiting begins again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use chatkeep_format::ArchiveId;
use chatkeep_planner::{Mark, PackName, Prunable};
use serde::{Deserialize, Serialize};

use super::{Catalogue, Point, point_key};

/// What was last found out about what can be deleted from a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PruneFacts {
    /// When it was last decided what stays, µs since 1970; 0 for never.
    pub pruned_us: u64,
    /// Bytes of what is marked and still in the store.
    pub waiting_bytes: u64,
    /// Why nothing was deleted: short error name and text.
    pub hindrance: Option<(String, String)>,
}

/// A [`Mark`], stored: when, and what the newest entry was then.
#[derive(Serialize, Deserialize)]
struct MarkRecord(i64, u64);

/// The packs that are being deleted in this moment.
#[derive(Clone, Default)]
pub(super) struct BeingDeleted(Arc<Mutex<BTreeSet<(ArchiveId, PackName)>>>);

impl BeingDeleted {
    fn change<T>(&self, change: impl FnOnce(&mut BTreeSet<(ArchiveId, PackName)>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One pack is being deleted.
#[must_use = "it ends when this is dropped"]
pub struct Deleting {
    packs: BeingDeleted,
    pack: (ArchiveId, PackName),
}

impl Drop for Deleting {
    fn drop(&mut self) {
        self.packs.change(|packs| packs.remove(&self.pack));
    }
}

impl Catalogue {
    /// Points that are forgotten and were not deleted yet, oldest first.
    pub fn forgotten(&self, archive: &ArchiveId) -> Vec<Point> {
        self.points_in("forgotten", archive)
    }

    /// One that is forgotten and was not deleted yet.
    pub fn forgotten_point(&self, archive: &ArchiveId, seq: u64) -> Option<Point> {
        self.get("forgotten", &point_key(archive, seq))
    }

    /// These points are not offered any more. Durable when this returns.
    pub fn forget(&self, archive: &ArchiveId, seqs: &[u64]) -> anyhow::Result<()> {
        self.move_points(archive, seqs, "points", "forgotten")
    }

    /// These points stay after all: their marks go, and they are offered again. Durable when this returns.
    pub fn remember(&self, archive: &ArchiveId, seqs: &[u64]) -> anyhow::Result<()> {
        self.unmark(archive, seqs.iter().map(|seq| Prunable::Entry(*seq)))?;
        self.db.flush()?;
        self.move_points(archive, seqs, "forgotten", "points")
    }

    /// Points that a crash left in both lists stay: nothing of them was deleted.
    pub fn mend_forgotten(&self, archive: &ArchiveId) -> anyhow::Result<()> {
        let both = self.forgotten(archive).into_iter().map(|point| point.seq);
        let both: Vec<u64> = both.filter(|seq| self.point(archive, *seq).is_some()).collect();
        if !both.is_empty() {
            self.remember(archive, &both)?;
        }
        let offered = |object: &Prunable| match object {
            Prunable::Entry(seq) => self.point(archive, *seq).is_some(),
            Prunable::Pack(_) => false,
        };
        let wrong: Vec<Prunable> = self.marks(archive).into_keys().filter(offered).collect();
        self.unmark(archive, wrong)
    }

    /// This entry is not in the store any more.
    pub fn drop_forgotten(&self, archive: &ArchiveId, seq: u64) -> anyhow::Result<()> {
        self.db.open_tree("forgotten")?.remove(point_key(archive, seq))?;
        Ok(())
    }

    /// What nobody needs, and since when.
    pub fn marks(&self, archive: &ArchiveId) -> BTreeMap<Prunable, Mark> {
        let Ok(tree) = self.db.open_tree("marks") else { return BTreeMap::new() };
        let record = |(key, value): (sled::IVec, sled::IVec)| {
            let object = object_of(key.get(archive.0.len()..)?)?;
            let MarkRecord(marked_at_us, marked_at_seq) = serde_json::from_slice(&value).ok()?;
            Some((object, Mark { marked_at_us, marked_at_seq }))
        };
        tree.scan_prefix(archive.0).flatten().filter_map(record).collect()
    }

    /// Nobody needs these from now on. Durable after [`Catalogue::flush`].
    pub fn mark(&self, archive: &ArchiveId, marks: &[(Prunable, Mark)]) -> anyhow::Result<()> {
        for (object, mark) in marks {
            let record = MarkRecord(mark.marked_at_us, mark.marked_at_seq);
            self.put("marks", &mark_key(archive, *object), &record)?;
        }
        Ok(())
    }

    /// Somebody needs these again, or they are gone. Durable after [`Catalogue::flush`].
    pub fn unmark(
        &self,
        archive: &ArchiveId,
        objects: impl IntoIterator<Item = Prunable>,
    ) -> anyhow::Result<()> {
        let tree = self.db.open_tree("marks")?;
        for object in objects {
            tree.remove(mark_key(archive, object))?;
        }
        Ok(())
    }

    /// What was last found out about what can be deleted.
    pub fn prune_facts(&self, archive: &ArchiveId) -> PruneFacts {
        self.get("pruned", &archive.0).unwrap_or_default()
    }

    /// Remembers that.
    pub fn put_prune_facts(&self, archive: &ArchiveId, facts: &PruneFacts) -> anyhow::Result<()> {
        self.put("pruned", &archive.0, facts)
    }

    /// Remembers which known entries a listing of the store lacks.
    pub fn note_listing(&self, archive: &ArchiveId, listed: &BTreeSet<u64>) -> anyhow::Result<()> {
        let points = self.points(archive).into_iter().map(|point| point.seq);
        let missing: BTreeSet<u64> = points.filter(|seq| !listed.contains(seq)).collect();
        self.put("missing", &archive.0, &missing)
    }

    /// Known entries that the store lacked when it was last listed.
    pub fn missing(&self, archive: &ArchiveId) -> BTreeSet<u64> {
        self.get("missing", &archive.0).unwrap_or_default()
    }

    /// This pack is being deleted from now on, until what is returned is dropped.
    ///
    /// A pack is named after its content: the upload of the same content must not take it to be in the store already.
    /// So whoever deletes says so first, and looks into the queue then; whoever uploads has it in the queue first, and
    /// looks here then.
    pub fn begin_delete(&self, archive: &ArchiveId, pack: PackName) -> Deleting {
        self.deleting.change(|packs| packs.insert((*archive, pack)));
        Deleting { packs: self.deleting.clone(), pack: (*archive, pack) }
    }

    /// Whether this pack is just being deleted.
    pub fn is_being_deleted(&self, archive: &ArchiveId, pack: PackName) -> bool {
        self.deleting.change(|packs| packs.contains(&(*archive, pack)))
    }

    /// First there, then no longer here: a crash in between leaves them in both.
    pub(super) fn move_points(
        &self,
        archive: &ArchiveId,
        seqs: &[u64],
        from: &str,
        to: &str,
    ) -> anyhow::Result<()> {
        for seq in seqs {
            let key = point_key(archive, *seq);
            if let Some(point) = self.get::<Point>(from, &key) {
                self.put(to, &key, &point)?;
            }
        }
        self.db.flush()?;
        let from = self.db.open_tree(from)?;
        for seq in seqs {
            from.remove(point_key(archive, *seq))?;
        }
        self.db.flush()?;
        Ok(())
    }
}

/// The points of `points` (oldest first) that can be restored as far as is known: all that they build on is there.
pub fn restorable(points: &[Point], missing: &BTreeSet<u64>) -> BTreeSet<u64> {
    let mut whole = BTreeSet::new();
    for point in points.iter().filter(|point| !missing.contains(&point.seq)) {
        let builds_on = point.parent_seq;
        if builds_on == 0 || (builds_on < point.seq && whole.contains(&builds_on)) {
            whole.insert(point.seq);
        }
    }
    whole
}

pub(super) fn mark_key(archive: &ArchiveId, object: Prunable) -> Vec<u8> {
    match object {
        Prunable::Entry(seq) => [&archive.0[..], b"e", &seq.to_be_bytes()].concat(),
        Prunable::Pack(name) => [&archive.0[..], b"p", &name].concat(),
    }
}

pub(super) fn object_of(key: &[u8]) -> Option<Prunable> {
    let (kind, name) = key.split_first()?;
    match kind {
        b'e' => Some(Prunable::Entry(u64::from_be_bytes(name.try_into().ok()?))),
        b'p' => Some(Prunable::Pack(name.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::tests::point;
    use super::*;

    const ARCHIVE: ArchiveId = ArchiveId([5; 16]);
    const OTHER: ArchiveId = ArchiveId([6; 16]);

    fn seqs(points: &[Point]) -> Vec<u64> {
        points.iter().map(|point| point.seq).collect()
    }

    #[test]
    fn forgotten_points_are_not_offered_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(folder.path()).unwrap();
        for seq in 1..=3 {
            catalogue.put_point(&ARCHIVE, &point(seq, seq - 1)).unwrap();
        }
        catalogue.forget(&ARCHIVE, &[2, 3]).unwrap();
        assert_eq!(seqs(&catalogue.points(&ARCHIVE)), [1]);
        assert_eq!(seqs(&catalogue.forgotten(&ARCHIVE)), [2, 3]);
        assert_eq!(catalogue.forgotten(&OTHER), []);
        let mark = Mark { marked_at_us: 7, marked_at_seq: 3 };
        catalogue.mark(&ARCHIVE, &[(Prunable::Entry(2), mark), (Prunable::Entry(3), mark)]).unwrap();
        catalogue.remember(&ARCHIVE, &[2]).unwrap();
        assert_eq!(seqs(&catalogue.points(&ARCHIVE)), [1, 2]);
        assert_eq!(catalogue.marks(&ARCHIVE), BTreeMap::from([(Prunable::Entry(3), mark)]));
        catalogue.drop_forgotten(&ARCHIVE, 3).unwrap();
        assert_eq!(catalogue.forgotten(&ARCHIVE), []);
    }

    #[test]
    fn marks_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let marks = BTreeMap::from([
            (Prunable::Entry(258), Mark { marked_at_us: -7, marked_at_seq: 300 }),
            (Prunable::Pack([b'e'; 16]), Mark { marked_at_us: i64::MAX, marked_at_seq: 0 }),
        ]);
        {
            let catalogue = Catalogue::open(folder.path()).unwrap();
            catalogue.mark(&ARCHIVE, &marks.clone().into_iter().collect::<Vec<_>>()).unwrap();
            catalogue.flush();
        }
        let catalogue = Catalogue::open(folder.path()).unwrap();
        assert_eq!(catalogue.marks(&ARCHIVE), marks);
        assert!(catalogue.marks(&OTHER).is_empty());
        catalogue.unmark(&ARCHIVE, [Prunable::Entry(258)]).unwrap();
        assert_eq!(catalogue.marks(&ARCHIVE).len(), 1);
    }

    #[test]
    fn a_point_that_a_crash_left_in_both_lists_stays() {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(folder.path()).unwrap();
        for seq in 1..=2 {
            catalogue.put_point(&ARCHIVE, &point(seq, 0)).unwrap();
        }
        catalogue.forget(&ARCHIVE, &[1, 2]).unwrap();
        catalogue.put_point(&ARCHIVE, &point(1, 0)).unwrap();
        let mark = Mark { marked_at_us: 7, marked_at_seq: 3 };
        catalogue.mark(&ARCHIVE, &[(Prunable::Entry(1), mark), (Prunable::Entry(2), mark)]).unwrap();
        catalogue.mend_forgotten(&ARCHIVE).unwrap();
        assert_eq!(seqs(&catalogue.points(&ARCHIVE)), [1]);
        assert_eq!(seqs(&catalogue.forgotten(&ARCHIVE)), [2]);
        assert_eq!(catalogue.marks(&ARCHIVE).into_keys().collect::<Vec<_>>(), [Prunable::Entry(2)]);
    }

    #[test]
    fn what_lacks_a_parent_cannot_be_restored() {
        let points = [point(1, 0), point(2, 1), point(4, 3), point(5, 4), point(6, 2), point(7, 0)];
        let whole = |missing: &[u64]| restorable(&points, &missing.iter().copied().collect());
        assert_eq!(whole(&[]), BTreeSet::from([1, 2, 6, 7]));
        assert_eq!(whole(&[2]), BTreeSet::from([1, 7]));
    }
}
