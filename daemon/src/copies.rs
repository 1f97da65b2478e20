//! Brings one copy of an archive, in a further store, as far as it can be brought now.
//!
//! What it lacks, and in which order it gets that, is decided by the planner ([`plan_copy`], [`plan_copy_prune`]). A copy
//! has the same objects under the same names as the main store. Their bytes come from the queue if they are still there,
//! else from the main store, else from another copy; each is proved before it is sent. What a copy has is remembered in
//! the catalogue, and held against a listing after a start, after a failure and once a day.
//!
//! It can be stopped between any two objects, and goes on from there the next time.

mod listed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chatkeep_format::{ArchiveId, ObjectName, entry_digest};
use chatkeep_planner::{
    CopyPlan, CopyStep, CopyView, FOLLOWED_MAX, KnownEntry, PackName, Prunable, RetentionPolicy, SourceId,
    plan_copy,
};
use chatkeep_store::StoreError;
use tracing::{debug, info, warn};

use crate::archive::{Archive, ArchiveError};
use crate::catalogue::{Catalogue, CopyId, Point};
use crate::event::Opened;
use crate::fallback::Fallback;
use crate::fault::{Fault, Result};
use crate::spool::Spooled;

/// A store that takes longer for one object is given up for now.
const OBJECT_TIMEOUT: Duration = Duration::from_mins(10);

/// What to do for one copy.
pub struct CopyOrder {
    /// Whose archive.
    pub source: SourceId,
    /// Name of the copy's store.
    pub store: String,
    /// The copy.
    pub to: Archive,
    /// Name of the main store.
    pub main: String,
    /// What is open: the main store's archive, the keys, the queue.
    pub opened: Arc<Opened>,
    /// Other copies, to read from what the main store does not have.
    pub others: Vec<(String, Archive)>,
    /// Points of the queue, oldest first, that go up although the main store does not have them: it is away.
    pub waiting: Vec<Point>,
    /// The newest entry written here; what is above it was written by somebody else.
    pub written_seq: u64,
    /// Points that somebody wants kept.
    pub pins: Vec<u64>,
    /// Which points stay that only copies have.
    pub policy: RetentionPolicy,
    /// All points are wanted, also those that it missed: it is to become the main store.
    pub everything: bool,
    /// Hold it against a listing first, and delete from it afterwards.
    pub list: bool,
    /// The time, µs since 1970.
    pub now_us: i64,
    /// Set to stop it.
    pub cancelled: Arc<AtomicBool>,
}

/// How far a copy is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Behind {
    /// Newer points than it has.
    pub entries: u64,
    /// What is to be sent to it, in bytes, as far as it is known.
    pub bytes: u64,
}

/// How a run over a copy ended.
#[derive(Debug, Default)]
pub struct CopyEnd {
    /// It was listed, and the listing held against what is known.
    pub listed: bool,
    /// The store does not permit to be listed.
    pub blind: bool,
    /// What the user should know.
    pub caution: Option<String>,
    /// Something could not be read anywhere, so that not all was sent: why, the first time.
    pub unread: Option<Fault>,
    /// Objects and bytes that were sent.
    pub objects: u64,
    /// See above.
    pub bytes: u64,
    /// Objects that were deleted.
    pub deleted: u64,
}

/// What is known of the archive.
struct Known {
    entries: BTreeMap<u64, KnownEntry>,
    forgotten: BTreeSet<u64>,
    points: BTreeMap<u64, Point>,
    /// Every point is among them, not only those that a copy that follows needs.
    all: bool,
}

/// One run over one copy.
struct Run<'a> {
    order: &'a CopyOrder,
    catalogue: &'a Catalogue,
    copy: CopyId,
    reads: Fallback,
    queue: BTreeMap<ObjectName, PathBuf>,
    end: CopyEnd,
}

