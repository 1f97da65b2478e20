//! What callers ask of the daemon: one variant per method, each with a channel for the answer.
//!
//! Whatever may wait for disk, network or a vault carries a [`NewJob`] and is answered at once with the identifier of
//! the job that does it: the given one, or that of a job already under way for the same purpose. The daemon calls
//! [`Server::upsert_job`](crate::Server::upsert_job) *before* it answers, so that the object is there when the caller
//! looks. Errors that are known at once (wrong state, no such database) are answers, later ones are the job's outcome.

use std::os::fd::OwnedFd;

use tokio::sync::{mpsc, oneshot};

use crate::{Caller, Error, JobId, KeyOut, RecoveryPoint, RemoteArchive, Secret};

/// Where calls go. Bounded: when the daemon does not keep up, callers get `Busy`.
pub type Calls = mpsc::Sender<Call>;
/// Where the answer goes. Dropped without one, the caller gets `Internal`.
pub type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// The identity of a job about to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Free to use, the caller may have chosen it.
    pub id: JobId,
    /// For [`JobState::started_by`](crate::JobState::started_by).
    pub started_by: String,
}

/// Options of `RegisterDatabase`; what is `None` is up to the daemon.
#[derive(Debug, Default)]
pub struct RegisterOptions {
    /// For people.
    pub display_name: Option<String>,
    /// Identifier of a store.
    pub store: Option<String>,
    /// Name or text of a policy.
    pub schedule: Option<String>,
    /// Further database files of the same app: one recovery point has all of them.
    pub databases: Vec<OwnedFd>,
    /// Directories whose files belong to the database.
    pub attachments: Vec<OwnedFd>,
    /// For host callers only; a sandboxed caller's own identifier is in [`Caller`].
    pub app_id: Option<String>,
    /// `sqlite`.
    pub kind: Option<String>,
}

/// Which recovery point a restore takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RestoreTarget {
    /// The newest.
    #[default]
    Newest,
    /// The newest that is not later than this time.
    At(u64),
    /// The one with this identifier.
    Point(String),
}

/// Options of `RestoreTo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// What to restore.
    pub target: RestoreTarget,
    /// An existing file is kept beside the new one; otherwise it is an error.
    pub overwrite: bool,
    /// A point of several files goes right into the directory; otherwise into a new one with the name of the file.
    pub into: bool,
}

/// Options of `ListRecoveryPoints`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointFilter {
    /// Not before.
    pub since: Option<u64>,
    /// Not after.
    pub until: Option<u64>,
    /// At most so many, the newest ones.
    pub limit: Option<u32>,
    /// Those, too, that the policy forgot and that are not deleted yet.
    pub forgotten: bool,
}

/// How deep `Verify` looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VerifyDepth {
    /// The log is complete and every object is there.
    Manifest,
    /// Every object is fetched and opened.
    #[default]
    Chunks,
    /// A restore in full, thrown away afterwards: a drill.
    Restore,
}

/// All that can be asked.
#[derive(Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are the arguments of the method; docs/dbus.md describes them")]
pub enum Call {
    // Manager
    /// Watch a database. Answer: its identifier; the same file and name give the same one.
    RegisterDatabase {
        name: String,
        file: OwnedFd,
        options: RegisterOptions,
        caller: Caller,
        reply: Reply<String>,
    },
    /// Stop watching; what is stored stays.
    Unregister { database: String, reply: Reply<()> },
    /// Back up all of them; the daemon takes identifiers from [`Server::new_job_id`](crate::Server::new_job_id).
    BackupAll { started_by: String, reply: Reply<Vec<JobId>> },
    /// Until a time, or with `None` until resumed.
    Pause { until: Option<u64>, reason: String, reply: Reply<()> },
    /// End the pause.
    Resume { reply: Reply<()> },
    /// Read the configuration again.
    Reload { reply: Reply<()> },
    /// What a store holds.
    ListRemote { store: String, reply: Reply<Vec<RemoteArchive>> },
    /// Take an archive over on this machine; the job registers it, and restores after `Unlock` if asked.
    Adopt {
        store: String,
        remote_id: String,
        dir: OwnedFd,
        file_name: String,
        name: Option<String>,
        restore: bool,
        caller: Caller,
        job: NewJob,
        reply: Reply<JobId>,
    },

