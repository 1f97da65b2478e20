//! All that can happen to the daemon, and all it can do.
//!
//! The loop is one function from [`Event`] to [`Command`]s (`Service::handle`). Nothing else changes its state, and
//! it does nothing itself that may wait: what takes time is a command, and its end is an event.

mod upload;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chatkeep_crypto::BackupKey;
use chatkeep_format::{ArchiveId, ObjectName};
use chatkeep_ipc::{Call, JobId, KeyOut, Reply, Secret, VerifyDepth};
use chatkeep_planner::{RetentionPolicy, SourceId, UploadId};
use chatkeep_vault_client::{Identity, VaultPin};

use crate::archive::Archive;
use crate::catalogue::Head;
use crate::copies::{Behind, CopyEnd, CopyOrder};
use crate::damage::Damage;
use crate::fault::Fault;
use crate::follower::{CaptureOrder, Captured, LostPack};
use crate::guard::{Look, LookOrder, VaultSeen};
use crate::jobs::prune::PruneReport;
use crate::keyring::Keys;
use crate::log::Log;
use crate::spool::{Spool, Spooled};
use crate::witness::Compared;

pub use upload::{Stored, UploadOrder};

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    /// Somebody asks for something.
    Call(Call),
    /// The archive of a source was opened, or could not be.
    Opened {
        /// Which source.
        source: SourceId,
        /// `None`: the device has no key (locked).
        result: Result<Option<Box<Opened>>, Fault>,
    },
    /// The database is there and followed.
    Found {
        /// Which source.
        source: SourceId,
    },
    /// The database cannot be followed now: missing, or not a database.
    Lost {
        /// Which source.
        source: SourceId,
        /// Why.
        fault: Box<Fault>,
    },
    /// What is followed is not all, or not as soon as it could be.
    Caution {
        /// Which source.
        source: SourceId,
        /// Why; nothing when all is well again.
        caution: Option<String>,
    },
    /// A look found changes that are not captured yet.
    Changed {
        /// Which source.
        source: SourceId,
        /// How many bytes.
        pending_bytes: u64,
    },
    /// A capture ended.
    Captured {
        /// Which source.
        source: SourceId,
        /// What came of it.
        result: Result<Captured, Fault>,
    },
    /// Packs were made again from the live database, or could not be.
    Rebuilt {
        /// Which source.
        source: SourceId,
        /// In the spool.
        packs: Vec<Spooled>,
        /// How many could not be made.
        lost: usize,
    },
    /// An upload ended.
    Uploaded {
        /// Which source.
        source: SourceId,
        /// Which object.
        upload: UploadId,
        /// Whether it is in the store now.
        result: Result<Stored, Fault>,
    },
    /// How far a copy is behind, while it is brought up to date.
    CopyTold {
        /// Which source.
        source: SourceId,
        /// The copy's store.
        store: String,
        /// How far.
        behind: Behind,
    },
    /// A copy was brought as far as it could be.
    Copied {
        /// Which source.
        source: SourceId,
        /// The copy's store.
        store: String,
        /// What came of it.
        result: Result<CopyEnd, Fault>,
    },
    /// The thread that followed a source has ended.
    Unfollowed {
        /// Which source.
        source: SourceId,
    },
    /// A job ended.
    JobEnded {
        /// Which.
        job: JobId,
        /// What came of it.
        result: Result<Outcome, Fault>,
        /// What a vault said on the way.
        vault: Option<VaultSeen>,
        /// The keys as a change that failed left them.
        keys: Option<Box<Keys>>,
    },
    /// The vaults of a source were looked at; nothing if there are none to look at.
    Guarded {
        /// Which source.
        source: SourceId,
        /// What was seen.
        look: Option<Look>,
    },
    /// The vaults were told the newest entry, or could not be.
    Remembered {
        /// Which source.
        source: SourceId,
        /// One of them knows it now.
        done: bool,
    },
    /// Somebody pressed a button of a notification about a vault.
    Pressed {
        /// The vault.
        vault: String,
        /// Which button.
        button: crate::desktop::Button,
    },
    /// A secret of a store is another one now.
    CredentialKept {
        /// Which store.
        store: String,
    },
    /// The line, the battery or the sleep of the machine changed.
    Conditions {
        /// As it is now.
        conditions: chatkeep_planner::Conditions,
        /// Answered when nothing is sent any more that must not be.
        seen: tokio::sync::oneshot::Sender<()>,
    },
    /// Something appeared in a folder where a database is missing, or the configuration changed.
    FolderChanged {
        /// What.
        path: PathBuf,
    },
    /// Read the configuration again (SIGHUP).
    Reload,
    /// The bus is gone.
    BusLost,
    /// Leave (SIGTERM, SIGINT).
    Stop,
    /// Time passed: the planner's next deadline, the watchdog, progress.
    Tick,
}

