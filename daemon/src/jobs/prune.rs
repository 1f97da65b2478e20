//! Forgets recovery points as the policy says, and deletes what was forgotten long enough ago.
//!
//! What stays and what goes is decided by the planner ([`plan_retention`], [`plan_prune`]); here is what has to hold before
//! its plans are believed, and the order in which they are carried out:
//!
//! - a listing that lacks what is known to be there, or shows what somebody else wrote, plans nothing. (What a
//!   verification missed is known not to be there; the points it costs stay, and stand in for no others);
//! - a point is not offered any more before its entry is marked, and so long before anything of it is deleted;
//! - before every few deletions it is looked whether the newest entry is still there: a log that went back deletes nothing;
//! - a pack that a capture just made again is left alone;
//! - what the store holds on to (object lock) keeps all that it needs.
//!
//! It can be stopped between any two calls, and begins anew the next time.

mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chatkeep_crypto::DataRoots;
use chatkeep_format::{ObjectName, entry_digest};
use chatkeep_ipc::Error;
use chatkeep_planner::{
    KnownEntry, Level, Mark, PackName, PointInfo, Prunable, PrunePlan, RetentionPlan, RetentionPolicy,
    StoreView, is_ripe, listing_shrank, plan_prune, plan_retention,
};
use chatkeep_store::{NextStep, StoreError};
use futures_util::StreamExt;
use tracing::{debug, info, warn};

use crate::archive::{Archive, ArchiveError, Listing};
use crate::catalogue::{Catalogue, Head, Point, PruneFacts};
use crate::damage::{Damage, DamageReport};
use crate::event::Opened;
use crate::fault::{Fault, Result};
use crate::log::read_entries;

pub use report::{ForgottenPoint, PruneReport};

/// So many objects are deleted between two looks at the newest entry.
const BATCH_LEN: usize = 64;
/// A store that takes longer for one deletion is given up for now.
const DELETE_TIMEOUT: Duration = Duration::from_mins(1);

/// One run over one archive.
pub struct Pruning<'a> {
    /// What it works on.
    pub opened: &'a Opened,
    /// Where marks and points are remembered.
    pub catalogue: &'a Catalogue,
    /// Points that are to stay.
    pub pins: &'a [u64],
    /// What else stays.
    pub policy: RetentionPolicy,
    /// The time, µs since 1970.
    pub now_us: i64,
    /// Nothing is changed, neither here nor in the store.
    pub dry_run: bool,
    /// Set to stop it.
    pub cancelled: &'a AtomicBool,
    /// Told how many objects of how many are deleted.
    pub progress: &'a (dyn Fn(usize, usize) + Sync),
}

/// What is known before anything is decided.
struct Known {
    head: Head,
    newest_taken_at_us: i64,
    listing: Listing,
    /// Points that are offered, with those that were read just now.
    points: BTreeMap<u64, Point>,
    forgotten: BTreeMap<u64, Point>,
    marks: BTreeMap<Prunable, Mark>,
    /// What a verification or a restore found damaged or missing.
    damage: DamageReport,
    /// Packs that wait in the queue, or whose entry does.
    packs_in_use: BTreeSet<PackName>,
}

/// What is to be done.
struct Plan {
    retention: RetentionPlan,
    prune: PrunePlan,
}

impl Plan {
    /// Offered points that are marked now.
    fn to_forget(&self, known: &Known) -> Vec<u64> {
        let marked = self.prune.mark.iter().filter_map(|(object, _)| match object {
            Prunable::Entry(seq) => Some(*seq),
            Prunable::Pack(_) => None,
        });
        marked.filter(|seq| known.points.contains_key(seq)).collect()
    }
}

