//! Several stores for one source, with the real programs: one is a drive that is absent for a while, then the other one is.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use chatkeep_tests::stack::machine::{self, now_us};
use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::{Machine, Settings, Stack, wait};
use serde_json::Value;

/// A queue gets so many entries before captures are put off, or it is thinned out.
const QUEUE: usize = 32;

struct Two {
    stack: Stack,
    machine: Machine,
    notes: Notes,
    digits: String,
}

impl Two {
    /// A machine whose source has the shelf and a drive.
    fn start() -> Self {
        let stack = Stack::start().unwrap();
        let settings = Settings { bus: false, ..Settings::default() };
        let mut machine = stack.machine("old", &settings).unwrap();
        let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
        notes.say("the first message").unwrap();
        let drive = stack.root().join("drive");
        std::fs::create_dir(&drive).unwrap();
        let text = format!(
            "{}\n[[store]]\nname = \"drive\"\nurl = \"file://{}\"\n\n[[source]]\nname = \"notes\"\npath = \"{}\"\nstores = [\"shelf\", \"drive\"]\n",
            machine::config(&stack.store(), &stack.vault, &settings),
            drive.display(),
            notes.path().display()
        );
        machine.configure(&text).unwrap();
        machine.start().unwrap();
        // It answers before it has taken up what is configured.
        wait::until("the database is there", wait::PATIENCE, || Ok(machine.database("notes").ok())).unwrap();
        let digits = machine.enable_digits("notes").unwrap();
        Self { stack, machine, notes, digits }
    }

    fn drive(&self) -> PathBuf {
        self.stack.root().join("drive")
    }

    /// What is shown of one of its stores.
    fn shown(&self, store: &str) -> Value {
        self.shown_now(store).unwrap()
    }

    /// Nothing while the archive is being opened.
    fn shown_now(&self, store: &str) -> Option<Value> {
        let database = self.machine.database("notes").ok()?;
        database["stores"].as_array()?.iter().find(|shown| shown["store"] == store).cloned()
    }

    fn wait_until(&self, store: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait::until(&format!("{store} is {what}"), wait::PATIENCE, || {
            Ok(self.shown_now(store).filter(|shown| is_so(shown)))
        })
        .map_err(|error| format!("{error:#}\n{}", std::fs::read_to_string(self.machine.log()).unwrap()))
        .unwrap()
    }

    /// Says so many messages, each in a commit of its own, and lets most of them be captured by themselves.
    fn say(&self, prefix: &str, count: usize) {
        for number in 0..count {
            self.notes.say(&format!("{prefix} {number}")).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(230));
        }
    }

    /// Adopts the archive from this folder on a machine that has nothing else, and reads the newest messages.
    fn read_elsewhere(&self, name: &str, store: &Path) -> Vec<String> {
        let settings = Settings { bus: false, ..Settings::default() };
        let mut other = self.stack.machine(name, &settings).unwrap();
        other.configure(&machine::config(store, &self.stack.vault, &settings)).unwrap();
        other.start().unwrap();
        let archive = other.list_remote().unwrap().remove(0).0;
        let target = other.home().join("notes.db");
        let id = other.adopt(&archive, &target).unwrap();
        other.unlock_digits(&id, &self.digits).unwrap().success().unwrap();
        other.restore(&id, &target, None).unwrap().success().unwrap();
        notes::texts(&target).unwrap()
    }
}

/// Files below a folder that are objects, and their bytes.
fn objects(folder: &Path) -> (usize, u64) {
    let (mut count, mut bytes) = (0, 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                (count, bytes) = (count + 1, bytes + entry.metadata().unwrap().len());
            }
        }
    }
    (count, bytes)
}

fn is_current(shown: &Value) -> bool {
    shown["state"] == "current" && shown["behind_points"] == 0
}

