//! A configured store as the daemon uses it: it may be told to wait, counts what it is asked, and locks what it stores.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_planner::{Gate, PauseReason, Spent};
use chatkeep_store::{
    Capabilities, ErrorKind, ObjectMeta, PutCondition, PutReceipt, Result, Store, StoreError, StoreKey, Usage,
};
use chatkeep_store_host::{RetryPolicy, Steady};
use tokio::sync::watch;
use tracing::warn;

use super::Plugin;
use super::unusable::Unusable;
use crate::fault::with_causes;

/// The store around the one that was opened.
pub struct Managed {
    inner: Arc<dyn Store>,
    plugin: Option<Arc<Plugin>>,
    /// Why nothing can be asked of it.
    unusable: Option<String>,
    gate: watch::Sender<Gate>,
    spent: Mutex<Spent>,
    /// Objects are locked for so long from their put on, in seconds.
    retain_s: Option<u64>,
    /// Why objects are not locked although they are to be.
    lock_fault: Mutex<Option<String>>,
}

impl Managed {
    /// Around `inner`; the gate is open.
    pub fn new(inner: Arc<dyn Store>, retain_s: Option<u64>) -> Self {
        Self {
            inner,
            plugin: None,
            unusable: None,
            gate: watch::Sender::new(Gate::Open),
            spent: Mutex::default(),
            retain_s,
            lock_fault: Mutex::default(),
        }
    }

    /// Around a plugin.
    pub fn of_plugin(plugin: Arc<Plugin>, retain_s: Option<u64>) -> Self {
        // What passes is tried again at once, here: the queue behind waits for longer.
        let steady = Arc::new(Steady::new(plugin.clone(), RetryPolicy::default()));
        Self { plugin: Some(plugin), ..Self::new(steady, retain_s) }
    }

    /// In the place of a store that cannot be used, for this reason.
    pub fn unusable(error: &StoreError, retain_s: Option<u64>) -> Self {
        let inner = Arc::new(Unusable::because(error));
        Self { unusable: Some(error.to_string()), ..Self::new(inner, retain_s) }
    }

    /// Why it cannot be used, as far as that was known when it was configured.
    pub fn why_unusable(&self) -> Option<&str> {
        self.unusable.as_deref()
    }

    /// The plugin, if it is one.
    pub fn plugin(&self) -> Option<&Arc<Plugin>> {
        self.plugin.as_ref()
    }

    /// Lets puts through or not, also one that is under way.
    pub fn set_gate(&self, gate: Gate) {
        self.gate.send_if_modified(|old| std::mem::replace(old, gate) != gate);
    }

    /// Whether puts go through.
    pub fn gate(&self) -> Gate {
        *self.gate.borrow()
    }

    /// What was asked of it since this was last called.
    pub fn take_spent(&self) -> Spent {
        std::mem::take(&mut *self.spent())
    }

    /// How long objects are locked from their put on, in seconds.
    pub fn retain_s(&self) -> Option<u64> {
        self.retain_s
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().expect("nothing panics while it counts")
    }

    /// Sends, unless the gate is closed or closes meanwhile: then the put is dropped, which leaves it done or not done.
    async fn send<T>(&self, len: u64, put: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let mut gate = self.gate.subscribe();
        if let Some(reason) = gate.borrow_and_update().holds(len) {
            return Err(paused(reason));
        }
        {
            let mut spent = self.spent();
            spent.writes += 1;
            spent.bytes_up += len;
        }
        let closes = async {
            loop {
                if gate.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                if let Some(reason) = gate.borrow_and_update().holds(len) {
                    return reason;
                }
            }
        };
        tokio::select! {
            biased;
            done = put => done,
            reason = closes => Err(paused(reason)),
        }
    }

    /// Why objects are not locked although they are to be, if that is so.
    pub fn lock_fault(&self) -> Option<String> {
        self.lock_fault.lock().expect("nothing panics while it holds this").clone()
    }

    /// Locks what was just stored. The object is there, locked or not: a lock that cannot be had does not make a backup fail,
    /// and is shown ([`Managed::lock_fault`]).
    async fn lock(&self, key: &StoreKey) {
        let Some(retain_s) = self.retain_s else { return };
        let until_s = crate::clock::now_us() / 1_000_000 + retain_s;
        // What passes is mended when locks are renewed.
        if let Err(error) = self.retain(key, until_s).await {
            warn!(%error, "an object could not be locked against deletion");
        }
    }

    fn judge_lock(&self, done: &Result<()>) {
        let mut fault = self.lock_fault.lock().expect("nothing panics while it holds this");
        match done {
            Ok(()) => *fault = None,
            Err(error) if error.is_temporary() || error.kind() == ErrorKind::NotFound => {}
            Err(error) => *fault = Some(with_causes(error)),
        }
    }
}

/// Nothing is wrong with the store, and nothing is sent: as if it could not be reached.
fn paused(reason: PauseReason) -> StoreError {
    StoreError::Offline(format!("paused: {}", reason.as_str()).into())
}

