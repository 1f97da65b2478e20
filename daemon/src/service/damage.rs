//! What becomes of verifications, rehearsals and repairs.
//!
//! Damage that was found stays shown until it is found right. A pack is made again from the live database where that still
//! has the pages; what cannot be made again, if the next increment would build on it, makes the next capture a base.

use std::collections::BTreeSet;
use std::sync::Arc;

use chatkeep_format::ObjectName;
use chatkeep_ipc::{NewJob, VerifyDepth};
use chatkeep_planner::{Event as Happened, Prunable, SourceId};
use tracing::warn;

use super::Service;
use crate::catalogue::{CopyId, Point};
use crate::damage::{Damage, DamageKind, DamageReport};
use crate::event::{Command, Opened, Work};
use crate::fault::{Fault, Result};
use crate::follower::LostPack;
use crate::source::{Phase, Source};
use crate::spool::Spooled;

/// More packs than this are not made again one by one, some 256 MB of pages: the base that follows has them all, and those
/// whose pages did not change under the same names.
const REBUILD_MAX: usize = 64;

impl Service {
    pub(super) fn verified(
        &mut self,
        number: SourceId,
        depth: VerifyDepth,
        points: &[u64],
        damages: Vec<Damage>,
    ) -> Result<()> {
        if damages.is_empty() && depth == VerifyDepth::Chunks {
            self.note_facts(number, |facts, now| facts.verified_us = now);
        }
        let report = self.change_damage(number, |report, _| report.verified(depth, damages));
        if depth != VerifyDepth::Manifest {
            let sound = points.iter().copied().filter(|seq| !report.affects(*seq));
            self.mark_verified(number, &sound.collect());
        }
        self.mend(number);
        if report.is_empty() { Ok(()) } else { Err(Fault::of_damage(report.damages)) }
    }

    pub(super) fn drilled(&mut self, number: SourceId, points: &[u64], failure: Option<Fault>) -> Result<()> {
        self.restored(number, points);
        if !points.is_empty() {
            self.note_facts(number, |facts, now| facts.drilled_us = now);
        }
        if let Some(opened) = self.sources.get(&number).and_then(|source| source.opened.clone()) {
            let id = &opened.archive.id;
            let drills = self.tools.catalogue.drills(id).prove(id, &opened.keys.roots);
            self.update(number, |source| source.drills = drills);
        }
        let Some(fault) = failure else { return Ok(()) };
        if !fault.damage().is_empty() {
            self.found_damage(number, fault.damage().to_vec());
        }
        Err(fault)
    }

    /// These points were restored and proved.
    pub(super) fn restored(&mut self, number: SourceId, points: &[u64]) {
        let had_damage = self.sources.get(&number).is_some_and(|source| !source.damage.is_empty());
        if had_damage {
            self.change_damage(number, |report, known| {
                for seq in points {
                    report.restored(*seq, known);
                }
            });
        }
        self.mark_verified(number, &points.iter().copied().collect());
    }

    /// A job met damage on its way.
    pub(super) fn found_damage(&mut self, number: SourceId, found: Vec<Damage>) {
        self.change_damage(number, |report, _| report.add(found));
        self.mend(number);
    }

    pub(super) fn repaired(&mut self, number: SourceId, objects: &[ObjectName]) {
        self.change_damage(number, |report, _| report.repaired(objects));
        self.rebase_if_broken(number);
    }

    /// The object went up (once more).
    pub(super) fn uploaded_again(&mut self, number: SourceId, name: ObjectName) {
        let damage = self.sources.get(&number).map(|source| &source.damage);
        if damage.is_some_and(|damage| damage.damages.iter().any(|known| known.name() == Some(name))) {
            self.change_damage(number, |report, _| report.repaired(&[name]));
        }
    }

    /// Brings back what a copy has intact, makes again what can be made again, and begins anew where that is the only way to
    /// go on.
    pub(super) fn mend(&mut self, number: SourceId) {
        let Some(source) = self.sources.get(&number) else { return };
        if source.damage.is_empty() || source.phase != Phase::Open {
            return;
        }
        let objects = self.on_copies(source);
        let Some(opened) = source.opened.clone().filter(|_| !objects.is_empty()) else {
            return self.mend_from_database(number);
        };
        let copies = self.copies_to_read(source);
        let job = NewJob { id: self.tools.server.new_job_id(), started_by: "repair".to_owned() };
        self.run(job, "repair", Some(number), false, Work::Fetch { opened, copies, objects });
    }

    /// What is damaged and can be brought back from a copy: packs, and entries that are missing.
    fn on_copies(&self, source: &Source) -> Vec<ObjectName> {
        let Some(id) = source.registration.archive else { return Vec::new() };
        let copies: Vec<CopyId> =
            self.copies_to_read(source).iter().map(|(store, _)| CopyId::new(&id, store)).collect();
        let has = |object| copies.iter().any(|copy| self.tools.catalogue.is_copied(copy, object));
        let damages = source.damage.damages.iter();
        let back = damages.filter_map(|damage| match (damage.name()?, damage.kind) {
            (name @ ObjectName::Pack(pack), kind) => {
                let replaced =
                    matches!(kind, DamageKind::Missing | DamageKind::Damaged | DamageKind::Swapped);
                (replaced && has(Prunable::Pack(pack))).then_some(name)
            }
            (name @ ObjectName::Entry(seq), DamageKind::Missing) => has(Prunable::Entry(seq)).then_some(name),
            _ => None,
        });
        back.collect()
    }

