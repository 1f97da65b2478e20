//! The vault's keys on a token, opened, and what is done with them. One thread owns it.

use chatkeep_vault_protocol::cell::CellId;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use ed25519_dalek::{Signature, VerifyingKey};
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::{NonZeroScalar, ProjectivePoint};
use rand_core::OsRng;
use zeroize::Zeroizing;

use super::connect::Connected;
use super::curve::{self, DeviceAnswer, Question, Uncompressed};
use super::objects::{self, HOST, IDENTITY, Keep, ROOT, failed};
use super::own::{self, Own};
use crate::hsm::device_anchor::{ANCHOR_LEN, AnchorCell};
use crate::hsm::{DeviceError, HsmError, NONCE_LEN, SealKey, Sealed, aad_with_key};

/// Length of GCM's tag.
const TAG_BITS: u64 = 128;

/// An open session, logged in, and where the keys are.
pub(super) struct Token {
    session: Session,
    root: Root,
    host: ObjectHandle,
    identity: Option<(ObjectHandle, [u8; 32])>,
    own: Own,
}

/// Which of the two ways to an OPRF key the token knows. Chosen when the keys are made, and never again: the other way
/// would give every password another key.
#[derive(Clone, Copy)]
pub(super) enum Root {
    /// K never leaves the token, and no evaluation happens without it.
    Bound {
        /// K.
        key: ObjectHandle,
        /// K·G.
        public: ProjectivePoint,
    },
    /// The account's key is an HMAC by the token, and is in the host's memory while it is used.
    Derived {
        /// The HMAC key.
        key: ObjectHandle,
    },
}

/// The x-coordinates for one product.
pub(super) struct Coordinates {
    x: Zeroizing<[u8; 32]>,
    x_shifted: Option<Zeroizing<[u8; 32]>>,
}

impl Coordinates {
    /// The product, if they fit the public key.
    pub(super) fn product(&self, public: &ProjectivePoint) -> Result<Vec<u8>, DeviceError> {
        let answer = DeviceAnswer { x: &self.x, x_shifted: self.x_shifted.as_deref() };
        curve::product(public, &answer).ok_or(DeviceError::Wrong)
    }
}

impl Token {
    /// Makes all keys of a vault. Refuses a token that has any.
    pub(super) fn create(connected: Connected, now_s: u64) -> Result<Self, HsmError> {
        let session = &connected.session;
        if !objects::all(session)?.is_empty() {
            return Err(HsmError::Token(
                "the token has keys of a vault already (objects called `chatkeep-vault …`); they are not overwritten"
                    .to_owned(),
            ));
        }
        match make_all(&connected, now_s) {
            Ok(()) => Self::find(connected),
            Err(error) => {
                // half a vault is none: everything with our labels was made just now
                for object in objects::all(session).unwrap_or_default() {
                    drop(session.destroy_object(object));
                }
                Err(error)
            }
        }
    }

    /// Finds what all cells have in common, and what a vault that is whole has beside it. Call [`Self::test`] when it is
    /// known for which accounts it is.
    pub(super) fn find(connected: Connected) -> Result<Self, HsmError> {
        let session = connected.session;
        let root = find_root(&session)?;
        let host = objects::need(&session, ObjectClass::SECRET_KEY, HOST)?;
        objects::check_locked_in(&session, host, HOST)?;
        let identity = find_identity(&session)?;
        let own = Own::find(&session, None)?;
        Ok(Self { session, root, host, identity, own })
    }

    /// Makes what `cell` has of its own. Refuses what there is already, and a cell of another map.
    pub(super) fn make_cell(&self, cell: CellId, now_s: u64) -> Result<(), HsmError> {
        Own::make_of_cell(&self.session, cell, now_s)
    }

    /// From now on it seals and anchors for `cell`.
    pub(super) fn enter(&mut self, cell: CellId) -> Result<(), HsmError> {
        own::check_cut(&self.session, cell)?;
        self.own = Own::find(&self.session, Some(cell))?;
        Ok(())
    }

