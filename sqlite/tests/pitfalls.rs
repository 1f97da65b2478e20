//! What a hasty implementation gets wrong, a test for each.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chatkeep_sqlite::{Build, CaptureError, GapReason, Mode, PageSink};
use common::{App, World};

#[test]
fn app_process() {
    common::app_process();
}

#[test]
fn a_log_is_read_to_its_end_however_soon_it_is_unlinked_a_thousand_times() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(20);
    world.capture();
    let mut gaps = 0;
    for round in 1..=1000 {
        // A log that has nothing yet gets other salts with its first commit: then the whole file may have to be read.
        let fresh = round % 5 == 0;
        app.run("PRAGMA synchronous = OFF;");
        app.run(if fresh {
            "SELECT count(*) FROM t;"
        } else {
            "DELETE FROM t WHERE id = 0; PRAGMA user_version = 0;"
        });
        world.live().look().unwrap();
        // Nobody looks between the commit and the end of its log.
        app.run(&format!("PRAGMA user_version = {round};"));
        app.reopen();
        if round % 3 == 0 {
            // Another log, and something in it.
            app.run(&format!("PRAGMA user_version = {};", round + 5000));
        }
        gaps += u32::from(world.live().look().unwrap().gap.is_some() && !fresh);
        let expected = if round % 3 == 0 { round + 5000 } else { round };
        let capture = if round % 50 == 0 { world.build(0, &[]) } else { world.capture() };
        assert_eq!(capture.user_version, expected, "round {round}");
    }
    assert_eq!(gaps, 0, "the log was held");
    app.close();
    world.capture();
    world.assert_stored_is_the_file();
}

/// Captures until told to stop, as often as it goes.
fn capture_until(world: &mut World, stop: &AtomicBool) -> u32 {
    let mut captures = 0;
    while !stop.load(Ordering::Relaxed) {
        match world.try_capture() {
            Ok(capture) => {
                world.commit(&capture, &[]);
                captures += 1;
            }
            Err(CaptureError::NotQuiet { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    captures
}

#[test]
fn an_app_that_does_not_wait_for_locks_truncates_and_closes_without_an_error() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(50);
    let stop = AtomicBool::new(false);
    let captures = std::thread::scope(|scope| {
        let (db, stop) = (world.db(), &stop);
        scope.spawn(move || {
            for round in 0..150 {
                // The busy timeout is 0: any lock of ours would be an error.
                app.insert(2);
                app.run("PRAGMA wal_checkpoint(TRUNCATE);");
                let wal = std::fs::metadata(db.with_file_name("chat.db-wal")).unwrap();
                assert_eq!(wal.len(), 0, "round {round}: the log was not truncated");
                if round % 10 == 9 {
                    app.close();
                    assert!(!db.with_file_name("chat.db-wal").exists(), "the log was left behind");
                    app = App::wal(&db);
                }
            }
            app.close();
            stop.store(true, Ordering::Relaxed);
        });
        capture_until(&mut world, stop)
    });
    assert!(captures > 10);
    assert_eq!(world.names(), ["chat.db"]);
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn an_app_with_a_rollback_journal_that_does_not_wait_for_locks_has_no_error() {
    let mut world = World::new();
    let mut app = App::rollback(&world.db());
    app.insert(500);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            for _ in 0..300 {
                app.insert(1);
                std::thread::sleep(Duration::from_millis(2));
            }
            app.close();
            stop.store(true, Ordering::Relaxed);
        });
        capture_until(&mut world, stop)
    });
    world.capture();
    world.assert_stored_is_the_file();
}

/// Takes its time for every page.
struct Slow<'a>(&'a mut common::Store, Duration);

impl PageSink for Slow<'_> {
    fn begin(&mut self, page_size: u32, is_base: bool) -> std::io::Result<()> {
        self.0.begin(page_size, is_base)
    }

    fn page(&mut self, pgno: u32, image: &[u8], base: Option<&[u8]>) -> std::io::Result<()> {
        std::thread::sleep(self.1);
        self.0.page(pgno, image, base)
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.0.restart()
    }
}

#[test]
fn a_slow_read_of_the_whole_file_under_a_writer_gives_one_state() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(2000);
    app.run("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint = 20;");
    let stop = AtomicBool::new(false);
    let captured = std::thread::scope(|scope| {
        let stop = &stop;
        let writing = scope.spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                app.run(&format!(
                    "UPDATE t SET body = randomblob(1500) WHERE id = 1 + {rounds} * 37 % 1999;"
                ));
                std::thread::sleep(Duration::from_millis(1));
            }
            app.close();
            rounds
        });
        let mut store = std::mem::take(&mut world.store);
        let mut slow = Slow(&mut store, Duration::from_millis(2));
        let captured = world.live().capture(Build::on(0), &mut slow, &|| false);
        world.store = store;
        stop.store(true, Ordering::Relaxed);
        assert!(writing.join().unwrap() > 20, "the writer went on");
        captured
    });
    world.commit(&captured.unwrap(), &[]);
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn a_large_transaction_is_invisible_at_every_step_until_it_is_committed() {
    for end in ["ROLLBACK;", "COMMIT;"] {
        let mut world = World::new();
        let mut app = App::wal(&world.db());
        app.insert(300);
        world.capture();
        app.run("PRAGMA cache_size = 5; BEGIN;");
        for step in 0..40 {
            // The same pages again and again, written to the log in between: frames are overwritten in place.
            let parity = step % 3;
            app.run(&format!("UPDATE t SET body = randomblob(1500) WHERE id % 3 = {parity} AND id < 150;"));
            assert!(world.capture().unchanged, "step {step}");
        }
        app.run(end);
        assert_eq!(world.capture().unchanged, end == "ROLLBACK;");
        app.insert(1);
        assert_eq!(world.capture().gap, None);
        app.close();
        world.assert_stored_is_the_file();
    }
}

