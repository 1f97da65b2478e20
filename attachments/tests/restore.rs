//! Files are written back as they were, never over or through something, and a restore that was killed goes on.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use chatkeep_attachments::{Begun, Content, Folder, RelPath, RestoreError, Restored, Restorer, Wanted};
use common::{Cut, KEY, Tree, noise, read, rel, settle};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

const MTIME_NS: i64 = 1_600_000_000_123_456_789;

fn wanted(path: &RelPath, len: u64) -> Wanted<'_> {
    Wanted { path, len, mtime_ns: MTIME_NS, mode: 0o640, content: None }
}

fn write(restorer: &Restorer, wanted: Wanted<'_>, content: &[u8]) -> Result<bool, RestoreError> {
    match restorer.file(wanted)? {
        Begun::AlreadyThere => Ok(false),
        Begun::Write(mut writer) => {
            for piece in content.chunks(100_000) {
                writer.write(piece)?;
            }
            writer.finish()?;
            Ok(true)
        }
    }
}

fn write_simple(tree: &Tree, path: &str, content: &[u8]) -> Result<bool, RestoreError> {
    let restorer = Restorer::create(&tree.folder())?;
    let written = write(&restorer, wanted(&rel(path), content.len() as u64), content)?;
    restorer.finish()?;
    Ok(written)
}

/// All names in a folder and below, hidden ones too.
fn everything(tree: &Tree) -> Vec<String> {
    fn collect(folder: &Path, root: &Path, names: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            names.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            if path.symlink_metadata().unwrap().is_dir() {
                collect(&path, root, names);
            }
        }
    }
    let mut names = Vec::new();
    collect(tree.root(), tree.root(), &mut names);
    names.sort();
    names
}

