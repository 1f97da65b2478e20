//! Keys in a file beside the database. Whoever copies both owns every record, so it serves only when the operator says
//! `insecure_dev`, and every answer says `hsm: soft`.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use chatkeep_vault_protocol::Suite;
use ed25519_dalek::{Signer as _, SigningKey};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::host_seal::HostSealKey;
use super::secret_file::check_private;
use super::{Device, DeviceError, HsmError, IdentityKey, Keys, OprfRoot, SealKey, Sealed, Sealer};
use crate::core::Evaluator;

/// Keys in this process's memory and in a file.
pub struct SoftHsm {
    identity: SigningKey,
    sealer: HostSealKey,
    anchor_key: Zeroizing<[u8; 32]>,
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
        let path = dir.join(KEY_FILE);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let written = file.write_all(&bytes[..]).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| std::fs::File::open(dir)?.sync_all()) {
            // half a file would look like the keys of a vault; this one is ours, made above
            drop(std::fs::remove_file(&path));
            return Err(error.into());
        }
        Self::from_bytes(&bytes)
    }

    /// Reads the keys in `dir`.
    pub fn open(dir: &Path) -> Result<Self, HsmError> {
        let path = dir.join(KEY_FILE);
        let mut file = std::fs::File::open(&path)?;
        check_private(&path, &file)?;
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
            sealer: HostSealKey::new(SealKey { id: KEY_ID, made_at_s: 0 }, &part(1)),
            anchor_key: part(2),
        })
    }

    /// All of its uses.
    pub fn device(self) -> Device {
        let digest_key = self.anchor_key.clone();
        let hsm = Arc::new(self);
        Device {
            keys: Keys { name: Self::NAME.to_owned(), identity: hsm.clone(), sealer: hsm.clone(), oprf: hsm },
            digest_key,
            place: None,
            anchor: None,
            weakness: Some(
                "the keys are in software (hsm: soft): whoever copies this machine's disk can guess without limit",
            ),
            cautions: Vec::new(),
        }
    }
}

/// The only seal key there is.
const KEY_ID: u32 = 1;

impl Sealer for SoftHsm {
    fn keys(&self) -> Result<Vec<SealKey>, DeviceError> {
        Ok(vec![self.sealer.key()])
    }

    fn seal(&self, aad: &[u8], plaintext: &[u8], rng: &mut dyn CryptoRngCore) -> Result<Sealed, DeviceError> {
        Ok(self.sealer.seal(aad, plaintext, rng))
    }

    fn open(&self, key_id: u32, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, DeviceError> {
        if key_id != KEY_ID {
            return Err(DeviceError::NoSuchKey { key_id });
        }
        self.sealer.open(aad, sealed)
    }

    /// A file that was overwritten is still in its old blocks and copies: a new key would protect nothing.
    fn make_key(&self, _now_s: u64) -> Result<u32, DeviceError> {
        Err(DeviceError::Unsupported)
    }

    fn destroy_old_keys(&self) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }
}

impl IdentityKey for SoftHsm {
    fn public(&self) -> [u8; 32] {
        self.identity.verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], DeviceError> {
        Ok(self.identity.sign(message).to_bytes())
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

impl OprfRoot for SoftHsm {
    fn at_once(&self) -> &dyn Evaluator {
        self
    }

    fn waits(&self) -> bool {
        false
    }
}
