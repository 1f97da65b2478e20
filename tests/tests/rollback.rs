//! Somebody puts an old state of the store back: a machine that never saw the archive notices, because the vault does.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::{Machine, Settings, Stack, wait};

const PASSWORD: &str = "correct horse battery staple";
const FIRST: &str = "first message: the harbour at nine";
const SECOND: &str = "second message: bring the red folder";

fn started(stack: &Stack, name: &str) -> Machine {
    let mut machine = stack.machine(name, &Settings { bus: false, ..Settings::default() }).unwrap();
    machine.configure_also("[vaults]\nlook_every = \"1s\"").unwrap();
    machine.start().unwrap();
    machine
}

fn adopted(stack: &Stack, name: &str) -> (Machine, String, PathBuf) {
    let machine = started(stack, name);
    let archive = machine.list_remote().unwrap().remove(0).0;
    let target = machine.home().join("notes.db");
    let id = machine.adopt(&archive, &target).unwrap();
    (machine, id, target)
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Replaces the store by a copy.
fn put_back(stack: &Stack, copy_of_it: &Path) {
    std::fs::remove_dir_all(stack.store()).unwrap();
    copy(copy_of_it, &stack.store());
}

#[test]
fn a_new_machine_notices_a_store_that_shows_an_older_archive() {
    let mut stack = Stack::start().unwrap();
    let mut old = started(&stack, "old");
    let notes = Notes::open(&old.home().join("notes.db")).unwrap();
    notes.say(FIRST).unwrap();
    let id = old.register(notes.path(), "notes").unwrap();
    old.enable_password(&id, PASSWORD).unwrap();
    let first = old.wait_for_point(&id, 0).unwrap();
    let digits = old.show_digits(&id, PASSWORD).unwrap();
    let (before, after) = (stack.root().join("before"), stack.root().join("after"));
    copy(&stack.store(), &before);

    // Backups do not wait for a vault that is away; it is told when the service ends.
    stack.vault.kill();
    notes.say(SECOND).unwrap();
    old.back_up(&id).unwrap();
    let newest = old.points(&id).unwrap().remove(0);
    stack.vault.restart().unwrap();
    old.stop().unwrap();
    copy(&stack.store(), &after);

    put_back(&stack, &before);
    let (new, id, target) = adopted(&stack, "new");
    let unlocked = new.unlock(&id, PASSWORD).unwrap().success().unwrap();
    let warning = unlocked.result()["warning"].as_str().unwrap_or_default().to_owned();
    let numbers = format!("the vault tower knows entry {}", newest.id);
    assert!(warning.contains("older archive") && warning.contains(&numbers), "{warning}");
    assert!(warning.contains(&format!("entry {} of 20", first.id)), "{warning}");
    assert_eq!(new.database(&id).unwrap()["store_older"], warning);
    let status = new.run(&["status"], None).unwrap();
    assert_eq!(status.code, 2, "{:?}", status.last());
    let restored = new.restore(&id, &target, None).unwrap().success().unwrap();
    assert!(restored.result()["warning"].to_string().contains(&numbers), "{restored:?}");
    assert_eq!(notes::texts(&target).unwrap(), [FIRST], "what is there can be restored");

    // The right store is back: the warning goes by itself.
    put_back(&stack, &after);
    new.run(&["vault", "refresh"], None).unwrap().success().unwrap();
    wait::until("the warning is gone", Duration::from_secs(30), || {
        Ok((new.database(&id)?["store_older"] == "").then_some(()))
    })
    .unwrap();
    drop(new);
    let (other, id, target) = adopted(&stack, "other");
    let unlocked = other.unlock(&id, PASSWORD).unwrap().success().unwrap();
    assert_eq!(unlocked.result()["warning"], serde_json::Value::Null, "{unlocked:?}");
    other.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [FIRST, SECOND]);
    drop(other);

    // The digits alone reach no vault.
    put_back(&stack, &before);
    let (blind, id, _) = adopted(&stack, "blind");
    let unlocked = blind.unlock_digits(&id, &digits).unwrap().success().unwrap();
    assert_eq!(unlocked.result()["warning"], serde_json::Value::Null, "{unlocked:?}");
}
