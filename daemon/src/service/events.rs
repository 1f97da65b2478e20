//! What becomes of the ends of commands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chatkeep_ipc::{Details, Error, JobOutcome};
use chatkeep_planner::{Event as Happened, Millis, Retry, SourceId};
use chatkeep_sqlite::Existing;
use tracing::{debug, info, warn};
use zbus::zvariant::{OwnedValue, Value};

use super::Service;
use super::calls::{is_abandoned, restore_label};
use crate::event::{Command, Event, Opened, Outcome, Work};
use crate::fault::{Fault, Result};
use crate::follower::Captured;
use crate::guard::VaultSeen;
use crate::restore::Destination;
use crate::source::Phase;

/// The first wait before an archive that could not be opened is tried again, in milliseconds.
const REOPEN_FIRST_MS: u64 = 1_000;
/// The longest one.
const REOPEN_MAX_MS: u64 = 60_000;

impl Service {
    pub(super) fn happened(&mut self, event: Event) {
        match event {
            Event::Opened { source, result } => self.opened(source, result),
            Event::Found { source } => {
                self.update(source, |source| {
                    source.found = true;
                    source.capture_fault = None;
                });
                // What could not be captured while it was away can be now.
                self.plan(Happened::StoreReachable { source });
            }
            Event::Unfollowed { source } => self.unfollowed(source),
            Event::Lost { source, fault } => self.lost(source, *fault),
            Event::Caution { source, caution } => self.update(source, |source| source.caution = caution),
            Event::Changed { source, pending_bytes } => {
                self.update(source, |source| source.pending_bytes = pending_bytes);
                self.plan(Happened::Changed { source, pending_bytes });
            }
            Event::Captured { source, result } => self.captured(source, result),
            Event::Rebuilt { source, packs, lost } => self.rebuilt(source, packs, lost),
            Event::Uploaded { source, upload, result } => self.uploaded(source, upload, result),
            Event::CopyTold { source, store, behind } => self.copy_told(source, &store, behind),
            Event::Copied { source, store, result } => self.copied(source, &store, result),
            Event::JobEnded { job, result, vault, keys } => {
                if let Some(keys) = keys {
                    self.take_keys(&job, *keys);
                }
                self.job_ended(&job, result, vault.as_ref());
            }
            Event::CredentialKept { store } => {
                if let Some(plugin) = self.managed.get(&store).and_then(|managed| managed.plugin()) {
                    plugin.forget_secrets();
                }
                self.store_is_back(&store);
            }
            Event::Conditions { conditions, seen } => {
                self.conditions(conditions);
                // nobody waits for it any more if it took too long
                let _ = seen.send(());
            }
            Event::Remembered { source, done } => self.remembered(source, done),
            Event::Guarded { source, look } => self.guarded(source, look),
            Event::Pressed { vault, button } => self.pressed(&vault, button),
            Event::FolderChanged { path } => {
                debug!(path = %path.display(), "something appeared");
                let missing = self.sources.iter().filter(|(_, source)| source.following && !source.found);
                let missing: Vec<SourceId> = missing.map(|(number, _)| *number).collect();
                self.out.extend(missing.into_iter().map(|source| Command::Look { source }));
            }
            Event::Tick => self.tick(),
            Event::Call(_) | Event::Reload | Event::BusLost | Event::Stop => {}
        }
    }

    /// Changes a source and shows it.
    pub(super) fn update(&mut self, number: SourceId, change: impl FnOnce(&mut crate::source::Source)) {
        if let Some(source) = self.sources.get_mut(&number) {
            change(source);
            self.show(number);
        }
    }

