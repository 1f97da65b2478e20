//! The header of a table of page digests: what the table describes.

use crate::digest::{Digest, Facts, Kind};
use crate::os::Identity;
use crate::slots::Slot;
use crate::wal::{Chain, Checksum};

pub(crate) const HEADER_LEN: usize = 192;
const MAGIC: &[u8; 8] = b"CKPAGES3";

/// Where following can be taken up again after a restart, for the state the table describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) chain: Chain,
    pub(crate) db: Identity,
}

/// What the table describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) seq: u64,
    /// The entry the table began with, a base. Of states before it nothing is known.
    pub(crate) since: u64,
    pub(crate) page_size: u32,
    pub(crate) page_count: u32,
    pub(crate) state: Digest,
    pub(crate) facts: Facts,
    /// The newest entry says that the database does not exist any more.
    pub(crate) gone: bool,
    pub(crate) position: Option<Position>,
}

impl Header {
    /// The entry that last changed a page.
    pub(crate) fn entry_of(&self, slot: &Slot) -> u64 {
        self.seq.saturating_sub(u64::from((self.seq as u32).wrapping_sub(slot.changed)))
    }

    /// As it stands in the file; `key_check` stands for the key of the digests.
    pub(super) fn encode(&self, key_check: &Digest, changes: u64) -> [u8; HEADER_LEN] {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(MAGIC);
        bytes.extend(key_check);
        bytes.extend(self.seq.to_le_bytes());
        bytes.extend(self.since.to_le_bytes());
        bytes.extend(changes.to_le_bytes());
        bytes.extend(self.page_size.to_le_bytes());
        bytes.extend(self.page_count.to_le_bytes());
        bytes.extend(self.state);
        bytes.extend(self.facts.user_version.to_le_bytes());
        bytes.extend(self.facts.application_id.to_le_bytes());
        let opaque = self.facts.kind == Kind::Opaque;
        bytes.extend([u8::from(opaque), u8::from(self.gone), u8::from(self.position.is_some())]);
        if let Some(Position { chain, db }) = &self.position {
            bytes.push(u8::from(chain.big_endian));
            bytes.extend(chain.salt);
            bytes.extend(chain.page_size.to_le_bytes());
            bytes.extend(chain.frame.to_le_bytes());
            bytes.extend(chain.checksum.0.to_le_bytes());
            bytes.extend(chain.checksum.1.to_le_bytes());
            bytes.extend(db.device.to_le_bytes());
            bytes.extend(db.inode.to_le_bytes());
        }
        bytes.resize(HEADER_LEN - 32, 0);
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes.try_into().expect("filled up to this length")
    }

    /// Reads it back, with the sum over all last changes; nothing for what is damaged, or of another key.
    pub(super) fn decode(key_check: &Digest, bytes: &[u8]) -> Option<(Header, u64)> {
        let (body, hash) = bytes.split_last_chunk::<32>()?;
        let intact = bytes.len() == HEADER_LEN && blake3::hash(body).as_bytes() == hash;
        if !intact || &body[..8] != MAGIC || body[8..24] != *key_check {
            return None;
        }
        let int = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        let long = |at: usize| u64::from(int(at)) | u64::from(int(at + 4)) << 32;
        let position = (body[82] != 0).then(|| {
            let mut salt = [0; 8];
            salt.copy_from_slice(&body[84..92]);
            Position {
                chain: Chain {
                    salt,
                    big_endian: body[83] != 0,
                    page_size: int(92),
                    frame: int(96),
                    checksum: Checksum(int(100), int(104)),
                },
                db: Identity { device: long(108), inode: long(116) },
            }
        });
        let mut state = [0; 16];
        state.copy_from_slice(&body[56..72]);
        let kind = if body[80] == 0 { Kind::Plain } else { Kind::Opaque };
        let header = Header {
            seq: long(24),
            since: long(32),
            page_size: int(48),
            page_count: int(52),
            state,
            facts: Facts { kind, user_version: int(72), application_id: int(76) },
            gone: body[81] != 0,
            position,
        };
        Some((header, long(40)))
    }
}
