//! Somebody else tries the password: the owner's machine notices by itself, says so, and can put a stop to it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::time::Duration;

use chatkeep_tests::stack::desktop::Desktop;
use chatkeep_tests::stack::machine::VAULT;
use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::{Machine, Settings, Stack, programs, wait};
use serde_json::Value;

const PASSWORD: &str = "correct horse battery staple";
const TEXT: &str = "the harbour at nine, bring the red folder";
/// Looks at the vault all the time; what is not certain yet is looked at again a second later.
const OFTEN: &str = "[vaults]\nlook_every = \"1s\"";

/// A machine whose password is registered with the vault, and the identifier of its database.
fn owner(stack: &Stack, bus: bool, settings: &str) -> (Machine, String) {
    let mut machine = stack.machine("owner", &Settings { bus, ..Settings::default() }).unwrap();
    machine.configure_also(settings).unwrap();
    machine.start().unwrap();
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say(TEXT).unwrap();
    let id = machine.register(notes.path(), "notes").unwrap();
    machine.enable_password(&id, PASSWORD).unwrap();
    machine.wait_for_point(&id, 0).unwrap();
    (machine, id)
}

/// Another machine, that has found the archive in the store.
fn adopted(stack: &Stack, name: &str) -> (Machine, String, PathBuf) {
    let mut machine = stack.machine(name, &Settings { bus: false, ..Settings::default() }).unwrap();
    machine.start().unwrap();
    let archive = machine.list_remote().unwrap().remove(0).0;
    let target = machine.home().join("notes.db");
    let id = machine.adopt(&archive, &target).unwrap();
    (machine, id, target)
}

fn check(machine: &Machine, id: &str, password: &str) -> chatkeep_tests::stack::command::Ran {
    machine.run(&["encryption", "check", id, "--vault", "--password-fd", "0"], Some(password)).unwrap()
}

fn wait_for_vault(machine: &Machine, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let look = || Ok(Some(machine.vault(VAULT)?).filter(|vault| wanted(vault)));
    wait::until(what, Duration::from_mins(1), look)
        .unwrap_or_else(|error| panic!("{error:#}: {}", machine.vault(VAULT).unwrap()))
}

/// Waits until the service has looked at the vault a few times more.
fn looked_again(machine: &Machine) -> Value {
    let mut vault = machine.vault(VAULT).unwrap();
    for _ in 0..4 {
        let before = vault["last_contact"].as_u64();
        vault = wait_for_vault(machine, "another look", |vault| vault["last_contact"].as_u64() > before);
    }
    vault
}