    // Database
    /// Capture and upload now, also while paused.
    BackupNow { database: String, job: NewJob, reply: Reply<JobId> },
    /// Newest first.
    ListRecoveryPoints { database: String, filter: PointFilter, reply: Reply<Vec<RecoveryPoint>> },
    /// Into a directory of the caller.
    RestoreTo {
        database: String,
        dir: OwnedFd,
        file_name: String,
        options: RestoreOptions,
        job: NewJob,
        reply: Reply<JobId>,
    },
    /// Over the watched file, which must not be in use; `wait_s` seconds for that.
    RestoreInPlace { database: String, target: RestoreTarget, wait_s: u32, job: NewJob, reply: Reply<JobId> },
    /// Check what is stored.
    Verify { database: String, depth: VerifyDepth, job: NewJob, reply: Reply<JobId> },
    /// Keep a point whatever the policy says, or no longer.
    Pin { database: String, point: String, pinned: bool, reply: Reply<()> },
    /// Forget points as the policy says, and delete what was forgotten long enough ago; `dry_run`: only say so.
    Prune { database: String, dry_run: bool, job: NewJob, reply: Reply<JobId> },
    /// Mark stored backups for deletion.
    DeleteBackups { database: String, proof: Secret, job: NewJob, reply: Reply<JobId> },
    /// Take that back.
    CancelDelete { database: String, reply: Reply<()> },
    /// The writable property.
    SetSchedule { database: String, schedule: String, reply: Reply<()> },

    // Encryption
    /// With a password, through a vault (`None`: the configured one).
    EnableWithPassword {
        database: String,
        password: Secret,
        vault: Option<String>,
        job: NewJob,
        reply: Reply<JobId>,
    },
    /// With 64 digits that the user has.
    EnableWithKey { database: String, key: Secret, job: NewJob, reply: Reply<JobId> },
    /// With new digits, written to `key_out`; not used before `ConfirmKey`.
    EnableWithGeneratedKey { database: String, key_out: KeyOut, job: NewJob, reply: Reply<JobId> },
    /// The user typed the new digits back. Finishes `EnableWithGeneratedKey` and `RotateKey`.
    ConfirmKey { database: String, key: Secret, reply: Reply<()> },
    /// New password, same key.
    ChangePassword { database: String, current: Secret, new: Secret, job: NewJob, reply: Reply<JobId> },
    /// New key for what is sealed from now on. In key mode the new digits go to `key_out`, which is required then.
    RotateKey {
        database: String,
        reencrypt: bool,
        reason: Option<String>,
        key_out: Option<KeyOut>,
        job: NewJob,
        reply: Reply<JobId>,
    },
    /// From password to key.
    SwitchToKey { database: String, current: Secret, key: Secret, job: NewJob, reply: Reply<JobId> },
    /// From key to password.
    SwitchToPassword { database: String, current: Secret, password: Secret, job: NewJob, reply: Reply<JobId> },
    /// Bring the key to this device: with the digits, or through the vault (costs an attempt when wrong).
    /// `trust`: fingerprints of vaults that the user confirmed, though they are not configured.
    Unlock { database: String, secret: Secret, trust: Vec<String>, job: NewJob, reply: Reply<JobId> },
    /// Does the user still know it? The vault is asked only with `ask_vault`.
    CheckSecret { database: String, secret: Secret, ask_vault: bool, job: NewJob, reply: Reply<JobId> },
    /// The 64 digits of the key in use, for whoever proves to know the password or the digits.
    ShowKey { database: String, proof: Secret, key_out: KeyOut, job: NewJob, reply: Reply<JobId> },
    /// No encrypted backups any more.
    Disable {
        database: String,
        proof: Secret,
        delete_remote: bool,
        grace_days: Option<u32>,
        job: NewJob,
        reply: Reply<JobId>,
    },

    // Vault
    /// Ask it for its state.
    VaultRefresh { vault: String, job: NewJob, reply: Reply<JobId> },
    /// Refuse all attempts until a time (µs since 1970), or no longer: at all vaults of what this one guards.
    VaultFreeze { vault: String, until: Option<u64>, job: NewJob, reply: Reply<JobId> },
    /// The user knows of the attempts that were noticed.
    VaultAcknowledge { vault: String, reply: Reply<()> },
    /// Destroy the record there.
    VaultDeregister { vault: String, proof: Secret, job: NewJob, reply: Reply<JobId> },

    // Store
    /// Write, read and delete a probe.
    StoreTest { store: String, job: NewJob, reply: Reply<JobId> },
    /// Keep a secret of the store where this device keeps its keys.
    SetCredentials { store: String, name: String, value: Secret, reply: Reply<()> },
    /// Ask how much is in use.
    StoreUsage { store: String, job: NewJob, reply: Reply<JobId> },

    // Job
    /// Stop at the next safe point. A finished job answers without error.
    JobCancel { job: JobId, reply: Reply<()> },
}