#[test]
fn an_app_that_opened_the_database_and_never_wrote_is_captured() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(5);
    app.close();
    // No frame yet: the index has neither page size nor number of pages.
    let mut app = App::open(&world.db());
    app.run("SELECT count(*) FROM t;");
    assert!(world.capture().is_base);
    world.assert_stored_is_the_file();
    app.insert(1);
    assert_eq!(world.capture().gap, None);
    // A database that is new altogether.
    drop(app);
    let mut world = World::new();
    let mut app = App::open(&world.db());
    app.run("PRAGMA journal_mode = WAL;");
    world.capture();
    app.run("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);");
    app.insert(3);
    world.capture();
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_log_kept_by_an_app_to_itself_is_captured_between_its_writes() {
    let mut world = World::new();
    App::wal(&world.db()).close();
    let mut app = App::open(&world.db());
    app.run("PRAGMA locking_mode = EXCLUSIVE; PRAGMA wal_autocheckpoint = 0;");
    for version in 1..5 {
        app.insert(20);
        app.run(&format!("PRAGMA user_version = {version};"));
        assert!(!world.names().contains(&"chat.db-shm".to_owned()));
        assert_eq!(world.capture().user_version, version);
        assert_eq!(world.live().look().unwrap().mode, Mode::AtRest);
        assert!(!world.live().look().unwrap().changed);
        if version == 3 {
            app.run("PRAGMA wal_checkpoint(PASSIVE);");
        }
    }
    app.close();
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn the_same_number_of_frames_in_another_log_is_not_the_place_where_we_stopped() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(50);
    app.run("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA user_version = 1; PRAGMA user_version = 2;");
    world.capture();
    world.restart();
    // We are down. The log is reset, and grows to as many frames, and further.
    app.insert(4);
    app.run("PRAGMA wal_checkpoint(RESTART); PRAGMA user_version = 3; PRAGMA user_version = 4;");
    assert_eq!(world.live().look().unwrap().gap, Some(GapReason::Restarted));
    assert_eq!(world.capture().user_version, 4);
    world.restart();
    app.run("PRAGMA wal_checkpoint(RESTART); PRAGMA user_version = 5; PRAGMA wal_checkpoint(RESTART);");
    app.run("PRAGMA user_version = 6; PRAGMA user_version = 7;");
    assert_eq!(world.capture().user_version, 7);
    app.close();
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn a_file_with_the_number_of_a_deleted_one_is_not_taken_for_it() {
    let mut world = World::new();
    for round in 1..40 {
        let mut app = App::wal(&world.db());
        app.run(&format!("PRAGMA user_version = {round};"));
        assert_eq!(world.capture().user_version, round);
        // Sometimes as if it had crashed, so that a log is there to be taken for the next one.
        if round % 2 == 0 {
            app.close();
        } else {
            app.kill();
        }
        for name in world.names() {
            std::fs::remove_file(world.db().with_file_name(name)).unwrap();
        }
    }
}

#[test]
fn a_spill_that_is_rolled_back_while_the_file_is_read_is_noticed() {
    let mut world = World::new();
    let mut app = App::rollback(&world.db());
    app.insert(1500);
    app.run("PRAGMA cache_size = 5;");
    let before = std::fs::read(world.db()).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let mut store = std::mem::take(&mut world.store);
    let app = std::cell::RefCell::new(app);
    // Asked before every piece of the file: during the first attempts the app spills and takes it back.
    let count = std::cell::Cell::new(0);
    let cancelled = || {
        count.set(count.get() + 1);
        if count.get() == 2 {
            app.borrow_mut().run("BEGIN; UPDATE t SET body = randomblob(1500);");
        } else if count.get() == 3 {
            app.borrow_mut().run("ROLLBACK;");
        }
        false
    };
    let capture = world.live().capture(Build::on(0), &mut store, &cancelled).unwrap();
    world.store = store;
    world.commit(&capture, &[]);
    assert!(count.get() > 3, "there was another attempt");
    assert!(world.stored_bytes() == before && before == std::fs::read(world.db()).unwrap());
}

#[test]
fn a_storm_of_gaps_waits_and_says_why() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(200);
    let mut scans = 0;
    for round in 0..100 {
        app.insert(1);
        app.run("PRAGMA wal_checkpoint(TRUNCATE);");
        let look = world.live().look().unwrap();
        assert!(look.gap.is_some(), "round {round}");
        if !look.changed {
            continue;
        }
        scans += 1;
        // A read of the whole file that takes a fifth of a second, so the next one is due after ten.
        let newest = world.live().table_seq().unwrap_or(0);
        let mut store = std::mem::take(&mut world.store);
        let slow = || {
            std::thread::sleep(Duration::from_millis(200));
            false
        };
        let capture = world.live().capture(Build::on(newest), &mut store, &slow).unwrap();
        world.store = store;
        assert!(capture.gap.is_some());
        world.commit(&capture, &[]);
    }
    assert!(scans < 10, "{scans} reads of the whole file for 100 gaps");
}