#[test]
fn files_come_back_as_they_were() {
    let (source, target) = (Tree::new(), Tree::new());
    source.write("a/b/photo.jpg", &noise("photo", 3 << 20));
    source.write("empty", b"");
    source.write(b"\xff\n", b"bytes");
    let restorer = Restorer::create(&target.folder()).unwrap();
    settle();
    for (found, (mode, mtime_ns)) in
        source.walk().0.iter().zip([(0o640, MTIME_NS), (0o400, -1), (0o755, -2_000_000_000_000_000_001)])
    {
        let cut = read(&source.folder(), found).unwrap();
        let wanted = Wanted { path: &found.path, len: found.len, mtime_ns, mode, content: None };
        assert!(write(&restorer, wanted, &cut.content).unwrap());
    }
    let restored = restorer.finish().unwrap();
    assert_eq!(restored, Restored { written: 3, bytes: (3 << 20) + 5, already_there: 0 });

    settle();
    let (sources, (targets, walked)) = (source.walk().0, target.walk());
    assert_eq!(walked.skipped.unfinished, 0);
    for (was, is) in sources.iter().zip(&targets) {
        assert_eq!(was.path, is.path);
        assert_eq!(read(&source.folder(), was).unwrap(), read(&target.folder(), is).unwrap());
    }
    let set: Vec<(u32, i64)> = targets.iter().map(|it| (it.mode, it.mtime_ns)).collect();
    assert_eq!(set, [(0o640, MTIME_NS), (0o400, -1), (0o755, -2_000_000_000_000_000_001)]);
    assert_eq!(std::fs::metadata(target.at("a/b")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_restored_program_runs_as_nobody_else() {
    let target = Tree::new();
    let restorer = Restorer::create(&target.folder()).unwrap();
    write(&restorer, Wanted { mode: 0o7755, ..wanted(&rel("a"), 1) }, b"x").unwrap();
    assert_eq!(target.find("a").mode, 0o755);
}

#[test]
fn what_is_there_is_left_alone() {
    let target = Tree::with(&["a", "folder/x"]);
    symlink("nowhere", target.at("link")).unwrap();
    for name in ["a", "link", "folder"] {
        let error = write_simple(&target, name, b"a").unwrap_err();
        assert!(matches!(error, RestoreError::Exists), "{name}: {error:?}");
    }
    assert_eq!(std::fs::read(target.at("a")).unwrap(), b"a");
    assert_eq!(everything(&target), ["a", "folder", "folder/x", "link"]);
}

#[test]
fn a_file_that_came_meanwhile_is_left_alone() {
    let target = Tree::new();
    let restorer = Restorer::create(&target.folder()).unwrap();
    let path = rel("a");
    let Begun::Write(mut writer) = restorer.file(wanted(&path, 3)).unwrap() else {
        panic!("nothing is there")
    };
    writer.write(b"old").unwrap();
    target.write("a", b"new");
    assert!(matches!(writer.finish(), Err(RestoreError::Exists)));
    assert_eq!(std::fs::read(target.at("a")).unwrap(), b"new");
    assert_eq!(everything(&target), ["a"]);
}

#[test]
fn nothing_is_written_through_a_link() {
    let (target, outside) = (Tree::new(), Tree::with(&["b/c"]));
    symlink(outside.root(), target.at("a")).unwrap();
    symlink("a", target.at("inner")).unwrap();
    target.write("file", b"");
    for path in ["a/new", "a/b/new", "inner/new", "file/new"] {
        let error = write_simple(&target, path, b"x").unwrap_err();
        assert!(matches!(error, RestoreError::InTheWay), "{path}: {error:?}");
    }
    assert_eq!(everything(&outside), ["b", "b/c"]);
}

#[test]
fn a_folder_replaced_while_a_file_is_written_leads_nowhere() {
    let (target, outside) = (Tree::with(&["a/x"]), Tree::new());
    let restorer = Restorer::create(&target.folder()).unwrap();
    let path = rel("a/new");
    let Begun::Write(mut writer) = restorer.file(wanted(&path, 1)).unwrap() else {
        panic!("nothing is there")
    };
    std::fs::rename(target.at("a"), target.at("moved")).unwrap();
    symlink(outside.root(), target.at("a")).unwrap();
    writer.write(b"x").unwrap();
    writer.finish().unwrap();
    assert_eq!(std::fs::read(target.at("moved/new")).unwrap(), b"x");
    assert_eq!(everything(&outside), Vec::<String>::new());
    restorer.finish().unwrap_err();
}

#[test]
fn the_length_has_to_be_right() {
    let target = Tree::new();
    let restorer = Restorer::create(&target.folder()).unwrap();
    let path = rel("a");
    for content in [&b"12"[..], b"1234"] {
        let result = write(&restorer, wanted(&path, 3), content);
        assert!(matches!(result, Err(RestoreError::Length)), "{result:?}");
    }
    assert_eq!(everything(&target), Vec::<String>::new());
}

#[test]
fn a_file_that_does_not_fit_fails_before_it_is_written() {
    let target = Tree::new();
    let restorer = Restorer::create(&target.folder()).unwrap();
    let result = restorer.file(wanted(&rel("a"), 1 << 60)).map(drop);
    assert!(matches!(result, Err(RestoreError::Io { doing: "making room for a file", .. })), "{result:?}");
    assert_eq!(everything(&target), Vec::<String>::new());
}

#[test]
fn names_of_temporary_files_are_refused() {
    for path in [".chatkeep-restore-1-1", "a/.chatkeep-restore-x/b"] {
        let error = write_simple(&Tree::new(), path, b"x").unwrap_err();
        assert!(matches!(error, RestoreError::Reserved), "{error:?}");
    }
}

#[test]
fn one_restore_at_a_time_writes_into_a_folder() {
    let target = Tree::new();
    let first = Restorer::create(&target.folder()).unwrap();
    assert!(matches!(Restorer::create(&target.folder()), Err(RestoreError::Busy)));
    drop(first);
    Restorer::create(&target.folder()).unwrap();
}

/// As a program has it that starts another one in a second thread: until the other one runs, it holds all descriptors.
#[test]
fn a_restore_that_ended_locks_nothing_even_if_a_copy_of_its_descriptor_lives() {
    let target = Tree::new();
    let first = Restorer::create(&target.folder()).unwrap();
    let root = target.root().canonicalize().unwrap();
    let copies: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let number: i32 = path.file_name()?.to_str()?.parse().ok()?;
            (std::fs::read_link(path).ok()? == root).then_some(number)
        })
        .map(|number| {
            // of our own process, through the kernel: there is no safe way to borrow a number
            let process =
                rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
            rustix::process::pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap()
        })
        .collect();
    assert!(!copies.is_empty());
    drop(first);
    Restorer::create(&target.folder()).unwrap();
}

#[test]
fn several_threads_restore_together() {
    let target = Tree::new();
    let restorer = Restorer::create(&target.folder()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let restorer = &restorer;
            scope.spawn(move || {
                for file in 0..20 {
                    let path = rel(format!("{file}/{thread}"));
                    assert!(write(restorer, wanted(&path, 2), b"xy").unwrap());
                }
            });
        }
    });
    assert_eq!(restorer.finish().unwrap().written, 80);
    assert_eq!(target.walk().1.files, 80);
}

