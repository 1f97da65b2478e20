//! The way to a witness over the network: as clients reach a vault, with a connection that stays open.

use std::time::Duration;

use chatkeep_vault_line::{CarryError, Line};
use chatkeep_vault_protocol::Identity;
use hyper::body::Bytes;
use tokio::runtime::Runtime;

use crate::witness::peers::Link;

/// A witness that takes longer is away: a batch, and everybody in it, waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// TLS to the pinned identity.
pub struct TlsLink {
    runtime: Runtime,
    line: Line,
}

/// An address cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// It is no `https://…`.
    #[error("the address of a witness")]
    Address(#[from] CarryError),
    /// No runtime.
    #[error("the runtime for a witness")]
    Runtime(#[from] std::io::Error),
}

impl TlsLink {
    /// To the vault at `address`; connects when it is first needed.
    pub fn new(address: &str, identity: [u8; 32]) -> Result<Self, LinkError> {
        let line = Line::new(address, Identity(identity))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, line })
    }
}

impl Link for TlsLink {
    fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, String> {
        let body = Bytes::copy_from_slice(request);
        let Self { runtime, line } = self;
        match runtime.block_on(async { tokio::time::timeout(TIMEOUT, line.carry(body)).await }) {
            Ok(Ok(answer)) => Ok(answer.to_vec()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(CarryError::Timeout.to_string()),
        }
    }
}
