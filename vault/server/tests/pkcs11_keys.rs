//! What the keys on a PKCS#11 token (SoftHSM2) do and do not do, and what becomes of an exchange that is killed. Every test runs
//! its body in a child process, because the library finds its token through the environment.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;

use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::answer::{self, Answer};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::message::{Begin, Envelope, Request};
use chatkeep_vault_rig::soft_token::{MODULE, PIN, SoftToken};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::hsm::{self, Device, Part};
use chatkeep_vault_server::reseal::{self, ResealError};
use chatkeep_vault_server::setup;
use chatkeep_vault_server::vault::Vault;
use common::device_cases;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::{ProjectivePoint, PublicKey};
use rand_core::OsRng;

/// Of a vault in a folder beside the token.
fn config(token: &SoftToken) -> Config {
    let disk = token.pin_file().with_file_name("disk");
    toml::from_str(&token.settings(&disk, "")).unwrap()
}

fn device(token: &SoftToken) -> Device {
    let config = config(token);
    setup::init(&config).unwrap();
    hsm::open(&config.hsm, &config.data, Part::Whole).unwrap()
}

/// The token, as anybody with the PIN has it.
fn log_in() -> Session {
    let library = Pkcs11::new(MODULE).unwrap();
    match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => panic!("{error}"),
    }
    let slot = library.get_slots_with_initialized_token().unwrap()[0];
    let session = library.open_rw_session(slot).unwrap();
    match session.login(UserType::User, Some(&AuthPin::from(PIN))) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => session,
        Err(error) => panic!("{error}"),
    }
}

fn objects(session: &Session, class: ObjectClass) -> Vec<ObjectHandle> {
    session.find_objects(&[Attribute::Class(class), Attribute::Token(true)]).unwrap()
}

#[test]
fn keys_cannot_be_taken_out_of_the_token() {
    let Some(token) = SoftToken::of_parent() else {
        return SoftToken::new().pass_in_child("keys_cannot_be_taken_out_of_the_token");
    };
    let device = device(&token);
    let session = log_in();
    let mut keys = objects(&session, ObjectClass::PRIVATE_KEY);
    keys.extend(objects(&session, ObjectClass::SECRET_KEY));
    assert_eq!(keys.len(), 5, "root, identity, seal, host, anchor");
    let wrapping = [Attribute::Token(false), Attribute::ValueLen(32.into()), Attribute::Wrap(true)];
    let wrapping = session.generate_key(&Mechanism::AesKeyGen, &wrapping).unwrap();
    for key in keys {
        let value = session.get_attributes(key, &[AttributeType::Value]);
        let hidden = match value {
            Err(Error::Pkcs11(RvError::AttributeSensitive, _)) => true,
            Ok(attributes) => attributes.is_empty(),
            Err(_) => false,
        };
        assert!(hidden);
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, wrapping, key);
        assert!(matches!(wrapped, Err(Error::Pkcs11(RvError::KeyUnextractable, _))), "{wrapped:?}");
        let softened = session.update_attributes(key, &[Attribute::Sensitive(false)]);
        assert!(
            softened.is_err() && session.update_attributes(key, &[Attribute::Extractable(true)]).is_err()
        );
    }
    drop(device);
}

/// The token's evaluation is what software would compute with the product of both keys, which the public key K·G allows to
/// compute for B = b·G; and the client, who blinds, cannot tell.
#[test]
fn an_evaluation_is_that_of_rfc_9497_under_the_product_of_both_keys() {
    let Some(token) = SoftToken::of_parent() else {
        return SoftToken::new()
            .pass_in_child("an_evaluation_is_that_of_rfc_9497_under_the_product_of_both_keys");
    };
    let oprf = device(&token).keys.oprf;
    let session = log_in();
    let public = objects(&session, ObjectClass::PUBLIC_KEY).into_iter().find_map(|key| {
        let Attribute::EcPoint(point) =
            session.get_attributes(key, &[AttributeType::EcPoint]).ok()?.remove(0)
        else {
            return None;
        };
        PublicKey::from_sec1_bytes(point.get(2..)?).ok()
    });
    let public = public.unwrap().to_projective();
    device_cases::evaluations(&*oprf, &public);
}

