//! What a vault answers: one signed body, errors included, certified by the pinned identity.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::AnswerError;
use crate::cbor::{Blob, Fixed, decode, encode};
use crate::head::SignedHead;
#[cfg(doc)]
use crate::limits::CELL_ADDRESSES_MAX;
use crate::limits::{ANSWER_LEN_MAX, CLOCK_SKEW_S, VERSION};
use crate::message::ArchiveHead;

/// What is inside the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// Version of the protocol.
    #[serde(rename = "v")]
    pub version: u8,
    /// Where the vault keeps its keys: `soft`, `pkcs11…`, `tpm2…`.
    #[serde(rename = "h")]
    pub hsm: String,
    /// The vault's clock, in seconds since 1970.
    #[serde(rename = "t")]
    pub time_s: u64,
    /// The answer.
    #[serde(rename = "a")]
    pub answer: Answer,
}

/// Everything a vault can say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `info`.
    Info(Box<VaultInfo>),
    /// To `begin`.
    Evaluated {
        /// Evaluated element.
        #[serde(rename = "z")]
        evaluated: Blob,
        /// When the unfinished registration is forgotten, in seconds since 1970.
        #[serde(rename = "x")]
        expires_s: u64,
    },
    /// To `finish`: both registrations can be guessed at, under one counter.
    Pending {},
    /// To `commit`: this registration is the active one.
    Active {
        /// Commits of this vault so far.
        #[serde(rename = "q")]
        seq: u64,
    },
    /// To `guess`: charged and evaluated. Says nothing about whether the password is right.
    Charged(Charged),
    /// To `prove`: the count starts afresh.
    Reset {
        /// Attempts left.
        #[serde(rename = "l")]
        left: u16,
    },
    /// To `status`.
    Status(Counters),
    /// To `freeze` and `thaw`, and to `guess` while it lasts.
    Frozen {
        /// Until when, in seconds since 1970; 0: not at all.
        #[serde(rename = "x")]
        until_s: u64,
    },
    /// Not yet: nothing was charged.
    Throttled {
        /// Ask again after so many seconds.
        #[serde(rename = "w")]
        retry_after_s: u64,
        /// Attempts left.
        #[serde(rename = "l")]
        left: u16,
    },
    /// The account was erased for ever. Also the answer to `destroy`.
    Destroyed {
        /// Why.
        #[serde(rename = "y")]
        reason: DestroyReason,
        /// The commit that erased it.
        #[serde(rename = "q")]
        seq: u64,
    },
    /// The account lives, under another registration: the slot is old.
    Superseded {},
    /// This vault has never heard of the account.
    Unknown {},
    /// The account exists: a change needs a signature by its key.
    Exists {},
    /// To `begin`: this vault does not make accounts for everybody.
    AdmissionRequired {
        /// What it wants: `invite`.
        #[serde(rename = "k")]
        kind: String,
    },
    /// To `begin`: what was shown does not let anybody in.
    AdmissionRefused {
        /// Why not.
        #[serde(rename = "y")]
        why: AdmissionFault,
    },
    /// The signature, the challenge or the element does not fit.
    Refused {
        /// Which check failed.
        #[serde(rename = "y")]
        why: Refusal,
    },
    /// The account is in another cell of this vault. Send the same bytes there: nothing was charged or changed.
    Elsewhere {
        /// Where it answers, under the same identity; at most [`CELL_ADDRESSES_MAX`].
        #[serde(rename = "u")]
        urls: Vec<String>,
        /// Version of the vault's map of cells.
        #[serde(rename = "m")]
        map_version: u64,
    },
    /// Not now. The same bytes, sent again later, are charged once at most.
    Busy {},
    /// To `cosign`: this state is remembered, and no older one or other one of its number will be signed.
    Cosigned {
        /// Number of the commit.
        #[serde(rename = "q")]
        seq: u64,
        /// Digest over all records.
        #[serde(rename = "r")]
        root: Fixed<32>,
    },
    /// To `latest`.
    Latest {
        /// The newest state that was witnessed; absent before the first.
        #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
        head: Option<Box<SignedHead>>,
    },
    /// To `witness_head` and `head`.
    Head {
        /// The newest entry that is known; absent before the first.
        #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
        head: Option<ArchiveHead>,
    },
}

