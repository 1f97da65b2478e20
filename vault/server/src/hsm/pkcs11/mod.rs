//! Keys on a PKCS#11 token, from SoftHSM2 to a rack of hardware.
//!
//! In reading order: the way to the token (`connect`), its objects (`objects`), those that each cell has of its own (`own`),
//! what is done with them (`token`), the arithmetic around it (`curve`).
//!
//! Bound mode: the OPRF key of an account is K·k_a with K in the token and k_a random, in the sealed record. The result
//! is a plain evaluation of RFC 9497, and none can be made without the token, not even with a copy of all else. Derived
//! mode, for tokens that do not give the x-coordinate of a product away: the key is an HMAC of k_a by the token, so it is
//! in the host's memory while it is used, and whoever is on the host can take it home.

mod connect;
mod curve;
mod objects;
mod own;
mod token;

use std::sync::Arc;
use std::time::Duration;

use chatkeep_vault_protocol::Suite;
use ed25519_dalek::{Signer as _, SigningKey};
use p256::NonZeroScalar;
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use self::connect::connect;
use self::curve::Question;
use self::token::{Root, Token};
use super::device_anchor::DeviceAnchor;
use super::device_root::{DeviceRoot, Multiply};
use super::worker::{Turn, Worker};
use super::{
    DIGEST_LABEL, Device, DeviceError, HsmError, IDENTITY_LABEL, IdentityKey, Keys, NONCE_LEN, Part, SealKey,
    Sealed, Sealer,
};
use crate::config::Pkcs11Config;

const ACCOUNT_LABEL: &[u8] = b"chatkeep vault account key v1";

/// Makes a vault's keys on the token, or what a cell has of its own there. Refuses a token that has any.
pub fn create(settings: &Pkcs11Config, part: Part<'_>, now_s: u64) -> Result<Device, HsmError> {
    let connected = connect(settings)?;
    let in_software = connected.in_software;
    let token = match part {
        Part::Cell(_) => Token::find(connected)?,
        Part::Whole | Part::Common => Token::create(connected, now_s)?,
    };
    device(token, part, Some(now_s), in_software)
}

/// Opens a vault's keys on the token, and tests them.
pub fn open(settings: &Pkcs11Config, part: Part<'_>) -> Result<Device, HsmError> {
    let connected = connect(settings)?;
    let in_software = connected.in_software;
    device(Token::find(connected)?, part, None, in_software)
}

/// With `made_at_s`, what a cell has of its own is made.
fn device(
    mut token: Token,
    part: Part<'_>,
    made_at_s: Option<u64>,
    in_software: bool,
) -> Result<Device, HsmError> {
    let digest_key = token.host_secret(DIGEST_LABEL)?;
    let signer = match token.identity() {
        Some(public) => Signer::OnToken(public),
        None => Signer::InMemory(Box::new(SigningKey::from_bytes(&*token.host_secret(IDENTITY_LABEL)?))),
    };
    let place = part.place(&signer.public())?;
    match (&part, &place) {
        (_, Some(place)) => {
            if let Some(now_s) = made_at_s {
                token.make_cell(place.cell.id(), now_s)?;
            }
            token.enter(place.cell.id())?;
        }
        (Part::Whole, None) => token.check_whole()?,
        (Part::Cell(_) | Part::Common, None) => {}
    }
    token.test()?;
    let root = token.root();
    let name = name(&root, &signer, in_software);
    let worker = Arc::new(Worker::start(token)?);
    let oprf = Arc::new(DeviceRoot::new(TokenRoot { worker: worker.clone(), root }));
    let hsm = Arc::new(Pkcs11Hsm { worker: worker.clone(), signer });
    Ok(Device {
        keys: Keys { name, identity: hsm.clone(), sealer: hsm, oprf },
        digest_key,
        place,
        anchor: Some(Box::new(DeviceAnchor::new("pkcs11", worker, Duration::ZERO))),
        weakness: in_software.then_some(
            "the token says that it is no hardware (hsm: … +software): whoever copies its files and the PIN can guess \
             without limit",
        ),
        cautions: Vec::new(),
    })
}

