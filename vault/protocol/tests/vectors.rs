//! The vectors of version 1: what is valid opens, what is not is refused for the right reason.
#![allow(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

use chatkeep_vault_protocol::message::Envelope;
use chatkeep_vault_protocol::ppss::{self, Mask, Question};
use chatkeep_vault_protocol::slot::Slot;
use chatkeep_vault_protocol::{AnswerError, KdfFloor, SlotError, answer, password};
use proptest::prelude::*;
use rand_core::OsRng;
use serde_json::Value;

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn slots() -> Value {
    vectors(include_str!("../../../tests/vectors/vault/slots.json"))
}

fn masks(slot: &Slot, vector: &Value, pwk: &[u8; 32]) -> Vec<Mask> {
    let keys = vector["oprf_keys"].as_array().unwrap();
    let vaults = slot.header.vaults.len().min(keys.len());
    (0..vaults)
        .filter_map(|index| {
            let question = Question::new(&slot.header, index, pwk, &mut OsRng);
            let evaluated = slot.header.suite.evaluate(&array(&keys[index]), question.element()).ok()?;
            question.answered(&slot.header, &evaluated).ok()
        })
        .collect()
}

#[test]
fn valid_slots_open_with_their_password_and_no_other() {
    let all = slots();
    for vector in all["valid"].as_array().unwrap() {
        let slot = Slot::decode(&bytes(&vector["slot"]), KdfFloor::AllowWeakKdf).unwrap();
        assert_eq!(slot.encode(), bytes(&vector["slot"]));
        let typed = vector["password"].as_str().unwrap().as_bytes();
        let pwk = password::stretch(typed, &slot.header.salt, slot.header.kdf).unwrap();
        assert_eq!(*pwk, array(&vector["pwk"]));
        let (secret, key) = ppss::open(&slot, &masks(&slot, vector, &pwk)).unwrap();
        assert_eq!((secret.as_bytes(), *key), (&array(&vector["secret"]), array(&vector["key"])));
        for (i, vault) in slot.header.vaults.iter().enumerate() {
            assert_eq!(slot.header.account(&vault.identity), array(&vector["accounts"][i]));
            assert_eq!(slot.header.archive_tag(&vault.identity), array(&vector["archive_tags"][i]));
            let auth = secret.auth_key(&vault.identity, &slot.header.epoch).verifying_key().to_bytes();
            assert_eq!(auth, array(&vector["auth_public_keys"][i]));
        }
        assert_eq!(ppss::open(&slot, &masks(&slot, vector, &[0; 32])).unwrap_err(), SlotError::DoesNotOpen);
    }
}

#[test]
fn fewer_than_t_answers_open_nothing() {
    let all = slots();
    let vector = &all["valid"][2];
    let slot = Slot::decode(&bytes(&vector["slot"]), KdfFloor::AllowWeakKdf).unwrap();
    let mut masks = masks(&slot, vector, &array(&vector["pwk"]));
    assert_eq!((slot.header.threshold, masks.len()), (2, 3));
    masks.remove(0);
    assert!(ppss::open(&slot, &masks).is_ok());
    masks.remove(0);
    assert_eq!(ppss::open(&slot, &masks).unwrap_err(), SlotError::DoesNotOpen);
}

#[test]
fn invalid_slots_are_refused_for_the_right_reason() {
    for vector in slots()["invalid"].as_array().unwrap() {
        let error = Slot::decode(&bytes(&vector["slot"]), KdfFloor::AllowWeakKdf).unwrap_err();
        let kind = match error {
            SlotError::NewerFormat { .. } => "newer",
            SlotError::Malformed { .. } => "malformed",
            _ => "other",
        };
        assert_eq!(kind, vector["error"], "{}", vector["why"]);
    }
}

/// Header, masked shares, commitment and wrapped key are bound to each other: no bit can be changed.
#[test]
fn a_slot_with_any_bit_changed_does_not_open() {
    let all = slots();
    let vector = &all["valid"][0];
    let good = bytes(&vector["slot"]);
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1 << (at % 8);
        let Ok(slot) = Slot::decode(&changed, KdfFloor::AllowWeakKdf) else { continue };
        let masks = masks(&slot, vector, &array(&vector["pwk"]));
        assert!(ppss::open(&slot, &masks).is_err(), "byte {at}");
    }
}

#[test]
fn requests_read_back_to_the_same_bytes_and_junk_does_not() {
    let all = vectors(include_str!("../../../tests/vectors/vault/messages.json"));
    for vector in all["valid"].as_array().unwrap() {
        let request = bytes(&vector["request"]);
        assert!(request.len() < 400);
        assert_eq!(Envelope::decode(&request).unwrap().encode(), request, "{}", vector["name"]);
    }
    for vector in all["invalid"].as_array().unwrap() {
        assert!(Envelope::decode(&bytes(&vector["request"])).is_none(), "{}", vector["why"]);
    }
}

#[test]
fn answers_are_believed_only_from_the_pinned_identity_to_this_request_in_time() {
    let all = vectors(include_str!("../../../tests/vectors/vault/answers.json"));
    let (identity, request, now_s) =
        (array(&all["identity"]), bytes(&all["request"]), all["now_s"].as_u64().unwrap());
    for vector in all["valid"].as_array().unwrap() {
        let answer = bytes(&vector["answer"]);
        let body = answer::verify(&answer, &identity, &request, now_s).unwrap();
        assert_eq!(body.hsm, "soft");
        // whoever flips a bit anywhere changes no word of it
        for at in 0..answer.len() {
            let mut changed = answer.clone();
            changed[at] ^= 1 << (at % 8);
            if let Ok(other) = answer::verify(&changed, &identity, &request, now_s) {
                assert_eq!(other, body, "byte {at} of {}", vector["name"]);
            }
        }
    }
    for vector in all["invalid"].as_array().unwrap() {
        let now_s = vector["now_s"].as_u64().unwrap();
        let error = answer::verify(&bytes(&vector["answer"]), &array(&vector["identity"]), &request, now_s);
        let kind = match error.unwrap_err() {
            AnswerError::Untrusted { .. } => "untrusted",
            AnswerError::NewerFormat { .. } => "newer",
            _ => "other",
        };
        assert_eq!(kind, vector["error"], "{}", vector["why"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoders_take_any_bytes(junk in proptest::collection::vec(any::<u8>(), 0..600)) {
        drop(Slot::decode(&junk, KdfFloor::AllowWeakKdf));
        drop(Slot::decode(&[b"CKVS\x01\x02", &junk[..]].concat(), KdfFloor::AllowWeakKdf));
        prop_assert!(Envelope::decode(&junk).is_none());
        prop_assert!(answer::verify(&junk, &[1; 32], b"", 0).is_err());
    }
}
