//! The daemon's handle: what it tells the world, and where the world finds it.

use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use zbus::connection::Builder;
use zbus::fdo::{ObjectManager, RequestNameFlags};
use zbus::{Connection, Guid};

use crate::shared::{Event, Shared};
use crate::{
    Calls, DatabaseState, EncryptionState, Error, JobId, JobOutcome, JobState, ManagerState, ServeError,
    StoreState, VaultState, mirror, names,
};

/// Peers on the control socket at one time.
const PEERS_MAX: usize = 64;
/// How long a peer may take for the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is fixed for the life of a server.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Flatpak apps that may use the service, each for its own databases.
    pub allowed_apps: BTreeSet<String>,
}

/// The objects, and all connections that serve them. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

/// Which bus to serve on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusAddress {
    /// The session's.
    Session,
    /// Another, in D-Bus address syntax.
    Address(String),
}

impl Server {
    /// A server that sends what is asked of it to `calls`.
    pub fn new(calls: Calls, settings: Settings) -> Self {
        Self { shared: Arc::new(Shared::new(calls, settings.allowed_apps)) }
    }

    /// Sets the properties of the root object.
    pub fn set_manager(&self, state: ManagerState) {
        self.shared.change(|tree| tree.manager = state);
    }

    /// Changes the properties of the root object.
    pub fn update_manager(&self, update: impl FnOnce(&mut ManagerState)) {
        self.shared.change(|tree| update(&mut tree.manager));
    }

    /// Adds a database or sets its properties.
    pub fn upsert_database(&self, id: &str, state: DatabaseState, encryption: EncryptionState) {
        self.shared.change(|tree| {
            tree.databases.insert(id.to_owned(), (state, encryption));
        });
    }

    /// Changes some properties of a database; nothing if there is no such.
    pub fn update_database(&self, id: &str, update: impl FnOnce(&mut DatabaseState, &mut EncryptionState)) {
        self.shared.change(|tree| {
            if let Some((state, encryption)) = tree.databases.get_mut(id) {
                update(state, encryption);
            }
        });
    }

    /// Takes a database away.
    pub fn remove_database(&self, id: &str) {
        self.shared.change(|tree| {
            tree.databases.remove(id);
        });
    }

    /// Adds a vault or sets its properties.
    pub fn upsert_vault(&self, id: &str, state: VaultState) {
        self.shared.change(|tree| {
            tree.vaults.insert(id.to_owned(), state);
        });
    }

    /// Takes a vault away.
    pub fn remove_vault(&self, id: &str) {
        self.shared.change(|tree| {
            tree.vaults.remove(id);
        });
    }

    /// Signals a wrong password: how many are left, and when the next may be tried (0: now).
    pub fn vault_attempt_failed(&self, id: &str, left: u32, retry_after: u64) {
        self.shared.signal(Event::AttemptFailed { vault: id.to_owned(), left, retry_after });
    }

    /// Signals attempts that were not made on this device: how many, and how many are left.
    pub fn vault_attempt_elsewhere(&self, id: &str, count: u32, left: u32) {
        self.shared.signal(Event::AttemptElsewhere { vault: id.to_owned(), count, left });
    }

    /// Signals that the password was changed on another device.
    pub fn vault_superseded(&self, id: &str) {
        self.shared.signal(Event::VaultSuperseded { vault: id.to_owned() });
    }

    /// Signals that the record at the vault is gone for good.
    pub fn vault_destroyed(&self, id: &str) {
        self.shared.signal(Event::VaultDestroyed { vault: id.to_owned() });
    }

    /// Adds a store or sets its properties.
    pub fn upsert_store(&self, id: &str, state: StoreState) {
        self.shared.change(|tree| {
            tree.stores.insert(id.to_owned(), state);
        });
    }

    /// Takes a store away.
    pub fn remove_store(&self, id: &str) {
        self.shared.change(|tree| {
            tree.stores.remove(id);
        });
    }

    /// The identifier for a job that the daemon starts by itself.
    pub fn new_job_id(&self) -> JobId {
        self.shared.new_job_id()
    }

    /// Adds a job or sets its properties. A job that has ended stays as it is.
    pub fn upsert_job(&self, id: &JobId, state: JobState) {
        self.shared.change(|tree| tree.set_job(id, state));
    }

    /// Changes some properties of a job that has not ended.
    pub fn update_job(&self, id: &JobId, update: impl FnOnce(&mut JobState)) {
        self.shared.change(|tree| {
            if let Some(mut state) = tree.job(id).cloned() {
                update(&mut state);
                tree.set_job(id, state);
            }
        });
    }

    /// Ends a job at time `now` (µs since 1970) and signals it. Only the first end counts.
    pub fn job_completed(&self, id: &JobId, outcome: JobOutcome, now: u64) {
        let mut ended = None;
        self.shared.change(|tree| {
            ended = tree.end_job(id, |job| {
                outcome.state().clone_into(&mut job.state);
                job.finished = now;
                job.cancelable = false;
                job.expected_end = 0;
                job.rate = 0;
                match outcome {
                    JobOutcome::Done(result) => {
                        job.progress = 1.0;
                        job.result = result;
                    }
                    JobOutcome::Failed(error, result) => {
                        job.error = (error.short_name(), error.text());
                        job.result = result;
                    }
                    JobOutcome::Cancelled => {
                        let error = Error::Cancelled("it was cancelled".into());
                        job.error = (error.short_name(), error.text());
                    }
                }
            });
        });
        if let Some(state) = ended {
            self.shared.signal(Event::JobEnded { id: id.clone(), state: Box::new(state) });
        }
    }