#[test]
fn a_drive_that_is_away_holds_up_nothing_and_gets_the_least_when_it_is_back() {
    let mut two = Two::start();
    two.machine.wait_for_point("notes", 0).unwrap();
    two.wait_until("drive", "current", |shown| is_current(shown) && shown["last_upload"].as_u64() > Some(0));
    assert_eq!(two.shown("shelf")["main"], true);
    assert_eq!(two.read_elsewhere("first", &two.drive()), ["the first message"]);

    // The drive is taken out: an empty folder is in its place, as a mount point is.
    let away = two.stack.root().join("in-a-drawer");
    std::fs::rename(two.drive(), &away).unwrap();
    std::fs::create_dir(two.drive()).unwrap();
    two.say("without the drive", 60);
    two.machine.back_up("notes").unwrap();
    let shelf = two.wait_until("shelf", "current", is_current);
    let drive = two.wait_until("drive", "failed", |shown| shown["state"] == "failed");
    assert!(drive["behind_points"].as_u64().unwrap() > 16, "{drive}");
    assert_eq!(drive["last_error"]["error"], "StoreUnreachable");
    assert!(shelf["last_upload"].as_u64() > drive["last_upload"].as_u64());
    assert_eq!(objects(&two.drive()).0, 0, "nothing is written into the mount point");

    let (there, _) = objects(&away);
    std::fs::remove_dir(two.drive()).unwrap();
    std::fs::rename(&away, two.drive()).unwrap();
    // A copy is tried again by itself; a backup that is asked for does not wait.
    two.notes.say("the drive is back").unwrap();
    let drive = two.wait_until("drive", "current", is_current);
    assert!(drive["lacking_points"].as_u64().unwrap() > 16, "what it missed is left out: {drive}");
    let sent = objects(&two.drive()).0 - there;
    assert!(sent <= 40, "{sent} objects for more than 60 points");
    two.machine.back_up("notes").unwrap();
    two.wait_until("drive", "current", is_current);
    assert_eq!(two.read_elsewhere("second", &two.drive()), notes::texts(two.notes.path()).unwrap());

    // The other way round in the configuration: the drive gets what it missed, and then it is the main store.
    let points = two.machine.points("notes").unwrap();
    two.machine.stop().unwrap();
    let text = std::fs::read_to_string(two.machine.config_file()).unwrap();
    two.machine.configure(&text.replace("[\"shelf\", \"drive\"]", "[\"drive\", \"shelf\"]")).unwrap();
    two.machine.start().unwrap();
    two.wait_until("drive", "the main store", |shown| shown["main"] == true);
    two.wait_until("shelf", "a copy", |shown| shown["main"] == false && is_current(shown));
    assert_eq!(two.machine.points("notes").unwrap(), points, "no history is lost");
    assert_eq!(two.machine.status().unwrap()["config_errors"], serde_json::json!([]));
    two.notes.say("exchanged").unwrap();
    two.machine.back_up("notes").unwrap();
    two.wait_until("shelf", "current", is_current);
    let said = notes::texts(two.notes.path()).unwrap();
    assert_eq!(two.read_elsewhere("third", &two.drive()), said);
    assert_eq!(two.read_elsewhere("fourth", &two.stack.store()), said);
}

#[test]
fn a_main_store_that_is_away_is_stood_in_for_and_gets_the_least_when_it_is_back() {
    let two = Two::start();
    two.machine.wait_for_point("notes", 0).unwrap();
    two.wait_until("drive", "current", |shown| is_current(shown) && shown["last_upload"].as_u64() > Some(0));
    let away = two.stack.root().join("broken");
    std::fs::rename(two.stack.store(), &away).unwrap();
    let began = now_us();
    two.say("without the shelf", 70);
    two.wait_until("shelf", "failed", |shown| shown["state"] == "failed");

    // Points that only the drive has are listed, and restore.
    two.wait_until("drive", "ahead", |shown| shown["last_upload"].as_u64() > Some(began + 5_000_000));
    let newest = two.machine.points("notes").unwrap().remove(0);
    assert!(newest.time_us > began, "{newest:?}");
    let target = two.machine.home().join("restored.db");
    let ran = two.machine.restore("notes", &target, None).unwrap().success().unwrap();
    let warning = ran.last()["result"]["warning"].as_str().unwrap_or_default().to_owned();
    assert!(warning.contains("`drive`"), "{ran:?}");
    let texts = notes::texts(&target).unwrap();
    assert!(texts.len() > 50 && texts.iter().any(|text| text == "without the shelf 40"), "{}", texts.len());

    let (there, _) = objects(&away);
    std::fs::rename(&away, two.stack.store()).unwrap();
    two.notes.say("the shelf is back").unwrap();
    two.machine.back_up("notes").unwrap();
    two.wait_until("shelf", "current", is_current);
    two.wait_until("drive", "current", is_current);
    let sent = objects(&two.stack.store()).0 - there;
    assert!(sent <= QUEUE + 30, "{sent} objects for more than 70 points");
    let said = notes::texts(two.notes.path()).unwrap();
    assert_eq!(two.read_elsewhere("third", &two.stack.store()), said);
    assert_eq!(two.read_elsewhere("fourth", &two.drive()), said);
    assert!(two.machine.verify("notes", "chunks").unwrap().success().is_ok());
}

/// Without any store nothing is captured after a while, and in the end one capture has it all.
#[test]
fn after_a_week_without_any_store_the_least_is_sent() {
    let two = Two::start();
    two.machine.wait_for_point("notes", 0).unwrap();
    two.wait_until("drive", "current", |shown| is_current(shown) && shown["last_upload"].as_u64() > Some(0));
    let folders = [two.stack.store(), two.drive()];
    let away = folders.clone().map(|folder| folder.with_extension("away"));
    for (folder, away) in folders.iter().zip(&away) {
        std::fs::rename(folder, away).unwrap();
    }
    let before = away.each_ref().map(|folder| objects(folder));
    two.say("offline", 100);
    for number in 0..3000 {
        two.notes.say(&format!("more {number}: {}", "words ".repeat(20))).unwrap();
    }
    for (folder, away) in folders.iter().zip(&away) {
        std::fs::rename(away, folder).unwrap();
    }
    two.machine.back_up("notes").unwrap();
    two.wait_until("shelf", "current", is_current);
    two.wait_until("drive", "current", is_current);
    let file = std::fs::metadata(two.notes.path()).unwrap().len();
    for (folder, before) in folders.iter().zip(before) {
        let now = objects(folder);
        let (count, bytes) = (now.0 - before.0, now.1 - before.1);
        assert!(count <= QUEUE + 10, "{count} objects in {}", folder.display());
        assert!(bytes <= 3 * file, "{bytes} bytes in {}, of a database of {file}", folder.display());
        assert_eq!(
            two.read_elsewhere(folder.file_name().unwrap().to_str().unwrap(), folder),
            notes::texts(two.notes.path()).unwrap()
        );
    }
}