/// Does it. `tell` hears how far the copy is behind: at first, and after each point.
pub async fn bring_up(
    catalogue: &Catalogue,
    order: &CopyOrder,
    tell: &(dyn Fn(Behind) + Sync),
) -> Result<CopyEnd> {
    let opened = &order.opened;
    let main = std::iter::once((order.main.clone(), opened.archive.clone()));
    let stores = main.chain(order.others.iter().cloned()).collect();
    let spooled = opened.spool.list()?;
    let run = Run {
        order,
        catalogue,
        copy: CopyId::new(order.id(), &order.store),
        reads: Fallback::new(stores, opened.keys.roots.clone(), catalogue.clone()),
        queue: spooled.into_iter().map(|Spooled { name, path, .. }| (name, path)).collect(),
        end: CopyEnd::default(),
    };
    run.run(tell).await
}

impl CopyOrder {
    fn id(&self) -> &ArchiveId {
        &self.opened.archive.id
    }
}

impl Run<'_> {
    async fn run(mut self, tell: &(dyn Fn(Behind) + Sync)) -> Result<CopyEnd> {
        let (order, catalogue, copy) = (self.order, self.catalogue, self.copy);
        catalogue
            .update_copy(&copy, |facts| facts.store.clone_from(&order.store))
            .map_err(Fault::internal)?;
        let mut known = self.gather(order.list || order.everything)?;
        // Before anything is asked: a store that is away is behind all the same.
        tell(self.behind(&known, &self.plan(&known)));
        let mut listed = None;
        if order.list {
            listed = self.hold_against_listing(&known).await?;
        }
        self.keyring().await?;
        if !known.all && self.plan(&known).steps.len() > FOLLOWED_MAX {
            known = self.gather(true)?;
        }
        let plan = self.plan(&known);
        let mut skipped = BTreeSet::new();
        for (at, step) in plan.steps.iter().enumerate() {
            self.check_cancelled()?;
            let parent_skipped = step.parent_seq > 0 && skipped.contains(&step.parent_seq);
            if parent_skipped || !self.carry_out(step, &known).await? {
                skipped.insert(step.seq);
                continue;
            }
            tell(self.behind_after(&known, &plan, at + 1));
        }
        self.note_end(&known, &plan, &skipped)?;
        if let Some(listed) = listed {
            self.let_go(&mut known)?;
            self.prune(&known, listed).await?;
        }
        catalogue.flush();
        if self.end.objects > 0 || self.end.deleted > 0 {
            let (objects, bytes, deleted) = (self.end.objects, self.end.bytes, self.end.deleted);
            info!(store = %order.store, objects, bytes, deleted, "a copy was brought up to date");
        }
        Ok(self.end)
    }

    fn id(&self) -> &ArchiveId {
        self.order.id()
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.order.cancelled.load(Ordering::Relaxed) { Err(Fault::cancelled()) } else { Ok(()) }
    }

    /// Reads from the catalogue what is to be planned with: every point, or those that a copy that follows lacks.
    fn gather(&self, all: bool) -> Result<Known> {
        let (order, catalogue, id) = (self.order, self.catalogue, self.order.id());
        let copied_seq = catalogue.copy_facts(&self.copy).newest_seq;
        let head = catalogue.head(id).map_err(Fault::internal)?.map_or(0, |head| head.seq);
        let missed = |seq: &u64| {
            let there = catalogue.is_copied(&self.copy, Prunable::Entry(*seq));
            !there && *seq <= copied_seq && catalogue.point(id, *seq).is_some()
        };
        let far = copied_seq == 0 || head.saturating_sub(copied_seq) > FOLLOWED_MAX as u64;
        let spoiled = !catalogue.spoiled(&self.copy).is_empty();
        let all = all || far || spoiled || order.pins.iter().any(missed);
        let mut known =
            Known { entries: BTreeMap::new(), forgotten: BTreeSet::new(), points: BTreeMap::new(), all };
        let mut forgotten = Vec::new();
        if all {
            forgotten = catalogue.forgotten(id);
            catalogue.points(id).into_iter().for_each(|point| known.add(point));
            catalogue.elsewhere(id).into_iter().for_each(|point| known.add(point));
        } else {
            let new = (copied_seq + 1..=head).filter_map(|seq| catalogue.point(id, seq));
            new.for_each(|point| known.add(point));
        }
        order.waiting.iter().for_each(|point| known.add(point.clone()));
        forgotten.retain(|point| !known.points.contains_key(&point.seq));
        known.forgotten.extend(forgotten.iter().map(|point| point.seq));
        for point in forgotten {
            known.add(point);
        }
        if !all {
            self.add_ancestors(&mut known);
        }
        Ok(known)
    }

    /// What the new entries build on, as far as the copy does not have it.
    fn add_ancestors(&self, known: &mut Known) {
        let mut waiting: Vec<u64> = known.entries.values().map(|entry| entry.parent_seq).collect();
        while let Some(seq) = waiting.pop() {
            let there = self.catalogue.is_copied(&self.copy, Prunable::Entry(seq));
            if seq == 0 || there || known.entries.contains_key(&seq) {
                continue;
            }
            let (catalogue, id) = (self.catalogue, self.id());
            let offered = catalogue.point(id, seq).or_else(|| catalogue.point_elsewhere(id, seq));
            let Some(point) = offered.or_else(|| catalogue.forgotten_point(id, seq)) else { continue };
            waiting.push(point.parent_seq);
            known.forgotten.insert(seq);
            known.add(point);
        }
    }

    fn plan(&self, known: &Known) -> CopyPlan {
        let view = CopyView {
            entries: &known.entries,
            forgotten: &known.forgotten,
            pins: &self.order.pins,
            copied_seq: self.catalogue.copy_facts(&self.copy).newest_seq,
            everything: self.order.everything,
        };
        plan_copy(&view, |object| self.catalogue.is_copied(&self.copy, object))
    }

    fn behind(&self, known: &Known, plan: &CopyPlan) -> Behind {
        self.behind_after(known, plan, 0)
    }

    /// How far it is behind when so many steps are done.
    fn behind_after(&self, known: &Known, plan: &CopyPlan, done: usize) -> Behind {
        let copied_seq = self.catalogue.copy_facts(&self.copy).newest_seq;
        let newer = known.points.range(copied_seq + 1..).filter(|(seq, _)| !known.forgotten.contains(seq));
        let steps = plan.steps.iter().skip(done);
        // Of an entry that is there some packs are lost; how long these are is not known.
        let bytes = steps.filter(|step| step.entry).map(|step| known.points[&step.seq].bytes).sum();
        Behind { entries: newer.count() as u64, bytes }
    }

    /// Sends one entry with its packs. `false`: something of it cannot be read anywhere now, or is damaged everywhere.
    async fn carry_out(&mut self, step: &CopyStep, known: &Known) -> Result<bool> {
        let point = &known.points[&step.seq];
        for pack in &step.packs {
            self.check_cancelled()?;
            let Some(sealed) = self.read(ObjectName::Pack(*pack), point).await? else { return Ok(false) };
            self.send(ObjectName::Pack(*pack), sealed).await?;
        }
        if !step.entry {
            return Ok(true);
        }
        let name = ObjectName::Entry(step.seq);
        let Some(sealed) = self.read(name, point).await? else { return Ok(false) };
        if self.order.waiting.iter().any(|waiting| waiting.seq == step.seq) {
            // Should the main store never get it: then the entry on the copy is known to be ours.
            self.catalogue.put_elsewhere(self.id(), point).map_err(Fault::internal)?;
        }
        self.send(name, sealed).await?;
        let now_us = crate::clock::now_us();
        self.catalogue
            .update_copy(&self.copy, |facts| {
                facts.newest_seq = facts.newest_seq.max(step.seq);
                facts.uploaded_us = now_us;
            })
            .map_err(Fault::internal)?;
        Ok(true)
    }

    /// The bytes of an object, proved; nothing when no store has them.
    async fn read(&mut self, name: ObjectName, point: &Point) -> Result<Option<Bytes>> {
        if let Some(sealed) = self.read_spooled(name, point).await? {
            return Ok(Some(sealed));
        }
        match self.reads.object(name).await {
            Ok(sealed) if fits(name, point, &sealed) => Ok(Some(sealed)),
            Ok(_) => {
                let what = "it is not the entry that was written";
                let key = name.store_key(self.id());
                self.unread(ArchiveError::Chain { key, what }.into());
                Ok(None)
            }
            Err(error) => {
                self.unread(error.into());
                Ok(None)
            }
        }
    }

    fn unread(&mut self, fault: Fault) {
        debug!(store = %self.order.store, error = %fault.error.text(), "an object cannot be copied now");
        self.end.unread.get_or_insert(fault);
    }

    async fn read_spooled(&self, name: ObjectName, point: &Point) -> Result<Option<Bytes>> {
        let Some(path) = self.queue.get(&name).cloned() else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await.map_err(Fault::internal)?;
        // It went up meanwhile, and is in the main store.
        let Ok(sealed) = read.map(Bytes::from) else { return Ok(None) };
        let proved = self.order.to.authenticate(name, &self.order.opened.keys.roots, &sealed);
        Ok((proved.is_ok() && fits(name, point, &sealed)).then_some(sealed))
    }

    async fn send(&mut self, name: ObjectName, sealed: Bytes) -> Result<()> {
        let (order, len) = (self.order, sealed.len() as u64);
        let put = order.to.put_copy(name, sealed, &order.opened.keys.roots);
        tokio::time::timeout(OBJECT_TIMEOUT, put).await.unwrap_or_else(|_| Err(hangs()))?;
        if let Some(object) = prunable(name) {
            self.catalogue.put_sent(&self.copy, object).map_err(Fault::internal)?;
        }
        self.end.objects += 1;
        self.end.bytes += len;
        Ok(())
    }

    /// The newest keyring that this device knows.
    async fn keyring(&mut self) -> Result<()> {
        let Some((counter, bytes)) = self.catalogue.keyring(self.id()) else { return Ok(()) };
        let known = self.catalogue.copy_facts(&self.copy).keyring == counter;
        if known && !self.order.list {
            return Ok(());
        }
        let name = ObjectName::Keyring(counter);
        let there = match self.order.to.has(name).await {
            Ok(there) => there,
            Err(ArchiveError::Store(StoreError::Permission(_))) => false,
            Err(error) => return Err(error.into()),
        };
        // One that was found damaged is there, and not known: sending it tells.
        if !(known && there) {
            self.send(name, Bytes::from(bytes)).await?;
        }
        let noted = self.catalogue.update_copy(&self.copy, |facts| facts.keyring = counter);
        noted.map(drop).map_err(Fault::internal)
    }

    fn note_end(&self, known: &Known, plan: &CopyPlan, skipped: &BTreeSet<u64>) -> Result<()> {
        let newest = known.points.keys().rev().find(|seq| !known.forgotten.contains(seq)).copied();
        let lacking = plan.lacking + skipped.iter().filter(|seq| !known.forgotten.contains(seq)).count();
        self.catalogue
            .update_copy(&self.copy, |facts| {
                if skipped.is_empty() {
                    facts.newest_seq = facts.newest_seq.max(newest.unwrap_or(0));
                }
                if known.all || lacking > 0 {
                    facts.lacking = u32::try_from(lacking).unwrap_or(u32::MAX);
                }
            })
            .map_err(Fault::internal)?;
        if !skipped.is_empty() {
            warn!(store = %self.order.store, points = skipped.len(), "not every point could be copied");
        }
        Ok(())
    }
}

