//! Names of packs, as entries list them.

use crate::error::{FormatError, malformed};
use crate::limits::{MAX_PACKS, MAX_SEALED_LEN};
use crate::wire::Reader;

const LEN: usize = 28;

/// Names a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackRef {
    /// The pack's object name.
    pub name: [u8; 16],
    /// Length of the sealed object, for progress and accounting; not a check.
    pub sealed_len: u64,
    /// Pages in it, or files when it is a list of files.
    pub items: u32,
}

/// Whether a list of packs keeps the limits.
pub(crate) fn packs_fit(packs: &[PackRef]) -> bool {
    packs.len() <= MAX_PACKS
        && packs.iter().all(|pack| pack.sealed_len <= MAX_SEALED_LEN as u64 && pack.items > 0)
}

/// Appends a list of packs that [fits](packs_fit).
pub(crate) fn encode_packs(packs: &[PackRef], out: &mut Vec<u8>) {
    out.extend_from_slice(&(packs.len() as u32).to_le_bytes());
    for pack in packs {
        out.extend_from_slice(&pack.name);
        out.extend_from_slice(&pack.sealed_len.to_le_bytes());
        out.extend_from_slice(&pack.items.to_le_bytes());
    }
}

pub(crate) fn decode_packs(reader: &mut Reader<'_>) -> Result<Vec<PackRef>, FormatError> {
    let count = reader.u32_up_to(MAX_PACKS, "packs")?;
    if count > reader.remaining() / LEN {
        return Err(malformed("packs"));
    }
    let mut packs = Vec::with_capacity(count);
    for _ in 0..count {
        packs.push(PackRef {
            name: reader.array("packs")?,
            sealed_len: reader.u64("packs")?,
            items: reader.u32("packs")?,
        });
    }
    if packs_fit(&packs) { Ok(packs) } else { Err(malformed("packs")) }
}
