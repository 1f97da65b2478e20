//! The transport for a process without network: HTTP/1.1 to `chatkeep-courier` over a unix socket.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use chatkeep_vault_protocol::VaultPin;
use chatkeep_vault_protocol::limits::ANSWER_LEN_MAX;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::transport::{Transport, TransportError};

/// Longer than the courier's own limit (30 s), so that its answer says what went wrong.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);

/// Sends every call to a courier, over a new connection.
#[derive(Debug, Clone)]
pub struct CourierTransport {
    socket: PathBuf,
}

impl CourierTransport {
    /// A courier listens, or is started by whoever holds the listening end, at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    async fn exchange(&self, vault: &VaultPin, request: Vec<u8>) -> Result<Vec<u8>, TransportError> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| unreachable("courier", &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable("courier", &error))?;
        let driver = AbortOnDrop(tokio::spawn(connection));
        let request = Request::post("/v1/call")
            .header("host", "courier")
            .header("chatkeep-vault-url", &vault.url)
            .header("chatkeep-vault-identity", vault.identity().to_string())
            .body(Full::new(Bytes::from(request)))
            .map_err(|_| TransportError::Rejected { what: "the vault's address is not text".to_owned() })?;
        let response = sender.send_request(request).await.map_err(|error| unreachable("courier", &error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX)
            .collect()
            .await
            .map_err(|error| unreachable("courier", &*error))?
            .to_bytes();
        drop(driver);
        if status == StatusCode::OK {
            return Ok(body.to_vec());
        }
        Err(failure(&String::from_utf8_lossy(&body)))
    }
}

#[async_trait]
impl Transport for CourierTransport {
    async fn call(&self, vault: &VaultPin, request: Vec<u8>) -> Result<Vec<u8>, TransportError> {
        tokio::time::timeout(CALL_TIMEOUT, self.exchange(vault, request))
            .await
            .map_err(|_| TransportError::Unreachable { what: "the courier did not answer".to_owned() })?
    }
}

/// The courier's error bodies are one line: a kind from a short list, a colon, words for a person.
fn failure(line: &str) -> TransportError {
    let (kind, what) = line.trim().split_once(':').unwrap_or((line, ""));
    let what = format!("{} ({kind})", what.trim());
    match kind {
        "tls-untrusted" => TransportError::Untrusted { what },
        "bad-request" | "too-large" => TransportError::Rejected { what },
        _ => TransportError::Unreachable { what },
    }
}

fn unreachable(who: &str, error: &(dyn std::error::Error + 'static)) -> TransportError {
    TransportError::Unreachable { what: format!("{who}: {error}") }
}

/// The connection ends with the call, also when the caller goes away first.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
