//! Several databases of one app: one recovery point has them all, whatever comes and goes meanwhile.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use chatkeep_tests::stack::machine::{self, now_us};
use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::{Machine, Settings, Stack};

/// A machine whose configuration names one source of three databases; the third does not exist yet.
fn started(stack: &Stack) -> Machine {
    let settings = Settings { bus: false, ..Settings::default() };
    let mut machine = stack.machine("old", &settings).unwrap();
    let path = |name: &str| machine.home().join(name).display().to_string();
    let source = format!(
        "\n[[source]]\nname = \"app\"\npath = \"{}\"\ndatabases = [\"{}\", \"{}\"]\n",
        path("chats.db"),
        path("keys.db"),
        path("later.db")
    );
    machine.configure(&(machine::config(&stack.store(), &stack.vault, &settings) + &source)).unwrap();
    machine.start().unwrap();
    machine
}

fn texts(folder: &Path, name: &str) -> Vec<String> {
    notes::texts(&folder.join(name)).unwrap()
}

/// All captured up to now.
fn back_up(machine: &Machine) -> String {
    let before = now_us();
    machine.back_up("app").unwrap();
    let newest = machine.points("app").unwrap().remove(0);
    assert!(newest.time_us <= now_us() && before > 0);
    newest.id
}

#[test]
fn one_recovery_point_has_all_databases_of_an_app() {
    let stack = Stack::start().unwrap();
    let home = stack.root().join("old/home");
    std::fs::create_dir_all(&home).unwrap();
    let chats = Notes::open(&home.join("chats.db")).unwrap();
    let keys = Notes::open(&home.join("keys.db")).unwrap();
    chats.say("chat 1").unwrap();
    keys.say("key 1").unwrap();
    let machine = started(&stack);
    let digits = machine.enable_digits("app").unwrap();
    let first = back_up(&machine);

    // Only one of them changes; another one comes.
    keys.say("key 2").unwrap();
    let second = back_up(&machine);
    let later = Notes::open(&machine.home().join("later.db")).unwrap();
    later.say("later 1").unwrap();
    // It is looked for every few seconds.
    chatkeep_tests::stack::wait::until(
        "the third database is in a point",
        std::time::Duration::from_secs(40),
        || {
            chats.say("chat").unwrap();
            let point = back_up(&machine);
            let target = machine.home().join(format!("look-{point}"));
            machine.restore("app", &target, Some(&point))?.success()?;
            Ok(target.join("later.db").exists().then_some(()))
        },
    )
    .unwrap();

    // An app that loses one of its files does not lose it in the backup.
    drop(keys);
    std::fs::remove_file(machine.home().join("keys.db")).unwrap();
    chats.say("chat 3").unwrap();
    let third = back_up(&machine);

    let archive = machine.list_remote().unwrap().remove(0).0;
    drop(machine);
    let mut new = stack.machine("new", &Settings { bus: false, ..Settings::default() }).unwrap();
    new.start().unwrap();
    let id = new.adopt(&archive, &new.home().join("chats.db")).unwrap();
    new.unlock_digits(&id, &digits).unwrap().success().unwrap();
    let restored = |point: &str| {
        let target = new.home().join(format!("point-{point}"));
        new.restore(&id, &target, Some(point)).unwrap().success().unwrap();
        target
    };
    let target = restored(&first);
    assert_eq!(
        (texts(&target, "chats.db"), texts(&target, "keys.db")),
        (vec!["chat 1".into()], vec!["key 1".into()])
    );
    assert!(!target.join("later.db").exists());
    let target = restored(&second);
    assert_eq!(texts(&target, "keys.db"), ["key 1", "key 2"]);
    assert_eq!(texts(&target, "chats.db"), ["chat 1"]);
    let target = restored(&third);
    assert_eq!(texts(&target, "keys.db"), ["key 1", "key 2"], "it was gone, and is as it was last");
    assert_eq!(texts(&target, "later.db"), ["later 1"]);
    assert_eq!(texts(&target, "chats.db").last().unwrap(), "chat 3");
    // A file in the way of the folder is said to be one.
    std::fs::write(new.home().join("file"), b"x").unwrap();
    let refused = new.restore(&id, &new.home().join("file"), Some(&third)).unwrap();
    assert!(refused.success().is_err());
}
