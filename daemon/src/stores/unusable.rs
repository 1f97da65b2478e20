//! A store whose plugin may not run: missing, exchanged, not trusted. It says so at each call, and holds up no other store.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::protocol::Caps;
use chatkeep_store::{
    Capabilities, ObjectMeta, PutCondition, PutReceipt, Result, Store, StoreError, StoreKey, Usage,
};

/// The store.
pub(super) struct Unusable {
    reason: String,
}

impl Unusable {
    /// For this reason.
    pub(super) fn because(error: &StoreError) -> Self {
        Self { reason: error.to_string() }
    }

    fn answer<T>(&self) -> Result<T> {
        Err(StoreError::Invalid { reason: self.reason.clone() })
    }
}

#[async_trait]
impl Store for Unusable {
    async fn put(&self, _: &StoreKey, _: Bytes, _: PutCondition) -> Result<PutReceipt> {
        self.answer()
    }

    async fn get(&self, _: &StoreKey, _: Option<Range<u64>>) -> Result<Bytes> {
        self.answer()
    }

    async fn head(&self, _: &StoreKey) -> Result<ObjectMeta> {
        self.answer()
    }

    async fn list(&self, _: &str) -> Result<Vec<ObjectMeta>> {
        self.answer()
    }

    async fn delete(&self, _: &StoreKey) -> Result<()> {
        self.answer()
    }

    async fn usage(&self) -> Result<Usage> {
        self.answer()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::from(&Caps::default())
    }
}