/// Why an account was erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestroyReason {
    /// The last attempt was used.
    Exhausted,
    /// Its owner asked for it.
    User,
    /// Whoever runs the vault did it.
    Operator,
}

/// Why a request was refused; nothing was charged or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Not a request of this version.
    Malformed,
    /// The suite is not served here.
    Suite,
    /// The blinded element is not of the group.
    Element,
    /// The signature does not fit.
    Signature,
    /// The proof is for another attempt than the last one, or was used.
    Challenge,
    /// There is no such pending registration, or it is not ready for this.
    NotPending,
    /// The vault is none that this one witnesses.
    NotWitnessed,
    /// The state does not follow the one that was witnessed last.
    OutOfOrder,
    /// Another state, or another entry, was remembered under this number.
    Conflict,
    /// `cosign`, `latest`: this witness remembers states of this vault that is cut into another number of cells.
    OtherCells,
}

/// See [`Answer::AdmissionRefused`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdmissionFault {
    /// This vault did not make it, or took it back.
    Invalid,
    /// Its time is over.
    Expired,
    /// It was used as often as it may be.
    Spent,
}

/// See [`Answer::Charged`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charged {
    /// Evaluated element.
    #[serde(rename = "z")]
    pub evaluated: Blob,
    /// Attempts left after this one.
    #[serde(rename = "l")]
    pub left: u16,
    /// Attempts after a proof.
    #[serde(rename = "m")]
    pub max: u16,
    /// Attempts without a proof since the last change of password, this one included.
    #[serde(rename = "f")]
    pub failed_since_change: u32,
    /// To be signed in `prove`.
    #[serde(rename = "c")]
    pub challenge: Fixed<32>,
}

/// See [`Answer::Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Attempts left.
    #[serde(rename = "l")]
    pub left: u16,
    /// Attempts after a proof.
    #[serde(rename = "m")]
    pub max: u16,
    /// Attempts without a proof since the last change of password.
    #[serde(rename = "f")]
    pub failed_since_change: u32,
    /// No guess before this time, in seconds since 1970; 0: none set.
    #[serde(rename = "b")]
    pub not_before_s: u64,
    /// Frozen until this time, in seconds since 1970; 0: not frozen.
    #[serde(rename = "x")]
    pub frozen_until_s: u64,
    /// Whether a change is waiting for its commit.
    #[serde(rename = "p")]
    pub change_pending: bool,
}

/// See [`Answer::Info`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultInfo {
    /// Numbers of the suites served, preferred first.
    #[serde(rename = "u")]
    pub suites: Vec<u8>,
    /// Most attempts this vault allows.
    #[serde(rename = "m")]
    pub attempts_max: u16,
    /// Seconds to wait after the first, second … failed attempt; the last one for all that follow.
    #[serde(rename = "d")]
    pub delays_s: Vec<u64>,
    /// Failed attempts since the last change after which an account is erased.
    #[serde(rename = "f")]
    pub lifetime_failures_max: u32,
    /// What anchors the state against rollback: `file`, `witness`, or several joined by `+`.
    #[serde(rename = "r")]
    pub anchor: String,
    /// What keeps the records, and what a commit survives: `sqlite` one machine's power cut, `postgres` one machine,
    /// `postgres-asynchronous` maybe not even that.
    #[serde(rename = "k", default, skip_serializing_if = "String::is_empty")]
    pub store: String,
    /// What a new account needs: nothing (absent), or `invite`.
    #[serde(rename = "w", default, skip_serializing_if = "String::is_empty")]
    pub admission: String,
    /// Whether it was started for development: never trust it with a real backup.
    #[serde(rename = "i")]
    pub insecure_dev: bool,
    /// Commits so far.
    #[serde(rename = "q")]
    pub seq: u64,
    /// Name and version of the program.
    #[serde(rename = "s")]
    pub software: String,
}

/// Says that an operational key speaks for an identity for some days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate {
    /// Ed25519 public key that signs answers.
    pub operational: [u8; 32],
    /// First second of validity, since 1970.
    pub not_before_s: u64,
    /// Last second of validity, since 1970.
    pub not_after_s: u64,
}

