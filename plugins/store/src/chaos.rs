//! A store that misbehaves on command, around any other one: the power goes off at call 7, call 3 is answered with a
//! quota error, an object arrives short. Everything follows from the script and the seed, so that what was found
//! once is found again.
//!
//! Calls are counted from 0, in the order in which they reach the store, whatever they are; a dry run tells how many
//! there are ([`ChaosStore::calls`]).

mod script;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;

use crate::contract::{Capabilities, ObjectMeta, PutCondition, PutReceipt, Store, Usage};
use crate::error::{ErrorKind, Result, StoreError};
use crate::key::StoreKey;
use crate::listing::ListingCheck;
use script::{Past, Script, Turn};

/// What goes wrong at one call. One that does not fit the call (a short listing at a put) does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing is done, and this is the answer.
    Fail(ErrorKind),
    /// The call is done, and this is the answer: the acknowledgement got lost.
    DoneButFails(ErrorKind),
    /// Put: done; then the answer to our own retry is all that arrives, which is that the object exists.
    ExistsAfterOwnPut,
    /// Put: acknowledged, but nothing is stored.
    Forgotten,
    /// Put: only the first bytes are stored. Get: only the first bytes are answered. Acknowledged as if whole.
    Short {
        /// How many bytes are left.
        keep: usize,
    },
    /// Put or get: one bit is wrong. Counted modulo the length of the body.
    FlippedBit {
        /// Which bit, from the first byte's lowest on.
        bit: u64,
    },
    /// Put: stored, but not to be seen before this many more calls.
    InvisibleFor {
        /// Calls.
        calls: u64,
    },
    /// Get, head: the answer from before the newest change of this object. List: from before the newest put or delete.
    /// Only changes made after this was planned are remembered.
    Stale,
    /// List: breaks off without an end.
    ListWithoutEnd,
    /// List: names the first object twice. Against the contract; a caller must survive it all the same.
    ListDuplicates,
    /// List: silently leaves out the last names. Against the contract; nobody may delete anything because of it.
    ListShrunk {
        /// How many names are missing.
        by: usize,
    },
    /// List: names something that is no key.
    ListForeignName,
}

/// Whether the call at which the power goes off still reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastCall {
    /// It does.
    Lands,
    /// It does not.
    IsLost,
    /// The seed decides.
    ByCoin,
}

/// One call, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRecord {
    /// What was called.
    pub operation: Operation,
    /// The key, or the prefix of a listing.
    pub on: String,
}

/// The calls of a [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the methods of the trait")]
pub enum Operation {
    Put,
    Get,
    Head,
    List,
    Delete,
    Retain,
    Usage,
}

/// A store around `S` that follows a script.
#[derive(Debug)]
pub struct ChaosStore<S> {
    inner: S,
    script: Mutex<Script>,
}

impl<S: Store> ChaosStore<S> {
    /// Wraps `inner`; without a script it changes nothing. The same seed and calls give the same outcome.
    pub fn new(inner: S, seed: u64) -> Self {
        Self { inner, script: Mutex::new(Script::new(seed)) }
    }

    /// Lets call `number` go wrong.
    pub fn fault_at_call(&self, number: u64, fault: Fault) {
        self.script().plan(number, fault);
    }

    /// Lets the next call go wrong.
    pub fn fault_next(&self, fault: Fault) {
        let mut script = self.script();
        let next = script.log.len() as u64;
        script.plan(next, fault);
    }

    /// From now on lets each call go wrong with this probability, each time in one of these ways.
    pub fn fault_randomly(&self, per_mille: u16, faults: &[Fault]) {
        self.script().plan_random(per_mille, faults);
    }

    /// Cuts the power at call `number`: it and all later ones fail as offline, until [`ChaosStore::power_on`].
    /// Whether a put or delete at that call still happened, the seed decides.
    pub fn crash_at_call(&self, number: u64) {
        self.crash_at_call_where(number, LastCall::ByCoin);
    }

    /// As [`ChaosStore::crash_at_call`], with a say in whether the last call still happens.
    pub fn crash_at_call_where(&self, number: u64, last_call: LastCall) {
        self.script().crash = Some((number, last_call));
    }

    /// The power is back, and nothing else is planned: only quota and what is stored remain.
    pub fn power_on(&self) {
        self.script().calm_down();
    }

