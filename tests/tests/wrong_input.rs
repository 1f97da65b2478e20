//! What goes wrong is named as what it is: wrong secrets, damaged stores, files that are no databases, and so on.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use chatkeep_tests::stack::command::Ran;
use chatkeep_tests::stack::machine::{self, now_us};
use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::{Machine, Settings, Stack, wait};

const PASSWORD: &str = "correct horse battery staple";
const TEXT: &str = "the tide table is in the drawer";

/// A machine with one database in key mode, and a first recovery point.
struct Backed {
    stack: Stack,
    machine: Machine,
    notes: Notes,
    id: String,
    digits: String,
}

fn settings() -> Settings {
    Settings { bus: false, ..Settings::default() }
}

fn backed() -> Backed {
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("one", &settings()).unwrap();
    machine.start().unwrap();
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say(TEXT).unwrap();
    let id = machine.register(notes.path(), "notes").unwrap();
    let digits = machine.enable_digits(&id).unwrap();
    machine.wait_for_point(&id, 0).unwrap();
    Backed { stack, machine, notes, id, digits }
}

impl Backed {
    /// An empty second machine that adopted the archive.
    fn second(&self) -> (Machine, String) {
        let mut machine = self.stack.machine("two", &settings()).unwrap();
        machine.start().unwrap();
        let archive = machine.list_remote().unwrap()[0].0.clone();
        let id = machine.adopt(&archive, &machine.home().join("notes.db")).unwrap();
        (machine, id)
    }

    fn restore(&self, name: &str) -> Ran {
        self.machine.restore(&self.id, &self.machine.home().join(name), None).unwrap()
    }

