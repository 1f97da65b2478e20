//! Every request goes through here: who may be asked, how long is waited, what was answered.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Context;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use chatkeep_store::{Result, StoreError};
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, IF_NONE_MATCH};
use http::{Method, StatusCode};
use hyper::body::Body as _;
use md5::{Digest as _, Md5};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};

use crate::answer::{Answer, Fault};
use crate::call::{Call, Wants};
use crate::page;
use crate::watchdog::{Download, Pace, Upload};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long what was sent may stay unacknowledged by the other machine: it is gone, whatever lies in the kernel.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(90);

/// Most of an error's body that is read, in bytes: theirs are below 2 KiB.
const ERROR_LEN_MAX: usize = 64 << 10;

/// Longest page of a listing, in bytes: 5000 names of Azure are about 5 MiB.
const PAGE_LEN_MAX: usize = 32 << 20;

static CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
static RETAIN_UNTIL: HeaderName = HeaderName::from_static("x-amz-object-lock-retain-until-date");

/// Why a request came to nothing, as `object_store` carries it around. The record of the call has it too.
#[derive(Debug, thiserror::Error)]
#[error("{0:?}")]
pub(crate) struct Failed(pub(crate) Fault);

/// Sends requests to one server and to no other.
#[derive(Debug)]
struct Line {
    client: reqwest::Client,
    authority: String,
    pace: Pace,
    with_md5: bool,
}

/// A client of the server at `authority`. `with_md5` adds the digest that S3 asks for where objects are locked.
pub(crate) fn client(authority: &str, pace: Pace, with_md5: bool) -> Result<HttpClient> {
    // only the first one counts, and whoever installed another before is a program of ours
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder()
        .user_agent(concat!("chatkeep/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_user_timeout(UNACKNOWLEDGED_MAX)
        .tcp_keepalive(Duration::from_secs(30))
        // a signature is for one host, and credentials are not for whom a server points at
        .redirect(reqwest::redirect::Policy::none())
        // nothing is read from the environment
        .no_proxy()
        .http1_only()
        .build()
        .map_err(|error| StoreError::Invalid { reason: format!("TLS cannot be set up: {error}") })?;
    Ok(HttpClient::new(Line { client, authority: authority.to_owned(), pace, with_md5 }))
}

/// Gives `object_store` a client of ours, whatever for: also what it would ask for credentials goes through it.
#[derive(Debug)]
pub(crate) struct Connector(pub(crate) HttpClient);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

#[async_trait]
impl HttpService for Line {
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let call = Call::current();
        call.begins();
        self.answered(&call, request).await.map_err(|fault| {
            let kind = match &fault {
                Fault::Broken(_) => HttpErrorKind::Request,
                // nothing that `object_store` should try again: whoever called us decides when
                _ => HttpErrorKind::Unknown,
            };
            call.failed(fault.clone());
            HttpError::new(kind, Failed(fault))
        })
    }
}

impl Line {
    async fn answered(
        &self,
        call: &Arc<Call>,
        request: HttpRequest,
    ) -> std::result::Result<HttpResponse, Fault> {
        let listing = call.wants() == Wants::Pages;
        let response = self.send(call, request).await?;
        let (mut parts, body) = response.into_parts();
        let mut download = Download::new(body, Arc::clone(call), self.pace);
        if parts.status.is_success() {
            let retain_until = parts.headers.get(&RETAIN_UNTIL).and_then(|value| value.to_str().ok());
            call.succeeded(parts.status.as_u16(), retain_until.map(str::to_owned));
            if !listing {
                return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(download)));
            }
            let body = read(&mut download, PAGE_LEN_MAX)
                .await?
                .ok_or_else(|| Fault::Listing("a page is longer than any can be".to_owned()))?;
            let page = page::read(&body).map_err(Fault::Listing)?;
            call.page(page).map_err(Fault::Listing)?;
            return Ok(HttpResponse::from_parts(parts, body.into()));
        }
        // of an error that does not end, or breaks off, the status has to do
        let body = read(&mut download, ERROR_LEN_MAX).await.ok().flatten().unwrap_or_default();
        let answer = Answer::read(parts.status.as_u16(), &parts.headers, &body);
        let passed_on = answer.is_hiccup() || (parts.status.is_client_error() && answer.status != 429);
        call.failed(Fault::Answer(answer.clone()));
        if passed_on {
            parts.headers.remove(CONTENT_LENGTH);
            return Ok(HttpResponse::from_parts(parts, body.into()));
        }
        Err(Fault::Answer(answer))
    }

    async fn send(
        &self,
        call: &Call,
        request: HttpRequest,
    ) -> std::result::Result<http::Response<reqwest::Body>, Fault> {
        let (mut parts, mut body) = request.into_parts();
        let asked = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
        if asked != self.authority {
            return Err(Fault::Refused(format!("`{asked}` is not asked: it is not the store")));
        }
        let pieces = pieces_of(&mut body);
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        if self.with_md5 && parts.method == Method::PUT {
            let mut md5 = Md5::new();
            for piece in &pieces {
                md5.update(piece);
            }
            let text = base64::engine::general_purpose::STANDARD.encode(md5.finalize());
            parts
                .headers
                .insert(&CONTENT_MD5, HeaderValue::from_str(&text).expect("base64 is a header value"));
        }
        let completes =
            parts.method == Method::POST && parts.uri.query().is_some_and(|q| q.contains("uploadId="));
        if call.wants() == Wants::ConditionAtEnd && completes {
            parts.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let url = parts.uri.to_string().parse().map_err(|_| Fault::Refused("no URL came out".to_owned()))?;
        let moved = Arc::new(AtomicU64::new(0));
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(match len {
            0 => reqwest::Body::from(Bytes::new()),
            _ => reqwest::Body::wrap(Upload::new(pieces, Arc::clone(&moved))),
        });
        tokio::select! {
            biased;
            answer = self.client.execute(request) => answer.map(Into::into).map_err(fault_of),
            () = self.pace.upload_is_dead(&moved, len) => Err(Fault::Stalled),
        }
    }
}

