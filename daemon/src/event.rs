//! All that can happen to the daemon, and all it can do.
//!
//! The loop is one function from [`Event`] to [`Command`]s (`Service::handle`). Nothing else changes its state, and
//! it does nothing itself that may wait: what takes time is a command, and its end is an event.

mod upload;
mod work;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chatkeep_format::ArchiveId;
use chatkeep_ipc::{Call, JobId, Reply, Secret};
use chatkeep_planner::{SourceId, UploadId};
use chatkeep_vault_client::VaultPin;

use crate::archive::Archive;
use crate::catalogue::Head;
use crate::copies::{Behind, CopyEnd, CopyOrder};
use crate::fault::Fault;
use crate::follower::{CaptureOrder, Captured, LostPack};
use crate::guard::{Look, LookOrder, VaultSeen};
use crate::keyring::Keys;
use crate::log::Log;
use crate::spool::{Spool, Spooled};

pub use upload::{Stored, UploadOrder};
pub use work::{Outcome, Work};

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

impl Opened {
    /// The head that the next capture continues.
    pub fn head(&self) -> &Head {
        &self.log.written
    }
}
