//! What callers ask: checked here, answered here or turned into a job.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use chatkeep_format::ArchiveId;
use chatkeep_ipc::{
    Call, Caller, Error, JobId, JobOutcome, NewJob, PointFilter, RecoveryPoint, Reply, RestoreOptions,
    RestoreTarget, Secret,
};
use chatkeep_planner::{Event as Happened, Level, SourceId, Target, choose_point};
use chatkeep_sqlite::Existing;

use super::register::path_of;
use super::{Pause, Service};
use crate::archive::Archive;
use crate::catalogue::{Point, restorable};
use crate::config::Place;
use crate::event::{Command, Opened, Work};
use crate::fault::Result;
use crate::registry::Registration;
use crate::restore::Destination;
use crate::source::{Phase, Waiter};
use crate::stores::Managed;

/// Calls that wait for one archive to be opened; more are told that it is busy.
const PARKED_MAX: usize = 64;

/// Answers; a caller that went away does not mind.
pub(super) fn answer<T>(reply: Reply<T>, result: Result<T, Error>) {
    let _ = reply.send(result);
}

pub(super) fn unsupported<T>(reply: Reply<T>) {
    answer(reply, Err(Error::Unsupported("this version cannot do it yet".to_owned())));
}

impl Service {
    pub(super) fn call(&mut self, call: Call) {
        let Some(call) = self.park(call) else { return };
        match call {
            Call::RegisterDatabase { name, file, options, caller, reply } => {
                answer(reply, self.register(name, &file, options, &caller));
            }
            Call::Unregister { database, reply } => answer(reply, self.unregister(&database)),
            Call::BackupAll { started_by, reply } => answer(reply, Ok(self.backup_all(&started_by))),
            Call::Pause { until, reason, reply } => {
                self.begin_pause(until, reason);
                answer(reply, Ok(()));
            }
            Call::Resume { reply } => {
                self.resume();
                answer(reply, Ok(()));
            }
            Call::Reload { reply } => answer(reply, self.reload()),
            Call::ListRemote { store, reply } => self.list_remote(&store, reply),
            Call::Adopt { store, remote_id, dir, file_name, name, restore, caller, job, reply } => {
                let path = (&dir, file_name.as_str());
                let adopted = self.adopt(&store, &remote_id, path, name, restore, &caller, job);
                answer(reply, adopted);
            }
            Call::BackupNow { database, job, reply } => answer(reply, self.backup_now(&database, job)),
            Call::ListRecoveryPoints { database, filter, reply } => {
                answer(reply, self.points(&database, &filter));
            }
            Call::RestoreTo { database, dir, file_name, options, job, reply } => {
                answer(reply, self.restore(&database, dir, file_name, &options, job));
            }
            Call::Verify { database, depth, job, reply } => {
                let started = self.opened_of(&database).map(|(number, opened)| {
                    self.run(job, "verify", Some(number), false, Work::Verify { opened, depth })
                });
                answer(reply, started);
            }
            Call::StoreTest { store, job, reply } => {
                // Who asks has perhaps mended what kept its plugin from running, or made it crash.
                if self.managed.get(&store).is_some_and(|managed| managed.why_unusable().is_some())
                    && let Err(error) = self.reload()
                {
                    let _ = reply.send(Err(error));
                    return;
                }
                if let Some(plugin) = self.managed.get(&store).and_then(|managed| managed.plugin()) {
                    plugin.forget_secrets();
                }
                let found = self.store(&store);
                let started = found.map(|found| {
                    self.run(job, "store-test", None, false, Work::StoreTest { name: store, store: found })
                });
                answer(reply, started);
            }
            Call::StoreUsage { store, job, reply } => {
                let found = self.store(&store);
                let started = found.map(|found| {
                    self.run(job, "store-usage", None, false, Work::StoreUsage { name: store, store: found })
                });
                answer(reply, started);
            }
            Call::VaultRefresh { vault, job, reply } => answer(reply, self.vault_refresh(&vault, job)),
            Call::VaultFreeze { vault, until, job, reply } => {
                answer(reply, self.vault_freeze(&vault, until, job));
            }
            Call::VaultAcknowledge { vault, reply } => answer(reply, self.vault_acknowledge(&vault)),
            Call::JobCancel { job, reply } => {
                self.cancel(&job);
                answer(reply, Ok(()));
            }
            Call::Prune { database, dry_run, job, reply } => {
                answer(reply, self.prune(&database, dry_run, job));
            }
            Call::Pin { database, point, pinned, reply } => self.pin_point(&database, &point, pinned, reply),
            Call::RestoreInPlace { reply, .. }
            | Call::DeleteBackups { reply, .. }
            | Call::VaultDeregister { reply, .. } => unsupported(reply),
            Call::CancelDelete { reply, .. } | Call::SetSchedule { reply, .. } => unsupported(reply),
            Call::SetCredentials { store, name, value, reply } => {
                self.set_credentials(&store, name, value, reply);
            }
            other => self.encryption_call(other),
        }
    }

