//! What the device remembers of copies of an archive in further stores: what is there, how far each has come, what it may
//! lose, and which points only copies have.
//!
//! All of it can be lost: a listing of the copy makes it anew, and the waiting of what may be deleted begins again.

use std::collections::{BTreeMap, BTreeSet};

use chatkeep_format::ArchiveId;
use chatkeep_planner::Prunable;
use serde::{Deserialize, Serialize};

use super::forgotten::{mark_key, object_of};
use super::{Catalogue, Point, point_key};

/// What was deleted from the main store is remembered for copies for so long, in µs: 90 days. What a copy was away for
/// longer with goes like everything else that nothing names.
const GONE_FOR_US: i64 = 90 * 24 * 3_600_000_000;

/// The ages and the progress of one copy. Times are µs since 1970, 0 for never.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyFacts {
    /// The store.
    pub store: String,
    /// When a point last became whole there.
    pub uploaded_us: u64,
    /// When it was last read back and opened.
    pub verified_us: u64,
    /// When it was last listed and held against what is known.
    pub listed_us: u64,
    /// The newest entry that it got; 0 for none.
    pub newest_seq: u64,
    /// The newest keyring that it has, by its counter.
    pub keyring: u64,
    /// How many points it lacks that this device offers.
    pub lacking: u32,
}

/// One copy of one archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyId([u8; 24]);

impl CopyId {
    /// The copy of this archive in the store with this name.
    pub fn new(archive: &ArchiveId, store: &str) -> Self {
        let mut id = [0; 24];
        id[..16].copy_from_slice(&archive.0);
        id[16..].copy_from_slice(&blake3::hash(store.as_bytes()).as_bytes()[..8]);
        Self(id)
    }

    fn key(&self, object: Prunable) -> Vec<u8> {
        // Marks have the archive in front; here it is the copy.
        [&self.0[..], &mark_key(&ArchiveId([0; 16]), object)[16..]].concat()
    }
}

impl Catalogue {
    /// How far a copy has come.
    pub fn copy_facts(&self, copy: &CopyId) -> CopyFacts {
        self.get("copies", &copy.0).unwrap_or_default()
    }

    /// Changes how far it has come. Returns it.
    pub fn update_copy(
        &self,
        copy: &CopyId,
        update: impl FnOnce(&mut CopyFacts),
    ) -> anyhow::Result<CopyFacts> {
        let mut facts = self.copy_facts(copy);
        update(&mut facts);
        self.put("copies", &copy.0, &facts)?;
        Ok(facts)
    }

    /// The stores of all copies of an archive that anything is remembered of.
    pub fn copies_of(&self, archive: &ArchiveId) -> Vec<String> {
        let Ok(tree) = self.db.open_tree("copies") else { return Vec::new() };
        let values = tree.scan_prefix(archive.0).values().flatten();
        let facts = values.filter_map(|value| serde_json::from_slice::<CopyFacts>(&value).ok());
        facts.map(|facts| facts.store).collect()
    }

    /// Nothing is remembered of this copy any more; what is in the store stays there. Durable when this returns.
    pub fn forget_copy(&self, copy: &CopyId) -> anyhow::Result<()> {
        for name in ["copied", "unnamed", "spoiled"] {
            let tree = self.db.open_tree(name)?;
            for key in tree.scan_prefix(copy.0).keys() {
                tree.remove(key?)?;
            }
        }
        self.db.open_tree("copies")?.remove(copy.0)?;
        self.db.flush()?;
        Ok(())
    }

    /// Whether a copy has this object, as far as is known.
    pub fn is_copied(&self, copy: &CopyId, object: Prunable) -> bool {
        let tree = self.db.open_tree("copied");
        tree.is_ok_and(|tree| tree.contains_key(copy.key(object)).unwrap_or(false))
    }

    /// All that a copy has, as far as is known.
    pub fn copied(&self, copy: &CopyId) -> BTreeSet<Prunable> {
        self.objects_in("copied", copy)
    }

    /// A copy has these.
    pub fn put_copied(
        &self,
        copy: &CopyId,
        objects: impl IntoIterator<Item = Prunable>,
    ) -> anyhow::Result<()> {
        let tree = self.db.open_tree("copied")?;
        for object in objects {
            tree.insert(copy.key(object), "")?;
        }
        Ok(())
    }

