//! The `file:` store through its public door: the suite every store passes, and what only folders can do.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chatkeep_store::conformance::{Extent, LOCKED, assert_skipped_only, run};
use chatkeep_store::{ErrorKind, PutCondition, Result, Store, StoreKey};
use chatkeep_store_local::LocalStore;

const MARKER: &str = "chatkeep-store";

/// A store in a folder of its own, which does not exist before.
struct World {
    _folder: tempfile::TempDir,
    root: PathBuf,
    store: LocalStore,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let store = LocalStore::open(&root).unwrap();
        Self { _folder: folder, root, store }
    }

    async fn create(&self, name: &str) {
        create(&self.store, name).await.unwrap();
    }

    async fn names(&self) -> Vec<String> {
        names(&self.store).await.unwrap()
    }
}

fn key(text: &str) -> StoreKey {
    StoreKey::try_from(text).unwrap()
}

async fn create(store: &LocalStore, name: &str) -> Result<()> {
    store.put(&key(name), Bytes::from(name.to_owned()), PutCondition::CreateIfAbsent).await.map(|_| ())
}

async fn names(store: &LocalStore) -> Result<Vec<String>> {
    Ok(store.list("").await?.into_iter().map(|object| object.key.to_string()).collect())
}

fn open_fails(path: &Path) -> ErrorKind {
    LocalStore::open(path).unwrap_err().kind()
}

async fn is_offline(store: &LocalStore) -> bool {
    names(store).await.is_err_and(|error| error.kind() == ErrorKind::Offline)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn age(path: &Path, age: Duration) {
    fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    let world = World::new();
    let results = run(Arc::new(world.store.clone()), "conformance", Extent::FULL).await;
    assert_skipped_only(&results, &[LOCKED]);
    assert_eq!(temporary_files(&world.root), 0);
}

fn temporary_files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                temporary_files(&entry.path())
            } else {
                usize::from(entry.file_name().to_string_lossy().starts_with('.'))
            }
        })
        .sum()
}

#[tokio::test]
async fn only_the_user_can_read_what_is_stored() {
    let world = World::new();
    world.create("a/log/1").await;
    for folder in ["", "a", "a/log"] {
        assert_eq!(mode(&world.root.join(folder)), 0o700, "{folder}");
    }
    assert_eq!(mode(&world.root.join("a/log/1")), 0o600);
    assert_eq!(mode(&world.root.join(MARKER)), 0o600);
}

#[tokio::test]
async fn objects_outlive_the_store_that_wrote_them() {
    let world = World::new();
    world.create("a/log/1").await;
    for again in [LocalStore::open(&world.root).unwrap(), LocalStore::reopen(&world.root).unwrap()] {
        assert_eq!(names(&again).await.unwrap(), ["a/log/1"]);
        assert_eq!(again.get(&key("a/log/1"), None).await.unwrap(), "a/log/1");
    }
}

// Crash leftovers.

#[tokio::test]
async fn leftovers_of_a_crash_are_not_listed_and_go_when_they_are_old() {
    let world = World::new();
    world.create("a/log/1").await;
    let (old, new) = (world.root.join("a/log/.chatkeep-tmp-1-1-1"), world.root.join("a/.chatkeep-tmp-1-1-2"));
    let not_ours = world.root.join("a/log/.hidden");
    for path in [&old, &new, &not_ours] {
        fs::write(path, "half an obj").unwrap();
    }
    age(&old, Duration::from_hours(25));
    age(&not_ours, Duration::from_hours(25));
    assert_eq!(world.names().await, ["a/log/1"]);
    LocalStore::open(&world.root).unwrap();
    assert!(!old.exists(), "a leftover of yesterday is still there");
    assert!(new.exists(), "what may be a put under way was removed");
    assert!(not_ours.exists(), "a file that is not ours was removed");
}

