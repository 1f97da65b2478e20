//! Keeps the objects of one connection like the shared state: adds, removes, and tells what changed.
//!
//! One task for each connection, so a peer that does not read holds up nobody else. All changed properties of an
//! interface go into one signal, and each object is signalled at most four times a second.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use zbus::Connection;
use zbus::connection::Builder;
use zbus::fdo::Properties;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::zvariant::{OwnedValue, Value};

use crate::interface::{
    DatabaseInterface, EncryptionInterface, JobInterface, ManagerInterface, StoreInterface, VaultInterface,
};
use crate::shared::{Event, Object, Shared, ending};

/// Between two signals about one object; the end of a job does not wait.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(250);

type PropertyMap = HashMap<String, OwnedValue>;

/// What the connection was told last about one object: a map for each of its interfaces.
struct Told {
    properties: Vec<PropertyMap>,
    at: Option<Instant>,
}

struct Mirror {
    connection: Connection,
    shared: Arc<Shared>,
    told: HashMap<Object, Told>,
}

/// Serves an object on the connection; whether it was new there.
///
/// Method handlers call it before they answer with a path, so that the caller does not find nothing there.
pub(crate) async fn add(
    connection: &Connection,
    shared: &Arc<Shared>,
    object: &Object,
) -> zbus::Result<bool> {
    let server = connection.object_server();
    let path = object.path();
    let shared = Arc::clone(shared);
    match object {
        Object::Root => server.at(path, ManagerInterface { shared }).await,
        Object::Database(id) => {
            let encryption = EncryptionInterface { shared: Arc::clone(&shared), id: id.clone() };
            server.at(&path, encryption).await?;
            server.at(&path, DatabaseInterface { shared, id: id.clone() }).await
        }
        Object::Store(id) => server.at(path, StoreInterface { shared, id: id.clone() }).await,
        Object::Vault(id) => server.at(path, VaultInterface { shared, id: id.clone() }).await,
        Object::Job(id) => server.at(path, JobInterface { shared, id: id.clone() }).await,
    }
}

async fn remove(connection: &Connection, object: &Object) -> zbus::Result<()> {
    let server = connection.object_server();
    let path = object.path();
    match object {
        Object::Root => false,
        Object::Database(_) => {
            server.remove::<DatabaseInterface, _>(&path).await?;
            server.remove::<EncryptionInterface, _>(&path).await?
        }
        Object::Store(_) => server.remove::<StoreInterface, _>(path).await?,
        Object::Vault(_) => server.remove::<VaultInterface, _>(path).await?,
        Object::Job(_) => server.remove::<JobInterface, _>(path).await?,
    };
    Ok(())
}

/// What a connection was given before it began.
pub(crate) struct Seen {
    objects: BTreeSet<Object>,
    version: watch::Receiver<u64>,
    events: broadcast::Receiver<Event>,
}

/// Gives a connection all objects, before it begins.
pub(crate) fn populate<'a>(
    mut builder: Builder<'a>,
    shared: &Arc<Shared>,
) -> zbus::Result<(Builder<'a>, Seen)> {
    let (version, events) = shared.watch();
    let objects = shared.objects();
    for object in &objects {
        let path = object.path().into_inner();
        let shared = Arc::clone(shared);
        builder = match object.clone() {
            Object::Root => builder.serve_at(path, ManagerInterface { shared })?,
            Object::Database(id) => {
                let encryption = EncryptionInterface { shared: Arc::clone(&shared), id: id.clone() };
                builder
                    .serve_at(path.clone(), encryption)?
                    .serve_at(path, DatabaseInterface { shared, id })?
            }
            Object::Store(id) => builder.serve_at(path, StoreInterface { shared, id })?,
            Object::Vault(id) => builder.serve_at(path, VaultInterface { shared, id })?,
            Object::Job(id) => builder.serve_at(path, JobInterface { shared, id })?,
        };
    }
    Ok((builder, Seen { objects, version, events }))
}

/// Keeps a populated connection up to date until it closes.
pub(crate) async fn start(
    connection: Connection,
    shared: &Arc<Shared>,
    seen: Seen,
) -> zbus::Result<tokio::task::JoinHandle<()>> {
    let Seen { objects, mut version, mut events } = seen;
    let mut mirror =
        Mirror { connection: connection.clone(), shared: Arc::clone(shared), told: HashMap::new() };
    for object in objects {
        let properties = mirror.properties(&object).await?;
        if version.has_changed().unwrap_or(true) {
            // the peer may have read something older already: the first round tells it everything
            mirror.told.insert(object, Told { properties: Vec::new(), at: None });
        } else {
            mirror.told.insert(object, Told { properties, at: None });
        }
    }
    let mut due = None;
    Ok(tokio::spawn(async move {
        loop {
            let alarm = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let round = tokio::select! {
                () = connection.closed() => return,
                changed = version.changed() => match changed {
                    Ok(()) => mirror.sync(None).await,
                    Err(_) => return,
                },
                event = events.recv() => match event {
                    Ok(event) => mirror.signal(event).await,
                    Err(RecvError::Lagged(missed)) => {
                        tracing::debug!(missed, "a slow connection misses signals");
                        mirror.sync(None).await
                    }
                    Err(RecvError::Closed) => return,
                },
                () = alarm => mirror.sync(None).await,
            };
            match round {
                Ok(next) => due = next,
                Err(error) => {
                    tracing::debug!(%error, "a connection is given up");
                    return;
                }
            }
        }
    }))
}

