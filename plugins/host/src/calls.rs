//! The calls of a store, as requests of protocol 1.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::protocol::{RETAIN_UNTIL, UsageAnswer, content_digest};
use chatkeep_store::{
    Capabilities, CreateGuarantee, ListPrefix, ObjectMeta, PutCondition, PutReceipt, Result, Store,
    StoreError, StoreKey, Usage, clamp_range,
};
use hyper::header::{CONTENT_LENGTH, IF_NONE_MATCH, RANGE};
use hyper::{Method, StatusCode};
use sha2::{Digest as _, Sha256};

use crate::meter::Kind;
use crate::progress::Progress;
use crate::store::{Call, PluginStore};
use crate::take::{Json, Length, Listing, Nothing, OBJECT_LEN_MAX, Object};
use crate::wire::{Body, len_header, metered, whole};

/// From this length on, hashing is no work for the threads that wait for others.
const HASHED_HERE_MAX: usize = 256 << 10;

#[async_trait]
impl Store for PluginStore {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        // what the store cannot do is known once it is open
        drop(self.up().await?);
        let (caps, len) = (self.caps(), body.len() as u64);
        if condition == PutCondition::CreateIfAbsent && caps.create == CreateGuarantee::None {
            // a store that does not know the condition would replace what is there
            return Err(StoreError::Unsupported { what: "create an object only if there is none" });
        }
        if let Some(len_max) = caps.object_len_max.filter(|max| *max < len) {
            return Err(StoreError::TooLarge { len, len_max: Some(len_max) });
        }
        let mut call = self.about(Kind::Put, Method::PUT, key);
        call.len = len;
        call.answer = self.patience.for_object(Some(len));
        call.request = call
            .request
            .header(CONTENT_LENGTH, len_header(body.len()))
            .header("content-digest", digest_of(body.clone()).await);
        if condition == PutCondition::CreateIfAbsent {
            call.request = call.request.header(IF_NONE_MATCH, "*");
        }
        let send = |progress: &Arc<Progress>| {
            if body.is_empty() {
                return whole(Bytes::new());
            }
            metered(body.clone(), Arc::clone(&self.control), Arc::clone(progress))
        };
        self.call(call, send, Nothing(StatusCode::CREATED)).await?;
        Ok(PutReceipt { len })
    }

    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        let Some(range) = range else {
            let mut call = self.about(Kind::Get, Method::GET, key);
            call.answer = self.patience.for_object(None);
            return self.call(call, no_body, Object(None)).await;
        };
        clamp_range(&range, 0)?;
        if range.is_empty() {
            // a range in HTTP has at least one byte; what is missing must be told all the same
            self.head(key).await?;
            return Ok(Bytes::new());
        }
        let mut call = self.about(Kind::Get, Method::GET, key);
        let len = (range.end - range.start).min(self.patience.unknown_len.max(OBJECT_LEN_MAX));
        call.answer = self.patience.for_object(Some(len).filter(|len| *len < OBJECT_LEN_MAX));
        call.request = call.request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        self.call(call, no_body, Object(Some(range))).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        let call = self.about(Kind::Head, Method::HEAD, key);
        let len = self.call(call, no_body, Length).await?;
        Ok(ObjectMeta { key: key.clone(), len })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let prefix = ListPrefix::parse(prefix)?;
        let mut call = self.small(Kind::List, Method::GET, &format!("/l/{}", prefix.as_str()));
        call.answer = self.patience.listing;
        self.call(call, no_body, Listing(prefix)).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<()> {
        let call = self.about(Kind::Delete, Method::DELETE, key);
        self.call(call, no_body, Nothing(StatusCode::NO_CONTENT)).await
    }

    async fn retain(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        drop(self.up().await?);
        if !self.caps().retain {
            return Err(StoreError::Unsupported { what: "lock objects against deletion" });
        }
        let mut call = self.about(Kind::Other, Method::PATCH, key);
        call.request = call.request.header(RETAIN_UNTIL, until_s);
        self.call(call, no_body, Nothing(StatusCode::NO_CONTENT)).await
    }

    async fn usage(&self) -> Result<Usage> {
        drop(self.up().await?);
        if !self.caps().usage {
            return Err(StoreError::Unsupported { what: "say how full it is" });
        }
        let call = self.small(Kind::Other, Method::GET, "/usage");
        let body = self.call(call, no_body, Json).await?;
        let usage: UsageAnswer = serde_json::from_slice(&body)
            .map_err(|_| self.lie("what it answers to GET /usage is no answer"))?;
        Ok(usage.into())
    }

    /// Those of the last time the store was opened; the least before that.
    fn capabilities(&self) -> Capabilities {
        self.caps()
    }
}

impl PluginStore {
    fn about<'a>(&self, kind: Kind, method: Method, key: &'a StoreKey) -> Call<'a> {
        Call { key: Some(key), ..self.small(kind, method, &format!("/o/{key}")) }
    }
}

fn no_body(_: &Arc<Progress>) -> Body {
    whole(Bytes::new())
}

async fn digest_of(body: Bytes) -> String {
    let hash = |body: &[u8]| content_digest(&Sha256::digest(body).into());
    if body.len() <= HASHED_HERE_MAX {
        return hash(&body);
    }
    tokio::task::spawn_blocking(move || hash(&body)).await.expect("hashing does not panic")
}
