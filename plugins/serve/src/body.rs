//! Bodies of requests: bounded, whole, and what their sender meant.

use bytes::Bytes;
use chatkeep_store::protocol::{JSON_LEN_MAX, content_digest};
use chatkeep_store::{Result, StoreError, StoreKey};
use http_body_util::{BodyExt as _, Limited};
use hyper::HeaderMap;
use hyper::body::{Body as _, Incoming};
use hyper::header::CONTENT_LENGTH;
use sha2::{Digest as _, Sha256};

/// Longest object that is taken, in bytes: far above any pack, and two of them fit in the memory a plugin is given.
pub(crate) const OBJECT_LEN_MAX: u64 = 256 << 20;
/// From this length on, hashing is no work for the thread that serves connections.
const HASHED_HERE_MAX: usize = 256 << 10;

/// Reads the body of a put: exactly as long as announced, and with the digest that was announced.
pub(crate) async fn object(key: &StoreKey, headers: &HeaderMap, body: Incoming) -> Result<Bytes> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let Some(len) = announced else {
        return Err(invalid("a put needs a content-length"));
    };
    if len > OBJECT_LEN_MAX {
        return Err(StoreError::TooLarge { len, len_max: Some(OBJECT_LEN_MAX) });
    }
    let body = body.collect().await.map_err(|error| StoreError::Transient(error.into()))?.to_bytes();
    if body.len() as u64 != len {
        return Err(StoreError::Corrupt { key: key.clone() });
    }
    match headers.get("content-digest") {
        None => Ok(body),
        Some(digest) if *digest == digest_of(body.clone()).await.as_str() => Ok(body),
        Some(_) => Err(StoreError::Corrupt { key: key.clone() }),
    }
}

/// Reads a JSON body. It may hold secrets: nothing of it is in an error, and buffers of the connection that held it are in a
/// process that nobody may look into.
pub(crate) async fn json<T: serde::de::DeserializeOwned>(body: Incoming) -> Result<T> {
    if body.size_hint().lower() > JSON_LEN_MAX as u64 {
        return Err(invalid("the body is too long"));
    }
    let body =
        Limited::new(body, JSON_LEN_MAX).collect().await.map_err(|_| invalid("the body is too long"))?;
    // the error of the parser may quote what it read
    serde_json::from_slice(&body.to_bytes()).map_err(|_| invalid("the body is not the JSON of this request"))
}

async fn digest_of(body: Bytes) -> String {
    let hash = |body: &[u8]| content_digest(&Sha256::digest(body).into());
    if body.len() <= HASHED_HERE_MAX {
        return hash(&body);
    }
    tokio::task::spawn_blocking(move || hash(&body)).await.expect("hashing does not panic")
}

pub(crate) fn invalid(reason: &str) -> StoreError {
    StoreError::Invalid { reason: reason.to_owned() }
}
