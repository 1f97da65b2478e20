//! The secret S of one slot, and all that is derived from it.

use ed25519_dalek::SigningKey;
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::{Zeroize as _, Zeroizing};

/// The 32 random bytes that `t` vaults and the password give back: S.
///
/// A device that is unlocked keeps it beside the backup key, to change the password or destroy the account without
/// asking for the old password.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotSecret(Zeroizing<[u8; 32]>);

impl SlotSecret {
    /// Takes over bytes that were kept.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, to keep them.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Draws a new one.
    pub fn generate(rng: &mut impl rand_core::CryptoRngCore) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *bytes);
        Self(bytes)
    }

    /// The key that proves to one vault that S is known. From S, never from one vault's answer alone: such a key
    /// would let that vault try passwords by itself.
    pub fn auth_key(&self, identity: &[u8; 32], epoch: &[u8; 16]) -> SigningKey {
        let mut seed = hkdf(None, &self.0[..], &[b"chatkeep vault auth v1", identity, epoch]);
        let key = SigningKey::from_bytes(&seed);
        seed.zeroize();
        key
    }

    /// The key of one wrapping; `salt` is fresh for every wrapping, so a nonce is never used twice.
    pub(crate) fn wrap_key(&self, salt: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        hkdf(Some(salt), &self.0[..], &[b"chatkeep vault wrap v1"])
    }

    /// C: what tells the right S from every other one.
    pub(crate) fn commitment(&self, header_and_shares: &[u8]) -> [u8; 32] {
        let key = hkdf(None, &self.0[..], &[b"chatkeep vault commit v1"]);
        hmac(&*key, &[header_and_shares])
    }
}

impl std::fmt::Debug for SlotSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SlotSecret(redacted)")
    }
}

/// HKDF-SHA256 with 32 bytes of output; `info` is the parts one after the other (all but the label have fixed lengths).
pub(crate) fn hkdf(salt: Option<&[u8]>, ikm: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut okm = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(salt, ikm)
        .expand_multi_info(info, &mut *okm)
        .expect("32 bytes are fewer than HKDF can give");
    okm
}

/// HMAC-SHA256 over the parts one after the other.
pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}
