//! One piece of work under way, and for a while afterwards its outcome.

use std::sync::Arc;

use zbus::Connection;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::OwnedObjectPath;

use super::optional;
use crate::names::database_path;
use crate::options::RawOptions;
use crate::request::{Request, Result, Rights};
use crate::shared::Shared;
use crate::{Call, Details, JobId, JobState};

pub(crate) struct JobInterface {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: JobId,
}

impl JobInterface {
    fn read<T>(&self, read: impl FnOnce(&JobState) -> T) -> T {
        let tree = self.shared.tree();
        match tree.job(&self.id) {
            Some(state) => read(state),
            None => read(&JobState::default()),
        }
    }
}

#[zbus::interface(name = "io.github.chatkeep.Chatkeep1.Job")]
impl JobInterface {
    async fn cancel(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let database = self.read(|state| state.database.clone());
        let rights = if database.is_empty() { Rights::Host } else { Rights::Owner(&database) };
        let request = Request::new(&self.shared, connection, &header, options, rights).await?;
        let job = self.id.clone();
        request.ask(move |_, reply| Call::JobCancel { job, reply }).await
    }

    #[zbus(property)]
    fn operation(&self) -> String {
        self.read(|state| state.operation.clone())
    }

    #[zbus(property)]
    fn database(&self) -> OwnedObjectPath {
        self.read(|state| optional(&state.database, database_path))
    }

    #[zbus(property)]
    fn started_by(&self) -> String {
        self.read(|state| state.started_by.clone())
    }

    #[zbus(property)]
    fn cancelable(&self) -> bool {
        self.read(|state| state.cancelable)
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.read(|state| state.state.clone())
    }

    #[zbus(property)]
    fn phase(&self) -> String {
        self.read(|state| state.phase.clone())
    }

    #[zbus(property)]
    fn progress(&self) -> f64 {
        self.read(|state| state.progress)
    }

    #[zbus(property)]
    fn bytes_done(&self) -> u64 {
        self.read(|state| state.bytes_done)
    }

    #[zbus(property)]
    fn bytes_total(&self) -> u64 {
        self.read(|state| state.bytes_total)
    }

    #[zbus(property)]
    fn rate(&self) -> u64 {
        self.read(|state| state.rate)
    }

    #[zbus(property)]
    fn started(&self) -> u64 {
        self.read(|state| state.started)
    }

    #[zbus(property)]
    fn finished(&self) -> u64 {
        self.read(|state| state.finished)
    }

    #[zbus(property)]
    fn expected_end(&self) -> u64 {
        self.read(|state| state.expected_end)
    }

    #[zbus(property)]
    fn error(&self) -> (String, String) {
        self.read(|state| state.error.clone())
    }

    #[zbus(property)]
    fn result(&self) -> Details {
        self.read(|state| state.result.clone())
    }

    /// It has ended; all properties have their final values.
    #[zbus(signal)]
    pub(crate) async fn completed(
        emitter: &SignalEmitter<'_>,
        state: &str,
        error: &str,
        message: &str,
        result: Details,
    ) -> zbus::Result<()>;
}