    /// Waits until the last error of the database is `name`; an empty name is "all is well".
    fn wait_for_error(&self, name: &str) -> serde_json::Value {
        let mut seen = serde_json::Value::Null;
        let found = wait::until(&format!("`{name}` is shown"), wait::PATIENCE, || {
            seen = self.machine.database(&self.id)?;
            let shown = seen["last_error"]["error"].as_str().unwrap_or_default();
            Ok((shown == name).then(|| seen.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error}; the last was {seen}"))
    }
}

/// Exit status, error name, and a part of what is told.
fn expect(ran: &Ran, code: i32, error: &str, told: &str) {
    assert_eq!((ran.code, ran.error().as_str()), (code, error), "{}: {}", ran.line, ran.explanation());
    assert!(ran.explanation().contains(told), "`{told}` is not in: {}", ran.explanation());
}

#[test]
fn wrong_digits_name_the_group() {
    let backed = backed();
    let (machine, id) = backed.second();
    // the third group of four, wherever dashes are
    let mut digits: Vec<char> = backed.digits.chars().collect();
    let at = digits.iter().enumerate().filter(|(_, c)| c.is_ascii_hexdigit()).nth(9).unwrap().0;
    digits[at] = if digits[at] == '7' { '8' } else { '7' };
    let wrong: String = digits.into_iter().collect();
    expect(&machine.unlock_digits(&id, &wrong).unwrap(), 4, "WrongSecret", "group 3");
    let other = "0".repeat(64);
    expect(&machine.unlock_digits(&id, &other).unwrap(), 4, "WrongSecret", "");
    expect(&machine.unlock_digits(&id, "12345").unwrap(), 4, "InvalidSecret", "64 digits");
    machine.unlock_digits(&id, &backed.digits).unwrap().success().unwrap();
}

#[test]
fn a_wrong_password_costs_an_attempt_and_an_absent_vault_none() {
    let mut stack = Stack::start().unwrap();
    let mut machine = stack.machine("one", &settings()).unwrap();
    machine.start().unwrap();
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say(TEXT).unwrap();
    let id = machine.register(notes.path(), "notes").unwrap();
    let enable = ["encryption", "enable-password", &id, "--password-fd", "0"];
    expect(&machine.run(&enable, Some("short")).unwrap(), 4, "InvalidSecret", "8 characters");
    stack.vault.kill();
    expect(&machine.run(&enable, Some(PASSWORD)).unwrap(), 1, "VaultUnreachable", "");
    stack.vault.restart().unwrap();
    machine.enable_password(&id, PASSWORD).unwrap();
    machine.wait_for_point(&id, 0).unwrap();
    expect(&machine.run(&enable, Some(PASSWORD)).unwrap(), 1, "AlreadyEnabled", "");

    let mut second = stack.machine("two", &settings()).unwrap();
    second.start().unwrap();
    let archive = second.list_remote().unwrap()[0].0.clone();
    let id = second.adopt(&archive, &second.home().join("notes.db")).unwrap();
    let check = |password: &str| second.unlock(&id, password).unwrap();
    let ran = check("wrong password");
    expect(&ran, 4, "WrongSecret", "9 of 10");
    assert_eq!(ran.attempts_left(), Some(9));
    stack.vault.kill();
    expect(&check(PASSWORD), 1, "VaultUnreachable", "no attempt was counted");
    stack.vault.restart().unwrap();
    assert_eq!(check("another wrong password").attempts_left(), Some(8));
    check(PASSWORD).success().unwrap();
}

#[test]
fn a_store_that_is_gone_is_waited_for() {
    let backed = backed();
    let away = backed.stack.root().join("away");
    std::fs::rename(backed.stack.store(), &away).unwrap();
    backed.notes.say("while the store is away").unwrap();
    let shown = backed.wait_for_error("StoreUnreachable");
    assert!(shown["pending_bytes"].is_u64());
    expect(&backed.restore("back.db"), 1, "StoreUnreachable", "");
    expect(&backed.machine.run(&["list-remote", "shelf"], None).unwrap(), 1, "StoreUnreachable", "");
    assert!(!backed.stack.store().exists(), "nothing was made in its place");
    let gone_at = now_us();
    std::fs::rename(&away, backed.stack.store()).unwrap();
    backed.notes.say("and back again").unwrap();
    backed.machine.back_up(&backed.id).unwrap();
    backed.machine.wait_for_point(&backed.id, gone_at).unwrap();
    backed.wait_for_error("");
    backed.restore("back.db").success().unwrap();
    assert_eq!(notes::texts(&backed.machine.home().join("back.db")).unwrap().len(), 3);
}

/// A small file system of its own is the store; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs"]).arg(at).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }

    fn grow(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,size=16m"]).arg(&self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_store_is_named_and_goes_on_when_there_is_room() {
    let stack = Stack::start().unwrap();
    let Some(small) = Small::mount(&stack.store()) else {
        println!("not tested: a small file system can be mounted by root only");
        return;
    };
    let mut machine = stack.machine("one", &settings()).unwrap();
    machine.start().unwrap();
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    let id = machine.register(notes.path(), "notes").unwrap();
    machine.enable_digits(&id).unwrap();
    machine.wait_for_point(&id, 0).unwrap();
    // hexadecimal digits of random numbers get half as long at best
    let mut random = chatkeep_tests::stack::random::Random::new(3);
    let mut noise = String::new();
    for _ in 0..150_000 {
        write!(noise, "{:016x}", random.number()).unwrap();
    }
    notes.say(&noise).unwrap();
    let full = wait::until("the store is full", wait::PATIENCE, || {
        let shown = machine.database(&id)?;
        Ok((shown["last_error"]["error"] == "StoreFull").then_some(shown))
    });
    full.unwrap();
    assert_eq!(machine.status().unwrap()["stores"][0]["state"], "full");
    let full_at = now_us();
    small.grow();
    // a person who made room says so, and need not wait for the next try
    machine.run(&["store", "test", machine::STORE], None).unwrap().success().unwrap();
    notes.say("room").unwrap();
    machine.wait_for_point(&id, full_at).unwrap();
    let back = machine.home().join("back.db");
    machine.restore(&id, &back, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&back).unwrap(), [noise, "room".into()]);
    drop(machine);
}

#[test]
fn what_is_no_database_is_not_watched() {
    let backed = backed();
    let file = backed.machine.home().join("letter.db");
    std::fs::write(&file, "Dear Alice,\nthis is a letter and no database.\n".repeat(100)).unwrap();
    let ran = backed.machine.run(&["register", file.to_str().unwrap(), "--name", "letter"], None).unwrap();
    expect(&ran, 1, "InvalidArgument", "it is a text");
    let folder = backed.machine.home();
    let ran = backed.machine.run(&["register", folder.to_str().unwrap()], None).unwrap();
    expect(&ran, 1, "Local", "is no file");
}

#[test]
fn a_database_that_is_deleted_is_missing_and_comes_back() {
    let backed = backed();
    let path = backed.notes.path().to_owned();
    drop(backed.notes);
    for name in ["notes.db", "notes.db-wal", "notes.db-shm"] {
        let _ = std::fs::remove_file(path.with_file_name(name));
    }
    wait::until("it is shown as missing", wait::PATIENCE, || {
        Ok((backed.machine.database(&backed.id)?["state"] == "missing").then_some(()))
    })
    .unwrap();
    let gone_at = now_us();
    backed.machine.restore(&backed.id, &path, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&path).unwrap(), [TEXT]);
    let notes = Notes::open(&path).unwrap();
    notes.say("after the loss").unwrap();
    backed.machine.wait_for_point(&backed.id, gone_at).unwrap();
}

/// A home that was copied to another machine, keys and all: both write one archive, and the later one is told.
#[test]
fn of_two_machines_on_one_archive_one_is_fenced() {
    let mut backed = backed();
    backed.machine.stop().unwrap();
    let mut copy = backed.stack.machine("copy", &settings()).unwrap();
    let status = Command::new("cp")
        .args(["-a", "--"])
        .args(["home", "data", "state"].map(|folder| backed.machine.root().join(folder)))
        .arg(copy.root())
        .status();
    assert!(status.unwrap().success());
    let registrations = copy.data().join("registrations.toml");
    let text = std::fs::read_to_string(&registrations).unwrap();
    let (from, to) = (backed.machine.home(), copy.home());
    let moved = text.replace(from.to_str().unwrap(), to.to_str().unwrap());
    assert_ne!(moved, text);
    std::fs::write(&registrations, moved).unwrap();

    backed.machine.start().unwrap();
    copy.start().unwrap();
    backed.notes.say("written here").unwrap();
    backed.machine.back_up(&backed.id).unwrap();
    let elsewhere = Notes::open(&copy.home().join("notes.db")).unwrap();
    elsewhere.say("written there").unwrap();
    let fenced = wait::until("the copy is fenced", wait::PATIENCE, || {
        let shown = copy.database(&backed.id)?;
        Ok((shown["last_error"]["error"] == "WriterFenced").then_some(shown))
    })
    .unwrap();
    assert_eq!(fenced["state"], "blocked", "{fenced}");
    let status = copy.run(&["status"], None).unwrap();
    assert!(status.code != 0 && status.last().to_string().contains("another installation"), "{status:?}");
    // what is stored stays, on both sides
    backed.restore("back.db").success().unwrap();
    let back = notes::texts(&backed.machine.home().join("back.db")).unwrap();
    assert_eq!(back, [TEXT, "written here"]);
}

#[test]
fn a_configuration_that_is_wrong_stops_the_start() {
    let stack = Stack::start().unwrap();
    let machine = stack.machine("one", &settings()).unwrap();
    let good = machine::config(&stack.store(), &stack.vault, &settings());
    for (more, told) in [
        ("[capture]\nquite = \"2s\"\n", "quite"),
        ("[service]\npassword = \"hunter2hunter2\"\n", "service.password"),
        ("[[store]]\nname = \"x\"\nurl = \"nonsense\"\n", "not a URL"),
        ("[service]\nkey_storage = \"file\"\n[[store]]\nname = \"x\"\nurl = \"gopher:///x\"\n", "gopher"),
        ("[[source]]\nname = \"x\"\npath = \"/x.db\"\nstore = \"y\"\n", "not configured"),
    ] {
        machine.configure(more).unwrap();
        let ran = machine.service_command().unwrap().stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(78), "{more}: {said}");
        assert!(said.contains(told), "`{told}` is not in: {said}");
        assert!(!said.contains("hunter2"), "the secret is told: {said}");
    }
    machine.configure(&good).unwrap();
}

