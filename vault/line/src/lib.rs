//! A line to one vault: resolve, connect, TLS with the pinned identity, post, read.
//!
//! For the two that reach vaults over a network: the courier, for a daemon that has none, and a vault that has
//! witnesses. Holds no secret and reads no message; what it trusts is the identity that the caller names.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use chatkeep_vault_protocol::Identity;
use chatkeep_vault_protocol::limits::ANSWER_LEN_MAX;
use chatkeep_vault_protocol::tls::{SERVER_NAME, anchor_public_key, anchor_subject};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{Der, ServerName, TrustAnchor};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// For one address; a name may have several.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For everything, name resolution included.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why no answer was carried back, sorted by what the daemon does next. `Display` is the response's one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CarryError {
    /// The name does not resolve: retry later.
    #[error("unreachable-dns: {0}")]
    Dns(io::Error),
    /// Nobody listens: retry later.
    #[error("unreachable-connect: {0}")]
    Connect(io::Error),
    /// Too slow: retry later.
    #[error("unreachable-timeout: no answer in time")]
    Timeout,
    /// The connection broke, or HTTP failed: retry later.
    #[error("unreachable-broken: {0}")]
    Broken(String),
    /// Somebody answered without a certificate of the pinned identity: stop and tell the user.
    #[error("tls-untrusted: {0}")]
    Untrusted(io::Error),
    /// The vault answered with an HTTP status other than 200: retry later.
    #[error("vault-status: {0}")]
    Status(u16),
    /// The answer is longer than any answer: a bug or an attack.
    #[error("too-large: the answer exceeds {ANSWER_LEN_MAX} bytes")]
    TooLarge,
    /// The call is not acceptable: a wrong setting.
    #[error("bad-request: {0}")]
    BadRequest(&'static str),
}

/// Sends `body` to the vault at `url`, if it proves `identity`, and gives the answer's bytes.
pub async fn carry(url: &str, identity: Identity, body: Bytes) -> Result<Bytes, CarryError> {
    let line = Line::new(url, identity)?;
    within(async { line.open().await?.post(&line.path, body, true).await }).await
}

/// A way to one vault that stays open between calls: saves the handshakes to who calls often.
pub struct Line {
    host: String,
    port: u16,
    path: String,
    identity: Identity,
    open: Option<Connection>,
}

impl Line {
    /// To the vault at `url`, if it proves `identity`. Connects at the first call.
    pub fn new(url: &str, identity: Identity) -> Result<Self, CarryError> {
        let (host, port, path) = parse(url)?;
        Ok(Self { host, port, path, identity, open: None })
    }

    /// As [`carry`]. Sends the same bytes a second time, over a new connection, if the old one broke.
    pub async fn carry(&mut self, body: Bytes) -> Result<Bytes, CarryError> {
        within(async {
            if let Some(mut connection) = self.open.take()
                && let Ok(answer) = connection.post(&self.path, body.clone(), false).await
            {
                self.open = Some(connection);
                return Ok(answer);
            }
            let mut connection = self.open().await?;
            let answer = connection.post(&self.path, body, false).await?;
            self.open = Some(connection);
            Ok(answer)
        })
        .await
    }

    async fn open(&self) -> Result<Connection, CarryError> {
        let stream = connect(&self.host, self.port).await?;
        let name = ServerName::try_from(SERVER_NAME).expect("the fixed name is a DNS name");
        let connector = TlsConnector::from(Arc::new(client_config(self.identity)));
        let stream = connector.connect(name, stream).await.map_err(tls_error)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| CarryError::Broken(error.to_string()))?;
        Ok(Connection { sender, driver: tokio::spawn(connection) })
    }
}

async fn within<T>(call: impl Future<Output = Result<T, CarryError>>) -> Result<T, CarryError> {
    tokio::time::timeout(TOTAL_TIMEOUT, call).await.map_err(|_| CarryError::Timeout)?
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<Result<(), hyper::Error>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    async fn post(&mut self, path: &str, body: Bytes, last: bool) -> Result<Bytes, CarryError> {
        let broken = |error: hyper::Error| CarryError::Broken(error.to_string());
        let request = Request::post(path)
            .header("host", SERVER_NAME)
            .header("content-type", "application/cbor")
            .header("connection", if last { "close" } else { "keep-alive" })
            .body(Full::new(body))
            .map_err(|_| CarryError::BadRequest("the address's path"))?;
        self.sender.ready().await.map_err(broken)?;
        let response = self.sender.send_request(request).await.map_err(broken)?;
        if response.status() != hyper::StatusCode::OK {
            return Err(CarryError::Status(response.status().as_u16()));
        }
        match Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(CarryError::TooLarge),
            Err(error) => Err(CarryError::Broken(error.to_string())),
        }
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, CarryError> {
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(CarryError::Dns)?;
    let mut last = CarryError::Dns(io::Error::other("the name has no address"));
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // small messages, one round trip each: waiting to fill packets only costs time
                drop(stream.set_nodelay(true));
                return Ok(stream);
            }
            Ok(Err(error)) => last = CarryError::Connect(error),
            Err(_) => last = CarryError::Timeout,
        }
    }
    Err(last)
}

/// The cryptography of both ends: key exchange is X25519MLKEM768 only, because somebody who records B and kB today must
/// not learn k with a quantum computer.
pub fn provider() -> CryptoProvider {
    CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768], ..aws_lc_rs::default_provider() }
}

/// TLS 1.3, and one trust anchor: the pinned identity.
fn client_config(identity: Identity) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.roots.push(TrustAnchor {
        subject: Der::from(anchor_subject()),
        subject_public_key_info: Der::from(anchor_public_key(&identity.0)),
        name_constraints: None,
    });
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites for TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// A certificate that does not fit is not a network that fails: only the first is somebody in between.
fn tls_error(error: io::Error) -> CarryError {
    let certificate =
        error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some_and(|error| {
            matches!(error, rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
        });
    if certificate { CarryError::Untrusted(error) } else { CarryError::Broken(error.to_string()) }
}

/// Host, port and path to post to. The path of the address, if any, is a prefix.
fn parse(url: &str) -> Result<(String, u16, String), CarryError> {
    let uri: Uri = url.parse().map_err(|_| CarryError::BadRequest("the address is no URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(CarryError::BadRequest("the address must begin with https://"));
    }
    let authority = uri.authority().ok_or(CarryError::BadRequest("the address has no host"))?;
    if authority.as_str().contains('@') || uri.query().is_some() {
        return Err(CarryError::BadRequest("the address has a user or a query"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let path = format!("{}/v1/call", uri.path().trim_end_matches('/'));
    Ok((host, authority.port_u16().unwrap_or(443), path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn addresses_are_https_and_nothing_else() {
        let check = |url: &str, host: &str, port, path: &str| {
            assert_eq!(parse(url).unwrap(), (host.to_owned(), port, path.to_owned()));
        };
        check("https://vault.example", "vault.example", 443, "/v1/call");
        check("https://vault.example:8443/keys/", "vault.example", 8443, "/keys/v1/call");
        check("https://[::1]:9", "::1", 9, "/v1/call");
        for bad in ["http://a", "file:///etc/passwd", "https://", "https://u:p@a", "https://a/?x=1", "a"] {
            assert!(matches!(parse(bad), Err(CarryError::BadRequest(_))), "{bad}");
        }
    }
}