const CERTIFICATE_LABEL: &[u8] = b"chatkeep vault operational key v1";
const ANSWER_LABEL: &[u8] = b"chatkeep vault answer v1";
/// Version, key, two times, signature.
const CERTIFICATE_LEN: usize = 1 + 32 + 8 + 8 + 64;

impl Certificate {
    /// What the identity key signs: the label, then the first 49 bytes of the certificate.
    pub fn message(&self) -> Vec<u8> {
        [CERTIFICATE_LABEL, &self.fields()].concat()
    }

    /// The certificate as it travels; `signature` is the identity key's over [`Self::message`].
    pub fn encode(&self, signature: &[u8; 64]) -> Vec<u8> {
        [self.fields().as_slice(), signature].concat()
    }

    fn fields(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.operational);
        bytes.extend_from_slice(&self.not_before_s.to_be_bytes());
        bytes.extend_from_slice(&self.not_after_s.to_be_bytes());
        bytes
    }

    fn check(bytes: &[u8], identity: &[u8; 32], now_s: u64) -> Result<Self, AnswerError> {
        let untrusted = |what| AnswerError::Untrusted { what };
        let bytes: &[u8; CERTIFICATE_LEN] =
            bytes.try_into().map_err(|_| untrusted("the certificate has another length"))?;
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let certificate = Self {
            operational: bytes[1..33].try_into().expect("32 bytes"),
            not_before_s: number(33),
            not_after_s: number(41),
        };
        let signature = Signature::from_bytes(bytes[49..].try_into().expect("64 bytes"));
        VerifyingKey::from_bytes(identity)
            .and_then(|key| key.verify_strict(&[CERTIFICATE_LABEL, &bytes[..49]].concat(), &signature))
            .map_err(|_| untrusted("the certificate is by another identity"))?;
        if bytes[0] != VERSION {
            return Err(AnswerError::NewerFormat { version: bytes[0] });
        }
        if now_s.saturating_add(CLOCK_SKEW_S) < certificate.not_before_s
            || now_s > certificate.not_after_s.saturating_add(CLOCK_SKEW_S)
        {
            return Err(untrusted("the certificate is not valid at this time; is the clock right?"));
        }
        Ok(certificate)
    }
}

#[derive(Serialize, Deserialize)]
struct SignedAnswer {
    #[serde(rename = "c")]
    certificate: Blob,
    #[serde(rename = "b")]
    body: Blob,
    #[serde(rename = "s")]
    signature: Fixed<64>,
}

/// Signs the answer to the exact bytes of `request`.
pub fn sign(
    operational: &SigningKey,
    certificate: &[u8],
    identity: &[u8; 32],
    request: &[u8],
    body: &Body,
) -> Vec<u8> {
    let body = encode(body);
    let signature = operational.sign(&message(identity, request, &body)).to_bytes();
    encode(&SignedAnswer {
        certificate: Blob(certificate.to_vec()),
        body: Blob(body),
        signature: Fixed(signature),
    })
}

/// Checks that `answer` is the pinned vault's answer to the exact bytes of `request`, and reads it.
pub fn verify(answer: &[u8], identity: &[u8; 32], request: &[u8], now_s: u64) -> Result<Body, AnswerError> {
    let signed: SignedAnswer =
        decode(answer, ANSWER_LEN_MAX).ok_or(AnswerError::Untrusted { what: "it is not a signed answer" })?;
    let certificate = Certificate::check(&signed.certificate.0, identity, now_s)?;
    let signature = Signature::from_bytes(&signed.signature.0);
    VerifyingKey::from_bytes(&certificate.operational)
        .and_then(|key| key.verify_strict(&message(identity, request, &signed.body.0), &signature))
        .map_err(|_| AnswerError::Untrusted { what: "the signature does not fit" })?;
    let version: Version =
        decode(&signed.body.0, ANSWER_LEN_MAX).ok_or(AnswerError::Malformed { what: "no version" })?;
    if version.version != VERSION {
        return Err(AnswerError::NewerFormat { version: version.version });
    }
    decode(&signed.body.0, ANSWER_LEN_MAX).ok_or(AnswerError::Malformed { what: "an unknown answer" })
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "v")]
    version: u8,
}

fn message(identity: &[u8; 32], request: &[u8], body: &[u8]) -> Vec<u8> {
    [ANSWER_LABEL, identity, Sha256::digest(request).as_slice(), body].concat()
}