    /// Lets the store be full once it holds this many bytes; `None` lifts that.
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.script().quota = bytes;
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.script().log.len() as u64
    }

    /// All calls there were.
    pub fn log(&self) -> Vec<CallRecord> {
        self.script().log.clone()
    }

    /// What is really stored.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("nothing panics while it holds the script")
    }

    fn next(&self, operation: Operation, on: &str) -> Turn {
        self.script().next(operation, on)
    }

    /// Makes a change, and keeps what was before it where a stale answer is planned.
    async fn change<T>(&self, key: &StoreKey, change: impl Future<Output = Result<T>>) -> Result<T> {
        if !self.script().remembers {
            return change.await;
        }
        let before = self.inner.get(key, None).await.ok();
        let names = self.inner.list("").await?;
        let changed = change.await?;
        self.script().remember(key, before, names);
        Ok(changed)
    }

    fn visible(&self, key: &StoreKey) -> Result<()> {
        if self.script().hides(key) { Err(StoreError::NotFound { key: key.clone() }) } else { Ok(()) }
    }

    async fn put_now(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        let quota = self.script().quota;
        if let Some(quota) = quota {
            let used: u64 = self.inner.list("").await?.iter().map(|object| object.len).sum();
            if used + body.len() as u64 > quota {
                return Err(error_of(ErrorKind::Quota, key));
            }
        }
        self.change(key, self.inner.put(key, body, condition)).await
    }

    async fn get_now(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        self.visible(key)?;
        self.inner.get(key, range).await
    }

    async fn head_now(&self, key: &StoreKey) -> Result<ObjectMeta> {
        self.visible(key)?;
        self.inner.head(key).await
    }

    async fn list_now(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let mut found = self.inner.list(prefix).await?;
        let script = self.script();
        found.retain(|object| !script.hides(&object.key));
        Ok(found)
    }

    async fn delete_now(&self, key: &StoreKey) -> Result<()> {
        self.change(key, self.inner.delete(key)).await
    }
}

#[async_trait]
impl<S: Store> Store for ChaosStore<S> {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        let len = body.len() as u64;
        match self.next(Operation::Put, key.as_str()) {
            Turn::Dark { lands } => {
                if lands {
                    // nobody is there to hear how it went
                    let _ = self.put_now(key, body, condition).await;
                }
                Err(power_off())
            }
            Turn::Fault(Fault::Fail(kind)) => Err(error_of(kind, key)),
            Turn::Fault(Fault::DoneButFails(kind)) => {
                self.put_now(key, body, condition).await?;
                Err(error_of(kind, key))
            }
            Turn::Fault(Fault::ExistsAfterOwnPut) => {
                self.put_now(key, body, condition).await?;
                Err(StoreError::AlreadyExists { key: key.clone() })
            }
            Turn::Fault(Fault::Forgotten) => Ok(PutReceipt { len }),
            Turn::Fault(fault @ (Fault::Short { .. } | Fault::FlippedBit { .. })) => {
                self.put_now(key, spoilt(&body, fault), condition).await?;
                Ok(PutReceipt { len })
            }
            Turn::Fault(Fault::InvisibleFor { calls }) => {
                let receipt = self.put_now(key, body, condition).await?;
                self.script().hide(key, calls);
                Ok(receipt)
            }
            _ => self.put_now(key, body, condition).await,
        }
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        match self.next(Operation::Get, key.as_str()) {
            Turn::Dark { .. } => Err(power_off()),
            Turn::Fault(Fault::Fail(kind) | Fault::DoneButFails(kind)) => Err(error_of(kind, key)),
            Turn::Fault(fault @ (Fault::Short { .. } | Fault::FlippedBit { .. })) => {
                Ok(spoilt(&self.get_now(key, range).await?, fault))
            }
            Turn::Fault(Fault::Stale) => {
                let before = self.script().before(key);
                match before {
                    Past::NeverChanged => self.get_now(key, range).await,
                    Past::Absent => Err(StoreError::NotFound { key: key.clone() }),
                    Past::Body(body) => {
                        let len = body.len() as u64;
                        let part = crate::clamp_range(&range.unwrap_or(0..len), len)?;
                        Ok(body.slice(part.start as usize..part.end as usize))
                    }
                }
            }
            _ => self.get_now(key, range).await,
        }
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        match self.next(Operation::Head, key.as_str()) {
            Turn::Dark { .. } => Err(power_off()),
            Turn::Fault(Fault::Fail(kind) | Fault::DoneButFails(kind)) => Err(error_of(kind, key)),
            Turn::Fault(Fault::Stale) => {
                let before = self.script().before(key);
                match before {
                    Past::NeverChanged => self.head_now(key).await,
                    Past::Absent => Err(StoreError::NotFound { key: key.clone() }),
                    Past::Body(body) => Ok(ObjectMeta { key: key.clone(), len: body.len() as u64 }),
                }
            }
            _ => self.head_now(key).await,
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let fault = match self.next(Operation::List, prefix) {
            Turn::Dark { .. } => return Err(power_off()),
            Turn::Fault(Fault::Fail(kind) | Fault::DoneButFails(kind)) => return Err(error_of_list(kind)),
            Turn::Fault(fault) => Some(fault),
            Turn::Plain => None,
        };
        let mut found = self.list_now(prefix).await?;
        match fault {
            Some(Fault::ListDuplicates) => {
                if let Some(first) = found.first().cloned() {
                    found.insert(0, first);
                }
            }
            Some(Fault::ListShrunk { by }) => found.truncate(found.len().saturating_sub(by)),
            Some(Fault::Stale) => {
                let prefix = crate::ListPrefix::parse(prefix)?;
                if let Some(names) = self.script().names_before() {
                    found = names.into_iter().filter(|object| prefix.holds(&object.key)).collect();
                }
            }
            Some(fault @ (Fault::ListWithoutEnd | Fault::ListForeignName)) => {
                let mut listing = ListingCheck::new(prefix)?;
                for object in &found {
                    listing.push(object.key.as_str(), object.len)?;
                }
                if fault == Fault::ListForeignName {
                    listing.push("../.ssh/authorized_keys", 400)?;
                }
                return listing.finish(None);
            }
            _ => {}
        }
        Ok(found)
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        match self.next(Operation::Delete, key.as_str()) {
            Turn::Dark { lands } => {
                if lands {
                    let _ = self.delete_now(key).await;
                }
                Err(power_off())
            }
            Turn::Fault(Fault::Fail(kind)) => Err(error_of(kind, key)),
            Turn::Fault(Fault::DoneButFails(kind)) => {
                self.delete_now(key).await?;
                Err(error_of(kind, key))
            }
            Turn::Fault(Fault::Forgotten) => Ok(()),
            _ => self.delete_now(key).await,
        }
    }

