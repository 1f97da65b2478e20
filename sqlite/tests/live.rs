//! A live database is followed through all that an app may do to it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use chatkeep_sqlite::{GapReason, Kind, Mode};
use common::{App, World};

#[test]
fn app_process() {
    common::app_process();
}

#[test]
fn the_first_capture_is_a_base_and_later_ones_bring_what_changed() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(50);
    let base = world.capture();
    assert_eq!((base.is_base, base.gap, base.kind), (true, Some(GapReason::FirstSight), Kind::Plain));
    app.insert(1);
    let look = world.live().look().unwrap();
    assert_eq!((look.commits, look.gap, look.mode, look.changed), (1, None, Mode::Following, true));
    let increment = world.capture();
    assert!(!increment.is_base && increment.changed_pages < 6 && increment.gap.is_none());
    assert!(!world.live().look().unwrap().changed);
    assert!(world.capture().unchanged);
    assert_eq!(world.names(), ["chat.db", "chat.db-shm", "chat.db-wal"]);
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_capture_is_as_new_as_the_last_commit_without_any_look() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    world.capture();
    for version in 1..20 {
        app.run(&format!("PRAGMA user_version = {version};"));
        assert_eq!(world.capture().user_version, version);
    }
}

#[test]
fn one_reset_of_the_log_is_survived_by_counting() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(100);
    world.capture();
    app.insert(1);
    app.run("PRAGMA wal_checkpoint(PASSIVE);");
    app.run("PRAGMA user_version = 5;");
    let look = world.live().look().unwrap();
    assert_eq!((look.commits, look.gap), (2, None));
    assert_eq!(world.capture().user_version, 5);
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_reset_whose_first_transaction_is_not_committed_yet_is_survived() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(400);
    world.capture();
    app.insert(2);
    app.run("PRAGMA wal_checkpoint(RESTART);");
    app.run("PRAGMA cache_size = 5; BEGIN; UPDATE t SET body = randomblob(1500) WHERE id < 30;");
    let look = world.live().look().unwrap();
    assert_eq!((look.commits, look.gap), (1, None));
    assert!(world.capture().changed_pages > 0);
    app.run("COMMIT;");
    let look = world.live().look().unwrap();
    assert_eq!((look.commits, look.gap), (1, None));
    world.capture();
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn commits_that_fill_whole_sectors_are_counted_once() {
    let mut world = World::new();
    App::wal(&world.db()).close();
    let mut app = App::open(std::path::Path::new(&format!("file:{}?psow=0", world.db().display())));
    app.run("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;");
    app.run("PRAGMA user_version = 1;");
    app.insert(300);
    world.capture();
    app.run("PRAGMA user_version = 2;");
    app.run("PRAGMA user_version = 3;");
    app.run("PRAGMA wal_checkpoint(RESTART);");
    app.run("PRAGMA user_version = 4;");
    let look = world.live().look().unwrap();
    assert_eq!((look.commits, look.gap), (3, None));
    assert_eq!(world.capture().user_version, 4);
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn two_resets_unseen_are_a_gap_and_the_gap_is_read_whole() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(100);
    world.capture();
    for _ in 0..2 {
        app.insert(30);
        app.run("PRAGMA wal_checkpoint(RESTART);");
    }
    app.insert(1);
    assert_eq!(world.live().look().unwrap().gap, Some(GapReason::Missed));
    let capture = world.capture();
    assert!(!capture.is_base && capture.gap == Some(GapReason::Missed));
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_log_truncated_unseen_is_a_gap() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    world.capture();
    app.insert(3);
    app.run("PRAGMA wal_checkpoint(TRUNCATE);");
    assert_eq!(world.live().look().unwrap().gap, Some(GapReason::Missed));
    world.capture();
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_log_truncated_after_it_was_seen_is_no_gap() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    world.capture();
    for _ in 0..3 {
        app.insert(3);
        world.live().look().unwrap();
        app.run("PRAGMA wal_checkpoint(TRUNCATE);");
    }
    assert_eq!(world.live().look().unwrap().gap, None);
    world.capture();
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_counter_of_an_index_made_anew_proves_nothing() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(1);
    world.capture();
    app.kill();
    // As many commits as the old index had counted, and the log reset in between.
    let mut app = App::open(&world.db());
    app.run("PRAGMA user_version = 1;");
    app.run("PRAGMA wal_checkpoint(RESTART);");
    for version in 2..5 {
        app.run(&format!("PRAGMA user_version = {version};"));
    }
    assert!(world.live().look().unwrap().gap.is_some());
    assert_eq!(world.capture().user_version, 4);
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn closing_reads_the_log_to_its_end_and_opening_again_goes_on() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    world.capture();
    for _ in 0..10 {
        app.insert(2);
        app.close();
        let look = world.live().look().unwrap();
        assert_eq!((look.mode, look.gap, look.commits), (Mode::AtRest, None, 1));
        assert!(world.capture().changed_pages > 0);
        world.assert_stored_is_the_file();
        assert!(!world.live().look().unwrap().changed);
        app = App::wal(&world.db());
        app.insert(2);
        let look = world.live().look().unwrap();
        assert_eq!((look.mode, look.gap, look.commits), (Mode::Following, None, 1));
    }
}

#[test]
fn whatever_happens_while_nobody_looks_is_captured() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    world.capture();
    for round in 0..4 {
        for _ in 0..=round {
            app.insert(2);
            app.close();
            app = App::wal(&world.db());
        }
        app.insert(1);
        if round % 2 == 1 {
            app.run("PRAGMA journal_mode = DELETE;");
            app.insert(5);
        }
        app.close();
        world.capture();
        world.assert_stored_is_the_file();
        app = App::wal(&world.db());
    }
}