    /// Serves on a bus. The name is requested last: who sees it finds everything in place. Then it is time for READY=1.
    pub async fn serve_bus(&self, address: &BusAddress) -> Result<BusServer, ServeError> {
        let builder = match address {
            BusAddress::Session => Builder::session(),
            BusAddress::Address(address) => Builder::address(address.as_str()),
        };
        let builder = builder.and_then(|builder| builder.serve_at(names::ROOT, ObjectManager));
        let (builder, seen) =
            mirror::populate(builder.map_err(ServeError::Bus)?, &self.shared).map_err(ServeError::Bus)?;
        let connection = builder.build().await.map_err(ServeError::Bus)?;
        let mirror = mirror::start(connection.clone(), &self.shared, seen).await.map_err(ServeError::Bus)?;
        let server = BusServer { connection, mirror };
        match server
            .connection
            .request_name_with_flags(names::BUS_NAME, RequestNameFlags::DoNotQueue.into())
            .await
        {
            Ok(_) => Ok(server),
            Err(zbus::Error::NameTaken) => Err(ServeError::NameTaken),
            Err(error) => Err(ServeError::Bus(error)),
        }
    }

    /// Serves on a socket in a private directory. A socket that nobody answers on is replaced.
    pub async fn serve_control_socket(&self, path: &Path) -> Result<ControlSocket, ServeError> {
        private_parent(path)?;
        match UnixStream::connect(path).await {
            Ok(_) => return Err(ServeError::SocketTaken),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => std::fs::remove_file(path).map_err(ServeError::Io)?,
        }
        let listener = UnixListener::bind(path).map_err(ServeError::Io)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(ServeError::Io)?;
        let identity = std::fs::symlink_metadata(path).map_err(ServeError::Io)?.ino();
        let server = self.clone();
        let accepting = tokio::spawn(async move { server.accept(listener).await });
        Ok(ControlSocket { path: path.to_owned(), identity, accepting })
    }

    async fn accept(self, listener: UnixListener) {
        let slots = Arc::new(Semaphore::new(PEERS_MAX));
        let mut peers = tokio::task::JoinSet::new();
        loop {
            while peers.try_join_next().is_some() {}
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the control socket cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let server = self.clone();
            peers.spawn(async move {
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, server.serve_peer(stream)).await {
                    Ok(Ok(peer)) => peer.closed().await,
                    Ok(Err(error)) => tracing::debug!(%error, "a peer did not get in"),
                    Err(_) => tracing::debug!("a peer did not finish the handshake"),
                }
                drop(slot);
            });
        }
    }

    /// Serves one connected peer, which must be of the same user, until it closes the stream.
    pub async fn serve_peer(&self, stream: UnixStream) -> Result<Peer, ServeError> {
        let peer = stream.peer_cred().map_err(ServeError::Io)?;
        if peer.uid() != rustix::process::getuid().as_raw() {
            return Err(ServeError::NotPrivate { what: format!("user {} connected", peer.uid()) });
        }
        let builder = Builder::unix_stream(stream).server(Guid::generate()).map_err(ServeError::Bus)?.p2p();
        let builder = builder.serve_at(names::ROOT, ObjectManager).map_err(ServeError::Bus)?;
        // all objects are in place before the first call of the peer is looked at
        let (builder, seen) = mirror::populate(builder, &self.shared).map_err(ServeError::Bus)?;
        let connection = builder.build().await.map_err(ServeError::Bus)?;
        let mirror = mirror::start(connection.clone(), &self.shared, seen).await.map_err(ServeError::Bus)?;
        Ok(Peer { connection, mirror })
    }
}

/// One client on the control socket; disconnected when dropped.
#[derive(Debug)]
pub struct Peer {
    connection: Connection,
    mirror: JoinHandle<()>,
}

impl Peer {
    /// Waits until the client is gone.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.mirror.abort();
    }
}

/// The directory must be ours and closed to others, or is made so.
fn private_parent(path: &Path) -> Result<(), ServeError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.ok_or_else(|| ServeError::NotPrivate { what: "the path has no directory".into() })?;
    match std::fs::DirBuilder::new().mode(0o700).create(parent) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(ServeError::Io(error)),
    }
    let status = std::fs::symlink_metadata(parent).map_err(ServeError::Io)?;
    let wrong = |what: String| Err(ServeError::NotPrivate { what });
    if !status.is_dir() {
        return wrong("it is no directory".into());
    }
    if status.uid() != rustix::process::getuid().as_raw() {
        return wrong(format!("it belongs to user {}", status.uid()));
    }
    if status.mode() & 0o077 != 0 {
        return wrong(format!("its mode is {:o}, it must be 700", status.mode() & 0o777));
    }
    Ok(())
}

/// The service on a bus; leaves it when dropped.
#[derive(Debug)]
pub struct BusServer {
    connection: Connection,
    mirror: JoinHandle<()>,
}

impl BusServer {
    /// Waits until the bus is gone. The daemon then leaves, to be started again by the next bus.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Gives the name back, answers what is under way, and closes the connection.
    pub async fn leave(self) {
        // the connection may be gone already
        let _ = self.connection.release_name(names::BUS_NAME).await;
        self.mirror.abort();
        let _ = self.connection.clone().close().await;
    }
}

impl Drop for BusServer {
    fn drop(&mut self) {
        self.mirror.abort();
    }
}

/// The control socket; when dropped it is removed and every peer is disconnected.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    identity: u64,
    accepting: JoinHandle<()>,
}

impl ControlSocket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.accepting.abort();
        // not a successor's
        if std::fs::symlink_metadata(&self.path).is_ok_and(|status| status.ino() == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