    fn tick(&mut self) {
        self.plan(Happened::Tick);
        let due = self.sources.iter().filter(|(_, source)| source.reopen.is_some_and(|at| at <= self.now));
        for number in due.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.open(number);
        }
        for source in self.sources.values() {
            for waiter in &source.waiters {
                let phase = if source.capturing.is_some() { "reading" } else { "uploading" };
                self.tools.server.update_job(&waiter.job, |job| {
                    phase.clone_into(&mut job.phase);
                    job.bytes_done = source.bytes_read().unwrap_or(job.bytes_done);
                });
            }
        }
    }

    fn opened(&mut self, number: SourceId, result: Result<Option<Box<Opened>>>) {
        let Some(source) = self.sources.get_mut(&number) else { return };
        source.reopen = None;
        source.opening = false;
        if std::mem::take(&mut source.open_again) {
            self.open(number);
            return;
        }
        match result {
            Ok(Some(opened)) => {
                source.open_failures = 0;
                self.take_up(number, &Arc::from(opened));
            }
            Ok(None) => {
                source.open_failures = 0;
                source.phase = Phase::Locked;
                source.store_fault = None;
                let locked =
                    Error::KeyUnavailable("it is locked on this machine; unlock it first".to_owned());
                self.fail_waiters(number, &locked.into());
                self.show(number);
            }
            Err(fault) => {
                warn!(database = %source.id, error = %fault.error.short_name(), text = %fault.error.text(), "the archive cannot be opened");
                source.phase = Phase::Failed;
                // Also what only somebody at the store can mend: nobody tells us when that was done.
                let mendable =
                    matches!(fault.error, Error::Internal(_) | Error::Corrupt(_) | Error::ObjectMissing(_));
                if fault.retry() != Retry::Never || mendable {
                    let wait = (REOPEN_FIRST_MS << source.open_failures.min(6)).min(REOPEN_MAX_MS);
                    source.open_failures += 1;
                    source.reopen = Some(Millis(self.now.0 + wait));
                }
                let store = source.registration.store.clone();
                self.saw_store(&store, Some(&fault), None);
                self.fail_waiters(number, &fault);
                self.update(number, |source| source.store_fault = Some(fault));
            }
        }
        self.end_opening(number);
    }

    /// Ends what waited for the archive to be opened, or not.
    pub(super) fn end_opening(&mut self, number: SourceId) {
        let ends = self.sources.get_mut(&number).map(|source| std::mem::take(&mut source.end_when_open));
        for (job, outcome) in ends.unwrap_or_default() {
            self.end_job(&job, outcome);
        }
        let parked = self.sources.get_mut(&number).map(|source| std::mem::take(&mut source.parked));
        for call in parked.unwrap_or_default().into_iter().filter(|call| !is_abandoned(call)) {
            self.call(call);
        }
    }

    /// Begins to follow a source whose archive is open.
    fn take_up(&mut self, number: SourceId, opened: &Arc<Opened>) {
        let id = opened.archive.id;
        let points = self.summary_of(&id);
        let forgotten = self.tools.catalogue.forgotten(&id).len();
        let pruned = self.tools.catalogue.prune_facts(&id);
        let facts = self.tools.catalogue.facts(&id);
        let damage = self.tools.catalogue.damage(&id);
        let drills = self.tools.catalogue.drills(&id).prove(&id, &opened.keys.roots);
        self.guard_begins(number);
        for seen in &opened.vaults {
            self.saw_vault(Some(number), seen);
        }
        let Some(source) = self.sources.get_mut(&number) else { return };
        (source.points, source.facts, source.drills) = (points, facts, drills);
        source.set_damage(damage);
        (source.forgotten, source.pruned) = (u32::try_from(forgotten).unwrap_or(u32::MAX), pruned);
        source.log = Some(opened.log.clone());
        source.opened = Some(opened.clone());
        source.store_fault.clone_from(&opened.log.blocked);
        source.phase = if source.store_fault.is_some() { Phase::Blocked } else { Phase::Open };
        info!(database = %source.id, seq = opened.log.stored.seq, waiting = opened.log.waiting.len(), "the archive is open");
        let store = source.registration.store.clone();
        if opened.log.confirmed {
            self.saw_store(&store, None, None);
        }
        if let Some(blocked) = opened.log.blocked.clone() {
            self.fail_waiters(number, &blocked);
        }
        if self.sources[&number].restore_when_open
            && let Err(fault) = self.register_siblings(number)
        {
            warn!(error = %fault.error.text(), "what belongs to the database could not be registered");
        }
        if self.sources[&number].phase == Phase::Open {
            for written in &opened.log.waiting {
                self.enqueue(number, written);
            }
            self.follow(number);
            self.mend(number);
            self.take_up_copies(number);
        }
        if std::mem::take(&mut self.sources.get_mut(&number).expect("it is there").restore_when_open) {
            self.restore_in_place(number);
        }
        self.show(number);
    }

    fn follow(&mut self, number: SourceId) {
        let Some(source) = self.sources.get(&number) else { return };
        let (Some(opened), Some(writer)) = (&source.opened, self.writer(source)) else { return };
        let command = Command::Follow {
            source: number,
            databases: source.registration.databases(),
            attachments: source.registration.attachments.clone(),
            opened: opened.clone(),
            writer: Box::new(writer),
            links: source.configured,
        };
        self.out.push(command);
        self.update(number, |source| source.following = true);
        let source = &self.sources[&number];
        if !source.waiters.is_empty() || !source.pin_requests.is_empty() {
            self.plan(Happened::CaptureNow { source: number });
        }
    }

    /// Nothing may be written any more: reading and restoring stay possible.
    pub(super) fn block(&mut self, number: SourceId, fault: &Fault) {
        self.fail_waiters(number, fault);
        self.let_go(number);
        self.update(number, |source| {
            warn!(database = %source.id, error = %fault.error.short_name(), text = %fault.error.text(), "nothing is written any more");
            source.phase = Phase::Blocked;
            source.store_fault = Some(fault.clone());
        });
    }

    /// Stops the follower and forgets what waits; the spool keeps it.
    fn let_go(&mut self, number: SourceId) {
        self.plan(Happened::SourceRemoved { source: number });
        self.plan(Happened::SourceAdded { source: number });
        self.spare_anew();
        let Some(source) = self.sources.get_mut(&number) else { return };
        if let Some((cancelled, _)) = source.capturing.take() {
            cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        source.copies.iter().for_each(crate::source::StoreCopy::stop);
        source.uploads.clear();
        source.caution = None;
        source.held = false;
        source.wait_anew();
        if std::mem::take(&mut source.following) {
            source.leaving = true;
            self.out.push(Command::Unfollow { source: number });
        }
    }

    /// Opens an archive anew, as after a start.
    pub(super) fn restart(&mut self, number: SourceId) {
        self.let_go(number);
        self.open(number);
        self.show(number);
    }

    fn unfollowed(&mut self, number: SourceId) {
        self.leaving.remove(&number);
        // An order that its thread did not come to.
        if self.scheduler.state(number).is_some_and(|view| view.capturing) {
            self.plan(Happened::CaptureFailed { source: number, retry: Retry::Backoff });
        }
        if let Some(source) = self.sources.get_mut(&number) {
            source.leaving = false;
        }
        let waiting = self.sources.iter_mut().filter(|(_, source)| source.open_again && !source.opening);
        let waiting: Vec<SourceId> = waiting
            .map(|(number, source)| {
                source.open_again = false;
                *number
            })
            .collect();
        for number in waiting {
            self.open(number);
        }
    }

    /// The keys as they are after a change that failed half way.
    fn take_keys(&mut self, job: &chatkeep_ipc::JobId, keys: crate::keyring::Keys) {
        let number = self.jobs.get(job).and_then(|running| running.source);
        let source = number.and_then(|number| self.sources.get_mut(&number));
        if let Some(source) = source
            && let Some(opened) = &source.opened
        {
            source.opened = Some(Arc::new(Opened { keys, ..(**opened).clone() }));
        }
    }

    fn lost(&mut self, number: SourceId, fault: Fault) {
        self.update(number, |source| {
            info!(database = %source.id, error = %fault.error.short_name(), "the database cannot be followed now");
            source.found = false;
            source.pending_bytes = 0;
            // A database that is gone is a state, not a failure; what is stored stays.
            source.capture_fault = Some(fault);
        });
    }

    fn captured(&mut self, number: SourceId, result: Result<Captured>) {
        let Some(source) = self.sources.get_mut(&number).filter(|source| source.phase == Phase::Open) else {
            // What a source wrote that was fenced or unregistered meanwhile goes nowhere.
            self.plan(Happened::CaptureFailed { source: number, retry: Retry::Never });
            return;
        };
        source.capturing = None;
        match result {
            Ok(Captured { written, gone, more, .. }) => {
                source.pending_bytes = 0;
                source.capture_fault = None;
                source.found = !gone;
                let newest = written.as_ref().map(|written| written.head.seq);
                let newest = newest.or_else(|| source.log.as_ref().map(|log| log.written.seq)).unwrap_or(0);
                let count = source.captures;
                // Whoever waits for a backup waits for the attachments, too.
                for waiter in source.waiters.iter_mut().filter(|waiter| waiter.capture <= count && !more) {
                    waiter.until_seq.get_or_insert(newest);
                }
                source.pins_captured(written.is_some());
                self.note_facts(number, |facts, now| facts.captured_us = now);
                if let Some(written) = written {
                    if let Some(log) = self.sources.get_mut(&number).and_then(|source| source.log.as_mut()) {
                        log.wrote(&written);
                    }
                    self.enqueue(number, &written);
                    if self.main_is_away(&self.sources[&number]) {
                        self.thin_queue(number);
                        self.copy_now(number);
                    }
                }
                self.plan(Happened::CaptureDone { source: number, more: false });
                self.finish_waiters(number);
            }
            Err(fault) => {
                debug!(database = %source.id, error = %fault.error.text(), "the capture failed");
                let retry = fault.retry();
                source.fail_pins(&fault.error);
                // Once busy is bad luck, twice is an answer.
                let patient = matches!(fault.error, Error::DatabaseBusy(_))
                    && source.waiters.iter_mut().all(|waiter| {
                        waiter.busy += 1;
                        waiter.busy < 2
                    });
                if !patient {
                    self.fail_waiters(number, &fault);
                }
                self.update(number, |source| source.capture_fault = Some(fault));
                self.plan(Happened::CaptureFailed { source: number, retry });
            }
        }
        self.show(number);
    }

    fn job_ended(&mut self, job: &chatkeep_ipc::JobId, result: Result<Outcome>, vault: Option<&VaultSeen>) {
        let number = self.jobs.get(job).and_then(|running| running.source);
        if let Some(seen) = vault {
            self.saw_vault(number, seen);
            self.look_soon(number);
        }
        if let (Some(number), Err(fault)) = (number, &result)
            && !fault.damage().is_empty()
        {
            self.found_damage(number, fault.damage().to_vec());
        }
        let outcome = match result {
            Ok(Outcome::Pruned(report)) => self.pruned(number, &report),
            Ok(outcome) => match self.finish(number, outcome) {
                Ok(warning) => JobOutcome::Done(details(warning)),
                Err(fault) => JobOutcome::Failed(fault.error.clone(), fault.wire_details()),
            },
            Err(Fault { error: Error::Cancelled(_), .. }) => JobOutcome::Cancelled,
            Err(fault) => JobOutcome::Failed(fault.error.clone(), fault.wire_details()),
        };
        let opening = number.and_then(|number| self.sources.get_mut(&number));
        match opening.filter(|source| source.phase == Phase::Opening && source.key_job.as_ref() == Some(job))
        {
            Some(source) => source.end_when_open.push((job.clone(), outcome)),
            None => self.end_job(job, outcome),
        }
    }

    /// Takes over what a job changed. Returns what the user should know.
    fn finish(&mut self, number: Option<SourceId>, outcome: Outcome) -> Result<Option<String>> {
        match (outcome, number) {
            (Outcome::Nothing { warning }, _) => Ok(warning),
            (Outcome::Enabled { archive, vault, warning }, Some(number)) => {
                self.change_registration(number, |registration| {
                    registration.archive = Some(archive);
                    registration.vault = vault;
                })?;
                self.tools.catalogue.update_facts(&archive, |facts| {
                    facts.key_created_us = crate::clock::now_us();
                    facts.secret_checked_us = crate::clock::now_us();
                });
                self.update(number, |source| source.unconfirmed = None);
                self.open(number);
                self.show(number);
                Ok(warning)
            }
            (Outcome::Rekeyed { keys, vault, rotated, store, confirmed, warning }, Some(number)) => {
                self.confirm_vaults(confirmed)?;
                self.compared(number, store);
                let open = self.sources.get_mut(&number).is_some_and(|source| {
                    source.unconfirmed = None;
                    if let Some(opened) = &source.opened {
                        source.opened = Some(Arc::new(Opened { keys: *keys, ..(**opened).clone() }));
                    }
                    source.opened.is_some() && matches!(source.phase, Phase::Open | Phase::Blocked)
                });
                self.note_facts(number, |facts, now| {
                    facts.secret_checked_us = now;
                    if rotated {
                        facts.key_created_us = now;
                    }
                });
                if !vault.is_empty() {
                    self.change_registration(number, |registration| registration.vault = vault)?;
                }
                if open {
                    // A new keyring.
                    self.copy_now(number);
                } else {
                    self.open(number);
                }
                self.show(number);
                Ok(warning)
            }
            (Outcome::Retained, Some(number)) => {
                self.note_facts(number, |facts, now| facts.retained_us = now);
                Ok(None)
            }
            (Outcome::Checked, Some(number)) => {
                self.note_facts(number, |facts, now| facts.secret_checked_us = now);
                Ok(None)
            }
            (Outcome::Restored { seq, warning, from_copies, damages }, Some(number)) => {
                if !damages.is_empty() {
                    self.found_damage(number, damages);
                } else if !from_copies {
                    self.restored(number, &[seq]);
                }
                let older = self.sources.get(&number).and_then(|source| source.older.clone());
                let all: Vec<String> = warning.into_iter().chain(older).collect();
                Ok((!all.is_empty()).then(|| all.join("; ")))
            }
            (Outcome::Verified { depth, points, damages }, Some(number)) => {
                self.verified(number, depth, &points, damages).map(|()| None)
            }
            (Outcome::Drilled { points, failure }, Some(number)) => {
                self.drilled(number, &points, failure).map(|()| None)
            }
            (Outcome::CopyVerified { store, damages }, Some(number)) => {
                Ok(self.copy_verified(number, &store, &damages))
            }
            (Outcome::Fetched { objects }, Some(number)) => {
                self.fetched(number, &objects);
                Ok(None)
            }
            (Outcome::Repaired { objects, failure }, Some(number)) => {
                self.repaired(number, &objects);
                failure.map_or(Ok(None), Err)
            }
            (Outcome::Adopted { registration, restore, mode }, _) => {
                if let Some(archive) = registration.archive {
                    self.check_adoption(archive, &registration.path)?;
                }
                let id = self.registry.new_id(&registration.display_name);
                let added = (*registration).clone();
                self.change_registry(|registry| registry.database.insert(id.clone(), added))?;
                let number = self.add_source(id, *registration, false);
                self.update(number, |source| {
                    source.restore_when_open = restore;
                    source.mode_hint = mode;
                });
                Ok(None)
            }
            (Outcome::StoreSeen { name, usage }, _) => {
                self.saw_store(&name, None, usage);
                Ok(None)
            }
            (Outcome::Looked { looks, warning }, _) => {
                self.looked(looks);
                Ok(warning)
            }
            (Outcome::Pruned(_), _) => Ok(None),
            (_, None) => Err(Fault::internal("the database was unregistered meanwhile")),
        }
    }

    pub(super) fn note_facts(
        &mut self,
        number: SourceId,
        change: impl FnOnce(&mut crate::catalogue::Facts, u64),
    ) {
        let Some(source) = self.sources.get_mut(&number) else { return };
        let Some(archive) = source.registration.archive else { return };
        let now = crate::clock::now_us();
        source.facts = self.tools.catalogue.update_facts(&archive, |facts| change(facts, now));
        self.show(number);
    }

    pub(super) fn change_registration(
        &mut self,
        number: SourceId,
        change: impl FnOnce(&mut crate::registry::Registration),
    ) -> Result<()> {
        let Some(source) = self.sources.get(&number) else {
            return Err(Fault::internal("the database was unregistered meanwhile"));
        };
        let (id, mut registration) = (source.id.clone(), source.registration.clone());
        change(&mut registration);
        let changed = registration.clone();
        self.change_registry(|registry| registry.database.insert(id, changed))?;
        self.update(number, |source| source.registration = registration);
        Ok(())
    }

    /// Puts the newest point where the database belongs, for `adopt --restore`.
    fn restore_in_place(&mut self, number: SourceId) {
        let Some(source) = self.sources.get(&number) else { return };
        let (Some(opened), Some(log)) = (source.opened.clone(), &source.log) else { return };
        let path = source.registration.path.clone();
        let job = chatkeep_ipc::NewJob { id: self.tools.server.new_job_id(), started_by: "adopt".to_owned() };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
        let folder = match std::fs::File::open(parent) {
            Ok(folder) => folder.into(),
            Err(error) => {
                self.begin_job(&job, "restore", Some(number), false);
                let fault = Fault::from(error);
                self.end_job(&job.id, JobOutcome::Failed(fault.error, Details::new()));
                return;
            }
        };
        let destination = Destination {
            folder,
            file_name: Some(name.to_string_lossy().into_owned()),
            in_place: true,
            existing: Existing::Refuse,
            label: restore_label(),
        };
        let (seq, stores) = (log.stored.seq, self.stores_to_read(number, &opened));
        let work = Work::Restore { opened, stores, seq, destination };
        self.run(job, "restore", Some(number), false, work);
    }

    /// Watches the folders of databases that are missing: the nearest one that exists.
    pub(super) fn update_folders(&mut self) {
        let missing = self.sources.values().filter(|source| source.following && !source.found);
        let wanted: BTreeSet<PathBuf> = missing
            .filter_map(|source| {
                let nearest = source.registration.path.ancestors().skip(1).find(|folder| folder.is_dir());
                nearest.map(Path::to_path_buf)
            })
            .collect();
        if wanted != self.folders {
            self.folders.clone_from(&wanted);
            self.out.push(Command::WatchFolders(wanted));
        }
    }
}

fn details(warning: Option<String>) -> Details {
    let value = warning.and_then(|warning| OwnedValue::try_from(Value::from(warning)).ok());
    value.map(|value| ("warning".to_owned(), value)).into_iter().collect()
}
