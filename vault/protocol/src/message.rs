//! What a client asks. One CBOR map: version, nonce, and one request named by its key.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::Suite;
use crate::cbor::{Blob, Fixed, decode, encode};
use crate::cell::CellId;
use crate::head::SignedHead;
use crate::limits::{REQUEST_LEN_MAX, VERSION};

/// A request as it travels. Vaults answer the exact bytes, so these are kept for a repetition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Version of the protocol.
    #[serde(rename = "v")]
    pub version: u8,
    /// Random: makes the answer to this request an answer to no other one.
    #[serde(rename = "n")]
    pub nonce: Fixed<16>,
    /// What is asked.
    #[serde(rename = "r")]
    pub request: Request,
}

/// Everything a client can ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Who are you, and what is your policy?
    Info(Info),
    /// Draw a key for a new registration and evaluate one element with it.
    Begin(Begin),
    /// Here is the public key of the new registration.
    Finish(Finish),
    /// The new slot is stored: forget the old registration.
    Commit(Commit),
    /// Evaluate one element: one attempt.
    Guess(Guess),
    /// The attempt was right: start counting afresh.
    Prove(Prove),
    /// How many attempts are left?
    Status(Signed),
    /// Refuse all guesses until a time.
    Freeze(Freeze),
    /// Refuse them no longer: lift the freeze that ends at this time, and no other.
    Thaw(Freeze),
    /// Erase the account for ever.
    Destroy(Signed),
    /// Between vaults: witness this state of mine.
    Cosign(SignedHead),
    /// Between vaults: what is the newest state of that vault you witnessed?
    Latest(Latest),
    /// Remember the newest entry of my archive.
    WitnessHead(WitnessHead),
    /// Which entry of my archive is the newest you know?
    Head(Signed),
}

/// Nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {}

/// See [`Request::Begin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// Account.
    #[serde(rename = "a")]
    pub account: Fixed<16>,
    /// The new registration.
    #[serde(rename = "e")]
    pub epoch: Fixed<16>,
    /// [`Suite`] number.
    #[serde(rename = "u")]
    pub suite: u8,
    /// Blinded element.
    #[serde(rename = "b")]
    pub blinded: Blob,
    /// Attempts wished for; the vault's policy bounds it.
    #[serde(rename = "m")]
    pub attempts_max: u16,
    /// By the key of the active registration; absent for a new account.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Fixed<64>>,
    /// For a new account at a vault whose `info` asks for it, and never otherwise: see [`crate::Invite`].
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<Blob>,
}

/// See [`Request::Finish`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finish {
    /// Account.
    #[serde(rename = "a")]
    pub account: Fixed<16>,
    /// The new registration.
    #[serde(rename = "e")]
    pub epoch: Fixed<16>,
    /// Its public key, from the new S.
    #[serde(rename = "k")]
    pub public_key: Fixed<32>,
    /// By the key of the active registration; absent for a new account.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Fixed<64>>,
}

/// See [`Request::Commit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// Account.
    #[serde(rename = "a")]
    pub account: Fixed<16>,
    /// The new registration.
    #[serde(rename = "e")]
    pub epoch: Fixed<16>,
    /// By the key of the **new** registration.
    #[serde(rename = "s")]
    pub signature: Fixed<64>,
}

/// See [`Request::Guess`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guess {
    /// Account.
    #[serde(rename = "a")]
    pub account: Fixed<16>,
    /// The registration, active or pending.
    #[serde(rename = "e")]
    pub epoch: Fixed<16>,
    /// Blinded element.
    #[serde(rename = "b")]
    pub blinded: Blob,
}

/// See [`Request::Prove`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prove {
    /// Account.
    #[serde(rename = "a")]
    pub account: Fixed<16>,
    /// The registration that was guessed at.
    #[serde(rename = "e")]
    pub epoch: Fixed<16>,
    /// The element that was charged last.
    #[serde(rename = "b")]
    pub blinded: Blob,
    /// Over the whole exchange, see [`prove_message`].
    #[serde(rename = "s")]
    pub signature: Fixed<64>,
}

