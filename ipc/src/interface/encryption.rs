//! How the backups of one database are encrypted. Every secret is a pipe.

use std::sync::Arc;

use zbus::Connection;
use zbus::message::Header;
use zbus::zvariant::{OwnedFd, OwnedObjectPath};

use super::optional;
use crate::names::vault_path;
use crate::options::RawOptions;
use crate::request::{Request, Result, Rights, key_out, secret};
use crate::shared::Shared;
use crate::{Call, EncryptionState};

pub(crate) struct EncryptionInterface {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: String,
}

impl EncryptionInterface {
    fn read<T>(&self, read: impl FnOnce(&EncryptionState) -> T) -> T {
        let tree = self.shared.tree();
        match tree.databases.get(&self.id) {
            Some((_, state)) => read(state),
            None => read(&EncryptionState::default()),
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

#[zbus::interface(name = "io.github.chatkeep.Chatkeep1.Encryption")]
impl EncryptionInterface {
    #[zbus(out_args("job"))]
    async fn enable_with_password(
        &self,
        password: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let vault = request.options.text("vault")?;
        let password = secret(password).await?;
        let database = self.id.clone();
        request
            .start(move |_, job, reply| Call::EnableWithPassword { database, password, vault, job, reply })
            .await
    }

    #[zbus(out_args("job"))]
    async fn enable_with_key(
        &self,
        key: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let key = secret(key).await?;
        let database = self.id.clone();
        request.start(move |_, job, reply| Call::EnableWithKey { database, key, job, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn enable_with_generated_key(
        &self,
        key_out: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let key_out = self::key_out(key_out)?;
        let database = self.id.clone();
        request
            .start(move |_, job, reply| Call::EnableWithGeneratedKey { database, key_out, job, reply })
            .await
    }

    async fn confirm_key(
        &self,
        key: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let request = self.request(connection, &header, options).await?;
        let key = secret(key).await?;
        let database = self.id.clone();
        request.ask(move |_, reply| Call::ConfirmKey { database, key, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn change_password(
        &self,
        current: OwnedFd,
        new: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let current = secret(current).await?;
        let new = secret(new).await?;
        let database = self.id.clone();
        request.start(move |_, job, reply| Call::ChangePassword { database, current, new, job, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn rotate_key(
        &self,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let reencrypt = request.options.flag("reencrypt")?;
        let reason = request.options.text("reason")?;
        let key_out = request.options.fd("key-out")?.map(key_out).transpose()?;
        let database = self.id.clone();
        request
            .start(move |_, job, reply| Call::RotateKey { database, reencrypt, reason, key_out, job, reply })
            .await
    }

    #[zbus(out_args("job"))]
    async fn switch_to_key(
        &self,
        current: OwnedFd,
        key: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let current = secret(current).await?;
        let key = secret(key).await?;
        let database = self.id.clone();
        request.start(move |_, job, reply| Call::SwitchToKey { database, current, key, job, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn switch_to_password(
        &self,
        current: OwnedFd,
        password: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let current = secret(current).await?;
        let password = secret(password).await?;
        let database = self.id.clone();
        request
            .start(move |_, job, reply| Call::SwitchToPassword { database, current, password, job, reply })
            .await
    }

    #[zbus(out_args("job"))]
    async fn unlock(
        &self,
        secret: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let trust = request.options.texts("trust-vaults")?;
        let secret = self::secret(secret).await?;
        let database = self.id.clone();
        request.start(move |_, job, reply| Call::Unlock { database, secret, trust, job, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn check_secret(
        &self,
        secret: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let ask_vault = request.options.flag("vault")?;
        let secret = self::secret(secret).await?;
        let database = self.id.clone();
        request
            .start(move |_, job, reply| Call::CheckSecret { database, secret, ask_vault, job, reply })
            .await
    }

    #[zbus(out_args("job"))]
    async fn show_key(
        &self,
        proof: OwnedFd,
        key_out: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let request = self.request(connection, &header, options).await?;
        let key_out = self::key_out(key_out)?;
        let proof = secret(proof).await?;
        let database = self.id.clone();
        request.start(move |_, job, reply| Call::ShowKey { database, proof, key_out, job, reply }).await
    }

    #[zbus(out_args("job"))]
    async fn disable(
        &self,
        proof: OwnedFd,
        options: RawOptions,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut request = self.request(connection, &header, options).await?;
        let delete_remote = request.options.flag("delete-remote")?;
        let grace_days = request.options.number("grace")?;
        let proof = secret(proof).await?;
        let database = self.id.clone();
        request
            .start(move |_, job, reply| Call::Disable {
                database,
                proof,
                delete_remote,
                grace_days,
                job,
                reply,
            })
            .await
    }

    #[zbus(property)]
    fn mode(&self) -> String {
        self.read(|state| state.mode.clone())
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.read(|state| state.state.clone())
    }

    #[zbus(property)]
    fn key_id(&self) -> String {
        self.read(|state| state.key_id.clone())
    }

    #[zbus(property)]
    fn key_created(&self) -> u64 {
        self.read(|state| state.key_created)
    }

    #[zbus(property)]
    fn vault(&self) -> OwnedObjectPath {
        self.read(|state| optional(&state.vault, vault_path))
    }

    #[zbus(property)]
    fn vaults(&self) -> Vec<OwnedObjectPath> {
        self.read(|state| state.vaults.iter().map(|id| vault_path(id)).collect())
    }

    #[zbus(property)]
    fn threshold(&self) -> u32 {
        self.read(|state| state.threshold)
    }

    #[zbus(property)]
    fn key_on_device(&self) -> bool {
        self.read(|state| state.key_on_device)
    }

    #[zbus(property)]
    fn last_checked(&self) -> u64 {
        self.read(|state| state.last_checked)
    }
}
