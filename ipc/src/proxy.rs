//! For clients: a connection, and proxies for the interfaces.

#![expect(missing_docs, reason = "the macro writes parts of its own")]

use std::collections::HashMap;
use std::path::Path;

use tokio::net::UnixStream;
use zbus::connection::Builder;
use zbus::fdo::ObjectManagerProxy;
use zbus::zvariant::{Fd, ObjectPath, OwnedObjectPath, OwnedValue, Value};
use zbus::{Connection, proxy};

use crate::{Details, Error, names};

/// Named options of a method.
pub type Options<'a> = HashMap<&'a str, Value<'a>>;
/// Errors of the service have their own names; all others are in [`Error::ZBus`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Connects to the control socket: the way for everything that carries a secret.
pub async fn connect_socket(path: &Path) -> zbus::Result<Connection> {
    let stream = UnixStream::connect(path).await.map_err(zbus::Error::from)?;
    connect_stream(stream).await
}

/// A client on a connected stream.
pub async fn connect_stream(stream: UnixStream) -> zbus::Result<Connection> {
    Builder::unix_stream(stream).p2p().build().await
}

/// Connects to the session bus.
pub async fn connect_session() -> zbus::Result<Connection> {
    Builder::session()?.build().await
}

/// All objects with all their properties in one call.
pub async fn object_manager(connection: &Connection) -> zbus::Result<ObjectManagerProxy<'_>> {
    ObjectManagerProxy::builder(connection).destination(names::BUS_NAME)?.path(names::ROOT)?.build().await
}

