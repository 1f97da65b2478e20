//! Seq and root in a cell of the device that has the keys: it does not go back when the vault's disk does.
//!
//! It is as durable as the device makes it. SoftHSM2 never calls `fsync` and keeps the token in a folder, and a TPM in
//! software keeps its state in a file: these go back with the disk that they are on, and are for development only.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
    pause: Duration,
    written: Option<Instant>,
}

impl<T: AnchorCell> DeviceAnchor<T> {
    /// `name` is what `info` says; `pause`, from one write to the next, spares memory that stands a limited number of them.
    pub(super) fn new(name: &'static str, worker: Arc<Worker<T>>, pause: Duration) -> Self {
        Self { name, worker, last: None, pause, written: None }
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

    fn rest(&self) -> Duration {
        self.written.map_or(Duration::ZERO, |written| self.pause.saturating_sub(written.elapsed()))
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
        let found = self.worker.call(Turn::Batch, move |device| match expected_value {
            Some(expected) => device.replace_anchor(&expected, &value),
            None => device.set_anchor(&value).map(|()| None),
        })?;
        if let (Some(found), Some(expected)) = (found, expected) {
            let found = decode(&found).ok_or(AnchorError::Unusable)?;
            return Err(AnchorError::Moved { found: found.seq, expected: expected.seq });
        }
        (self.last, self.written) = (Some(*next), Some(Instant::now()));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    impl AnchorCell for Vec<u8> {
        fn anchor(&mut self) -> Result<Vec<u8>, DeviceError> {
            Ok(self.clone())
        }

        fn set_anchor(&mut self, value: &[u8; ANCHOR_LEN]) -> Result<(), DeviceError> {
            *self = value.to_vec();
            Ok(())
        }
    }

    fn on(worker: &Arc<Worker<Vec<u8>>>, pause: Duration) -> DeviceAnchor<Vec<u8>> {
        DeviceAnchor::new("test", worker.clone(), pause)
    }

    fn at(seq: u64) -> Anchored {
        Anchored { seq, root: [7; 32] }
    }

    #[test]
    fn a_cell_is_written_by_who_knows_what_it_says() {
        let worker = Arc::new(Worker::start(vec![0; ANCHOR_LEN]).unwrap());
        let (mut one, mut other) = (on(&worker, Duration::ZERO), on(&worker, Duration::ZERO));
        one.advance(&at(1)).unwrap();
        assert_eq!(other.read().unwrap(), at(1));
        other.advance(&at(2)).unwrap();
        for late in [one.advance(&at(2)), one.advance_from(&at(1), &at(2))] {
            assert!(matches!(late, Err(AnchorError::Moved { found: 2, expected: 1 })), "{late:?}");
        }
        one.advance_from(&at(2), &at(3)).unwrap();
        assert_eq!(other.read().unwrap(), at(3));
    }

    #[test]
    fn it_rests_after_a_write_and_only_if_it_should() {
        let worker = Arc::new(Worker::start(vec![0; ANCHOR_LEN]).unwrap());
        for (pause, rests) in [(Duration::from_hours(1), true), (Duration::ZERO, false)] {
            let mut anchor = on(&worker, pause);
            assert_eq!(anchor.rest(), Duration::ZERO);
            anchor.advance(&at(1)).unwrap();
            assert_eq!(!anchor.rest().is_zero(), rests);
        }
    }
}
