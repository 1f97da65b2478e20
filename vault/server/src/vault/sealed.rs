//! Records as the store has them: sealed, and bound to their account and revision.

use crate::core::Record;
use crate::hsm::{DeviceError, Keys};
use crate::store::Row;

/// A record cannot be opened or sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// It is not by this vault, its key is gone, or the device failed.
    #[error("the keys: {0}")]
    Device(#[from] DeviceError),
    /// It was sealed by this vault, and is none.
    #[error("a record opens, but is none")]
    NoRecord,
}

pub(crate) fn open_record(keys: &Keys, account: &[u8; 16], row: &Row) -> Result<Record, SealError> {
    let bytes = keys.sealer.open(row.key_id, &aad(account, row.revision), &row.sealed)?;
    Record::decode(&bytes).ok_or(SealError::NoRecord)
}

pub(crate) fn seal_record(
    keys: &Keys,
    account: &[u8; 16],
    revision: u64,
    record: &Record,
    rng: &mut dyn rand_core::CryptoRngCore,
) -> Result<Row, SealError> {
    let sealed = keys.sealer.seal(&aad(account, revision), &*record.encode(), rng)?;
    Ok(Row { revision, key_id: sealed.key_id, sealed: sealed.bytes })
}

fn aad(account: &[u8; 16], revision: u64) -> Vec<u8> {
    [b"chatkeep vault record v1", &account[..], &revision.to_be_bytes()].concat()
}