/// The root object.
#[proxy(
    interface = "io.github.chatkeep.Chatkeep1.Manager",
    default_service = "io.github.chatkeep.Chatkeep1",
    default_path = "/io/github/chatkeep/Chatkeep1"
)]
pub trait Manager {
    /// Watches a database.
    fn register_database(&self, name: &str, file: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Stops watching; what is stored stays.
    fn unregister(&self, database: &ObjectPath<'_>, options: Options<'_>) -> Result<()>;
    /// Starts a job for each database.
    fn backup_all(&self, options: Options<'_>) -> Result<Vec<OwnedObjectPath>>;
    /// Until 0 means until resumed.
    fn pause(&self, until: u64, reason: &str, options: Options<'_>) -> Result<()>;
    /// Ends the pause.
    fn resume(&self, options: Options<'_>) -> Result<()>;
    /// Reads the configuration again.
    fn reload(&self, options: Options<'_>) -> Result<()>;
    /// What a store holds.
    fn list_remote(&self, store: &str, options: Options<'_>) -> Result<Vec<HashMap<String, OwnedValue>>>;
    /// Takes an archive over on this machine.
    fn adopt(
        &self,
        store: &str,
        remote_id: &str,
        dir: Fd<'_>,
        file_name: &str,
        options: Options<'_>,
    ) -> Result<OwnedObjectPath>;
    /// `Version`
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
    /// `ApiVersion`
    #[zbus(property(emits_changed_signal = "const"))]
    fn api_version(&self) -> zbus::Result<u32>;
    /// `Paused`
    #[zbus(property)]
    fn paused(&self) -> zbus::Result<bool>;
    /// `PauseReasons`
    #[zbus(property)]
    fn pause_reasons(&self) -> zbus::Result<Vec<String>>;
    /// `ConfigErrors`
    #[zbus(property)]
    fn config_errors(&self) -> zbus::Result<Vec<String>>;
    /// `KeyStorage`
    #[zbus(property)]
    fn key_storage(&self) -> zbus::Result<String>;
    /// `Sandbox`
    #[zbus(property)]
    fn sandbox(&self) -> zbus::Result<Vec<String>>;
    /// `NextWake`
    #[zbus(property)]
    fn next_wake(&self) -> zbus::Result<u64>;
    /// `Overdue`
    #[zbus(property)]
    fn overdue(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
    /// Any job has ended.
    #[zbus(signal)]
    fn job_finished(
        &self,
        job: OwnedObjectPath,
        database: OwnedObjectPath,
        operation: String,
        state: String,
        error: String,
        result: Details,
    ) -> zbus::Result<()>;
}

/// One watched database.
#[proxy(
    interface = "io.github.chatkeep.Chatkeep1.Database",
    default_service = "io.github.chatkeep.Chatkeep1"
)]
pub trait Database {
    /// Captures and uploads now.
    fn backup_now(&self, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Newest first.
    fn list_recovery_points(&self, options: Options<'_>) -> Result<Vec<HashMap<String, OwnedValue>>>;
    /// Restores into a directory.
    fn restore_to(&self, dir: Fd<'_>, file_name: &str, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Restores over the watched file.
    fn restore_in_place(&self, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Checks what is stored.
    fn verify(&self, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Keeps a point whatever the policy says.
    fn pin(&self, point: &str, pinned: bool, options: Options<'_>) -> Result<()>;
    /// Deletes what the policy forgot.
    fn prune(&self, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Marks stored backups for deletion.
    fn delete_backups(&self, proof: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Takes that back.
    fn cancel_delete(&self, options: Options<'_>) -> Result<()>;
    /// `Id`
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<String>;
    /// `DisplayName`
    #[zbus(property(emits_changed_signal = "const"))]
    fn display_name(&self) -> zbus::Result<String>;
    /// `AppId`
    #[zbus(property(emits_changed_signal = "const"))]
    fn app_id(&self) -> zbus::Result<String>;
    /// `Source`
    #[zbus(property(emits_changed_signal = "const"))]
    fn source(&self) -> zbus::Result<String>;
    /// `Path`
    #[zbus(property)]
    fn path(&self) -> zbus::Result<String>;
    /// `Kind`
    #[zbus(property)]
    fn kind(&self) -> zbus::Result<String>;
    /// `Store`
    #[zbus(property)]
    fn store(&self) -> zbus::Result<OwnedObjectPath>;
    /// `Schedule`
    #[zbus(property)]
    fn schedule(&self) -> zbus::Result<String>;
    /// Sets `Schedule`.
    #[zbus(property)]
    fn set_schedule(&self, value: &str) -> zbus::Result<()>;
    /// `State`
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// `LastCapture`
    #[zbus(property)]
    fn last_capture(&self) -> zbus::Result<u64>;
    /// `LastSuccess`
    #[zbus(property)]
    fn last_success(&self) -> zbus::Result<u64>;
    /// `LastAttempt`
    #[zbus(property)]
    fn last_attempt(&self) -> zbus::Result<u64>;
    /// `LastError`
    #[zbus(property)]
    fn last_error(&self) -> zbus::Result<(String, String)>;
    /// `Overdue`
    #[zbus(property)]
    fn overdue(&self) -> zbus::Result<bool>;
    /// `NextRun`
    #[zbus(property)]
    fn next_run(&self) -> zbus::Result<u64>;
    /// `PendingBytes`
    #[zbus(property)]
    fn pending_bytes(&self) -> zbus::Result<u64>;
    /// `RemoteBytes`
    #[zbus(property)]
    fn remote_bytes(&self) -> zbus::Result<u64>;
    /// `RecoveryPoints`
    #[zbus(property)]
    fn recovery_points(&self) -> zbus::Result<u32>;
    /// `Oldest`
    #[zbus(property)]
    fn oldest(&self) -> zbus::Result<u64>;
    /// `Newest`
    #[zbus(property)]
    fn newest(&self) -> zbus::Result<u64>;
    /// `LastVerified`
    #[zbus(property)]
    fn last_verified(&self) -> zbus::Result<u64>;
    /// `LastDrill`
    #[zbus(property)]
    fn last_drill(&self) -> zbus::Result<u64>;
    /// `LastDrillResult`
    #[zbus(property)]
    fn last_drill_result(&self) -> zbus::Result<Details>;
    /// `Damage`
    #[zbus(property)]
    fn damage(&self) -> zbus::Result<Vec<(String, String, String, Vec<String>)>>;
    /// `Copies`
    #[zbus(property)]
    fn copies(&self) -> zbus::Result<Vec<Details>>;
    /// `DeletePending`
    #[zbus(property)]
    fn delete_pending(&self) -> zbus::Result<u64>;
    /// `LastPrune`
    #[zbus(property)]
    fn last_prune(&self) -> zbus::Result<u64>;
    /// `LastPruneError`
    #[zbus(property)]
    fn last_prune_error(&self) -> zbus::Result<(String, String)>;
    /// `Caution`
    #[zbus(property)]
    fn caution(&self) -> zbus::Result<String>;
    /// `StoreOlder`
    #[zbus(property)]
    fn store_older(&self) -> zbus::Result<String>;
    /// `ForgottenPoints`
    #[zbus(property)]
    fn forgotten_points(&self) -> zbus::Result<u32>;
    /// `ForgottenBytes`
    #[zbus(property)]
    fn forgotten_bytes(&self) -> zbus::Result<u64>;
    /// `CurrentJob`
    #[zbus(property)]
    fn current_job(&self) -> zbus::Result<OwnedObjectPath>;
}

/// Encryption of one database. Every secret is the read end of a pipe.
#[proxy(
    interface = "io.github.chatkeep.Chatkeep1.Encryption",
    default_service = "io.github.chatkeep.Chatkeep1"
)]
pub trait Encryption {
    /// With a password, through a vault.
    fn enable_with_password(&self, password: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// With 64 digits.
    fn enable_with_key(&self, key: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// With new digits, written to `key_out`.
    fn enable_with_generated_key(&self, key_out: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// The digits were typed back.
    fn confirm_key(&self, key: Fd<'_>, options: Options<'_>) -> Result<()>;
    /// New password, same key.
    fn change_password(&self, current: Fd<'_>, new: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// New key for what is sealed from now on.
    fn rotate_key(&self, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// From password to key.
    fn switch_to_key(&self, current: Fd<'_>, key: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// From key to password.
    fn switch_to_password(
        &self,
        current: Fd<'_>,
        password: Fd<'_>,
        options: Options<'_>,
    ) -> Result<OwnedObjectPath>;
    /// Brings the key to this device.
    fn unlock(&self, secret: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Is it still known?
    fn check_secret(&self, secret: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// The 64 digits, written to `key_out` before the job ends.
    fn show_key(&self, proof: Fd<'_>, key_out: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// No encrypted backups any more.
    fn disable(&self, proof: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// `Mode`
    #[zbus(property)]
    fn mode(&self) -> zbus::Result<String>;
    /// `State`
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// `KeyId`
    #[zbus(property)]
    fn key_id(&self) -> zbus::Result<String>;
    /// `KeyCreated`
    #[zbus(property)]
    fn key_created(&self) -> zbus::Result<u64>;
    /// `Vault`
    #[zbus(property)]
    fn vault(&self) -> zbus::Result<OwnedObjectPath>;
    /// `Vaults`
    #[zbus(property)]
    fn vaults(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
    /// `Threshold`
    #[zbus(property)]
    fn threshold(&self) -> zbus::Result<u32>;
    /// `KeyOnDevice`
    #[zbus(property)]
    fn key_on_device(&self) -> zbus::Result<bool>;
    /// `LastChecked`
    #[zbus(property)]
    fn last_checked(&self) -> zbus::Result<u64>;
}

/// One backup key vault.
#[proxy(interface = "io.github.chatkeep.Chatkeep1.Vault", default_service = "io.github.chatkeep.Chatkeep1")]
pub trait Vault {
    /// Asks it for its state.
    fn refresh(&self, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Lets it, and the other vaults of what it guards, refuse all attempts.
    fn freeze(&self, until: u64, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Lifts the freezes.
    fn unfreeze(&self, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// The user knows of the attempts.
    fn acknowledge(&self, options: Options<'_>) -> Result<()>;
    /// Destroys the record there.
    fn deregister(&self, proof: Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// `Url`
    #[zbus(property)]
    fn url(&self) -> zbus::Result<String>;
    /// `State`
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// `AttemptsLeft`
    #[zbus(property)]
    fn attempts_left(&self) -> zbus::Result<u32>;
    /// `AttemptsMax`
    #[zbus(property)]
    fn attempts_max(&self) -> zbus::Result<u32>;
    /// `RetryAfter`
    #[zbus(property)]
    fn retry_after(&self) -> zbus::Result<u64>;
    /// `LastContact`
    #[zbus(property)]
    fn last_contact(&self) -> zbus::Result<u64>;
    /// `Fingerprint`
    #[zbus(property)]
    fn fingerprint(&self) -> zbus::Result<String>;
    /// `Operator`
    #[zbus(property)]
    fn operator(&self) -> zbus::Result<String>;
    /// `Jurisdiction`
    #[zbus(property)]
    fn jurisdiction(&self) -> zbus::Result<String>;
    /// `Warnings`
    #[zbus(property)]
    fn warnings(&self) -> zbus::Result<Vec<String>>;
    /// `FrozenUntil`
    #[zbus(property)]
    fn frozen_until(&self) -> zbus::Result<u64>;
    /// `FailedAttempts`
    #[zbus(property)]
    fn failed_attempts(&self) -> zbus::Result<u32>;
    /// `FailedHere`
    #[zbus(property)]
    fn failed_here(&self) -> zbus::Result<u32>;
    /// `FailedElsewhere`
    #[zbus(property)]
    fn failed_elsewhere(&self) -> zbus::Result<u32>;
    /// `Unacknowledged`
    #[zbus(property)]
    fn unacknowledged(&self) -> zbus::Result<u32>;
    /// `ElsewhereSeen`
    #[zbus(property)]
    fn elsewhere_seen(&self) -> zbus::Result<u64>;
    /// Somebody else tried.
    #[zbus(signal)]
    fn attempt_elsewhere(&self, count: u32, left: u32) -> zbus::Result<()>;
    /// The password was changed elsewhere.
    #[zbus(signal)]
    fn superseded(&self) -> zbus::Result<()>;
    /// A wrong password was counted.
    #[zbus(signal)]
    fn attempt_failed(&self, left: u32, retry_after: u64) -> zbus::Result<()>;
    /// The record is gone.
    #[zbus(signal)]
    fn destroyed(&self) -> zbus::Result<()>;
}

/// One place where backups are kept.
#[proxy(interface = "io.github.chatkeep.Chatkeep1.Store", default_service = "io.github.chatkeep.Chatkeep1")]
pub trait Store {
    /// Writes, reads and deletes a probe.
    fn test(&self, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// Keeps a secret of the store; option `name`.
    fn set_credentials(&self, credentials: Fd<'_>, options: Options<'_>) -> Result<()>;
    /// Asks how much is in use.
    fn usage(&self, options: Options<'_>) -> Result<OwnedObjectPath>;
    /// `Id`
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<String>;
    /// `Kind`
    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> zbus::Result<String>;
    /// `Url`
    #[zbus(property)]
    fn url(&self) -> zbus::Result<String>;
    /// `State`
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// `PauseReason`
    #[zbus(property)]
    fn pause_reason(&self) -> zbus::Result<String>;
    /// `MonthRequests`
    #[zbus(property)]
    fn month_requests(&self) -> zbus::Result<u64>;
    /// `MonthBytes`
    #[zbus(property)]
    fn month_bytes(&self) -> zbus::Result<u64>;
    /// `MonthCost`
    #[zbus(property)]
    fn month_cost(&self) -> zbus::Result<i64>;
    /// `BytesUsed`
    #[zbus(property)]
    fn bytes_used(&self) -> zbus::Result<u64>;
    /// `BytesQuota`
    #[zbus(property)]
    fn bytes_quota(&self) -> zbus::Result<u64>;
    /// `LastError`
    #[zbus(property)]
    fn last_error(&self) -> zbus::Result<(String, String)>;
    /// `Capabilities`
    #[zbus(property)]
    fn capabilities(&self) -> zbus::Result<Vec<String>>;
}

/// One piece of work.
#[proxy(interface = "io.github.chatkeep.Chatkeep1.Job", default_service = "io.github.chatkeep.Chatkeep1")]
pub trait Job {
    /// Stops it at the next safe point.
    fn cancel(&self, options: Options<'_>) -> Result<()>;
    /// `Operation`
    #[zbus(property)]
    fn operation(&self) -> zbus::Result<String>;
    /// `Database`
    #[zbus(property)]
    fn database(&self) -> zbus::Result<OwnedObjectPath>;
    /// `StartedBy`
    #[zbus(property)]
    fn started_by(&self) -> zbus::Result<String>;
    /// `Cancelable`
    #[zbus(property)]
    fn cancelable(&self) -> zbus::Result<bool>;
    /// `State`
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// `Phase`
    #[zbus(property)]
    fn phase(&self) -> zbus::Result<String>;
    /// `Progress`
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<f64>;
    /// `BytesDone`
    #[zbus(property)]
    fn bytes_done(&self) -> zbus::Result<u64>;
    /// `BytesTotal`
    #[zbus(property)]
    fn bytes_total(&self) -> zbus::Result<u64>;
    /// `Rate`
    #[zbus(property)]
    fn rate(&self) -> zbus::Result<u64>;
    /// `Started`
    #[zbus(property)]
    fn started(&self) -> zbus::Result<u64>;
    /// `Finished`
    #[zbus(property)]
    fn finished(&self) -> zbus::Result<u64>;
    /// `ExpectedEnd`
    #[zbus(property)]
    fn expected_end(&self) -> zbus::Result<u64>;
    /// `Error`
    #[zbus(property)]
    fn error(&self) -> zbus::Result<(String, String)>;
    /// `Result`
    #[zbus(property)]
    fn result(&self) -> zbus::Result<Details>;
    /// It has ended.
    #[zbus(signal)]
    fn completed(&self, state: String, error: String, message: String, result: Details) -> zbus::Result<()>;
}
