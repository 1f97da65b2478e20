//! Copies in further stores: when each is brought up to date, and what becomes of it. Each has its own queue, which is
//! what it lacks, and its own back-off: a store that is away holds up no other, and the main store waits for none.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chatkeep_format::{ArchiveId, ObjectName};
use chatkeep_ipc::{CopyState, Error};
use chatkeep_planner::{Event as Happened, Gate, Millis, Prunable, SourceId, plan_queue};
use tracing::{debug, info, warn};

use super::Service;
use crate::archive::Archive;
use crate::catalogue::{CopyId, Point};
use crate::copies::{Behind, CopyEnd, CopyOrder};
use crate::damage::Damage;
use crate::event::{Command, Opened};
use crate::fault::{Fault, Result};
use crate::source::{Phase, Source, StoreCopy};
use crate::spool::{Spool, Spooled};
use crate::writer::Written;

/// A copy is held against a listing so often, in µs: daily.
const LIST_EVERY_US: u64 = 24 * 3_600 * 1_000_000;

impl Service {
    /// Takes up the copies that the registration names, as far as they are not known; forgets all others, of which
    /// nothing is deleted.
    pub(super) fn take_up_copies(&mut self, number: SourceId) {
        let catalogue = self.tools.catalogue.clone();
        let Some(source) = self.sources.get_mut(&number) else { return };
        let Some(archive) = source.registration.archive else { return };
        let wanted = &source.registration.copies;
        for store in catalogue.copies_of(&archive).iter().filter(|store| !wanted.contains(store)) {
            info!(database = %source.id, store, "the store is no copy any more, what is there stays there");
            if let Err(error) = catalogue.forget_copy(&CopyId::new(&archive, store)) {
                warn!(%error, "the cache cannot be written");
            }
        }
        source.copies.iter().filter(|copy| !wanted.contains(&copy.store)).for_each(StoreCopy::stop);
        source.copies.retain(|copy| wanted.contains(&copy.store));
        for store in wanted.clone() {
            if source.copies.iter().all(|copy| copy.store != store) {
                let facts = catalogue.copy_facts(&CopyId::new(&archive, &store));
                source.copies.push(StoreCopy::new(store, facts));
            }
        }
        self.copy_now(number);
    }

    /// Brings all copies of a source up to date that may be tried now.
    pub(super) fn copy_now(&mut self, number: SourceId) {
        let Some(source) = self.sources.get(&number) else { return };
        for at in 0..source.copies.len() {
            self.begin_copy(number, at);
        }
    }

    /// The daily listing, and what failed and may be tried again.
    pub(super) fn keep_copies_up(&mut self) {
        let now_us = crate::clock::now_us();
        let mut due = Vec::new();
        for (number, source) in &self.sources {
            let at = source.copies.iter().enumerate().filter(|(_, copy)| {
                let old = now_us.abs_diff(copy.facts.listed_us) >= LIST_EVERY_US;
                copy.retry.map_or(old && copy.running.is_none(), |at| at <= self.now)
            });
            due.extend(at.map(|(at, _)| (*number, at)));
        }
        for (number, at) in due {
            self.begin_copy(number, at);
        }
    }

    /// When the next copy is to be tried again.
    pub(super) fn next_copy(&self) -> Option<Millis> {
        let copies = self.sources.values().filter(|source| self.copies_go(source));
        copies.flat_map(|source| &source.copies).filter_map(|copy| copy.retry).min()
    }

    /// A store answers again: what waits for it does not wait any longer.
    pub(super) fn copies_reachable(&mut self, store: &str) {
        let mut back = Vec::new();
        for (number, source) in &mut self.sources {
            let main = source.registration.store == store;
            for (at, copy) in
                source.copies.iter_mut().enumerate().filter(|(_, copy)| main || copy.store == store)
            {
                let fenced = matches!(copy.fault, Some(Fault { error: Error::WriterFenced(_), .. }));
                if !fenced && copy.running.is_none() {
                    copy.retry = None;
                    back.push((*number, at));
                }
            }
        }
        for (number, at) in back {
            self.begin_copy(number, at);
        }
    }

    /// Stops all runs at their next object.
    pub(super) fn stop_copies(&self) {
        self.sources.values().flat_map(|source| &source.copies).for_each(StoreCopy::stop);
    }

    fn copies_go(&self, source: &Source) -> bool {
        source.phase == Phase::Open && self.pause.is_none()
    }