    /// Keeps a call about an archive that is being opened until that has ended; gives all others back.
    fn park(&mut self, call: Call) -> Option<Call> {
        let (Call::BackupNow { database, .. }
        | Call::ListRecoveryPoints { database, .. }
        | Call::RestoreTo { database, .. }
        | Call::Verify { database, .. }
        | Call::Prune { database, .. }
        | Call::Pin { database, .. }
        | Call::ChangePassword { database, .. }
        | Call::RotateKey { database, .. }
        | Call::CheckSecret { database, .. }
        | Call::ShowKey { database, .. }) = &call
        else {
            return Some(call);
        };
        let opening = self.sources.values_mut().find(|source| source.id == *database);
        match opening.filter(|source| source.phase == Phase::Opening && source.parked.len() < PARKED_MAX) {
            Some(source) => {
                source.parked.push(call);
                None
            }
            None => Some(call),
        }
    }

    pub(super) fn choose_store(&self, wanted: Option<String>) -> Result<String, Error> {
        match wanted {
            Some(name) if self.stores.contains_key(&name) => Ok(name),
            Some(name) => Err(Error::NotFound(format!("the store `{name}` is not configured"))),
            None if self.config.store.is_empty() => {
                let text =
                    format!("no store is configured; add a [[store]] to {}", self.config_path.display());
                Err(Error::InvalidArgument(text))
            }
            None if self.config.store.len() > 1 => {
                let names: Vec<&str> = self.config.store.iter().map(|store| store.name.as_str()).collect();
                Err(Error::InvalidArgument(format!("say which store (`--store`): {}", names.join(", "))))
            }
            None => Ok(self.config.store[0].name.clone()),
        }
    }