    /// A copy does not have these, or not as they were written.
    pub fn drop_copied(
        &self,
        copy: &CopyId,
        objects: impl IntoIterator<Item = Prunable>,
    ) -> anyhow::Result<()> {
        let tree = self.db.open_tree("copied")?;
        for object in objects {
            tree.remove(copy.key(object))?;
        }
        Ok(())
    }

    /// A copy has these, and not as they were written: they count as there again when they were sent again.
    pub fn spoil(&self, copy: &CopyId, objects: &[Prunable]) -> anyhow::Result<()> {
        let tree = self.db.open_tree("spoiled")?;
        for object in objects {
            tree.insert(copy.key(*object), "")?;
        }
        self.drop_copied(copy, objects.iter().copied())?;
        self.db.flush()?;
        Ok(())
    }

    /// Those of which that is known.
    pub fn spoiled(&self, copy: &CopyId) -> BTreeSet<Prunable> {
        self.objects_in("spoiled", copy)
    }

    /// This object was sent.
    pub fn put_sent(&self, copy: &CopyId, object: Prunable) -> anyhow::Result<()> {
        self.put_copied(copy, [object])?;
        self.db.open_tree("spoiled")?.remove(copy.key(object))?;
        Ok(())
    }

    fn objects_in(&self, tree: &str, copy: &CopyId) -> BTreeSet<Prunable> {
        let Ok(tree) = self.db.open_tree(tree) else { return BTreeSet::new() };
        let keys = tree.scan_prefix(copy.0).keys().flatten();
        keys.filter_map(|key| object_of(key.get(copy.0.len()..)?)).collect()
    }

    /// What nothing known names of what a copy has, and since when, µs since 1970.
    pub fn unnamed(&self, copy: &CopyId) -> BTreeMap<Prunable, i64> {
        let Ok(tree) = self.db.open_tree("unnamed") else { return BTreeMap::new() };
        let record = |(key, value): (sled::IVec, sled::IVec)| {
            Some((object_of(key.get(copy.0.len()..)?)?, i64::from_le_bytes(value.as_ref().try_into().ok()?)))
        };
        tree.scan_prefix(copy.0).flatten().filter_map(record).collect()
    }

    /// Remembers that, and nothing else of before.
    pub fn set_unnamed(&self, copy: &CopyId, unnamed: &BTreeMap<Prunable, i64>) -> anyhow::Result<()> {
        let before = self.unnamed(copy);
        let tree = self.db.open_tree("unnamed")?;
        for object in before.keys().filter(|object| !unnamed.contains_key(object)) {
            tree.remove(copy.key(*object))?;
        }
        for (object, since) in unnamed.iter().filter(|(object, since)| before.get(object) != Some(since)) {
            tree.insert(copy.key(*object), &since.to_le_bytes())?;
        }
        Ok(())
    }

    /// An object was deleted from the main store.
    pub fn put_gone(&self, archive: &ArchiveId, object: Prunable, now_us: i64) -> anyhow::Result<()> {
        self.db.open_tree("gone")?.insert(mark_key(archive, object), &now_us.to_le_bytes())?;
        Ok(())
    }

    /// What was deleted from the main store not too long ago.
    pub fn gone(&self, archive: &ArchiveId, now_us: i64) -> anyhow::Result<BTreeSet<Prunable>> {
        let tree = self.db.open_tree("gone")?;
        let mut gone = BTreeSet::new();
        for record in tree.scan_prefix(archive.0) {
            let (key, value) = record?;
            let at = value.as_ref().try_into().map_or(0, i64::from_le_bytes);
            let object = key.get(archive.0.len()..).and_then(object_of);
            match object.filter(|_| now_us.saturating_sub(at) < GONE_FOR_US) {
                Some(object) => drop(gone.insert(object)),
                None => drop(tree.remove(key)?),
            }
        }
        Ok(gone)
    }

    /// Points that a copy has and the main store never got, oldest first.
    pub fn elsewhere(&self, archive: &ArchiveId) -> Vec<Point> {
        self.points_in("elsewhere", archive)
    }