#[test]
fn a_restart_of_ours_goes_on_where_it_stopped() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(20);
    world.capture();
    world.restart();
    assert_eq!(world.live().table_seq(), Some(1));
    app.insert(1);
    let look = world.live().look().unwrap();
    assert_eq!((look.gap, look.commits), (None, 1));
    world.capture();
    world.restart();
    app.run("PRAGMA wal_checkpoint(TRUNCATE);");
    app.insert(1);
    assert_eq!(world.live().look().unwrap().gap, Some(GapReason::Restarted));
    assert!(!world.capture().is_base);
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_log_left_behind_by_a_crash_is_captured_and_followed_on() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(5);
    app.run("PRAGMA user_version = 7;");
    app.kill();
    std::thread::sleep(std::time::Duration::from_millis(25));
    let before = std::fs::read(world.db()).unwrap();
    let capture = world.capture();
    assert_eq!((capture.user_version, capture.is_base), (7, true));
    assert_eq!(world.live().look().unwrap().mode, Mode::AtRest);
    assert!(before == std::fs::read(world.db()).unwrap(), "we only read");
    let mut app = App::open(&world.db());
    app.run("PRAGMA user_version = 8;");
    let look = world.live().look().unwrap();
    assert_eq!((look.gap, look.commits, look.mode), (None, 1, Mode::Following));
    world.capture();
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_transaction_that_was_spilled_and_rolled_back_is_never_seen() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(20);
    world.capture();
    app.run("PRAGMA cache_size = 5; BEGIN; UPDATE t SET body = randomblob(1500);");
    assert!(world.capture().unchanged);
    app.run("ROLLBACK;");
    assert!(world.capture().unchanged);
    app.insert(1);
    world.capture();
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_database_that_shrinks_and_grows_is_the_same_in_the_store() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(200);
    let before = world.capture().page_count;
    app.run("DELETE FROM t WHERE id > 10; VACUUM;");
    let after = world.capture().page_count;
    assert!(after < before / 4);
    app.run("VACUUM;");
    app.insert(300);
    app.run("DELETE FROM t WHERE id % 2 = 0;");
    app.insert(20);
    assert_eq!(world.capture().gap, None);
    app.close();
    world.assert_stored_is_the_file();
}

#[test]
fn small_and_large_pages_and_auto_vacuum_are_followed() {
    for (page_size, vacuum) in [(512, 0), (1024, 1), (65536, 2)] {
        let mut world = World::new();
        let mut app = App::open(&world.db());
        app.run(&format!("PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = {vacuum}; VACUUM;"));
        app.close();
        let mut app = App::wal(&world.db());
        app.insert(40);
        assert_eq!(world.capture().page_size, page_size);
        app.run("DELETE FROM t WHERE id > 5; PRAGMA incremental_vacuum;");
        app.insert(3);
        assert_eq!(world.capture().gap, None);
        app.close();
        world.assert_stored_is_the_file();
    }
}

#[test]
fn an_aborted_capture_is_given_again() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(9);
    assert!(world.try_capture().unwrap().is_base);
    world.live().abort();
    assert!(world.capture().is_base);
    app.insert(1);
    let lost = world.try_capture().unwrap();
    world.live().abort();
    let again = world.capture();
    assert_eq!((again.changed_pages, again.gap), (lost.changed_pages, None));
    app.close();
    world.assert_stored_is_the_file();
}

/// A crash between keeping an entry and committing it, for small and for large changes, and for a base.
#[test]
fn an_entry_kept_but_not_committed_is_committed_after_a_crash() {
    for rows in [2, 3000] {
        let mut world = World::new();
        let mut app = App::wal(&world.db());
        app.insert(30);
        for seq in [1, 2] {
            let kept = world.try_capture().unwrap();
            world.live().prepare(seq).unwrap();
            world.seq = seq;
            world.keep(&kept);
            world.restart_at(seq);
            assert_eq!(world.live().table_seq(), Some(seq));
            assert!(world.try_capture().unwrap().unchanged);
            app.insert(rows);
        }
        let capture = world.capture();
        assert!(!capture.is_base && capture.changed_pages > 0);
        app.close();
        world.assert_stored_is_the_file();
    }
}

/// A crash after preparing an entry that was not kept: the table is as before, and the change is captured again.
#[test]
fn an_entry_prepared_but_not_kept_leaves_no_trace() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(30);
    world.capture();
    app.insert(2);
    let lost = world.try_capture().unwrap();
    world.live().prepare(2).unwrap();
    world.restart_at(1);
    assert_eq!(world.live().table_seq(), Some(1));
    assert_eq!(world.capture().changed_pages, lost.changed_pages);
    // Nor does it come back when the log stands at this number for another reason.
    world.restart_at(2);
    assert!(world.try_capture().unwrap().unchanged);
    // A table of another place of the log is said to be one.
    world.restart_at(7);
    assert_eq!(world.live().table_seq(), Some(2));
    world.live().forget().unwrap();
    assert_eq!(world.live().table_seq(), None);
    assert!(world.capture().is_base);
}

#[test]
fn a_log_continued_without_its_index_after_a_crash_is_not_taken_as_read() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(5);
    world.capture();
    app.kill();
    // With an index in its own memory, so that the one beside the log stays as it was.
    let mut app = App::open(&world.db());
    app.run("PRAGMA locking_mode = EXCLUSIVE;");
    app.run("PRAGMA user_version = 3;");
    app.close();
    assert!(!world.names().contains(&"chat.db-wal".to_owned()));
    assert!(world.live().look().unwrap().gap.is_some());
    assert_eq!(world.capture().user_version, 3);
    world.assert_stored_is_the_file();
}
