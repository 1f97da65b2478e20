//! One backup key vault, as this device knows it.

use std::sync::Arc;

use zbus::Connection;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{OwnedFd, OwnedObjectPath};

use crate::options::RawOptions;
use crate::request::{Request, Result, Rights, secret};
use crate::shared::Shared;
use crate::{Call, VaultState};

pub(crate) struct VaultInterface {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: String,
}

impl VaultInterface {
    fn read<T>(&self, read: impl FnOnce(&VaultState) -> T) -> T {
        let tree = self.shared.tree();
        match tree.vaults.get(&self.id) {
            Some(state) => read(state),
            None => read(&VaultState::default()),
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

#[zbus::interface(name = "io.github.chatkeep.Chatkeep1.Vault")]
impl VaultInterface {
    #[zbus(out_args("job"))]
    async fn refresh(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let vault = self.id.clone();
        request.start(move |_, job, reply| Call::VaultRefresh { vault, job, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn deregister(
        &self,
        proof: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let proof = secret(proof).await?;
        let vault = self.id.clone();
        request.start(move |_, job, reply| Call::VaultDeregister { vault, proof, job, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn freeze(
        &self,
        until: u64,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let vault = self.id.clone();
        request.start(move |_, job, reply| Call::VaultFreeze { vault, until: Some(until), job, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn unfreeze(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let vault = self.id.clone();
        request.start(move |_, job, reply| Call::VaultFreeze { vault, until: None, job, reply }).await
    }

    async fn acknowledge(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let request = self.request(connection, &header, options).await?;
        let vault = self.id.clone();
        request.ask(move |_, reply| Call::VaultAcknowledge { vault, reply }).await
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
    fn attempts_left(&self) -> u32 {
        self.read(|state| state.attempts_left)
    }

    #[zbus(property)]
    fn attempts_max(&self) -> u32 {
        self.read(|state| state.attempts_max)
    }

    #[zbus(property)]
    fn retry_after(&self) -> u64 {
        self.read(|state| state.retry_after)
    }

    #[zbus(property)]
    fn last_contact(&self) -> u64 {
        self.read(|state| state.last_contact)
    }

    #[zbus(property)]
    fn fingerprint(&self) -> String {
        self.read(|state| state.fingerprint.clone())
    }

    #[zbus(property)]
    fn operator(&self) -> String {
        self.read(|state| state.operator.clone())
    }

    #[zbus(property)]
    fn jurisdiction(&self) -> String {
        self.read(|state| state.jurisdiction.clone())
    }

    #[zbus(property)]
    fn warnings(&self) -> Vec<String> {
        self.read(|state| state.warnings.clone())
    }

    #[zbus(property)]
    fn frozen_until(&self) -> u64 {
        self.read(|state| state.frozen_until)
    }

    #[zbus(property)]
    fn failed_attempts(&self) -> u32 {
        self.read(|state| state.failed_attempts)
    }

    #[zbus(property)]
    fn failed_here(&self) -> u32 {
        self.read(|state| state.failed_here)
    }

    #[zbus(property)]
    fn failed_elsewhere(&self) -> u32 {
        self.read(|state| state.failed_elsewhere)
    }

    #[zbus(property)]
    fn unacknowledged(&self) -> u32 {
        self.read(|state| state.unacknowledged)
    }

    #[zbus(property)]
    fn elsewhere_seen(&self) -> u64 {
        self.read(|state| state.elsewhere_seen)
    }

    /// A wrong password was counted.
    #[zbus(signal)]
    pub(crate) async fn attempt_failed(
        emitter: &SignalEmitter<'_>,
        left: u32,
        retry_after: u64,
    ) -> zbus::Result<()>;

    /// Attempts were counted that were not made on this device.
    #[zbus(signal)]
    pub(crate) async fn attempt_elsewhere(
        emitter: &SignalEmitter<'_>,
        count: u32,
        left: u32,
    ) -> zbus::Result<()>;

    /// The password was changed on another device: this one has to be unlocked with the new one.
    #[zbus(signal)]
    pub(crate) async fn superseded(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;

    /// The record is gone: the password opens nothing any more.
    #[zbus(signal)]
    pub(crate) async fn destroyed(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}