    /// Copies gave what they had.
    pub(super) fn fetched(&mut self, number: SourceId, objects: &[ObjectName]) {
        self.change_damage(number, |report, _| report.repaired(objects));
        self.mend_from_database(number);
    }

    fn mend_from_database(&mut self, number: SourceId) {
        let Some(source) = self.sources.get(&number) else { return };
        if source.damage.is_empty() || source.phase != Phase::Open {
            return;
        }
        let Some(opened) = source.opened.clone() else { return };
        let (waiting, lost) = self.repairs(&opened, &source.damage);
        if !waiting.is_empty() {
            self.put_repairs(number, opened, waiting);
        }
        if lost.is_empty() || lost.len() > REBUILD_MAX {
            self.rebase_if_broken(number);
        } else {
            self.out.push(Command::Rebuild { source: number, packs: lost });
        }
    }

    /// Packs of the report that were made again already and wait in the spool, and those that may be made again.
    fn repairs(&self, opened: &Opened, report: &DamageReport) -> (Vec<Spooled>, Vec<LostPack>) {
        let spooled = opened.spool.repairs().unwrap_or_default();
        let (mut waiting, mut lost) = (Vec::new(), Vec::new());
        for name in report.damages.iter().filter_map(Damage::name) {
            let ObjectName::Pack(pack) = name else { continue };
            if let Some(spooled) = spooled.iter().find(|spooled| spooled.name == name) {
                waiting.push(spooled.clone());
            } else {
                let pages = self.tools.catalogue.pack_pages(&opened.archive.id, &pack);
                lost.extend(pages.map(|pages| LostPack { name: pack, pages }));
            }
        }
        (waiting, lost)
    }

    /// The follower did what it could.
    pub(super) fn rebuilt(&mut self, number: SourceId, packs: Vec<Spooled>, lost: usize) {
        let Some(source) = self.sources.get(&number) else { return };
        if lost > 0 {
            warn!(database = %source.id, lost, "packs cannot be made again: their pages have changed");
        }
        match source.opened.clone() {
            Some(opened) if !packs.is_empty() => self.put_repairs(number, opened, packs),
            _ => self.rebase_if_broken(number),
        }
    }

    fn put_repairs(&mut self, number: SourceId, opened: Arc<Opened>, packs: Vec<Spooled>) {
        let job = NewJob { id: self.tools.server.new_job_id(), started_by: "repair".to_owned() };
        self.run(job, "repair", Some(number), false, Work::Repair { opened, packs });
    }

    /// When what the next increment would build on is damaged, it is a base.
    fn rebase_if_broken(&mut self, number: SourceId) {
        let Some(source) = self.sources.get_mut(&number).filter(|source| source.phase == Phase::Open) else {
            return;
        };
        let Some(log) = &mut source.log else { return };
        let damaged: BTreeSet<ObjectName> = source.damage.damages.iter().filter_map(Damage::name).collect();
        let broken = |point: &Point| {
            let packs = point.packs.iter().map(|pack| ObjectName::Pack(*pack));
            damaged.contains(&ObjectName::Entry(point.seq))
                || packs.into_iter().any(|pack| damaged.contains(&pack))
        };
        if log.chain.iter().any(broken) {
            log.confirmed = false;
            let pack = |name: &ObjectName| match name {
                ObjectName::Pack(pack) => Some(*pack),
                _ => None,
            };
            let bad_packs = damaged.iter().filter_map(pack).collect();
            self.out.push(Command::Rebase { source: number, bad_packs });
            self.plan(Happened::CaptureNow { source: number });
        }
    }

    /// Changes the report of a source, and shows it. Returns it.
    fn change_damage(
        &mut self,
        number: SourceId,
        change: impl FnOnce(&mut DamageReport, &[Point]),
    ) -> DamageReport {
        let archive = self.sources.get(&number).and_then(|source| source.registration.archive);
        let Some(archive) = archive else { return DamageReport::default() };
        let report = self.tools.catalogue.update_damage(&archive, change);
        let shown = report.clone();
        self.update(number, |source| source.set_damage(shown));
        report
    }

    fn mark_verified(&mut self, number: SourceId, points: &BTreeSet<u64>) {
        let Some(archive) = self.sources.get(&number).and_then(|source| source.registration.archive) else {
            return;
        };
        let now = crate::clock::now_us();
        for seq in points {
            let Some(mut point) = self.tools.catalogue.point(&archive, *seq) else { continue };
            point.verified_us = now;
            if let Err(error) = self.tools.catalogue.put_point(&archive, &point) {
                warn!(%error, "the cache cannot be written");
            }
        }
        self.tools.catalogue.flush();
    }
}