/// Rewrites a log: its first words, and every checksum, in the other byte order if asked.
fn rewrite_log(log: &mut [u8], magic: u32, version: u32) {
    log[..4].copy_from_slice(&magic.to_be_bytes());
    log[4..8].copy_from_slice(&version.to_be_bytes());
    let word = if magic & 1 == 1 { u32::from_be_bytes } else { u32::from_le_bytes };
    let (mut a, mut b) = (0_u32, 0_u32);
    let mut add = |bytes: &[u8]| {
        for pair in bytes.chunks_exact(8) {
            a = a.wrapping_add(word(pair[..4].try_into().unwrap())).wrapping_add(b);
            b = b.wrapping_add(word(pair[4..].try_into().unwrap())).wrapping_add(a);
        }
        let sum = u64::from(a) << 32 | u64::from(b);
        sum.to_be_bytes()
    };
    let sum = add(&log[..24]);
    log[24..32].copy_from_slice(&sum);
    let salt: [u8; 8] = log[16..24].try_into().unwrap();
    let page_size = u32::from_be_bytes(log[8..12].try_into().unwrap()) as usize;
    for frame in log[32..].chunks_exact_mut(24 + page_size) {
        if frame[8..16] != salt {
            break;
        }
        add(&frame[..8]);
        let sum = add(&frame[24..]);
        frame[16..24].copy_from_slice(&sum);
    }
}

/// A database with a log left behind by a crash, whose first word and version are these.
fn left_behind(magic: u32, version: u32) -> World {
    let world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(5);
    app.run("PRAGMA wal_checkpoint(TRUNCATE);");
    app.insert(30);
    app.kill();
    let wal = world.db().with_file_name("chat.db-wal");
    let mut log = std::fs::read(&wal).unwrap();
    rewrite_log(&mut log, magic, version);
    std::fs::write(&wal, log).unwrap();
    std::thread::sleep(Duration::from_millis(25));
    world
}

#[test]
fn checksums_of_both_byte_orders_are_read() {
    for magic in [0x377f_0682, 0x377f_0683] {
        let mut world = left_behind(magic, 3_007_000);
        world.capture();
        // As SQLite recovers it.
        App::open(&world.db()).run("SELECT count(*) FROM t; PRAGMA wal_checkpoint(TRUNCATE);");
        world.assert_stored_is_the_file();
        let newest = world.capture();
        assert!(newest.unchanged && newest.page_count > 12);
    }
}

#[test]
fn a_log_of_a_version_that_is_not_known_is_not_read_as_if_it_were_none() {
    let mut world = left_behind(0x377f_0682, 3_007_001);
    let refused = world.try_capture();
    assert!(
        matches!(&refused, Err(CaptureError::Unsupported { reason }) if reason.contains("version")),
        "{refused:?}"
    );
    std::fs::remove_file(world.db().with_file_name("chat.db-wal")).unwrap();
    let second = world.db().with_file_name("chat.db-wal2");
    std::fs::write(&second, b"a second log").unwrap();
    assert!(matches!(world.try_capture(), Err(CaptureError::Unsupported { .. })));
    // Closed cleanly, there is nothing in it.
    std::fs::write(&second, []).unwrap();
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn on_a_network_file_system_an_open_database_is_captured_when_nobody_wrote_for_a_while() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(20);
    assert_eq!(world.live().look().unwrap().caution, None);
    world.live().be_cautious();
    for version in 1..3 {
        app.insert(5);
        app.run(&format!("PRAGMA user_version = {version};"));
        let capture = world.capture();
        assert_eq!((capture.user_version, capture.is_base), (version, version == 1));
        let look = world.live().look().unwrap();
        assert_eq!((look.mode, look.changed), (Mode::AtRest, false));
        assert!(look.caution.is_some());
        assert!(world.capture().unchanged);
    }
    // It is written without a pause: no state is taken.
    app.insert(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                app.insert(1);
                std::thread::sleep(Duration::from_millis(200));
            }
            app.close();
        });
        let refused = world.try_capture();
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(refused, Err(CaptureError::NotQuiet { .. })), "{refused:?}");
    });
    world.capture();
    world.assert_stored_is_the_file();
}
