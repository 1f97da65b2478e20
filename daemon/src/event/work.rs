//! What a job does, and what it changed.

use std::sync::Arc;

use chatkeep_crypto::BackupKey;
use chatkeep_format::{ArchiveId, ObjectName};
use chatkeep_ipc::{KeyOut, Secret, VerifyDepth};
use chatkeep_planner::RetentionPolicy;
use chatkeep_vault_client::{Identity, VaultPin};

use super::Opened;
use crate::archive::Archive;
use crate::damage::Damage;
use crate::fault::Fault;
use crate::guard::Look;
use crate::jobs::prune::PruneReport;
use crate::keyring::Keys;
use crate::spool::Spooled;
use crate::witness::Compared;

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
        /// Of which archive.
        opened: Arc<Opened>,
        /// Where, and until when, in seconds since 1970.
        stores: Vec<(Arc<dyn chatkeep_store::Store>, u64)>,
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
