//! Stores that permit or promise less than the contract's best, around any other one. They are made up for the tests:
//! real ones of their kind are tested where the plugins are.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::chaos::Operation;
use chatkeep_store::{
    Capabilities, CreateGuarantee, ObjectMeta, PutCondition, PutReceipt, Store, StoreError, StoreKey, Usage,
};

/// Permits these operations and no others.
pub(crate) struct Permitting<S> {
    inner: Arc<S>,
    permitted: Vec<Operation>,
}

impl<S> Permitting<S> {
    pub(crate) fn new(inner: Arc<S>, permitted: &[Operation]) -> Self {
        Self { inner, permitted: permitted.to_vec() }
    }

    fn check(&self, operation: Operation) -> Result<(), StoreError> {
        let permitted = self.permitted.contains(&operation);
        permitted.then_some(()).ok_or_else(|| StoreError::Permission("not for you".into()))
    }
}

#[async_trait]
impl<S: Store> Store for Permitting<S> {
    async fn put(&self, key: &StoreKey, body: Bytes, when: PutCondition) -> Result<PutReceipt, StoreError> {
        self.check(Operation::Put)?;
        self.inner.put(key, body, when).await
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.check(Operation::Get)?;
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta, StoreError> {
        self.check(Operation::Head)?;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.check(Operation::List)?;
        self.inner.list(prefix).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        self.check(Operation::Delete)?;
        self.inner.delete(key).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.inner.usage().await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}

/// Promises less: other capabilities, and with `create: None` a put under a condition is refused.
pub(crate) struct Promising<S> {
    inner: Arc<S>,
    capabilities: Capabilities,
    /// The length that a put is acknowledged with, less than it is.
    pub(crate) acknowledges_less: u64,
}

impl<S: Store> Promising<S> {
    pub(crate) fn new(inner: Arc<S>, change: impl FnOnce(&mut Capabilities)) -> Self {
        let mut capabilities = inner.capabilities();
        change(&mut capabilities);
        Self { inner, capabilities, acknowledges_less: 0 }
    }
}

#[async_trait]
impl<S: Store> Store for Promising<S> {
    async fn put(&self, key: &StoreKey, body: Bytes, when: PutCondition) -> Result<PutReceipt, StoreError> {
        if self.capabilities.create == CreateGuarantee::None && when == PutCondition::CreateIfAbsent {
            return Err(StoreError::Unsupported { what: "put under a condition" });
        }
        let receipt = self.inner.put(key, body, when).await?;
        Ok(PutReceipt { len: receipt.len - self.acknowledges_less })
    }

    async fn put_file(&self, key: &StoreKey, body: Bytes, _: &Path) -> Result<PutReceipt, StoreError> {
        self.put(key, body, PutCondition::CreateIfAbsent).await
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta, StoreError> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.inner.list(prefix).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.inner.usage().await
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}