#[tokio::test]
async fn a_refused_create_leaves_nothing() {
    let world = World::new();
    world.create("a/log/1").await;
    assert_eq!(create(&world.store, "a/log/1").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(temporary_files(&world.root), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_stores_in_one_folder_only_one_creates_an_object() {
    let world = World::new();
    for round in 0..20 {
        let name = format!("a/log/{round}");
        let puts: Vec<_> = (0..8)
            .map(|_| {
                let (store, name) = (LocalStore::open(&world.root).unwrap(), name.clone());
                tokio::spawn(async move { create(&store, &name).await })
            })
            .collect();
        let mut won = 0;
        for put in puts {
            match put.await.unwrap() {
                Ok(()) => won += 1,
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists),
            }
        }
        assert_eq!(won, 1, "round {round}");
    }
}

// Where the folder is not what it should be.

#[tokio::test]
async fn a_first_use_makes_the_folder_but_not_those_above() {
    let folder = tempfile::tempdir().unwrap();
    assert!(LocalStore::open(&folder.path().join("new")).is_ok());
    assert!(folder.path().join("new").join(MARKER).is_file());
    let away = LocalStore::open(&folder.path().join("drive/store")).unwrap();
    assert!(is_offline(&away).await);
    assert!(!folder.path().join("drive").exists());
    // the drive is plugged in
    fs::create_dir(folder.path().join("drive")).unwrap();
    create(&away, "a/log/1").await.unwrap();
    assert!(folder.path().join("drive/store").join(MARKER).is_file());
}

#[tokio::test]
async fn a_folder_that_has_other_files_can_become_a_store() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("README"), "mine").unwrap();
    create(&LocalStore::open(folder.path()).unwrap(), "a/log/1").await.unwrap();
    assert_eq!(names(&LocalStore::reopen(folder.path()).unwrap()).await.unwrap(), ["a/log/1"]);
}

#[tokio::test]
async fn what_was_used_before_is_never_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("mount-point");
    fs::create_dir(&empty).unwrap();
    fs::create_dir(empty.join("lost+found")).unwrap();
    for path in [&empty, &folder.path().join("nowhere")] {
        let store = LocalStore::reopen(path).unwrap();
        assert!(is_offline(&store).await);
        assert_eq!(create(&store, "a/log/1").await.unwrap_err().kind(), ErrorKind::Offline);
    }
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 1);
    assert!(!folder.path().join("nowhere").exists());
}

#[tokio::test]
async fn while_the_drive_is_away_every_call_is_offline_and_nothing_is_written() {
    let world = World::new();
    world.create("a/log/1").await;
    let away = world.root.with_extension("away");
    for mount_point_stays in [false, true] {
        fs::rename(&world.root, &away).unwrap();
        if mount_point_stays {
            fs::create_dir(&world.root).unwrap();
        }
        let (store, object) = (&world.store, key("a/log/1"));
        let kinds = [
            create(store, "a/log/2").await.unwrap_err().kind(),
            store.get(&object, None).await.unwrap_err().kind(),
            store.head(&object).await.unwrap_err().kind(),
            store.list("").await.unwrap_err().kind(),
            store.delete(&object).await.unwrap_err().kind(),
            store.usage().await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::Offline; 6]);
        if mount_point_stays {
            assert_eq!(fs::read_dir(&world.root).unwrap().count(), 0);
            fs::remove_dir(&world.root).unwrap();
        }
        assert!(!world.root.exists());
        fs::rename(&away, &world.root).unwrap();
        assert_eq!(world.names().await, ["a/log/1"]);
    }
}

#[tokio::test]
async fn a_deleted_marker_does_not_hide_the_objects_and_comes_back() {
    let world = World::new();
    world.create("a/log/1").await;
    fs::remove_file(world.root.join(MARKER)).unwrap();
    assert_eq!(world.names().await, ["a/log/1"]);
    LocalStore::reopen(&world.root).unwrap();
    assert!(world.root.join(MARKER).is_file());
}

#[tokio::test]
async fn the_marker_is_no_object() {
    let world = World::new();
    for name in [MARKER, "chatkeep-store/below"] {
        assert_eq!(create(&world.store, name).await.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(world.store.get(&key(name), None).await.unwrap_err().kind(), ErrorKind::NotFound);
        world.store.delete(&key(name)).await.unwrap();
    }
    assert!(world.root.join(MARKER).is_file());
    assert!(world.names().await.is_empty());
}

#[test]
fn a_path_that_is_a_file_is_an_error_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    assert_eq!(open_fails(&folder.path().join("file")), ErrorKind::Invalid);
    assert_eq!(open_fails(&folder.path().join("file/below")), ErrorKind::Invalid);
    assert_eq!(open_fails(Path::new("relative/path")), ErrorKind::Invalid);
}

#[test]
fn a_url_opens_the_folder_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/my%20backups", folder.path().display());
    let store = LocalStore::from_url(&url).unwrap();
    assert_eq!(store.path(), folder.path().join("my backups"));
    assert!(folder.path().join("my backups").join(MARKER).is_file());
    assert!(LocalStore::reopen_url(&url).is_ok());
    assert_eq!(LocalStore::from_url("file:backups").unwrap_err().kind(), ErrorKind::Invalid);
}

// What else lies in the folder.

