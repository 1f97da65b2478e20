//! Keys in a TPM 2.0.
//!
//! In reading order: the way to the TPM (`chip`), what of it is the vault's (`objects`, `slots`), how that is made (`make`), what is
//! done with it (`tpm`), and how to tell why it is not there (`note`).
//!
//! The OPRF root never leaves the TPM: an account's key is K·k_a, one `TPM2_ECDH_ZGen` multiplies with K and gives the whole
//! point. The rest is in the host's memory while the vault runs, and on no disk: TPMs do not sign Ed25519, and a record that had to be
//! sealed by the TPM would cost as much as a guess. The keys for that lie in NV indices, where an old one is overwritten.

mod chip;
mod make;
mod note;
mod objects;
mod slots;
mod tpm;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use chatkeep_vault_protocol::Suite;
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, Mac as _};
use rand_core::CryptoRngCore;
use sha2::{Digest as _, Sha256};
use tss_esapi::structures::Auth;
use zeroize::Zeroizing;

use self::chip::{Chip, Maker};
use self::make::AuthValues;
use self::note::Note;
use self::tpm::{HostSecrets, Tpm};
use super::device_anchor::DeviceAnchor;
use super::device_root::{DeviceRoot, Multiply};
use super::host_seal::HostSealKey;
use super::secret_file::read_pin;
use super::worker::{Turn, Worker};
use super::{
    DIGEST_LABEL, Device, DeviceError, HsmError, IDENTITY_LABEL, IdentityKey, Keys, SealKey, Sealed, Sealer,
};
use crate::config::Tpm2Config;

/// Shorter ones could be guessed: no key here counts wrong tries. Random letters: 20 of base64 are 120 bits.
const AUTH_LEN_MIN: usize = 20;
/// Who waits is told `busy` after 8 s.
const ANCHOR_PAUSE_MAX_S: u64 = 5;
const ROOT_AUTH_LABEL: &[u8] = b"chatkeep vault tpm root auth v1";
const INDEX_AUTH_LABEL: &[u8] = b"chatkeep vault tpm index auth v1";

/// Makes a vault's keys in the TPM. Refuses one that has any.
pub fn create(
    settings: &Tpm2Config,
    dir: &Path,
    now_s: u64,
    rng: &mut dyn CryptoRngCore,
) -> Result<Device, HsmError> {
    let auth = auth_values(settings)?;
    let owner_auth = match &settings.owner_auth_file {
        Some(path) => Auth::try_from(read_pin(path)?.as_bytes())
            .map_err(|_| HsmError::Token("what is in owner_auth_file is too long for a TPM".to_owned()))?,
        None => Auth::default(),
    };
    let mut chip = Chip::connect(&settings.tcti)?;
    make::make_all(&mut chip, &auth, &owner_auth, now_s, rng)?;
    let (maker, tpm) = (chip.maker()?, chip.fingerprint());
    let root = hex::encode(objects::root(&mut chip)?.2);
    Note { maker: maker.to_string(), tpm, root }.write(dir)?;
    if settings.discard_owner_auth {
        make::discard_owner_auth(&mut chip, rng)?;
    }
    // a TPM in software talks to one at a time
    drop(chip);
    open(settings, dir)
}

/// Opens a vault's keys in the TPM, and tests them.
pub fn open(settings: &Tpm2Config, dir: &Path) -> Result<Device, HsmError> {
    let auth = auth_values(settings)?;
    if settings.anchor_pause.seconds > ANCHOR_PAUSE_MAX_S {
        return Err(HsmError::Token(format!("anchor_pause must be {ANCHOR_PAUSE_MAX_S}s at most")));
    }
    let mut chip = Chip::connect(&settings.tcti)?;
    let (maker, note) = (chip.maker()?, Note::read(dir));
    if objects::found(&mut chip)?.is_empty() {
        let fingerprint = chip.fingerprint();
        return Err(HsmError::Token(note::why_absent(note.as_ref(), &maker, fingerprint.as_deref())));
    }
    let cautions = cautions(&mut chip, &maker)?;
    let is_ours = |name: &[u8]| match &note {
        Some(note) if note.root != hex::encode(name) => Err(HsmError::Token(format!(
            "the keys in the TPM ({maker}) are those of another vault: this one's were made in one by {}",
            note.maker
        ))),
        _ => Ok(()),
    };
    let (tpm, secrets) = Tpm::open(chip, &auth, is_ours)?;
    device(settings, tpm, &secrets, &maker, cautions)
}

/// What the TPM gets as auth values. A hash is as long as they may be.
fn auth_values(settings: &Tpm2Config) -> Result<AuthValues, HsmError> {
    let text = read_pin(&settings.auth_file)?;
    if text.len() < AUTH_LEN_MIN {
        return Err(HsmError::Token(format!(
            "what is in auth_file must have {AUTH_LEN_MIN} random characters at least: the TPM does not count who tries \
             them. `head -c 32 /dev/urandom | base64` makes some"
        )));
    }
    let value = |label: &[u8]| {
        let hash = Sha256::new().chain_update(label).chain_update(text.as_bytes()).finalize();
        Auth::try_from(&hash[..]).expect("32 bytes are not too long")
    };
    Ok(AuthValues { root: value(ROOT_AUTH_LABEL), index: value(INDEX_AUTH_LABEL) })
}