impl Known {
    fn add(&mut self, point: Point) {
        let entry = KnownEntry { parent_seq: point.parent_seq, packs: point.packs.clone() };
        self.entries.insert(point.seq, entry);
        self.points.insert(point.seq, point);
    }

    /// Everything that is known to be needed by somebody.
    fn named(&self) -> BTreeSet<Prunable> {
        let entries = self.entries.iter();
        entries
            .flat_map(|(seq, entry)| {
                let packs = entry.packs.iter().map(|name: &PackName| Prunable::Pack(*name));
                packs.chain([Prunable::Entry(*seq)])
            })
            .collect()
    }
}

/// Whether these bytes are the object that a point names. The name of a pack says what is in it.
fn fits(name: ObjectName, point: &Point, sealed: &[u8]) -> bool {
    !matches!(name, ObjectName::Entry(_)) || entry_digest(sealed) == point.digest
}

fn prunable(name: ObjectName) -> Option<Prunable> {
    match name {
        ObjectName::Entry(seq) => Some(Prunable::Entry(seq)),
        ObjectName::Pack(name) => Some(Prunable::Pack(name)),
        ObjectName::Keyring(_) => None,
    }
}

fn hangs() -> ArchiveError {
    ArchiveError::Store(StoreError::Offline("it does not answer at all".into()))
}
