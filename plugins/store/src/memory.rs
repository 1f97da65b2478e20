//! A store in memory, for tests and as the reference of the contract. Clones share their objects.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;

use crate::contract::{
    Capabilities, CreateGuarantee, ObjectMeta, PutCondition, PutReceipt, Store, Usage, Visibility,
    clamp_range,
};
use crate::error::{Result, StoreError};
use crate::key::{ListPrefix, StoreKey};

/// The store.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<StoreKey, Bytes>>>,
    /// Until when objects are locked, in seconds since 1970.
    locks: Arc<Mutex<BTreeMap<StoreKey, u64>>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<StoreKey, Bytes>> {
        self.objects.lock().expect("nothing panics while it holds the objects")
    }

    /// Until when an object is locked, in seconds since 1970; 0 if it is not.
    pub fn locked_until(&self, key: &StoreKey) -> u64 {
        let locks = self.locks.lock().expect("nothing panics while it holds the locks");
        locks.get(key).copied().unwrap_or(0)
    }

    fn unlocked(&self, key: &StoreKey) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if self.locked_until(key) > now { Err(StoreError::Retained { key: key.clone() }) } else { Ok(()) }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        let mut objects = self.objects();
        if condition == PutCondition::CreateIfAbsent && objects.contains_key(key) {
            return Err(StoreError::AlreadyExists { key: key.clone() });
        }
        self.unlocked(key)?;
        let len = body.len() as u64;
        objects.insert(key.clone(), body);
        Ok(PutReceipt { len })
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        let body = self.objects().get(key).cloned().ok_or_else(|| not_found(key))?;
        match range {
            None => Ok(body),
            Some(range) => {
                let range = clamp_range(&range, body.len() as u64)?;
                Ok(body.slice(range.start as usize..range.end as usize))
            }
        }
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        let len = self.objects().get(key).ok_or_else(|| not_found(key))?.len() as u64;
        Ok(ObjectMeta { key: key.clone(), len })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let prefix = ListPrefix::parse(prefix)?;
        let objects = self.objects();
        let found = objects.iter().filter(|(key, _)| prefix.holds(key));
        Ok(found.map(|(key, body)| ObjectMeta { key: key.clone(), len: body.len() as u64 }).collect())
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        self.unlocked(key)?;
        self.objects().remove(key);
        Ok(())
    }

    async fn retain(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        self.head(key).await?;
        let mut locks = self.locks.lock().expect("nothing panics while it holds the locks");
        let lock = locks.entry(key.clone()).or_default();
        *lock = until_s.max(*lock);
        Ok(())
    }

    async fn usage(&self) -> Result<Usage> {
        let used = self.objects().values().map(|body| body.len() as u64).sum();
        Ok(Usage { used: Some(used), total: None, free: None })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create: CreateGuarantee::Atomic,
            read_after_write: Visibility::Strong,
            list_after_write: Visibility::Strong,
            range: true,
            delete_is_final: true,
            usage: true,
            retain: true,
            object_len_max: None,
            parallel: 16,
        }
    }
}

fn not_found(key: &StoreKey) -> StoreError {
    StoreError::NotFound { key: key.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Extent, run};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn conforms() {
        let results = run(Arc::new(MemoryStore::new()), "conformance", Extent::FULL).await;
        crate::conformance::assert_all_passed(&results);
    }
}
