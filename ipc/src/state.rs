//! The state that clients see: plain structs, one field per property.
//!
//! Times are microseconds since 1970 (UTC), 0 for "never"; sizes are bytes. Enumerations are strings, so that a newer
//! service can say something new; a client shows words it does not know as they are. The words are in docs/dbus.md.

use std::collections::HashMap;

use zbus::zvariant::OwnedValue;

use crate::JobId;

/// Details of a finished job, by name; see docs/dbus.md, "Results".
pub type Details = HashMap<String, OwnedValue>;

/// Properties of the service itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ManagerState {
    /// The program's version.
    pub version: String,
    /// Backups wait until resumed.
    pub paused: bool,
    /// Why: `user`, `battery`, `metered`, `no-network`, `low-disk`, `locked`.
    pub pause_reasons: Vec<String>,
    /// What is wrong with the configuration, one sentence each.
    pub config_errors: Vec<String>,
    /// Where keys are kept: `secret-service`, `systemd-creds`, `file`.
    pub key_storage: String,
    /// Which sandbox options are really in force.
    pub sandbox: Vec<String>,
    /// When the service does something next by itself.
    pub next_wake: u64,
    /// Identifiers of the databases without a recent backup.
    pub overdue: Vec<String>,
}

/// Properties of one database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DatabaseState {
    /// For people.
    pub display_name: String,
    /// The app that registered it, empty if none did.
    pub app_id: String,
    /// `config` or `app`.
    pub source: String,
    /// The database file.
    pub path: String,
    /// `sqlite`, `opaque` (encrypted by its app) …
    pub kind: String,
    /// Identifier of the store, empty for none.
    pub store: String,
    /// The policy's name or text.
    pub schedule: String,
    /// `idle watching capturing uploading paused blocked missing`
    pub state: String,
    /// When a consistent state was last read.
    pub last_capture: u64,
    /// When a recovery point was last complete in the store.
    pub last_success: u64,
    /// When that was last tried.
    pub last_attempt: u64,
    /// Short error name and text, both empty when all is well.
    pub last_error: (String, String),
    /// What the user should know although nothing failed; empty when there is nothing.
    pub caution: String,
    /// The store shows an older archive than a vault knows: what, in a sentence; empty when all is well.
    pub store_older: String,
    /// No recovery point for longer than the policy allows.
    pub overdue: bool,
    /// When the next capture is due.
    pub next_run: u64,
    /// Changed, and not in the store yet.
    pub pending_bytes: u64,
    /// Used in the store.
    pub remote_bytes: u64,
    /// How many recovery points there are.
    pub recovery_points: u32,
    /// Time of the oldest one.
    pub oldest: u64,
    /// Time of the newest one.
    pub newest: u64,
    /// When stored objects were last read back and checked.
    pub last_verified: u64,
    /// When a restore was last rehearsed in full.
    pub last_drill: u64,
    /// What that rehearsal found, and the last one that failed; see docs/dbus.md, "Rehearsals".
    pub last_drill_result: Details,
    /// Objects in the store that are not what was written: key, kind of damage, what it holds, points it costs.
    pub damage: Vec<(String, String, String, Vec<String>)>,
    /// The stores that have it, the main one first, each with its own progress.
    pub copies: Vec<CopyState>,
    /// When stored backups will be deleted, 0 for not at all.
    pub delete_pending: u64,
    /// When it was last looked at what can be deleted from the store.
    pub last_prune: u64,
    /// Short error name and text: why nothing was deleted. Both empty when all is well.
    pub last_prune_error: (String, String),
    /// Recovery points that are forgotten and still in the store.
    pub forgotten_points: u32,
    /// What waits to be deleted from the store.
    pub forgotten_bytes: u64,
    /// The job at work on it.
    pub current_job: Option<JobId>,
}

/// How one store of a database is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyState {
    /// Identifier of the store.
    pub store: String,
    /// It has the log; all others have copies.
    pub main: bool,
    /// `current copying behind failed`
    pub state: String,
    /// When a recovery point was last complete there.
    pub last_upload: u64,
    /// When what is there was last read back and checked.
    pub last_verified: u64,
    /// Short error name and text, both empty when all is well.
    pub last_error: (String, String),
    /// What the user should know although nothing failed; empty when there is nothing.
    pub caution: String,
    /// Points that it is to get.
    pub behind_points: u32,
    /// What that is in bytes, as far as it is known.
    pub behind_bytes: u64,
    /// Older points that it lacks and is not to get.
    pub lacking_points: u32,
}

/// Encryption of one database; the second interface of its object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncryptionState {
    /// `none`, `password` or `key`.
    pub mode: String,
    /// `off enabling unconfirmed opening on rotating locked broken`
    pub state: String,
    /// At most 8 digits that name the key, no part of it.
    pub key_id: String,
    /// When the key was made.
    pub key_created: u64,
    /// Identifier of the vault, or of the first of several; empty for none.
    pub vault: String,
    /// Identifiers of all vaults of the keyslot.
    pub vaults: Vec<String>,
    /// How many of them have to answer; 0 if that is not known here.
    pub threshold: u32,
    /// Backups can be sealed and opened without asking.
    pub key_on_device: bool,
    /// When the user last proved to know the secret.
    pub last_checked: u64,
}