    fn begin_copy(&mut self, number: SourceId, at: usize) {
        let Some(source) = self.sources.get(&number).filter(|source| self.copies_go(source)) else { return };
        let copy = &source.copies[at];
        // When the gate opens, it is begun.
        if self.managed.get(&copy.store).is_some_and(|store| matches!(store.gate(), Gate::Closed(_))) {
            return;
        }
        if !copy.may_begin(self.now) {
            let running = copy.running.is_some();
            self.update_quietly(number, |source| source.copies[at].again |= running);
            return;
        }
        match self.copy_order(source, copy, number) {
            Ok(order) => {
                let cancelled = order.cancelled.clone();
                self.out.push(Command::Copy(Box::new(order)));
                self.update(number, |source| {
                    let copy = &mut source.copies[at];
                    (copy.running, copy.again, copy.retry) = (Some(cancelled), false, None);
                });
            }
            Err(error) => {
                let now = self.now;
                self.update(number, |source| source.copies[at].failed(error.into(), number, now));
            }
        }
    }

    fn update_quietly(&mut self, number: SourceId, change: impl FnOnce(&mut Source)) {
        if let Some(source) = self.sources.get_mut(&number) {
            change(source);
        }
    }

    fn copy_order(&self, source: &Source, copy: &StoreCopy, number: SourceId) -> Result<CopyOrder, Error> {
        let busy = || Error::Busy("its archive is not open".to_owned());
        let opened = source.opened.clone().ok_or_else(busy)?;
        let log = source.log.as_ref().ok_or_else(busy)?;
        let id = opened.archive.id;
        let to = Archive { store: self.store(&copy.store)?, id };
        let others = source.copies.iter().filter(|other| other.store != copy.store);
        let others =
            others.filter_map(|other| Some((other.store.clone(), self.stores.get(&other.store)?.clone())));
        let main_is_away = self.main_is_away(source);
        // What the main store is about to get may turn out to be another installation's place in the log.
        let waiting = log.waiting.iter().filter(|_| main_is_away).map(|written| written.point.clone());
        let now_us = crate::clock::now_us();
        let everything = self.exchanges.get(&id) == Some(&copy.store);
        let old = now_us.abs_diff(copy.facts.listed_us) >= LIST_EVERY_US;
        Ok(CopyOrder {
            source: number,
            store: copy.store.clone(),
            to,
            main: source.registration.store.clone(),
            others: others.map(|(name, store)| (name, Archive { store, id })).collect(),
            waiting: waiting.collect(),
            written_seq: log.written.seq,
            pins: log.written.pins.clone(),
            policy: self.config.retention.policy(),
            everything,
            list: old || everything || !copy.listed,
            now_us: i64::try_from(now_us).unwrap_or(i64::MAX),
            cancelled: Arc::new(AtomicBool::new(false)),
            opened,
        })
    }

    /// The main store of a source does not take anything now.
    pub(super) fn main_is_away(&self, source: &Source) -> bool {
        let store = &source.registration.store;
        source.store_fault.is_some() || self.silent_stores.contains(store) || self.pause_of(store).is_some()
    }

    /// How far a copy is behind, told while it is brought up to date.
    pub(super) fn copy_told(&mut self, number: SourceId, store: &str, behind: Behind) {
        let catalogue = self.tools.catalogue.clone();
        self.change_copy(number, store, |copy, id| {
            copy.behind = behind;
            copy.facts = catalogue.copy_facts(&id);
        });
    }

    /// A run ended.
    pub(super) fn copied(&mut self, number: SourceId, store: &str, result: Result<CopyEnd>) {
        let (catalogue, now) = (self.tools.catalogue.clone(), self.now);
        let mut seen: Option<Option<Fault>> = None;
        let mut again = false;
        let paused = self.pause_of(store).is_some();
        self.change_copy(number, store, |copy, id| {
            (copy.running, copy.facts) = (None, catalogue.copy_facts(&id));
            again = std::mem::take(&mut copy.again);
            match result {
                Ok(end) => {
                    copy.listed = true;
                    if end.listed || end.caution.is_some() {
                        (copy.caution, copy.blind) = (end.caution, end.blind);
                    }
                    (copy.fault, copy.unread) = (None, None);
                    if let Some(fault) = end.unread {
                        // The store itself is well; what it lacks may be to be read later.
                        let text = format!("not all can be read to be copied: {}", fault.error.text());
                        copy.failed(fault, number, now);
                        (copy.fault, copy.unread, copy.listed) = (None, Some(text), true);
                    } else {
                        (copy.behind, copy.failures) = (Behind::default(), 0);
                    }
                    seen = Some(None);
                }
                Err(Fault { error: Error::Cancelled(_), .. }) => {}
                Err(Fault { error: Error::StoreUnreachable(_), .. }) if paused => {}
                Err(fault) => {
                    warn!(store = %copy.store, error = %fault.error.short_name(), text = %fault.error.text(), "a copy could not be brought up to date");
                    copy.failed(fault.clone(), number, now);
                    seen = Some(Some(fault));
                }
            }
        });
        if let Some(fault) = seen {
            let alive = fault.is_none();
            self.saw_store(store, fault.as_ref(), None);
            if alive {
                if self.sources.get(&number).is_some_and(|source| self.main_is_away(source)) {
                    self.count_points(number);
                }
                self.release_held(number);
                self.exchange_stores(number);
            }
        }
        if again {
            self.copy_now(number);
        }
    }

