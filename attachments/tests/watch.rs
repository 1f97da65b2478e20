//! Changes are told, our own looking is not.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::symlink;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use chatkeep_attachments::{Cause, Noticing, WatchPolicy, Watcher};
use common::{Tree, read, settle};

const QUICK: WatchPolicy = WatchPolicy {
    quiet: Duration::from_millis(20),
    quiet_max: Duration::from_millis(100),
    watches_max: 100,
    period: Duration::from_hours(1),
};

fn watch(tree: &Tree, policy: WatchPolicy) -> (Watcher, Receiver<()>) {
    let (tell, told) = channel();
    let watcher = Watcher::start(&tree.folder(), policy, move || tell.send(()).unwrap_or(())).unwrap();
    (watcher, told)
}

/// Far longer than it takes: a test that hangs should say so.
#[track_caller]
fn expect_told(told: &Receiver<()>) {
    told.recv_timeout(Duration::from_secs(30)).expect("a change is told");
}

/// Until nothing more is told for a while.
#[track_caller]
fn let_it_calm_down(told: &Receiver<()>) {
    let calm = (0..100).any(|_| told.recv_timeout(Duration::from_millis(300)).is_err());
    assert!(calm, "it never ends");
}

#[track_caller]
fn expect_silence(told: &Receiver<()>) {
    assert_eq!(told.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout));
}

#[test]
fn new_changed_and_deleted_files_are_told() {
    let tree = Tree::with(&["x/a"]);
    let (watcher, told) = watch(&tree, QUICK);
    assert_eq!(watcher.noticing(), Noticing::AtOnce);
    let changes: [&dyn Fn(); 5] = [
        &|| tree.write("b", b""),
        &|| tree.write("x/a", b"more"),
        &|| std::fs::rename(tree.at("b"), tree.at("x/c")).unwrap(),
        &|| std::fs::remove_file(tree.at("x/c")).unwrap(),
        &|| std::fs::remove_dir_all(tree.at("x")).unwrap(),
    ];
    for change in changes {
        change();
        expect_told(&told);
        let_it_calm_down(&told);
    }
}

#[test]
fn a_folder_made_later_is_watched_too() {
    let tree = Tree::new();
    let (_watcher, told) = watch(&tree, QUICK);
    tree.write("new/deep/a", b"");
    expect_told(&told);
    let_it_calm_down(&told);
    tree.write("new/deep/b", b"");
    expect_told(&told);
}

#[test]
fn our_own_reading_is_not_told() {
    let tree = Tree::with(&["x/a", "b"]);
    settle();
    let (_watcher, told) = watch(&tree, QUICK);
    for found in &tree.walk().0 {
        read(&tree.folder(), found).unwrap();
    }
    expect_silence(&told);
}

#[test]
fn what_a_link_leads_to_is_not_watched() {
    let (tree, outside) = (Tree::with(&["a"]), Tree::new());
    symlink(outside.root(), tree.at("link")).unwrap();
    let (_watcher, told) = watch(&tree, QUICK);
    outside.write("b", b"");
    expect_silence(&told);
}

#[test]
fn past_the_limit_a_change_is_taken_for_granted_now_and_then() {
    let tree = Tree::with(&["a/x", "b/x", "c/x"]);
    let (watcher, told) = watch(&tree, WatchPolicy { watches_max: 4, ..QUICK });
    assert_eq!(watcher.noticing(), Noticing::AtOnce);
    drop((watcher, told));

    let policy = WatchPolicy { watches_max: 3, period: Duration::from_millis(50), ..QUICK };
    let (watcher, told) = watch(&tree, policy);
    assert_eq!(watcher.noticing(), Noticing::Periodically(Cause::TooManyFolders));
    expect_told(&told);
    // a folder less, and it is noticed at once again
    std::fs::remove_dir_all(tree.at("a")).unwrap();
    for _ in 0..100 {
        expect_told(&told);
        if watcher.noticing() == Noticing::AtOnce {
            return;
        }
    }
    panic!("it never comes back");
}

#[test]
fn dropping_it_ends_the_thread() {
    let tree = Tree::new();
    let (watcher, told) = watch(&tree, QUICK);
    drop(watcher);
    assert_eq!(told.recv(), Err(std::sync::mpsc::RecvError));
}