/// As when a process has lost its store to another one, and does not know it yet.
#[test]
fn two_processes_on_one_token_make_no_two_seal_keys_of_one_number() {
    let Some(token) = SoftToken::of_parent() else {
        let name = "two_processes_on_one_token_make_no_two_seal_keys_of_one_number";
        return SoftToken::new().pass_in_child(name);
    };
    let (one, config) = (device(&token), config(&token));
    let other = hsm::open(&config.hsm, &config.data, Part::Whole).unwrap();
    assert_eq!([&one, &other, &one].map(|device| device.keys.sealer.make_key(1).unwrap()), [2, 3, 4]);
    one.keys.sealer.destroy_old_keys().unwrap();
    let left = hsm::open(&config.hsm, &config.data, Part::Whole).unwrap().keys.sealer.keys().unwrap();
    assert_eq!(left.iter().map(|key| key.id).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_record_opens_for_its_own_account_and_key_only() {
    let Some(token) = SoftToken::of_parent() else {
        return SoftToken::new().pass_in_child("a_record_opens_for_its_own_account_and_key_only");
    };
    let sealer = device(&token).keys.sealer;
    device_cases::records(&*sealer);
}

const ACCOUNTS: u8 = 20;
const STEP: &str = "CHATKEEP_TEST_STEP";

/// The same question about the same account: as long as its record is there, the same answer.
fn ask(vault: &Vault, account: u8) -> Vec<u8> {
    let begin = Begin {
        account: Fixed([account; 16]),
        epoch: Fixed([1; 16]),
        suite: Suite::P256 as u8,
        blinded: Blob(ProjectivePoint::GENERATOR.to_affine().to_encoded_point(true).as_bytes().to_vec()),
        attempts_max: 10,
        invite: None,
        signature: None,
    };
    let request = Envelope::new(Request::Begin(begin), &mut OsRng).encode();
    let answer = vault.answer_blocking(&request).unwrap();
    match answer::verify(&answer, &vault.identity(), &request, vault.now_s()).unwrap().answer {
        Answer::Evaluated { evaluated, .. } => evaluated.0,
        other => panic!("{other:?}"),
    }
}

fn ask_all(vault: &Vault) -> Vec<u8> {
    (0..ACCOUNTS).flat_map(|account| ask(vault, account)).collect()
}

fn answers_file(token: &SoftToken) -> PathBuf {
    token.pin_file().with_file_name("answers")
}

fn start(token: &SoftToken) -> (Vault, std::fs::File) {
    let (parts, lock) = setup::open(&config(token)).unwrap();
    (Vault::start(parts, |what| panic!("{what}")).unwrap(), lock)
}

/// One life of the vault; `step` says where it ends.
fn live(token: &SoftToken, step: &str) {
    if step == "made" {
        setup::init(&config(token)).unwrap();
        let (vault, _lock) = start(token);
        std::fs::write(answers_file(token), ask_all(&vault)).unwrap();
        return;
    }
    let (vault, _lock) = start(token);
    match step {
        "killed after the key" => {
            vault.sealer().make_key(vault.now_s()).unwrap();
            std::process::abort();
        }
        "killed after a batch" => {
            vault.reseal(None, 5).unwrap();
            std::process::abort();
        }
        "interrupted" => {
            // two batches of five were before, and one batch holds all that is left
            let interrupted = reseal::rotate(&vault, |left| left != 0);
            assert!(matches!(interrupted, Err(ResealError::Interrupted)), "{interrupted:?}");
            assert_eq!(vault.sealer().keys().unwrap().len(), 2);
        }
        "finished" => {
            assert_eq!(reseal::rotate(&vault, |_| true).unwrap(), 2);
            assert_eq!(vault.sealer().keys().unwrap().len(), 1);
        }
        other => panic!("{other}"),
    }
    assert_eq!(ask_all(&vault), std::fs::read(answers_file(token)).unwrap());
}

#[test]
fn a_killed_exchange_of_the_seal_key_goes_on_where_it_was() {
    const NAME: &str = "a_killed_exchange_of_the_seal_key_goes_on_where_it_was";
    if let Some(token) = SoftToken::of_parent() {
        return live(&token, &std::env::var(STEP).unwrap());
    }
    let token = SoftToken::new();
    for step in [
        "made",
        "killed after the key",
        "killed after a batch",
        "killed after a batch",
        "interrupted",
        "finished",
    ] {
        let ran = token.in_child(NAME, &[(STEP, step)]);
        let said = String::from_utf8_lossy(&[&ran.stdout[..], &ran.stderr].concat()).into_owned();
        let killed = std::os::unix::process::ExitStatusExt::signal(&ran.status).is_some();
        assert!(killed == step.starts_with("killed") && (killed || ran.status.success()), "{step}: {said}");
        assert!(killed || said.contains("1 passed"), "{said}");
    }
}