fn cautions(chip: &mut Chip, maker: &Maker) -> Result<Vec<String>, HsmError> {
    let mut cautions = Vec::new();
    if chip.owner_is_open()? {
        cautions.push(
            "the authorisation of the TPM's owner is empty: whoever may talk to the TPM can destroy the vault's keys, and with \
             them all accounts; who also has what is in auth_file can define the anchor anew with what it said earlier \
             (docs/operate-a-vault.md, \"The TPM's owner\")"
                .to_owned(),
        );
    }
    if maker.may_be_software() {
        cautions.push(format!(
            "the TPM ({maker}) may belong to a virtual machine: then its state is a file, and goes back with a snapshot"
        ));
    }
    Ok(cautions)
}

fn device(
    settings: &Tpm2Config,
    tpm: Tpm,
    secrets: &HostSecrets,
    maker: &Maker,
    cautions: Vec<String>,
) -> Result<Device, HsmError> {
    let in_software = maker.is_software();
    let pause = Duration::from_secs(settings.anchor_pause.seconds);
    let derived = |label: &[u8]| -> Zeroizing<[u8; 32]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&*secrets.host).expect("HMAC takes keys of any length");
        mac.update(label);
        Zeroizing::new(mac.finalize().into_bytes().into())
    };
    let seal = secrets.seal.iter().map(|(key, secret)| (key.id, Arc::new(HostSealKey::new(*key, secret))));
    let worker = Arc::new(Worker::start(tpm)?);
    let hsm = Arc::new(Tpm2Hsm {
        identity: SigningKey::from_bytes(&derived(IDENTITY_LABEL)),
        seal: RwLock::new(seal.collect()),
        worker: worker.clone(),
    });
    Ok(Device {
        keys: Keys {
            name: if in_software { "tpm2+software" } else { "tpm2" }.to_owned(),
            identity: hsm.clone(),
            sealer: hsm,
            oprf: Arc::new(DeviceRoot::new(TpmRoot(worker.clone()))),
        },
        digest_key: derived(DIGEST_LABEL),
        place: None,
        anchor: Some(Box::new(DeviceAnchor::new("tpm2", worker, pause))),
        weakness: in_software.then_some(
            "the TPM is a program (hsm: tpm2+software): whoever copies its state and the auth value can guess without limit, \
             and a snapshot takes its anchor back",
        ),
        cautions,
    })
}

/// All traits: what is in memory, and the one thread.
struct Tpm2Hsm {
    identity: SigningKey,
    seal: RwLock<BTreeMap<u32, Arc<HostSealKey>>>,
    worker: Arc<Worker<Tpm>>,
}

/// Multiplies in the TPM, and with the account's key here.
#[derive(Clone)]
struct TpmRoot(Arc<Worker<Tpm>>);

impl Multiply for TpmRoot {
    fn multiply(
        &self,
        turn: Turn,
        suite: Suite,
        key: &[u8; 32],
        blinded: &[u8],
    ) -> Result<Vec<u8>, DeviceError> {
        let element = blinded.to_vec();
        let product = self.0.call(turn, move |tpm| tpm.multiply(&element))?;
        suite.evaluate(key, &product).map_err(|_| DeviceError::Wrong)
    }
}

impl IdentityKey for Tpm2Hsm {
    fn public(&self) -> [u8; 32] {
        self.identity.verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], DeviceError> {
        Ok(self.identity.sign(message).to_bytes())
    }
}

impl Tpm2Hsm {
    /// `None`: the newest.
    fn seal_key(&self, key_id: Option<u32>) -> Option<Arc<HostSealKey>> {
        let keys = self.seal.read().expect("no one panics while holding it");
        match key_id {
            Some(key_id) => keys.get(&key_id).cloned(),
            None => keys.last_key_value().map(|(_, key)| key.clone()),
        }
    }
}

impl Sealer for Tpm2Hsm {
    fn keys(&self) -> Result<Vec<SealKey>, DeviceError> {
        Ok(self.seal.read().expect("no one panics while holding it").values().map(|key| key.key()).collect())
    }

    fn seal(&self, aad: &[u8], plaintext: &[u8], rng: &mut dyn CryptoRngCore) -> Result<Sealed, DeviceError> {
        Ok(self.seal_key(None).expect("there was one when it was opened").seal(aad, plaintext, rng))
    }

    fn open(&self, key_id: u32, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, DeviceError> {
        self.seal_key(Some(key_id)).ok_or(DeviceError::NoSuchKey { key_id })?.open(aad, sealed)
    }

    fn make_key(&self, now_s: u64) -> Result<u32, DeviceError> {
        let (key, secret) = self.worker.call(Turn::First, move |tpm| tpm.make_seal_key(now_s))?;
        let made = Arc::new(HostSealKey::new(key, &secret));
        self.seal.write().expect("no one panics while holding it").insert(key.id, made);
        Ok(key.id)
    }

    fn destroy_old_keys(&self) -> Result<(), DeviceError> {
        self.worker.call(Turn::First, Tpm::destroy_old_seal_keys)?;
        let mut keys = self.seal.write().expect("no one panics while holding it");
        while keys.len() > 1 {
            keys.pop_first();
        }
        Ok(())
    }
}
