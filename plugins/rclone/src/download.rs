//! Objects come back: streamed, or, where that fails, copied to a file, for only then rclone says why.

use std::ops::Range;

use bytes::Bytes;
use chatkeep_store::{Result, StoreError, StoreKey, clamp_range};
use serde::de::IgnoredAny;
use serde_json::json;

use crate::backend::Backend;
use crate::child::{LANDED, read_landed};
use crate::control::Failure;
use crate::errors::Asked;
use crate::session::Session;
use crate::upload::not_text;

pub(crate) async fn get(
    session: &Session,
    backend: &Backend,
    key: &StoreKey,
    range: Option<Range<u64>>,
) -> Result<Bytes> {
    let Some(range) = range else { return whole(session, key).await };
    if clamp_range(&range, u64::MAX)?.is_empty() {
        // of nothing, but it has to exist
        return exists(session, key).await.map(|_| Bytes::new());
    }
    if !backend.ranges {
        let body = whole(session, key).await?;
        let part = clamp_range(&range, body.len() as u64)?;
        return Ok(body.slice(part.start as usize..part.end as usize));
    }
    part(session, key, range).await
}

async fn whole(session: &Session, key: &StoreKey) -> Result<Bytes> {
    let rclone = session.rclone().await?;
    match rclone.control.read(&session.spec, key.as_str(), None).await {
        Ok(fetched) => Ok(fetched.body),
        Err(failure) if failure.is_missing() => Err(session.sorter.sort(failure, Asked::Read(key))),
        Err(_) => copy_down(session, key).await,
    }
}

async fn part(session: &Session, key: &StoreKey, range: Range<u64>) -> Result<Bytes> {
    let rclone = session.rclone().await?;
    match rclone.control.read(&session.spec, key.as_str(), Some(range.clone())).await {
        Ok(fetched) => {
            let wanted = clamp_range(&range, fetched.object_len.unwrap_or(u64::MAX))?;
            if wanted.is_empty() {
                // of a range behind the end rclone makes something up
                return Ok(Bytes::new());
            }
            let is_all =
                fetched.object_len.is_some() && fetched.body.len() as u64 == wanted.end - wanted.start;
            if is_all {
                Ok(fetched.body)
            } else {
                Err(StoreError::Transient("a range came back with another length".into()))
            }
        }
        Err(failure) if failure.is_missing() => Err(session.sorter.sort(failure, Asked::Read(key))),
        Err(_) => {
            // a range behind the end, or a service that fails
            let len = exists(session, key).await?;
            let wanted = clamp_range(&range, len)?;
            if wanted.is_empty() {
                return Ok(Bytes::new());
            }
            let body = copy_down(session, key).await?;
            let wanted = clamp_range(&wanted, body.len() as u64)?;
            Ok(body.slice(wanted.start as usize..wanted.end as usize))
        }
    }
}

pub(crate) async fn exists(session: &Session, key: &StoreKey) -> Result<u64> {
    session.len_of(key.as_str()).await?.ok_or_else(|| StoreError::NotFound { key: key.clone() })
}

/// rclone answers "not found" for an object that it finds and cannot open, be it that the service is full of requests.
/// Of a copy it tells the truth.
async fn copy_down(session: &Session, key: &StoreKey) -> Result<Bytes> {
    let rclone = session.rclone().await?;
    let landing = rclone.landing().await?;
    let arguments = json!({
        "srcFs": session.spec,
        "srcRemote": key.as_str(),
        "dstFs": landing.path().to_str().ok_or_else(not_text)?,
        "dstRemote": LANDED,
    });
    let copied: Result<IgnoredAny, Failure> = rclone.control.call("operations/copyfile", &arguments).await;
    copied.map_err(|failure| session.sorter.sort(failure, Asked::Read(key)))?;
    read_landed(landing).await
}