#[test]
fn an_attempt_elsewhere_is_told_and_can_be_stopped_from_the_notification() {
    programs::require("dbus-daemon", "dbus-daemon").unwrap();
    let stack = Stack::start().unwrap();
    let (mut machine, id) = owner(&stack, true, OFTEN);
    let desktop = Desktop::start(&machine.bus.as_ref().unwrap().address).unwrap();

    assert_eq!(check(&machine, &id, "my own mistake").attempts_left(), Some(9));
    let vault = looked_again(&machine);
    assert_eq!(
        (vault["failed_here"].as_u64(), vault["failed_elsewhere"].as_u64()),
        (Some(1), Some(0)),
        "{vault}"
    );
    check(&machine, &id, PASSWORD).success().unwrap();
    assert_eq!(desktop.shown(), [], "nobody else has tried");

    let (thief, theirs, _) = adopted(&stack, "thief");
    assert_eq!(thief.unlock(&theirs, "a guess").unwrap().attempts_left(), Some(9));
    let vault = wait_for_vault(&machine, "the alarm", |vault| vault["unacknowledged"] == 1);
    assert_eq!(
        (vault["failed_here"].as_u64(), vault["failed_attempts"].as_u64()),
        (Some(1), Some(2)),
        "{vault}"
    );
    let status = machine.status().unwrap();
    assert!(status["reasons"].to_string().contains("were not tried on this machine"), "{status}");
    let notice = desktop.wait().unwrap();
    assert!(notice.body.contains("9 attempts are left"), "{notice:?}");
    assert_eq!(notice.actions[0], "freeze", "{notice:?}");

    desktop.press(notice.id, "freeze").unwrap();
    wait_for_vault(&machine, "the freeze", |vault| vault["state"] == "frozen");
    let refused = thief.unlock(&theirs, "another guess").unwrap();
    assert_eq!((refused.error().as_str(), refused.attempts_left()), ("VaultBackoff", None), "{refused:?}");
    assert!(refused.last()["message"].to_string().contains("frozen until 20"), "{refused:?}");

    // It stays until somebody acknowledges it, also over a restart, and is told again then.
    let told = desktop.shown().len();
    machine.kill();
    machine.start().unwrap();
    wait::until("told again", Duration::from_mins(1), || Ok((desktop.shown().len() > told).then_some(())))
        .unwrap();
    assert_eq!(machine.vault(VAULT).unwrap()["unacknowledged"], 1);
    machine.run(&["vault", "acknowledge"], None).unwrap().success().unwrap();
    let vault = looked_again(&machine);
    assert_eq!((vault["unacknowledged"].as_u64(), vault["failed_elsewhere"].as_u64()), (Some(0), Some(1)));
}

#[test]
fn a_freeze_keeps_everybody_out_but_the_device_that_lifts_it() {
    let stack = Stack::start().unwrap();
    let (machine, id) = owner(&stack, false, OFTEN);
    machine.run(&["vault", "freeze", "--for", "31d"], None).unwrap().success().unwrap_err();
    machine.run(&["vault", "freeze", "--for", "3d"], None).unwrap().success().unwrap();
    let frozen = machine.vault(VAULT).unwrap();
    assert_eq!(frozen["state"], "frozen", "{frozen}");
    let (new, theirs, target) = adopted(&stack, "new");
    assert_eq!(new.unlock(&theirs, PASSWORD).unwrap().error(), "VaultBackoff");

    // The owner's device may try, and change the password; the freeze is there again afterwards.
    check(&machine, &id, PASSWORD).success().unwrap();
    let both = format!("{PASSWORD}\nanother good password\n");
    machine.run(&["encryption", "change-password", &id], Some(&both)).unwrap().success().unwrap();
    let again = looked_again(&machine);
    assert_eq!((&again["state"], &again["frozen_until"]), (&frozen["state"], &frozen["frozen_until"]));
    assert_eq!(new.unlock(&theirs, "another good password").unwrap().error(), "VaultBackoff");

    machine.run(&["vault", "unfreeze"], None).unwrap().success().unwrap();
    assert_eq!(looked_again(&machine)["state"], "ok");
    new.unlock(&theirs, "another good password").unwrap().success().unwrap();
    new.restore(&theirs, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [TEXT]);
    let vault = looked_again(&machine);
    assert_eq!(vault["failed_elsewhere"], 0, "a right password elsewhere is no failed attempt: {vault}");
}

#[test]
fn a_killed_service_takes_no_attempt_of_its_own_for_somebody_elses() {
    let stack = Stack::start().unwrap();
    let (mut machine, id) = owner(&stack, false, OFTEN);
    // Stretching takes most of a second here; before, amid and after the question to the vault.
    for moment_ms in [500, 900, 1300, 1700] {
        std::thread::scope(|scope| {
            let attempt = scope.spawn(|| check(&machine, &id, "my own mistake"));
            std::thread::sleep(Duration::from_millis(moment_ms));
            machine.kill_at_once().unwrap();
            attempt.join().unwrap();
        });
        machine.kill();
        machine.start().unwrap();
        let vault = wait_for_vault(&machine, "a look", |vault| vault["last_contact"].as_u64() > Some(0));
        assert_eq!(vault["failed_elsewhere"], 0, "{moment_ms} ms: {vault}");
    }
    let vault = looked_again(&machine);
    let (failed, here) = (vault["failed_attempts"].as_u64(), vault["failed_here"].as_u64());
    assert_eq!((failed, vault["failed_elsewhere"].as_u64()), (here, Some(0)), "{vault}");

    let (thief, theirs, _) = adopted(&stack, "thief");
    assert_eq!(thief.unlock(&theirs, "a guess").unwrap().code, 4);
    let vault = wait_for_vault(&machine, "the alarm", |vault| vault["unacknowledged"] == 1);
    assert_eq!(vault["failed_here"].as_u64(), here, "{vault}");
}