impl Pruning<'_> {
    /// Does it. An error means that the store could not be used; what was decided so far holds.
    pub async fn run(&self) -> Result<PruneReport> {
        if !self.dry_run {
            self.catalogue.mend_forgotten(self.id()).map_err(Fault::internal)?;
        }
        let known = match self.look().await? {
            Ok(Some(known)) => known,
            Ok(None) => return Ok(PruneReport { planned: true, ..PruneReport::default() }),
            Err(hindrance) => {
                let why = (hindrance.short_name(), hindrance.text());
                if self.catalogue.prune_facts(self.id()).hindrance.as_ref() != Some(&why) {
                    warn!(why = %hindrance.text(), "nothing is deleted");
                }
                // What is not permitted is not asked for before the next time: it may be meant so.
                let refused = matches!(hindrance, Error::AccessDenied(_));
                self.note(|facts| {
                    facts.hindrance = Some(why);
                    if refused {
                        facts.pruned_us = u64::try_from(self.now_us).unwrap_or(0);
                    }
                })?;
                return Ok(PruneReport { hindrance: Some(hindrance), ..PruneReport::default() });
            }
        };
        let plan = self.plan(&known);
        let mut report = PruneReport::of(&known, &plan);
        if self.dry_run {
            return Ok(report);
        }
        self.remember_and_forget(&known, &plan)?;
        let told = self.catalogue.prune_facts(self.id()).hindrance;
        self.note(|facts| {
            facts.pruned_us = u64::try_from(self.now_us).unwrap_or(0);
            facts.waiting_bytes = report.waiting_bytes + report.deleted_bytes;
            facts.hindrance = None;
        })?;
        let planned = (report.deleted_objects, report.deleted_bytes);
        let deleted = self.delete(&known, &plan.prune, &mut report).await;
        report.waiting_objects += planned.0 - report.deleted_objects;
        report.waiting_bytes += planned.1 - report.deleted_bytes;
        let hindrance = report.hindrance.as_ref().map(|error| (error.short_name(), error.text()));
        if let Some((_, why)) = hindrance.as_ref().filter(|new| told.as_ref() != Some(new)) {
            info!(%why, "not everything that is forgotten was deleted");
        }
        self.note(|facts| (facts.waiting_bytes, facts.hindrance) = (report.waiting_bytes, hindrance))?;
        deleted?;
        info!(
            forgotten = report.newly_forgotten,
            deleted = report.deleted_objects,
            bytes = report.deleted_bytes,
            waiting = report.waiting_objects,
            "pruned"
        );
        Ok(report)
    }

    fn id(&self) -> &chatkeep_format::ArchiveId {
        &self.archive().id
    }

    fn archive(&self) -> &Archive {
        &self.opened.archive
    }

    fn roots(&self) -> &DataRoots {
        &self.opened.keys.roots
    }

    fn note(&self, change: impl FnOnce(&mut PruneFacts)) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let mut facts = self.catalogue.prune_facts(self.id());
        change(&mut facts);
        self.catalogue.put_prune_facts(self.id(), &facts).map_err(Fault::internal)?;
        self.catalogue.flush();
        Ok(())
    }

    /// Lists the archive and holds it against what is known. Nothing when there is no entry yet; an error when the
    /// listing cannot be believed.
    async fn look(&self) -> Result<Result<Option<Known>, Error>> {
        // In this order: what a running upload publishes meanwhile is in the later ones.
        let Some(head) = self.catalogue.head(self.id()).map_err(Fault::internal)? else {
            return Ok(Ok(None));
        };
        if head.seq == 0 {
            return Ok(Ok(None));
        }
        let listing = match self.archive().list().await {
            Ok(listing) => listing,
            Err(ArchiveError::Store(StoreError::Permission(_))) => {
                let text = "the store does not permit this device to list what is there; nothing is deleted";
                return Ok(Err(Error::AccessDenied(text.to_owned())));
            }
            Err(error) => return Err(error.into()),
        };
        let queue = self.opened.spool.list()?;
        let by_seq = |points: Vec<Point>| points.into_iter().map(|point| (point.seq, point)).collect();
        let mut known = Known {
            newest_taken_at_us: 0,
            points: by_seq(self.catalogue.points(self.id())),
            forgotten: by_seq(self.catalogue.forgotten(self.id())),
            marks: self.catalogue.marks(self.id()),
            damage: self.catalogue.damage(self.id()),
            packs_in_use: packs_of(&queue),
            listing,
            head,
        };
        // One that is offered is not on its way to be deleted, whatever a crash left.
        known
            .marks
            .retain(|object, _| !matches!(object, Prunable::Entry(seq) if known.points.contains_key(seq)));
        let ours = |seq: u64| {
            known.points.contains_key(&seq)
                || queue.iter().any(|object| object.name == ObjectName::Entry(seq))
        };
        if let Some(foreign) = known.listing.entries.range(known.head.seq + 1..).find(|(seq, _)| !ours(**seq))
        {
            let key = ObjectName::Entry(*foreign.0).store_key(self.id());
            return Ok(Err(Fault::from(ArchiveError::WriterFenced { key }).error));
        }
        if let Some(error) = self.distrust(&known).await? {
            return Ok(Err(error));
        }
        self.read_unknown(&mut known).await?;
        let Some(newest) = known.points.get(&known.head.seq) else {
            let key = ObjectName::Entry(known.head.seq).store_key(self.id());
            return Ok(Err(Error::Corrupt(format!("the newest entry cannot be read: {key}"))));
        };
        known.newest_taken_at_us = newest.taken_at_us;
        Ok(Ok(Some(known)))
    }

    /// Why the listing is not what it must be; nothing when it is.
    async fn distrust(&self, known: &Known) -> Result<Option<Error>> {
        let newest = known.listing.entries.keys().next_back().copied().unwrap_or(0);
        if newest < known.head.seq {
            let error = ArchiveError::RolledBack { expected: known.head.seq, found: newest };
            return Ok(Some(Fault::from(error).error));
        }
        let offered = || known.points.range(..=known.head.seq).map(|(_, point)| point);
        let lacks_entry = |point: &&Point| !known.listing.entries.contains_key(&point.seq);
        let entries = offered().filter(lacks_entry).map(|point| ObjectName::Entry(point.seq));
        let listed = known.listing.entries.keys().copied().collect();
        self.catalogue.note_listing(self.id(), &listed).map_err(Fault::internal)?;
        let packs: BTreeSet<PackName> = offered().flat_map(|point| point.packs.iter().copied()).collect();
        let packs = packs.into_iter().filter(|name| !known.listing.packs.contains_key(name));
        // Of what was asked for and not found the listing cannot be blamed.
        let lost: BTreeSet<ObjectName> = known.damage.damages.iter().filter_map(Damage::name).collect();
        let missing = entries.chain(packs.map(ObjectName::Pack)).filter(|name| !lost.contains(name));
        let missing: Vec<ObjectName> = missing.collect();
        if let Some(first) = missing.first() {
            let text = format!(
                "the store does not list {} of the objects that recovery points need, such as {}; nothing is deleted \
                 until it does, or a verification finds that they are lost",
                missing.len(),
                first.store_key(self.id())
            );
            return Ok(Some(Error::ObjectMissing(text)));
        }
        if let Some(error) = shrank(known, &lost, self.now_us) {
            return Ok(Some(error));
        }
        let name = ObjectName::Entry(known.head.seq);
        match self.archive().get(name).await {
            Ok(sealed) if entry_digest(&sealed) == known.head.digest => Ok(None),
            Err(ArchiveError::Store(error)) => Err(error.into()),
            Ok(_) | Err(_) => {
                let text = format!(
                    "the newest entry is not what was written: {}; nothing is deleted",
                    name.store_key(self.id())
                );
                Ok(Some(Error::Corrupt(text)))
            }
        }
    }

    /// Reads entries that the catalogue does not know, and those whose lists of files could not be read before. What
    /// cannot be read stays unknown: the planner leaves alone whatever it may need.
    async fn read_unknown(&self, known: &mut Known) -> Result<()> {
        let both = [&known.points, &known.forgotten];
        let is_known = |seq: &u64| {
            *seq > known.head.seq
                || both.iter().any(|points| points.get(seq).is_some_and(|point| !point.lists_unread))
        };
        let unknown: Vec<u64> = known.listing.entries.keys().copied().filter(|seq| !is_known(seq)).collect();
        let mut entries = Box::pin(read_entries(self.archive(), self.roots(), unknown));
        while let Some((seq, answer)) = entries.next().await {
            self.check_cancelled()?;
            let point = match answer {
                Ok(entry) => entry.point,
                Err(ArchiveError::Store(error)) => return Err(error.into()),
                Err(error) => {
                    warn!(seq, %error, "an entry cannot be read: what it may need is not deleted");
                    continue;
                }
            };
            let old = [&mut known.points, &mut known.forgotten].into_iter().find_map(|it| it.get_mut(&seq));
            match old {
                Some(old) => {
                    (old.packs, old.lists_unread) = (point.packs, point.lists_unread);
                    if !self.dry_run && known.points.contains_key(&seq) {
                        self.catalogue.put_point(self.id(), &known.points[&seq]).map_err(Fault::internal)?;
                    }
                }
                None => drop(known.points.insert(seq, point)),
            }
        }
        Ok(())
    }

    fn plan(&self, known: &Known) -> Plan {
        let listed =
            |point: &&Point| point.seq <= known.head.seq && known.listing.entries.contains_key(&point.seq);
        // A point that is damaged stays, should it be mended, and stands in for no other.
        let sound = |point: &&Point| listed(point) && !known.damage.affects(point.seq);
        let judged = known.points.values().chain(known.forgotten.values()).filter(sound);
        let infos: Vec<PointInfo> = judged.map(|point| self.info(point)).collect();
        let retention = plan_retention(&infos, self.now_us, &self.policy);
        // A forgotten one that is not listed was deleted; an offered one is on its way up.
        let there = known.forgotten.values().filter(listed).chain(known.points.values());
        let entries = there.filter(|point| !point.lists_unread).map(|point| {
            (point.seq, KnownEntry { parent_seq: point.parent_seq, packs: point.packs.clone() })
        });
        let objects = known.listing.entries.iter().map(|(seq, len)| (Prunable::Entry(*seq), *len));
        let packs = known.listing.packs.iter().map(|(name, len)| (Prunable::Pack(*name), *len));
        let view = StoreView {
            objects: &objects.chain(packs).collect(),
            entries: &entries.collect(),
            packs_in_use: &known.packs_in_use,
            marks: &known.marks,
            newest_seq: known.head.seq,
            newest_taken_at_us: known.newest_taken_at_us,
            listing_trusted: true,
        };
        Plan { prune: plan_prune(&view, &retention, self.now_us), retention }
    }

    fn info(&self, point: &Point) -> PointInfo {
        PointInfo {
            seq: point.seq,
            parent_seq: point.parent_seq,
            level: Level::from_number(point.level).unwrap_or(Level::Base),
            taken_at_us: point.taken_at_us,
            pinned: self.pins.contains(&point.seq),
        }
    }

    /// Changes what is offered, and the marks: at no moment is something marked and offered.
    fn remember_and_forget(&self, known: &Known, plan: &Plan) -> Result<()> {
        let carry_out = || -> anyhow::Result<()> {
            let staying: BTreeSet<u64> =
                plan.retention.keep.iter().chain(&plan.retention.carry).copied().collect();
            let back: Vec<u64> =
                known.forgotten.keys().copied().filter(|seq| staying.contains(seq)).collect();
            self.catalogue.remember(self.id(), &back)?;
            self.catalogue.unmark(self.id(), plan.prune.unmark.iter().copied())?;
            for seq in known.forgotten.keys().filter(|seq| !known.listing.entries.contains_key(seq)) {
                self.catalogue.drop_forgotten(self.id(), *seq)?;
            }
            self.catalogue.forget(self.id(), &plan.to_forget(known))?;
            self.catalogue.mark(self.id(), &plan.prune.mark)?;
            self.catalogue.flush();
            Ok(())
        };
        carry_out().map_err(Fault::internal)
    }

    /// Deletes in the order of the plan; counts in `report` what is really gone.
    async fn delete(&self, known: &Known, plan: &PrunePlan, report: &mut PruneReport) -> Result<()> {
        let planned = plan.delete.len();
        (report.deleted_objects, report.deleted_points, report.deleted_bytes) = (0, 0, 0);
        // What the store held on to, and all that it needs.
        let mut held: BTreeSet<Prunable> = BTreeSet::new();
        let mut retained = 0;
        for (at, object) in plan.delete.iter().copied().enumerate() {
            self.check_cancelled()?;
            if at % BATCH_LEN == 0 {
                self.check_head(known).await?;
            }
            if held.contains(&object) {
                held.extend(needs(known, object));
                continue;
            }
            match self.delete_one(known, object).await {
                Ok(true) | Err(StoreError::NotFound { .. }) => {}
                Ok(false) => continue,
                Err(error) if error.next_step() == NextStep::Skip => {
                    debug!(%error, "an object is left for now");
                    held.extend(needs(known, object));
                    retained += 1;
                    continue;
                }
                Err(StoreError::Permission(_) | StoreError::Unsupported { .. }) => {
                    let text =
                        "the store does not permit this device to delete; what is forgotten stays there";
                    report.hindrance = Some(Error::AccessDenied(text.to_owned()));
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
            self.deleted(known, object, report)?;
            (self.progress)(report.deleted_objects, planned);
        }
        if retained > 0 {
            let text = format!("the store holds on to {retained} of the objects that are forgotten, for now");
            report.hindrance = Some(Error::AccessDenied(text));
        }
        Ok(())
    }

    /// Whether it was deleted: not so when somebody just made it again.
    async fn delete_one(&self, known: &Known, object: Prunable) -> Result<bool, StoreError> {
        let name = match object {
            Prunable::Entry(seq) => ObjectName::Entry(seq),
            Prunable::Pack(name) => ObjectName::Pack(name),
        };
        let _deleting = match object {
            Prunable::Entry(_) => None,
            Prunable::Pack(pack) => {
                let deleting = self.catalogue.begin_delete(self.id(), pack);
                if self.is_in_use(known, pack) {
                    debug!("a pack is needed again");
                    return Ok(false);
                }
                Some(deleting)
            }
        };
        let gone = tokio::time::timeout(DELETE_TIMEOUT, self.archive().delete(name)).await;
        gone.unwrap_or_else(|_| Err(StoreError::Transient("a deletion takes too long".into())))?;
        Ok(true)
    }

    /// Whether a capture made this pack since the plan was made: it is in the queue, or its entry has come.
    fn is_in_use(&self, known: &Known, pack: PackName) -> bool {
        // First the queue: an object leaves it only after its point is known.
        let queued = self.opened.spool.list().map_or(true, |queue| packs_of(&queue).contains(&pack));
        let newest = self.catalogue.head(self.id()).ok().flatten().map_or(0, |head| head.seq);
        queued
            || (known.head.seq + 1..=newest).any(|seq| match self.catalogue.point(self.id(), seq) {
                Some(point) => point.packs.contains(&pack),
                None => true,
            })
    }

    fn deleted(&self, known: &Known, object: Prunable, report: &mut PruneReport) -> Result<()> {
        self.catalogue.unmark(self.id(), [object]).map_err(Fault::internal)?;
        // Copies lose it, too.
        self.catalogue.put_gone(self.id(), object, self.now_us).map_err(Fault::internal)?;
        report.deleted_objects += 1;
        report.deleted_bytes += match object {
            Prunable::Entry(seq) => {
                report.deleted_points += 1;
                self.catalogue.drop_forgotten(self.id(), seq).map_err(Fault::internal)?;
                known.listing.entries[&seq]
            }
            Prunable::Pack(name) => known.listing.packs[&name],
        };
        Ok(())
    }

    /// The log did not go back, neither here nor in the store.
    async fn check_head(&self, known: &Known) -> Result<()> {
        let here = self.catalogue.head(self.id()).map_err(Fault::internal)?.map_or(0, |head| head.seq);
        let there = self.archive().has(ObjectName::Entry(known.head.seq)).await?;
        if here < known.head.seq || !there {
            let found = if there { here } else { known.head.seq - 1 };
            return Err(ArchiveError::RolledBack { expected: known.head.seq, found }.into());
        }
        Ok(())
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Fault::cancelled()) } else { Ok(()) }
    }
}

