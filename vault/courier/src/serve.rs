//! The socket side: reads calls, answers with the vault's bytes or one line that says why not.

use std::convert::Infallible;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use chatkeep_vault_line::{CarryError, carry};
use chatkeep_vault_protocol::Identity;
use chatkeep_vault_protocol::limits::ANSWER_LEN_MAX;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Longest request that is carried; vaults take 4 KiB, so this bounds memory and nothing else.
const REQUEST_LEN_MAX: usize = ANSWER_LEN_MAX;
/// Calls at the same time: all vaults of one slot, twice.
const CONNECTIONS_MAX: usize = 32;
/// For the headers, then for the body, of a request on the socket.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until nobody has called for `idle_timeout`.
pub async fn serve(listener: UnixListener, idle_timeout: Duration) -> std::io::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match tokio::time::timeout(idle_timeout, listener.accept()).await {
            Ok(accepted) => accepted?.0,
            Err(_) if slots.available_permits() + 1 < CONNECTIONS_MAX => continue,
            Err(_) => return Ok(()),
        };
        tokio::spawn(async move {
            connection(stream).await;
            drop(slot);
        });
    }
}

async fn connection(stream: UnixStream) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(respond(request).await) });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    // a caller that goes away is no event worth telling
    drop(served.await);
}

async fn respond(request: Request<Incoming>) -> Response<Full<Bytes>> {
    match call(request).await {
        Ok(answer) => response(StatusCode::OK, answer),
        Err(error) => {
            let status = match error {
                CarryError::BadRequest(_) => StatusCode::BAD_REQUEST,
                CarryError::Timeout => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::BAD_GATEWAY,
            };
            response(status, Bytes::from(format!("{error}\n")))
        }
    }
}

async fn call(request: Request<Incoming>) -> Result<Bytes, CarryError> {
    if request.method() != Method::POST || request.uri().path() != "/v1/call" {
        return Err(CarryError::BadRequest("only POST /v1/call is served"));
    }
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let url = header("chatkeep-vault-url").ok_or(CarryError::BadRequest("no chatkeep-vault-url"))?;
    let identity = header("chatkeep-vault-identity")
        .and_then(|text| Identity::from_str(&text).ok())
        .ok_or(CarryError::BadRequest("no chatkeep-vault-identity of 64 hex digits"))?;
    let body = Limited::new(request.into_body(), REQUEST_LEN_MAX).collect();
    let body = tokio::time::timeout(PATIENCE, body)
        .await
        .map_err(|_| CarryError::BadRequest("the request is too slow"))?
        .map_err(|_| CarryError::BadRequest("the request is too long"))?;
    carry(&url, identity, body.to_bytes()).await
}

fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}
