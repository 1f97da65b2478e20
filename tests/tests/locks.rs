//! A machine whose credentials can be stolen, at a real S3 server: objects that nobody deletes, and a key that only adds.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use chatkeep_store_rig::moto::Moto;
use chatkeep_store_rig::slow::Request;
use chatkeep_tests::stack::machine::{Shelf, now_us};
use chatkeep_tests::stack::notes::Notes;
use chatkeep_tests::stack::{Machine, Settings, Stack, wait};

/// The policy of docs/stores/cloud.md, without its condition, which moto does not know.
const APPEND_ONLY: &str = r#"{"Version":"2012-10-17","Statement":[
    {"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::backups/laptop/*"}]}"#;

fn settings(moto: &Moto, (id, secret): (&str, &str)) -> Settings {
    let options = [("endpoint", moto.endpoint().as_str()), ("allow_http", "true")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let secrets = [("access_key_id", id), ("secret_access_key", secret)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let url = "s3://backups/laptop".to_owned();
    let shelf = Shelf { url, options: BTreeMap::from(options), secrets: BTreeMap::from(secrets) };
    Settings { bus: false, shelf: Some(shelf), ..Settings::default() }
}

const ANY: (&str, &str) = ("AKIDEXAMPLEAKIDEXAMP", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY");

/// A retention beside the other settings of the store, which is the last table before the vault's.
fn retain(machine: &Machine, time: &str) {
    let config = std::fs::read_to_string(machine.config_file()).unwrap();
    machine.configure(&config.replace("[[vault]]", &format!("retain = \"{time}\"\n\n[[vault]]"))).unwrap();
}

fn backed_up(machine: &Machine) -> (String, Notes) {
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say("a message").unwrap();
    let id = machine.register(notes.path(), "notes").unwrap();
    machine.enable_digits(&id).unwrap();
    machine.wait_for_point(&id, 0).unwrap();
    (id, notes)
}

fn keys_of(moto: &Moto) -> Vec<String> {
    let answer = moto.ask(&Request::new("GET", "/backups", b""));
    let text = String::from_utf8(answer.body).unwrap();
    let keys = text.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned()));
    keys.collect()
}

#[test]
fn with_a_retention_every_object_of_a_backup_is_locked() {
    let moto = Moto::start();
    moto.bucket("backups", true);
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("locked", &settings(&moto, ANY)).unwrap();
    retain(&machine, "30d");
    machine.start().unwrap();
    backed_up(&machine);
    let keys = keys_of(&moto);
    let of_archive: Vec<&String> =
        keys.iter().filter(|key| key.contains("/keyring/") || key.contains("/log/")).collect();
    assert!(of_archive.len() >= 2, "{keys:?}");
    for key in of_archive {
        let answer = moto.ask(&Request::new("HEAD", &format!("/backups/{key}"), b""));
        assert_eq!(answer.header("x-amz-object-lock-mode"), Some("GOVERNANCE"), "{key}");
        assert!(answer.header("x-amz-object-lock-retain-until-date").is_some(), "{key}");
    }
}

/// Nothing would tell the difference until somebody deletes it all.
#[test]
fn a_retention_that_the_bucket_does_not_know_is_told_and_the_backup_goes_on() {
    let moto = Moto::start();
    moto.bucket("backups", false);
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("unlocked", &settings(&moto, ANY)).unwrap();
    retain(&machine, "30d");
    machine.start().unwrap();
    backed_up(&machine);
    wait::until("it is told", wait::PATIENCE, || {
        let store = machine.status()?["stores"][0].clone();
        let message = store["last_error"]["message"].as_str().unwrap_or_default().to_owned();
        Ok((store["state"] == "error" && message.contains("not locked")).then_some(()))
    })
    .unwrap();
}

/// The key can put, and nothing else: no list, no read, no delete.
#[test]
fn a_key_that_can_only_add_is_enough_to_go_on_with_backups() {
    let moto = Moto::start();
    moto.bucket("backups", false);
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("adding", &settings(&moto, ANY)).unwrap();
    machine.start().unwrap();
    let (id, notes) = backed_up(&machine);
    machine.stop().unwrap();
    // the key of every day takes the place of the one that it was set up with
    let only = moto.only_user(APPEND_ONLY);
    let keys = machine.data().join("keys");
    std::fs::write(keys.join("store.shelf.access_key_id.secret"), &only.id).unwrap();
    std::fs::write(keys.join("store.shelf.secret_access_key.secret"), &only.secret).unwrap();
    machine.start().unwrap();
    for text in ["the second", "the third"] {
        let before = now_us();
        notes.say(text).unwrap();
        machine.wait_for_point(&id, before).unwrap();
    }
    let database = machine.database(&id).unwrap();
    assert!(!database["caution"].as_str().unwrap().is_empty(), "what it cannot do is not told: {database}");
}
