//! A password entrusted to three vaults, of which two have to answer: real programs, of which one is away, gone, or wrong.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chatkeep_tests::stack::command::Ran;
use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::{Machine, Settings, Stack, Vault, wait};

const PASSWORD: &str = "correct horse battery staple";
const OTHER: &str = "another good password";
const TEXT: &str = "the harbour at nine, bring the red folder";

/// The stack's own vault, `tower`, and two more.
struct World {
    stack: Stack,
    mill: Vault,
    barn: Vault,
}

impl World {
    fn start() -> Self {
        let stack = Stack::start().unwrap();
        let vault = |name: &str| Vault::start(&stack.root().join(name)).unwrap();
        let (mill, barn) = (vault("vault-mill"), vault("vault-barn"));
        Self { stack, mill, barn }
    }

    /// The configuration of all three.
    fn settings(&self, threshold: u8) -> String {
        let (mill, barn) = (self.mill.section("mill"), self.barn.section("barn"));
        format!("{mill}operator = \"Miller\"\n{barn}\n[vaults]\nthreshold = {threshold}\nlook_every = \"1s\"")
    }

    fn machine(&self, name: &str) -> Machine {
        let mut machine = self.stack.machine(name, &Settings { bus: false, ..Settings::default() }).unwrap();
        machine.configure_also(&self.settings(2)).unwrap();
        machine.start().unwrap();
        machine
    }

    /// A machine with a backup behind the password.
    fn owner(&self) -> (Machine, String, Ran) {
        let machine = self.machine("owner");
        let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
        notes.say(TEXT).unwrap();
        let id = machine.register(notes.path(), "notes").unwrap();
        let enable = ["encryption", "enable-password", &id, "--password-fd", "0"];
        let ran = machine.run(&enable, Some(PASSWORD)).unwrap().success().unwrap();
        machine.wait_for_point(&id, 0).unwrap();
        (machine, id, ran)
    }

    /// A machine that found the archive in the store.
    fn adopted(&self, name: &str) -> (Machine, String, PathBuf) {
        adopt(self.machine(name))
    }

    /// Unlocks on an empty machine with this password and restores; what was said beside.
    fn opens(&self, name: &str, password: &str) -> String {
        let (new, id, target) = self.adopted(name);
        let ran = new.unlock(&id, password).unwrap().success().unwrap();
        new.restore(&id, &target, None).unwrap().success().unwrap();
        assert_eq!(notes::texts(&target).unwrap(), [TEXT]);
        warning(&ran)
    }
}

fn adopt(machine: Machine) -> (Machine, String, PathBuf) {
    let archive = machine.list_remote().unwrap().remove(0).0;
    let target = machine.home().join("notes.db");
    let id = machine.adopt(&archive, &target).unwrap();
    (machine, id, target)
}

fn warning(ran: &Ran) -> String {
    ran.result()["warning"].as_str().unwrap_or_default().to_owned()
}

fn change(machine: &Machine, id: &str, from: &str, to: &str) -> Ran {
    machine.run(&["encryption", "change-password", id], Some(&format!("{from}\n{to}\n"))).unwrap()
}

