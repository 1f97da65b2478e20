//! The loop: state, and one function from events to commands.

mod calls;
mod configured;
mod copies;
mod damage;
mod encryption;
mod events;
mod guard;
mod line;
mod overlap;
mod pins;
mod register;
mod shown;
mod upkeep;
mod uploads;
mod vaults;
mod witness;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use chatkeep_format::ArchiveId;
use chatkeep_ipc::{Details, Error, JobId, JobOutcome, JobState, NewJob, Reply};
use chatkeep_planner::{Command as Plan, Event as Happened, Millis, Retry, Scheduler, SourceId};
use chatkeep_store::Store;
use chatkeep_vault_client::VaultPin;
use tracing::{info, warn};

use crate::archive::Archive;
use crate::config::Config;
use crate::event::{Command, Event, Work};
use crate::fault::{Fault, Result};
use crate::follower::CaptureOrder;
use crate::jobs::Tools;
use crate::registry::{Registration, Registry};
use crate::source::{Phase, Source};
use crate::stores::Managed;
use crate::writer::Writer;

/// With more than this waiting for the store nothing is captured: one capture holds it all once the store is back, where
/// thousands of small ones would fill the disk, and would all have to be sent. In bytes (64 MiB; capture.md, 4.6), and in
/// entries: a few minutes of a lively chat.
const SPOOL_MAX: u64 = 64 << 20;
const SPOOL_ENTRIES_MAX: usize = 32;
/// The same while the main store is away and a copy takes what is captured: 1 GiB.
const SPOOL_MAX_FOR_COPIES: u64 = 1 << 30;

/// A job under way.
struct Running {
    source: Option<SourceId>,
    cancelled: Arc<AtomicBool>,
    /// It changes keys: one at a time.
    keys: bool,
    /// A call without a job of its own waits for it.
    reply: Option<Reply<()>>,
}

/// A pause somebody asked for.
struct Pause {
    until_us: Option<u64>,
}

/// The state of the daemon. Changed by [`Service::handle`] alone.
pub struct Service {
    tools: Tools,
    config: Config,
    config_path: PathBuf,
    stores: BTreeMap<String, Arc<dyn Store>>,
    /// The same, as what regulates them.
    managed: BTreeMap<String, Arc<Managed>>,
    /// The configuration that they were opened with.
    opened_with: Vec<crate::config::Store>,
    line: line::Line,
    pins: Vec<VaultPin>,
    vaults: vaults::Vaults,
    registry: Registry,
    sources: BTreeMap<SourceId, Source>,
    scheduler: Scheduler,
    jobs: BTreeMap<JobId, Running>,
    pause: Option<Pause>,
    /// Archives of unregistered sources whose followers have not ended yet.
    leaving: BTreeMap<SourceId, ArchiveId>,
    next_source: u32,
    next_upload: u64,
    /// Stores that did not answer lately.
    silent_stores: BTreeSet<String>,
    /// What they last said.
    seen_stores: BTreeMap<String, chatkeep_ipc::StoreState>,
    /// Stores that are to be the main one of an archive, once they have everything.
    exchanges: BTreeMap<ArchiveId, String>,
    /// Folders watched for databases that appear.
    folders: BTreeSet<PathBuf>,
    now: Millis,
    out: Vec<Command>,
    upkeep: upkeep::Upkeep,
    guard: guard::Guard,
    witness: witness::Witness,
}

impl Service {
    /// A service that knows its configuration and has done nothing yet; [`Service::begin`] follows.
    pub fn new(tools: Tools, config: Config, config_path: PathBuf) -> anyhow::Result<Self> {
        let registry = Registry::load(&tools.paths.data.join("registrations.toml"))?;
        let scheduler = Scheduler::new(config.capture.policy(config.store.len()));
        let mut service = Self {
            tools,
            config,
            config_path,
            stores: BTreeMap::new(),
            managed: BTreeMap::new(),
            opened_with: Vec::new(),
            line: line::Line::default(),
            pins: Vec::new(),
            vaults: vaults::Vaults::default(),
            registry,
            sources: BTreeMap::new(),
            scheduler,
            jobs: BTreeMap::new(),
            pause: None,
            leaving: BTreeMap::new(),
            next_source: 0,
            next_upload: 0,
            silent_stores: BTreeSet::new(),
            seen_stores: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            folders: BTreeSet::new(),
            now: Millis(0),
            out: Vec::new(),
            upkeep: upkeep::Upkeep::default(),
            guard: guard::Guard::default(),
            witness: witness::Witness::default(),
        };
        service.connect()?;
        Ok(service)
    }

