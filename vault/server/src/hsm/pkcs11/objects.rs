//! Which objects on the token are the vault's, what they may be used for, and how they are made.
//!
//! They are found by their labels: one vault on one token; what a cell has of its own has the cell's number there. Keys are made on the token, sensitive and never extractable.

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use crate::hsm::device_anchor::ANCHOR_LEN;
use crate::hsm::{DeviceError, HsmError, SealKey};

/// K: a P-256 key pair or, where the token does not give x-coordinates away, an HMAC key.
pub(super) const ROOT: &str = "chatkeep-vault root";
/// AES-256, one for each generation; `CKA_ID` is its number and when it was made.
pub(super) const SEAL: &str = "chatkeep-vault seal";
/// HMAC: what has to be in the host's memory is derived from it at start.
pub(super) const HOST: &str = "chatkeep-vault host";
/// Ed25519, where the token knows it.
pub(super) const IDENTITY: &str = "chatkeep-vault identity";
/// A key that nobody uses; its `CKA_ID` is the anchor.
pub(super) const ANCHOR: &str = "chatkeep-vault anchor";

const ALL: [&str; 5] = [ROOT, SEAL, HOST, IDENTITY, ANCHOR];

/// prime256v1, as an object identifier.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Ed25519, as PKCS#11 3.0 names it: 1.3.101.112 …
const ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
/// … or, on older tokens, the printable string `edwards25519`.
const EDWARDS25519: &[u8] = b"\x13\x0cedwards25519";

/// Whether an object stays when the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// On the token.
    OnToken,
    /// To try something out.
    ForThisSession,
}

/// Turns the library's words into an error.
pub(super) fn failed(doing: &'static str) -> impl Fn(Error) -> DeviceError {
    move |error| DeviceError::Failed { doing, said: error.to_string() }
}

/// All objects with one of our labels.
pub(super) fn all(session: &Session) -> Result<Vec<ObjectHandle>, DeviceError> {
    let mut found = Vec::new();
    for label in ALL {
        found.extend(named_so(session, label)?);
    }
    Ok(found)
}

/// All objects with this label.
pub(super) fn named_so(session: &Session, label: &str) -> Result<Vec<ObjectHandle>, DeviceError> {
    session.find_objects(&[named(label)]).map_err(failed("list objects"))
}

/// All secret keys with this label.
pub(super) fn secret_keys(session: &Session, label: &str) -> Result<Vec<ObjectHandle>, DeviceError> {
    let template = [Attribute::Class(ObjectClass::SECRET_KEY), named(label)];
    session.find_objects(&template).map_err(failed("list objects"))
}

/// The one object of this class with this label, if there is any.
pub(super) fn find(
    session: &Session,
    class: ObjectClass,
    label: &str,
) -> Result<Option<ObjectHandle>, HsmError> {
    let found =
        session.find_objects(&[Attribute::Class(class), named(label)]).map_err(failed("list objects"))?;
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(HsmError::Token(format!("the token has several objects called `{label}`"))),
    }
}

/// As [`find`], for what must be there.
pub(super) fn need(session: &Session, class: ObjectClass, label: &str) -> Result<ObjectHandle, HsmError> {
    find(session, class, label)?.ok_or_else(|| {
        HsmError::Token(format!("the token has no `{label}`: was `chatkeep-vault init` run with it?"))
    })
}

/// Refuses a key that could be, or once could have been, taken out of the token.
pub(super) fn check_locked_in(session: &Session, key: ObjectHandle, label: &str) -> Result<(), HsmError> {
    use AttributeType as A;
    let wanted = [
        Attribute::Sensitive(true),
        Attribute::AlwaysSensitive(true),
        Attribute::Extractable(false),
        Attribute::NeverExtractable(true),
        Attribute::Local(true),
    ];
    let asked = [A::Sensitive, A::AlwaysSensitive, A::Extractable, A::NeverExtractable, A::Local];
    let found = session.get_attributes(key, &asked).map_err(failed("describe a key"))?;
    if wanted.iter().all(|attribute| found.contains(attribute)) {
        Ok(())
    } else {
        Err(HsmError::Token(format!("`{label}` was not made on the token, or can be taken out of it")))
    }
}

/// A pair for the root: private half, public half.
pub(super) fn make_root_pair(
    session: &Session,
    keep: Keep,
) -> Result<(ObjectHandle, ObjectHandle), DeviceError> {
    let public = [on_token(keep), Attribute::Private(false), named(ROOT), Attribute::EcParams(P256.to_vec())];
    let mut private = locked_in(keep, ROOT);
    private.extend([Attribute::Derive(true), Attribute::Sign(false)]);
    let pair = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private);
    pair.map(|(public, private)| (private, public)).map_err(failed("make a P-256 key"))
}