/// What every answer says: `pkcs11`, or the weaker `pkcs11-derived`, and what else makes it weaker.
fn name(root: &Root, signer: &Signer, in_software: bool) -> String {
    let mut name = match root {
        Root::Bound { .. } => "pkcs11".to_owned(),
        Root::Derived { .. } => "pkcs11-derived".to_owned(),
    };
    if let Signer::InMemory(_) = signer {
        name.push_str("+memory-identity");
    }
    if in_software {
        name.push_str("+software");
    }
    name
}

/// All traits over the one thread.
struct Pkcs11Hsm {
    worker: Arc<Worker<Token>>,
    signer: Signer,
}

enum Signer {
    OnToken([u8; 32]),
    InMemory(Box<SigningKey>),
}

impl Signer {
    fn public(&self) -> [u8; 32] {
        match self {
            Self::OnToken(public) => *public,
            Self::InMemory(key) => key.verifying_key().to_bytes(),
        }
    }
}

/// Multiplies with both keys, or derives the account's.
#[derive(Clone)]
struct TokenRoot {
    worker: Arc<Worker<Token>>,
    root: Root,
}

impl Multiply for TokenRoot {
    fn multiply(
        &self,
        turn: Turn,
        suite: Suite,
        key: &[u8; 32],
        blinded: &[u8],
    ) -> Result<Vec<u8>, DeviceError> {
        let failed = |_| DeviceError::Wrong;
        match self.root {
            Root::Bound { public, .. } => {
                let question = Question::new(blinded).ok_or(DeviceError::Wrong)?;
                let coordinates = self.worker.call(turn, move |token| token.multiply(&question))?;
                suite.evaluate(key, &coordinates.product(&public)?).map_err(failed)
            }
            Root::Derived { .. } => {
                let key = Zeroizing::new(*key);
                let key = self.worker.call(turn, move |token| account_key(token, suite, &key))?;
                suite.evaluate(&key, blinded).map_err(failed)
            }
        }
    }
}

/// A scalar from HMACs: the first that is one. All but one in 2^32 are.
fn account_key(token: &Token, suite: Suite, key: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
    for counter in 0..=u8::MAX {
        let scalar = token.derive(&[ACCOUNT_LABEL, &[suite as u8, counter], key].concat())?;
        if NonZeroScalar::try_from(&scalar[..]).is_ok() {
            return Ok(scalar);
        }
    }
    Err(DeviceError::Wrong)
}

impl IdentityKey for Pkcs11Hsm {
    fn public(&self) -> [u8; 32] {
        self.signer.public()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], DeviceError> {
        match &self.signer {
            Signer::OnToken(_) => {
                let message = message.to_vec();
                self.worker.call(Turn::First, move |token| token.sign(&message))
            }
            Signer::InMemory(key) => Ok(key.sign(message).to_bytes()),
        }
    }
}

impl Sealer for Pkcs11Hsm {
    fn keys(&self) -> Result<Vec<SealKey>, DeviceError> {
        self.worker.call(Turn::First, |token| Ok(token.seal_keys()))
    }

    fn look_again(&self) -> Result<(), DeviceError> {
        self.worker.call(Turn::First, Token::look_again)
    }

    fn seal(&self, aad: &[u8], plaintext: &[u8], rng: &mut dyn CryptoRngCore) -> Result<Sealed, DeviceError> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let (aad, plaintext) = (aad.to_vec(), Zeroizing::new(plaintext.to_vec()));
        self.worker.call(Turn::First, move |token| token.seal(&aad, &plaintext, nonce))
    }

    fn open(&self, key_id: u32, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, DeviceError> {
        let (aad, sealed) = (aad.to_vec(), sealed.to_vec());
        self.worker.call(Turn::First, move |token| token.open_sealed(key_id, &aad, &sealed))
    }

    fn make_key(&self, now_s: u64) -> Result<u32, DeviceError> {
        self.worker.call(Turn::First, move |token| token.make_seal_key(now_s))
    }

    fn destroy_old_keys(&self) -> Result<(), DeviceError> {
        self.worker.call(Turn::First, Token::destroy_old_seal_keys)
    }
}