/// While this machine looks at the vault, nobody gets a single attempt.
#[test]
fn a_locked_vault_gives_nobody_an_attempt_and_its_owner_all() {
    let stack = Stack::start().unwrap();
    let (mut machine, id) = owner(&stack, false, &format!("{OFTEN}\nguard_lock = \"2d\""));
    let locked = wait_for_vault(&machine, "the lock", |vault| vault["state"] == "frozen");
    let until = locked["frozen_until"].as_u64().unwrap();
    assert!(until > chatkeep_tests::stack::machine::now_us() + 47 * 3_600_000_000, "{locked}");
    let (other, theirs, _) = adopted(&stack, "other");
    assert_eq!(other.unlock(&theirs, PASSWORD).unwrap().error(), "VaultBackoff");
    check(&machine, &id, PASSWORD).success().unwrap();
    assert_eq!(other.unlock(&theirs, PASSWORD).unwrap().error(), "VaultBackoff");

    let lifted = machine.run(&["vault", "unfreeze"], None).unwrap().success().unwrap();
    assert!(lifted.result()["warning"].to_string().contains("guard_lock"), "{lifted:?}");
    wait_for_vault(&machine, "the lock again", |vault| vault["state"] == "frozen");
    machine.stop().unwrap();
    let config = std::fs::read_to_string(machine.config_file()).unwrap();
    machine.configure(&config.replace("guard_lock = \"2d\"", "")).unwrap();
    machine.start().unwrap();
    machine.run(&["vault", "unfreeze"], None).unwrap().success().unwrap();
    other.unlock(&theirs, PASSWORD).unwrap().success().unwrap();
}

/// Final words are told by the guard itself, and once.
#[test]
fn a_destroyed_account_and_a_changed_password_are_told_once() {
    programs::require("dbus-daemon", "dbus-daemon").unwrap();
    let stack = Stack::start().unwrap();
    let (machine, _) = owner(&stack, true, OFTEN);
    let desktop = Desktop::start(&machine.bus.as_ref().unwrap().address).unwrap();
    let (other, theirs, _) = adopted(&stack, "other");
    other.unlock(&theirs, PASSWORD).unwrap().success().unwrap();
    let both = format!("{PASSWORD}\nanother good password\n");
    other.run(&["encryption", "change-password", &theirs], Some(&both)).unwrap().success().unwrap();
    wait_for_vault(&machine, "the change", |vault| vault["state"] == "superseded");
    assert!(desktop.wait().unwrap().summary.contains("changed on another device"));

    for left in (0..10).rev() {
        let ran = check(&other, &theirs, "wrong");
        assert_eq!(ran.attempts_left(), Some(left), "{ran:?}");
    }
    let destroyed = |vault: &Value| vault["state"] == "destroyed";
    wait_for_vault(&machine, "the end", destroyed);
    wait::until("it is told", Duration::from_secs(30), || {
        Ok(desktop.shown().iter().any(|shown| shown.summary.contains("opens nothing")).then_some(()))
    })
    .unwrap();
    let told = desktop.shown().len();
    looked_again(&machine);
    assert_eq!(desktop.shown().len(), told, "{:?}", desktop.shown());
}