    /// Refuses a vault that is cut into cells.
    pub(super) fn check_whole(&self) -> Result<(), HsmError> {
        own::check_whole(&self.session)
    }

    /// How the OPRF is evaluated.
    pub(super) fn root(&self) -> Root {
        self.root
    }

    /// The public half of the identity, if that is on the token.
    pub(super) fn identity(&self) -> Option<[u8; 32]> {
        self.identity.map(|(_, public)| public)
    }

    /// The x-coordinates that make up K·B.
    pub(super) fn multiply(&self, question: &Question) -> Result<Coordinates, DeviceError> {
        let Root::Bound { key, .. } = self.root else { return Err(DeviceError::Unsupported) };
        coordinates(&self.session, key, question)
    }

    /// An HMAC by the root: how an account's key is derived where the token does not multiply.
    pub(super) fn derive(&self, message: &[u8]) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        let Root::Derived { key } = self.root else { return Err(DeviceError::Unsupported) };
        hmac(&self.session, key, message)
    }

    /// An HMAC by the key for what has to be in the host's memory.
    pub(super) fn host_secret(&self, label: &[u8]) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        hmac(&self.session, self.host, label)
    }

    /// Signs with the identity.
    pub(super) fn sign(&self, message: &[u8]) -> Result<[u8; 64], DeviceError> {
        let (key, _) = self.identity.ok_or(DeviceError::Unsupported)?;
        sign(&self.session, key, message)
    }

    /// The seal keys, oldest first.
    pub(super) fn seal_keys(&self) -> Vec<SealKey> {
        self.own.seal.values().map(|(_, key)| *key).collect()
    }

    /// Finds the seal keys anew.
    pub(super) fn look_again(&mut self) -> Result<(), DeviceError> {
        self.own.look_again(&self.session)
    }

    /// Encrypts with the newest seal key.
    pub(super) fn seal(
        &self,
        aad: &[u8],
        plaintext: &[u8],
        nonce: [u8; NONCE_LEN],
    ) -> Result<Sealed, DeviceError> {
        let (key_id, key) = self.own.newest();
        let (mut nonce, aad) = (nonce, aad_with_key(aad, key_id));
        let params = GcmParams::new(&mut nonce, &aad, TAG_BITS.into()).map_err(failed("seal a record"))?;
        let sealed = self.session.encrypt(&Mechanism::AesGcm(params), key, plaintext);
        let sealed = sealed.map_err(failed("seal a record"))?;
        // read after the call: tokens that draw the nonce themselves put it there
        Ok(Sealed { key_id, bytes: [&nonce[..], &sealed].concat() })
    }

    /// Decrypts what [`Self::seal`] gave.
    pub(super) fn open_sealed(
        &self,
        key_id: u32,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, DeviceError> {
        let (key, _) = self.own.seal.get(&key_id).ok_or(DeviceError::NoSuchKey { key_id })?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(DeviceError::NotSealedHere)?;
        let (mut nonce, aad) = (*nonce, aad_with_key(aad, key_id));
        let params = GcmParams::new(&mut nonce, &aad, TAG_BITS.into()).map_err(failed("open a record"))?;
        let opened = self.session.decrypt(&Mechanism::AesGcm(params), *key, sealed);
        opened.map(Zeroizing::new).map_err(|error| match error {
            // no code is for a wrong tag alone; SoftHSM2 says "general error"
            Error::Pkcs11(
                RvError::GeneralError | RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange,
                _,
            ) => DeviceError::NotSealedHere,
            other => failed("open a record")(other),
        })
    }

    /// Makes the next seal key, which seals from now on.
    pub(super) fn make_seal_key(&mut self, now_s: u64) -> Result<u32, DeviceError> {
        self.own.make_seal_key(&self.session, now_s)
    }

    /// Destroys all seal keys but the newest.
    pub(super) fn destroy_old_seal_keys(&mut self) -> Result<(), DeviceError> {
        self.own.destroy_old_seal_keys(&self.session)
    }

    /// Everything is tried once, so that a token that changed its ways is noticed before anybody is charged for it.
    pub(super) fn test(&self) -> Result<(), HsmError> {
        match self.root {
            Root::Bound { key, public } => test_root(&self.session, key, &public)?,
            Root::Derived { .. } => drop(self.derive(b"test")?),
        }
        self.host_secret(b"test")?;
        if let Some((key, public)) = self.identity {
            test_identity(&self.session, key, &public)?;
        }
        let sealed = self.seal(b"test", b"test", [0; NONCE_LEN])?;
        let opened = self.open_sealed(sealed.key_id, b"test", &sealed.bytes)?;
        let refused = self.open_sealed(sealed.key_id, b"tess", &sealed.bytes);
        if *opened != b"test" || refused.is_ok() {
            return Err(DeviceError::Wrong.into());
        }
        Ok(())
    }
}

