//! One watched database, as the loop sees it, and how it is shown.

mod copy;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use chatkeep_crypto::BackupKey;
use chatkeep_ipc::{Call, DatabaseState, EncryptionState, JobId, JobOutcome, Reply};
use chatkeep_planner::{Millis, UploadId};

use crate::archive::Archive;
use crate::catalogue::{Facts, Point, PruneFacts};
use crate::damage::DamageReport;
use crate::drill::ProvedDrills;
use crate::event::Opened;
use crate::fault::Fault;
use crate::log::Log;
use crate::registry::Registration;
use crate::spool::Spooled;
use crate::writer::Written;

pub use copy::StoreCopy;

/// A recovery point older than this, with changes that wait, is overdue: a day, in µs.
const OVERDUE_US: u64 = 24 * 3_600 * 1_000_000;

/// Where a source stands with its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Encryption was never turned on: nothing is read, nothing is stored.
    Off,
    /// Its archive is being opened.
    Opening,
    /// The key is not on this device.
    Locked,
    /// The archive could not be opened; tried again.
    Failed,
    /// Open.
    Open,
    /// Open for reading; nothing may be written (fenced, rolled back, damaged head).
    Blocked,
}

/// A backup somebody waits for.
#[derive(Debug)]
pub struct Waiter {
    /// Its job.
    pub job: JobId,
    /// Number of the capture that counts: the first one that began after the job.
    pub capture: u64,
    /// The entry that has to be in the store, once it is known.
    pub until_seq: Option<u64>,
    /// Captures that found no quiet moment since.
    pub busy: u32,
}

/// New digits that were shown and not typed back yet.
#[derive(Debug)]
pub struct Unconfirmed {
    /// The key.
    pub key: BackupKey,
    /// For a new archive; `None` for a rotation.
    pub archive: Option<Archive>,
}

/// One watched database.
#[derive(Debug)]
pub struct Source {
    /// Its name on D-Bus.
    pub id: String,
    /// What was registered.
    pub registration: Registration,
    /// From `config.toml`.
    pub configured: bool,
    /// Where it stands.
    pub phase: Phase,
    /// Its archive.
    pub opened: Option<Arc<Opened>>,
    /// Its log.
    pub log: Option<Log>,
    /// Its archive is being opened; and then opened once more.
    pub opening: bool,
    /// Something changed meanwhile.
    pub open_again: bool,
    /// A follower runs.
    pub following: bool,
    /// One is just leaving: no other may begin.
    pub leaving: bool,
    /// The database is there.
    pub found: bool,
    /// The capture under way: its flag to stop it, its bytes.
    pub capturing: Option<(Arc<AtomicBool>, Arc<AtomicU64>)>,
    /// Captures begun.
    pub captures: u64,
    /// Its copies in further stores.
    pub copies: Vec<StoreCopy>,
    /// A capture was put off, because too much waits for the store.
    pub held: bool,
    /// What waits for upload.
    pub uploads: BTreeMap<UploadId, (Spooled, Option<Written>)>,
    /// Backups somebody waits for.
    pub waiters: Vec<Waiter>,
    /// New digits that wait for confirmation.
    pub unconfirmed: Option<Unconfirmed>,
    /// A job that changes keys.
    pub key_job: Option<JobId>,
    /// Jobs that end when its archive is open: whoever waited for them can work with it at once.
    pub end_when_open: Vec<(JobId, JobOutcome)>,
    /// Calls that wait until it is open, or cannot be opened.
    pub parked: Vec<Call>,
    /// Restore when it is unlocked.
    pub restore_when_open: bool,
    /// Mode of an archive that is not open: `password` or `key`, if it is known.
    pub mode_hint: String,
    /// When to try to open the archive again.
    pub reopen: Option<Millis>,
    /// How often opening it failed in a row.
    pub open_failures: u32,
    /// What is followed is not all, or not as soon as it could be.
    pub caution: Option<String>,
    /// The store shows less than a vault knows.
    pub older: Option<String>,
    /// What is wrong with the database.
    pub capture_fault: Option<Fault>,
    /// What is wrong with the store or the archive.
    pub store_fault: Option<Fault>,
    /// What a verification or a restore found damaged or missing in the store, until one finds it right.
    pub damage: DamageReport,
    /// The same as a fault.
    pub damage_fault: Option<Fault>,
    /// What rehearsals of a restore found.
    pub drills: ProvedDrills,
    /// Changed and not captured.
    pub pending_bytes: u64,
    /// When an upload was last tried, µs.
    pub last_attempt_us: u64,
    /// The ages.
    pub facts: Facts,
    /// Of all points: how many, oldest and newest time in µs, bytes.
    pub points: PointSummary,
    /// Pins that wait for a capture, and those that one under way takes along.
    pub pin_requests: Vec<PinRequest>,
    /// See above.
    pub pinning: Vec<PinRequest>,
    /// What was last found out about what can be deleted, and how many points are forgotten and still there.
    pub pruned: PruneFacts,
    /// See above.
    pub forgotten: u32,
    /// The prune at work, and whether it changes nothing.
    pub prune_job: Option<(JobId, bool)>,
    /// When upkeep may be tried again, by its operation.
    pub upkeep_again: BTreeMap<&'static str, Millis>,
}