#[test]
fn a_second_service_does_not_start() {
    let backed = backed();
    let ran = backed.machine.service_command().unwrap().stdin(Stdio::null()).output().unwrap();
    assert_eq!(ran.status.code(), Some(78), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(backed.machine.status().is_ok(), "the first one still answers");
}

#[test]
fn a_restore_writes_over_nothing_by_accident() {
    let backed = backed();
    let home = backed.machine.home();
    let taken = home.join("taken.db");
    std::fs::write(&taken, "something else").unwrap();
    expect(&backed.restore("taken.db"), 1, "InvalidArgument", "nothing was written");
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "something else");

    let over = ["restore", &backed.id, "--to", taken.to_str().unwrap(), "--overwrite"];
    backed.machine.run(&over, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&taken).unwrap(), [TEXT]);
    let kept = std::fs::read_dir(&home).unwrap().flatten().filter(|entry| {
        entry.file_name().to_string_lossy().starts_with("taken.db.before-")
            && std::fs::read(entry.path()).unwrap() == b"something else"
    });
    assert_eq!(kept.count(), 1, "the old file is kept beside");

    // an app has the database open
    let over = ["restore", &backed.id, "--to", backed.notes.path().to_str().unwrap(), "--overwrite"];
    expect(&backed.machine.run(&over, None).unwrap(), 1, "DatabaseInUse", "");
    backed.notes.say("and goes on writing").unwrap();
    let missing = home.join("no/such/folder.db");
    assert_ne!(backed.machine.restore(&backed.id, &missing, None).unwrap().code, 0);
}
