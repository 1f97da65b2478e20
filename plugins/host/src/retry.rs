//! What is tried again at once, and how many calls run at the same time. All retries are here, so that a pause and the end
//! of the program take effect at once; plugins have next to none of their own.

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::{
    Capabilities, NextStep, ObjectMeta, PutCondition, PutReceipt, Result, Store, StoreError, StoreKey, Usage,
};
use rand_core::{OsRng, RngCore as _};

use crate::permits::Permits;

/// How a call is tried again.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Tries in all.
    pub tries: u32,
    /// The longest wait before the second try; it doubles with each. The wait itself is anything from nothing to it, so that
    /// many callers do not come back together ("full jitter").
    pub first_wait: Duration,
    /// A store that wants to be left alone for longer than this is not waited for here.
    pub wait_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { tries: 3, first_wait: Duration::from_secs(1), wait_max: Duration::from_mins(1) }
    }
}

/// A store whose calls are tried again when that helps, and of which fewer run at once when it asks for fewer.
///
/// A create that is tried again may meet its own first try: it then answers
/// [`AlreadyExists`](StoreError::AlreadyExists), and the caller compares, as always.
pub struct Steady {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
    permits: Arc<Permits>,
}

impl Steady {
    /// Around `inner`.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy) -> Self {
        let permits = Permits::new(usize::from(inner.capabilities().parallel));
        Self { inner, policy, permits }
    }

    /// How many calls may run at once now.
    pub fn concurrency(&self) -> usize {
        self.permits.limit()
    }

    async fn attempt<T, F: Future<Output = Result<T>> + Send>(
        &self,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        // a store says how many calls are useful once it was opened
        self.permits.set_max(usize::from(self.inner.capabilities().parallel));
        let _permit = self.permits.acquire().await;
        let mut tried = 0;
        loop {
            let done = call().await;
            tried += 1;
            match done {
                Err(error) => match self.wait_before_next(&error, tried) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(error),
                },
                Ok(answer) => {
                    self.permits.went_well();
                    return Ok(answer);
                }
            }
        }
    }

    /// How long to wait before the next try; `None` is: the caller decides.
    fn wait_before_next(&self, error: &StoreError, tried: u32) -> Option<Duration> {
        let jitter = || {
            let longest = self.policy.first_wait * 2_u32.pow((tried - 1).min(16));
            longest.mul_f64(f64::from(OsRng.next_u32()) / f64::from(u32::MAX))
        };
        let wait = match error.next_step() {
            NextStep::RetryLater | NextStep::SendAgain => jitter(),
            NextStep::SlowDown(wait) => {
                self.permits.slow_down();
                wait.unwrap_or_default() + jitter()
            }
            _ => return None,
        };
        (tried < self.policy.tries && wait <= self.policy.wait_max).then_some(wait)
    }
}

#[async_trait]
impl Store for Steady {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        self.attempt(|| self.inner.put(key, body.clone(), condition)).await
    }

    async fn put_file(&self, key: &StoreKey, body: Bytes, file: &Path) -> Result<PutReceipt> {
        self.attempt(|| self.inner.put_file(key, body.clone(), file)).await
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        self.attempt(|| self.inner.get(key, range.clone())).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        self.attempt(|| self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.attempt(|| self.inner.list(prefix)).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        self.attempt(|| self.inner.delete(key)).await
    }

    async fn retain(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        self.attempt(|| self.inner.retain(key, until_s)).await
    }

    async fn usage(&self) -> Result<Usage> {
        self.attempt(|| self.inner.usage()).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Mutex;

    use chatkeep_store::ErrorKind;
    use chatkeep_store::memory::MemoryStore;
    use tokio::time::Instant;

    use super::*;
    use crate::process::lock;

    /// A stand-in that fails as it is told, then holds what was put.
    #[derive(Default)]
    struct Failing {
        errors: Mutex<Vec<StoreError>>,
        calls: Mutex<u32>,
        store: MemoryStore,
    }

    #[async_trait]
    impl Store for Failing {
        async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
            *lock(&self.calls) += 1;
            let error = lock(&self.errors).pop();
            match error {
                Some(error) => Err(error),
                None => self.store.put(key, body, condition).await,
            }
        }
        async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
            self.store.get(key, range).await
        }
        async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
            self.store.head(key).await
        }
        async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
            self.store.list(prefix).await
        }
        async fn delete(&self, key: &StoreKey) -> Result<()> {
            self.store.delete(key).await
        }
        async fn usage(&self) -> Result<Usage> {
            self.store.usage().await
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities { parallel: 8, ..self.store.capabilities() }
        }
    }

    struct Came {
        kind: Option<ErrorKind>,
        calls: u32,
        seconds: u64,
        concurrency: usize,
    }

    async fn put_after(mut errors: Vec<StoreError>) -> Came {
        errors.reverse();
        let failing = Arc::new(Failing { errors: Mutex::new(errors), ..Failing::default() });
        let (steady, begin) = (Steady::new(failing.clone(), RetryPolicy::default()), Instant::now());
        let key = StoreKey::try_from("a/log/1").unwrap();
        let done = steady.put(&key, "x".into(), PutCondition::CreateIfAbsent).await;
        let calls = *lock(&failing.calls);
        let kind = done.err().map(|error| error.kind());
        Came { kind, calls, seconds: begin.elapsed().as_secs(), concurrency: steady.concurrency() }
    }

    fn transient() -> StoreError {
        StoreError::Transient("x".into())
    }

    fn throttled(seconds: u64) -> StoreError {
        StoreError::Throttled { retry_after: Some(Duration::from_secs(seconds)) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_by_itself_is_tried_three_times() {
        let came = put_after(vec![transient(), transient()]).await;
        assert_eq!((came.kind, came.calls), (None, 3));
        assert!(came.seconds <= 3);
        let came = put_after(vec![transient(), transient(), transient()]).await;
        assert_eq!((came.kind, came.calls), (Some(ErrorKind::Transient), 3));
        let corrupt = StoreError::Corrupt { key: StoreKey::try_from("a/log/1").unwrap() };
        assert_eq!(put_after(vec![corrupt]).await.calls, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_somebody_else_can_mend_is_not_tried_again() {
        for error in [
            StoreError::Auth("x".into()),
            StoreError::Quota("x".into()),
            StoreError::Offline("x".into()),
            StoreError::Unsupported { what: "x" },
            StoreError::IncompleteListing { reason: "x".to_owned() },
        ] {
            let kind = error.kind();
            let came = put_after(vec![error]).await;
            assert_eq!((came.kind, came.calls, came.seconds), (Some(kind), 1, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_asks_for_fewer_is_waited_for_and_asked_by_half_as_many() {
        let came = put_after(vec![throttled(20)]).await;
        assert_eq!((came.kind, came.calls, came.concurrency), (None, 2, 4));
        assert!((20..=21).contains(&came.seconds), "{}", came.seconds);
        let came = put_after(vec![throttled(20), throttled(20)]).await;
        assert_eq!((came.kind, came.calls, came.concurrency), (None, 3, 2));
        let came = put_after(vec![throttled(3600)]).await;
        assert_eq!((came.kind, came.calls, came.seconds), (Some(ErrorKind::Throttled), 1, 0));
    }
}