impl AnchorCell for Token {
    fn anchor(&mut self) -> Result<Vec<u8>, DeviceError> {
        objects::read_id(&self.session, self.own.anchor)
    }

    fn set_anchor(&mut self, value: &[u8; ANCHOR_LEN]) -> Result<(), DeviceError> {
        let value = Attribute::Id(value.to_vec());
        self.session.update_attributes(self.own.anchor, &[value]).map_err(failed("write the anchor"))
    }
}

fn make_all(connected: &Connected, now_s: u64) -> Result<(), HsmError> {
    let session = &connected.session;
    match try_root(connected) {
        Ok(()) => drop(objects::make_root_pair(session, Keep::OnToken)?),
        Err(error) => {
            tracing::warn!(%error, "this token does not multiply: keys of accounts will be derived by HMAC");
            objects::make_hmac_key(session, Keep::OnToken, ROOT)?;
        }
    }
    match try_identity(connected) {
        Ok(()) => drop(objects::make_identity_pair(session, Keep::OnToken)?),
        Err(error) => {
            tracing::warn!(%error, "this token does not sign Ed25519: the identity will be in memory");
        }
    }
    objects::make_hmac_key(session, Keep::OnToken, HOST)?;
    Ok(Own::make(session, now_s)?)
}

/// Whether the token gives the x-coordinate of a product away: some bar `CKD_NULL`, or reading what was derived.
fn try_root(connected: &Connected) -> Result<(), HsmError> {
    listed(&connected.mechanisms, MechanismType::ECDH1_DERIVE, "multiply")?;
    let session = &connected.session;
    let (private, public) = objects::make_root_pair(session, Keep::ForThisSession)?;
    let point = read_point(session, public)?;
    let tried = test_root(session, private, &point);
    for object in [private, public] {
        drop(session.destroy_object(object));
    }
    Ok(tried?)
}

fn try_identity(connected: &Connected) -> Result<(), HsmError> {
    listed(&connected.mechanisms, MechanismType::EDDSA, "sign")?;
    let session = &connected.session;
    let (private, public) = objects::make_identity_pair(session, Keep::ForThisSession)?;
    let tried = read_identity(session, public).and_then(|key| Ok(test_identity(session, private, &key)?));
    for object in [private, public] {
        drop(session.destroy_object(object));
    }
    tried
}

fn listed(
    mechanisms: &[MechanismType],
    which: MechanismType,
    doing: &'static str,
) -> Result<(), DeviceError> {
    if mechanisms.contains(&which) {
        Ok(())
    } else {
        Err(DeviceError::Failed { doing, said: format!("it does not list {which}") })
    }
}

fn find_root(session: &Session) -> Result<Root, HsmError> {
    if let Some(key) = objects::find(session, ObjectClass::PRIVATE_KEY, ROOT)? {
        objects::check_locked_in(session, key, ROOT)?;
        let public = objects::need(session, ObjectClass::PUBLIC_KEY, ROOT)?;
        return Ok(Root::Bound { key, public: read_point(session, public)? });
    }
    let key = objects::need(session, ObjectClass::SECRET_KEY, ROOT)?;
    objects::check_locked_in(session, key, ROOT)?;
    Ok(Root::Derived { key })
}

