//! Seq and root in a cell of the device that has the keys: it does not go back when the vault's disk does.
//!
//! It is as durable as the device makes it. SoftHSM2 never calls `fsync` and keeps the token in a folder, and a TPM in
//! software keeps its state in a file: these go back with the disk that they are on, and are for development only.

use std::sync::Arc;

use super::DeviceError;
use super::worker::{Turn, Worker};
use crate::anchor::{Anchor, AnchorError, Anchored};

/// Length of what the anchor remembers, in bytes: seq, root.
pub(super) const ANCHOR_LEN: usize = 8 + 32;

/// What a device needs to be an anchor: a few bytes that are replaced as a whole.
pub(super) trait AnchorCell: Send + 'static {
    /// What is there.
    fn anchor(&mut self) -> Result<Vec<u8>, DeviceError>;
    /// Durable when this returns.
    fn set_anchor(&mut self, value: &[u8; ANCHOR_LEN]) -> Result<(), DeviceError>;
    /// Writes `next` if what is there is `expected`; else gives what is there.
    fn replace_anchor(
        &mut self,
        expected: &[u8; ANCHOR_LEN],
        next: &[u8; ANCHOR_LEN],
    ) -> Result<Option<Vec<u8>>, DeviceError> {
        let found = self.anchor()?;
        if found != expected {
            return Ok(Some(found));
        }
        self.set_anchor(next).map(|()| None)
    }
}

/// See the module.
pub(super) struct DeviceAnchor<T> {
    name: &'static str,
    worker: Arc<Worker<T>>,
    /// Where it was seen last; a second vault on the same device would move it.
    last: Option<Anchored>,
}

impl<T: AnchorCell> DeviceAnchor<T> {
    /// `name` is what `info` says.
    pub(super) fn new(name: &'static str, worker: Arc<Worker<T>>) -> Self {
        Self { name, worker, last: None }
    }
}

impl<T: AnchorCell> Anchor for DeviceAnchor<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&mut self) -> Result<Anchored, AnchorError> {
        let bytes = self.worker.call(Turn::First, T::anchor)?;
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

impl<T: AnchorCell> DeviceAnchor<T> {
    /// Compares and writes in one turn of the thread that owns the device.
    fn replace(&mut self, expected: Option<Anchored>, next: &Anchored) -> Result<(), AnchorError> {
        let value = encode(next);
        let expected_value = expected.as_ref().map(encode);
        let found = self.worker.call(Turn::First, move |device| match expected_value {
            Some(expected) => device.replace_anchor(&expected, &value),
            None => device.set_anchor(&value).map(|()| None),
        })?;
        if let (Some(found), Some(expected)) = (found, expected) {
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
