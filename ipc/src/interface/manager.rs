//! The root object: registration, pause, and what a store holds.

use std::collections::HashMap;
use std::sync::Arc;

use zbus::Connection;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{ObjectPath, OwnedFd, OwnedObjectPath, OwnedValue, Str};

use super::{database_id, file_name, short_text};
use crate::names::database_path;
use crate::options::RawOptions;
use crate::request::{Request, Result, Rights};
use crate::shared::{Object, Shared};
use crate::{Call, Details, Error, ManagerState, RegisterOptions, RemoteArchive, mirror};

/// Incremented when something is added to the interfaces.
const API_VERSION: u32 = 1;

pub(crate) struct ManagerInterface {
    pub(crate) shared: Arc<Shared>,
}

impl ManagerInterface {
    fn read<T>(&self, read: impl FnOnce(&ManagerState) -> T) -> T {
        read(&self.shared.tree().manager)
    }

    async fn request<'a>(
        &'a self,
        connection: &'a Connection,
        header: &Header<'_>,
        options: RawOptions,
    ) -> Result<Request<'a>> {
        Request::new(&self.shared, connection, header, options, Rights::Host).await
    }
}

#[zbus::interface(name = "io.github.chatkeep.Chatkeep1.Manager")]
impl ManagerInterface {
    #[zbus(out_args("database"))]
    async fn register_database(
        &self,
        name: String,
        file: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = Request::new(&self.shared, connection, &header, options, Rights::Apps).await?;
        let name = short_text("name", name)?;
        let given = &mut request.options;
        let options = RegisterOptions {
            display_name: given
                .text("display-name")?
                .map(|text| short_text("display-name", text))
                .transpose()?,
            store: given.text("store")?,
            schedule: given.text("schedule")?,
            databases: given.fds("databases")?,
            attachments: given.fds("attachments")?,
            app_id: given.text("app-id")?.map(|text| short_text("app-id", text)).transpose()?,
            kind: given.text("kind")?,
        };
        if let (Some(claimed), Some(own)) = (&options.app_id, request.caller.app_id())
            && claimed != own
        {
            return Err(Error::AccessDenied("a sandboxed app has its own app-id".into()));
        }
        let file = file.into();
        let id = request
            .ask(move |caller, reply| Call::RegisterDatabase { name, file, options, caller, reply })
            .await?;
        mirror::add(connection, &self.shared, &Object::Database(id.clone())).await?;
        Ok(database_path(&id))
    }

    async fn unregister(
        &self,
        database: ObjectPath<'_>,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let database = database_id(&database)?;
        let request =
            Request::new(&self.shared, connection, &header, options, Rights::Owner(&database)).await?;
        request.ask(|_, reply| Call::Unregister { database: database.clone(), reply }).await
    }

    #[zbus(out_args("jobs"))]
    async fn backup_all(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Vec<OwnedObjectPath>> {
        let request = self.request(connection, &header, options).await?;
        let jobs = request.ask(|caller, reply| Call::BackupAll { started_by: caller.label(), reply }).await?;
        Request::job_paths(connection, &self.shared, jobs).await
    }

    async fn pause(
        &self,
        until: u64,
        reason: String,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let request = self.request(connection, &header, options).await?;
        let until = (until != 0).then_some(until);
        request.ask(move |_, reply| Call::Pause { until, reason, reply }).await
    }

    async fn resume(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let request = self.request(connection, &header, options).await?;
        request.ask(|_, reply| Call::Resume { reply }).await
    }

    async fn reload(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let request = self.request(connection, &header, options).await?;
        request.ask(|_, reply| Call::Reload { reply }).await
    }

    #[zbus(out_args("archives"))]
    async fn list_remote(
        &self,
        store: String,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Vec<HashMap<String, OwnedValue>>> {
        let request = self.request(connection, &header, options).await?;
        let archives = request.ask(move |_, reply| Call::ListRemote { store, reply }).await?;
        Ok(archives.into_iter().map(archive_map).collect())
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of the method, and who calls")]
    #[zbus(out_args("job"))]
    async fn adopt(
        &self,
        store: String,
        remote_id: String,
        dir: OwnedFd,
        file_name: String,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let name = request.options.text("name")?.map(|text| short_text("name", text)).transpose()?;
        let restore = request.options.flag("restore")?;
        let file_name = self::file_name(file_name)?;
        let dir = dir.into();
        request
            .start(move |caller, job, reply| Call::Adopt {
                store,
                remote_id,
                dir,
                file_name,
                name,
                restore,
                caller,
                job,
                reply,
            })
            .await
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        self.read(|state| state.version.clone())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    #[expect(clippy::unused_self, reason = "a property needs it")]
    fn api_version(&self) -> u32 {
        API_VERSION
    }

    #[zbus(property)]
    fn paused(&self) -> bool {
        self.read(|state| state.paused)
    }

    #[zbus(property)]
    fn pause_reasons(&self) -> Vec<String> {
        self.read(|state| state.pause_reasons.clone())
    }

    #[zbus(property)]
    fn config_errors(&self) -> Vec<String> {
        self.read(|state| state.config_errors.clone())
    }

    #[zbus(property)]
    fn key_storage(&self) -> String {
        self.read(|state| state.key_storage.clone())
    }

    #[zbus(property)]
    fn sandbox(&self) -> Vec<String> {
        self.read(|state| state.sandbox.clone())
    }

    #[zbus(property)]
    fn next_wake(&self) -> u64 {
        self.read(|state| state.next_wake)
    }

    #[zbus(property)]
    fn overdue(&self) -> Vec<OwnedObjectPath> {
        self.read(|state| state.overdue.iter().map(|id| database_path(id)).collect())
    }

    /// Any job has ended; for clients that watch them all.
    #[zbus(signal)]
    pub(crate) async fn job_finished(
        emitter: &SignalEmitter<'_>,
        job: OwnedObjectPath,
        database: OwnedObjectPath,
        operation: &str,
        state: &str,
        error: &str,
        result: Details,
    ) -> zbus::Result<()>;
}

fn archive_map(archive: RemoteArchive) -> HashMap<String, OwnedValue> {
    let text = |text: String| OwnedValue::from(Str::from(text));
    HashMap::from([
        ("id".to_owned(), text(archive.id)),
        ("name".to_owned(), text(archive.name)),
        ("mode".to_owned(), text(archive.mode)),
        ("newest".to_owned(), archive.newest.into()),
        ("size".to_owned(), archive.size.into()),
    ])
}