/// Everything that can be done.
pub enum Command {
    /// Open the archive of a source: keys, keyring, log.
    Open {
        /// Which source.
        source: SourceId,
        /// Its archive.
        archive: Archive,
        /// Vaults that may be needed to finish a change of password.
        pins: Vec<VaultPin>,
    },
    /// Follow the database of a source.
    Follow {
        /// Which source.
        source: SourceId,
        /// Its databases.
        databases: Vec<PathBuf>,
        /// Its folders of attachments.
        attachments: Vec<PathBuf>,
        /// What was opened.
        opened: Arc<Opened>,
        /// How its entries are made.
        writer: Box<crate::writer::Writer>,
        /// Symbolic links are followed: the user wrote the path.
        links: bool,
    },
    /// Follow it no longer; the answer is [`Event::Unfollowed`].
    Unfollow {
        /// Which source.
        source: SourceId,
    },
    /// Let its next capture be a base.
    Rebase {
        /// Which source.
        source: SourceId,
        /// Packs that are damaged or missing: what is in them is stored again, where it still is there.
        bad_packs: BTreeSet<[u8; 16]>,
    },
    /// Make packs again from the live database; the answer is [`Event::Rebuilt`].
    Rebuild {
        /// Which source.
        source: SourceId,
        /// Which packs.
        packs: Vec<LostPack>,
    },
    /// Look at it now.
    Look {
        /// Which source.
        source: SourceId,
    },
    /// Capture it.
    Capture {
        /// Which source.
        source: SourceId,
        /// What the capture needs.
        order: Box<CaptureOrder>,
    },
    /// Put an object into the store.
    Upload(Box<UploadOrder>),
    /// Bring a copy up to date; the answer is [`Event::Copied`].
    Copy(Box<CopyOrder>),
    /// Carry out a job.
    Run {
        /// Its name.
        job: JobId,
        /// What it does.
        work: Box<Work>,
        /// Set to stop it.
        cancelled: Arc<AtomicBool>,
    },
    /// Look at the vaults of a source; the answer is [`Event::Guarded`].
    Guard {
        /// Which source.
        source: SourceId,
        /// What to look at.
        order: Box<LookOrder>,
    },
    /// Let the vaults remember the newest entry; the answer is [`Event::Remembered`].
    Remember {
        /// Which source.
        source: SourceId,
        /// Its archive.
        archive: Archive,
        /// Its keyslot, and the secret behind it.
        keys: Box<Keys>,
        /// The vaults this device trusts.
        pins: Vec<VaultPin>,
        /// Number and digest of the entry.
        head: (u64, [u8; 32]),
        /// The service leaves: not for long.
        at_last: bool,
    },
    /// Show something on the desktop that the user must act on.
    Notify(Box<crate::desktop::Notice>),
    /// Answer a question that waits for a store.
    ListRemote {
        /// The store.
        store: Arc<dyn chatkeep_store::Store>,
        /// Names of the archives known here.
        known: std::collections::BTreeMap<ArchiveId, String>,
        /// To whom.
        reply: Reply<Vec<chatkeep_ipc::RemoteArchive>>,
    },
    /// Keep a secret of a store; the answer is [`Event::CredentialKept`] when it is kept.
    KeepCredential {
        /// Which store.
        store: String,
        /// The name of the secret.
        name: String,
        /// The secret.
        value: Secret,
        /// To whom.
        reply: Reply<()>,
    },
    /// Watch these folders for databases that appear, and no others.
    WatchFolders(BTreeSet<PathBuf>),
    /// End the loop, with this exit status.
    Exit(u8),
}