/// The parts of a body, which are all in memory already.
fn pieces_of(body: &mut object_store::client::HttpRequestBody) -> Vec<Bytes> {
    let mut context = Context::from_waker(std::task::Waker::noop());
    let mut pieces = Vec::new();
    while let std::task::Poll::Ready(Some(Ok(frame))) =
        std::pin::Pin::new(&mut *body).poll_frame(&mut context)
    {
        pieces.extend(frame.into_data().ok().filter(|piece| !piece.is_empty()));
    }
    pieces
}

/// Reads a body of at most `len_max` bytes; `None` if it is longer.
async fn read(body: &mut Download, len_max: usize) -> std::result::Result<Option<Bytes>, Fault> {
    let mut whole = Vec::new();
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await;
        match frame {
            None => return Ok(Some(whole.into())),
            Some(Ok(frame)) => whole.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(error)) => {
                let failed = error.source().and_then(|source| source.downcast_ref::<Failed>());
                return Err(failed.map_or(Fault::Stalled, |failed| failed.0.clone()));
            }
        }
        if whole.len() > len_max {
            return Ok(None);
        }
    }
}

/// What became of a request without an answer. The URL is left out: it can hold a token.
pub(crate) fn fault_of(error: reqwest::Error) -> Fault {
    let error = error.without_url();
    let mut unreachable = error.is_connect() || error.is_timeout();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        unreachable |= matches!(
            kind,
            Some(
                io::ErrorKind::TimedOut
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkDown
            )
        );
        cause = error.source();
    }
    if unreachable { Fault::Unreachable(text) } else { Fault::Broken(text) }
}

/// A request of our own, not sent again by anybody.
pub(crate) async fn ask(
    client: &HttpClient,
    call: &Arc<Call>,
    request: HttpRequest,
) -> std::result::Result<StatusCode, Fault> {
    let answer = call.run(client.execute(request)).await;
    match (answer, call.fault()) {
        (_, Some(fault)) => Err(fault),
        (Ok(response), None) => Ok(response.status()),
        (Err(error), None) => Err(Fault::Broken(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn nobody_but_the_store_is_asked_the_metadata_address_least_of_all() {
        let client = client("s3.example.org", Pace::default(), false).unwrap();
        let client = Connector(client).connect(&ClientOptions::new()).unwrap();
        for url in [
            "http://169.254.169.254/latest/api/token",
            "http://169.254.170.2/credentials",
            "http://metadata.google.internal/computeMetadata/v1/",
            "https://s3.example.org.evil.example/",
            "https://s3.example.org:444/",
        ] {
            let request = http::Request::get(url).body(Bytes::new().into()).unwrap();
            let call = Call::new(Wants::Nothing);
            call.run(client.execute(request)).await.unwrap_err();
            assert!(matches!(call.fault(), Some(Fault::Refused(_))), "{url}: {:?}", call.fault());
        }
    }
}
