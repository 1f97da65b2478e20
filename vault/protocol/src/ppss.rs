//! Password-protected secret sharing: making a slot, opening it, wrapping another key.
//!
//! After Jarecki, Kiayias, Krawczyk and Xu (EuroS&P 2016), with independent OPRF keys at the vaults. One vault
//! is the same code with one share.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::secret::hkdf;
use crate::slot::{Header, Slot, WRAPPED_LEN};
use crate::suite::Blinded;
use crate::{SlotError, SlotSecret, shamir};

/// One question to one vault: the same question is repeated until an answer comes, never blinded afresh.
pub struct Question {
    index: usize,
    input: Zeroizing<Vec<u8>>,
    blinded: Blinded,
}

/// What one vault's answer gave: rho, already turned into the mask of its share.
pub struct Mask {
    index: usize,
    mask: Zeroizing<[u8; 32]>,
}

impl Question {
    /// Prepares the question to vault number `index` of the slot. `pwk` comes from [`crate::password::stretch`].
    pub fn new(header: &Header, index: usize, pwk: &[u8; 32], rng: &mut impl CryptoRngCore) -> Self {
        let identity = &header.vaults[index].identity;
        let mut input = Zeroizing::new(Vec::with_capacity(160));
        input.extend_from_slice(b"chatkeep vault oprf v1");
        input.push(header.suite as u8);
        input.extend_from_slice(identity);
        input.extend_from_slice(&header.account(identity));
        input.extend_from_slice(&header.epoch);
        input.extend_from_slice(&header.context);
        input.extend_from_slice(pwk);
        let blinded = header.suite.blind(&input, rng);
        Self { index, input, blinded }
    }

    /// The blinded element B to send.
    pub fn element(&self) -> &[u8] {
        &self.blinded.element
    }

    /// Takes the vault's Z.
    pub fn answered(&self, header: &Header, evaluated: &[u8]) -> Result<Mask, SlotError> {
        let rho = self
            .blinded
            .finalize(&self.input, evaluated)
            .map_err(|_| SlotError::Malformed { what: "the vault's answer is no group element" })?;
        let identity = &header.vaults[self.index].identity;
        let mask = hkdf(Some(&header.salt), &rho, &[b"chatkeep vault mask v1", identity, &header.epoch]);
        Ok(Mask { index: self.index, mask })
    }
}

/// Makes the slot from the answers of **all** vaults: nothing is left out when it is made.
pub fn register(
    header: Header,
    masks: &[Mask],
    secret: &SlotSecret,
    key: &[u8; 32],
    rng: &mut impl CryptoRngCore,
) -> Result<Slot, SlotError> {
    let n = header.vaults.len();
    let shares = shamir::split(secret.as_bytes(), header.threshold, n as u8, rng);
    let mut masked_shares = Vec::with_capacity(n);
    for (index, share) in shares.iter().enumerate() {
        let mask = masks
            .iter()
            .find(|mask| mask.index == index)
            .ok_or(SlotError::Malformed { what: "a vault is missing" })?;
        masked_shares.push(*xor(share, &mask.mask));
    }
    let mut slot = Slot { header, masked_shares, commitment: [0; 32], wrapped: [0; WRAPPED_LEN] };
    slot.commitment = secret.commitment(&slot.bound());
    slot.wrapped = wrap(&slot, secret, key, rng);
    Ok(slot)
}

/// Finds the first subset of `t` answers that opens the slot: gives S and K, and which vaults told the truth.
///
/// [`SlotError::DoesNotOpen`] means: a wrong password, or more than `answers - t` vaults lie.
pub fn open(slot: &Slot, masks: &[Mask]) -> Result<(SlotSecret, Zeroizing<[u8; 32]>), SlotError> {
    let bound = slot.bound();
    let shares: Vec<(u8, Zeroizing<[u8; 32]>)> = masks
        .iter()
        .filter_map(|m| Some((m.index as u8 + 1, xor(slot.masked_shares.get(m.index)?, &m.mask))))
        .collect();
    let t = u32::from(slot.header.threshold);
    for subset in (0u32..1 << shares.len().min(crate::limits::VAULTS_MAX)).filter(|s| s.count_ones() == t) {
        let chosen: Vec<(u8, &[u8; 32])> = shares
            .iter()
            .enumerate()
            .filter(|(i, _)| subset >> i & 1 == 1)
            .map(|(_, (x, share))| (*x, &**share))
            .collect();
        let secret = SlotSecret::from_bytes(*shamir::combine(&chosen));
        if bool::from(secret.commitment(&bound).ct_eq(&slot.commitment)) {
            let key = unwrap(slot, &secret)?;
            return Ok((secret, key));
        }
    }
    Err(SlotError::DoesNotOpen)
}

/// Whether `secret` is the one of this slot.
pub fn check_secret(slot: &Slot, secret: &SlotSecret) -> Result<(), SlotError> {
    let right = secret.commitment(&slot.bound()).ct_eq(&slot.commitment);
    if bool::from(right) { Ok(()) } else { Err(SlotError::DoesNotOpen) }
}

/// Puts another key into the slot; password, vaults and accounts stay as they are.
pub fn rewrap(
    slot: &Slot,
    secret: &SlotSecret,
    new_key: &[u8; 32],
    rng: &mut impl CryptoRngCore,
) -> Result<Slot, SlotError> {
    check_secret(slot, secret)?;
    let mut slot = slot.clone();
    slot.wrapped = wrap(&slot, secret, new_key, rng);
    Ok(slot)
}

/// AES-256-GCM with a zero nonce: the key comes from a salt that is drawn for this one message.
fn wrap(slot: &Slot, secret: &SlotSecret, key: &[u8; 32], rng: &mut impl CryptoRngCore) -> [u8; WRAPPED_LEN] {
    let mut wrapped = [0; WRAPPED_LEN];
    let mut salt = [0; 32];
    rng.fill_bytes(&mut salt);
    let cipher = cipher(secret, &salt);
    let sealed = cipher
        .encrypt(&[0; 12].into(), Payload { msg: key, aad: &wrap_aad(slot) })
        .expect("32 bytes are not too long");
    wrapped[..32].copy_from_slice(&salt);
    wrapped[32..].copy_from_slice(&sealed);
    wrapped
}

/// Opens the wrapped key with S alone, on a device that kept it.
pub fn unwrap(slot: &Slot, secret: &SlotSecret) -> Result<Zeroizing<[u8; 32]>, SlotError> {
    check_secret(slot, secret)?;
    let salt: [u8; 32] = slot.wrapped[..32].try_into().expect("32 bytes");
    let payload = Payload { msg: &slot.wrapped[32..], aad: &wrap_aad(slot) };
    let opened = cipher(secret, &salt)
        .decrypt(&[0; 12].into(), payload)
        .map_err(|_| SlotError::Malformed { what: "the wrapped key is damaged" })?;
    let opened = Zeroizing::new(opened);
    Ok(Zeroizing::new(opened.as_slice().try_into().expect("32 bytes were sealed")))
}

fn cipher(secret: &SlotSecret, salt: &[u8; 32]) -> aes_gcm::Aes256Gcm {
    let key = secret.wrap_key(salt);
    aes_gcm::Aes256Gcm::new((&*key).into())
}

fn wrap_aad(slot: &Slot) -> Vec<u8> {
    let mut aad = slot.bound();
    aad.extend_from_slice(&slot.commitment);
    aad
}

fn xor(a: &[u8; 32], b: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new(*a);
    for (byte, other) in out.iter_mut().zip(b) {
        *byte ^= other;
    }
    out
}
