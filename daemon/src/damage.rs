//! What is wrong with which object in a store, what it holds, and which recovery points it costs.
//!
//! A report lives in the catalogue from the verification, restore or rehearsal that found it to the one that finds the
//! objects right again. Which points an object costs is not stored: it follows from the points that there are.

use std::collections::{BTreeMap, BTreeSet};

use chatkeep_format::{ArchiveId, ObjectName};
use chatkeep_ipc::VerifyDepth;
use chatkeep_planner::{Dependents, KnownEntry, Prunable};
use serde::{Deserialize, Serialize};

use crate::catalogue::Point;

/// Objects of a report that are shown, and points of each: a store of which all is gone must not make a message that no
/// bus takes, nor a report that fills the memory. The list of points marks all of them, the log names all objects.
const SHOWN_MAX: usize = 256;
const POINTS_SHOWN_MAX: usize = 64;

/// How an object is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamageKind {
    /// It is not there.
    Missing,
    /// Bytes of it changed, or it is cut off.
    Damaged,
    /// A later version wrote it.
    Newer,
    /// Another object, intact, stands in its place.
    Swapped,
    /// It is authentic, and against the format: no version of ours wrote it.
    Malformed,
    /// It is intact, and not the one that a newer entry builds on.
    Chain,
    /// All objects are intact, and do not add up to what was captured.
    Content,
}

impl DamageKind {
    /// The word on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Damaged => "damaged",
            Self::Newer => "newer",
            Self::Swapped => "swapped",
            Self::Malformed => "malformed",
            Self::Chain => "chain",
            Self::Content => "content",
        }
    }
}

/// One object that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Its key in the store.
    pub object: String,
    /// How it is damaged.
    pub kind: DamageKind,
    /// The same in words, with the place.
    pub what: String,
    /// What it holds, as far as that is known: `1024 pages of notes.db`.
    #[serde(default)]
    pub holds: String,
    /// Points that cannot be restored because of it, the newest 64. Made by [`DamageReport::locate`].
    #[serde(skip)]
    pub points: Vec<u64>,
}

impl Damage {
    /// Which object of the archive it is.
    pub fn name(&self) -> Option<ObjectName> {
        ObjectName::parse(&self.object).map(|(_, name)| name)
    }
}

/// Everything that is known to be damaged in one archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageReport {
    /// The objects, each once.
    pub damages: Vec<Damage>,
    /// Points that one of them costs. Made by [`DamageReport::locate`].
    #[serde(skip)]
    affected: BTreeSet<u64>,
}

impl DamageReport {
    /// A report of these.
    pub fn of(damages: Vec<Damage>) -> Self {
        Self { damages, affected: BTreeSet::new() }
    }

    /// Whether nothing is damaged.
    pub fn is_empty(&self) -> bool {
        self.damages.is_empty()
    }

    /// Whether this point cannot be restored.
    pub fn affects(&self, seq: u64) -> bool {
        self.affected.contains(&seq)
    }

    /// Takes in what was just found. What was known of the same objects is replaced.
    pub fn add(&mut self, found: Vec<Damage>) {
        for damage in found {
            match self.damages.iter_mut().find(|known| known.object == damage.object) {
                // A restore names the object, a verification knows what is in it.
                Some(known) if damage.holds.is_empty() => {
                    *known = Damage { holds: std::mem::take(&mut known.holds), ..damage };
                }
                Some(known) => *known = damage,
                None => self.damages.push(damage),
            }
        }
    }

    /// Takes in the end of a verification: what it looked at and did not find damaged is well again. One that only looked
    /// whether everything is there does not see damage inside of a pack.
    pub fn verified(&mut self, depth: VerifyDepth, found: Vec<Damage>) {
        let unseen = |damage: &Damage| {
            let pack = matches!(damage.name(), Some(ObjectName::Pack(_)));
            damage.kind == DamageKind::Content
                || depth == VerifyDepth::Manifest && pack && damage.kind != DamageKind::Missing
        };
        self.damages.retain(unseen);
        self.add(found);
    }

    /// This point was restored and proved: whatever it needs is well.
    pub fn restored(&mut self, seq: u64, points: &[Point]) {
        let mut well = BTreeSet::new();
        let mut next = seq;
        while let Some(point) = points.iter().find(|point| point.seq == next) {
            well.insert(Prunable::Entry(point.seq));
            well.extend(point.packs.iter().map(|pack| Prunable::Pack(*pack)));
            if point.parent_seq >= next {
                break;
            }
            next = point.parent_seq;
        }
        self.damages.retain(|damage| prunable(damage).is_none_or(|object| !well.contains(&object)));
    }

    /// These objects were made again.
    pub fn repaired(&mut self, names: &[ObjectName]) {
        self.damages.retain(|damage| damage.name().is_none_or(|name| !names.contains(&name)));
    }

    /// Finds out which of `points` the damage costs. Damage that costs none is of no interest any more, also if a point
    /// needs it that is `forgotten`.
    pub fn locate(&mut self, points: &[Point], forgotten: &[Point]) {
        self.affected.clear();
        if self.is_empty() {
            return;
        }
        let offered: BTreeSet<u64> = points.iter().map(|point| point.seq).collect();
        let entries: BTreeMap<u64, KnownEntry> = points
            .iter()
            .chain(forgotten)
            .map(|point| {
                let entry = KnownEntry { parent_seq: point.parent_seq, packs: point.packs.clone() };
                (point.seq, entry)
            })
            .collect();
        let objects: BTreeSet<Prunable> = self.damages.iter().filter_map(prunable).collect();
        let dependents = Dependents::new(entries.iter().map(|(seq, entry)| (*seq, entry)), &objects);
        for damage in &mut self.damages {
            damage.points = match prunable(damage) {
                Some(object) => dependents.on(object),
                // The keyring: without it only a device that has the keys opens anything.
                None => entries.keys().rev().copied().collect(),
            };
            self.affected.extend(&damage.points);
            damage.points.retain(|seq| offered.contains(seq));
            damage.points.truncate(POINTS_SHOWN_MAX);
        }
        self.damages.retain(|damage| !damage.points.is_empty());
    }

