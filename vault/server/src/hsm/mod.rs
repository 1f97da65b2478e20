//! Where the vault's own keys are: sealing, the OPRF root, the identity, the key of the digest. A backend is a module
//! here and a row in [`create`] and [`open`].
//!
//! A device keeps its keys to itself, but answers its host as often as it is asked: it makes a stolen disk useless and
//! binds every guess to itself. It does **not** make its own live host obey the count.

mod device_anchor;
mod device_root;
mod host_seal;
pub mod pkcs11;
mod secret_file;
mod soft;
#[cfg_attr(not(feature = "tpm2"), path = "tpm2_absent.rs")]
pub mod tpm2;
mod worker;

use std::path::Path;
use std::sync::Arc;

use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::anchor::Anchor;
use crate::cells::{CellConfig, CellMapError, Place};
use crate::config::HsmConfig;
use crate::core::Evaluator;

pub use soft::{KEY_FILE, SoftHsm};

/// Encrypts records. The nonce is random: one key seals at most 2^32 times (NIST SP 800-38D, 8.3); exchanging it in
/// time is what [`crate::reseal`] does.
pub trait Sealer: Send + Sync {
    /// The keys there are, oldest first; the last one seals. More than one: an exchange is not finished.
    fn keys(&self) -> Result<Vec<SealKey>, DeviceError>;
    /// Finds the keys anew: another process, on another machine, may have exchanged them. Where several processes do not
    /// share a device there is nothing to be found.
    fn look_again(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Ciphertext of `plaintext`, bound to `aad` and the key's number.
    fn seal(&self, aad: &[u8], plaintext: &[u8], rng: &mut dyn CryptoRngCore) -> Result<Sealed, DeviceError>;
    /// An error if it was not sealed by this device for this `aad`.
    fn open(&self, key_id: u32, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, DeviceError>;
    /// Makes the next key, which seals from now on. The others still open.
    fn make_key(&self, now_s: u64) -> Result<u32, DeviceError>;
    /// Destroys all keys but the newest: what they sealed can never be opened again, wherever copies of it are.
    fn destroy_old_keys(&self) -> Result<(), DeviceError>;
}

/// One generation of the key that seals records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealKey {
    /// Counts from 1.
    pub id: u32,
    /// When it was made, in seconds since 1970; 0 if nobody knows.
    pub made_at_s: u64,
}

/// What [`Sealer::seal`] gives.
pub struct Sealed {
    /// Which key it was.
    pub key_id: u32,
    /// Nonce, ciphertext, tag.
    pub bytes: Vec<u8>,
}

/// The key that clients pin.
pub trait IdentityKey: Send + Sync {
    /// Its public half.
    fn public(&self) -> [u8; 32];
    /// Ed25519.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], DeviceError>;
}

/// Where the OPRF is evaluated.
pub trait OprfRoot: Evaluator + Send + Sync {
    /// The same for the thread that decides, which everybody waits for: it is served before all others.
    fn at_once(&self) -> &dyn Evaluator;
    /// Whether an evaluation waits for a device: then it must not hold up a thread that serves others.
    fn waits(&self) -> bool;
}

/// The three uses of an HSM; the same device or three.
#[derive(Clone)]
pub struct Keys {
    /// Where the keys are, as `info` and every answer say: `soft`, or a mode of the device.
    pub name: String,
    /// Pinned by clients.
    pub identity: Arc<dyn IdentityKey>,
    /// Encrypts records.
    pub sealer: Arc<dyn Sealer>,
    /// Evaluates.
    pub oprf: Arc<dyn OprfRoot>,
}

/// For which accounts the keys are wanted. Identity and OPRF root are those of the whole vault; a cell has its own anchor
/// in a device, and its own seal keys, where several cells share one.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// All of them. Refused if they are cut into cells.
    Whole,
    /// Those of one cell.
    Cell(&'a CellConfig),
    /// None: what all cells have in common is enough.
    Common,
}

impl Part<'_> {
    /// The cell, in a map that `identity` signed.
    fn place(&self, identity: &[u8; 32]) -> Result<Option<Place>, CellMapError> {
        match self {
            Self::Cell(config) => Place::read(config, identity).map(Some),
            Self::Whole | Self::Common => Ok(None),
        }
    }
}

/// Everything that a backend gives.
pub struct Device {
    /// What the vault works with.
    pub keys: Keys,
    /// Keys the digest over all records, or gives the keys for the cells ([`crate::cells::Cell::digest_key`]). In memory
    /// while the vault runs, on no disk of its own.
    pub digest_key: Zeroizing<[u8; 32]>,
    /// The cell that was asked for.
    pub place: Option<Place>,
    /// An anchor in the device, if it can be one.
    pub anchor: Option<Box<dyn Anchor>>,
    /// Why it is for development only, if it is.
    pub weakness: Option<&'static str>,
    /// What else whoever runs the vault should know of it.
    pub cautions: Vec<String>,
}