/// See [`Request::Latest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latest {
    /// Identity of the vault that is asked about.
    #[serde(rename = "v")]
    pub vault: Fixed<32>,
    /// Which of its cells; absent for a vault that is whole.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<CellId>,
}

/// See [`Request::WitnessHead`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessHead {
    /// Account.
    #[serde(rename = "a")]
    pub account: Fixed<16>,
    /// The registration whose key signs.
    #[serde(rename = "e")]
    pub epoch: Fixed<16>,
    /// The archive and its newest entry.
    #[serde(rename = "h")]
    pub head: ArchiveHead,
    /// See [`owner_message`].
    #[serde(rename = "s")]
    pub signature: Fixed<64>,
}

/// The newest entry of an archive, as a vault remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveHead {
    /// Names the archive without telling which it is; see [`crate::slot::Header::archive_tag`].
    #[serde(rename = "g")]
    pub tag: Fixed<16>,
    /// Number of the entry.
    #[serde(rename = "q")]
    pub seq: u64,
    /// Its digest.
    #[serde(rename = "d")]
    pub digest: Fixed<32>,
}

/// A request that only the owner may make: `status`, `destroy` and `head`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// Account.
    #[serde(rename = "a")]
    pub account: Fixed<16>,
    /// The registration whose key signs.
    #[serde(rename = "e")]
    pub epoch: Fixed<16>,
    /// See [`owner_message`].
    #[serde(rename = "s")]
    pub signature: Fixed<64>,
}

/// See [`Request::Freeze`] and [`Request::Thaw`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// Account.
    #[serde(rename = "a")]
    pub account: Fixed<16>,
    /// The registration whose key signs.
    #[serde(rename = "e")]
    pub epoch: Fixed<16>,
    /// Until when, in seconds since 1970; the policy bounds it, and a freeze never makes it earlier.
    #[serde(rename = "t")]
    pub until_s: u64,
    /// See [`owner_message`].
    #[serde(rename = "s")]
    pub signature: Fixed<64>,
}

impl Envelope {
    /// Puts a request into its envelope.
    pub fn new(request: Request, rng: &mut impl rand_core::CryptoRngCore) -> Self {
        let mut nonce = [0; 16];
        rng.fill_bytes(&mut nonce);
        Self { version: VERSION, nonce: Fixed(nonce), request }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a request; `None` if it is too long, no request, or of another version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        decode::<Self>(bytes, REQUEST_LEN_MAX).filter(|envelope| envelope.version == VERSION)
    }
}

impl Request {
    /// The account it is about; [`Request::Info`] and what vaults ask each other are about none.
    pub fn account(&self) -> Option<[u8; 16]> {
        match self {
            Self::Info(_) | Self::Cosign(_) | Self::Latest(_) => None,
            Self::Begin(r) => Some(r.account.0),
            Self::Finish(r) => Some(r.account.0),
            Self::Commit(r) => Some(r.account.0),
            Self::Guess(r) => Some(r.account.0),
            Self::Prove(r) => Some(r.account.0),
            Self::Status(r) | Self::Destroy(r) | Self::Head(r) => Some(r.account.0),
            Self::WitnessHead(r) => Some(r.account.0),
            Self::Freeze(r) | Self::Thaw(r) => Some(r.account.0),
        }
    }
}