/// Properties of one vault.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VaultState {
    /// Where it is.
    pub url: String,
    /// `ok unreachable backoff frozen destroyed superseded unregistered untrusted`
    pub state: String,
    /// Wrong passwords until the record is destroyed.
    pub attempts_left: u32,
    /// What that number was at first.
    pub attempts_max: u32,
    /// When the next attempt is possible, 0 for now.
    pub retry_after: u64,
    /// When it last answered.
    pub last_contact: u64,
    /// Text form of its identity.
    pub fingerprint: String,
    /// Until when it refuses all attempts, 0 for not at all.
    pub frozen_until: u64,
    /// Failed attempts since the last change of password, as the vault counts them.
    pub failed_attempts: u32,
    /// How many of them were made on this device.
    pub failed_here: u32,
    /// How many were not.
    pub failed_elsewhere: u32,
    /// How many of these nobody acknowledged.
    pub unacknowledged: u32,
    /// When the newest of these was noticed.
    pub elsewhere_seen: u64,
    /// Who runs it, as the configuration says.
    pub operator: String,
    /// Whose courts can order the operator about, as the configuration says.
    pub jurisdiction: String,
    /// What it has in common with others that guard the same, one sentence each.
    pub warnings: Vec<String>,
}

/// Properties of one store.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StoreState {
    /// `file`, `s3` …
    pub kind: String,
    /// Where it is, without secrets.
    pub url: String,
    /// `unknown ok paused unreachable auth full error`
    pub state: String,
    /// Why nothing is sent although something may wait: `sleep offline metered battery power-saver budget`, or empty.
    pub pause_reason: String,
    /// Requests of this calendar month (UTC).
    pub month_requests: u64,
    /// Bytes of this month, in both directions.
    pub month_bytes: u64,
    /// What this month's requests and a month of keeping cost, in millionths of a currency's unit; -1 if nobody knows.
    pub month_cost: i64,
    /// Bytes in use.
    pub bytes_used: u64,
    /// Bytes there are, 0 if unknown.
    pub bytes_quota: u64,
    /// Short error name and text.
    pub last_error: (String, String),
    /// What it can do beyond the minimum.
    pub capabilities: Vec<String>,
}

/// Properties of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobState {
    /// `backup restore verify unlock …`
    pub operation: String,
    /// Identifier of the database, empty for none.
    pub database: String,
    /// Who asked for it; [`NewJob::started_by`](crate::NewJob::started_by) or `schedule`.
    pub started_by: String,
    /// `Cancel` has an effect.
    pub cancelable: bool,
    /// `queued running cancelling`, then [`JobOutcome::state`].
    pub state: String,
    /// What it does just now, one or two words.
    pub phase: String,
    /// 0 to 1; -1 for unknown.
    pub progress: f64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes to do, 0 if unknown.
    pub bytes_total: u64,
    /// Bytes a second.
    pub rate: u64,
    /// When it began.
    pub started: u64,
    /// When it ended, 0 while it runs.
    pub finished: u64,
    /// When it will probably end, 0 if unknown.
    pub expected_end: u64,
    /// Short error name and text, set at its end.
    pub error: (String, String),
    /// Details, set at its end.
    pub result: Details,
}

impl Default for JobState {
    fn default() -> Self {
        Self {
            operation: String::new(),
            database: String::new(),
            started_by: String::new(),
            cancelable: false,
            state: "queued".into(),
            phase: String::new(),
            progress: -1.0,
            bytes_done: 0,
            bytes_total: 0,
            rate: 0,
            started: 0,
            finished: 0,
            expected_end: 0,
            error: Default::default(),
            result: Details::new(),
        }
    }
}

impl JobState {
    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum JobOutcome {
    /// It is done; details by name.
    Done(Details),
    /// It failed. A wrong password has `attempts-left` (u) and `retry-after` (t) among the details.
    Failed(crate::Error, Details),
    /// Somebody cancelled it.
    Cancelled,
}

impl JobOutcome {
    /// The word for the job's `State`.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Failed(..) => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One moment a database can be restored to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecoveryPoint {
    /// Names it in `RestoreTo` and `Pin`.
    pub id: String,
    /// When the state was read.
    pub time: u64,
    /// Bytes this point added to the store.
    pub size: u64,
    /// When its objects were last checked.
    pub verified: u64,
    /// Never forgotten by itself.
    pub pinned: bool,
    /// Holds every page; otherwise an increment.
    pub base: bool,
    /// Something that it needs is known to be damaged.
    pub damaged: bool,
    /// How long a span it stands for: `entry dozen gross hour quarter-day day week month base`
    pub level: String,
    /// Forgotten by the policy, and not deleted yet.
    pub forgotten: bool,
}

/// One archive found in a store.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RemoteArchive {
    /// Names it in `Adopt`.
    pub id: String,
    /// Name of the source if it is known here, else empty: names are sealed.
    pub name: String,
    /// `key`, `password` or empty if it cannot be told.
    pub mode: String,
    /// When its newest object was written, 0 if the store does not say.
    pub newest: u64,
    /// Bytes in the store.
    pub size: u64,
}
