//! One watched database: backups, recovery points, restores.

use std::collections::HashMap;
use std::sync::Arc;

use zbus::Connection;
use zbus::message::Header;
use zbus::zvariant::{OwnedFd, OwnedObjectPath, OwnedValue};

use super::{file_name, optional, short_text};
use crate::names::{self, store_path};
use crate::options::{Options, RawOptions};
use crate::request::{Request, Result, Rights, secret};
use crate::shared::Shared;
use crate::{
    Call, CopyState, DatabaseState, Details, Error, JobId, PointFilter, RecoveryPoint, RestoreOptions,
    RestoreTarget, VerifyDepth,
};

pub(crate) struct DatabaseInterface {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: String,
}

impl DatabaseInterface {
    fn read<T>(&self, read: impl FnOnce(&DatabaseState) -> T) -> T {
        let tree = self.shared.tree();
        match tree.databases.get(&self.id) {
            Some((state, _)) => read(state),
            None => read(&DatabaseState::default()),
        }
    }

    async fn request<'a>(
        &'a self,
        connection: &'a Connection,
        header: &Header<'_>,
        options: RawOptions,
    ) -> Result<Request<'a>> {
        Request::new(&self.shared, connection, header, options, Rights::Owner(&self.id)).await
    }
}

#[zbus::interface(name = "io.github.chatkeep.Chatkeep1.Database")]
impl DatabaseInterface {
    #[zbus(out_args("job"))]
    async fn backup_now(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let database = self.id.clone();
        request.start(move |_, job, reply| Call::BackupNow { database, job, reply }).await
    }