/// Why a listing cannot be believed that lacks much of what is forgotten and still there. What may have been deleted by a run
/// that could not note it does not count.
fn shrank(known: &Known, lost: &BTreeSet<ObjectName>, now_us: i64) -> Option<Error> {
    let ripe = |seq: u64| {
        let mark = known.marks.get(&Prunable::Entry(seq));
        mark.is_some_and(|mark| is_ripe(*mark, known.head.seq, now_us))
    };
    let forgotten = known.forgotten.values().filter(|point| !ripe(point.seq));
    let offered = known.points.range(..=known.head.seq).map(|(_, point)| point);
    let names = offered.chain(forgotten).flat_map(|point| {
        let packs = point.packs.iter().map(|pack| ObjectName::Pack(*pack));
        packs.chain([ObjectName::Entry(point.seq)])
    });
    let expected: BTreeSet<ObjectName> = names.filter(|name| !lost.contains(name)).collect();
    let lacks = |name: &&ObjectName| match name {
        ObjectName::Entry(seq) => !known.listing.entries.contains_key(seq),
        ObjectName::Pack(pack) => !known.listing.packs.contains_key(pack),
        ObjectName::Keyring(_) => false,
    };
    let lacking = expected.iter().filter(lacks).count();
    listing_shrank(expected.len(), lacking).then(|| {
        let of = expected.len();
        Error::ObjectMissing(format!(
            "the store lists {} of {of} objects that are known to be there; nothing is deleted until it lists them",
            of - lacking
        ))
    })
}

fn packs_of(queue: &[crate::spool::Spooled]) -> BTreeSet<PackName> {
    let packs = queue.iter().filter_map(|object| match object.name {
        ObjectName::Pack(name) => Some(name),
        _ => None,
    });
    packs.collect()
}

/// What an object that stays needs.
fn needs(known: &Known, object: Prunable) -> Vec<Prunable> {
    let Prunable::Entry(seq) = object else { return Vec::new() };
    let point = known.points.get(&seq).or_else(|| known.forgotten.get(&seq));
    let parent = point.map(|point| Prunable::Entry(point.parent_seq));
    let packs = point.into_iter().flat_map(|point| &point.packs).map(|name| Prunable::Pack(*name));
    parent.into_iter().chain(packs).collect()
}