    fn change_copy(&mut self, number: SourceId, store: &str, change: impl FnOnce(&mut StoreCopy, CopyId)) {
        self.update(number, |source| {
            let Some(archive) = source.registration.archive else { return };
            if let Some(copy) = source.copies.iter_mut().find(|copy| copy.store == store) {
                change(copy, CopyId::new(&archive, store));
            }
        });
    }

    /// A point was announced: every copy is one more behind until it has it.
    pub(super) fn copies_fall_behind(&mut self, number: SourceId, point: &Point) {
        self.update_quietly(number, |source| {
            for copy in source.copies.iter_mut().filter(|copy| copy.facts.newest_seq < point.seq) {
                copy.behind.entries += 1;
                copy.behind.bytes += point.bytes;
            }
        });
        self.copy_now(number);
    }

    /// Drops from the queue what something newer stands for, while the main store is away and captures go on for the sake
    /// of a copy: the main store gets the least when it is back.
    pub(super) fn thin_queue(&mut self, number: SourceId) {
        let Some(source) = self.sources.get_mut(&number) else { return };
        let (Some(log), Some(opened)) = (&mut source.log, &source.opened) else { return };
        // Without a copy nothing is captured any more.
        let long = log.waiting.len() > super::SPOOL_ENTRIES_MAX;
        if !long || !source.copies.iter().any(StoreCopy::is_alive) {
            return;
        }
        let parents = log.waiting.iter().map(|written| (written.point.seq, written.point.parent_seq));
        let dropped: BTreeSet<u64> = plan_queue(&parents.collect(), &log.written.pins).into_iter().collect();
        let thinned = thin(&mut log.waiting, &dropped, &opened.spool);
        let moved = match thinned {
            Ok(moved) => moved,
            Err(error) => {
                // What is left in the queue goes up, or is found out at the next start.
                warn!(%error, "the queue cannot be thinned out");
                return;
            }
        };
        debug!(database = %source.id, entries = dropped.len(), "what something newer stands for is dropped from the queue");
        for (object, publishes) in source.uploads.values_mut() {
            if let Some(moved) =
                moved.iter().find(|moved| moved.name == object.name && dropped.contains(&object.seq))
            {
                *object = moved.clone();
            }
            if let Some(written) = publishes
                && let Some(now) = log.waiting.iter().find(|now| now.head.seq == written.head.seq)
            {
                *written = now.clone();
            }
        }
        source.uploads.retain(|_, (object, _)| !dropped.contains(&object.seq));
    }

    /// What was put off because too much waited may be captured, if there is room again.
    pub(super) fn release_held(&mut self, number: SourceId) {
        let room = self.sources.get(&number).is_some_and(|source| source.held && self.has_room(source));
        if room {
            self.update_quietly(number, |source| source.held = false);
            self.plan(Happened::StoreReachable { source: number });
        }
    }
}

/// Positions in the queue of packs that came with an entry that was dropped: behind all others of the entry that needs them.
const MOVED_POSITION: u32 = 90_000_000;

/// Takes entries out of a queue. Their packs go with them, but for those that a later one names: these belong to that one
/// from now on, and are given back.
fn thin(
    waiting: &mut VecDeque<Written>,
    dropped: &BTreeSet<u64>,
    spool: &Spool,
) -> std::io::Result<Vec<Spooled>> {
    let (gone, mut stays): (Vec<Written>, Vec<Written>) =
        waiting.iter().cloned().partition(|written| dropped.contains(&written.point.seq));
    let mut moved = Vec::new();
    for written in &gone {
        let mut goes = Vec::new();
        for object in &written.objects {
            let later = stays.iter_mut().find(|later| {
                let names =
                    matches!(object.name, ObjectName::Pack(pack) if later.point.packs.contains(&pack));
                names && later.point.seq > written.point.seq
            });
            let Some(later) = later else {
                goes.push(object.clone());
                continue;
            };
            let position = MOVED_POSITION + u32::try_from(later.objects.len()).unwrap_or(0);
            let object = spool.assign(std::slice::from_ref(object), later.point.seq, position)?;
            later.objects.splice(..0, object.iter().cloned());
            moved.extend(object);
        }
        spool.remove(&goes)?;
    }
    *waiting = stays.into();
    Ok(moved)
}

