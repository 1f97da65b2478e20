//! Exchanging the key that seals records, so that old copies of the database can never be opened again.
//!
//! A new key seals from the first moment on; all that the old ones sealed is sealed again, in small batches between the
//! requests of clients, through the thread that commits, so digest and anchor stay right; then the old keys are destroyed in the
//! device. It may be killed anywhere: keys are destroyed when no record needs them, and two keys are the sign
//! that an exchange is to be finished.

use crate::hsm::DeviceError;
use crate::vault::{Stopped, Vault};

/// Records in one commit: as long as it takes, nobody is answered.
pub const BATCH_LEN: usize = 256;

/// Why keys were not exchanged. Nothing is lost: begin again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResealError {
    /// The device cannot, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The vault ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Whoever asked for it said so.
    #[error("interrupted; it is finished the next time")]
    Interrupted,
    /// Keys are destroyed only when nothing needs them.
    #[error("{records} records are still sealed with an old key, which was therefore kept")]
    Unfinished {
        /// How many.
        records: u64,
    },
}

/// What one batch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resealed {
    /// Where to go on; `None` at the end.
    pub last: Option<[u8; 16]>,
    /// Records that an old key sealed still.
    pub left: u64,
}

/// Finishes an exchange that was begun, else makes a new key, and ends with that one only. Gives its number.
///
/// `go_on` is told after every batch how many records are left, and says whether to go on.
pub fn rotate(vault: &Vault, mut go_on: impl FnMut(u64) -> bool) -> Result<u32, ResealError> {
    let sealer = vault.sealer();
    let key_id = match sealer.keys()?[..] {
        [_] => sealer.make_key(vault.now_s())?,
        [.., newest] => newest.id,
        [] => return Err(DeviceError::Wrong.into()),
    };
    let mut after = None;
    let left = loop {
        let batch = vault.reseal(after, BATCH_LEN)?;
        match batch.last {
            Some(_) if !go_on(batch.left) => return Err(ResealError::Interrupted),
            Some(last) => after = Some(last),
            None => break batch.left,
        }
    };
    if left != 0 {
        return Err(ResealError::Unfinished { records: left });
    }
    sealer.destroy_old_keys()?;
    tracing::info!(key_id, "the key that seals records was exchanged");
    Ok(key_id)
}

/// Whether it is time: an exchange is unfinished, or the key is older than `lifetime_s`.
pub fn is_due(vault: &Vault, lifetime_s: u64) -> Result<bool, DeviceError> {
    let keys = vault.sealer().keys()?;
    let newest_made_at_s = keys.last().map_or(0, |key| key.made_at_s);
    Ok(keys.len() > 1 || vault.now_s().saturating_sub(newest_made_at_s) >= lifetime_s)
}