    fn unregister(&mut self, id: &str) -> Result<(), Error> {
        let number = self.number_of(id)?;
        if self.sources[&number].configured {
            return Err(Error::Configured(format!("`{id}` stands in {}", self.config_path.display())));
        }
        self.change_registry(|registry| registry.database.remove(id)).map_err(|fault| fault.error)?;
        let gone = Error::Cancelled("it was unregistered".to_owned());
        self.fail_waiters(number, &gone.clone().into());
        self.plan(Happened::SourceRemoved { source: number });
        if let Some(source) = self.sources.remove(&number) {
            if let Some((cancelled, _)) = &source.capturing {
                cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            source.copies.iter().for_each(crate::source::StoreCopy::stop);
            for (job, _) in source.end_when_open {
                self.end_job(&job, JobOutcome::Cancelled);
            }
            // The replies of parked calls are dropped, and their callers told.
            if source.following || source.leaving {
                if let Some(archive) = source.registration.archive {
                    self.leaving.insert(number, archive);
                }
                if source.following {
                    self.out.push(Command::Unfollow { source: number });
                }
            }
        }
        self.tools.server.remove_database(id);
        Ok(())
    }

    fn backup_all(&mut self, started_by: &str) -> Vec<JobId> {
        let open = self.sources.values().filter(|source| source.phase == Phase::Open);
        let ids: Vec<String> = open.map(|source| source.id.clone()).collect();
        let mut jobs = Vec::new();
        for id in ids {
            let job = NewJob { id: self.tools.server.new_job_id(), started_by: started_by.to_owned() };
            if let Ok(job) = self.backup_now(&id, job) {
                jobs.push(job);
            }
        }
        jobs
    }

    fn backup_now(&mut self, id: &str, job: NewJob) -> Result<JobId, Error> {
        let (number, _) = self.opened_of(id)?;
        let source = &self.sources[&number];
        if source.phase != Phase::Open {
            let why = source.fault().map(|fault| fault.error.clone());
            return Err(why.unwrap_or_else(|| Error::Busy("its archive is being opened".to_owned())));
        }
        if !source.found
            && let Some(fault) = &source.capture_fault
        {
            return Err(fault.error.clone());
        }
        self.begin_job(&job, "backup", Some(number), false);
        let name = job.id.clone();
        self.update(number, |source| {
            source.waiters.push(Waiter { job: name, capture: source.captures + 1, until_seq: None, busy: 0 });
        });
        self.plan(Happened::CaptureNow { source: number });
        Ok(job.id)
    }

    fn points(&self, id: &str, filter: &PointFilter) -> Result<Vec<RecoveryPoint>, Error> {
        let (number, opened) = self.opened_of(id)?;
        let damage = &self.sources[&number].damage;
        let forgotten =
            if filter.forgotten { self.tools.catalogue.forgotten(&opened.archive.id) } else { Vec::new() };
        let is_forgotten: BTreeSet<u64> = forgotten.iter().map(|point| point.seq).collect();
        let mut points = self.restorable_points(&opened.archive.id, forgotten);
        points.reverse();
        let pins = self.sources[&number].log.as_ref().map(|log| log.written.pins.clone()).unwrap_or_default();
        let time = |at: i64| u64::try_from(at).unwrap_or(0);
        let wanted = points.into_iter().filter(|point| {
            let at = time(point.taken_at_us);
            filter.since.is_none_or(|since| at >= since) && filter.until.is_none_or(|until| at <= until)
        });
        let limit = filter.limit.map_or(usize::MAX, |limit| limit as usize);
        let shown = wanted.take(limit).map(|point| RecoveryPoint {
            id: point.seq.to_string(),
            time: time(point.taken_at_us),
            size: point.bytes,
            verified: point.verified_us,
            pinned: pins.contains(&point.seq),
            base: point.seq == point.base_seq,
            damaged: damage.affects(point.seq),
            level: level_word(point.level).to_owned(),
            forgotten: is_forgotten.contains(&point.seq),
        });
        Ok(shown.collect())
    }

    /// The points that can be restored, and `more`, oldest first.
    fn restorable_points(&self, archive: &ArchiveId, more: Vec<Point>) -> Vec<Point> {
        let mut points = self.tools.catalogue.points(archive);
        points.extend(self.on_copies_only(archive));
        points.extend(more);
        points.sort_unstable_by_key(|point| point.seq);
        // What the main store lacks a copy may have.
        let mut missing = self.tools.catalogue.missing(archive);
        missing.retain(|seq| !self.is_on_a_copy(archive, *seq));
        let whole = restorable(&points, &missing);
        points.retain(|point| whole.contains(&point.seq));
        points
    }

    fn restore(
        &mut self,
        id: &str,
        folder: OwnedFd,
        file_name: String,
        options: &RestoreOptions,
        job: NewJob,
    ) -> Result<JobId, Error> {
        let (number, opened) = self.opened_of(id)?;
        check_file_name(&file_name)?;
        let target = match &options.target {
            RestoreTarget::Newest => Target::Newest,
            RestoreTarget::At(time) => Target::Before { taken_at_us: *time },
            RestoreTarget::Point(point) => {
                let seq =
                    point.parse().map_err(|_| Error::NotFound(format!("there is no point `{point}`")))?;
                Target::Seq(seq)
            }
        };
        let catalogue = &self.tools.catalogue;
        let points = match target {
            // One that is named is tried, whatever is known of it.
            Target::Seq(seq) => {
                let id = &opened.archive.id;
                let point = catalogue.point(id, seq).or_else(|| catalogue.point_elsewhere(id, seq));
                point.or_else(|| catalogue.forgotten_point(id, seq)).into_iter().collect()
            }
            _ => self.restorable_points(&opened.archive.id, Vec::new()),
        };
        let times: Vec<(u64, u64)> =
            points.iter().map(|point| (point.seq, u64::try_from(point.taken_at_us).unwrap_or(0))).collect();
        let seq = choose_point(&times, target).ok_or_else(|| match target {
            Target::Newest => Error::NotFound("there is no recovery point yet".to_owned()),
            _ => Error::NotFound("there is no such recovery point".to_owned()),
        })?;
        // Where the database belongs, what goes with it belongs beside it.
        let registered = &self.sources[&number].registration;
        let in_place = path_of(&folder).is_ok_and(|folder| folder.join(&file_name) == registered.path);
        let alone = registered.more_databases.is_empty() && registered.attachments.is_empty();
        let destination = Destination {
            folder,
            file_name: Some(file_name),
            in_place: in_place || options.into,
            existing: if options.overwrite { Existing::KeepBeside } else { Existing::Refuse },
            label: restore_label(),
        };
        let stores = self.stores_to_read(number, &opened);
        let work = Work::Restore { opened, stores, seq, destination };
        let job = self.run(job, "restore", Some(number), false, work);
        if in_place && alone && self.register_siblings(number).map_err(|fault| fault.error)? {
            self.restart(number);
        }
        Ok(job)
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of the D-Bus method")]
    fn adopt(
        &mut self,
        store_name: &str,
        remote_id: &str,
        (dir, file_name): (&OwnedFd, &str),
        name: Option<String>,
        restore: bool,
        caller: &Caller,
        job: NewJob,
    ) -> Result<JobId, Error> {
        let store = self.store(store_name)?;
        let id: ArchiveId =
            remote_id.parse().map_err(|_| Error::NotFound(format!("`{remote_id}` is no archive's name")))?;
        check_file_name(file_name)?;
        let path = path_of(dir)?.join(file_name);
        self.check_adoption(id, &path)?;
        let stem = Path::new(file_name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let registration = Registration {
            display_name: name.or(stem).unwrap_or_else(|| file_name.to_owned()),
            app_id: caller.app_id().unwrap_or_default().to_owned(),
            path,
            more_databases: Vec::new(),
            attachments: Vec::new(),
            store: store_name.to_owned(),
            copies: Vec::new(),
            archive: Some(id),
            vault: String::new(),
        };
        let work =
            Work::Adopt { archive: Archive { store, id }, registration: Box::new(registration), restore };
        Ok(self.run(job, "adopt", None, false, work))
    }

    /// One archive is one source here, and one file is one source.
    pub(super) fn check_adoption(&self, id: ArchiveId, path: &Path) -> Result<(), Error> {
        for (name, known) in &self.registry.database {
            if known.archive == Some(id) {
                return Err(Error::AlreadyRegistered(format!("this archive is `{name}` here")));
            }
            if known.path == path {
                let text = format!("{} is watched as `{name}` already", path.display());
                return Err(Error::AlreadyRegistered(text));
            }
        }
        if path.to_str().is_none() {
            return Err(Error::InvalidArgument("the path is not UTF-8".to_owned()));
        }
        Ok(())
    }

    fn list_remote(&mut self, name: &str, reply: Reply<Vec<chatkeep_ipc::RemoteArchive>>) {
        match self.store(name) {
            Ok(store) => {
                let named =
                    self.registry.database.values().filter_map(|known| {
                        known.archive.map(|archive| (archive, known.display_name.clone()))
                    });
                let known = named.collect();
                self.out.push(Command::ListRemote { store, known, reply });
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn cancel(&mut self, job: &JobId) {
        let Some(running) = self.jobs.get(job) else { return };
        if running.keys {
            return;
        }
        running.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        let waiting = running.source.and_then(|number| self.sources.get_mut(&number));
        if let Some(source) = waiting
            && let Some(at) = source.waiters.iter().position(|waiter| waiter.job == *job)
        {
            // The backup itself goes on: it costs nothing to keep it.
            source.waiters.remove(at);
            self.end_job(job, JobOutcome::Cancelled);
            return;
        }
        self.tools.server.update_job(job, |state| "cancelling".clone_into(&mut state.state));
    }

    fn begin_pause(&mut self, until_us: Option<u64>, reason: String) {
        self.pause = Some(Pause { until_us });
        self.plan(Happened::Paused);
        self.stop_copies();
        self.tools.server.update_manager(|manager| {
            manager.paused = true;
            manager.pause_reasons = vec![reason];
        });
        self.show_all();
    }

    pub(super) fn resume(&mut self) {
        self.pause = None;
        self.plan(Happened::Resumed);
        self.tools.server.update_manager(|manager| {
            manager.paused = false;
            manager.pause_reasons.clear();
        });
        for number in self.sources.keys().copied().collect::<Vec<_>>() {
            self.copy_now(number);
        }
        self.show_all();
    }

    fn show_all(&self) {
        self.sources.keys().for_each(|number| self.show(*number));
    }

    pub(super) fn reload(&mut self) -> Result<(), Error> {
        let config = match crate::config::Config::load(&self.config_path) {
            Ok(config) => config,
            Err(error) => {
                let text = error.to_string();
                self.tools.server.update_manager(|manager| manager.config_errors = vec![text.clone()]);
                return Err(Error::InvalidArgument(text));
            }
        };
        let before = std::mem::replace(&mut self.config, config);
        let opened_before = self.managed.clone();
        if let Err(error) = self.connect() {
            self.config = before;
            let text = format!("{error:#}");
            self.tools.server.update_manager(|manager| manager.config_errors = vec![text.clone()]);
            return Err(Error::InvalidArgument(text));
        }
        self.scheduler.set_policy(self.config.capture.policy(self.config.store.len()));
        for gone in before.store.iter().filter(|store| !self.stores.contains_key(&store.name)) {
            self.tools.server.remove_store(&gone.name);
        }
        for gone in before.vault.iter().filter(|vault| self.pins.iter().all(|pin| pin.name != vault.name)) {
            self.vaults.forget(&gone.name);
            self.tools.server.remove_vault(&gone.name);
        }
        self.show_stores();
        self.show_vaults();
        self.add_configured();
        for (id, registration) in self.registry.database.clone() {
            let configured = self.config.source.iter().any(|source| source.name == id);
            let Ok(number) = self.number_of(&id) else {
                self.add_source(id, registration, configured);
                continue;
            };
            let store = |config: &crate::config::Config| {
                config.store.iter().find(|store| store.name == registration.store).cloned()
            };
            let opened =
                |stores: &BTreeMap<String, Arc<Managed>>| stores.get(&registration.store).map(Arc::as_ptr);
            let moved =
                store(&before) != store(&self.config) || opened(&opened_before) != opened(&self.managed);
            let Some(source) = self.sources.get_mut(&number) else { continue };
            let moved = moved
                || source.registration.databases() != registration.databases()
                || source.registration.attachments != registration.attachments
                || source.registration.store != registration.store;
            (source.configured, source.registration) = (configured, registration);
            if moved || matches!(source.phase, Phase::Failed | Phase::Blocked) {
                self.restart(number);
            } else if source.phase == Phase::Open {
                // A store may have been changed.
                source.copies.iter_mut().for_each(|copy| copy.listed = false);
                self.take_up_copies(number);
            }
            self.show(number);
        }
        Ok(())
    }

    // What calls need

    /// A source whose archive is open.
    pub(super) fn opened_of(&self, id: &str) -> Result<(SourceId, Arc<Opened>), Error> {
        let number = self.number_of(id)?;
        let source = &self.sources[&number];
        if let Some(opened) = &source.opened {
            return Ok((number, opened.clone()));
        }
        Err(match source.phase {
            Phase::Off => Error::NotEnabled(format!("encryption is not turned on for `{id}`")),
            Phase::Locked => {
                Error::KeyUnavailable(format!("`{id}` is locked on this machine; unlock it first"))
            }
            Phase::Opening => Error::Busy(format!("the archive of `{id}` is being opened")),
            _ => match source.fault() {
                Some(fault) => fault.error.clone(),
                None => Error::Internal("it is not open, and nobody knows why".to_owned()),
            },
        })
    }

    /// Keeps a secret that the configuration says is in the keyring.
    fn set_credentials(&mut self, store: &str, name: String, value: Secret, reply: Reply<()>) {
        let config = self.config.store.iter().find(|config| config.name == store);
        let checked = match config {
            None => Err(Error::NotFound(format!("the store `{store}` is not configured"))),
            Some(config) => match config.secrets.get(&name) {
                Some(Place::Keyring) => Ok(()),
                Some(_) => {
                    Err(Error::Configured(format!("the secret `{name}` of `{store}` comes from elsewhere")))
                }
                None => Err(Error::NotFound(format!(
                    "the store `{store}` has no secret `{name}`; write `secrets = {{ {name} = \"keyring\" }}`"
                ))),
            },
        };
        match checked {
            Ok(()) => self.out.push(Command::KeepCredential { store: store.to_owned(), name, value, reply }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn store(&self, name: &str) -> Result<Arc<dyn chatkeep_store::Store>, Error> {
        let found = self.stores.get(name).cloned();
        found.ok_or_else(|| Error::NotFound(format!("the store `{name}` is not configured")))
    }

    pub(super) fn pin(&self, name: Option<&str>) -> Result<chatkeep_vault_client::VaultPin, Error> {
        let missing = || match name {
            Some(name) => Error::NotFound(format!("the vault `{name}` is not configured")),
            None => Error::InvalidArgument(format!(
                "no vault is configured; add a [[vault]] to {}",
                self.config_path.display()
            )),
        };
        let found = self.pins.iter().find(|pin| name.is_none_or(|name| pin.name == name));
        found.cloned().ok_or_else(missing)
    }
}

/// Whether whoever made a call that was kept does not wait for its answer any more.
pub(super) fn is_abandoned(call: &Call) -> bool {
    match call {
        Call::ListRecoveryPoints { reply, .. } => reply.is_closed(),
        Call::Pin { reply, .. } => reply.is_closed(),
        Call::BackupNow { reply, .. }
        | Call::RestoreTo { reply, .. }
        | Call::Verify { reply, .. }
        | Call::Prune { reply, .. }
        | Call::ChangePassword { reply, .. }
        | Call::RotateKey { reply, .. }
        | Call::CheckSecret { reply, .. }
        | Call::ShowKey { reply, .. } => reply.is_closed(),
        _ => false,
    }
}

/// How a level is called.
fn level_word(level: u8) -> &'static str {
    match Level::from_number(level) {
        Some(Level::Entry) => "entry",
        Some(Level::Dozen) => "dozen",
        Some(Level::Gross) => "gross",
        Some(Level::Hour) => "hour",
        Some(Level::QuarterDay) => "quarter-day",
        Some(Level::Day) => "day",
        Some(Level::Week) => "week",
        Some(Level::Month) => "month",
        Some(Level::Base) | None => "base",
    }
}

/// Tells what is kept beside from what comes in its place.
pub(super) fn restore_label() -> String {
    format!("restore-{}", crate::clock::now_us() / 1_000_000)
}

fn check_file_name(name: &str) -> Result<(), Error> {
    let plain =
        !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']) && name != "." && name != "..";
    if plain { Ok(()) } else { Err(Error::InvalidArgument("this is not a file name".to_owned())) }
}
