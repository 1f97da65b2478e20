//! The user's story, from the first backup to a new machine, with real programs on a real session bus.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use chatkeep_tests::stack::machine::{self, now_us};
use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::{Machine, Settings, Stack, programs, scan, wait};

const PASSWORD: &str = "correct horse battery staple";
const FIRST: &str = "first message: the harbour at nine, bring the red folder";
const SECOND: &str = "second message: nobody else knows about the folder";

/// A machine with the service running, and a monitor that records its session bus.
fn recorded(stack: &Stack, name: &str) -> Machine {
    programs::require("dbus-daemon", "dbus-daemon").unwrap();
    let mut machine = stack.machine(name, &Settings::default()).unwrap();
    let root = machine.root().to_owned();
    machine.bus.as_mut().unwrap().record(&root).unwrap();
    machine.start().unwrap();
    machine
}

fn started(stack: &Stack, name: &str) -> Machine {
    let mut machine = stack.machine(name, &Settings { bus: false, ..Settings::default() }).unwrap();
    machine.start().unwrap();
    machine
}

fn notes(machine: &Machine) -> Notes {
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say(FIRST).unwrap();
    notes
}

/// The only archive in the store.
fn only_archive(machine: &Machine) -> String {
    let archives = machine.list_remote().unwrap();
    assert_eq!(archives.len(), 1, "{archives:?}");
    archives[0].0.clone()
}

/// Adopted on an empty machine; not unlocked.
fn adopted(stack: &Stack, name: &str) -> (Machine, String, PathBuf) {
    let machine = started(stack, name);
    let target = machine.home().join("notes.db");
    let id = machine.adopt(&only_archive(&machine), &target).unwrap();
    (machine, id, target)
}

/// Writes `text`, and waits for a recovery point that has it.
fn say_and_wait(machine: &Machine, id: &str, notes: &Notes, text: &str) {
    notes.say(text).unwrap();
    machine.wait_for_point(id, now_us()).map(drop).or_else(|_| machine.back_up(id)).unwrap();
}

fn contains(file: &Path, text: &str) -> bool {
    !scan::scan(&[file.to_owned()], &scan::text("x", text)).unwrap().is_empty()
}

/// Everything goes over the session bus, while somebody records it, and all that others can see is looked through.
#[test]
fn a_password_brings_the_messages_to_a_new_machine_and_nobody_else_reads_them() {
    let stack = Stack::start().unwrap();
    let mut old = recorded(&stack, "old");
    let notes = notes(&old);
    let file = notes.path().to_str().unwrap();
    let id = old.run_on_bus(&["register", file, "--name", "notes"], None).unwrap().success().unwrap().last();
    let id = id["id"].as_str().unwrap();
    let enable = ["encryption", "enable-password", id, "--password-fd", "0"];
    old.run_on_bus(&enable, Some(PASSWORD)).unwrap().success().unwrap();
    old.wait_for_point(id, 0).unwrap();
    notes.say(SECOND).unwrap();
    old.back_up(id).unwrap();
    let keys = key_bytes(&old);
    assert!(!keys.is_empty(), "the key is on the machine");
    drop(notes);
    assert!(contains(&old.home(), FIRST), "what is looked for is where it belongs");
    old.stop().unwrap();

    let new = recorded(&stack, "new");
    let target = new.home().join("notes.db");
    let remote = new.run_on_bus(&["list-remote", "shelf"], None).unwrap().success().unwrap().last();
    let archive = remote["archives"][0]["id"].as_str().unwrap();
    let adopt = ["adopt", "shelf", archive, "--to", target.to_str().unwrap()];
    new.run_on_bus(&adopt, None).unwrap().success().unwrap();
    let id = new.status().unwrap()["databases"][0]["id"].as_str().unwrap().to_owned();
    let unlock = ["unlock", &id, "--password-fd", "0"];
    new.run_on_bus(&unlock, Some(PASSWORD)).unwrap().success().unwrap();
    let restore = ["restore", &id, "--to", target.to_str().unwrap()];
    new.run_on_bus(&restore, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [FIRST, SECOND]);

    let recorded = |machine: &Machine| machine.bus.as_ref().unwrap().recording().unwrap().to_owned();
    for (machine, call) in [(&old, "EnableWithPassword"), (&new, "Unlock"), (&new, "RestoreTo")] {
        assert!(contains(&recorded(machine), call), "the monitor saw {call}");
    }
    let mut places = vec![stack.store(), stack.vault.data(), stack.vault.log()];
    for machine in [&old, &new] {
        places.extend([
            recorded(machine),
            machine.log(),
            machine.state(),
            machine.root().join("courier.log"),
        ]);
    }
    let needles =
        [scan::text("first", FIRST), scan::text("second", SECOND), scan::text("password", PASSWORD), keys];
    assert_eq!(scan::scan(&places, &needles.concat()).unwrap(), []);
}