    /// One of them.
    pub fn point_elsewhere(&self, archive: &ArchiveId, seq: u64) -> Option<Point> {
        self.get("elsewhere", &point_key(archive, seq))
    }

    /// A copy has a point that the main store does not have. Durable when this returns: the entry in the store is known
    /// to be ours.
    pub fn put_elsewhere(&self, archive: &ArchiveId, point: &Point) -> anyhow::Result<()> {
        self.put("elsewhere", &point_key(archive, point.seq), point)?;
        self.db.flush()?;
        Ok(())
    }

    /// This copy is the main store from now on, and the main store, called `before`, a copy. Each takes its ages along; points
    /// that the new one lacks are in other stores, if anywhere. Durable when this returns.
    pub fn becomes_main(&self, archive: &ArchiveId, copy: &CopyId, before: &str) -> anyhow::Result<()> {
        let (ages, its_ages) = (self.facts(archive), self.copy_facts(copy));
        self.update_copy(&CopyId::new(archive, before), |facts| {
            before.clone_into(&mut facts.store);
            (facts.uploaded_us, facts.verified_us) = (ages.uploaded_us, ages.verified_us);
        })?;
        self.update_facts(archive, |facts| facts.verified_us = its_ages.verified_us);
        let has = |seq: u64| self.is_copied(copy, Prunable::Entry(seq));
        let points = self.points(archive).into_iter().map(|point| point.seq);
        let lost: Vec<u64> = points.filter(|seq| !has(*seq)).collect();
        self.move_points(archive, &lost, "points", "elsewhere")
    }

    /// The main store has it now, or nobody does.
    pub fn drop_elsewhere(&self, archive: &ArchiveId, seq: u64) -> anyhow::Result<()> {
        self.db.open_tree("elsewhere")?.remove(point_key(archive, seq))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const ARCHIVE: ArchiveId = ArchiveId([5; 16]);

    #[test]
    fn each_copy_is_remembered_by_itself_and_forgotten_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(folder.path()).unwrap();
        let copies = ["cloud", "nas"].map(|store| (store, CopyId::new(&ARCHIVE, store)));
        let objects = BTreeSet::from([Prunable::Entry(7), Prunable::Pack([b'e'; 16])]);
        for (store, copy) in &copies {
            catalogue.put_copied(copy, objects.clone()).unwrap();
            catalogue.set_unnamed(copy, &BTreeMap::from([(Prunable::Entry(7), -3)])).unwrap();
            catalogue.update_copy(copy, |facts| facts.store = (*store).to_owned()).unwrap();
        }
        assert_eq!(catalogue.copies_of(&ARCHIVE).len(), 2);
        catalogue.drop_copied(&copies[0].1, [Prunable::Entry(7)]).unwrap();
        assert_eq!(catalogue.copied(&copies[1].1), objects);
        assert!(!catalogue.is_copied(&copies[0].1, Prunable::Entry(7)));
        catalogue.forget_copy(&copies[0].1).unwrap();
        assert_eq!(catalogue.copies_of(&ARCHIVE), ["nas"]);
        assert!(catalogue.copied(&copies[0].1).is_empty() && catalogue.unnamed(&copies[0].1).is_empty());
        assert_eq!(catalogue.unnamed(&copies[1].1), BTreeMap::from([(Prunable::Entry(7), -3)]));
        catalogue.set_unnamed(&copies[1].1, &BTreeMap::new()).unwrap();
        assert!(catalogue.unnamed(&copies[1].1).is_empty());
    }

    #[test]
    fn what_is_gone_is_remembered_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(folder.path()).unwrap();
        catalogue.put_gone(&ARCHIVE, Prunable::Entry(1), 10).unwrap();
        catalogue.put_gone(&ARCHIVE, Prunable::Entry(2), 11).unwrap();
        assert_eq!(catalogue.gone(&ARCHIVE, 12).unwrap().len(), 2);
        let later = catalogue.gone(&ARCHIVE, 10 + GONE_FOR_US).unwrap();
        assert_eq!(later, BTreeSet::from([Prunable::Entry(2)]));
    }
}
