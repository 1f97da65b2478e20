//! The `Store` trait: seven calls, and what each of them must hold.

use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Result, StoreError};
use crate::key::StoreKey;

/// A place that keeps whole objects.
///
/// - **Whole or absent.** An object is never partly visible, also when the store or the caller dies in a put.
/// - **Durable.** What a put acknowledged survives a power cut of whatever the store runs on.
/// - **Honest listings.** A listing is complete or an error; it never silently ends early.
/// - **Cancelling is safe.** Dropping a call's future leaves the call done or not done, never half done.
#[async_trait]
pub trait Store: Send + Sync {
    /// Stores one object.
    ///
    /// After [`Transient`](StoreError::Transient) and
    /// [`Offline`](StoreError::Offline) it may have happened all the same.
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt>;

    /// As [`put`](Store::put) with [`CreateIfAbsent`](PutCondition::CreateIfAbsent), of bytes that also lie in a file.
    ///
    /// The file has exactly these bytes, is on the disk, and is never written again by whoever made it. A store on the
    /// same file system may give it a second name instead of writing everything once more.
    async fn put_file(&self, key: &StoreKey, body: Bytes, file: &Path) -> Result<PutReceipt> {
        let _ = file;
        self.put(key, body, PutCondition::CreateIfAbsent).await
    }

    /// Reads an object, or the part of it in `range` (byte offsets, the end excluded).
    ///
    /// What lies past the end of the object is left out: the answer is then shorter, at worst empty. A range whose
    /// start lies behind its end is [`Invalid`](StoreError::Invalid).
    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes>;

    /// Says how long an object is.
    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta>;

    /// Names every object below `prefix` (see [`ListPrefix`](crate::ListPrefix)), sorted by key: complete, or an error.
    ///
    /// An object that is created or deleted during the call may or may not be named; every other one is.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>>;

    /// Deletes an object. Also succeeds when there is none.
    async fn delete(&self, key: &StoreKey) -> Result<()>;

    /// Locks an object against deletion and overwriting until a time in seconds since 1970, or refuses as
    /// [`Unsupported`](StoreError::Unsupported). An object that is locked for longer stays so; nothing shortens a lock.
    async fn retain(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        let _ = (key, until_s);
        Err(StoreError::Unsupported { what: "lock objects against deletion" })
    }

    /// Says how full the store is, or [`Unsupported`](StoreError::Unsupported).
    async fn usage(&self) -> Result<Usage>;

    /// What this store says it can do. The conformance suite looks whether that is so.
    fn capabilities(&self) -> Capabilities;
}

/// When a put may take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutCondition {
    /// Only if no object has the key; else [`AlreadyExists`](StoreError::AlreadyExists), and nothing changes.
    CreateIfAbsent,
    /// In any case; what was there is replaced.
    Overwrite,
}

/// The acknowledgement of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutReceipt {
    /// How many bytes the store says it holds now. A caller that gets another number than it sent must not believe it.
    pub len: u64,
}

/// What is known of an object without reading it. There is no time in it: stores' clocks order nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectMeta {
    /// Its name.
    pub key: StoreKey,
    /// Its length, in bytes.
    pub len: u64,
}

/// How full a store is, in bytes, as far as it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Used by the objects of this store.
    pub used: Option<u64>,
    /// Room in all, for us and others.
    pub total: Option<u64>,
    /// Room left for us.
    pub free: Option<u64>,
}

/// What a store can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// What [`PutCondition::CreateIfAbsent`] is worth.
    pub create: CreateGuarantee,
    /// When an object that was put can be read.
    pub read_after_write: Visibility,
    /// When an object that was put is listed, and a deleted one no longer.
    pub list_after_write: Visibility,
    /// Whether a range costs less than the whole object.
    pub range: bool,
    /// Whether deleting frees the room at once (`false`: there is a trash).
    pub delete_is_final: bool,
    /// Whether [`Store::usage`] works.
    pub usage: bool,
    /// Whether [`Store::retain`] works.
    pub retain: bool,
    /// The largest object, in bytes; `None` is: larger than any object of ours.
    pub object_len_max: Option<u64>,
    /// How many calls at once are useful.
    pub parallel: u16,
}

/// What a conditional create is worth when several ask at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateGuarantee {
    /// Exactly one of them wins.
    Atomic,
    /// One after another is told apart; at once, two can win.
    Advisory,
    /// The condition is not understood: the put is refused as unsupported.
    None,
}

/// When a change can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// By the time the call is acknowledged.
    Strong,
    /// Some time later.
    Eventual,
}

/// The part of an object of `len` bytes that `range` covers, as [`Store::get`] answers it.
pub fn clamp_range(range: &Range<u64>, len: u64) -> Result<Range<u64>> {
    if range.start > range.end {
        return Err(StoreError::Invalid { reason: format!("the range {range:?} ends before it starts") });
    }
    Ok(range.start.min(len)..range.end.min(len))
}