#[tokio::test]
async fn what_is_not_ours_is_neither_listed_nor_touched() {
    let world = World::new();
    world.create("a/log/1").await;
    for foreign in ["README.md", "a/Copy", "a/log/1~", "a/log/.DS_Store", "a/log/naïve"] {
        fs::write(world.root.join(foreign), "foreign").unwrap();
    }
    fs::create_dir_all(world.root.join("a/b/c/d/e")).unwrap();
    fs::write(world.root.join("a/b/c/d/e/f"), "too deep for a key").unwrap();
    assert_eq!(world.names().await, ["a/log/1"]);
    assert!(world.root.join("README.md").exists());
}

#[tokio::test]
async fn links_are_followed_nowhere() {
    let world = World::new();
    world.create("a/log/1").await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "of somebody else").unwrap();
    symlink(outside.path(), world.root.join("a/folder")).unwrap();
    symlink(outside.path().join("secret"), world.root.join("a/log/file")).unwrap();
    symlink(outside.path().join("new"), world.root.join("a/log/dangling")).unwrap();
    assert_eq!(world.names().await, ["a/log/1"]);
    for name in ["a/folder/secret", "a/log/file", "a/log/dangling"] {
        assert_eq!(
            world.store.get(&key(name), None).await.unwrap_err().kind(),
            ErrorKind::NotFound,
            "{name}"
        );
        assert_eq!(world.store.head(&key(name)).await.unwrap_err().kind(), ErrorKind::NotFound, "{name}");
        assert_eq!(create(&world.store, name).await.unwrap_err().kind(), ErrorKind::Invalid, "{name}");
        world.store.delete(&key(name)).await.unwrap();
    }
    let overwritten = world.store.put(&key("a/log/dangling"), "x".into(), PutCondition::Overwrite).await;
    assert!(overwritten.is_ok(), "the link itself is replaced");
    assert!(!outside.path().join("new").exists());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_link_to_the_folder_of_the_store_is_the_users_choice() {
    let world = World::new();
    world.create("a/log/1").await;
    let link = world.root.with_extension("link");
    symlink(&world.root, &link).unwrap();
    assert_eq!(names(&LocalStore::reopen(&link).unwrap()).await.unwrap(), ["a/log/1"]);
}

#[tokio::test]
async fn a_pipe_in_the_folder_holds_nobody_up() {
    let world = World::new();
    world.create("a/log/1").await;
    let pipe = world.root.join("a/log/2");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert_eq!(world.store.get(&key("a/log/2"), None).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.names().await, ["a/log/1"]);
    assert_eq!(create(&world.store, "a/log/2").await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn an_object_and_a_folder_do_not_share_a_name() {
    let world = World::new();
    world.create("a/log/1").await;
    assert_eq!(create(&world.store, "a/log/1/2").await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(create(&world.store, "a/log").await.unwrap_err().kind(), ErrorKind::Invalid);
    let overwrite = world.store.put(&key("a/log"), "x".into(), PutCondition::Overwrite).await;
    assert_eq!(overwrite.unwrap_err().kind(), ErrorKind::Invalid);
    world.store.delete(&key("a/log")).await.unwrap();
    assert_eq!(world.names().await, ["a/log/1"]);
    assert_eq!(temporary_files(&world.root), 0);
}

#[tokio::test]
async fn a_file_on_the_same_file_system_gets_a_second_name_and_may_lose_its_first() {
    let world = World::new();
    let file = world.root.with_file_name("queued");
    fs::write(&file, "sealed").unwrap();
    let put =
        async |name: &str, body: &'static str| world.store.put_file(&key(name), body.into(), &file).await;
    assert_eq!(put("a", "sealed").await.unwrap().len, 6);
    assert_eq!(fs::metadata(world.root.join("a")).unwrap().ino(), fs::metadata(&file).unwrap().ino());
    // nothing is replaced, whatever is there
    assert_eq!(put("a", "sealed").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    // what is not the file that was meant is not taken for it
    put("b", "something else").await.unwrap();
    let link = world.root.with_file_name("link");
    symlink(&file, &link).unwrap();
    world.store.put_file(&key("c"), "sealed".into(), &link).await.unwrap();
    assert!(fs::symlink_metadata(world.root.join("c")).unwrap().is_file());
    fs::remove_file(&file).unwrap();
    for (name, body) in [("a", "sealed"), ("b", "something else"), ("c", "sealed")] {
        assert_eq!(world.store.get(&key(name), None).await.unwrap(), body);
    }
    // gone, or on another file system
    put("d", "sealed").await.unwrap();
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let far = elsewhere.path().join("queued");
    fs::write(&far, "sealed").unwrap();
    world.store.put_file(&key("e"), "sealed".into(), &far).await.unwrap();
    assert_eq!(world.names().await, ["a", "b", "c", "d", "e"]);
}