#[test]
fn two_of_three_vaults_open_and_the_third_is_named() {
    let mut world = World::start();
    let (owner, id, enabled) = world.owner();
    assert!(warning(&enabled).contains("tower and mill are at the same host (127.0.0.1)"), "{enabled:?}");
    let encryption = &owner.database(&id).unwrap()["encryption"];
    assert_eq!((&encryption["threshold"], encryption["vaults"].as_array().unwrap().len()), (&2.into(), 3));
    for name in ["tower", "mill", "barn"] {
        let vault = owner.vault(name).unwrap();
        assert_eq!((&vault["attempts_left"], &vault["attempts_max"]), (&6.into(), &6.into()), "{vault}");
        assert!(vault["warnings"].to_string().contains("same host"), "{vault}");
    }
    assert_eq!(owner.vault("mill").unwrap()["operator"], "Miller");

    world.barn.kill();
    let (new, theirs, target) = world.adopted("new");
    let wrong = new.unlock(&theirs, "wrong password").unwrap();
    assert_eq!(
        (wrong.code, wrong.attempts_left()),
        (4, Some(5)),
        "what somebody else could still do: {wrong:?}"
    );
    let unlocked = new.unlock(&theirs, PASSWORD).unwrap().success().unwrap();
    assert!(warning(&unlocked).contains("1 of 3 vaults took no part: barn"), "{unlocked:?}");
    new.restore(&theirs, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [TEXT]);

    // A change needs all of them, and says so; nothing has changed then.
    let refused = change(&owner, &id, PASSWORD, OTHER);
    assert_eq!(refused.error(), "VaultUnreachable", "{refused:?}");
    assert!(refused.explanation().contains("barn"), "{refused:?}");
    world.opens("again", PASSWORD);
    world.barn.restart().unwrap();
    change(&owner, &id, PASSWORD, OTHER).success().unwrap();
    assert_eq!(world.opens("changed", OTHER), "");
    let (late, theirs, _) = world.adopted("late");
    assert_eq!(late.unlock(&theirs, PASSWORD).unwrap().error(), "WrongSecret");
}

#[test]
fn below_the_threshold_a_vault_may_be_gone_or_wrong_and_the_user_learns_which() {
    let mut world = World::start();
    let (owner, id, _) = world.owner();

    // One vault alone is guessed at until it erases its part; the others do not answer, so nobody learns anything.
    world.stack.vault.kill();
    world.mill.kill();
    let (thief, theirs, _) = world.adopted("thief");
    for _ in 0..6 {
        assert_eq!(thief.unlock(&theirs, "a guess").unwrap().error(), "VaultUnreachable");
    }
    drop(thief);
    world.stack.vault.restart().unwrap();
    world.mill.restart().unwrap();
    let said = world.opens("destroyed", PASSWORD);
    assert!(said.contains("1 of 3 vaults took no part: barn (the vault erased its part"), "{said}");
    wait::until("the owner's machine sees it", Duration::from_mins(1), || {
        Ok((owner.vault("barn")?["state"] == "destroyed").then_some(()))
    })
    .unwrap();
    assert_eq!(owner.vault("mill").unwrap()["state"], "ok");

    // Somebody else at the address of one of them.
    let barn = world.barn.address().to_owned();
    world.barn.kill();
    let stranger = Vault::start_at(&world.stack.root().join("stranger"), &barn).unwrap();
    let said = world.opens("stranger", PASSWORD);
    assert!(said.contains("barn (vault `barn` did not prove its identity"), "{said}");
    drop(stranger);

    // Too few: the most useful reason is told, and nothing is believed dead.
    world.mill.kill();
    let (new, theirs, _) = world.adopted("few");
    let refused = new.unlock(&theirs, PASSWORD).unwrap();
    assert_eq!(refused.error(), "VaultUnreachable", "{refused:?}");
    drop((new, owner, id));
}

#[test]
fn a_vault_that_was_put_back_to_an_old_disk_is_outvoted() {
    let mut world = World::start();
    let (owner, id, _) = world.owner();
    world.barn.stop().unwrap();
    let old = world.stack.root().join("old-disk");
    copy(&world.barn.data(), &old);
    world.barn.restart().unwrap();
    change(&owner, &id, PASSWORD, OTHER).success().unwrap();
    world.barn.stop().unwrap();
    std::fs::remove_dir_all(world.barn.data()).unwrap();
    copy(&old, &world.barn.data());
    world.barn.restart().unwrap();
    let said = world.opens("new", OTHER);
    assert!(said.contains("1 of 3 vaults took no part: barn"), "{said}");
    // And the old password, which that vault still knows, opens nothing.
    let (late, theirs, _) = world.adopted("late");
    assert_eq!(late.unlock(&theirs, PASSWORD).unwrap().error(), "WrongSecret");
}