/// An archive that is open.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Where it is.
    pub archive: Archive,
    /// What opens it.
    pub keys: Keys,
    /// Its queue.
    pub spool: Spool,
    /// Where its log stands.
    pub log: Log,
    /// What its vaults said, when they were asked.
    pub vaults: Vec<VaultSeen>,
}

/// What a job does.
pub enum Work {
    /// Restore a point.
    Restore {
        /// From.
        opened: Arc<Opened>,
        /// The main store and the copies, in the order in which they are asked.
        stores: Vec<(String, Archive)>,
        /// Which entry.
        seq: u64,
        /// Where to.
        destination: crate::restore::Destination,
    },
    /// Check what is stored.
    Verify {
        /// What.
        opened: Arc<Opened>,
        /// How deep.
        depth: VerifyDepth,
    },
    /// Check a copy.
    VerifyCopy {
        /// Of what.
        opened: Arc<Opened>,
        /// The copy's store.
        store: String,
        /// The copy.
        copy: Archive,
    },
    /// Bring objects that the main store lost or damaged back from copies.
    Fetch {
        /// Where to.
        opened: Arc<Opened>,
        /// The copies.
        copies: Vec<(String, Archive)>,
        /// Which.
        objects: Vec<ObjectName>,
    },
    /// Put packs that were made again into the store.
    Repair {
        /// Where.
        opened: Arc<Opened>,
        /// In the spool.
        packs: Vec<Spooled>,
    },
    /// Lock what is needed against deletion for longer.
    Retain {
        /// Where.
        opened: Arc<Opened>,
        /// Until when, in seconds since 1970.
        until_s: u64,
    },
    /// Encrypt with a password: a new archive.
    EnablePassword {
        /// The new archive.
        archive: Archive,
        /// To which vaults.
        pins: Vec<VaultPin>,
        /// How many of them have to answer.
        threshold: u8,
        /// What the user should know of that choice.
        caution: Option<String>,
        /// The password.
        password: Secret,
    },
    /// Encrypt with 64 digits that the user proved to know: a new archive.
    EnableKey {
        /// The new archive.
        archive: Archive,
        /// The key.
        key: BackupKey,
    },
    /// Change the password.
    ChangePassword {
        /// Of what.
        opened: Arc<Opened>,
        /// The pinned vaults.
        pins: Vec<VaultPin>,
        /// The current password, or the digits.
        current: Secret,
        /// The new password.
        new: Secret,
    },
    /// Use a new key from now on.
    Rotate {
        /// Of what.
        opened: Arc<Opened>,
        /// The pinned vaults.
        pins: Vec<VaultPin>,
        /// The new key.
        key: BackupKey,
    },
    /// Bring the key to this device.
    Unlock {
        /// Of what.
        archive: Archive,
        /// The pinned vaults.
        pins: Vec<VaultPin>,
        /// Password or digits.
        secret: Secret,
        /// Vaults that the user confirmed for this, though they are not configured.
        trust: Vec<Identity>,
    },
    /// Does the user still know it?
    Check {
        /// Of what.
        opened: Arc<Opened>,
        /// The pinned vaults.
        pins: Vec<VaultPin>,
        /// Password or digits.
        secret: Secret,
        /// A password may cost an attempt.
        ask_vault: bool,
    },
    /// Hand out the digits.
    ShowKey {
        /// Of what.
        opened: Arc<Opened>,
        /// The pinned vaults.
        pins: Vec<VaultPin>,
        /// Password or digits.
        proof: Secret,
        /// Where they go.
        key_out: KeyOut,
    },
    /// See whether an archive is there, before it is taken over.
    Adopt {
        /// The archive.
        archive: Archive,
        /// What becomes of it here.
        registration: Box<crate::registry::Registration>,
        /// Restore as soon as it is unlocked.
        restore: bool,
    },
    /// Write, read and delete a probe.
    StoreTest {
        /// Its name.
        name: String,
        /// The store.
        store: Arc<dyn chatkeep_store::Store>,
    },
    /// Ask how much is in use.
    StoreUsage {
        /// Its name.
        name: String,
        /// The store.
        store: Arc<dyn chatkeep_store::Store>,
    },
    /// Ask a vault for its state.
    VaultRefresh {
        /// Which.
        pin: VaultPin,
        /// The vaults this device trusts.
        pins: Vec<VaultPin>,
        /// Its accounts, by what this device has open.
        opened: Vec<Arc<Opened>>,
        /// See [`crate::guard::CONFIRM_US`].
        confirm_us: u64,
    },
    /// Let vaults refuse all attempts until a time, or no longer.
    Freeze {
        /// The vaults this device trusts.
        pins: Vec<VaultPin>,
        /// Whose keyslots.
        opened: Vec<Arc<Opened>>,
        /// Until when, in seconds since 1970; `None` lifts a freeze.
        until_s: Option<u64>,
        /// What the user should know of it.
        caution: Option<String>,
        /// See [`crate::guard::CONFIRM_US`].
        confirm_us: u64,
    },
    /// Forget what the policy lets go, and delete what was forgotten long enough ago.
    Prune {
        /// Where.
        opened: Arc<Opened>,
        /// Points that are to stay.
        pins: Vec<u64>,
        /// What else stays.
        policy: RetentionPolicy,
        /// The time, µs since 1970.
        now_us: i64,
        /// Only say what would be done.
        dry_run: bool,
    },
}

