//! Listings are complete, of our objects only, or errors.
#![allow(clippy::unwrap_used, dead_code, reason = "tests; not each uses all of what they share")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use chatkeep_store::ErrorKind::*;
use chatkeep_store::PutCondition::CreateIfAbsent;
use chatkeep_store_rig::rclone;
use common::{World, files, key, names, open, told};

fn permit(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A world whose rclone is bound by the permissions of files, also where root runs the tests.
fn bound_by_permissions() -> (World, chatkeep_store::Opening) {
    let world = World::with_disk();
    let mut opening = world.disk();
    if rustix::process::getuid().is_root() {
        let rclone = rclone::program();
        let without = "-dac_override,-dac_read_search";
        let line = format!(
            "exec setpriv --bounding-set {without} --inh-caps {without} -- '{}' \"$@\"",
            rclone.display()
        );
        let path = world.path("bound");
        std::fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        permit(&path, 0o700);
        opening.options.insert("program".to_owned(), path.to_str().unwrap().to_owned());
    }
    (world, opening)
}

/// rclone leaves such a folder out, and says that all went well.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_may_not_be_read_is_not_left_out() {
    let (world, opening) = bound_by_permissions();
    let store = open(&opening).await;
    for name in ["a/log/1", "a/pack/1", "b/log/1"] {
        store.put(&key(name), "x".into(), CreateIfAbsent).await.unwrap();
    }
    let hidden = world.objects().join("a/pack");
    permit(&hidden, 0);
    for prefix in ["", "a", "a/pack"] {
        let error = store.list(prefix).await.unwrap_err();
        assert_eq!(error.kind(), IncompleteListing, "{prefix:?}: {}", told(&error));
    }
    assert_eq!(names(store.list("b").await), ["b/log/1"]);
    // may be read, and nothing in it looked at
    permit(&hidden, 0o400);
    assert_eq!(store.list("").await.unwrap_err().kind(), IncompleteListing);
    // nothing below it can be seen to be there or not
    permit(&hidden, 0o700);
    permit(&world.objects().join("a"), 0);
    for prefix in ["", "a", "a/pack", "a/other"] {
        let error = store.list(prefix).await.unwrap_err();
        assert_eq!(error.kind(), IncompleteListing, "{prefix:?}: {}", told(&error));
    }
    permit(&world.objects().join("a"), 0o700);
    assert_eq!(names(store.list("").await), ["a/log/1", "a/pack/1", "b/log/1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_ours_spoils_the_listing() {
    for (name, folder) in [
        ("Holiday.jpg", false),
        (".DS_Store", false),
        ("a/b/c/d/e", false),
        ("Photos/x", false),
        ("Empty", true),
        ("a/log/1.3f2a8b1c.PARTIAL", false),
    ] {
        let world = World::with_disk();
        let store = open(&world.disk()).await;
        store.put(&key("z"), "x".into(), CreateIfAbsent).await.unwrap();
        let path = world.objects().join(name);
        std::fs::create_dir_all(if folder { &path } else { path.parent().unwrap() }).unwrap();
        if !folder {
            std::fs::write(&path, "x").unwrap();
        }
        let error = store.list("").await.unwrap_err();
        assert_eq!(error.kind(), UntrustedListing, "{name}: {}", told(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_not_listed_and_goes_after_a_day() {
    let world = World::with_disk();
    let store = open(&world.disk()).await;
    store.put(&key("a/log/1"), "x".into(), CreateIfAbsent).await.unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let leave = |age: Duration| {
        let name = format!(".chatkeep-tmp-{:x}-0123456789abcdef", now.as_secs() - age.as_secs());
        std::fs::write(world.objects().join("a/log").join(&name), "half").unwrap();
        format!("a/log/{name}")
    };
    let young = leave(Duration::from_hours(20));
    leave(Duration::from_hours(25));
    let mut opening = world.disk();
    opening.read_only = true;
    let reader = open(&opening).await;
    assert_eq!(names(reader.list("").await), ["a/log/1"]);
    assert_eq!(files(&world.objects()).len(), 3);
    assert_eq!(names(store.list("").await), ["a/log/1"]);
    assert_eq!(files(&world.objects()), [young, "a/log/1".to_owned()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_for_reading_writes_nothing() {
    let world = World::with_disk();
    let mut opening = world.opening(&format!("rclone:disk:{}", world.path("other").display()));
    opening.read_only = true;
    let store = open(&opening).await;
    assert_eq!(store.put(&key("a"), "x".into(), CreateIfAbsent).await.unwrap_err().kind(), Permission);
    assert_eq!(store.delete(&key("a")).await.unwrap_err().kind(), Permission);
    assert!(!world.path("other").exists());
    assert_eq!(store.list("").await.unwrap_err().kind(), Offline);
}
