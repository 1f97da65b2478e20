//! The `Store` over a bucket.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chatkeep_store::listing::ListingCheck;
use chatkeep_store::{
    Capabilities, CreateGuarantee, InvalidKey, ListPrefix, ObjectMeta, PutCondition, PutReceipt, Result,
    Store, StoreError, StoreKey, Usage, Visibility, clamp_range,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use object_store::path::Path;
use object_store::{Attribute, GetOptions, GetRange, GetResult, PutMode, PutOptions};

use crate::answer::{Asked, Fault};
use crate::call::{Call, Wants};
use crate::conditions::{Conditions, PROBE, Stance, probe};
use crate::http::ask;
use crate::options::Trust;
use crate::service::{Service, Spoken};

/// Objects up to here go up in one request, which is all or nothing.
pub(crate) const ONE_REQUEST_LEN_MAX: usize = 64 << 20;

/// No object of any service is as long; offsets beyond are kept away from servers that count in 63 bits.
const OFFSET_MAX: u64 = 1 << 46;

/// An `s3:`, `gs:` or `az:` store.
pub(crate) struct CloudStore {
    pub(crate) service: Service,
    conditions: Conditions,
    /// A server answered a range with the whole object.
    ignores_ranges: AtomicBool,
}

impl CloudStore {
    pub(crate) fn new(service: Service) -> Self {
        let trust = match &service.kind {
            Spoken::S3 { conditions, .. } => *conditions,
            // part of the protocols from their beginning, and nobody imitates these
            Spoken::Gs | Spoken::Az { .. } => Trust::On,
        };
        Self { service, conditions: Conditions::new(trust), ignores_ranges: AtomicBool::new(false) }
    }

    /// The name of an object within the bucket.
    pub(crate) fn path(&self, key: &StoreKey) -> Path {
        let prefix = &self.service.prefix;
        let name = if prefix.is_empty() { key.to_string() } else { format!("{prefix}/{key}") };
        Path::from(name)
    }

    pub(crate) fn asked<'a>(&'a self, key: Option<&'a StoreKey>, len: usize) -> Asked<'a> {
        Asked { bucket: &self.service.bucket, key, len: len as u64 }
    }

    fn put_options(&self, mode: PutMode) -> PutOptions {
        let mut options = PutOptions { mode, ..PutOptions::default() };
        if let Some(class) = self.storage_class() {
            options.attributes.insert(Attribute::StorageClass, class.to_owned().into());
        }
        options
    }

    pub(crate) fn storage_class(&self) -> Option<&str> {
        match &self.service.kind {
            Spoken::S3 { storage_class, .. } => storage_class.as_deref(),
            Spoken::Gs | Spoken::Az { .. } => None,
        }
    }

    /// One request with the whole object. Says whether more than one was sent.
    async fn put_once(&self, key: &StoreKey, body: Bytes, mode: PutMode) -> Result<(), (StoreError, bool)> {
        let call = Call::new(Wants::Nothing);
        let asked = self.asked(Some(key), body.len());
        let path = self.path(key);
        let put = self.service.objects.put_opts(&path, body.into(), self.put_options(mode));
        match call.run(put).await {
            Ok(_) => Ok(()),
            // it is stored; what is missing is an ETag, which nobody here needs
            Err(_) if call.fault().is_none() && (200..300).contains(&call.status()) => Ok(()),
            Err(error) => Err((error_of(&call, error, asked), call.was_retried())),
        }
    }

    async fn create(&self, key: &StoreKey, body: Bytes) -> Result<()> {
        let probing = probe(|key| async move {
            self.put_once(&key, Bytes::new(), PutMode::Create).await.map_err(|(error, _)| error)
        });
        let stance = self.conditions.stance(self.probed(probing)).await?;
        if stance != Stance::Relied && self.is_there(key).await? {
            return Err(StoreError::AlreadyExists { key: key.clone() });
        }
        if self.in_parts(&body) {
            return self.put_in_parts(key, body, stance != Stance::Refused).await;
        }
        if stance == Stance::Refused {
            return self.put_once(key, body, PutMode::Overwrite).await.map_err(|(error, _)| error);
        }
        match self.put_once(key, body.clone(), PutMode::Create).await {
            Err((StoreError::AlreadyExists { .. }, true)) => self.ours_or_exists(key, &body).await,
            Err((StoreError::Unsupported { .. }, _)) => {
                self.conditions.were_refused();
                if self.is_there(key).await? {
                    return Err(StoreError::AlreadyExists { key: key.clone() });
                }
                self.put_once(key, body, PutMode::Overwrite).await.map_err(|(error, _)| error)
            }
            other => other.map_err(|(error, _)| error),
        }
    }

    /// Tries the server, and takes away what that left; who may not delete leaves one empty object.
    async fn probed(&self, probing: impl Future<Output = Result<Stance>>) -> Result<Stance> {
        let stance = probing.await?;
        tracing::info!(?stance, "conditional puts were tried");
        let key = StoreKey::try_from(PROBE)?;
        if let Err(error) = self.delete(&key).await {
            tracing::debug!(kind = %error.kind(), "the object of the trial stays");
        }
        Ok(stance)
    }

    /// Whether an object exists, where it may be asked: credentials that can only write cannot know.
    pub(crate) async fn is_there(&self, key: &StoreKey) -> Result<bool> {
        match self.head(key).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. } | StoreError::Permission(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// After "exists" to a request that was sent again: the first one may have stored it.
    pub(crate) async fn ours_or_exists(&self, key: &StoreKey, body: &Bytes) -> Result<()> {
        let exists = || StoreError::AlreadyExists { key: key.clone() };
        match self.head(key).await {
            Ok(meta) if meta.len == body.len() as u64 => {}
            Ok(_) | Err(StoreError::Permission(_)) => return Err(exists()),
            Err(error) => return Err(error),
        }
        match self.get(key, None).await {
            Ok(there) if there == *body => Ok(()),
            Ok(_) | Err(StoreError::Permission(_)) => Err(exists()),
            Err(error) => Err(error),
        }
    }

    /// Reads an object, or a part that is neither empty nor absurdly far out.
    async fn fetch(
        &self,
        key: &StoreKey,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, (StoreError, Arc<Call>)> {
        let call = Call::new(Wants::Nothing);
        let path = self.path(key);
        let range = range.map(GetRange::Bounded);
        let options = GetOptions { range, ..GetOptions::default() };
        let reading = async {
            let got = self.service.objects.get_opts(&path, options).await?;
            collect(got).await
        };
        match call.run(reading).await {
            Ok(Some(body)) => Ok(body),
            Ok(None) => Err((StoreError::Transient("the object broke off".into()), call)),
            Err(error) => Err((error_of(&call, error, self.asked(Some(key), 0)), call)),
        }
    }

    async fn cut_from_whole(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes> {
        let whole = self.fetch(key, None).await.map_err(|(error, _)| error)?;
        let part = clamp_range(&range, whole.len() as u64)?;
        Ok(whole.slice(part.start as usize..part.end as usize))
    }

    /// An answer to HEAD has no body, so no name of an error: a missing bucket looks like a missing object, a wrong key
    /// like a lack of permission. The first byte tells.
    async fn head_by_reading(&self, key: &StoreKey) -> Result<ObjectMeta> {
        let meta = |len| Ok(ObjectMeta { key: key.clone(), len });
        let call = Call::new(Wants::Nothing);
        let path = self.path(key);
        let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
        match call.run(self.service.objects.get_opts(&path, options)).await {
            Ok(got) => meta(got.meta.size),
            Err(_) if call.answer().is_some_and(|answer| answer.status == 416) => meta(0),
            Err(error) => Err(error_of(&call, error, self.asked(Some(key), 0))),
        }
    }

    /// Names within the bucket become keys; what is not below the prefix spoils the listing.
    fn check_listing(&self, prefix: &str, found: &[(String, u64)]) -> Result<Vec<ObjectMeta>> {
        let mut check = ListingCheck::new(prefix)?;
        let ours = match self.service.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let mut named = 0;
        for (name, len) in found {
            // consoles make an empty object of this name for a folder
            if *name == ours && *len == 0 {
                continue;
            }
            let Some(below) = name.strip_prefix(&ours) else {
                let shown = name.chars().take(60).flat_map(char::escape_debug).collect();
                let reason = "it does not lie below what was listed";
                return Err(StoreError::UntrustedListing(InvalidKey { shown, reason }));
            };
            check.push(below, *len)?;
            named += 1;
        }
        check.finish(Some(named))
    }
}

/// The error of a call: what was answered, rather than what `object_store` makes of it.
pub(crate) fn error_of(call: &Call, error: object_store::Error, asked: Asked<'_>) -> StoreError {
    match call.fault() {
        Some(fault) => fault.error(asked),
        // an answer without a fault that could not be understood: another range than asked for
        None => StoreError::Transient(error.into()),
    }
}

/// Reads a body to the end that was announced; `None` if it came earlier.
async fn collect(got: GetResult) -> object_store::Result<Option<Bytes>> {
    let expected = got.range.end - got.range.start;
    // what a server announces is not set aside before it is there
    let mut body = BytesMut::with_capacity(expected.min(ONE_REQUEST_LEN_MAX as u64) as usize);
    let mut stream = got.into_stream();
    while let Some(piece) = stream.try_next().await? {
        body.extend_from_slice(&piece);
    }
    Ok((body.len() as u64 == expected).then(|| body.freeze()))
}

#[async_trait]
impl Store for CloudStore {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        let len = body.len() as u64;
        match condition {
            PutCondition::CreateIfAbsent => self.create(key, body).await?,
            PutCondition::Overwrite if self.in_parts(&body) => self.put_in_parts(key, body, false).await?,
            PutCondition::Overwrite => {
                self.put_once(key, body, PutMode::Overwrite).await.map_err(|(error, _)| error)?;
            }
        }
        Ok(PutReceipt { len })
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        let Some(range) = range else { return self.fetch(key, None).await.map_err(|(error, _)| error) };
        clamp_range(&range, u64::MAX)?;
        if range.is_empty() || range.start >= OFFSET_MAX {
            // nothing to read, but the object has to be there
            self.head(key).await?;
            return Ok(Bytes::new());
        }
        if self.ignores_ranges.load(Ordering::Relaxed) {
            return self.cut_from_whole(key, range).await;
        }
        let asked = range.start..range.end.min(OFFSET_MAX);
        match self.fetch(key, Some(asked)).await {
            Ok(part) => Ok(part),
            Err((_, call)) if call.fault().is_none() && call.status() == 200 => {
                self.ignores_ranges.store(true, Ordering::Relaxed);
                self.cut_from_whole(key, range).await
            }
            // behind the end S3 answers 416; Azurite sends a part that was not asked for
            Err((error, call))
                if call.status() == 416 || (call.fault().is_none() && call.status() == 206) =>
            {
                match self.head(key).await?.len {
                    len if len <= range.start => Ok(Bytes::new()),
                    _ => Err(error),
                }
            }
            Err((error, _)) => Err(error),
        }
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        let call = Call::new(Wants::Nothing);
        let path = self.path(key);
        let options = GetOptions { head: true, ..GetOptions::default() };
        match call.run(self.service.objects.get_opts(&path, options)).await {
            Ok(got) => Ok(ObjectMeta { key: key.clone(), len: got.meta.size }),
            Err(error) => match call.answer() {
                Some(answer) if matches!(answer.status, 400 | 403 | 404) && answer.code.is_empty() => {
                    self.head_by_reading(key).await
                }
                _ => Err(error_of(&call, error, self.asked(Some(key), 0))),
            },
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let below = ListPrefix::parse(prefix)?;
        let whole = match (self.service.prefix.as_str(), below.as_str()) {
            ("", "") => None,
            ("", below) => Some(Path::from(below)),
            (ours, "") => Some(Path::from(ours)),
            (ours, below) => Some(Path::from(format!("{ours}/{below}"))),
        };
        let call = Call::new(Wants::Pages);
        let listing = self.service.objects.list(whole.as_ref());
        let driven = call.run(listing.try_for_each(|_| std::future::ready(Ok(())))).await;
        let incomplete = |reason| StoreError::IncompleteListing { reason };
        if let (Err(error), Some(_)) = (&driven, call.fault()) {
            let kind = call.fault().unwrap_or(Fault::Listing(error.to_string()));
            return Err(kind.error(self.asked(None, 0)));
        }
        match (driven, call.objects()) {
            (Ok(()), Ok(found)) => self.check_listing(prefix, &found),
            // `object_store` stumbles over a name that is no path; what it is is said here
            (Err(error), found) => {
                self.check_listing(prefix, &found.unwrap_or_default())?;
                Err(incomplete(error.to_string()))
            }
            (Ok(()), Err(reason)) => Err(incomplete(reason)),
        }
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        self.refuse_if_locked(key).await?;
        let call = Call::new(Wants::Nothing);
        let asked = self.asked(Some(key), 0);
        let path = self.path(key);
        let done = if let Spoken::Az { .. } = self.service.kind {
            // `object_store` deletes in batches, which fewer signatures permit and fewer servers know
            let request = self.service.request(Method::DELETE, path.as_ref(), "", Bytes::new())?;
            ask(&self.service.http, &call, request).await.map(|_| ()).map_err(|fault| fault.error(asked))
        } else {
            let one = stream::iter([Ok(path)]).boxed();
            let deleting =
                self.service.objects.delete_stream(one).try_for_each(|_| std::future::ready(Ok(())));
            call.run(deleting).await.map_err(|error| error_of(&call, error, asked))
        };
        match done {
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    async fn retain(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        self.lock(key, until_s).await
    }

    async fn usage(&self) -> Result<Usage> {
        Err(StoreError::Unsupported { what: "say how full it is" })
    }

    fn capabilities(&self) -> Capabilities {
        let create: CreateGuarantee = self.conditions.guarantee();
        Capabilities {
            create,
            read_after_write: Visibility::Strong,
            list_after_write: Visibility::Strong,
            range: !self.ignores_ranges.load(Ordering::Relaxed),
            delete_is_final: true,
            usage: false,
            retain: self.retain_mode().is_some(),
            object_len_max: None,
            parallel: self.service.parallel,
        }
    }
}