    /// Makes stores and vaults of the configuration.
    fn connect(&mut self) -> anyhow::Result<()> {
        let with_archives = self.registry.database.values().filter(|known| known.archive.is_some());
        let used = with_archives.flat_map(|known| self.used_stores(known)).collect();
        let kept = (self.opened_with.as_slice(), &self.managed);
        let managed = self.tools.opener.open_all(&self.config.store, &used, kept)?;
        let pins = crate::stores::pins(&self.config.vault)?;
        self.pins = crate::stores::with_confirmed(pins, &self.registry.vault);
        let as_store =
            |(name, store): (&String, &Arc<Managed>)| (name.clone(), store.clone() as Arc<dyn Store>);
        self.stores = managed.iter().map(as_store).collect();
        self.managed = managed;
        self.opened_with = self.config.store.clone();
        Ok(())
    }

    /// Takes up every registered database.
    pub fn begin(&mut self, now: Millis) -> Vec<Command> {
        self.now = now;
        self.show_manager();
        self.show_stores();
        self.show_vaults();
        self.add_configured();
        for (id, registration) in self.registry.database.clone() {
            let configured = self.config.source.iter().any(|source| source.name == id);
            self.add_source(id, registration, configured);
        }
        std::mem::take(&mut self.out)
    }

    /// What happens next after `event`.
    pub fn handle(&mut self, event: Event, now: Millis) -> Vec<Command> {
        self.now = now;
        self.end_pause_in_time();
        // The most frequent event, on the way to each capture; nothing that gates or budgets depend on changes with it.
        let only_changed = matches!(event, Event::Changed { .. });
        match event {
            Event::Call(call) => self.call(call),
            Event::Reload => {
                if let Err(error) = self.reload() {
                    warn!(error = %error.text(), "the configuration was not taken over");
                }
            }
            Event::BusLost => {
                info!("the bus is gone");
                self.stop();
            }
            Event::Stop => self.stop(),
            other => {
                self.happened(other);
                self.keep_up();
                self.keep_copies_up();
                self.watch_vaults();
                self.tell_vaults();
            }
        }
        self.update_folders();
        if !only_changed {
            self.regulate();
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Millis> {
        let reopen = self.sources.values().filter_map(|source| source.reopen).min();
        let progress = self.sources.values().any(|source| !source.waiters.is_empty());
        let progress = progress.then_some(Millis(self.now.0 + 250));
        let until_us = self.pause.as_ref().and_then(|pause| pause.until_us);
        let resume =
            until_us.map(|at| Millis(self.now.0 + at.saturating_sub(crate::clock::now_us()) / 1000 + 1));
        let look = self.next_look();
        let due = [self.scheduler.next_deadline(), reopen, progress, resume, look, self.next_copy()];
        due.into_iter().flatten().min()
    }

    fn end_pause_in_time(&mut self) {
        let now_us = crate::clock::now_us();
        if self.pause.as_ref().is_some_and(|pause| pause.until_us.is_some_and(|until| until <= now_us)) {
            self.resume();
        }
    }

    fn stop(&mut self) {
        self.note_spending();
        self.plan(Happened::Stopping);
        self.tell_vaults_at_last();
        self.stop_copies();
        for job in self.jobs.values() {
            job.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        for source in self.sources.values() {
            if let Some((cancelled, _)) = &source.capturing {
                cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        self.out.push(Command::Exit(0));
    }

    // Sources

    fn add_source(&mut self, id: String, registration: Registration, configured: bool) -> SourceId {
        let number = SourceId(self.next_source);
        self.next_source += 1;
        self.sources.insert(number, Source::new(id, registration, configured));
        self.plan(Happened::SourceAdded { source: number });
        self.spare_anew();
        self.open(number);
        self.show(number);
        number
    }

    /// Opens the archive of a source, if it has one.
    fn open(&mut self, number: SourceId) {
        let Some(source) = self.sources.get_mut(&number) else { return };
        source.reopen = None;
        let Some(id) = source.registration.archive else { return };
        if source.opening || source.leaving || self.leaving.values().any(|left| *left == id) {
            source.phase = Phase::Opening;
            source.open_again = true;
            return;
        }
        let Some(store) = self.stores.get(&source.registration.store).cloned() else {
            let text = format!("the store `{}` is not configured", source.registration.store);
            source.phase = Phase::Failed;
            let fault = Fault::from(Error::NotFound(text));
            source.store_fault = Some(fault.clone());
            self.fail_waiters(number, &fault);
            self.end_opening(number);
            self.show(number);
            return;
        };
        source.phase = Phase::Opening;
        source.opening = true;
        let pins = self.pins_for(&self.sources[&number].registration.vault);
        self.out.push(Command::Open { source: number, archive: Archive { store, id }, pins });
    }

    /// The pinned vaults, the one of this name first.
    fn pins_for(&self, vault: &str) -> Vec<VaultPin> {
        let mut pins = self.pins.clone();
        pins.sort_by_key(|pin| pin.name != vault);
        pins
    }

    fn number_of(&self, id: &str) -> Result<SourceId, Error> {
        let found = self.sources.iter().find(|(_, source)| source.id == id);
        found
            .map(|(number, _)| *number)
            .ok_or_else(|| Error::NotFound(format!("there is no database `{id}`")))
    }

    /// Changes the registrations, durably or not at all.
    fn change_registry<T>(&mut self, change: impl FnOnce(&mut Registry) -> T) -> Result<T> {
        let mut registry = self.registry.clone();
        let result = change(&mut registry);
        registry.save(&self.tools.paths.data.join("registrations.toml")).map_err(Fault::internal)?;
        self.registry = registry;
        Ok(result)
    }

    /// How entries of this source are made; nothing while it is not open.
    fn writer(&self, source: &Source) -> Option<Writer> {
        let opened = source.opened.as_ref()?;
        Some(Writer {
            archive: opened.archive.id,
            roots: opened.keys.roots.clone(),
            spool: opened.spool.clone(),
            source_name: source.registration.display_name.clone(),
            app_id: source.registration.app_id.clone(),
            level: self.config.capture.compression_level,
        })
    }

    // The planner

    /// Tells the planner, and turns what it wants into commands.
    fn plan(&mut self, event: Happened) {
        let mut waiting = VecDeque::from([event]);
        while let Some(event) = waiting.pop_front() {
            for command in self.scheduler.handle(event, self.now) {
                match command {
                    Plan::Capture { source } => {
                        if let Err(retry) = self.begin_capture(source) {
                            waiting.push_back(Happened::CaptureFailed { source, retry });
                        }
                    }
                    Plan::Upload { source, upload } => {
                        if !self.begin_upload(source, upload) {
                            waiting.push_back(Happened::UploadDone { source, upload });
                        }
                    }
                }
            }
        }
    }

    fn begin_capture(&mut self, number: SourceId) -> Result<(), Retry> {
        let Some(source) = self.sources.get(&number) else { return Err(Retry::Never) };
        let wanted = !source.waiters.is_empty() || !source.pin_requests.is_empty();
        let wanted = wanted || self.has_room(source);
        if !wanted {
            self.update(number, |source| source.held = true);
            return Err(Retry::WhenReachable);
        }
        let source = &self.sources[&number];
        let (Some(writer), Some(log), true) = (self.writer(source), &source.log, source.following) else {
            return Err(Retry::Never);
        };
        let (before, chain) = (source.head_with_pins(&log.written), log.chain.clone());
        let (cancelled, done_bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clock = crate::clock::Clock::default();
        let order = CaptureOrder {
            before,
            chain,
            clock,
            writer,
            cancelled: cancelled.clone(),
            done_bytes: done_bytes.clone(),
            even_if_unchanged: !source.pin_requests.is_empty(),
        };
        self.out.push(Command::Capture { source: number, order: Box::new(order) });
        self.update(number, |source| {
            source.capturing = Some((cancelled, done_bytes));
            source.captures += 1;
            source.pinning.append(&mut source.pin_requests);
        });
        Ok(())
    }

    /// Whether what waits for the main store leaves room for another capture.
    fn has_room(&self, source: &Source) -> bool {
        let entries = source.log.as_ref().map_or(0, |log| log.waiting.len());
        if self.main_is_away(source) && source.copies.iter().any(crate::source::StoreCopy::is_alive) {
            return source.waiting_bytes() <= SPOOL_MAX_FOR_COPIES;
        }
        source.waiting_bytes() <= SPOOL_MAX && entries <= SPOOL_ENTRIES_MAX
    }

    // Jobs

    /// Shows a job, before its name is given to the caller.
    fn begin_job(
        &mut self,
        job: &NewJob,
        operation: &str,
        source: Option<SourceId>,
        keys: bool,
    ) -> Arc<AtomicBool> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let database = source.and_then(|number| self.sources.get(&number)).map(|source| source.id.clone());
        let state = JobState {
            operation: operation.to_owned(),
            database: database.unwrap_or_default(),
            started_by: job.started_by.clone(),
            cancelable: !keys,
            state: "running".to_owned(),
            started: crate::clock::now_us(),
            ..JobState::default()
        };
        self.tools.server.upsert_job(&job.id, state);
        let running = Running { source, cancelled: cancelled.clone(), keys, reply: None };
        self.jobs.insert(job.id.clone(), running);
        if keys
            && let Some(number) = source
            && let Some(source) = self.sources.get_mut(&number)
        {
            source.key_job = Some(job.id.clone());
            self.show(number);
        }
        cancelled
    }

    /// Shows a job and carries it out.
    fn run(
        &mut self,
        job: NewJob,
        operation: &str,
        source: Option<SourceId>,
        keys: bool,
        work: Work,
    ) -> JobId {
        let cancelled = self.begin_job(&job, operation, source, keys);
        self.out.push(Command::Run { job: job.id.clone(), work: Box::new(work), cancelled });
        job.id
    }

    fn end_job(&mut self, job: &JobId, outcome: JobOutcome) {
        if let Some(running) = self.jobs.remove(job) {
            if let Some(number) = running.source {
                self.prune_ended(number, job);
            }
            if let Some(number) = running.source
                && let Some(source) = self.sources.get_mut(&number)
            {
                if source.key_job.as_ref() == Some(job) {
                    source.key_job = None;
                }
                self.show(number);
            }
            if let Some(reply) = running.reply {
                let _ = reply.send(match &outcome {
                    JobOutcome::Done(_) => Ok(()),
                    JobOutcome::Failed(error, _) => Err(error.clone()),
                    JobOutcome::Cancelled => Err(Error::Cancelled("it was cancelled".to_owned())),
                });
            }
        }
        self.tools.server.job_completed(job, outcome, crate::clock::now_us());
    }

    /// Ends the backups and pins that wait for what cannot be done now.
    fn fail_waiters(&mut self, number: SourceId, fault: &Fault) {
        if let Some(source) = self.sources.get_mut(&number) {
            source.fail_pins(&fault.error);
            self.fail_backups(number, fault);
        }
    }

    /// Ends the backups that wait for what cannot be stored now; a pin waits for the queue only.
    fn fail_backups(&mut self, number: SourceId, fault: &Fault) {
        let Some(source) = self.sources.get_mut(&number) else { return };
        for waiter in std::mem::take(&mut source.waiters) {
            self.end_job(&waiter.job, JobOutcome::Failed(fault.error.clone(), fault.wire_details()));
        }
    }

    fn finish_waiters(&mut self, number: SourceId) {
        let Some(source) = self.sources.get_mut(&number) else { return };
        let stored = source.log.as_ref().map_or(0, |log| log.stored.seq);
        let (done, waiting) = std::mem::take(&mut source.waiters)
            .into_iter()
            .partition(|waiter| waiter.until_seq.is_some_and(|seq| seq <= stored));
        source.waiters = waiting;
        let done: Vec<crate::source::Waiter> = done;
        for waiter in done {
            self.end_job(&waiter.job, JobOutcome::Done(Details::new()));
        }
    }
}
