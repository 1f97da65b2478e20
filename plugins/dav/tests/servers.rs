//! The `dav:` store at real servers: the suite every store passes, and the traps each of them has.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chatkeep_store::conformance::{Extent, assert_all_passed, run};
use chatkeep_store::{CreateGuarantee, ErrorKind, PutCondition};
use chatkeep_store_dav::{open_tuned, probe};
use chatkeep_store_rig::dav::{Dav, files_below};
use common::{TUNING, create, install_tls, key, names, opening, store};
use zeroize::Zeroizing;

async fn conform(server: &Dav, extent: Extent, probed: bool) {
    let mut opening = opening(server.port());
    opening.options.insert("probe".to_owned(), probed.to_string());
    let store = open_tuned(&opening, TUNING).await.unwrap();
    let results = run(store, "conformance", extent).await;
    for result in &results {
        println!("{result}");
    }
    assert_all_passed(&results);
    let left = files_below(&server.files());
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_at_nginx() {
    let server = Dav::nginx();
    conform(&server, Extent::FULL, true).await;
    let log = server.log();
    assert!(log.contains("depth=1"), "the log does not show depths");
    assert!(!log.contains("infinity"), "a depth of infinity was asked for");
    let without_depth = log.lines().find(|line| line.starts_with("PROPFIND") && line.ends_with("depth=-"));
    assert_eq!(without_depth, None, "without a depth, infinity is meant");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_at_apache() {
    conform(&Dav::apache(), Extent::QUICK, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_at_rclone() {
    conform(&Dav::rclone(), Extent::QUICK, true).await;
}

async fn probed(server: &Dav) -> CreateGuarantee {
    let mut opening = opening(server.port());
    opening.options.insert("probe".to_owned(), "true".to_owned());
    let told = open_tuned(&opening, TUNING).await.unwrap().capabilities().create;
    let left = files_below(&server.files());
    assert!(left.is_empty(), "{left:?}");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_probe_tells_servers_apart_that_let_two_win() {
    let (nginx, apache) = (Dav::nginx(), Dav::apache());
    assert_eq!(store(&nginx).await.capabilities().create, CreateGuarantee::Advisory, "nobody has looked");
    assert_eq!(probed(&nginx).await, CreateGuarantee::Atomic);
    assert_eq!(probe(&opening(nginx.port())).await.unwrap(), CreateGuarantee::Atomic);
    for _ in 0..10 {
        // it may be too busy with the other tests to show it
        if probed(&apache).await == CreateGuarantee::Advisory {
            return;
        }
    }
    panic!("Apache lets two win, and no probe saw it");
}

/// The trap of a well-known library: two puts make one new folder at once, and the second fails with 405.
async fn many_into_a_new_folder(server: &Dav) {
    let store = store(server).await;
    let puts = (0..200).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { create(&*store, &format!("new/folder{}/{number:04}", number % 7)).await })
    });
    for put in futures_util::future::join_all(puts).await {
        put.unwrap().unwrap_or_else(|error| panic!("{error:?}: {}", server.said()));
    }
    assert_eq!(names(&*store).await.unwrap().len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_puts_into_a_new_folder_lose_nothing() {
    many_into_a_new_folder(&Dav::nginx()).await;
    many_into_a_new_folder(&Dav::apache()).await;
    many_into_a_new_folder(&Dav::rclone()).await;
}

#[tokio::test]
async fn a_folder_that_somebody_removed_is_made_again() {
    for server in [Dav::nginx(), Dav::apache()] {
        let store = store(&server).await;
        create(&*store, "a/log/1").await.unwrap();
        fs::remove_dir_all(server.files().join("backups/a")).unwrap();
        create(&*store, "a/log/2").await.unwrap();
        assert_eq!(names(&*store).await.unwrap(), ["a/log/2"]);
    }
}

#[tokio::test]
async fn a_store_whose_folder_is_gone_is_not_an_empty_store() {
    let server = Dav::nginx();
    let store = store(&server).await;
    create(&*store, "a/log/1").await.unwrap();
    fs::rename(server.files().join("backups"), server.files().join("elsewhere")).unwrap();
    for prefix in ["", "a", "a/log"] {
        assert_eq!(store.list(prefix).await.unwrap_err().kind(), ErrorKind::Offline, "{prefix:?}");
    }
    assert_eq!(store.get(&key("a/log/1"), None).await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(store.head(&key("a/log/1")).await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(store.delete(&key("a/log/1")).await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(create(&*store, "a/log/2").await.unwrap_err().kind(), ErrorKind::Offline);
    fs::rename(server.files().join("elsewhere"), server.files().join("backups")).unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
}

#[tokio::test]
async fn only_the_last_folder_of_the_url_is_made() {
    let server = Dav::nginx();
    let mut opening = opening(server.port());
    opening.url = opening.url.replace("/backups", "/not/there");
    let error = open_tuned(&opening, TUNING).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Offline, "{error}");
    assert!(!server.files().join("not").exists());
    let mut opening = common::opening(server.port());
    opening.read_only = true;
    open_tuned(&opening, TUNING).await.err().unwrap();
    assert!(!server.files().join("backups").exists(), "a store that is only read was made");
}

#[tokio::test]
async fn foreign_files_and_folders_spoil_a_listing() {
    let server = Dav::nginx();
    let store = store(&server).await;
    create(&*store, "a/log/1").await.unwrap();
    let root = server.files().join("backups");
    for (foreign, is_folder) in
        [("A Photo.jpg", false), ("a/log/Thumbs.db", false), ("a/Lost And Found", true)]
    {
        let path = root.join(foreign);
        if is_folder {
            fs::create_dir(&path).unwrap();
        } else {
            fs::write(&path, "x").unwrap();
        }
        assert_eq!(names(&*store).await.unwrap_err().kind(), ErrorKind::UntrustedListing, "{foreign}");
        fs::rename(&path, server.files().join(format!("away{is_folder}"))).unwrap();
    }
    // a folder with nothing in it is nothing
    fs::create_dir_all(root.join("b/c/d/e")).unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
    fs::create_dir_all(root.join("b/c/d/e/f")).unwrap();
    assert_eq!(names(&*store).await.unwrap_err().kind(), ErrorKind::UntrustedListing);
}

#[tokio::test]
async fn deleting_what_is_a_folder_deletes_nothing() {
    let server = Dav::apache();
    let store = store(&server).await;
    create(&*store, "a/log/1").await.unwrap();
    store.delete(&key("a/log")).await.unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_put_that_the_server_or_the_caller_dies_in_leaves_no_object() {
    for mut server in [Dav::nginx(), Dav::apache(), Dav::rclone()] {
        let store = store(&server).await;
        create(&*store, "a/log/1").await.unwrap();
        let body = Bytes::from(vec![7; 64 << 20]);
        for number in 0..6_u64 {
            let (putting, body) = (Arc::clone(&store), body.clone());
            let put =
                tokio::spawn(
                    async move { putting.put(&key("a/pack/1"), body, PutCondition::Overwrite).await },
                );
            tokio::time::sleep(Duration::from_millis(5 << number)).await;
            if number % 2 == 0 {
                put.abort();
            } else {
                server.kill();
            }
            let acknowledged = put.await.is_ok_and(|put| put.is_ok());
            if number % 2 == 1 {
                server.restart();
            }
            let listed = store.list("a/pack").await.unwrap();
            assert!(
                listed.iter().all(|object| object.len == body_len()),
                "part of an object is listed: {listed:?}"
            );
            assert!(!acknowledged || listed.len() == 1, "what was acknowledged is gone");
            store.delete(&key("a/pack/1")).await.unwrap();
        }
        assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
    }
}

fn body_len() -> u64 {
    64 << 20
}

#[tokio::test]
async fn leftovers_of_a_crash_are_not_listed_and_go_when_they_are_old() {
    let server = Dav::nginx();
    create(&*store(&server).await, "a/log/1").await.unwrap();
    let folder = server.files().join("backups/.chatkeep-tmp");
    let (old, new, other) =
        (folder.join("00112233445566aa-1"), folder.join("00112233445566aa-2"), folder.join("mine"));
    for path in [&old, &new, &other] {
        fs::write(path, "half").unwrap();
    }
    for path in [&old, &other] {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(25)).unwrap();
    }
    let store = store(&server).await;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if !old.exists() {
            break;
        }
    }
    assert!(!old.exists(), "it is a day old");
    assert!(new.exists(), "it may belong to a put of another machine");
    assert!(other.exists(), "it is not ours");
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
}

#[tokio::test]
async fn a_wrong_password_asks_for_a_new_sign_in() {
    let server = Dav::apache();
    let mut opening = opening(server.port());
    opening.secrets.set("password", Zeroizing::new("wrong and secret".to_owned()));
    let error = open_tuned(&opening, TUNING).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Auth);
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_away_is_offline_and_comes_back() {
    let mut server = Dav::nginx();
    let store = store(&server).await;
    create(&*store, "a/log/1").await.unwrap();
    server.kill();
    assert_eq!(names(&*store).await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(create(&*store, "a/log/2").await.unwrap_err().kind(), ErrorKind::Offline);
    server.restart();
    create(&*store, "a/log/2").await.unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1", "a/log/2"]);
}

#[tokio::test]
async fn a_read_only_store_is_not_written() {
    let server = Dav::nginx();
    create(&*store(&server).await, "a/log/1").await.unwrap();
    let mut opening = opening(server.port());
    opening.read_only = true;
    let store = open_tuned(&opening, TUNING).await.unwrap();
    assert_eq!(store.get(&key("a/log/1"), None).await.unwrap(), "a/log/1");
    assert_eq!(create(&*store, "a/log/2").await.unwrap_err().kind(), ErrorKind::Permission);
    assert_eq!(store.delete(&key("a/log/1")).await.unwrap_err().kind(), ErrorKind::Permission);
}

#[tokio::test]
async fn a_certificate_is_checked_against_the_file_of_an_authority() {
    install_tls();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let server = Dav::nginx_tls(&pair.cert.pem(), &pair.signing_key.serialize_pem());
    let mut opening = opening(server.port());
    opening.url = format!("dav://localhost:{}/backups", server.port());
    let error = open_tuned(&opening, TUNING).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Transient, "a certificate that does not hold is no missing network");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), pair.cert.pem()).unwrap();
    opening.options.insert("ca_file".to_owned(), file.path().to_str().unwrap().to_owned());
    let store = open_tuned(&opening, TUNING).await.unwrap();
    create(&*store, "a/log/1").await.unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
}
