#![allow(clippy::unwrap_used, reason = "tests")]
use chatkeep_vault_protocol::Suite;
use chatkeep_vault_rig::soft_token::SoftToken;

use super::*;
use crate::config::{Config, HsmConfig};
use crate::hsm::pkcs11::connect::connect;

#[derive(serde::Deserialize)]
struct Vector {
    suite: u8,
    key: String,
    blinded: String,
    evaluated: String,
}

/// RFC 9497, appendix A.3.1, with the key of the vectors on the token, and 1 as the account's key.
#[test]
fn the_vectors_of_rfc_9497_hold_on_a_token() {
    let Some(token) = SoftToken::of_parent() else {
        let name = "hsm::pkcs11::token::tests::the_vectors_of_rfc_9497_hold_on_a_token";
        return SoftToken::new().pass_in_child(name);
    };
    let config: Config = toml::from_str(&token.settings("/nowhere".as_ref(), "")).unwrap();
    let HsmConfig::Pkcs11(settings) = config.hsm else { panic!() };
    let session = connect(&settings).unwrap().session;
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../../../../../tests/vectors/vault/rfc9497.json")).unwrap();
    let mut held = 0;
    for vector in vectors.iter().filter(|vector| vector.suite == Suite::P256 as u8) {
        let secret: [u8; 32] = hex::decode(&vector.key).unwrap().try_into().unwrap();
        let key = objects::import_root_for_tests(&session, &secret);
        let public = ProjectivePoint::GENERATOR * *NonZeroScalar::try_from(&secret[..]).unwrap();
        let question = Question::new(&hex::decode(&vector.blinded).unwrap()).unwrap();
        let product = coordinates(&session, key, &question).unwrap().product(&public).unwrap();
        let mut one = [0; 32];
        one[31] = 1;
        assert_eq!(hex::encode(Suite::P256.evaluate(&one, &product).unwrap()), vector.evaluated);
        held += 1;
    }
    assert_eq!(held, 2);
}

#[test]
fn a_key_that_was_not_made_on_the_token_is_refused() {
    let Some(token) = SoftToken::of_parent() else {
        let name = "hsm::pkcs11::token::tests::a_key_that_was_not_made_on_the_token_is_refused";
        return SoftToken::new().pass_in_child(name);
    };
    let config: Config = toml::from_str(&token.settings("/nowhere".as_ref(), "")).unwrap();
    let HsmConfig::Pkcs11(settings) = config.hsm else { panic!() };
    let session = connect(&settings).unwrap().session;
    let key = objects::import_root_for_tests(&session, &[1; 32]);
    let refused = objects::check_locked_in(&session, key, ROOT).unwrap_err();
    assert!(refused.to_string().contains("was not made on the token"), "{refused}");
}
