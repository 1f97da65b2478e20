//! How a seal key lies in its index: number (4) ‖ made at, in seconds since 1970 (8) ‖ key (32). Pure.

use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::objects::SEAL_LEN;
use crate::hsm::SealKey;

/// No key; what a destroyed one is overwritten with.
pub(super) const EMPTY: &[u8; SEAL_LEN] = &[0; SEAL_LEN];

/// A new secret for `key`.
pub(super) fn draw(key: SealKey, rng: &mut dyn CryptoRngCore) -> Zeroizing<[u8; SEAL_LEN]> {
    let mut slot = Zeroizing::new([0; SEAL_LEN]);
    slot[..4].copy_from_slice(&key.id.to_be_bytes());
    slot[4..12].copy_from_slice(&key.made_at_s.to_be_bytes());
    rng.fill_bytes(&mut slot[12..]);
    slot
}

/// The key in a slot, if there is one.
pub(super) fn decode(slot: &[u8]) -> Option<(SealKey, Zeroizing<[u8; 32]>)> {
    let (id, rest) = slot.split_first_chunk::<4>()?;
    let (made_at_s, secret) = rest.split_first_chunk::<8>()?;
    let key = SealKey { id: u32::from_be_bytes(*id), made_at_s: u64::from_be_bytes(*made_at_s) };
    let secret = Zeroizing::new(<[u8; 32]>::try_from(secret).ok()?);
    (key.id != 0).then_some((key, secret))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rand_core::OsRng;

    use super::*;

    #[test]
    fn a_slot_gives_back_what_was_put_in_and_an_empty_one_nothing() {
        let key = SealKey { id: 3, made_at_s: 77 };
        let slot = draw(key, &mut OsRng);
        let (read, secret) = decode(&*slot).unwrap();
        assert_eq!((read, &secret[..]), (key, &slot[12..]));
        assert!(decode(EMPTY).is_none() && decode(&slot[1..]).is_none() && decode(&[]).is_none());
    }
}
