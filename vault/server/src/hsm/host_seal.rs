//! A seal key in this process's memory: AES-256-GCM with a random nonce.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::{DeviceError, NONCE_LEN, SealKey, Sealed, aad_with_key};

/// One generation. Zeroized when dropped.
pub(super) struct HostSealKey {
    key: SealKey,
    cipher: Aes256Gcm,
}

impl HostSealKey {
    pub(super) fn new(key: SealKey, secret: &[u8; 32]) -> Self {
        Self { key, cipher: Aes256Gcm::new(secret.into()) }
    }

    /// Number and age.
    pub(super) fn key(&self) -> SealKey {
        self.key
    }

    /// See [`super::Sealer::seal`].
    pub(super) fn seal(&self, aad: &[u8], plaintext: &[u8], rng: &mut dyn CryptoRngCore) -> Sealed {
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let payload = Payload { msg: plaintext, aad: &aad_with_key(aad, self.key.id) };
        let sealed = self.cipher.encrypt(&nonce.into(), payload).expect("a record is not too long");
        Sealed { key_id: self.key.id, bytes: [&nonce[..], &sealed].concat() }
    }

    /// See [`super::Sealer::open`].
    pub(super) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, DeviceError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(DeviceError::NotSealedHere)?;
        let payload = Payload { msg: sealed, aad: &aad_with_key(aad, self.key.id) };
        let opened = self.cipher.decrypt(&(*nonce).into(), payload);
        opened.map(Zeroizing::new).map_err(|_| DeviceError::NotSealedHere)
    }
}