/// The keys in the machine's key files: every field of 32 bytes.
fn key_bytes(machine: &Machine) -> Vec<scan::Needle> {
    let mut needles = Vec::new();
    scan::walk(&machine.data().join("keys"), &mut |file| {
        let record = std::fs::read(file)?;
        let fields = record[2..].chunks_exact(32).filter(|field| field.iter().any(|byte| *byte != 0));
        needles.extend(fields.map(|field| scan::Needle { name: "a key".into(), bytes: field.to_vec() }));
        Ok(())
    })
    .unwrap();
    needles
}

#[test]
fn digits_bring_the_messages_to_a_new_machine_without_a_vault() {
    let mut stack = Stack::start().unwrap();
    let old = recorded(&stack, "old");
    let notes = notes(&old);
    let id = old.register(notes.path(), "notes").unwrap();
    // over the bus: the digits come out of a pipe that the monitor has a copy of
    let file = old.root().join("digits");
    let path = file.to_str().unwrap();
    let generate = ["encryption", "generate-key", &id, "--key-out", path, "--confirm-from-file", path];
    old.run_on_bus(&generate, None).unwrap().success().unwrap();
    let digits = std::fs::read_to_string(&file).unwrap();
    assert_eq!(digits.chars().filter(char::is_ascii_hexdigit).count(), 68, "64 digits and a check group");
    old.wait_for_point(&id, 0).unwrap();
    stack.vault.kill();

    let (new, id, target) = adopted(&stack, "new");
    let ran = new.unlock(&id, "not the digits").unwrap();
    assert_ne!(ran.code, 0, "{ran:?}");
    new.unlock_digits(&id, &digits).unwrap().success().unwrap();
    new.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [FIRST]);

    let recording = old.bus.as_ref().unwrap().recording().unwrap().to_owned();
    assert!(contains(&recording, "EnableWithGeneratedKey"));
    let places =
        [stack.store(), stack.vault.data(), recording, old.log(), old.state(), new.log(), new.state()];
    let needles = [scan::text("text", FIRST), scan::digits("digits", &digits)].concat();
    assert_eq!(scan::scan(&places, &needles).unwrap(), []);
}

/// The digits behind a password are for whoever proves it, and for no monitor.
#[test]
fn whoever_has_the_password_may_keep_the_digits_too() {
    let mut stack = Stack::start().unwrap();
    let old = recorded(&stack, "old");
    let notes = notes(&old);
    let id = old.register(notes.path(), "notes").unwrap();
    old.enable_password(&id, PASSWORD).unwrap();
    old.wait_for_point(&id, 0).unwrap();
    let file = old.root().join("shown");
    let show = ["encryption", "show-key", &id, "--key-out", file.to_str().unwrap(), "--password-fd", "0"];
    let ran = old.run_on_bus(&show, Some("wrong password")).unwrap();
    assert_eq!((ran.code, ran.attempts_left()), (4, Some(9)), "{ran:?}");
    assert!(!file.exists(), "no file is left for digits that were not given");
    old.run_on_bus(&show, Some(PASSWORD)).unwrap().success().unwrap();
    let digits = std::fs::read_to_string(&file).unwrap();
    let recording = old.bus.as_ref().unwrap().recording().unwrap().to_owned();
    assert!(contains(&recording, "ShowKey"));
    let places = [stack.store(), stack.vault.data(), recording, old.log(), old.state()];
    assert_eq!(scan::scan(&places, &scan::digits("digits", &digits)).unwrap(), []);

    stack.vault.kill();
    let (new, id, target) = adopted(&stack, "new");
    new.unlock_digits(&id, &digits).unwrap().success().unwrap();
    new.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [FIRST]);
}

#[test]
fn after_a_change_only_the_new_password_opens() {
    let stack = Stack::start().unwrap();
    let old = started(&stack, "old");
    let notes = notes(&old);
    let id = old.register(notes.path(), "notes").unwrap();
    old.enable_password(&id, PASSWORD).unwrap();
    old.wait_for_point(&id, 0).unwrap();
    let both = format!("{PASSWORD}\nanother good password\n");
    old.run(&["encryption", "change-password", &id], Some(&both)).unwrap().success().unwrap();

    let (new, id, target) = adopted(&stack, "new");
    let ran = new.unlock(&id, PASSWORD).unwrap();
    assert_eq!((ran.code, ran.error().as_str()), (4, "WrongSecret"), "{ran:?}");
    assert_eq!(ran.attempts_left(), Some(9));
    new.unlock(&id, "another good password").unwrap().success().unwrap();
    new.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [FIRST]);
}

