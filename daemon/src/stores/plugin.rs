//! A store behind a plugin process, opened with secrets that are fetched when they are needed.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::{
    Capabilities, ErrorKind, ObjectMeta, PutCondition, PutReceipt, Result, Secrets, Store, StoreKey, Usage,
};
use chatkeep_store_host::{PluginStore, Settings, Walls};
use tracing::{info, warn};

use crate::config::{self, Place};
use crate::credentials::{credentials_directory, resolve};
use crate::keys::KeyStore;

/// The store.
pub struct Plugin {
    inner: PluginStore,
    config: config::Store,
    key_store: Arc<dyn KeyStore>,
    credentials: Option<PathBuf>,
    /// Secrets were fetched and not refused since.
    has_secrets: tokio::sync::Mutex<bool>,
    refused: AtomicBool,
}

impl Plugin {
    /// Starts nothing yet.
    pub fn new(config: config::Store, mut settings: Settings, key_store: Arc<dyn KeyStore>) -> Result<Self> {
        let (keeper, of) = (key_store.clone(), config.clone());
        settings.on_secrets = Arc::new(move |renewed| keep(&keeper, &of, renewed));
        settings.control.set_limit(config.limits.upload.map(|rate| rate.0));
        Ok(Self {
            inner: PluginStore::new(settings)?,
            config,
            key_store,
            credentials: credentials_directory(),
            has_secrets: tokio::sync::Mutex::new(false),
            refused: AtomicBool::new(false),
        })
    }

    /// Another secret was given: the next call opens the store anew, also one whose plugin crashed too often.
    pub fn forget_secrets(&self) {
        self.refused.store(true, Ordering::Release);
        self.inner.reset();
    }

    /// Behind which walls the process runs; nothing while none does.
    pub fn walls(&self) -> Option<Walls> {
        self.inner.state().running.map(|(_, walls)| walls)
    }

    /// The name and version of the plugin, once it was opened.
    pub fn says(&self) -> Option<(String, String)> {
        self.inner.state().plugin
    }

    /// Ends the process for good.
    pub async fn close(&self) {
        self.inner.close().await;
    }

    /// Fetches the secrets, unless it has them. A keyring that is locked now is asked again at the next call.
    async fn ready(&self) -> Result<()> {
        let mut has_secrets = self.has_secrets.lock().await;
        if self.refused.swap(false, Ordering::AcqRel) {
            *has_secrets = false;
        }
        if !*has_secrets {
            let secrets = resolve(&self.config, &*self.key_store, self.credentials.as_deref()).await?;
            self.inner.set_secrets(secrets);
            *has_secrets = true;
        }
        Ok(())
    }

    /// Secrets that were refused are fetched anew at the next call: the user may have changed them.
    fn judge<T>(&self, answer: Result<T>) -> Result<T> {
        if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Auth) {
            self.refused.store(true, Ordering::Release);
        }
        answer
    }
}

/// Keeps secrets that the store renewed where they came from. Only the keyring can take them.
fn keep(key_store: &Arc<dyn KeyStore>, store: &config::Store, renewed: &Secrets) {
    for (name, value) in renewed.iter() {
        if store.secrets.get(name) != Some(&Place::Keyring) {
            warn!(
                store = store.name,
                secret = name,
                "a renewed secret cannot be kept: it is not in the keyring"
            );
            continue;
        }
        let (key_store, store) = (key_store.clone(), store.name.clone());
        let (name, value) = (name.to_owned(), zeroize::Zeroizing::new(value.to_owned()));
        tokio::spawn(async move {
            match key_store.save_credential(&store, &name, &value).await {
                Ok(()) => info!(store, secret = name, "a renewed secret was kept"),
                Err(error) => warn!(store, secret = name, %error, "a renewed secret cannot be kept"),
            }
        });
    }
}

#[async_trait]
impl Store for Plugin {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        self.ready().await?;
        self.judge(self.inner.put(key, body, condition).await)
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        self.ready().await?;
        self.judge(self.inner.get(key, range).await)
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        self.ready().await?;
        self.judge(self.inner.head(key).await)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.ready().await?;
        self.judge(self.inner.list(prefix).await)
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        self.ready().await?;
        self.judge(self.inner.delete(key).await)
    }

    async fn retain(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        self.ready().await?;
        self.judge(self.inner.retain(key, until_s).await)
    }

    async fn usage(&self) -> Result<Usage> {
        self.ready().await?;
        self.judge(self.inner.usage().await)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::keys::KeyFiles;

    #[tokio::test]
    async fn a_renewed_secret_goes_back_to_the_keyring_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let keys: Arc<dyn KeyStore> = Arc::new(KeyFiles::new(folder.path().to_owned()));
        let text = "name = 'drive'\nurl = 'x:y'\nsecrets = { token = 'keyring', other = 'credential:file' }";
        let mut renewed = Secrets::new();
        renewed.set("token", zeroize::Zeroizing::new("the second".to_owned()));
        renewed.set("other", zeroize::Zeroizing::new("not to be kept".to_owned()));
        keys.save_credential("drive", "token", "the first").await.unwrap();
        keep(&keys, &toml::from_str(text).unwrap(), &renewed);
        while *keys.load_credential("drive", "token").await.unwrap().unwrap() != "the second" {
            tokio::task::yield_now().await;
        }
        assert!(keys.load_credential("drive", "other").await.unwrap().is_none());
    }
}