/// Restores `content` over a file with `present` and the right time, and says whether it was there already.
#[track_caller]
fn check_present(present: &[u8], content: &[u8], alter: impl FnOnce(&mut Cut), expected: Option<bool>) {
    let (source, target) = (Tree::new(), Tree::new());
    source.write("a", content);
    settle();
    let mut cut = read(&source.folder(), &source.find("a")).unwrap();
    assert!(write_simple(&target, "a", present).unwrap());
    alter(&mut cut);
    let path = rel("a");
    let content_is = Content { key: &KEY, chunks: &cut.chunks };
    let wanted = Wanted { content: Some(content_is), ..wanted(&path, content.len() as u64) };
    let restorer = Restorer::create(&target.folder()).unwrap();
    let result = write(&restorer, wanted, content);
    match expected {
        Some(written) => assert_eq!(result.unwrap(), written),
        None => assert!(matches!(result, Err(RestoreError::Exists)), "{result:?}"),
    }
    assert_eq!(std::fs::read(target.at("a")).unwrap(), present);
}

#[test]
fn a_file_with_the_same_content_is_already_there() {
    let big = noise("big", 5 << 20);
    check_present(&big, &big, |_| {}, Some(false));
    check_present(b"", b"", |_| {}, Some(false));
}

#[test]
fn a_file_with_other_content_is_not_the_same() {
    let big = noise("big", 5 << 20);
    let mut other = big.clone();
    *other.last_mut().unwrap() ^= 1;
    check_present(&other, &big, |_| {}, None);
    check_present(&big, &big, |cut| cut.chunks.truncate(cut.chunks.len() - 1), None);
    check_present(&big, &big, |cut| cut.chunks.last_mut().unwrap().1 += 1, None);
    check_present(&big, &big, |cut| cut.chunks.push(([0; 16], 1)), None);
    check_present(b"shorter", b"longer..", |_| {}, None);
}

#[test]
fn without_content_length_and_time_decide() {
    let target = Tree::new();
    assert!(write_simple(&target, "a", b"one").unwrap());
    assert!(!write_simple(&target, "a", b"two").unwrap());
    let restorer = Restorer::create(&target.folder()).unwrap();
    let path = rel("a");
    let later = Wanted { mtime_ns: MTIME_NS + 1, ..wanted(&path, 3) };
    assert!(matches!(restorer.file(later), Err(RestoreError::Exists)));
}

const KILL_AT: &str = "CHATKEEP_TEST_KILL_AT";
const KILL_IN: &str = "CHATKEEP_TEST_KILL_IN";

fn files_to_restore() -> [(RelPath, Vec<u8>); 4] {
    ["a", "x/b", "x/y/c", "z/d"].map(|path| (rel(path), noise(path, 250_000)))
}

/// Restores everything, telling before and after each step.
fn restore_all(root: &Path, step: &mut dyn FnMut()) -> Restored {
    let folder = Folder::open(root).unwrap();
    step();
    let restorer = Restorer::create(&folder).unwrap();
    for (path, content) in &files_to_restore() {
        step();
        if let Begun::Write(mut writer) = restorer.file(wanted(path, content.len() as u64)).unwrap() {
            for piece in content.chunks(100_000) {
                step();
                writer.write(piece).unwrap();
            }
            step();
            writer.finish().unwrap();
        }
    }
    step();
    let restored = restorer.finish().unwrap();
    step();
    restored
}

/// Does nothing, unless the test below started it: then it dies at the step it was told.
#[test]
fn process_to_be_killed() {
    let Ok(kill_at) = std::env::var(KILL_AT) else { return };
    let mut left: u32 = kill_at.parse().unwrap();
    restore_all(std::env::var_os(KILL_IN).unwrap().as_ref(), &mut || {
        if left == 0 {
            std::process::abort();
        }
        left -= 1;
    });
}

#[test]
fn a_restore_that_was_killed_at_any_step_goes_on() {
    let mut steps = 0;
    restore_all(Tree::new().root(), &mut || steps += 1);
    let mut left_something = 0;
    for kill_at in 0..steps {
        let target = Tree::new();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process_to_be_killed"])
            .env(KILL_AT, kill_at.to_string())
            .env(KILL_IN, target.root())
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(6), "the process did not reach step {kill_at}");
        left_something += target.walk().1.skipped.unfinished;
        let there = target.walk().1.files;

        let restored = restore_all(target.root(), &mut || {});
        assert_eq!((restored.already_there, restored.written), (there, 4 - there), "killed at {kill_at}");
        assert_eq!(everything(&target), ["a", "x", "x/b", "x/y", "x/y/c", "z", "z/d"]);
        for (path, content) in files_to_restore() {
            assert_eq!(std::fs::read(target.root().join(path.as_path())).unwrap(), content);
        }
    }
    assert!(left_something > 0, "no kill left a temporary file");
}
