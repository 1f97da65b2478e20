//! Seq and root in the `CKA_ID` of an object on the token: it does not go back when the vault's disk does.
//!
//! It is as durable as the token makes it. SoftHSM2 never calls `fsync` and keeps the token in a folder, which goes back
//! with the disk that it is on: for development only.

use std::sync::Arc;

use super::objects::ANCHOR_LEN;
use super::token::Token;
use super::worker::{Turn, Worker};
use crate::anchor::{Anchor, AnchorError, Anchored};

/// See the module.
pub(super) struct Pkcs11Anchor {
    worker: Arc<Worker<Token>>,
    /// Where it was seen last; a second vault on the same token would move it.
    last: Option<Anchored>,
}

impl Pkcs11Anchor {
    pub(super) fn new(worker: Arc<Worker<Token>>) -> Self {
        Self { worker, last: None }
    }
}

impl Anchor for Pkcs11Anchor {
    fn name(&self) -> &'static str {
        "pkcs11"
    }

    fn read(&mut self) -> Result<Anchored, AnchorError> {
        let bytes = self.worker.call(Turn::First, |token| token.anchor())?;
        let value = decode(&bytes).ok_or(AnchorError::Unusable)?;
        self.last = Some(value);
        Ok(value)
    }

    fn advance(&mut self, next: &Anchored) -> Result<(), AnchorError> {
        self.replace(self.last, next)
    }

    fn advance_from(&mut self, previous: &Anchored, next: &Anchored) -> Result<(), AnchorError> {
        self.replace(Some(*previous), next)
    }
}

impl Pkcs11Anchor {
    /// Compares and writes in one turn of the thread that owns the token.
    fn replace(&mut self, expected: Option<Anchored>, next: &Anchored) -> Result<(), AnchorError> {
        let value = encode(next);
        let found = self.worker.call(Turn::First, move |token| {
            if let Some(expected) = expected {
                let found = token.anchor()?;
                if found != encode(&expected) {
                    return Ok(Some((found, expected)));
                }
            }
            token.set_anchor(&value).map(|()| None)
        })?;
        if let Some((found, expected)) = found {
            let found = decode(&found).ok_or(AnchorError::Unusable)?;
            return Err(AnchorError::Moved { found: found.seq, expected: expected.seq });
        }
        self.last = Some(*next);
        Ok(())
    }
}

fn encode(value: &Anchored) -> [u8; ANCHOR_LEN] {
    let mut bytes = [0; ANCHOR_LEN];
    bytes[..8].copy_from_slice(&value.seq.to_be_bytes());
    bytes[8..].copy_from_slice(&value.root);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Anchored> {
    let (seq, root) = bytes.split_first_chunk::<8>()?;
    Some(Anchored { seq: u64::from_be_bytes(*seq), root: root.try_into().ok()? })
}
