//! What the tests of this folder share. Each of them uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "tests; each uses a part of this")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatkeep_store::{Opening, PutCondition, PutReceipt, Result, Store, StoreKey};
use chatkeep_store_cloud::{Pace, open, open_with};

/// Dead after a second with less than 8 KiB: the default, made 60 times quicker and stricter.
pub const QUICK: Pace = Pace { window: Duration::from_secs(1), bytes_min: 8 << 10 };

pub fn s3(endpoint: &str, place: &str, options: &[(&str, &str)]) -> Opening {
    s3_as(endpoint, place, options, "AKIDEXAMPLEAKIDEXAMP", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY")
}

pub fn s3_as(endpoint: &str, place: &str, options: &[(&str, &str)], id: &str, secret: &str) -> Opening {
    let mut opening = Opening::of_url(&format!("s3://{place}"));
    opening.options.insert("endpoint".to_owned(), endpoint.to_owned());
    for (name, value) in options {
        opening.options.insert((*name).to_owned(), (*value).to_owned());
    }
    opening.secrets.set("access_key_id", id.to_owned().into());
    opening.secrets.set("secret_access_key", secret.to_owned().into());
    opening
}

/// A store that relies on conditions, so that no probe is among its requests.
pub async fn trusting(endpoint: &str, place: &str) -> Arc<dyn Store> {
    open_with(&s3(endpoint, place, &[("conditions", "on")]), QUICK).await.unwrap()
}

pub async fn probing(endpoint: &str, place: &str) -> Arc<dyn Store> {
    open(&s3(endpoint, place, &[])).await.unwrap()
}

pub fn key(text: &str) -> StoreKey {
    StoreKey::try_from(text).unwrap()
}

pub async fn create(store: &Arc<dyn Store>, name: &str, body: impl Into<Bytes>) -> Result<PutReceipt> {
    store.put(&key(name), body.into(), PutCondition::CreateIfAbsent).await
}

pub async fn names(store: &Arc<dyn Store>, prefix: &str) -> Result<Vec<String>> {
    Ok(store.list(prefix).await?.into_iter().map(|object| object.key.to_string()).collect())
}

/// Bytes in which a piece that is lost or swapped shows.
pub fn pattern(len: usize) -> Bytes {
    (0..251_u8).cycle().take(len).collect::<Vec<_>>().into()
}
