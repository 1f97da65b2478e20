//! What services do wrong, and what becomes of it.
#![allow(clippy::unwrap_used, dead_code, reason = "tests; not each uses all of what they share")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use chatkeep_store::ErrorKind::*;
use chatkeep_store::PutCondition::{CreateIfAbsent, Overwrite};
use chatkeep_store::{Store, StoreError};
use common::proxy::{Fault, Proxy};
use common::{World, files, key, names, open, refused, told};

async fn world() -> (World, Proxy, Arc<dyn Store>) {
    let mut world = World::new();
    let proxy = Proxy::start(&mut world).await;
    let store = open(&world.opening("rclone:dav:laptop")).await;
    (world, proxy, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_refused_says_what_helps() {
    let (world, proxy, store) = world().await;
    for (status, kind) in [
        (401, Auth),
        (403, Permission),
        (413, TooLarge),
        (429, Throttled),
        (507, Quota),
        (500, Transient),
        (503, Transient),
    ] {
        proxy.set(&[("PUT", "", Fault::Status(status))]);
        let error = store.put(&key("a/log/1"), "hello".into(), CreateIfAbsent).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {}", told(&error));
    }
    proxy.set(&[]);
    store.put(&key("a/log/1"), "hello".into(), CreateIfAbsent).await.unwrap();
    assert_eq!(files(&world.objects()), ["laptop/a/log/1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_read_is_never_a_missing_object() {
    let (_world, proxy, store) = world().await;
    store.put(&key("a/log/1"), "hello".into(), CreateIfAbsent).await.unwrap();
    for (status, kind) in [(401, Auth), (403, Permission), (429, Throttled), (500, Transient)] {
        // found, and then not to be had: rclone itself calls this "404 Not Found"
        proxy.set(&[("GET", "", Fault::Status(status))]);
        let error = store.get(&key("a/log/1"), None).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {}", told(&error));
        proxy.set(&[("PROPFIND", "", Fault::Status(status))]);
        for outcome in [
            store.get(&key("a/log/1"), None).await.map(|_| ()),
            store.head(&key("a/log/1")).await.map(|_| ()),
            store.list("a").await.map(|_| ()),
        ] {
            assert_eq!(outcome.unwrap_err().kind(), kind, "{status}");
        }
    }
}

/// Every answer is cut, so that trying again does not help either.
#[tokio::test(flavor = "multi_thread")]
async fn half_an_object_is_not_an_object() {
    let (_world, proxy, store) = world().await;
    let body = "hello ".repeat(100_000);
    store.put(&key("a"), body.clone().into(), CreateIfAbsent).await.unwrap();
    proxy.set(&[("GET", "", Fault::CutAnswer)]);
    for range in [None, Some(5..400_000)] {
        let error = store.get(&key("a"), range).await.unwrap_err();
        assert_eq!(error.kind(), Transient, "{}", told(&error));
    }
    proxy.set(&[]);
    assert_eq!(store.get(&key("a"), None).await.unwrap(), body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ignores_ranges_gives_the_right_bytes() {
    let (_world, proxy, store) = world().await;
    store.put(&key("a"), "0123456789".into(), CreateIfAbsent).await.unwrap();
    proxy.set(&[("GET", "", Fault::IgnoreRange)]);
    assert_eq!(store.get(&key("a"), Some(3..6)).await.unwrap(), "345");
    assert_eq!(store.get(&key("a"), Some(8..20)).await.unwrap(), "89");
    assert!(!store.capabilities().range);
}

/// As pCloud did (restic #3079).
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_arrived_by_half_fails_and_leaves_nothing() {
    let (world, proxy, store) = world().await;
    store.put(&key("a/old"), "the old one".into(), CreateIfAbsent).await.unwrap();
    for fault in [Fault::HalveUpload, Fault::HalveLate] {
        proxy.set(&[("PUT", "", fault)]);
        for (name, condition) in [("a/new", CreateIfAbsent), ("a/old", Overwrite)] {
            let error = store.put(&key(name), "0123456789".into(), condition).await.unwrap_err();
            assert!(matches!(error.kind(), Transient | Corrupt), "{fault:?}: {}", told(&error));
        }
    }
    assert_eq!(files(&world.objects()), ["laptop/a/old"]);
    assert_eq!(store.get(&key("a/old"), None).await.unwrap(), "the old one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_listed_fails_the_whole_listing() {
    let (_world, proxy, store) = world().await;
    for name in ["a/log/1", "a/pack/1", "b/log/1"] {
        store.put(&key(name), "x".into(), CreateIfAbsent).await.unwrap();
    }
    for (status, kind) in [(403, Permission), (404, IncompleteListing), (429, Throttled), (500, Transient)] {
        proxy.set(&[("PROPFIND", "/a/pack", Fault::Status(status))]);
        for prefix in ["", "a", "a/pack"] {
            let error = store.list(prefix).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{status} of {prefix:?}: {}", told(&error));
        }
        assert_eq!(names(store.list("b").await), ["b/log/1"]);
    }
    proxy.set(&[("PROPFIND", "", Fault::CutAnswer)]);
    store.list("").await.unwrap_err();
    proxy.set(&[]);
    assert_eq!(names(store.list("").await), ["a/log/1", "a/pack/1", "b/log/1"]);
    assert_eq!(names(store.list("c/log").await), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_folder_went_away_is_away_and_not_empty() {
    let (world, _proxy, store) = world().await;
    assert_eq!(names(store.list("").await), [""; 0]);
    let disk = World::with_disk();
    let on_disk = open(&disk.disk()).await;
    assert_eq!(names(on_disk.list("").await), [""; 0]);
    std::fs::remove_dir(disk.objects()).unwrap();
    for prefix in ["", "a/log"] {
        assert_eq!(on_disk.list(prefix).await.unwrap_err().kind(), Offline);
    }
    drop(world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_ended_says_how_to_sign_in() {
    let (world, proxy, store) = world().await;
    proxy.set(&[("PROPFIND", "", Fault::Status(401)), ("MKCOL", "", Fault::Status(401))]);
    let says_how = |error: StoreError| {
        assert_eq!(error.kind(), Auth);
        assert!(told(&error).contains("rclone config reconnect dav:"), "{}", told(&error));
    };
    says_how(store.head(&key("a")).await.unwrap_err());
    says_how(refused(&world.opening("rclone:dav:other")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_it_is_offline() {
    let mut world = World::new();
    let port = chatkeep_store_rig::server::free_port();
    world.remote(
        "dav",
        &[("type", "webdav"), ("vendor", "rclone"), ("url", &format!("http://127.0.0.1:{port}"))],
    );
    let error = refused(&world.opening("rclone:dav:laptop")).await;
    assert_eq!(error.kind(), Offline, "{}", told(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_nobody_waits_for_leaves_no_half() {
    let (world, proxy, store) = world().await;
    proxy.set(&[("PUT", "", Fault::Wait(60_000))]);
    let name = key("a");
    let put = store.put(&name, "hello".into(), CreateIfAbsent);
    tokio::time::timeout(Duration::from_millis(500), put).await.unwrap_err();
    assert_eq!(files(&world.objects()), [""; 0]);
    proxy.set(&[]);
    store.put(&key("a"), "hello".into(), CreateIfAbsent).await.unwrap();
    assert_eq!(names(store.list("").await), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_made_once_each_and_not_at_the_same_time() {
    let (world, proxy, store) = world().await;
    let puts = (0..8).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(
            async move { store.put(&key(&format!("a/b/{number}")), "x".into(), CreateIfAbsent).await },
        )
    });
    for put in puts.collect::<Vec<_>>() {
        put.await.unwrap().unwrap();
    }
    assert_eq!(files(&world.objects()).len(), 8);
    // the first that needs a folder makes it, from the top; then rclone makes sure of the last one for each file
    let mut made = proxy.seen("MKCOL");
    made.dedup();
    assert_eq!(made, ["/laptop/", "/laptop/a/", "/laptop/a/b/"]);
}