/// The device did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// It refused or broke. What the library said is all there is to know.
    #[error("the device did not {doing}: {said}")]
    Failed {
        /// What it should have done.
        doing: &'static str,
        /// The library's words.
        said: String,
    },
    /// Sealed by another device, for another record, or changed. Some libraries say the same when they break.
    #[error("the record was not sealed by this device, or was changed")]
    NotSealedHere,
    /// An old copy of the database, most likely.
    #[error("there is no seal key {key_id}: it was destroyed, or is of another device")]
    NoSuchKey {
        /// The number.
        key_id: u32,
    },
    /// Its answer contradicts its public key.
    #[error("the device gave a wrong answer")]
    Wrong,
    /// This backend cannot.
    #[error("software keys cannot be exchanged")]
    Unsupported,
    /// The thread that owned it has ended.
    #[error("the connection to the device has ended")]
    Gone,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HsmError {
    /// The file is not there, cannot be read, or exists already.
    #[error("the key file")]
    Io(#[from] std::io::Error),
    /// Others could read it.
    #[error("`{path}` must be readable by its owner only, it has mode {mode:o}")]
    TooOpen {
        /// Which file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key file.
    #[error("the key file is damaged")]
    Damaged,
    /// Final: asking again with the same PIN would lock the token.
    #[error(
        "the PIN is wrong or locked ({said}); not tried again, because tokens lock after a few wrong ones"
    )]
    Pin {
        /// The library's words.
        said: String,
    },
    /// Module, token or keys are not what the configuration says.
    #[error("{0}")]
    Token(String),
    /// It was reached, and failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Nobody knows which cell it should be.
    #[error(transparent)]
    Cells(#[from] CellMapError),
}

/// Makes a vault's keys where `config` says, or what one cell has of its own there; `dir` is for keys in software and notes.
/// Never overwrites: refuses when any exist.
pub fn create(
    config: &HsmConfig,
    dir: &Path,
    part: Part<'_>,
    now_s: u64,
    rng: &mut dyn CryptoRngCore,
) -> Result<Device, HsmError> {
    match (config, part) {
        // all of them are in one file, which whoever makes a cell puts there
        (HsmConfig::Soft {}, Part::Cell(_)) => open(config, dir, part),
        (HsmConfig::Soft {}, _) => Ok(SoftHsm::create(dir, rng)?.device()),
        (HsmConfig::Pkcs11(settings), _) => pkcs11::create(settings, part, now_s),
        (HsmConfig::Tpm2(_), Part::Cell(_)) => Err(tpm_of_one_machine()),
        (HsmConfig::Tpm2(settings), _) => tpm2::create(settings, dir, now_s, rng),
    }
}

/// Opens a vault's keys, and tests them.
pub fn open(config: &HsmConfig, dir: &Path, part: Part<'_>) -> Result<Device, HsmError> {
    match (config, part) {
        (HsmConfig::Soft {}, _) => {
            let device = SoftHsm::open(dir)?.device();
            Ok(Device { place: part.place(&device.keys.identity.public())?, ..device })
        }
        (HsmConfig::Pkcs11(settings), _) => pkcs11::open(settings, part),
        (HsmConfig::Tpm2(_), Part::Cell(_)) => Err(tpm_of_one_machine()),
        (HsmConfig::Tpm2(settings), _) => tpm2::open(settings, dir),
    }
}

fn tpm_of_one_machine() -> HsmError {
    HsmError::Token(TPM_OF_ONE_MACHINE.to_owned())
}

/// Why a cell's keys are in no TPM.
pub const TPM_OF_ONE_MACHINE: &str =
    "cells cannot have their keys in a TPM: it belongs to one machine, and the cells of a vault to many";

/// What the key of the digest is the HMAC of, under a device's secret for the host.
const DIGEST_LABEL: &[u8] = b"chatkeep vault digest key v1";
/// The same for the identity, where the device does not sign Ed25519.
const IDENTITY_LABEL: &[u8] = b"chatkeep vault identity seed v1";

/// Length of the nonce of AES-GCM, in bytes; it stands before the ciphertext.
const NONCE_LEN: usize = 12;

fn aad_with_key(aad: &[u8], key_id: u32) -> Vec<u8> {
    [aad, &key_id.to_be_bytes()].concat()
}
