//! What is sent to the vault of the model: one account, an owner who has the key of every registration, and a thief who
//! has the keyslot.

use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::limits::VERSION;
use chatkeep_vault_protocol::message::{
    Begin, Commit, Envelope, Finish, Guess, Operation, Prove, Request, owner_message, prove_message, sign,
};
use ed25519_dalek::SigningKey;

use super::host::{Draws, identity};

const ACCOUNT: Fixed<16> = Fixed([1; 16]);

/// Elements of the thief are the first ones; those of the owner begin here.
pub(super) const OWNERS: u8 = 40;
/// How many elements there are.
pub(super) const ELEMENTS: u8 = 60;

/// Blinded elements, the same in every run, so that seeds repeat a walk.
pub(super) fn elements() -> Vec<Vec<u8>> {
    let mut count = 0;
    let mut rng = Draws(|| {
        count += 1;
        count
    });
    (0..ELEMENTS).map(|n| Suite::Ristretto255.blind(&[n], &mut rng).element).collect()
}

fn key(registration: u8) -> SigningKey {
    SigningKey::from_bytes(&[registration ^ 0x55; 32])
}

fn epoch(registration: u8) -> Fixed<16> {
    Fixed([registration; 16])
}

fn owner(by: u8, operation: Operation<'_>, on: u8) -> Fixed<64> {
    let identity = identity().verifying_key().to_bytes();
    sign(&key(by), &owner_message(operation, &identity, &ACCOUNT.0, &epoch(on).0))
}

fn bytes(request: Request) -> Vec<u8> {
    Envelope { version: VERSION, nonce: Fixed([0; 16]), request }.encode()
}

/// `signer`: the registration whose key signs; `None` for the first one, and for a stranger.
pub(super) fn begin(registration: u8, signer: Option<u8>, blinded: &[u8], attempts_max: u16) -> Vec<u8> {
    let suite = Suite::Ristretto255;
    let operation = Operation::Begin { suite, attempts_max, blinded };
    bytes(Request::Begin(Begin {
        account: ACCOUNT,
        epoch: epoch(registration),
        suite: suite as u8,
        blinded: Blob(blinded.to_vec()),
        attempts_max,
        invite: None,
        signature: signer.map(|by| owner(by, operation, registration)),
    }))
}

pub(super) fn finish(registration: u8, signer: Option<u8>) -> Vec<u8> {
    let public_key = key(registration).verifying_key().to_bytes();
    let signature = signer.map(|by| owner(by, Operation::Finish { public_key: &public_key }, registration));
    let public_key = Fixed(public_key);
    bytes(Request::Finish(Finish { account: ACCOUNT, epoch: epoch(registration), public_key, signature }))
}

pub(super) fn commit(registration: u8) -> Vec<u8> {
    let signature = owner(registration, Operation::Commit, registration);
    bytes(Request::Commit(Commit { account: ACCOUNT, epoch: epoch(registration), signature }))
}

pub(super) fn guess(registration: u8, blinded: &[u8]) -> Vec<u8> {
    let blinded = Blob(blinded.to_vec());
    bytes(Request::Guess(Guess { account: ACCOUNT, epoch: epoch(registration), blinded }))
}

pub(super) fn prove(registration: u8, blinded: &[u8], evaluated: &[u8], challenge: &[u8; 32]) -> Vec<u8> {
    let identity = identity().verifying_key().to_bytes();
    let message = prove_message(&identity, &ACCOUNT.0, &epoch(registration).0, blinded, evaluated, challenge);
    bytes(Request::Prove(Prove {
        account: ACCOUNT,
        epoch: epoch(registration),
        blinded: Blob(blinded.to_vec()),
        signature: sign(&key(registration), &message),
    }))
}

/// Whether an answer to it evaluates the one element that a registration has for nothing.
pub(super) fn is_begin(bytes: &[u8]) -> bool {
    Envelope::decode(bytes).is_some_and(|envelope| matches!(envelope.request, Request::Begin(_)))
}

/// Whether it has this element.
pub(super) fn carries(bytes: &[u8], element: &[u8]) -> bool {
    bytes.windows(element.len()).any(|part| part == element)
}
