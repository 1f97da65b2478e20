//! HTTP/1.1 over TLS: `POST /v1/call` for clients, `GET /` for people. Logs no addresses and no accounts.
//!
//! What is asked is routed by axum; connections are accepted here, because each has a slot, a handshake with a time limit
//! and an end.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use chatkeep_vault_protocol::Identity;
use chatkeep_vault_protocol::limits::REQUEST_LEN_MAX;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::vault::{Unanswered, Vault};

/// A client that is slower than this to finish the handshake, or to send its headers, or its body, is cut off.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest life of a connection: a client needs one second of it.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);
/// After the signal to stop, connections get so long to finish what they do.
const GRACE: Duration = Duration::from_secs(10);

/// What clients and people ask.
pub fn routes(vault: Arc<Vault>) -> Router {
    Router::new()
        .route("/v1/call", post(call))
        .route("/", get(page))
        .fallback((StatusCode::NOT_FOUND, "POST /v1/call or GET /"))
        .layer(axum::middleware::map_response(keep_nothing))
        .with_state(vault)
}

/// What the operator's Prometheus asks, on a listener of its own. `clients` are the connections of the other one.
pub fn metrics_routes(vault: Arc<Vault>, clients: Slots) -> Router {
    let metrics = move || {
        let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
        let text = vault.metrics(clients.taken());
        async move { (kind, text) }
    };
    Router::new().route("/metrics", get(metrics)).fallback((StatusCode::NOT_FOUND, "GET /metrics"))
}

async fn call(State(vault): State<Arc<Vault>>, body: Body) -> Response {
    match tokio::time::timeout(PATIENCE, to_bytes(body, REQUEST_LEN_MAX)).await {
        Ok(Ok(request)) => match vault.answer(request.to_vec()).await {
            Ok(answer) => ([(header::CONTENT_TYPE, "application/cbor")], answer).into_response(),
            Err(unanswered) => no_answer(unanswered),
        },
        Ok(Err(_)) => (StatusCode::PAYLOAD_TOO_LARGE, "the request is too long").into_response(),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request is too slow").into_response(),
    }
}

/// Unsigned: clients take it as a vault that cannot be reached, and send the same bytes again.
fn no_answer(unanswered: Unanswered) -> Response {
    let retry_after = [(header::RETRY_AFTER, "1")];
    (StatusCode::SERVICE_UNAVAILABLE, retry_after, unanswered.to_string()).into_response()
}

/// For people; programs ask `info`, whose answer is signed.
async fn page(State(vault): State<Arc<Vault>>) -> String {
    let info = vault.info();
    let mut page = format!(
        "{}\nidentity: {}\nhsm: {}\nanchor: {}\nstore: {}\nsuites: {:?}\nattempts: {}\ndelays (s): {:?}\n",
        info.software,
        Identity(vault.identity()),
        vault.hsm(),
        info.anchor,
        info.store,
        info.suites,
        info.attempts_max,
        info.delays_s
    );
    writeln!(page, "failures in a lifetime: {}", info.lifetime_failures_max).expect("a string takes text");
    if let Some(limit) = vault.anchor_limit() {
        writeln!(page, "the anchor ({}): {limit}", info.anchor).expect("a string takes text");
    }
    if let Some(cell) = vault.cell() {
        writeln!(page, "accounts: {cell}").expect("a string takes text");
    }
    if info.insecure_dev {
        page.push_str("insecure_dev: started for development only, not for a real backup.\n");
    }
    page
}

async fn keep_nothing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// So many connections at the same time.
#[derive(Clone)]
pub struct Slots {
    free: Arc<Semaphore>,
    all: usize,
    open: Arc<AtomicUsize>,
}

/// One of them.
struct Slot {
    _permit: OwnedSemaphorePermit,
    open: Arc<AtomicUsize>,
}

impl Slots {
    /// `all` of them, free.
    pub fn new(all: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(all)), all, open: Arc::default() }
    }

    /// Connections that are open.
    pub fn taken(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn take(&self, permit: OwnedSemaphorePermit) -> Slot {
        self.open.fetch_add(1, Ordering::Relaxed);
        Slot { _permit: permit, open: self.open.clone() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves `routes` until `stop` becomes true, then lets running requests finish. Without `tls` in the clear.
pub async fn serve(
    listener: TcpListener,
    tls: Option<rustls::ServerConfig>,
    routes: Router,
    slots: Slots,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
    let stopped = stop.clone();
    loop {
        let permit = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            permit = slots.free.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let stream = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // out of descriptors, most likely: waiting is all that helps
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let slot = slots.take(permit);
        let (acceptor, routes, stopped) = (acceptor.clone(), routes.clone(), stopped.clone());
        tokio::spawn(async move {
            let served = connection(stream, acceptor, routes, stopped);
            if tokio::time::timeout(CONNECTION_LIFETIME, served).await.is_err() {
                tracing::debug!("a connection was open for too long");
            }
            drop(slot);
        });
    }
    drop(listener);
    // all slots are free when the last connection is done
    let all = slots.free.acquire_many(u32::try_from(slots.all).unwrap_or(u32::MAX));
    drop(tokio::time::timeout(GRACE, all).await);
}

async fn connection(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    routes: Router,
    stop: watch::Receiver<bool>,
) {
    drop(stream.set_nodelay(true));
    let Some(acceptor) = acceptor else { return requests(stream, routes, stop).await };
    if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        requests(stream, routes, stop).await;
    }
}

async fn requests<S>(stream: S, routes: Router, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => { drop(result); return; }
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    drop(connection.await);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn who_finds_the_queue_full_is_told_when_to_come_back() {
        let response = no_answer(Unanswered::Overloaded);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
