//! What needs a drive of its own (full, read-only, unmounted) or a process to kill.
//!
//! Each such test runs this test program once more, with one of the ignored tests below. For drives that is in a user
//! and mount namespace, so that no test needs to be root and none leaves a mount behind. Where the system permits no
//! such namespaces (some containers, hardened kernels) those tests say so and check nothing; with
//! `CHATKEEP_TEST_DRIVES=1` they fail instead.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use chatkeep_store::{ErrorKind, PutCondition, Result, Store, StoreKey};
use chatkeep_store_local::LocalStore;

const FOLDER_VARIABLE: &str = "CHATKEEP_TEST_FOLDER";

fn key(text: &str) -> StoreKey {
    StoreKey::try_from(text).unwrap()
}

async fn create(store: &LocalStore, name: &str, len: usize) -> Result<()> {
    store.put(&key(name), Bytes::from(vec![7; len]), PutCondition::CreateIfAbsent).await.map(|_| ())
}

/// Runs one of the ignored tests in namespaces of its own, on a drive mounted in a new folder.
fn in_a_namespace(test: &str) {
    let possible = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        assert!(
            std::env::var_os("CHATKEEP_TEST_DRIVES").is_none(),
            "this system permits no mount namespaces"
        );
        eprintln!("{test}: not checked, this system permits no mount namespaces");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["-rm"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(FOLDER_VARIABLE, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "it did not run: {text}");
}

fn folder() -> PathBuf {
    std::env::var_os(FOLDER_VARIABLE).expect("run by another test").into()
}

#[track_caller]
fn system(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

fn mount_drive(at: &Path) {
    system("mount", &["-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", at.to_str().unwrap()]);
}

#[test]
fn a_full_drive_is_quota_and_leaves_what_is_there_readable() {
    in_a_namespace("full_drive");
}

#[tokio::test]
#[ignore = "run by a_full_drive_is_quota_and_leaves_what_is_there_readable"]
async fn full_drive() {
    let root = folder();
    mount_drive(&root);
    let store = LocalStore::open(&root).unwrap();
    create(&store, "a/log/1", 1 << 20).await.unwrap();
    assert_eq!(create(&store, "a/log/2", 1 << 20).await.unwrap_err().kind(), ErrorKind::Quota);
    assert_eq!(store.list("").await.unwrap().len(), 1);
    assert_eq!(fs::read_dir(root.join("a/log")).unwrap().count(), 1, "the failed put left something");
    assert_eq!(store.get(&key("a/log/1"), None).await.unwrap().len(), 1 << 20);
    let usage = store.usage().await.unwrap();
    assert_eq!(usage.total, Some(2 << 20));
    assert!(usage.free.unwrap() < 1 << 20);
    store.delete(&key("a/log/1")).await.unwrap();
    create(&store, "a/log/2", 1 << 20).await.unwrap();
}

#[test]
fn a_read_only_drive_can_be_read_and_says_permission() {
    in_a_namespace("read_only_drive");
}

#[tokio::test]
#[ignore = "run by a_read_only_drive_can_be_read_and_says_permission"]
async fn read_only_drive() {
    let root = folder();
    mount_drive(&root);
    let store = LocalStore::open(&root).unwrap();
    create(&store, "a/log/1", 1_000).await.unwrap();
    system("mount", &["-o", "remount,ro", root.to_str().unwrap()]);
    for store in [store, LocalStore::open(&root).unwrap(), LocalStore::reopen(&root).unwrap()] {
        assert_eq!(create(&store, "a/log/2", 1).await.unwrap_err().kind(), ErrorKind::Permission);
        assert_eq!(create(&store, "b/log/1", 1).await.unwrap_err().kind(), ErrorKind::Permission);
        assert_eq!(store.delete(&key("a/log/1")).await.unwrap_err().kind(), ErrorKind::Permission);
        assert_eq!(store.get(&key("a/log/1"), None).await.unwrap().len(), 1_000);
    }
    system("umount", &[root.to_str().unwrap()]);
    system("mount", &["-t", "tmpfs", "-o", "ro", "tmpfs", root.to_str().unwrap()]);
    let new = LocalStore::open(&root).unwrap();
    assert_eq!(new.list("").await.unwrap_err().kind(), ErrorKind::Permission);
}

#[test]
fn an_open_store_does_not_keep_its_drive_from_being_unmounted() {
    in_a_namespace("unmounted_drive");
}

#[tokio::test]
#[ignore = "run by an_open_store_does_not_keep_its_drive_from_being_unmounted"]
async fn unmounted_drive() {
    let (drive, place) = (folder().join("drive"), folder().join("place"));
    for path in [&drive, &place] {
        fs::create_dir(path).unwrap();
    }
    let plug_in = || system("mount", &["--bind", drive.to_str().unwrap(), place.to_str().unwrap()]);
    plug_in();
    let store = LocalStore::open(&place).unwrap();
    create(&store, "a/log/1", 1_000).await.unwrap();
    system("umount", &[place.to_str().unwrap()]);
    assert_eq!(create(&store, "a/log/2", 1).await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(store.list("").await.unwrap_err().kind(), ErrorKind::Offline);
    let again = LocalStore::reopen(&place).unwrap();
    assert_eq!(again.list("").await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    plug_in();
    create(&store, "a/log/2", 1).await.unwrap();
    assert_eq!(again.list("").await.unwrap().len(), 2);
}

#[test]
fn a_drive_that_takes_no_more_files_is_quota() {
    in_a_namespace("quota_of_files");
}

#[tokio::test]
#[ignore = "run by a_drive_that_takes_no_more_files_is_quota"]
async fn quota_of_files() {
    let root = folder();
    system("mount", &["-t", "tmpfs", "-o", "size=2m,nr_inodes=6", "tmpfs", root.to_str().unwrap()]);
    let store = LocalStore::open(&root).unwrap();
    let mut created = 0;
    let error = loop {
        match create(&store, &format!("a/{created}"), 1).await {
            Ok(()) => created += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Quota);
    assert_eq!(store.list("").await.unwrap().len(), created);
}

/// SIGKILL, 10 times, in the middle of putting objects as fast as possible.
#[test]
fn what_was_acknowledged_before_a_kill_is_there_and_all_that_is_there_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "endless_writer", "--ignored", "--nocapture"])
            .env(FOLDER_VARIABLE, folder.path().join("store"))
            .env("CHATKEEP_TEST_ROUND", round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        let mut puts = lines.filter_map(|line| line.split_once("put ").map(|(_, name)| name.to_owned()));
        acknowledged.extend((0..=round * 2).map(|_| puts.next().unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
        // those it still wrote to the pipe before it died were acknowledged too
        acknowledged.extend(puts);
    }
    let store = LocalStore::reopen(&folder.path().join("store")).unwrap();
    let listed = runtime.block_on(store.list("")).unwrap();
    assert!(listed.iter().all(|object| object.len == WRITER_OBJECT_LEN as u64), "{listed:?}");
    for name in &acknowledged {
        let body = runtime.block_on(store.get(&key(name), None)).unwrap();
        assert!(body.len() == WRITER_OBJECT_LEN && body.iter().all(|byte| *byte == 7), "{name}");
    }
    assert!(acknowledged.len() >= 100);
}

const WRITER_OBJECT_LEN: usize = 200_000;

#[tokio::test]
#[ignore = "run by what_was_acknowledged_before_a_kill_is_there_and_all_that_is_there_is_whole"]
async fn endless_writer() {
    let store = LocalStore::open(&folder()).unwrap();
    let round = std::env::var("CHATKEEP_TEST_ROUND").unwrap();
    for number in 0_u64.. {
        let name = format!("a/round{round}/{number}");
        create(&store, &name, WRITER_OBJECT_LEN).await.unwrap();
        println!("put {name}");
    }
}