    #[zbus(out_args("points"))]
    async fn list_recovery_points(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Vec<HashMap<String, OwnedValue>>> {
        let mut request = self.request(connection, &header, options).await?;
        let filter = PointFilter {
            since: request.options.time("since")?,
            until: request.options.time("until")?,
            limit: request.options.number("limit")?,
            forgotten: request.options.flag("forgotten")?,
        };
        let database = self.id.clone();
        let answer =
            request.ask(move |_, reply| Call::ListRecoveryPoints { database, filter, reply }).await?;
        Ok(answer.into_iter().map(point_map).collect())
    }

    #[zbus(out_args("job"))]
    async fn restore_to(
        &self,
        dir: OwnedFd,
        file_name: String,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let options = RestoreOptions {
            target: target(&mut request.options)?,
            overwrite: request.options.flag("overwrite")?,
            into: request.options.flag("into")?,
        };
        let file_name = self::file_name(file_name)?;
        let database = self.id.clone();
        request
            .start(move |_, job, reply| Call::RestoreTo {
                database,
                dir: dir.into(),
                file_name,
                options,
                job,
                reply,
            })
            .await
    }

    #[zbus(out_args("job"))]
    async fn restore_in_place(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let target = target(&mut request.options)?;
        let wait_s = request.options.number("wait")?.unwrap_or(0);
        let database = self.id.clone();
        request
            .start(move |_, job, reply| Call::RestoreInPlace { database, target, wait_s, job, reply })
            .await
    }

    #[zbus(out_args("job"))]
    async fn verify(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let depth = match request.options.text("depth")?.as_deref() {
            None => VerifyDepth::default(),
            Some("manifest") => VerifyDepth::Manifest,
            Some("chunks") => VerifyDepth::Chunks,
            Some("restore") => VerifyDepth::Restore,
            Some(_) => return Err(Error::InvalidArgument("depth is manifest, chunks or restore".into())),
        };
        let database = self.id.clone();
        request.start(move |_, job, reply| Call::Verify { database, depth, job, reply }).await
    }

    async fn pin(
        &self,
        point: String,
        pinned: bool,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let request = self.request(connection, &header, options).await?;
        let point = short_text("point", point)?;
        let database = self.id.clone();
        request.ask(move |_, reply| Call::Pin { database, point, pinned, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn prune(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let dry_run = request.options.flag("dry-run")?;
        let database = self.id.clone();
        request.start(move |_, job, reply| Call::Prune { database, dry_run, job, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn delete_backups(
        &self,
        proof: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let proof = secret(proof).await?;
        let database = self.id.clone();
        request.start(move |_, job, reply| Call::DeleteBackups { database, proof, job, reply }).await
    }

    async fn cancel_delete(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let request = self.request(connection, &header, options).await?;
        let database = self.id.clone();
        request.ask(move |_, reply| Call::CancelDelete { database, reply }).await
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.id.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn display_name(&self) -> String {
        self.read(|state| state.display_name.clone())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn app_id(&self) -> String {
        self.read(|state| state.app_id.clone())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn source(&self) -> String {
        self.read(|state| state.source.clone())
    }

    #[zbus(property)]
    fn path(&self) -> String {
        self.read(|state| state.path.clone())
    }

    #[zbus(property)]
    fn kind(&self) -> String {
        self.read(|state| state.kind.clone())
    }

    #[zbus(property)]
    fn store(&self) -> OwnedObjectPath {
        self.read(|state| optional(&state.store, store_path))
    }

    #[zbus(property)]
    fn schedule(&self) -> String {
        self.read(|state| state.schedule.clone())
    }

    #[zbus(property)]
    async fn set_schedule(
        &self,
        schedule: String,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Option<Header<'_>>,
    ) -> zbus::fdo::Result<()> {
        let header = header.ok_or_else(|| zbus::fdo::Error::AccessDenied("no caller".into()))?;
        let set = async {
            let request = self.request(connection, &header, RawOptions::new()).await?;
            let schedule = short_text("Schedule", schedule)?;
            let database = self.id.clone();
            request.ask(move |_, reply| Call::SetSchedule { database, schedule, reply }).await
        };
        // a property can only be refused with one of the bus's own errors
        set.await.map_err(|error: Error| match error {
            Error::InvalidArgument(text) => zbus::fdo::Error::InvalidArgs(text),
            Error::AccessDenied(text) => zbus::fdo::Error::AccessDenied(text),
            Error::Unsupported(text) => zbus::fdo::Error::NotSupported(text),
            other => zbus::fdo::Error::Failed(other.text()),
        })
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.read(|state| state.state.clone())
    }

    #[zbus(property)]
    fn last_capture(&self) -> u64 {
        self.read(|state| state.last_capture)
    }

    #[zbus(property)]
    fn last_success(&self) -> u64 {
        self.read(|state| state.last_success)
    }

    #[zbus(property)]
    fn last_attempt(&self) -> u64 {
        self.read(|state| state.last_attempt)
    }

    #[zbus(property)]
    fn last_error(&self) -> (String, String) {
        self.read(|state| state.last_error.clone())
    }

    #[zbus(property)]
    fn overdue(&self) -> bool {
        self.read(|state| state.overdue)
    }

    #[zbus(property)]
    fn next_run(&self) -> u64 {
        self.read(|state| state.next_run)
    }

    #[zbus(property)]
    fn pending_bytes(&self) -> u64 {
        self.read(|state| state.pending_bytes)
    }

    #[zbus(property)]
    fn remote_bytes(&self) -> u64 {
        self.read(|state| state.remote_bytes)
    }

    #[zbus(property)]
    fn recovery_points(&self) -> u32 {
        self.read(|state| state.recovery_points)
    }

    #[zbus(property)]
    fn oldest(&self) -> u64 {
        self.read(|state| state.oldest)
    }

    #[zbus(property)]
    fn newest(&self) -> u64 {
        self.read(|state| state.newest)
    }

    #[zbus(property)]
    fn last_verified(&self) -> u64 {
        self.read(|state| state.last_verified)
    }

    #[zbus(property)]
    fn last_drill(&self) -> u64 {
        self.read(|state| state.last_drill)
    }

    #[zbus(property)]
    fn last_drill_result(&self) -> Details {
        self.read(|state| state.last_drill_result.clone())
    }

    #[zbus(property)]
    fn damage(&self) -> Vec<(String, String, String, Vec<String>)> {
        self.read(|state| state.damage.clone())
    }

    #[zbus(property)]
    fn copies(&self) -> Vec<HashMap<String, OwnedValue>> {
        self.read(|state| state.copies.iter().map(copy_map).collect())
    }

    #[zbus(property)]
    fn delete_pending(&self) -> u64 {
        self.read(|state| state.delete_pending)
    }

    #[zbus(property)]
    fn last_prune(&self) -> u64 {
        self.read(|state| state.last_prune)
    }

    #[zbus(property)]
    fn last_prune_error(&self) -> (String, String) {
        self.read(|state| state.last_prune_error.clone())
    }

    #[zbus(property)]
    fn caution(&self) -> String {
        self.read(|state| state.caution.clone())
    }

    #[zbus(property)]
    fn store_older(&self) -> String {
        self.read(|state| state.store_older.clone())
    }

    #[zbus(property)]
    fn forgotten_points(&self) -> u32 {
        self.read(|state| state.forgotten_points)
    }

    #[zbus(property)]
    fn forgotten_bytes(&self) -> u64 {
        self.read(|state| state.forgotten_bytes)
    }

    #[zbus(property)]
    fn current_job(&self) -> OwnedObjectPath {
        self.read(|state| state.current_job.as_ref().map_or_else(names::no_object, JobId::path))
    }
}

/// Options `at` and `point`: at most one of them.
fn target(options: &mut Options) -> Result<RestoreTarget> {
    match (options.time("at")?, options.text("point")?) {
        (None, None) => Ok(RestoreTarget::Newest),
        (Some(at), None) => Ok(RestoreTarget::At(at)),
        (None, Some(point)) => Ok(RestoreTarget::Point(point)),
        (Some(_), Some(_)) => Err(Error::InvalidArgument("either at or point, not both".into())),
    }
}

fn copy_map(copy: &CopyState) -> HashMap<String, OwnedValue> {
    let text = |text: &str| OwnedValue::from(zbus::zvariant::Str::from(text));
    let mut map = HashMap::from([
        ("store".to_owned(), text(&copy.store)),
        ("main".to_owned(), copy.main.into()),
        ("state".to_owned(), text(&copy.state)),
        ("last-upload".to_owned(), copy.last_upload.into()),
        ("last-verified".to_owned(), copy.last_verified.into()),
        ("caution".to_owned(), text(&copy.caution)),
        ("behind-points".to_owned(), copy.behind_points.into()),
        ("behind-bytes".to_owned(), copy.behind_bytes.into()),
        ("lacking-points".to_owned(), copy.lacking_points.into()),
    ]);
    let error = OwnedValue::try_from(zbus::zvariant::Value::from(copy.last_error.clone()));
    map.extend(error.ok().map(|error| ("last-error".to_owned(), error)));
    map
}

fn point_map(point: RecoveryPoint) -> HashMap<String, OwnedValue> {
    let text = |text: String| OwnedValue::from(zbus::zvariant::Str::from(text));
    HashMap::from([
        ("id".to_owned(), text(point.id)),
        ("time".to_owned(), point.time.into()),
        ("size".to_owned(), point.size.into()),
        ("verified".to_owned(), point.verified.into()),
        ("pinned".to_owned(), point.pinned.into()),
        ("base".to_owned(), point.base.into()),
        ("damaged".to_owned(), point.damaged.into()),
        ("level".to_owned(), text(point.level)),
        ("forgotten".to_owned(), point.forgotten.into()),
    ])
}
