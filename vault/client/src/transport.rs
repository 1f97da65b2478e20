//! How request bytes reach a vault and answer bytes come back. Neither is secret, both are checked elsewhere.

use std::collections::HashMap;

use async_trait::async_trait;
use chatkeep_vault_protocol::VaultPin;

/// Carries one request to one vault.
///
/// A transport need not be trusted: answers are signed, requests are blinded. The same bytes may be sent again.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends `request`, gives the answer's bytes.
    async fn call(&self, vault: &VaultPin, request: Vec<u8>) -> Result<Vec<u8>, TransportError>;
}

/// Why no answer came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Network, name resolution, timeout, or no courier: retry later.
    #[error("unreachable: {what}")]
    Unreachable {
        /// How it failed.
        what: String,
    },
    /// Who answered has no certificate by the pinned identity.
    #[error("not the pinned vault: {what}")]
    Untrusted {
        /// Which check failed.
        what: String,
    },
    /// The request or the address is not acceptable: a wrong setting or a bug.
    #[error("rejected: {what}")]
    Rejected {
        /// By what rule.
        what: String,
    },
}

type Handler = Box<dyn Fn(&[u8]) -> Result<Vec<u8>, TransportError> + Send + Sync>;

/// Calls functions in this process instead of vaults elsewhere: for tests and simulations.
#[derive(Default)]
pub struct DirectTransport {
    handlers: HashMap<[u8; 32], Handler>,
}

impl DirectTransport {
    /// Nobody answers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `handler` answer for the vault with this identity.
    pub fn insert(
        &mut self,
        identity: [u8; 32],
        handler: impl Fn(&[u8]) -> Result<Vec<u8>, TransportError> + Send + Sync + 'static,
    ) {
        self.handlers.insert(identity, Box::new(handler));
    }
}

#[async_trait]
impl Transport for DirectTransport {
    async fn call(&self, vault: &VaultPin, request: Vec<u8>) -> Result<Vec<u8>, TransportError> {
        match self.handlers.get(&vault.identity) {
            Some(handler) => handler(&request),
            None => Err(TransportError::Unreachable { what: "no such vault".to_owned() }),
        }
    }
}