impl Mirror {
    /// One round. `urgent` is told even if it was told a moment ago. Returns when the next round is due.
    async fn sync(&mut self, urgent: Option<&Object>) -> zbus::Result<Option<Instant>> {
        let objects = self.shared.objects();
        self.remove_missing(&objects).await?;
        let now = Instant::now();
        let mut due = None;
        for object in objects {
            // the map is taken before the object appears: a change in between is told twice, never missed
            let properties = self.properties(&object).await?;
            let Some(told) = self.told.get(&object) else {
                if !add(&self.connection, &self.shared, &object).await? {
                    self.tell(&object, &[], &properties).await?;
                }
                self.told.insert(object, Told { properties, at: None });
                continue;
            };
            if told.properties == properties {
                continue;
            }
            if let Some(wait_until) = told.at.map(|at| at + SIGNAL_INTERVAL)
                && wait_until > now
                && urgent != Some(&object)
            {
                due = due.min(Some(wait_until)).or(Some(wait_until));
                continue;
            }
            self.tell(&object, &told.properties, &properties).await?;
            self.told.insert(object, Told { properties, at: Some(now) });
        }
        Ok(due)
    }

    async fn remove_missing(&mut self, objects: &BTreeSet<Object>) -> zbus::Result<()> {
        let gone: Vec<Object> =
            self.told.keys().filter(|object| !objects.contains(object)).cloned().collect();
        for object in gone {
            self.told.remove(&object);
            remove(&self.connection, &object).await?;
        }
        Ok(())
    }

    async fn properties(&self, object: &Object) -> zbus::Result<Vec<PropertyMap>> {
        let shared = || Arc::clone(&self.shared);
        Ok(match object {
            Object::Root => vec![self.all(object, ManagerInterface { shared: shared() }).await?],
            Object::Database(id) => vec![
                self.all(object, DatabaseInterface { shared: shared(), id: id.clone() }).await?,
                self.all(object, EncryptionInterface { shared: shared(), id: id.clone() }).await?,
            ],
            Object::Store(id) => {
                vec![self.all(object, StoreInterface { shared: shared(), id: id.clone() }).await?]
            }
            Object::Vault(id) => {
                vec![self.all(object, VaultInterface { shared: shared(), id: id.clone() }).await?]
            }
            Object::Job(id) => {
                vec![self.all(object, JobInterface { shared: shared(), id: id.clone() }).await?]
            }
        })
    }

    async fn all<I: Interface>(&self, object: &Object, interface: I) -> zbus::Result<PropertyMap> {
        let emitter = SignalEmitter::new(&self.connection, object.path())?;
        let server = self.connection.object_server();
        Ok(interface.get_all(server, &self.connection, None, &emitter).await?)
    }

    async fn tell(&self, object: &Object, old: &[PropertyMap], new: &[PropertyMap]) -> zbus::Result<()> {
        let emitter = SignalEmitter::new(&self.connection, object.path())?;
        let interfaces = match object {
            Object::Root => vec![ManagerInterface::name()],
            Object::Database(_) => vec![DatabaseInterface::name(), EncryptionInterface::name()],
            Object::Store(_) => vec![StoreInterface::name()],
            Object::Vault(_) => vec![VaultInterface::name()],
            Object::Job(_) => vec![JobInterface::name()],
        };
        for (index, (interface, new)) in interfaces.into_iter().zip(new).enumerate() {
            let mut changed: HashMap<&str, Value<'_>> = HashMap::new();
            for (name, value) in new {
                if old.get(index).and_then(|old| old.get(name)) != Some(value) {
                    changed.insert(name, Value::try_from(value)?);
                }
            }
            if !changed.is_empty() {
                Properties::properties_changed(&emitter, interface, changed, Cow::Borrowed(&[])).await?;
            }
        }
        Ok(())
    }

    async fn signal(&mut self, event: Event) -> zbus::Result<Option<Instant>> {
        let object = match &event {
            Event::JobEnded { id, .. } => Object::Job(id.clone()),
            Event::AttemptFailed { vault, .. }
            | Event::AttemptElsewhere { vault, .. }
            | Event::VaultSuperseded { vault }
            | Event::VaultDestroyed { vault } => Object::Vault(vault.clone()),
        };
        // properties first: who sees the signal and then reads, must not read the past
        let due = self.sync(Some(&object)).await?;
        let emitter = SignalEmitter::new(&self.connection, object.path())?;
        match event {
            Event::JobEnded { id, state } => {
                let (end, error, message, result) = ending(&state);
                JobInterface::completed(&emitter, end, error, message, result.clone()).await?;
                let root = SignalEmitter::new(&self.connection, Object::Root.path())?;
                let database = crate::interface::optional(&state.database, crate::names::database_path);
                ManagerInterface::job_finished(
                    &root,
                    id.path(),
                    database,
                    &state.operation,
                    end,
                    error,
                    state.result.clone(),
                )
                .await?;
            }
            Event::AttemptFailed { left, retry_after, .. } => {
                VaultInterface::attempt_failed(&emitter, left, retry_after).await?;
            }
            Event::AttemptElsewhere { count, left, .. } => {
                VaultInterface::attempt_elsewhere(&emitter, count, left).await?;
            }
            Event::VaultSuperseded { .. } => VaultInterface::superseded(&emitter).await?,
            Event::VaultDestroyed { .. } => VaultInterface::destroyed(&emitter).await?,
        }
        Ok(due)
    }
}