    async fn retain(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        match self.next(Operation::Retain, key.as_str()) {
            Turn::Dark { .. } => Err(power_off()),
            Turn::Fault(Fault::Fail(kind)) => Err(error_of(kind, key)),
            Turn::Fault(Fault::DoneButFails(kind)) => {
                self.inner.retain(key, until_s).await?;
                Err(error_of(kind, key))
            }
            Turn::Fault(Fault::Forgotten) => Ok(()),
            _ => self.inner.retain(key, until_s).await,
        }
    }

    async fn usage(&self) -> Result<Usage> {
        match self.next(Operation::Usage, "") {
            Turn::Dark { .. } => Err(power_off()),
            Turn::Fault(Fault::Fail(kind) | Fault::DoneButFails(kind)) => Err(error_of_list(kind)),
            _ => {
                let quota = self.script().quota;
                let usage = self.inner.usage().await?;
                let Some(total) = quota else { return Ok(usage) };
                let free = total.saturating_sub(usage.used.unwrap_or(0));
                Ok(Usage { used: usage.used, total: Some(total), free: Some(free) })
            }
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}

fn power_off() -> StoreError {
    StoreError::Offline("chaos: the power is off".into())
}

fn spoilt(body: &Bytes, fault: Fault) -> Bytes {
    let mut bytes = body.to_vec();
    match fault {
        Fault::Short { keep } => bytes.truncate(keep),
        Fault::FlippedBit { bit } if !bytes.is_empty() => {
            let bit = bit % (bytes.len() as u64 * 8);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
        _ => {}
    }
    bytes.into()
}

fn error_of(kind: ErrorKind, key: &StoreKey) -> StoreError {
    let key = key.clone();
    match kind {
        ErrorKind::NotFound => StoreError::NotFound { key },
        ErrorKind::AlreadyExists => StoreError::AlreadyExists { key },
        ErrorKind::Corrupt => StoreError::Corrupt { key },
        ErrorKind::Retained => StoreError::Retained { key },
        kind => error_of_list(kind),
    }
}

/// For calls that concern no one object: the kinds that name one become a request that makes no sense.
fn error_of_list(kind: ErrorKind) -> StoreError {
    let cause = || format!("chaos: {kind}").into();
    match kind {
        ErrorKind::Transient => StoreError::Transient(cause()),
        ErrorKind::Offline => StoreError::Offline(cause()),
        ErrorKind::Throttled => StoreError::Throttled { retry_after: None },
        ErrorKind::Auth => StoreError::Auth(cause()),
        ErrorKind::Permission => StoreError::Permission(cause()),
        ErrorKind::Quota => StoreError::Quota(cause()),
        ErrorKind::TooLarge => StoreError::TooLarge { len: 0, len_max: None },
        ErrorKind::IncompleteListing => StoreError::IncompleteListing { reason: "chaos".to_owned() },
        ErrorKind::UntrustedListing => {
            StoreError::UntrustedListing(StoreKey::try_from("..").expect_err("`..` is no key"))
        }
        ErrorKind::Unsupported => StoreError::Unsupported { what: "do this: chaos" },
        _ => StoreError::Invalid { reason: format!("chaos: {kind}") },
    }
}

#[cfg(test)]
mod tests;
