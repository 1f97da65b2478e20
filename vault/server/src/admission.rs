//! Invitations: made with a key of the vault's own, so that none is stored before it is used.
//!
//! An invitation is `id (16) ‖ expires (8) ‖ uses (2) ‖ tag (16)`. The tag is a MAC, so the vault knows what it made without
//! a list. What is stored is how often one was used: a sealed record like an account's, in the same store, written by the
//! commit that makes the account. So a use is durable before the answer, anchored, and no more given back by an old
//! disk than an attempt is.
//!
//! Its record lies where only the vault can compute, and does not name the account, nor the account it.
//! In a vault of many cells it lies in the cell of the account, so each cell counts for itself: an invitation admits
//! as many accounts **in each cell**. Cells share no store that could count for all.

use chatkeep_vault_protocol::Invite;
use hmac::{Hmac, Mac as _};
use rand_core::CryptoRngCore;
use serde::Deserialize;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::cells::Cell;
use crate::core::Terms;

/// `[admission]`: for whom accounts are made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum AdmissionConfig {
    /// For everybody who reaches the vault.
    None {},
    /// For whoever has an invitation, made by `chatkeep-vault invite`.
    Invite {
        /// Another number makes all invitations so far worthless.
        #[serde(default)]
        series: u32,
    },
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self::None {}
    }
}

/// What `info` and a refusal say.
pub const INVITE: &str = "invite";

const TAG_LEN: usize = 16;
const INVITE_LEN: usize = 16 + 8 + 2 + TAG_LEN;

/// Makes and knows the invitations of one series.
pub struct Inviter(Zeroizing<[u8; 32]>);

/// An invitation that this vault made.
pub struct Known {
    id: [u8; 16],
    /// What it is good for.
    pub terms: Terms,
}

impl Inviter {
    /// `digest_key` is the vault's ([`crate::hsm::Device`]): the same in all its cells, and on no disk of its own.
    pub fn new(digest_key: &[u8; 32], series: u32) -> Self {
        Self(mac(digest_key, &[b"chatkeep vault invite key v1", &series.to_be_bytes()]))
    }

    /// What `config` wants, if that is invitations.
    pub fn of(config: &AdmissionConfig, digest_key: &[u8; 32]) -> Option<Self> {
        match config {
            AdmissionConfig::None {} => None,
            AdmissionConfig::Invite { series } => Some(Self::new(digest_key, *series)),
        }
    }

    /// A new invitation.
    pub fn make(&self, terms: Terms, rng: &mut dyn CryptoRngCore) -> Invite {
        let mut id = [0; 16];
        rng.fill_bytes(&mut id);
        let mut bytes = Vec::with_capacity(INVITE_LEN);
        bytes.extend_from_slice(&id);
        bytes.extend_from_slice(&terms.expires_s.to_be_bytes());
        bytes.extend_from_slice(&terms.uses.to_be_bytes());
        let tag = self.tag(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&tag[..TAG_LEN]);
        Invite::from_bytes(bytes)
    }

    /// `None` if this vault did not make it, or not in this series.
    pub fn read(&self, invite: &[u8]) -> Option<Known> {
        let invite: &[u8; INVITE_LEN] = invite.try_into().ok()?;
        let (said, tag) = invite.split_at(INVITE_LEN - TAG_LEN);
        self.tag(said).verify_truncated_left(tag).ok()?;
        let (id, rest) = said.split_at(16);
        let (expires, uses) = rest.split_at(8);
        let terms = Terms {
            uses: u16::from_be_bytes(uses.try_into().ok()?),
            expires_s: u64::from_be_bytes(expires.try_into().ok()?),
        };
        Some(Known { id: id.try_into().ok()?, terms })
    }

    /// Where its uses are counted in `cell`: no client can name this place.
    pub fn place(&self, invite: &Known, cell: &Cell) -> [u8; 16] {
        let place = mac(&self.0, &[b"chatkeep vault invite place v1", &invite.id]);
        cell.within(place[..16].try_into().expect("16 of 32 bytes"))
    }

    fn tag(&self, said: &[u8]) -> Hmac<Sha256> {
        Hmac::<Sha256>::new_from_slice(&*self.0)
            .expect("HMAC takes keys of any length")
            .chain_update(b"chatkeep vault invite v1")
            .chain_update(said)
    }
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rand_core::OsRng;

    use super::*;

    const TERMS: Terms = Terms { uses: 3, expires_s: 4_000_000_000 };

    #[test]
    fn an_invitation_is_known_by_its_vault_and_series_only() {
        let inviter = Inviter::new(&[1; 32], 0);
        let invite = inviter.make(TERMS, &mut OsRng);
        assert_eq!(inviter.read(invite.as_bytes()).unwrap().terms, TERMS);
        assert!(Inviter::new(&[2; 32], 0).read(invite.as_bytes()).is_none());
        assert!(Inviter::new(&[1; 32], 1).read(invite.as_bytes()).is_none());
    }

    #[test]
    fn no_bit_of_an_invitation_can_be_changed() {
        let inviter = Inviter::new(&[1; 32], 0);
        let invite = inviter.make(TERMS, &mut OsRng);
        for bit in 0..INVITE_LEN * 8 {
            let mut changed = invite.as_bytes().to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(inviter.read(&changed).is_none(), "bit {bit}");
        }
        assert!(inviter.read(&invite.as_bytes()[1..]).is_none());
    }
}
