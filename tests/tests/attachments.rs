//! The user's photos, from registration to a new machine, with real programs.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chatkeep_tests::stack::machine::Machine;
use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::{Settings, Stack, scan, wait};

const SECRET: &str = "a photo that nobody else should see, with this text in it";

fn started(stack: &Stack, name: &str) -> Machine {
    let mut machine = stack.machine(name, &Settings { bus: false, ..Settings::default() }).unwrap();
    machine.start().unwrap();
    machine
}

/// Of each file its permissions, its time and what is in it.
type Tree = BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)>;

fn tree(folder: &Path) -> Tree {
    let mut files = Tree::new();
    scan::walk(folder, &mut |path| {
        let metadata = path.metadata()?;
        let content = std::fs::read(path)?;
        let name = path.strip_prefix(folder).unwrap().to_owned();
        files.insert(name, (metadata.mode() & 0o777, metadata.mtime(), metadata.mtime_nsec(), content));
        Ok(())
    })
    .unwrap();
    files
}

fn save(folder: &Path, name: &str, content: &[u8], mode: u32) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000 + content.len() as u64, 123_456_789);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
}

/// A machine with a chat program that has two databases and a folder of attachments in one place; all registered.
struct Chat {
    machine: Machine,
    id: String,
    notes: Notes,
    stickers: Notes,
    media: PathBuf,
    digits: String,
}

fn chat(stack: &Stack) -> Chat {
    let machine = started(stack, "old");
    let folder = machine.home().join("chat");
    std::fs::create_dir(&folder).unwrap();
    let (notes, stickers) =
        (Notes::open(&folder.join("notes.db")).unwrap(), Notes::open(&folder.join("stickers.db")).unwrap());
    notes.say("look at the photo").unwrap();
    stickers.say("a sticker").unwrap();
    let media = folder.join("media");
    save(&media, "2024/photo.jpg", &[b"\xff\xd8".as_slice(), SECRET.as_bytes()].concat(), 0o640);
    save(&media, "2024/voice.ogg", &vec![7; 3_000_000], 0o600);
    save(&media, "empty", b"", 0o444);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (file, other, attachments) = (path(notes.path()), path(stickers.path()), path(&media));
    let register = ["register", &file, "--name", "chat", "--database", &other, "--attachments", &attachments];
    let ran = machine.run(&register, None).unwrap().success().unwrap();
    let id = ran.last()["id"].as_str().unwrap().to_owned();
    let digits = machine.enable_digits(&id).unwrap();
    machine.back_up(&id).unwrap();
    Chat { machine, id, notes, stickers, media, digits }
}

#[test]
fn databases_and_attachments_come_to_a_new_machine_together() {
    let stack = Stack::start().unwrap();
    let mut old = chat(&stack);
    save(&old.media, "2025/new.jpg", &vec![9; 200_000], 0o644);
    std::fs::remove_file(old.media.join("empty")).unwrap();
    old.notes.say("another one").unwrap();
    old.machine.back_up(&old.id).unwrap();
    assert_eq!(old.machine.database(&old.id).unwrap()["caution"], "");
    for depth in ["chunks", "restore"] {
        old.machine.verify(&old.id, depth).unwrap().success().unwrap();
    }
    let before = tree(&old.media);
    let content = scan::text("content", SECRET);
    assert_eq!(scan::scan(&[stack.store(), old.machine.log(), old.machine.state()], &content).unwrap(), []);
    let name = scan::text("a name", "photo.jpg");
    assert_eq!(scan::scan(&[stack.store(), old.machine.log()], &name).unwrap(), []);
    old.machine.stop().unwrap();
    old.machine.erase().unwrap();

    let new = started(&stack, "new");
    let archives = new.list_remote().unwrap();
    let target = new.home().join("chat/notes.db");
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    let id = new.adopt(&archives[0].0, &target).unwrap();
    new.unlock_digits(&id, &old.digits).unwrap().success().unwrap();
    new.restore(&id, &target, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&target).unwrap(), ["look at the photo", "another one"]);
    assert_eq!(notes::texts(&new.home().join("chat/stickers.db")).unwrap(), ["a sticker"]);
    let media = new.home().join("chat/media");
    assert!(tree(&media) == before, "{:?}", tree(&media).keys());

    // and from here it goes on, with all of it
    save(&media, "2026/again.jpg", &vec![1; 1000], 0o600);
    new.back_up(&id).unwrap();
    let is_calm = || Ok((new.database(&id)?["caution"] == "").then_some(()));
    wait::until("all of it is followed", wait::PATIENCE, is_calm).unwrap();
    let into = new.home().join("elsewhere");
    std::fs::create_dir(&into).unwrap();
    new.restore(&id, &into, None).unwrap().success().unwrap();
    assert!(tree(&into.join("media")) == tree(&media));
    assert!(into.join("notes.db").exists() && into.join("stickers.db").exists());
}

/// What is restored twice, or went half way, goes on; another file in the place is left alone.
#[test]
fn a_restore_goes_on_where_it_was_and_overwrites_nothing() {
    let stack = Stack::start().unwrap();
    let old = chat(&stack);
    let into = old.machine.home().join("into");
    std::fs::create_dir_all(into.join("media/2024")).unwrap();
    std::fs::copy(old.media.join("2024/photo.jpg"), into.join("media/2024/photo.jpg")).unwrap();
    let ran = old.machine.restore(&old.id, &into, None).unwrap();
    assert_eq!((ran.code, ran.error().as_str()), (1, "InvalidArgument"), "it has another time: {ran:?}");
    std::fs::remove_file(into.join("media/2024/photo.jpg")).unwrap();
    old.machine.restore(&old.id, &into, None).unwrap().success().unwrap();
    assert!(tree(&into.join("media")) == tree(&old.media));
    let other = old.machine.home().join("new");
    old.machine.restore(&old.id, &other, None).unwrap().success().unwrap();
    assert!(tree(&other.join("media")) == tree(&old.media) && other.join("notes.db").exists());
    assert_ne!(old.machine.restore(&old.id, &into, None).unwrap().code, 0, "the databases are there");
    let path = into.to_str().unwrap();
    old.machine.run(&["restore", &old.id, "--to", path, "--overwrite"], None).unwrap().success().unwrap();
    drop(old.stickers);
}

#[test]
fn what_cannot_go_together_is_refused() {
    let stack = Stack::start().unwrap();
    let machine = started(&stack, "old");
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    let other = machine.home().join("x/notes.db");
    std::fs::create_dir(machine.home().join("x")).unwrap();
    std::fs::copy(notes.path(), &other).unwrap();
    let file = notes.path().to_str().unwrap();
    let store = stack.store();
    for (option, path) in [
        ("--database", other.as_path()),
        ("--database", &machine.home().join("x")),
        ("--attachments", notes.path()),
        ("--attachments", store.as_path()),
    ] {
        let ran = machine.run(&["register", file, option, path.to_str().unwrap()], None).unwrap();
        assert_eq!(ran.code, 1, "{option} {}: {ran:?}", path.display());
    }
}
