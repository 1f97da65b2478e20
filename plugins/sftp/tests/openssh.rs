//! The `sftp:` store at a real OpenSSH server, through a real `ssh`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chatkeep_store::conformance::{Extent, LOCKED, assert_skipped_only, run};
use chatkeep_store::{CreateGuarantee, ErrorKind, Opening, PutCondition, Result, Store, StoreKey};
use chatkeep_store_rig::sshd::{Signal, Sshd};
use chatkeep_store_sftp::{Tuning, open, open_tuned};

fn opening(sshd: &Sshd) -> Opening {
    let path = sshd.files().join("backups");
    let mut opening = Opening::of_url(&format!("sftp://127.0.0.1:{}{}", sshd.port(), path.display()));
    let config = sshd.client_config().to_str().unwrap().to_owned();
    opening.options.insert("ssh_config".to_owned(), config);
    opening
}

async fn store(sshd: &Sshd) -> Arc<dyn Store> {
    open(&opening(sshd)).await.unwrap()
}

async fn refusal(opening: &Opening) -> chatkeep_store::StoreError {
    open(opening).await.err().unwrap()
}

fn root(sshd: &Sshd) -> PathBuf {
    sshd.files().join("backups")
}

fn key(text: &str) -> StoreKey {
    StoreKey::try_from(text).unwrap()
}

async fn create(store: &dyn Store, name: &str) -> Result<()> {
    store.put(&key(name), name.to_owned().into(), PutCondition::CreateIfAbsent).await.map(|_| ())
}

async fn names(store: &dyn Store) -> Result<Vec<String>> {
    Ok(store.list("").await?.into_iter().map(|object| object.key.to_string()).collect())
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    let sshd = Sshd::start();
    let store = store(&sshd).await;
    assert_eq!(store.capabilities().create, CreateGuarantee::Atomic);
    let results = run(store, "conformance", Extent::FULL).await;
    for result in &results {
        println!("{result}");
    }
    assert_skipped_only(&results, &[LOCKED]);
    assert!(files_in(&root(&sshd).join(".chatkeep-tmp")).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_puts_into_a_new_folder_lose_nothing() {
    let sshd = Sshd::start();
    let store = store(&sshd).await;
    let puts = (0..200).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { create(&*store, &format!("new/folder{}/{number:04}", number % 7)).await })
    });
    for put in futures_util::future::join_all(puts).await {
        put.unwrap().unwrap();
    }
    assert_eq!(names(&*store).await.unwrap().len(), 200);
}