fn find_identity(session: &Session) -> Result<Option<(ObjectHandle, [u8; 32])>, HsmError> {
    let Some(key) = objects::find(session, ObjectClass::PRIVATE_KEY, IDENTITY)? else { return Ok(None) };
    objects::check_locked_in(session, key, IDENTITY)?;
    let public = objects::need(session, ObjectClass::PUBLIC_KEY, IDENTITY)?;
    Ok(Some((key, read_identity(session, public)?)))
}

fn read_point(session: &Session, public: ObjectHandle) -> Result<ProjectivePoint, HsmError> {
    let point = objects::read(session, public, AttributeType::EcPoint)?;
    curve::public_key(&point).ok_or_else(|| DeviceError::Wrong.into())
}

/// The key stands at the end of `CKA_EC_POINT`, whatever it is wrapped in.
fn read_identity(session: &Session, public: ObjectHandle) -> Result<[u8; 32], HsmError> {
    let point = objects::read(session, public, AttributeType::EcPoint)?;
    point.last_chunk().copied().ok_or_else(|| DeviceError::Wrong.into())
}

/// K·(b·G) must be b·(K·G), for a b that nobody could foresee.
fn test_root(session: &Session, key: ObjectHandle, public: &ProjectivePoint) -> Result<(), DeviceError> {
    let compressed = |point: ProjectivePoint| point.to_affine().to_encoded_point(true).as_bytes().to_vec();
    let b = NonZeroScalar::random(&mut OsRng);
    let question =
        Question::new(&compressed(ProjectivePoint::GENERATOR * *b)).expect("b is neither 0 nor unreduced");
    let product = coordinates(session, key, &question)?.product(public)?;
    if product == compressed(*public * *b) { Ok(()) } else { Err(DeviceError::Wrong) }
}

fn test_identity(session: &Session, key: ObjectHandle, public: &[u8; 32]) -> Result<(), DeviceError> {
    let signature = Signature::from_bytes(&sign(session, key, b"test")?);
    VerifyingKey::from_bytes(public)
        .and_then(|key| key.verify_strict(b"test", &signature))
        .map_err(|_| DeviceError::Wrong)
}

fn coordinates(
    session: &Session,
    key: ObjectHandle,
    question: &Question,
) -> Result<Coordinates, DeviceError> {
    let x = shared_x(session, key, &question.point)?;
    let x_shifted = question.shifted.map(|point| shared_x(session, key, &point)).transpose()?;
    Ok(Coordinates { x, x_shifted })
}

/// ECDH without a derivation function: the x-coordinate of the product.
fn shared_x(
    session: &Session,
    key: ObjectHandle,
    point: &Uncompressed,
) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(32.into()),
        Attribute::Token(false),
        Attribute::Private(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), point));
    let derived = session.derive_key(&mechanism, key, &template).map_err(failed("multiply"))?;
    let value = objects::read(session, derived, AttributeType::Value).map(Zeroizing::new);
    session.destroy_object(derived).map_err(failed("forget a product"))?;
    fixed(&value?)
}

fn hmac(session: &Session, key: ObjectHandle, message: &[u8]) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
    let mac = session.sign(&Mechanism::Sha256Hmac, key, message).map(Zeroizing::new);
    fixed(&mac.map_err(failed("compute an HMAC"))?)
}

fn sign(session: &Session, key: ObjectHandle, message: &[u8]) -> Result<[u8; 64], DeviceError> {
    let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
    let signature = session.sign(&mechanism, key, message).map_err(failed("sign"))?;
    signature.try_into().map_err(|_| DeviceError::Wrong)
}

fn fixed(bytes: &[u8]) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
    bytes.try_into().map(Zeroizing::new).map_err(|_| DeviceError::Wrong)
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