/// Somebody wants a point kept, or no longer; answered when an entry says so.
#[derive(Debug)]
pub struct PinRequest {
    /// The point.
    pub seq: u64,
    /// Kept, or no longer.
    pub pinned: bool,
    /// To whom.
    pub reply: Reply<()>,
}

/// What is shown of the points.
#[derive(Debug, Clone, Copy, Default)]
pub struct PointSummary {
    newest_seq: u64,
    count: u32,
    oldest_us: u64,
    newest_us: u64,
    bytes: u64,
}

impl PointSummary {
    /// Bytes of all of them in the store.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a point, newer than those before. One that was counted already changes nothing.
    pub fn add(&mut self, point: &Point) {
        if point.seq <= self.newest_seq {
            return;
        }
        self.newest_seq = point.seq;
        let at = u64::try_from(point.taken_at_us).unwrap_or(0);
        self.oldest_us = if self.count == 0 { at } else { self.oldest_us.min(at) };
        self.newest_us = self.newest_us.max(at);
        self.count += 1;
        self.bytes += point.bytes;
    }
}

impl Source {
    /// A source of which nothing is known yet.
    pub fn new(id: String, registration: Registration, configured: bool) -> Self {
        Self {
            id,
            registration,
            configured,
            phase: Phase::Off,
            opened: None,
            log: None,
            opening: false,
            open_again: false,
            following: false,
            leaving: false,
            found: false,
            capturing: None,
            captures: 0,
            copies: Vec::new(),
            held: false,
            uploads: BTreeMap::new(),
            waiters: Vec::new(),
            unconfirmed: None,
            key_job: None,
            end_when_open: Vec::new(),
            parked: Vec::new(),
            restore_when_open: false,
            mode_hint: String::new(),
            reopen: None,
            open_failures: 0,
            caution: None,
            older: None,
            capture_fault: None,
            store_fault: None,
            damage: DamageReport::default(),
            damage_fault: None,
            drills: ProvedDrills::default(),
            pending_bytes: 0,
            last_attempt_us: 0,
            facts: Facts::default(),
            points: PointSummary::default(),
            pin_requests: Vec::new(),
            pinning: Vec::new(),
            pruned: PruneFacts::default(),
            forgotten: 0,
            prune_job: None,
            upkeep_again: BTreeMap::new(),
        }
    }

    /// Whoever waits for a backup waits for the next capture: the last one came to nothing.
    pub fn wait_anew(&mut self) {
        for waiter in &mut self.waiters {
            (waiter.until_seq, waiter.capture) = (None, self.captures + 1);
        }
        self.pin_requests.append(&mut self.pinning);
    }

    /// Takes over what is known to be damaged.
    pub fn set_damage(&mut self, report: DamageReport) {
        let fault = (!report.is_empty()).then(|| Fault::of_damage(report.damages.clone()));
        (self.damage, self.damage_fault) = (report, fault);
    }

    /// The more important of its faults: what endangers the backup before what delays it.
    pub fn fault(&self) -> Option<&Fault> {
        self.store_fault.as_ref().or(self.damage_fault.as_ref()).or(self.capture_fault.as_ref())
    }