impl Service {
    /// The stores of a source in the order in which they are read: the main one, then the copies.
    pub(super) fn stores_to_read(&self, number: SourceId, opened: &Opened) -> Vec<(String, Archive)> {
        let Some(source) = self.sources.get(&number) else { return Vec::new() };
        let main = (source.registration.store.clone(), opened.archive.clone());
        std::iter::once(main).chain(self.copies_to_read(source)).collect()
    }

    /// The copies of a source.
    pub(super) fn copies_to_read(&self, source: &Source) -> Vec<(String, Archive)> {
        let Some(id) = source.registration.archive else { return Vec::new() };
        let there = source.copies.iter().filter(|copy| copy.facts.uploaded_us > 0);
        let opened = there.filter_map(|copy| {
            Some((copy.store.clone(), Archive { store: self.stores.get(&copy.store)?.clone(), id }))
        });
        opened.collect()
    }

    /// A copy was read back. What is damaged there is sent again; what the user should know of it.
    pub(super) fn copy_verified(
        &mut self,
        number: SourceId,
        store: &str,
        damages: &[Damage],
    ) -> Option<String> {
        let catalogue = self.tools.catalogue.clone();
        let now_us = crate::clock::now_us();
        let names = || damages.iter().filter_map(Damage::name);
        let lost = names().filter_map(|name| match name {
            ObjectName::Entry(seq) => Some(Prunable::Entry(seq)),
            ObjectName::Pack(pack) => Some(Prunable::Pack(pack)),
            ObjectName::Keyring(_) => None,
        });
        let lost: Vec<Prunable> = lost.collect();
        let keyring = names().any(|name| matches!(name, ObjectName::Keyring(_)));
        let warning = (!damages.is_empty()).then(|| {
            format!("{} objects in `{store}` were damaged or missing; they are sent again", damages.len())
        });
        self.change_copy(number, store, |copy, id| {
            let noted = catalogue.spoil(&id, &lost).and_then(|()| {
                catalogue.update_copy(&id, |facts| {
                    if damages.is_empty() {
                        facts.verified_us = now_us;
                    }
                    facts.keyring = if keyring { 0 } else { facts.keyring };
                })
            });
            if let Err(error) = noted {
                warn!(%error, "the cache cannot be written");
            }
            copy.facts = catalogue.copy_facts(&id);
        });
        if !damages.is_empty() {
            self.copy_now(number);
        }
        warning
    }

    /// Whether some copy has this entry, as far as is known.
    pub(super) fn is_on_a_copy(&self, archive: &ArchiveId, seq: u64) -> bool {
        let catalogue = &self.tools.catalogue;
        let mut copies = catalogue.copies_of(archive).into_iter().map(|store| CopyId::new(archive, &store));
        copies.any(|copy| catalogue.is_copied(&copy, Prunable::Entry(seq)))
    }

    /// Points that a copy has and the main store does not.
    pub(super) fn on_copies_only(&self, archive: &ArchiveId) -> Vec<Point> {
        let mut points = self.tools.catalogue.elsewhere(archive);
        points.retain(|point| self.is_on_a_copy(archive, point.seq));
        points
    }

    /// Stores that have something of ours already, as far as is known.
    pub(super) fn used_stores(&self, known: &crate::registry::Registration) -> Vec<String> {
        let Some(archive) = known.archive else { return Vec::new() };
        let uploaded =
            |store: &&String| self.tools.catalogue.copy_facts(&CopyId::new(&archive, store)).uploaded_us > 0;
        std::iter::once(&known.store).chain(known.copies.iter().filter(uploaded)).cloned().collect()
    }
}

impl Source {
    /// The main store and all copies, as they are shown.
    pub fn copy_states(&self) -> Vec<CopyState> {
        if self.registration.archive.is_none() {
            return Vec::new();
        }
        let waiting = self.log.as_ref().map_or(0, |log| log.waiting.len());
        let state = match (&self.store_fault, waiting) {
            (Some(_), _) => "failed",
            (None, 0) => "current",
            (None, _) => "copying",
        };
        let main = CopyState {
            store: self.registration.store.clone(),
            main: true,
            state: state.to_owned(),
            last_upload: self.facts.uploaded_us,
            last_verified: self.facts.verified_us,
            last_error: self.store_fault.as_ref().map(Fault::pair).unwrap_or_default(),
            caution: String::new(),
            behind_points: u32::try_from(waiting).unwrap_or(u32::MAX),
            behind_bytes: self.waiting_bytes(),
            lacking_points: 0,
        };
        std::iter::once(main).chain(self.copies.iter().map(StoreCopy::state)).collect()
    }
}