    /// As it goes over D-Bus: object, kind, what it holds, points.
    pub fn wire(&self) -> Vec<(String, String, String, Vec<String>)> {
        let shown = self.damages.iter().take(SHOWN_MAX).map(|damage| {
            let points = damage.points.iter().map(u64::to_string).collect();
            (damage.object.clone(), damage.kind.as_str().to_owned(), damage.holds.clone(), points)
        });
        shown.collect()
    }
}

fn prunable(damage: &Damage) -> Option<Prunable> {
    match damage.name()? {
        ObjectName::Entry(seq) => Some(Prunable::Entry(seq)),
        ObjectName::Pack(name) => Some(Prunable::Pack(name)),
        ObjectName::Keyring(_) => None,
    }
}

/// For tests and errors: an object of an archive, damaged like this.
pub fn damage(archive: &ArchiveId, name: ObjectName, kind: DamageKind, what: impl Into<String>) -> Damage {
    Damage {
        object: name.store_key(archive),
        kind,
        what: what.into(),
        holds: String::new(),
        points: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const ARCHIVE: ArchiveId = ArchiveId([3; 16]);
    const PACK: [u8; 16] = [7; 16];

    fn point(seq: u64, parent_seq: u64, packs: &[[u8; 16]]) -> Point {
        Point {
            seq,
            digest: [0; 32],
            parent_seq,
            base_seq: 1,
            level: 0,
            taken_at_us: 0,
            bytes: 0,
            packs: packs.to_vec(),
            databases: Vec::new(),
            folders: Vec::new(),
            lists_unread: false,
            verified_us: 0,
        }
    }

    fn points() -> Vec<Point> {
        vec![point(1, 0, &[PACK]), point(2, 1, &[]), point(3, 2, &[]), point(4, 0, &[])]
    }

    fn report(found: &[(ObjectName, DamageKind)]) -> DamageReport {
        let mut report = DamageReport::default();
        report.add(found.iter().map(|(name, kind)| damage(&ARCHIVE, *name, *kind, "")).collect());
        report.locate(&points(), &[]);
        report
    }

    fn affected(report: &DamageReport) -> Vec<u64> {
        (1..=4).filter(|seq| report.affects(*seq)).collect()
    }

    #[test]
    fn each_object_says_which_points_it_costs() {
        let report = report(&[
            (ObjectName::Entry(3), DamageKind::Missing),
            (ObjectName::Pack(PACK), DamageKind::Damaged),
        ]);
        assert_eq!(affected(&report), [1, 2, 3]);
        let points: Vec<_> = report.damages.iter().map(|damage| damage.points.clone()).collect();
        assert_eq!(points, [vec![3], vec![3, 2, 1]]);
    }

    #[test]
    fn chains_lead_over_forgotten_points_and_these_alone_are_of_no_interest() {
        let (offered, forgotten): (Vec<_>, Vec<_>) = points().into_iter().partition(|point| point.seq == 3);
        let mut report = report(&[(ObjectName::Entry(1), DamageKind::Missing)]);
        report.locate(&offered, &forgotten);
        assert_eq!((affected(&report), &report.damages[0].points), (vec![1, 2, 3], &vec![3]));
        let mut report =
            DamageReport::of(vec![damage(&ARCHIVE, ObjectName::Entry(2), DamageKind::Missing, "")]);
        report.locate(&[point(4, 0, &[])], &forgotten);
        assert!(report.is_empty());
    }

    #[test]
    fn what_costs_no_point_is_forgotten() {
        assert!(report(&[(ObjectName::Pack([9; 16]), DamageKind::Damaged)]).is_empty());
    }

    #[test]
    fn a_restored_point_clears_what_it_needs_and_nothing_else() {
        let mut report = report(&[
            (ObjectName::Entry(3), DamageKind::Missing),
            (ObjectName::Pack(PACK), DamageKind::Damaged),
        ]);
        report.restored(2, &points());
        report.locate(&points(), &[]);
        assert_eq!(affected(&report), [3]);
    }

    #[test]
    fn a_look_at_names_does_not_clear_damage_inside_of_a_pack() {
        let pack = ObjectName::Pack(PACK);
        let mut shallow = report(&[(pack, DamageKind::Damaged), (ObjectName::Entry(3), DamageKind::Missing)]);
        shallow.verified(VerifyDepth::Manifest, Vec::new());
        assert_eq!(shallow.damages.len(), 1);
        let mut missing = report(&[(pack, DamageKind::Missing)]);
        missing.verified(VerifyDepth::Manifest, Vec::new());
        assert!(missing.is_empty(), "that it is there again shows");
        shallow.verified(VerifyDepth::Chunks, Vec::new());
        assert!(shallow.is_empty());
    }

    #[test]
    fn a_report_survives_the_cache() {
        let mut report = report(&[(ObjectName::Pack(PACK), DamageKind::Swapped)]);
        report.damages[0].holds = "3 pages of a.db".to_owned();
        let bytes = serde_json::to_vec(&report).unwrap();
        let mut read: DamageReport = serde_json::from_slice(&bytes).unwrap();
        read.locate(&points(), &[]);
        assert_eq!(read, report);
    }
}