/// Two sessions are two processes at the server: nothing on our side keeps them apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_creates_through_two_sessions_one_wins() {
    let sshd = Sshd::start();
    let stores = [store(&sshd).await, store(&sshd).await];
    for round in 0..50 {
        let name = format!("race/{round}");
        let racers = (0..16).map(|racer| {
            let (store, key) = (Arc::clone(&stores[racer % 2]), key(&name));
            let put = async move {
                store.put(&key, vec![racer as u8; 1000].into(), PutCondition::CreateIfAbsent).await
            };
            tokio::spawn(put)
        });
        let mut winners = Vec::new();
        for (racer, put) in futures_util::future::join_all(racers).await.into_iter().enumerate() {
            match put.unwrap() {
                Ok(_) => winners.push(racer),
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(stores[0].get(&key(&name), None).await.unwrap(), vec![winners[0] as u8; 1000]);
    }
}

#[tokio::test]
async fn only_the_user_can_read_what_is_stored() {
    use std::os::unix::fs::PermissionsExt as _;
    let sshd = Sshd::start();
    create(&*store(&sshd).await, "a/log/1").await.unwrap();
    let mode = |path: &str| fs::metadata(root(&sshd).join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("a"), mode("a/log"), mode(".chatkeep-tmp")), (0o700, 0o700, 0o700, 0o700));
    assert_eq!(mode("a/log/1"), 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_put_that_the_session_or_the_caller_dies_in_leaves_no_object() {
    let sshd = Sshd::start();
    let store = store(&sshd).await;
    let len = 64 << 20;
    let body = Bytes::from(vec![7; len]);
    let left = || files_in(&root(&sshd).join(".chatkeep-tmp")).len();
    for number in 0..8_u64 {
        let (putting, body) = (Arc::clone(&store), body.clone());
        let put =
            tokio::spawn(async move { putting.put(&key("a/pack/1"), body, PutCondition::Overwrite).await });
        tokio::time::sleep(Duration::from_millis(10 << (number / 2))).await;
        if number % 2 == 0 {
            put.abort();
        } else {
            sshd.signal_sessions(Signal::KILL);
        }
        let outcome = put.await;
        if let Ok(Err(error)) = &outcome {
            assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
        }
        let listed = again(&*store, "a/pack").await;
        assert!(listed.iter().all(|found| *found == len as u64), "part of an object is listed: {listed:?}");
        assert!(!outcome.is_ok_and(|put| put.is_ok()) || listed.len() == 1, "what was acknowledged is gone");
        store.delete(&key("a/pack/1")).await.unwrap();
        // what the caller gave up is removed; what a session died with stays for the next day
        let killed = number.div_ceil(2) as usize;
        for _ in 0..500 {
            if left() <= killed {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(left() <= killed, "{} temporary files, and {killed} sessions were killed", left());
    }
}

/// The lengths of what is listed; a session that was just killed may not have been noticed yet.
async fn again(store: &dyn Store, prefix: &str) -> Vec<u64> {
    let mut errors = Vec::new();
    for _ in 0..3 {
        match store.list(prefix).await {
            Ok(listed) => return listed.into_iter().map(|object| object.len).collect(),
            Err(error) => errors.push(error),
        }
    }
    panic!("every call finds a lost session: {errors:?}");
}

#[tokio::test]
async fn a_server_that_is_away_is_offline_and_comes_back() {
    let mut sshd = Sshd::start();
    let store = store(&sshd).await;
    create(&*store, "a/log/1").await.unwrap();
    sshd.kill();
    // the first call may find that the session is lost, the next one that there is no server
    let first = names(&*store).await.unwrap_err().kind();
    assert!(matches!(first, ErrorKind::Transient | ErrorKind::Offline), "{first}");
    let error = names(&*store).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Offline, "{error:?}");
    assert_eq!(refusal(&opening(&sshd)).await.kind(), ErrorKind::Offline);
    sshd.restart();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
    create(&*store, "a/log/2").await.unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1", "a/log/2"]);
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up_and_asked_anew() {
    let sshd = Sshd::start();
    let tuning = Tuning { stall: Duration::from_millis(700), ..Tuning::default() };
    let store = open_tuned(&opening(&sshd), tuning).await.unwrap();
    create(&*store, "a/log/1").await.unwrap();
    sshd.signal_sessions(Signal::STOP);
    // `ssh` itself would notice after a minute
    let listed = tokio::time::timeout(Duration::from_secs(30), names(&*store)).await.unwrap();
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::Transient);
    for _ in 0..100 {
        if names(&*store).await.is_ok_and(|names| names == ["a/log/1"]) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it never connects anew");
}

#[tokio::test]
async fn a_wrong_host_key_is_said_in_the_words_of_ssh() {
    let sshd = Sshd::start();
    sshd.write_client_config("other.pub", "user");
    let error = refusal(&opening(&sshd)).await;
    assert_eq!(error.kind(), ErrorKind::Auth);
    let words = format!("{error:?}");
    assert!(words.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"), "{words}");
    assert!(!words.contains("@@@"), "{words}");
}

#[tokio::test]
async fn a_wrong_user_key_is_said_in_the_words_of_ssh() {
    let sshd = Sshd::start();
    sshd.write_client_config("host.pub", "other");
    let error = refusal(&opening(&sshd)).await;
    assert_eq!(error.kind(), ErrorKind::Auth);
    assert!(format!("{error:?}").contains("Permission denied (publickey"), "{error:?}");
}

#[tokio::test]
async fn an_ssh_that_is_missing_or_says_something_else_is_a_setting_that_cannot_work() {
    use std::os::unix::fs::PermissionsExt as _;
    let sshd = Sshd::start();
    let chatty = sshd.files().join("chatty");
    fs::write(&chatty, "#!/bin/sh\necho Welcome to this machine; exec cat >/dev/null\n").unwrap();
    fs::set_permissions(&chatty, fs::Permissions::from_mode(0o700)).unwrap();
    let mut opening = opening(&sshd);
    for (program, words) in [("/nowhere/ssh", "/nowhere/ssh"), (chatty.to_str().unwrap(), "no SFTP server")] {
        opening.options.insert("ssh".to_owned(), program.to_owned());
        let error = refusal(&opening).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// Only looked for: it is the home folder of whoever runs the test.
#[tokio::test]
async fn a_path_behind_a_tilde_is_one_of_the_home_folder() {
    let sshd = Sshd::start();
    let mut opening = opening(&sshd);
    opening.url = format!("sftp://127.0.0.1:{}/~/not/there", sshd.port());
    opening.read_only = true;
    let error = format!("{:?}", refusal(&opening).await);
    let home = std::env::home_dir().unwrap().canonicalize().unwrap();
    assert!(error.contains(&format!("`{}/not/there`", home.display())), "{error}");
}

#[tokio::test]
async fn leftovers_of_a_crash_are_not_listed_and_go_when_they_are_old() {
    let sshd = Sshd::start();
    create(&*store(&sshd).await, "a/log/1").await.unwrap();
    let folder = root(&sshd).join(".chatkeep-tmp");
    let (old, new, other) =
        (folder.join("00112233445566aa-1"), folder.join("00112233445566aa-2"), folder.join("mine"));
    for path in [&old, &new, &other] {
        fs::write(path, "half").unwrap();
    }
    for path in [&old, &other] {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(25)).unwrap();
    }
    let store = store(&sshd).await;
    for _ in 0..200 {
        if !old.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!old.exists(), "it is a day old");
    assert!(new.exists(), "it may belong to a put of another machine");
    assert!(other.exists(), "it is not ours");
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
}

#[tokio::test]
async fn foreign_files_links_and_folders_spoil_a_listing() {
    let sshd = Sshd::start();
    let store = store(&sshd).await;
    create(&*store, "a/log/1").await.unwrap();
    let root = root(&sshd);
    let away = sshd.files().join("away");
    for foreign in ["A Photo.jpg", "a/log/Thumbs.db", "a/.hidden", "a/log/\u{e9}"] {
        fs::write(root.join(foreign), "x").unwrap();
        assert_eq!(names(&*store).await.unwrap_err().kind(), ErrorKind::UntrustedListing, "{foreign}");
        fs::rename(root.join(foreign), &away).unwrap();
    }
    for target in ["1", "/etc/passwd", "..", "nowhere"] {
        symlink(target, root.join("a/log/2")).unwrap();
        assert_eq!(names(&*store).await.unwrap_err().kind(), ErrorKind::UntrustedListing, "{target}");
        fs::rename(root.join("a/log/2"), &away).unwrap();
    }
    // a folder with nothing in it is nothing
    fs::create_dir_all(root.join("b/c/d/e")).unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
    fs::create_dir_all(root.join("b/c/d/e/f")).unwrap();
    assert_eq!(names(&*store).await.unwrap_err().kind(), ErrorKind::UntrustedListing);
}

#[tokio::test]
async fn a_store_whose_folder_is_gone_is_not_an_empty_store() {
    let sshd = Sshd::start();
    let store = store(&sshd).await;
    create(&*store, "a/log/1").await.unwrap();
    let away = sshd.files().join("away");
    fs::rename(root(&sshd), &away).unwrap();
    for prefix in ["", "a", "a/log"] {
        assert_eq!(store.list(prefix).await.unwrap_err().kind(), ErrorKind::Offline, "{prefix:?}");
    }
    assert_eq!(store.get(&key("a/log/1"), None).await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(store.head(&key("a/log/1")).await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(store.delete(&key("a/log/1")).await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(create(&*store, "b/log/1").await.unwrap_err().kind(), ErrorKind::Offline);
    fs::rename(&away, root(&sshd)).unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
}

#[tokio::test]
async fn a_folder_that_somebody_removed_is_made_again() {
    let sshd = Sshd::start();
    let store = store(&sshd).await;
    create(&*store, "a/log/1").await.unwrap();
    fs::remove_dir_all(root(&sshd).join("a")).unwrap();
    fs::remove_dir_all(root(&sshd).join(".chatkeep-tmp")).unwrap();
    create(&*store, "a/log/2").await.unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/2"]);
}

#[tokio::test]
async fn only_the_last_folder_of_the_url_is_made() {
    let sshd = Sshd::start();
    let mut deep = opening(&sshd);
    deep.url = deep.url.replace("/backups", "/not/there");
    assert_eq!(refusal(&deep).await.kind(), ErrorKind::Offline);
    assert!(!sshd.files().join("not").exists());
    let mut reading = opening(&sshd);
    reading.read_only = true;
    assert_eq!(refusal(&reading).await.kind(), ErrorKind::Offline);
    assert!(!root(&sshd).exists(), "a store that is only read was made");
}

#[tokio::test]
async fn a_read_only_store_is_not_written() {
    let sshd = Sshd::start();
    create(&*store(&sshd).await, "a/log/1").await.unwrap();
    let mut opening = opening(&sshd);
    opening.read_only = true;
    let store = open(&opening).await.unwrap();
    assert_eq!(store.get(&key("a/log/1"), None).await.unwrap(), "a/log/1");
    assert_eq!(create(&*store, "a/log/2").await.unwrap_err().kind(), ErrorKind::Permission);
    assert_eq!(store.delete(&key("a/log/1")).await.unwrap_err().kind(), ErrorKind::Permission);
}

/// As docs/stores/sftp.md shows it.
#[tokio::test]
async fn a_server_without_deletion_takes_objects_and_keeps_them() {
    let sshd = Sshd::start_without_deletion();
    let store = store(&sshd).await;
    assert_eq!(store.capabilities().create, CreateGuarantee::Atomic);
    create(&*store, "a/log/1").await.unwrap();
    assert_eq!(create(&*store, "a/log/1").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.delete(&key("a/log/1")).await.unwrap_err().kind(), ErrorKind::Permission);
    let other = store.put(&key("a/log/1"), "other".into(), PutCondition::Overwrite).await.unwrap_err();
    assert!(matches!(other.kind(), ErrorKind::Permission | ErrorKind::Unsupported), "{other:?}");
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
    assert_eq!(store.get(&key("a/log/1"), None).await.unwrap(), "a/log/1");
}

/// Writing fails in the middle, and there would be room.
#[tokio::test]
async fn a_file_that_cannot_be_written_to_its_end_is_no_object() {
    let sshd = Sshd::start_with_short_files();
    let store = store(&sshd).await;
    create(&*store, "a/log/1").await.unwrap();
    let body = Bytes::from(vec![1; 8 << 20]);
    let error = store.put(&key("a/pack/1"), body, PutCondition::CreateIfAbsent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
    assert!(files_in(&root(&sshd).join(".chatkeep-tmp")).is_empty());
}

/// Needs root, who alone can mount a small disk; the test before this one is for everybody.
#[tokio::test]
async fn a_full_disk_is_a_full_store_that_can_be_read_and_emptied() {
    if !Sshd::may_mount() {
        return;
    }
    let sshd = Sshd::start_on_small_disk();
    let store = store(&sshd).await;
    let usage = store.usage().await.unwrap();
    assert_eq!(usage.total, Some(4 << 20));
    let three = Bytes::from(vec![1; 3 << 20]);
    store.put(&key("a/pack/1"), three.clone(), PutCondition::CreateIfAbsent).await.unwrap();
    let error = store.put(&key("a/pack/2"), three.clone(), PutCondition::CreateIfAbsent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Quota, "{error:?}");
    assert_eq!(names(&*store).await.unwrap(), ["a/pack/1"]);
    assert_eq!(store.get(&key("a/pack/1"), None).await.unwrap(), three);
    store.delete(&key("a/pack/1")).await.unwrap();
    store.put(&key("a/pack/2"), three, PutCondition::CreateIfAbsent).await.unwrap();
}