#[async_trait]
impl Store for Managed {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        let receipt = self.send(body.len() as u64, self.inner.put(key, body, condition)).await?;
        self.lock(key).await;
        Ok(receipt)
    }

    async fn put_file(&self, key: &StoreKey, body: Bytes, file: &Path) -> Result<PutReceipt> {
        let receipt = self.send(body.len() as u64, self.inner.put_file(key, body, file)).await?;
        self.lock(key).await;
        Ok(receipt)
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        self.spent().reads += 1;
        let body = self.inner.get(key, range).await?;
        self.spent().bytes_down += body.len() as u64;
        Ok(body)
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        self.spent().reads += 1;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let listed = self.inner.list(prefix).await;
        // Services list a thousand names at a time.
        self.spent().writes += listed.as_ref().map_or(0, Vec::len) as u64 / 1000 + 1;
        listed
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        self.spent().deletes += 1;
        let deleted = self.inner.delete(key).await;
        if deleted.as_ref().is_err_and(|error| error.kind() == ErrorKind::Retained) {
            tracing::debug!(%key, "it is locked and goes later");
        }
        deleted
    }

    async fn retain(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        self.spent().writes += 1;
        let done = self.inner.retain(key, until_s).await;
        self.judge_lock(&done);
        done
    }

    async fn usage(&self) -> Result<Usage> {
        self.spent().reads += 1;
        self.inner.usage().await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use chatkeep_store::memory::MemoryStore;

    use super::*;

    fn key() -> StoreKey {
        StoreKey::try_from("a/log/1").unwrap()
    }

    fn managed() -> Managed {
        Managed::new(Arc::new(MemoryStore::new()), None)
    }

    async fn put(store: &Managed, len: usize) -> Result<PutReceipt> {
        store.put(&key(), Bytes::from(vec![0; len]), PutCondition::Overwrite).await
    }

    /// A store whose puts never end.
    struct Endless;

    #[async_trait]
    impl Store for Endless {
        async fn put(&self, _: &StoreKey, _: Bytes, _: PutCondition) -> Result<PutReceipt> {
            std::future::pending().await
        }
        async fn get(&self, key: &StoreKey, _: Option<Range<u64>>) -> Result<Bytes> {
            Err(StoreError::NotFound { key: key.clone() })
        }
        async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
            Err(StoreError::NotFound { key: key.clone() })
        }
        async fn list(&self, _: &str) -> Result<Vec<ObjectMeta>> {
            Ok(Vec::new())
        }
        async fn delete(&self, _: &StoreKey) -> Result<()> {
            Ok(())
        }
        async fn usage(&self) -> Result<Usage> {
            Ok(Usage::default())
        }
        fn capabilities(&self) -> Capabilities {
            MemoryStore::new().capabilities()
        }
    }

    #[tokio::test]
    async fn a_closed_gate_holds_puts_and_lets_reads_through() {
        let store = managed();
        put(&store, 5).await.unwrap();
        store.set_gate(Gate::Closed(PauseReason::Metered));
        let error = put(&store, 5).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Offline);
        assert_eq!(store.get(&key(), None).await.unwrap().len(), 5);
        store.set_gate(Gate::Small(PauseReason::Metered));
        put(&store, 5).await.unwrap();
        put(&store, 300_000).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_put_under_way_stops_when_the_gate_closes() {
        let store = Arc::new(Managed::new(Arc::new(Endless), None));
        let running = tokio::spawn({
            let store = store.clone();
            async move { put(&store, 5).await }
        });
        while store.spent().writes == 0 {
            tokio::task::yield_now().await;
        }
        // a small one goes on where only large ones are held
        store.set_gate(Gate::Small(PauseReason::Metered));
        tokio::task::yield_now().await;
        assert!(!running.is_finished());
        store.set_gate(Gate::Closed(PauseReason::Sleep));
        assert_eq!(running.await.unwrap().unwrap_err().kind(), ErrorKind::Offline);
    }

    #[tokio::test]
    async fn what_is_stored_is_locked_and_a_lock_that_cannot_be_had_is_told() {
        let memory = MemoryStore::new();
        let store = Managed::new(Arc::new(memory.clone()), Some(1000));
        put(&store, 5).await.unwrap();
        assert!(memory.locked_until(&key()) > crate::clock::now_us() / 1_000_000 + 900);
        assert_eq!(store.lock_fault(), None);

        let folder = tempfile::tempdir().unwrap();
        let local =
            chatkeep_store_local::LocalStore::from_url(&format!("file://{}", folder.path().display()));
        let store = Managed::new(Arc::new(local.unwrap()), Some(1000));
        put(&store, 5).await.unwrap();
        assert!(store.lock_fault().unwrap().contains("lock objects"));
    }

    #[tokio::test]
    async fn what_is_asked_is_counted_once() {
        let store = managed();
        put(&store, 5).await.unwrap();
        store.get(&key(), None).await.unwrap();
        store.list("").await.unwrap();
        store.delete(&key()).await.unwrap();
        let expected = Spent { writes: 2, reads: 1, deletes: 1, bytes_up: 5, bytes_down: 5 };
        assert_eq!(store.take_spent(), expected);
        assert_eq!(store.take_spent(), Spent::default());
    }
}
