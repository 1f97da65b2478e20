//! HTTP/1.1 over TLS: `POST /v1/call` for clients, `GET /` for people. Logs no addresses and no accounts.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use chatkeep_vault_protocol::Identity;
use chatkeep_vault_protocol::limits::REQUEST_LEN_MAX;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::vault::Vault;

/// A client that is slower than this to finish the handshake or to send its headers is cut off.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest life of a connection: a client needs one second of it.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);
/// After the signal to stop, connections get so long to finish what they do.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until `stop` becomes true, then lets running requests finish.
pub async fn serve(
    listener: TcpListener,
    tls: rustls::ServerConfig,
    vault: Arc<Vault>,
    connections_max: usize,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let slots = Arc::new(Semaphore::new(connections_max));
    let stopped = stop.clone();
    loop {
        let slot = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            slot = slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
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
        let (acceptor, vault, stopped) = (acceptor.clone(), vault.clone(), stopped.clone());
        tokio::spawn(async move {
            let served = connection(stream, acceptor, vault, stopped);
            if tokio::time::timeout(CONNECTION_LIFETIME, served).await.is_err() {
                tracing::debug!("a connection was open for too long");
            }
            drop(slot);
        });
    }
    drop(listener);
    // all slots are free when the last connection is done
    let all = slots.acquire_many(u32::try_from(connections_max).unwrap_or(u32::MAX));
    drop(tokio::time::timeout(GRACE, all).await);
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    vault: Arc<Vault>,
    mut stop: watch::Receiver<bool>,
) {
    drop(stream.set_nodelay(true));
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else { return };
    let service = service_fn(move |request| {
        let vault = vault.clone();
        async move { Ok::<_, Infallible>(respond(&vault, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => { drop(result); return; }
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    drop(connection.await);
}

async fn respond(vault: &Vault, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/v1/call") => {
            let body = Limited::new(request.into_body(), REQUEST_LEN_MAX).collect();
            match tokio::time::timeout(PATIENCE, body).await {
                Ok(Ok(body)) => match vault.answer(body.to_bytes().to_vec()).await {
                    Ok(answer) => plain(StatusCode::OK, "application/cbor", answer),
                    Err(stopped) => text(StatusCode::SERVICE_UNAVAILABLE, stopped.to_string()),
                },
                Ok(Err(_)) => text(StatusCode::PAYLOAD_TOO_LARGE, "the request is too long".to_owned()),
                Err(_) => text(StatusCode::REQUEST_TIMEOUT, "the request is too slow".to_owned()),
            }
        }
        (&Method::GET, "/") => text(StatusCode::OK, page(vault)),
        _ => text(StatusCode::NOT_FOUND, "POST /v1/call or GET /".to_owned()),
    }
}

/// For people; programs ask `info`, whose answer is signed.
fn page(vault: &Vault) -> String {
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

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    plain(status, "text/plain; charset=utf-8", body.into_bytes())
}

fn plain(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    response.headers_mut().insert("cache-control", hyper::header::HeaderValue::from_static("no-store"));
    response
}
