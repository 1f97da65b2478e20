//! The newest state of a vault, signed by it and remembered by others: its witnesses.
//!
//! A head is signed twice, under two labels. As a *step* it follows its predecessor, and is not yet final. As *anchored*
//! it is final: so many witnesses hold it that no other state can have its number.

use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::cbor::{Fixed, decode, encode};
use crate::cell::CellId;

/// Number and digest of a state before the first commit.
pub const ORIGIN: (u64, [u8; 32]) = (0, [0; 32]);

/// Commits between two restores that a number can count.
const COMMITS: u64 = 1 << 48;
/// Numbers stay below 2^63, because SQL has no unsigned integers.
const RESTORES_MAX: u64 = (1 << 15) - 1;

/// How often the vault was restored from a backup: the upper 16 bits of a commit's number.
pub fn restores(seq: u64) -> u64 {
    seq / COMMITS
}

/// Commits since it was made or last restored: the lower 48 bits.
pub fn commits(seq: u64) -> u64 {
    seq % COMMITS
}

/// The number of the commit that restores from a backup, after everything that was ever anchored. `None` after 32767.
pub fn next_restore(seq: u64) -> Option<u64> {
    (restores(seq) < RESTORES_MAX).then(|| (restores(seq) + 1) * COMMITS)
}

/// Whether `next` may be the commit after `last`: the next number, or the first after a restore.
pub fn follows(last: u64, next: u64) -> bool {
    last.checked_add(1) == Some(next) || next_restore(last) == Some(next)
}

/// A vault's state after one commit, signed by its identity key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedHead {
    /// Whose state.
    #[serde(rename = "v")]
    pub vault: Fixed<32>,
    /// Of which of its cells; absent for a vault that is whole.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<CellId>,
    /// Number of the commit.
    #[serde(rename = "q")]
    pub seq: u64,
    /// Keyed digest over all records one commit earlier.
    #[serde(rename = "p")]
    pub previous_root: Fixed<32>,
    /// Keyed digest over all records.
    #[serde(rename = "r")]
    pub root: Fixed<32>,
    /// Whether it is final: a quorum of its witnesses holds it.
    #[serde(rename = "f")]
    pub anchored: bool,
    /// See [`head_message`].
    #[serde(rename = "s")]
    pub signature: Fixed<64>,
}

impl SignedHead {
    /// Whether the vault that it names signed it.
    pub fn is_genuine(&self) -> bool {
        let (previous_root, root) = (&self.previous_root.0, &self.root.0);
        let message = head_message(&self.vault.0, self.cell, self.seq, previous_root, root, self.anchored);
        VerifyingKey::from_bytes(&self.vault.0)
            .is_ok_and(|key| key.verify_strict(&message, &Signature::from_bytes(&self.signature.0)).is_ok())
    }

    /// Number and digest.
    pub fn state(&self) -> (u64, [u8; 32]) {
        (self.seq, self.root.0)
    }

    /// Whether `state` is what this head was built on.
    pub fn is_after(&self, (seq, root): (u64, [u8; 32])) -> bool {
        follows(seq, self.seq) && root == self.previous_root.0
    }

    /// The bytes that a witness keeps.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads what [`Self::encode`] wrote; says nothing about the signature.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        /// The longest is below 250 bytes.
        const LEN_MAX: usize = 512;
        decode(bytes, LEN_MAX)
    }
}

/// What the identity key of a vault signs of a head.
///
/// The state of a cell has labels of its own, so no signature for a cell is one for the whole, or the other way round.
pub fn head_message(
    vault: &[u8; 32],
    cell: Option<CellId>,
    seq: u64,
    previous_root: &[u8; 32],
    root: &[u8; 32],
    anchored: bool,
) -> Vec<u8> {
    let label: &[u8] = match (cell, anchored) {
        (None, false) => b"chatkeep vault step v1",
        (None, true) => b"chatkeep vault anchored v1",
        (Some(_), false) => b"chatkeep vault cell step v1",
        (Some(_), true) => b"chatkeep vault cell anchored v1",
    };
    let cell = cell.map(CellId::to_bytes);
    let cell = cell.as_ref().map_or(&[][..], |cell| cell);
    [label, vault, cell, &seq.to_be_bytes(), previous_root, root].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    fn head(anchored: bool) -> SignedHead {
        head_of(None, anchored)
    }

    fn head_of(cell: Option<CellId>, anchored: bool) -> SignedHead {
        let key = SigningKey::from_bytes(&[1; 32]);
        let vault = key.verifying_key().to_bytes();
        let message = head_message(&vault, cell, 7, &[2; 32], &[3; 32], anchored);
        let signature = Fixed(key.sign(&message).to_bytes());
        SignedHead {
            vault: Fixed(vault),
            cell,
            seq: 7,
            previous_root: Fixed([2; 32]),
            root: Fixed([3; 32]),
            anchored,
            signature,
        }
    }

    #[test]
    fn a_number_is_followed_by_the_next_or_by_a_restore() {
        assert!(follows(0, 1) && follows(500, 501));
        assert!(!follows(500, 500) && !follows(500, 502) && !follows(500, 499));
        let restored = next_restore(500).unwrap();
        assert_eq!((restores(restored), commits(restored)), (1, 0));
        assert!(follows(500, restored) && follows(restored, restored + 1));
        assert!(!follows(restored, 501) && !follows(500, next_restore(restored).unwrap()));
        assert_eq!(next_restore(RESTORES_MAX * COMMITS), None);
        assert!(i64::try_from(RESTORES_MAX * COMMITS + COMMITS - 1).is_ok());
    }

    #[test]
    fn every_field_of_a_head_is_signed() {
        let cells = [None, CellId::new(0, 2), CellId::new(1, 2), CellId::new(0, 4)];
        let heads = cells.iter().flat_map(|cell| [false, true].map(|anchored| head_of(*cell, anchored)));
        for good in heads {
            assert!(good.is_genuine());
            assert_eq!(SignedHead::decode(&good.encode()), Some(good));
            let vault = SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes();
            for forged in [
                SignedHead { vault: Fixed(vault), ..good },
                SignedHead { seq: 8, ..good },
                SignedHead { previous_root: Fixed([9; 32]), ..good },
                SignedHead { root: Fixed([9; 32]), ..good },
                SignedHead { anchored: !good.anchored, ..good },
                SignedHead { signature: Fixed([9; 64]), ..good },
            ] {
                assert!(!forged.is_genuine(), "{forged:?}");
            }
            for cell in cells.into_iter().filter(|cell| *cell != good.cell) {
                let forged = SignedHead { cell, ..good };
                assert!(!forged.is_genuine(), "{forged:?}");
            }
        }
    }

    #[test]
    fn a_head_is_after_its_predecessor_only() {
        let head = head(false);
        assert!(head.is_after((6, [2; 32])));
        assert!(!head.is_after((6, [3; 32])) && !head.is_after((5, [2; 32])) && !head.is_after((7, [2; 32])));
    }
}
