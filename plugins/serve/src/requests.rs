//! The requests of protocol 1, one function each.

use std::ops::Range;
use std::sync::Arc;

use chatkeep_store::protocol::{
    AuthRequest, OpenAnswer, OpenRequest, PROTOCOL, RETAIN_UNTIL, SECRETS_CHANGED, UsageAnswer,
};
use chatkeep_store::{Opening, PutCondition, Result, StoreError, StoreKey};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT_RANGES, CONTENT_RANGE, HeaderValue, IF_MATCH, IF_NONE_MATCH, RANGE};
use hyper::{HeaderMap, Method, Request, StatusCode};

use crate::answers::{Answer, answer, json, length, listing, problem};
use crate::body::{self, invalid};
use crate::opener::Opened;
use crate::server::{Current, Plugin};

/// Answers one request. Whatever goes wrong is an answer, too.
pub(crate) async fn respond(plugin: &Plugin, request: Request<Incoming>) -> Answer {
    let before = plugin.current();
    let mut answer = call(plugin, before, request).await.unwrap_or_else(|error| problem(&error));
    if plugin.current().is_some_and(|current| current.opened.secrets_changed()) {
        answer.headers_mut().insert(SECRETS_CHANGED, HeaderValue::from_static("1"));
    }
    answer
}

async fn call(plugin: &Plugin, current: Option<Current>, request: Request<Incoming>) -> Result<Answer> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if head.method == Method::POST && path == "/open" {
        return open(plugin, body::json(body).await?).await;
    }
    let current = current.ok_or_else(|| invalid("the store is not open: the first request is POST /open"))?;
    match (head.method.as_str(), path) {
        (method, path) if path.starts_with("/o/") => {
            let key = StoreKey::try_from(&path["/o/".len()..])?;
            if current.read_only && ["PUT", "DELETE", "PATCH"].contains(&method) {
                return Err(StoreError::Permission("the store was opened for reading only".into()));
            }
            object(&current, method, &key, &head.headers, body).await
        }
        ("GET", path) if path.starts_with("/l/") => {
            Ok(listing(current.opened.store().list(&path["/l/".len()..]).await?))
        }
        ("GET", "/usage") => Ok(json(&UsageAnswer::from(current.opened.store().usage().await?))),
        ("POST", "/auth") => {
            let step: AuthRequest = body::json(body).await?;
            Ok(json(&current.opened.sign_in(step).await?))
        }
        ("GET", "/secrets") => Ok(json(&current.opened.renewed_secrets())),
        _ => Err(invalid("there is no such request in protocol 1")),
    }
}

async fn open(plugin: &Plugin, request: OpenRequest) -> Result<Answer> {
    if !request.protocol.contains(&PROTOCOL) {
        let reason = format!("this plugin speaks protocol {PROTOCOL} only");
        return Err(StoreError::Invalid { reason });
    }
    let read_only = request.read_only;
    let opening = Opening { url: request.url, options: request.options, secrets: request.secrets, read_only };
    let opened: Arc<dyn Opened> = plugin.opener.open(opening).await?.into();
    let caps = opened.store().capabilities().into();
    plugin.replace(Current { opened, read_only });
    let (name, version) = (plugin.name.to_owned(), plugin.version.to_owned());
    Ok(json(&OpenAnswer { protocol: PROTOCOL, name, version, caps }))
}

async fn object(
    current: &Current,
    method: &str,
    key: &StoreKey,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Answer> {
    let store = current.opened.store();
    match method {
        "PUT" => {
            let condition = put_condition(headers)?;
            let body = body::object(key, headers, body).await?;
            let len = body.len() as u64;
            let receipt = store.put(key, body, condition).await?;
            if receipt.len != len {
                return Err(StoreError::Corrupt { key: key.clone() });
            }
            Ok(answer(StatusCode::CREATED, ""))
        }
        "GET" => match headers.get(RANGE) {
            None => Ok(with_ranges(answer(StatusCode::OK, store.get(key, None).await?))),
            Some(range) => {
                let range = parse_range(range)?;
                let start = range.start;
                Ok(part(start, store.get(key, Some(range)).await?))
            }
        },
        "HEAD" => Ok(length(store.head(key).await?.len)),
        "DELETE" => {
            store.delete(key).await?;
            Ok(answer(StatusCode::NO_CONTENT, ""))
        }
        "PATCH" => {
            let until = headers.get(RETAIN_UNTIL).and_then(|value| value.to_str().ok()?.parse().ok());
            let until =
                until.ok_or_else(|| invalid("a patch needs store-retain-until, in seconds since 1970"))?;
            store.retain(key, until).await?;
            Ok(answer(StatusCode::NO_CONTENT, ""))
        }
        _ => Err(invalid("objects have PUT, GET, HEAD, DELETE and PATCH")),
    }
}

fn put_condition(headers: &HeaderMap) -> Result<PutCondition> {
    match headers.get(IF_NONE_MATCH) {
        Some(any) if any == "*" => Ok(PutCondition::CreateIfAbsent),
        None if !headers.contains_key(IF_MATCH) => Ok(PutCondition::Overwrite),
        _ => Err(StoreError::Unsupported { what: "put on another condition than `if-none-match: *`" }),
    }
}

/// Reads `bytes=FIRST-LAST` or `bytes=FIRST-`.
fn parse_range(header: &HeaderValue) -> Result<Range<u64>> {
    let parsed = || {
        let (first, last) = header.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { u64::MAX } else { last.parse().ok()? };
        let first = first.parse().ok()?;
        (first <= last).then_some(first..last.saturating_add(1))
    };
    parsed().ok_or_else(|| invalid("a range is `bytes=FIRST-LAST`"))
}

/// A part that begins at `start`. How long the whole is would be another request to the store, so it is not said.
fn part(start: u64, body: Bytes) -> Answer {
    let Some(last) = (body.len() as u64).checked_sub(1).map(|last| start + last) else {
        return answer(StatusCode::RANGE_NOT_SATISFIABLE, "");
    };
    let mut answer = with_ranges(answer(StatusCode::PARTIAL_CONTENT, body));
    let range = HeaderValue::try_from(format!("bytes {start}-{last}/*")).expect("digits are a header");
    answer.headers_mut().insert(CONTENT_RANGE, range);
    answer
}

fn with_ranges(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn range(text: &'static str) -> Option<Range<u64>> {
        parse_range(&HeaderValue::from_static(text)).ok()
    }

    #[test]
    fn a_range_is_read_as_it_is_written_in_http() {
        assert_eq!(range("bytes=0-0"), Some(0..1));
        assert_eq!(range("bytes=5-"), Some(5..u64::MAX));
        assert_eq!(range("bytes=18446744073709551615-18446744073709551615"), Some(u64::MAX..u64::MAX));
        for text in ["bytes=2-1", "bytes=-5", "bytes=0-1,3-4", "items=0-1", "bytes=a-b", "bytes=", ""] {
            assert_eq!(range(text), None, "{text}");
        }
    }
}