#[test]
fn a_change_that_is_killed_at_any_moment_leaves_a_password_that_opens() {
    let world = World::start();
    let (mut owner, id, _) = world.owner();
    let mut password = PASSWORD.to_owned();
    // Proving, stretching, begin and finish, the keyring, commit, the keyring: two to three seconds.
    for (round, moment_ms) in [1200, 1700, 2000, 2300, 2600].into_iter().enumerate() {
        let next = format!("{PASSWORD} {round}");
        let ran = std::thread::scope(|scope| {
            let change = scope.spawn(|| change(&owner, &id, &password, &next));
            std::thread::sleep(Duration::from_millis(moment_ms));
            owner.kill_at_once().unwrap();
            change.join().unwrap()
        });
        owner.kill();
        owner.start().unwrap();
        owner.back_up(&id).unwrap();
        let (new, theirs, target) = world.adopted(&format!("new-{round}"));
        let opened = [&next, &password].into_iter().find(|try_this| {
            let ran = new.unlock(&theirs, try_this).unwrap();
            assert!(ran.code == 0 || ran.error() == "WrongSecret", "round {round}: {ran:?}");
            ran.code == 0
        });
        let opened = opened.unwrap_or_else(|| panic!("round {round}: nothing opens")).clone();
        assert!(ran.code != 0 || opened == next, "round {round}: it was done, and the old one opens");
        new.restore(&theirs, &target, None).unwrap().success().unwrap();
        assert_eq!(notes::texts(&target).unwrap(), [TEXT]);
        password = opened;
    }
    for name in ["tower", "mill", "barn"] {
        assert_eq!(owner.vault(name).unwrap()["failed_elsewhere"], 0);
    }
}

#[test]
fn a_keyslot_that_names_an_unknown_vault_is_refused_until_the_user_confirms_it() {
    let world = World::start();
    let (owner, ..) = world.owner();
    drop(owner);
    // This machine knows two of the three.
    let mut machine = world.stack.machine("new", &Settings { bus: false, ..Settings::default() }).unwrap();
    machine.configure_also(&world.mill.section("mill")).unwrap();
    machine.start().unwrap();
    let (mut machine, id, target) = adopt(machine);
    let refused = machine.unlock(&id, PASSWORD).unwrap();
    assert_eq!(refused.error(), "VaultUntrusted", "{refused:?}");
    let unknown = &refused.result()["unknown-vaults"];
    let (url, print) = (&world.barn.url, &world.barn.identity);
    assert_eq!(*unknown, serde_json::json!([["barn", url, print]]), "{refused:?}");
    assert!(refused.explanation().contains(print), "{refused:?}");

    let unlock = |machine: &Machine, print: &str| {
        machine.run(&["unlock", &id, "--password-fd", "0", "--trust-vault", print], Some(PASSWORD)).unwrap()
    };
    assert_eq!(unlock(&machine, &world.mill.identity).error(), "VaultUntrusted", "another one was confirmed");
    unlock(&machine, print).success().unwrap();
    machine.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [TEXT]);

    // It stays confirmed, and is watched like the others.
    machine.stop().unwrap();
    machine.start().unwrap();
    assert_eq!(machine.vault("barn").unwrap()["fingerprint"], **print);
    let check = ["encryption", "check", &id, "--vault", "--password-fd", "0"];
    machine.run(&check, Some(PASSWORD)).unwrap().success().unwrap();
}

#[test]
fn half_of_the_vaults_is_no_threshold() {
    let world = World::start();
    let machine = world.stack.machine("bad", &Settings { bus: false, ..Settings::default() }).unwrap();
    machine.configure_also(&world.settings(1)).unwrap();
    let refused = machine.service_command().unwrap().output().unwrap();
    assert_eq!(refused.status.code(), Some(78));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("1 of 3: it must be more than half"), "{said}");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}
