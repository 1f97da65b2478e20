//! Where the vault's own keys are: sealing, the OPRF root, the identity. One backend so far: software.
//!
//! `soft` keeps them in a file beside the database. Whoever copies both owns every record, so it serves only when the
//! operator says `insecure_dev`, and every answer says `hsm: soft`.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use chatkeep_vault_protocol::Suite;
use ed25519_dalek::{Signer as _, SigningKey};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::core::Evaluator;

/// Encrypts records. The nonce is random: one key seals at most 2^32 times (NIST SP 800-38D, 8.3).
pub trait Sealer: Send + Sync {
    /// Which key seals now.
    fn key_id(&self) -> u32;
    /// Ciphertext of `plaintext`, bound to `aad` and the key's number.
    fn seal(&self, aad: &[u8], plaintext: &[u8], rng: &mut dyn CryptoRngCore) -> Vec<u8>;
    /// `None` if it was not sealed by this device for this `aad`.
    fn open(&self, key_id: u32, aad: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>>;
}

/// The key that clients pin.
pub trait IdentityKey: Send + Sync {
    /// Its public half.
    fn public(&self) -> [u8; 32];
    /// Ed25519.
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// Where the OPRF is evaluated.
pub trait OprfRoot: Evaluator + Send + Sync {}

/// Keys in this process's memory and in a file.
pub struct SoftHsm {
    identity: SigningKey,
    sealer: Aes256Gcm,
    anchor_key: Zeroizing<[u8; 32]>,
}

/// Why the key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HsmError {
    /// The file is not there, cannot be read, or exists already.
    #[error("the key file")]
    Io(#[from] std::io::Error),
    /// Others could read it.
    #[error("the key file must have mode 0600, it has {mode:o}")]
    TooOpen {
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key file.
    #[error("the key file is damaged")]
    Damaged,
}

/// Name of the key file in the data directory.
pub const KEY_FILE: &str = "keys.soft";
const MAGIC: &[u8; 8] = b"CKVKEYS1";
const FILE_LEN: usize = 8 + 3 * 32;

impl SoftHsm {
    /// What `info` and every answer say.
    pub const NAME: &'static str = "soft";

    /// Draws new keys and writes them to `dir`, readable by the owner only. Never overwrites.
    pub fn create(dir: &Path, rng: &mut dyn CryptoRngCore) -> Result<Self, HsmError> {
        let mut bytes = Zeroizing::new([0; FILE_LEN]);
        rng.fill_bytes(&mut bytes[..]);
        bytes[..8].copy_from_slice(MAGIC);
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(KEY_FILE))?;
        file.write_all(&bytes[..])?;
        file.sync_all()?;
        std::fs::File::open(dir)?.sync_all()?;
        Self::from_bytes(&bytes)
    }

    /// Reads the keys in `dir`.
    pub fn open(dir: &Path) -> Result<Self, HsmError> {
        let mut file = std::fs::File::open(dir.join(KEY_FILE))?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(HsmError::TooOpen { mode });
        }
        let mut bytes = Zeroizing::new([0; FILE_LEN]);
        file.read_exact(&mut bytes[..]).map_err(|_| HsmError::Damaged)?;
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8; FILE_LEN]) -> Result<Self, HsmError> {
        if &bytes[..8] != MAGIC {
            return Err(HsmError::Damaged);
        }
        let part = |n: usize| {
            let part: [u8; 32] = bytes[8 + 32 * n..40 + 32 * n].try_into().expect("32 bytes");
            Zeroizing::new(part)
        };
        Ok(Self {
            identity: SigningKey::from_bytes(&part(0)),
            sealer: Aes256Gcm::new((&*part(1)).into()),
            anchor_key: part(2),
        })
    }

    /// Keys the digests of the anchor.
    pub fn anchor_key(&self) -> Zeroizing<[u8; 32]> {
        self.anchor_key.clone()
    }
}

const NONCE_LEN: usize = 12;

fn aad_with_key(aad: &[u8], key_id: u32) -> Vec<u8> {
    [aad, &key_id.to_be_bytes()].concat()
}

impl Sealer for SoftHsm {
    fn key_id(&self) -> u32 {
        1
    }

    fn seal(&self, aad: &[u8], plaintext: &[u8], rng: &mut dyn CryptoRngCore) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let payload = Payload { msg: plaintext, aad: &aad_with_key(aad, self.key_id()) };
        let sealed = self.sealer.encrypt(&nonce.into(), payload).expect("a record is not too long");
        [&nonce[..], &sealed].concat()
    }

    fn open(&self, key_id: u32, aad: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce: [u8; NONCE_LEN] = nonce.try_into().ok()?;
        let payload = Payload { msg: sealed, aad: &aad_with_key(aad, key_id) };
        (key_id == self.key_id())
            .then(|| self.sealer.decrypt(&nonce.into(), payload).ok())
            .flatten()
            .map(Zeroizing::new)
    }
}

impl IdentityKey for SoftHsm {
    fn public(&self) -> [u8; 32] {
        self.identity.verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.identity.sign(message).to_bytes()
    }
}

impl Evaluator for SoftHsm {
    fn suites(&self) -> &[Suite] {
        &[Suite::Ristretto255, Suite::P256]
    }

    fn generate_key(&self, suite: Suite, mut rng: &mut dyn CryptoRngCore) -> Zeroizing<[u8; 32]> {
        suite.generate_key(&mut rng)
    }

    fn evaluate(&self, suite: Suite, key: &[u8; 32], blinded: &[u8]) -> Option<Vec<u8>> {
        suite.evaluate(key, blinded).ok()
    }
}

impl OprfRoot for SoftHsm {}
