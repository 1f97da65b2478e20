//! Databases with a rollback journal: read between their writes, and rolled back in memory when nobody else will.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use chatkeep_sqlite::{Build, CaptureError, GapReason, Mode, PageSink};
use common::{App, World};

#[test]
fn app_process() {
    common::app_process();
}

#[test]
fn a_database_with_a_rollback_journal_is_read_when_it_was_written() {
    let mut world = World::new();
    let mut app = App::rollback(&world.db());
    app.insert(40);
    assert!(world.capture().is_base);
    for _ in 0..3 {
        app.insert(1);
        let look = world.live().look().unwrap();
        assert_eq!((look.mode, look.gap), (Mode::AtRest, Some(GapReason::WrittenDirectly)));
        let capture = world.capture();
        assert!(!capture.is_base && capture.changed_pages < 6);
        world.assert_stored_is_the_file();
    }
    assert!(!world.live().look().unwrap().changed);
}

#[test]
fn when_the_next_read_of_the_whole_file_is_due_waiting_ends() {
    let mut world = World::new();
    let mut app = App::rollback(&world.db());
    app.insert(2000);
    world.capture();
    app.insert(1);
    let mut looks = 0;
    while !world.live().look().unwrap().changed {
        world.live().wait(Duration::from_hours(1)).unwrap();
        looks += 1;
    }
    assert!(looks < 20, "it waits, it does not spin");
    assert!(world.capture().changed_pages > 0);
}

#[test]
fn a_transaction_being_prepared_does_not_disturb() {
    let mut world = World::new();
    let mut app = App::rollback(&world.db());
    app.insert(5);
    let before = std::fs::read(world.db()).unwrap();
    app.run("BEGIN IMMEDIATE; INSERT INTO t(body) VALUES (randomblob(10));");
    assert!(world.names().contains(&"chat.db-journal".to_owned()));
    world.capture();
    assert!(world.stored_bytes() == before);
    app.run("COMMIT;");
}

#[test]
fn while_the_file_is_being_written_or_waits_to_be_rolled_back_nothing_is_captured() {
    let mut world = World::new();
    let mut app = App::rollback(&world.db());
    app.insert(50);
    world.capture();
    app.run("PRAGMA cache_size = 5; BEGIN; UPDATE t SET body = randomblob(1500);");
    assert!(matches!(world.try_capture(), Err(CaptureError::NotQuiet { .. })));
    app.kill();
    let torn = std::fs::read(world.db()).unwrap();
    assert!(matches!(world.try_capture(), Err(CaptureError::NotQuiet { .. })));
    assert!(torn == std::fs::read(world.db()).unwrap(), "we only read");
    // The app rolls it back, as it would have without us.
    let mut app = App::open(&world.db());
    app.run("SELECT count(*) FROM t;");
    assert!(world.capture().unchanged);
    world.assert_stored_is_the_file();
}

/// As if some time had passed since the app was killed.
fn make_old(world: &World) {
    let long_ago = SystemTime::now() - Duration::from_mins(1);
    for name in world.names() {
        let path = world.db().with_file_name(name);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
}

fn contents(world: &World) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| (name.clone(), std::fs::read(world.db().with_file_name(name)).unwrap());
    world.names().into_iter().map(read).collect()
}

#[test]
fn a_journal_whose_app_never_comes_back_is_rolled_back_in_memory() {
    let changes = [
        "UPDATE t SET body = randomblob(1500);",
        "INSERT INTO t(body) SELECT randomblob(1500) FROM t;",
        "DELETE FROM t WHERE id > 20; PRAGMA incremental_vacuum; UPDATE t SET body = randomblob(3000);",
    ];
    let modes = [("DELETE", "OFF"), ("DELETE", "FULL"), ("TRUNCATE", "FULL"), ("PERSIST", "OFF")];
    for ((mode, synchronous), change) in
        modes.into_iter().flat_map(|mode| changes.map(|change| (mode, change)))
    {
        let mut world = World::new();
        let mut app = App::open(&world.db());
        app.run("PRAGMA auto_vacuum = INCREMENTAL; VACUUM;");
        app.close();
        let mut app = App::rollback(&world.db());
        app.run(&format!("PRAGMA journal_mode = {mode};"));
        app.insert(200);
        app.run(&format!("PRAGMA synchronous = {synchronous}; PRAGMA cache_size = 5; BEGIN; {change}"));
        app.kill();
        make_old(&world);
        let left = contents(&world);
        assert_eq!(left[1].0, "chat.db-journal");
        let capture = world.capture();
        assert!(capture.is_base);
        assert!(!world.live().look().unwrap().changed);
        assert!(contents(&world) == left, "we only read");

        let copy = world.folder.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        for (name, bytes) in &left {
            std::fs::write(copy.join(name), bytes).unwrap();
        }
        let mut app = App::open(&copy.join("chat.db"));
        app.run("SELECT count(*) FROM t;");
        app.close();
        let recovered = std::fs::read(copy.join("chat.db")).unwrap();
        assert!(recovered != left[0].1, "there was something to be rolled back");
        assert!(world.stored_bytes() == recovered, "{mode} {synchronous} {change}");
        // The app comes back after all.
        let mut app = App::open(&world.db());
        app.run("SELECT count(*) FROM t;");
        assert!(world.live().look().unwrap().gap.is_some());
        assert!(world.capture().unchanged);
        world.assert_stored_is_the_file();
    }
}

#[test]
fn a_journal_that_is_removed_leaves_another_state() {
    let mut world = World::new();
    let mut app = App::rollback(&world.db());
    app.insert(50);
    app.run("PRAGMA cache_size = 5; BEGIN; UPDATE t SET body = randomblob(1500);");
    app.kill();
    make_old(&world);
    world.capture();
    std::fs::remove_file(world.db().with_file_name("chat.db-journal")).unwrap();
    assert_eq!(world.live().look().unwrap().gap, Some(GapReason::WrittenDirectly));
    world.capture();
    world.assert_stored_is_the_file();
}

/// Writes into the database during the first attempt.
struct Meddler {
    db: std::fs::File,
    pages_of_attempts: Vec<u32>,
}

impl PageSink for Meddler {
    fn begin(&mut self, _page_size: u32, _is_base: bool) -> std::io::Result<()> {
        self.pages_of_attempts.push(0);
        Ok(())
    }

    fn page(&mut self, pgno: u32, _image: &[u8], _base: Option<&[u8]>) -> std::io::Result<()> {
        if self.pages_of_attempts.len() == 1 && pgno == 10 {
            self.db.write_all_at(b"x", 4096 * 300)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        *self.pages_of_attempts.last_mut().unwrap() += 1;
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_during_a_read_of_the_whole_file_ends_it_early() {
    let mut world = World::new();
    let mut app = App::rollback(&world.db());
    app.insert(2000);
    app.close();
    let db = std::fs::File::options().write(true).open(world.db()).unwrap();
    let mut meddler = Meddler { db, pages_of_attempts: Vec::new() };
    let capture = world.live().capture(Build::on(0), &mut meddler, &|| false).unwrap();
    let (first, last) = (meddler.pages_of_attempts[0], *meddler.pages_of_attempts.last().unwrap());
    assert!(first < 100, "{first} pages were read in vain");
    assert_eq!(last, capture.page_count);
}
