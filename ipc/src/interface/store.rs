//! One place where backups are kept.

use std::sync::Arc;

use zbus::Connection;
use zbus::message::Header;
use zbus::zvariant::{OwnedFd, OwnedObjectPath};

use crate::options::RawOptions;
use crate::request::{Request, Result, Rights, secret};
use crate::shared::Shared;
use crate::{Call, Error, StoreState};

pub(crate) struct StoreInterface {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: String,
}

impl StoreInterface {
    fn read<T>(&self, read: impl FnOnce(&StoreState) -> T) -> T {
        let tree = self.shared.tree();
        match tree.stores.get(&self.id) {
            Some(state) => read(state),
            None => read(&StoreState::default()),
        }
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

#[zbus::interface(name = "io.github.chatkeep.Chatkeep1.Store")]
impl StoreInterface {
    #[zbus(out_args("job"))]
    async fn test(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let store = self.id.clone();
        request.start(move |_, job, reply| Call::StoreTest { store, job, reply }).await
    }

    async fn set_credentials(
        &self,
        credentials: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let mut request = self.request(connection, &header, options).await?;
        let name = request.options.text("name")?;
        let name =
            name.ok_or_else(|| Error::InvalidArgument("option name must say which secret".to_owned()))?;
        let value = secret(credentials).await?;
        let store = self.id.clone();
        request.ask(move |_, reply| Call::SetCredentials { store, name, value, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn usage(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let store = self.id.clone();
        request.start(move |_, job, reply| Call::StoreUsage { store, job, reply }).await
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.id.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> String {
        self.read(|state| state.kind.clone())
    }

    #[zbus(property)]
    fn url(&self) -> String {
        self.read(|state| state.url.clone())
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.read(|state| state.state.clone())
    }

    #[zbus(property)]
    fn pause_reason(&self) -> String {
        self.read(|state| state.pause_reason.clone())
    }

    #[zbus(property)]
    fn month_requests(&self) -> u64 {
        self.read(|state| state.month_requests)
    }

    #[zbus(property)]
    fn month_bytes(&self) -> u64 {
        self.read(|state| state.month_bytes)
    }

    #[zbus(property)]
    fn month_cost(&self) -> i64 {
        self.read(|state| state.month_cost)
    }

    #[zbus(property)]
    fn bytes_used(&self) -> u64 {
        self.read(|state| state.bytes_used)
    }

    #[zbus(property)]
    fn bytes_quota(&self) -> u64 {
        self.read(|state| state.bytes_quota)
    }

    #[zbus(property)]
    fn last_error(&self) -> (String, String) {
        self.read(|state| state.last_error.clone())
    }

    #[zbus(property)]
    fn capabilities(&self) -> Vec<String> {
        self.read(|state| state.capabilities.clone())
    }
}
