//! Vaults with their keys on a PKCS#11 token (SoftHSM2): the real program, over real TLS, through the real courier code.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;
use std::process::Command;

use chatkeep_vault_client::{Identity, info};
use chatkeep_vault_rig::soft_token::SoftToken;
use common::device_cases::{self, FILE_ANCHOR};
use common::program::{PROGRAM, Program, courier};
use common::world::{self, copy_folder, enroll, guess_wrong, said};
use common::{KEY, PASSWORD, unlock};
use rand_core::OsRng;

type World = world::World<SoftToken>;

fn world() -> World {
    with("", "")
}

/// With a token that does not know a mechanism, and with more settings.
fn with(forbidden: &str, settings: &str) -> World {
    let token = SoftToken::new();
    token.forbid(forbidden);
    World::on(token, settings)
}

/// The folder in which the token keeps everything.
fn objects(world: &World) -> PathBuf {
    world.device.pin_file().with_file_name("tokens")
}

#[tokio::test]
async fn a_password_makes_the_whole_way_through_a_token() {
    device_cases::the_whole_way(&world(), "pkcs11+software", "pkcs11").await;
}

#[tokio::test]
async fn ten_wrong_guesses_are_counted_over_restarts_and_then_the_key_is_gone() {
    device_cases::ten_wrong_guesses(&world()).await;
}

#[tokio::test]
async fn a_disk_put_back_does_not_start_because_the_token_remembers() {
    device_cases::a_disk_put_back(&world()).await;
}

#[tokio::test]
async fn a_disk_put_back_with_its_file_anchor_is_not_noticed_and_everybody_is_told() {
    device_cases::a_disk_put_back_with_its_file_anchor(&with("", FILE_ANCHOR)).await;
}

/// The token is in a folder here, and goes back as well: only the witness knows.
#[tokio::test]
async fn a_token_put_back_with_the_disk_is_noticed_by_a_witness() {
    let world = world();
    let vault = String::from_utf8(world.run("fingerprint").stdout).unwrap();
    let witness = world.dir.path().join("witness");
    let made =
        Command::new(PROGRAM).args(["init", "--insecure-dev", "--data"]).arg(&witness).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    let config = world.dir.path().join("witness.toml");
    let settings = format!(
        "data = \"{}\"\nlisten = \"127.0.0.1:0\"\ninsecure_dev = true\n[[witness_for]]\nidentity = \"{}\"\n",
        witness.display(),
        vault.trim()
    );
    std::fs::write(&config, settings).unwrap();
    let witness = Program::start(Command::new(PROGRAM).args(["serve", "--config"]).arg(&config));
    let anchors = format!(
        "[anchor]\nkinds = [\"pkcs11\", \"witness\"]\nquorum = 1\n[[witness]]\nidentity = \"{}\"\naddress = \"{}\"\n",
        Identity(witness.pin().identity),
        witness.pin().url
    );
    world.configure(&anchors);

    let transport = courier(world.dir.path());
    let served = world.serve();
    let (shown, _) = info(&transport, &served.pin(), &mut OsRng).await.unwrap();
    assert_eq!(shown.anchor, "pkcs11+witness");
    let slot = enroll(&transport, &served).await;
    served.stop();
    let (disk, token) = (world.copy_disk("old"), world.dir.path().join("token"));
    copy_folder(&objects(&world), &token);

    let served = world.serve();
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
    served.stop();
    world.put_back(&disk);
    std::fs::remove_dir_all(objects(&world)).unwrap();
    copy_folder(&token, &objects(&world));
    let refused = world.refused();
    assert!(refused.contains("does not serve"), "{refused}");
}

#[tokio::test]
async fn of_two_copies_on_one_token_only_one_answers() {
    device_cases::two_copies_on_one_device(&world()).await;
}

#[tokio::test]
async fn after_an_exchange_of_the_seal_key_an_old_copy_cannot_be_opened() {
    device_cases::an_old_copy_after_an_exchange(&with("", FILE_ANCHOR)).await;
}

#[tokio::test]
async fn a_running_vault_exchanges_an_old_seal_key_by_itself() {
    device_cases::an_old_seal_key_is_exchanged(&world()).await;
}

#[tokio::test]
async fn a_token_that_does_not_multiply_derives_and_says_so() {
    let world = with("CKM_ECDH1_DERIVE", "");
    let transport = courier(world.dir.path());
    let served = world.serve();
    let (_, hsm) = info(&transport, &served.pin(), &mut OsRng).await.unwrap();
    assert_eq!(hsm, "pkcs11-derived+software");
    let slot = enroll(&transport, &served).await;
    assert_eq!(guess_wrong(&transport, &served, &slot).await, 9);
    served.stop();
    // also when it learns to multiply: another key would come out
    world.device.forbid("");
    let served = world.serve();
    assert_eq!(*unlock(&transport, &[served.pin()], &slot, PASSWORD).await.unwrap().key, KEY);
}

#[tokio::test]
async fn a_token_that_does_not_sign_keeps_the_identity_and_says_so() {
    let world = with("CKM_EDDSA", "");
    let transport = courier(world.dir.path());
    let served = world.serve();
    let (_, hsm) = info(&transport, &served.pin(), &mut OsRng).await.unwrap();
    assert_eq!(hsm, "pkcs11+memory-identity+software");
    let slot = enroll(&transport, &served).await;
    let identity = served.pin().identity;
    served.stop();
    let served = world.serve();
    assert_eq!(served.pin().identity, identity);
    assert_eq!(*unlock(&transport, &[served.pin()], &slot, PASSWORD).await.unwrap().key, KEY);
}

#[test]
fn a_token_that_no_longer_multiplies_is_refused_before_anybody_is_charged() {
    let world = world();
    world.device.forbid("CKM_ECDH1_DERIVE");
    let refused = world.refused();
    assert!(refused.contains("did not multiply"), "{refused}");
}

#[test]
fn keys_are_made_once() {
    let world = world();
    let again = world.run("init");
    assert!(!again.status.success() && said(&again).contains("holds a vault already"), "{}", said(&again));
    std::fs::write(world.config(), world.device.settings(&world.dir.path().join("other"), "")).unwrap();
    let again = world.run("init");
    assert!(!again.status.success() && said(&again).contains("not overwritten"), "{}", said(&again));
}

#[test]
fn a_wrong_pin_is_told_in_a_way_that_nothing_tries_it_again() {
    let world = world();
    std::fs::write(world.device.pin_file(), "0000").unwrap();
    let refused = world.run("status");
    // RestartPreventExitStatus= of the unit
    assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
    assert!(said(&refused).contains("the PIN is wrong"), "{}", said(&refused));
    assert!(!said(&refused).contains("0000"));
}

#[test]
fn a_token_that_is_not_there_is_told_with_those_that_are() {
    let world = world();
    let settings = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), settings.replace("token = \"vault\"", "token = \"other\"")).unwrap();
    let refused = world.run("status");
    assert!(
        said(&refused).contains("there is no token `other`; there are [\"vault\"]"),
        "{}",
        said(&refused)
    );
}

#[test]
fn a_token_in_software_needs_a_word() {
    let world = world();
    let settings = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), settings.replace("insecure_dev = true", "")).unwrap();
    let refused = world.refused();
    assert!(refused.contains("no hardware"), "{refused}");
    assert!(world.status().contains("warning: the token says that it is no hardware"));
}