/// A pair for the identity: private half, public half.
pub(super) fn make_identity_pair(
    session: &Session,
    keep: Keep,
) -> Result<(ObjectHandle, ObjectHandle), DeviceError> {
    let make = |curve: &[u8]| {
        let public =
            [on_token(keep), Attribute::Private(false), named(IDENTITY), Attribute::EcParams(curve.to_vec())];
        let mut private = locked_in(keep, IDENTITY);
        private.extend([Attribute::Sign(true), Attribute::Derive(false)]);
        session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private)
    };
    let pair = make(ED25519).or_else(|_| make(EDWARDS25519));
    pair.map(|(public, private)| (private, public)).map_err(failed("make an Ed25519 key"))
}

/// An HMAC key of 32 bytes.
pub(super) fn make_hmac_key(session: &Session, keep: Keep, label: &str) -> Result<ObjectHandle, DeviceError> {
    let mut template = locked_in(keep, label);
    template.extend([
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(32.into()),
        Attribute::Sign(true),
        Attribute::Derive(false),
    ]);
    let made = session.generate_key(&Mechanism::GenericSecretKeyGen, &template);
    made.map_err(failed("make an HMAC key"))
}

/// An AES-256 key for records.
pub(super) fn make_seal_key(
    session: &Session,
    keep: Keep,
    label: &str,
    key: SealKey,
) -> Result<ObjectHandle, DeviceError> {
    let mut template = locked_in(keep, label);
    template.extend([
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Id([&key.id.to_be_bytes()[..], &key.made_at_s.to_be_bytes()].concat()),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
    ]);
    session.generate_key(&Mechanism::AesKeyGen, &template).map_err(failed("make a seal key"))
}

/// Number and age of a seal key.
pub(super) fn describe_seal_key(session: &Session, key: ObjectHandle) -> Result<SealKey, HsmError> {
    let id = read_id(session, key)?;
    let parts = id.split_first_chunk::<4>().and_then(|(id, made)| Some((id, made.try_into().ok()?)));
    let (id, made_at_s) =
        parts.ok_or_else(|| HsmError::Token(format!("a `{SEAL}` has a CKA_ID that no vault gave it")))?;
    Ok(SealKey { id: u32::from_be_bytes(*id), made_at_s: u64::from_be_bytes(made_at_s) })
}

/// The object whose `CKA_ID` is the anchor. Data objects have no `CKA_ID`, and their `CKA_VALUE` is not changed on
/// every token; a key's `CKA_ID` is.
pub(super) fn make_anchor(session: &Session, keep: Keep, label: &str) -> Result<ObjectHandle, DeviceError> {
    let template = [
        on_token(keep),
        Attribute::Private(true),
        Attribute::Modifiable(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        named(label),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(32.into()),
        Attribute::Sign(false),
        Attribute::Derive(false),
        Attribute::Id(vec![0; ANCHOR_LEN]),
    ];
    let made = session.generate_key(&Mechanism::GenericSecretKeyGen, &template);
    made.map_err(failed("make an anchor"))
}

/// An object's `CKA_ID`.
pub(super) fn read_id(session: &Session, object: ObjectHandle) -> Result<Vec<u8>, DeviceError> {
    read(session, object, AttributeType::Id)
}

/// One attribute that is a string of bytes.
pub(super) fn read(
    session: &Session,
    object: ObjectHandle,
    which: AttributeType,
) -> Result<Vec<u8>, DeviceError> {
    let found = session.get_attributes(object, &[which]).map_err(failed("give an attribute"))?;
    match found.into_iter().next() {
        Some(Attribute::Id(bytes) | Attribute::EcPoint(bytes) | Attribute::Value(bytes)) => Ok(bytes),
        _ => Err(DeviceError::Failed { doing: "give an attribute", said: format!("no {which}") }),
    }
}

fn named(label: &str) -> Attribute {
    Attribute::Label(label.as_bytes().to_vec())
}

fn on_token(keep: Keep) -> Attribute {
    Attribute::Token(keep == Keep::OnToken)
}

fn locked_in(keep: Keep, label: &str) -> Vec<Attribute> {
    vec![
        on_token(keep),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        named(label),
    ]
}

/// A root that was somewhere else before.
#[cfg(test)]
pub(super) fn import_root_for_tests(session: &Session, secret: &[u8; 32]) -> ObjectHandle {
    let mut template = locked_in(Keep::ForThisSession, ROOT);
    template.extend([
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::EcParams(P256.to_vec()),
        Attribute::Value(secret.to_vec()),
        Attribute::Derive(true),
    ]);
    session.create_object(&template).expect("the token takes keys")
}