#[test]
fn after_a_rotation_only_the_new_digits_open_and_they_open_everything() {
    let stack = Stack::start().unwrap();
    let old = started(&stack, "old");
    let notes = notes(&old);
    let id = old.register(notes.path(), "notes").unwrap();
    let first_digits = old.enable_digits(&id).unwrap();
    let before = old.wait_for_point(&id, 0).unwrap();
    let digits = old.rotate_digits(&id).unwrap();
    assert_ne!(digits, first_digits);
    say_and_wait(&old, &id, &notes, SECOND);

    let (new, id, target) = adopted(&stack, "new");
    let ran = new.unlock_digits(&id, &first_digits).unwrap();
    assert_eq!((ran.code, ran.error().as_str()), (4, "WrongSecret"), "{ran:?}");
    new.unlock_digits(&id, &digits).unwrap().success().unwrap();
    new.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [FIRST, SECOND]);
    let earlier = new.home().join("earlier.db");
    new.restore(&id, &earlier, Some(&before.id)).unwrap().success().unwrap();
    assert_eq!(notes::texts(&earlier).unwrap(), [FIRST]);
}

#[test]
fn a_rotation_behind_a_password_keeps_the_password() {
    let stack = Stack::start().unwrap();
    let old = started(&stack, "old");
    let notes = notes(&old);
    let id = old.register(notes.path(), "notes").unwrap();
    old.enable_password(&id, PASSWORD).unwrap();
    old.wait_for_point(&id, 0).unwrap();
    old.run(&["encryption", "rotate-key", &id], None).unwrap().success().unwrap();
    say_and_wait(&old, &id, &notes, SECOND);

    let (new, id, target) = adopted(&stack, "new");
    new.unlock(&id, PASSWORD).unwrap().success().unwrap();
    new.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [FIRST, SECOND]);
}

#[test]
fn the_archive_goes_on_on_the_new_machine() {
    let stack = Stack::start().unwrap();
    let mut old = started(&stack, "old");
    let notes = notes(&old);
    let id = old.register(notes.path(), "notes").unwrap();
    let digits = old.enable_digits(&id).unwrap();
    old.wait_for_point(&id, 0).unwrap();
    old.stop().unwrap();

    let (new, id, target) = adopted(&stack, "new");
    new.unlock_digits(&id, &digits).unwrap().success().unwrap();
    new.restore(&id, &target, None).unwrap().success().unwrap();
    let notes = Notes::open(&target).unwrap();
    say_and_wait(&new, &id, &notes, SECOND);

    let (third, id, target) = adopted(&stack, "third");
    third.unlock_digits(&id, &digits).unwrap().success().unwrap();
    third.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [FIRST, SECOND]);
}

#[test]
fn ten_wrong_passwords_destroy_the_record_for_good() {
    let mut stack = Stack::start().unwrap();
    let old = started(&stack, "old");
    let notes = notes(&old);
    let id = old.register(notes.path(), "notes").unwrap();
    old.enable_password(&id, PASSWORD).unwrap();
    old.wait_for_point(&id, 0).unwrap();

    let (thief, id, _) = adopted(&stack, "thief");
    for left in (0..10).rev() {
        let ran = thief.unlock(&id, "wrong password").unwrap();
        assert_eq!((ran.code, ran.attempts_left()), (4, Some(left)), "{ran:?}");
    }
    assert_eq!(thief.unlock(&id, PASSWORD).unwrap().error(), "VaultDestroyed");
    stack.vault.kill();
    stack.vault.restart().unwrap();
    assert_eq!(thief.unlock(&id, PASSWORD).unwrap().error(), "VaultDestroyed");
    drop(thief);

    // the owner's machine is still unlocked: a new password, with a new record at the vault
    let both = format!("{PASSWORD}\nanother good password\n");
    old.run(&["encryption", "change-password", "notes"], Some(&both)).unwrap().success().unwrap();
    let (new, id, target) = adopted(&stack, "new");
    assert_eq!(new.unlock(&id, PASSWORD).unwrap().attempts_left(), Some(9));
    new.unlock(&id, "another good password").unwrap().success().unwrap();
    new.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), [FIRST]);
}