/// What the owner signs: an operation on one account of one vault. All parts but the label have fixed lengths.
pub fn owner_message(
    operation: Operation<'_>,
    identity: &[u8; 32],
    account: &[u8; 16],
    epoch: &[u8; 16],
) -> Vec<u8> {
    let mut message = Vec::with_capacity(192);
    message.extend_from_slice(operation.label());
    message.extend_from_slice(identity);
    message.extend_from_slice(account);
    message.extend_from_slice(epoch);
    match operation {
        Operation::Begin { suite, attempts_max, blinded } => {
            message.push(suite as u8);
            message.extend_from_slice(&attempts_max.to_be_bytes());
            message.extend_from_slice(blinded);
        }
        Operation::Finish { public_key } => message.extend_from_slice(public_key),
        Operation::Commit => {}
        Operation::Status { nonce } | Operation::Destroy { nonce } | Operation::Head { nonce } => {
            message.extend_from_slice(nonce);
        }
        Operation::WitnessHead { head } => {
            message.extend_from_slice(&head.tag.0);
            message.extend_from_slice(&head.seq.to_be_bytes());
            message.extend_from_slice(&head.digest.0);
        }
        Operation::Freeze { until_s } | Operation::Thaw { until_s } => {
            message.extend_from_slice(&until_s.to_be_bytes());
        }
    }
    message
}

/// What is signed, and with which details.
#[derive(Clone, Copy)]
pub enum Operation<'a> {
    /// Start a change, by the active key.
    Begin {
        /// Suite of the new registration.
        suite: Suite,
        /// Attempts wished for.
        attempts_max: u16,
        /// The element to evaluate.
        blinded: &'a [u8],
    },
    /// Name the new key, by the active key.
    Finish {
        /// The new key.
        public_key: &'a [u8; 32],
    },
    /// Make the new registration the active one, by the new key.
    Commit,
    /// Ask for the counters; the envelope's nonce makes it fresh.
    Status {
        /// The envelope's nonce.
        nonce: &'a [u8; 16],
    },
    /// Erase; the envelope's nonce makes it fresh.
    Destroy {
        /// The envelope's nonce.
        nonce: &'a [u8; 16],
    },
    /// Refuse guesses for a while.
    Freeze {
        /// Until when.
        until_s: u64,
    },
    /// Lift a freeze; its end makes the request one for this freeze only.
    Thaw {
        /// When it would end.
        until_s: u64,
    },
    /// Remember the newest entry of an archive.
    WitnessHead {
        /// It.
        head: &'a ArchiveHead,
    },
    /// Ask for the newest entry; the envelope's nonce makes it fresh.
    Head {
        /// The envelope's nonce.
        nonce: &'a [u8; 16],
    },
}

impl Operation<'_> {
    fn label(&self) -> &'static [u8] {
        match self {
            Self::Begin { .. } => b"chatkeep vault begin v1",
            Self::Finish { .. } => b"chatkeep vault finish v1",
            Self::Commit => b"chatkeep vault commit v1",
            Self::Status { .. } => b"chatkeep vault status v1",
            Self::Destroy { .. } => b"chatkeep vault destroy v1",
            Self::Freeze { .. } => b"chatkeep vault freeze v1",
            Self::Thaw { .. } => b"chatkeep vault thaw v1",
            Self::WitnessHead { .. } => b"chatkeep vault witness head v1",
            Self::Head { .. } => b"chatkeep vault head v1",
        }
    }
}

/// What a client signs after a right guess: the whole exchange, so that it counts once, here, for this attempt.
pub fn prove_message(
    identity: &[u8; 32],
    account: &[u8; 16],
    epoch: &[u8; 16],
    blinded: &[u8],
    evaluated: &[u8],
    challenge: &[u8; 32],
) -> Vec<u8> {
    [b"chatkeep vault prove v1", &identity[..], account, epoch, blinded, evaluated, challenge].concat()
}

/// Signs with a registration's key.
pub fn sign(key: &SigningKey, message: &[u8]) -> Fixed<64> {
    Fixed(key.sign(message).to_bytes())
}

/// Checks a signature by a registration's key. Strict: one signature has one encoding.
pub fn verify(public_key: &[u8; 32], message: &[u8], signature: &Fixed<64>) -> bool {
    VerifyingKey::from_bytes(public_key)
        .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(&signature.0)).is_ok())
}