/// What a job changed.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing that the loop must know.
    Nothing {
        /// What the user should know.
        warning: Option<String>,
    },
    /// A new archive with its keys.
    Enabled {
        /// Which.
        archive: ArchiveId,
        /// Its vault, or the first of them, if there is one.
        vault: String,
        /// What the user should know.
        warning: Option<String>,
    },
    /// The keys of an archive changed, or came to this device.
    Rekeyed {
        /// What opens the archive now.
        keys: Box<Keys>,
        /// The vault that guards it; empty for none, or as before.
        vault: String,
        /// The key is a new one.
        rotated: bool,
        /// The store, compared with what the vaults know.
        store: Compared,
        /// Vaults that the user confirmed: they guard the archive that just opened.
        confirmed: Vec<VaultPin>,
        /// What the user should know.
        warning: Option<String>,
    },
    /// The user proved to know the secret.
    Checked,
    /// Locks against deletion were renewed.
    Retained,
    /// A restore was carried out and proved.
    Restored {
        /// Which point.
        seq: u64,
        /// What the user should know.
        warning: Option<String>,
        /// Something of it came from a copy, so that it says nothing good about the main store.
        from_copies: bool,
        /// What is wrong with objects in the main store.
        damages: Vec<Damage>,
    },
    /// A copy was read back.
    CopyVerified {
        /// Its store.
        store: String,
        /// What is wrong with objects there.
        damages: Vec<Damage>,
    },
    /// Objects were brought back from copies.
    Fetched {
        /// These are what they should be now.
        objects: Vec<ObjectName>,
    },
    /// Points were read back.
    Verified {
        /// How deep.
        depth: VerifyDepth,
        /// Which points.
        points: Vec<u64>,
        /// What is wrong with objects that they need.
        damages: Vec<Damage>,
    },
    /// A restore was rehearsed.
    Drilled {
        /// Points that were restored and proved, the newest first; it may be none.
        points: Vec<u64>,
        /// Why not all of them were.
        failure: Option<Fault>,
    },
    /// Objects were made again.
    Repaired {
        /// These are what they should be now.
        objects: Vec<ObjectName>,
        /// Why not all of them are.
        failure: Option<Fault>,
    },
    /// An archive was found.
    Adopted {
        /// What becomes of it here.
        registration: Box<crate::registry::Registration>,
        /// Restore as soon as it is unlocked.
        restore: bool,
        /// `password` or `key`.
        mode: String,
    },
    /// A store answered.
    StoreSeen {
        /// Which.
        name: String,
        /// How full it is, if it says.
        usage: Option<chatkeep_store::Usage>,
    },
    /// Vaults were looked at.
    Looked {
        /// By archive.
        looks: Vec<(ArchiveId, Look)>,
        /// What the user should know.
        warning: Option<String>,
    },
    /// Points were forgotten, and objects deleted.
    Pruned(Box<PruneReport>),
}

impl Opened {
    /// The head that the next capture continues.
    pub fn head(&self) -> &Head {
        &self.log.written
    }
}