/// SQLite tells others of a commit after the log is on the disk, in shared memory and without an event: the larger the
/// commit, or the slower the disk, the later. It must not be left to the look that is taken every half minute.
#[test]
fn a_large_message_is_noticed_as_a_small_one_is() {
    let stack = Stack::start().unwrap();
    let machine = started(&stack, "old");
    let notes = notes(&machine);
    let id = machine.register(notes.path(), "notes").unwrap();
    machine.enable_digits(&id).unwrap();
    machine.wait_for_point(&id, 0).unwrap();
    for megabytes in [1, 3, 1, 2] {
        let before = now_us();
        notes.say(&"0123456789abcdef".repeat(megabytes << 16)).unwrap();
        let look = || Ok(machine.points(&id)?.into_iter().find(|point| point.time_us > before));
        wait::until("a point of the large message", Duration::from_secs(15), look).unwrap();
    }
}

/// What is below XDG_STATE_HOME is a cache: gone, or garbage, it is made anew from the store.
#[test]
fn the_cache_may_be_deleted_or_damaged() {
    let stack = Stack::start().unwrap();
    let mut machine = started(&stack, "old");
    let notes = notes(&machine);
    let id = machine.register(notes.path(), "notes").unwrap();
    machine.enable_digits(&id).unwrap();
    let mut points = vec![machine.wait_for_point(&id, 0).unwrap().id];
    let mut texts = vec![FIRST.to_owned()];
    let delete: fn(&Path) = |state| std::fs::remove_dir_all(state).unwrap();
    let damage: fn(&Path) = |state| {
        scan::walk(state, &mut |file| {
            let length = std::fs::metadata(file)?.len() as usize;
            Ok(std::fs::write(file, b"garbage ".repeat(length.div_ceil(8)))?)
        })
        .unwrap();
    };
    for (how, harm) in [("deleted", delete), ("damaged", damage)] {
        machine.stop().unwrap();
        harm(&machine.state());
        texts.push(format!("while the cache is {how}"));
        notes.say(texts.last().unwrap()).unwrap();
        let before = now_us();
        machine.start().unwrap();
        let newest = machine.wait_for_point(&id, before).unwrap();
        let listed: Vec<_> = machine.points(&id).unwrap().into_iter().map(|point| point.id).collect();
        for point in &points {
            assert!(listed.contains(point), "{how}: {point} is not in {listed:?}");
        }
        points.push(newest.id);
        let back = machine.home().join(format!("{how}.db"));
        machine.restore(&id, &back, None).unwrap().success().unwrap();
        assert_eq!(notes::texts(&back).unwrap(), texts, "{how}");
    }
    machine.verify(&id, "chunks").unwrap().success().unwrap();
}

#[test]
fn a_database_in_the_configuration_is_backed_up_and_a_pause_is_kept() {
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("old", &Settings { bus: false, ..Settings::default() }).unwrap();
    let notes = notes(&machine);
    let settings = Settings::default();
    let config = machine::config(&stack.store(), &stack.vault, &settings);
    let source = format!("[[source]]\nname = \"notes\"\npath = \"{}\"\n", notes.path().display());
    machine.configure(&format!("{config}\n{source}")).unwrap();
    machine.start().unwrap();
    let id = machine.status().unwrap()["databases"][0]["id"].as_str().unwrap().to_owned();
    let refused = machine.run(&["unregister", &id], None).unwrap();
    assert_eq!(refused.error(), "Configured");
    machine.enable_digits(&id).unwrap();
    let first = machine.wait_for_point(&id, 0).unwrap();

    machine.run(&["pause"], None).unwrap().success().unwrap();
    assert_eq!(machine.status().unwrap()["paused"], true);
    notes.say(SECOND).unwrap();
    wait::until("the change is seen", wait::PATIENCE, || {
        Ok((machine.database(&id)?["pending_bytes"].as_u64() > Some(0)).then_some(()))
    })
    .unwrap();
    // that something does not happen shows only after the time in which it would: twice `capture.max_age`
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(machine.points(&id).unwrap()[0], first);
    machine.run(&["resume"], None).unwrap().success().unwrap();
    machine.wait_for_point(&id, first.time_us).unwrap();
    let back = machine.home().join("back.db");
    machine.restore(&id, &back, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&back).unwrap(), [FIRST, SECOND]);
}

/// As where systemd does not start the courier.
#[test]
fn the_service_starts_a_courier_when_none_is_there() {
    let stack = Stack::start().unwrap();
    let settings = Settings { bus: false, courier: false, ..Settings::default() };
    let mut machine = stack.machine("alone", &settings).unwrap();
    machine.start().unwrap();
    let notes = notes(&machine);
    let id = machine.register(notes.path(), "notes").unwrap();
    machine.enable_password(&id, PASSWORD).unwrap();
    machine.wait_for_point(&id, 0).unwrap();
}
