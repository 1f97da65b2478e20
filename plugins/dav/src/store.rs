//! The contract, on WebDAV.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::{
    Capabilities, ObjectMeta, Opening, PutCondition, PutReceipt, Result, Store, StoreError, StoreKey, Usage,
    Visibility,
};

use crate::connection::{Connection, Found, connect};
use crate::http::Tuning;
use crate::{leftovers, probe};

/// Opens the store: looks for its folder at the server, makes it if that one folder is missing, and begins to remove
/// what a crash may have left. With the option `probe`, also finds out what a create is worth.
///
/// Without a network this is [`Offline`](StoreError::Offline); call again later.
pub async fn open(opening: &Opening) -> Result<Arc<dyn Store>> {
    open_tuned(opening, Tuning::default()).await
}

/// As [`open`], with another patience.
pub async fn open_tuned(opening: &Opening, tuning: Tuning) -> Result<Arc<dyn Store>> {
    let mut connection = connect(opening, tuning).await?;
    if connection.probe && !connection.read_only {
        connection.create = probe::race(&connection).await?;
    }
    let connection = Arc::new(connection);
    if !connection.read_only {
        let connection = Arc::clone(&connection);
        tokio::spawn(async move { leftovers::remove_old(&connection).await });
    }
    Ok(Arc::new(DavStore(connection)))
}

struct DavStore(Arc<Connection>);

#[async_trait]
impl Store for DavStore {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        self.0.put(key, body, condition).await
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        let mark = self.0.overwrites.mark();
        match self.0.get(key, range.clone()).await {
            Err(StoreError::NotFound { .. }) if self.0.overwrites.ran_since(mark) => {
                let _pause = self.0.overwrites.pause().await;
                self.0.get(key, range).await
            }
            read => read,
        }
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        let mark = self.0.overwrites.mark();
        let len = match self.0.len_of(key).await {
            Err(StoreError::NotFound { .. }) if self.0.overwrites.ran_since(mark) => {
                let _pause = self.0.overwrites.pause().await;
                self.0.len_of(key).await
            }
            found => found,
        };
        Ok(ObjectMeta { key: key.clone(), len: len? })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let mark = self.0.overwrites.mark();
        let listed = self.0.list(prefix).await;
        if listed.is_ok() && self.0.overwrites.ran_since(mark) {
            let _pause = self.0.overwrites.pause().await;
            return self.0.list(prefix).await;
        }
        listed
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        self.0.delete(key).await
    }

    async fn usage(&self) -> Result<Usage> {
        let Found::Folder(properties) = self.0.find(&self.0.root).await? else { return Err(self.0.gone()) };
        let (free, used) = (properties.quota_free, properties.quota_used);
        if free.is_none() && used.is_none() {
            return Err(StoreError::Unsupported { what: "say how full it is" });
        }
        let total = free.zip(used).map(|(free, used)| free.saturating_add(used));
        Ok(Usage { used, total, free })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create: self.0.create,
            read_after_write: Visibility::Strong,
            list_after_write: Visibility::Strong,
            range: true,
            // Nextcloud and ownCloud have a trash unless their administrator has switched it off
            delete_is_final: !self.0.root.path().contains("/remote.php/"),
            usage: self.0.usage,
            retain: false,
            object_len_max: None,
            parallel: self.0.parallel,
        }
    }
}