    /// The properties of its object.
    pub fn database_state(&self, paused: bool, next_run: u64, now_us: u64) -> DatabaseState {
        let kept = self.facts.uploaded_us;
        let behind = self.pending_bytes > 0 || !self.uploads.is_empty() || self.fault().is_some();
        DatabaseState {
            display_name: self.registration.display_name.clone(),
            app_id: self.registration.app_id.clone(),
            source: if self.configured { "config" } else { "app" }.to_owned(),
            path: self.registration.path.display().to_string(),
            kind: "sqlite".to_owned(),
            store: self.registration.store.clone(),
            schedule: "continuous".to_owned(),
            state: self.state_word(paused).to_owned(),
            last_capture: self.facts.captured_us,
            last_success: kept,
            last_attempt: self.last_attempt_us.max(kept),
            last_error: self.fault().map(Fault::pair).unwrap_or_default(),
            caution: self.cautions(),
            store_older: self.older.clone().unwrap_or_default(),
            overdue: self.phase != Phase::Off && behind && now_us.saturating_sub(kept) > OVERDUE_US,
            next_run,
            pending_bytes: self.pending_bytes
                + self.uploads.values().map(|(object, _)| object.len).sum::<u64>(),
            remote_bytes: self.points.bytes,
            recovery_points: self.points.count,
            oldest: self.points.oldest_us,
            newest: self.points.newest_us,
            last_verified: self.facts.verified_us,
            last_drill: self.drills.newest.as_ref().map_or(0, |record| record.drilled_us),
            last_drill_result: self.drills.details(),
            damage: self.damage.wire(),
            copies: self.copy_states(),
            delete_pending: 0,
            last_prune: self.pruned.pruned_us,
            last_prune_error: self.pruned.hindrance.clone().unwrap_or_default(),
            forgotten_points: self.forgotten,
            forgotten_bytes: self.pruned.waiting_bytes,
            current_job: self
                .key_job
                .clone()
                .or_else(|| self.waiters.first().map(|waiter| waiter.job.clone())),
        }
    }

    /// What the user should know although nothing failed.
    fn cautions(&self) -> String {
        let blind = "its store only takes what is new and shows nothing: it is not verified, and a second installation \
                     is noticed only when it writes at the same place";
        let blind = self.log.as_ref().is_some_and(|log| log.blind).then_some(blind);
        let all: Vec<&str> = self.caution.as_deref().into_iter().chain(blind).collect();
        all.join("; ")
    }

    fn state_word(&self, paused: bool) -> &'static str {
        match self.phase {
            Phase::Off | Phase::Locked | Phase::Opening => "idle",
            Phase::Failed | Phase::Blocked => "blocked",
            Phase::Open if self.capturing.is_some() => "capturing",
            Phase::Open if paused => "paused",
            Phase::Open if self.store_fault.is_some() => "blocked",
            Phase::Open if !self.uploads.is_empty() => "uploading",
            Phase::Open if !self.found => "missing",
            Phase::Open => "watching",
        }
    }

    /// The properties of its encryption.
    pub fn encryption_state(&self) -> EncryptionState {
        let keys = self.opened.as_ref().map(|opened| &opened.keys);
        let mode = match (keys, self.registration.archive) {
            (Some(keys), _) => keys.mode().to_owned(),
            (None, Some(_)) if !self.mode_hint.is_empty() => self.mode_hint.clone(),
            (None, Some(_)) if self.registration.vault.is_empty() => "key".to_owned(),
            (None, Some(_)) => "password".to_owned(),
            (None, None) => "none".to_owned(),
        };
        let state = match self.phase {
            _ if self.unconfirmed.is_some() => "unconfirmed",
            Phase::Off if self.key_job.is_some() => "enabling",
            Phase::Off => "off",
            Phase::Locked => "locked",
            Phase::Failed if self.has_broken_keys() => "broken",
            Phase::Opening | Phase::Failed => "opening",
            Phase::Open | Phase::Blocked => "on",
        };
        EncryptionState {
            mode,
            state: state.to_owned(),
            key_id: keys.map(crate::keyring::Keys::key_id).unwrap_or_default(),
            key_created: self.facts.key_created_us,
            vault: self.registration.vault.clone(),
            vaults: Vec::new(),
            threshold: 0,
            key_on_device: keys.is_some(),
            last_checked: self.facts.secret_checked_us,
        }
    }

    /// Sealed bytes that wait for the store.
    pub fn waiting_bytes(&self) -> u64 {
        self.uploads.values().map(|(object, _)| object.len).sum()
    }

    /// The keys of this device do not open the archive: not a matter of time or of the store.
    fn has_broken_keys(&self) -> bool {
        use chatkeep_ipc::Error;
        let fault = self.store_fault.as_ref().map(|fault| &fault.error);
        matches!(fault, Some(Error::WrongSecret(_) | Error::KeyUnavailable(_)))
    }

    /// Bytes read by the capture under way.
    pub fn bytes_read(&self) -> Option<u64> {
        self.capturing.as_ref().map(|(_, bytes)| bytes.load(Ordering::Relaxed))
    }
}
