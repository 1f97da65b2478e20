//! Captures on top of older entries, patch bases, and collections.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use chatkeep_sqlite::{Build, CaptureError, Collection};
use common::{App, State, World, digest_of};

#[test]
fn app_process() {
    common::app_process();
}

/// A database of about 1,000 pages that is followed, captured once. Nothing of it is in its log.
fn world() -> (World, App) {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(2000);
    app.run("PRAGMA wal_checkpoint(TRUNCATE);");
    world.capture();
    (world, app)
}

/// Changes pages in place: the row of this number, and ten after it.
fn update(app: &mut App, id: u32) {
    app.run(&format!("UPDATE t SET body = randomblob(1500) WHERE id BETWEEN {id} AND {};", id + 10));
}

#[test]
fn the_image_of_before_comes_along_with_every_page_that_had_one() {
    let (mut world, mut app) = world();
    for round in 0..3 {
        update(&mut app, 100);
        world.live().look().unwrap();
        // The second time it is in the log only, the third time the log was reset.
        let capture = world.capture();
        assert!(capture.pages > 5, "{capture:?}");
        assert_eq!((capture.bases, capture.pages), (capture.pages, capture.changed_pages), "round {round}");
        if round == 1 {
            app.run("PRAGMA wal_checkpoint(RESTART);");
        }
    }
    // What is new had no image.
    app.insert(200);
    let grown = world.capture();
    assert!(grown.bases > 0 && grown.bases < 10 && grown.pages > 50, "{grown:?}");
}

#[test]
fn after_a_restart_images_are_found_in_the_part_of_the_log_read_before() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    world.capture();
    world.restart();
    update(&mut app, 100);
    let capture = world.capture();
    assert!(capture.gap.is_none() && capture.bases == capture.pages, "{capture:?}");
}

#[test]
fn an_image_that_was_overwritten_before_the_look_is_not_taken_for_the_one_of_before() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    app.run("PRAGMA wal_checkpoint(PASSIVE);");
    let capture = world.capture();
    // The sink compares every base with the parent.
    assert_eq!((capture.bases, capture.gap), (0, None));
}

#[test]
fn a_frame_that_was_overwritten_is_not_taken_for_the_one_of_before() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    world.capture();
    // The end of this log is read after its beginning was overwritten by the next one.
    update(&mut app, 300);
    update(&mut app, 100);
    app.run("PRAGMA wal_checkpoint(RESTART);");
    update(&mut app, 500);
    let capture = world.capture();
    assert_eq!(capture.gap, None);
    assert!(capture.bases > 0 && capture.bases < capture.pages, "{capture:?}");
}

#[test]
fn a_capture_on_an_older_entry_has_what_changed_since() {
    let (mut world, mut app) = world();
    let mut increments = 0;
    for round in 0..6 {
        update(&mut app, 100 + 200 * round);
        increments += world.capture().pages;
    }
    update(&mut app, 5);
    app.insert(3);
    let span = world.build(1, &[]);
    assert_eq!((span.parent, span.is_base, span.gap), (1, false, None));
    assert!(span.pages > span.changed_pages && span.pages <= increments + span.changed_pages, "{span:?}");
    assert!(span.pages < 200, "{span:?}");
    // Nothing that did not change counts as changed by it.
    assert!(world.capture().unchanged);
    update(&mut app, 1900);
    let newest = world.seq;
    let next = world.build(newest, &[]);
    assert!(next.pages < 12, "{next:?}");
    let again = world.build(1, &[]);
    assert!(again.pages > span.pages && again.pages <= span.pages + next.pages + 2, "{span:?} {again:?}");
}

#[test]
fn clean_pages_are_found_in_file_and_log_whatever_was_checkpointed() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    world.capture();
    app.run("PRAGMA wal_checkpoint(PASSIVE);");
    update(&mut app, 300);
    world.capture();
    update(&mut app, 500);
    let span = world.build(1, &[]);
    assert!(span.gap.is_none() && span.pages > 15);
    // Once more, as after a restart of the daemon.
    world.restart();
    assert_eq!(world.build(1, &[]).pages, span.pages);
    // And when the app has closed it.
    app.close();
    assert_eq!(world.build(1, &[]).pages, span.pages);
}

#[test]
fn clean_pages_are_found_in_a_log_left_behind() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    app.kill();
    std::thread::sleep(std::time::Duration::from_millis(25));
    world.capture();
    let span = world.build(1, &[]);
    assert!(span.gap.is_none() && span.pages > 5 && span.changed_pages == 0, "{span:?}");
    let base = world.build(0, &[]);
    assert!(base.is_base && base.pages > 900);
}

#[test]
fn a_new_base_has_every_page_and_leaves_the_last_changes_alone() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    let second = world.capture();
    let base = world.build(0, &[]);
    assert!(base.is_base && base.parent == 0 && base.gap.is_none());
    assert_eq!((base.pages, base.changed_pages, base.unchanged), (base.page_count, 0, true));
    update(&mut app, 100);
    let span = world.build(1, &[]);
    assert!(!span.is_base && span.pages <= second.pages + 2, "{span:?}");
    app.close();
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn after_a_gap_a_capture_on_an_older_entry_has_what_changed_since_that_entry() {
    let (mut world, mut app) = world();
    for id in [100, 300, 500] {
        update(&mut app, id);
        world.capture();
    }
    update(&mut app, 700);
    for _ in 0..2 {
        app.run("PRAGMA wal_checkpoint(TRUNCATE);");
        update(&mut app, 900);
    }
    let span = world.build(2, &[]);
    assert!(span.gap.is_some() && !span.is_base && span.parent == 2);
    assert!(span.pages > span.changed_pages && span.pages < 100, "{span:?}");
    // A base after a gap, too.
    for _ in 0..3 {
        update(&mut app, 900);
        app.run("PRAGMA wal_checkpoint(TRUNCATE);");
    }
    let base = world.build(0, &[]);
    assert!(base.gap.is_some() && base.is_base && base.pages == base.page_count);
    // The table goes on.
    assert!(world.build(2, &[]).pages < 150);
}

#[test]
fn a_database_that_shrank_and_grew_since_the_parent_is_the_same_again() {
    let (mut world, mut app) = world();
    app.run("DELETE FROM t WHERE id > 50; VACUUM;");
    let small = world.capture();
    app.insert(1000);
    world.capture();
    assert!(world.build(1, &[]).page_count > small.page_count);
    app.run("DELETE FROM t WHERE id > 20; VACUUM;");
    world.build(2, &[]);
    world.build(1, &[]);
    app.close();
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn images_at_a_mark_come_along_with_a_capture_on_it() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    world.build(1, &[1]);
    update(&mut app, 300);
    world.build(2, &[1, 2]);
    update(&mut app, 100);
    world.build(3, &[1, 2]);
    // Every page changed since entry 1 has its image of then, however often it changed.
    let on_one = world.build(1, &[1, 2]);
    assert!(on_one.pages > 10, "{on_one:?}");
    assert_eq!(on_one.bases, on_one.pages);
    let on_two = world.build(2, &[2]);
    assert_eq!((on_two.bases, on_two.pages), (on_one.bases, on_one.pages));
    // Entry 1 is no mark any more; what changed for the first time now is still at hand.
    update(&mut app, 1500);
    let unmarked = world.build(1, &[2]);
    assert!(unmarked.bases >= unmarked.changed_pages / 2 && unmarked.bases < unmarked.pages, "{unmarked:?}");
    // After a restart they are lost, and nothing else.
    world.restart();
    let lost = world.build(2, &[2]);
    assert_eq!((lost.bases, lost.gap), (0, None));
}

#[test]
fn a_parent_from_before_the_table_makes_a_base_and_one_from_the_future_an_error() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    world.capture();
    world.live().forget().unwrap();
    let base = world.capture();
    assert!(base.is_base && base.parent == 0);
    let base = world.build(2, &[]);
    assert!(base.is_base && base.gap.is_none() && base.pages == base.page_count);
    let future = Build::on(world.seq + 1);
    let refused = world.live().capture(future, &mut common::Store::default(), &|| false);
    assert!(matches!(refused, Err(CaptureError::Io { .. })));
    world.capture();
}

#[test]
fn an_aborted_capture_on_an_older_entry_changes_nothing() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    world.capture();
    update(&mut app, 300);
    let span = world.try_build(1, None).unwrap();
    world.live().abort();
    let next = world.capture();
    assert_eq!((next.changed_pages, next.bases), (span.changed_pages, next.pages));
    assert_eq!(world.build(1, &[]).pages, span.pages);
}

#[test]
fn an_entry_on_an_older_one_that_was_kept_is_committed_after_a_crash_and_leaves_the_last_changes_alone() {
    let (mut world, mut app) = world();
    update(&mut app, 100);
    world.capture();
    update(&mut app, 300);
    let span = world.try_build(1, None).unwrap();
    world.live().prepare(3).unwrap();
    world.seq += 1;
    world.keep(&span);
    world.restart_at(3);
    let on_two = world.build(2, &[]);
    assert_eq!((on_two.pages, on_two.changed_pages), (span.changed_pages, 0));
}

/// Collects all that is there, a slice at a time, and does something between.
fn collect(
    world: &mut World,
    parent: u64,
    slice: u64,
    between: &mut dyn FnMut(&mut World),
) -> (Collection, State) {
    let (mut collection, mut pages) = (Collection::new(parent), State::new());
    while !world.try_collect(&mut collection, slice, &mut pages).unwrap() {
        between(world);
    }
    (collection, pages)
}

#[test]
fn a_base_collected_in_slices_between_captures_is_whole() {
    let (mut world, mut app) = world();
    let mut slices = 0;
    let (collection, pages) = collect(&mut world, 0, 256 << 10, &mut |world| {
        slices += 1;
        // Behind and before the place, growing, and, now and then, not captured yet.
        update(&mut app, 50 + slices * 100);
        app.insert(1);
        if slices % 3 != 0 {
            assert!(world.capture().pages < 60);
        }
        if slices % 4 == 0 {
            app.run("PRAGMA wal_checkpoint(RESTART);");
        }
    });
    assert!(slices > 10);
    update(&mut app, 1000);
    let base = world.try_build(0, Some((&collection, &pages))).unwrap();
    assert!(base.is_base && base.gap.is_none() && base.pages == base.page_count);
    // Most was not read again.
    assert!(base.bytes_read < 4 << 20, "{base:?}");
    world.commit(&base, &[]);
    app.close();
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn a_page_that_had_changed_when_its_slice_was_read_and_changed_back_is_given_by_the_capture() {
    let (mut world, mut app) = world();
    app.run("UPDATE t SET body = zeroblob(1500) WHERE id = 100;");
    world.capture();
    app.run("UPDATE t SET body = randomblob(1500) WHERE id = 100;");
    world.live().look().unwrap();
    let (collection, pages) = collect(&mut world, 0, 8 << 20, &mut |_| {});
    app.run("UPDATE t SET body = zeroblob(1500) WHERE id = 100;");
    assert!(world.capture().unchanged);
    let base = world.try_build(0, Some((&collection, &pages))).unwrap();
    assert!(base.changed_pages == 0 && pages.len() + 1 == base.pages as usize, "{base:?} {}", pages.len());
    world.commit(&base, &[]);
}

#[test]
fn a_collection_survives_a_gap_and_a_capture_that_reads_the_whole_file() {
    let (mut world, mut app) = world();
    let mut slices = 0;
    let (collection, pages) = collect(&mut world, 0, 512 << 10, &mut |world| {
        slices += 1;
        for _ in 0..2 {
            update(&mut app, 50 + slices * 100);
            app.run("PRAGMA wal_checkpoint(TRUNCATE);");
        }
        if slices % 3 == 0 {
            assert!(world.capture().gap.is_some());
        }
    });
    for _ in 0..2 {
        update(&mut app, 1500);
        app.run("PRAGMA wal_checkpoint(TRUNCATE);");
    }
    let base = world.try_build(0, Some((&collection, &pages))).unwrap();
    assert!(base.is_base && base.gap.is_some() && base.pages == base.page_count, "{base:?}");
    world.commit(&base, &[]);
}

#[test]
fn a_span_is_collected_with_its_images_of_before() {
    let (mut world, mut app) = world();
    for round in 0..5 {
        update(&mut app, 100 + 200 * round);
        let newest = world.seq;
        world.build(newest, &[1]);
    }
    let (collection, pages) = collect(&mut world, 1, 20 << 10, &mut |_| {});
    assert!(world.store.bases > 50);
    let span = world.try_build(1, Some((&collection, &pages))).unwrap();
    assert!(span.pages as usize == pages.len() && span.bytes_read == 0 && !span.is_base, "{span:?}");
    world.commit(&span, &[]);
}

#[test]
fn a_collection_ends_with_its_table() {
    let (mut world, _app) = world();
    let (mut collection, mut pages) = (Collection::new(0), State::new());
    assert!(!world.try_collect(&mut collection, 4096, &mut pages).unwrap());
    world.live().forget().unwrap();
    let outdated = world.try_collect(&mut collection, 4096, &mut pages);
    assert!(matches!(outdated, Err(CaptureError::Outdated)));
    world.capture();
    let outdated = world.try_collect(&mut collection, 4096, &mut pages);
    assert!(matches!(outdated, Err(CaptureError::Outdated)));
    let build = Build { parent: 0, collected: Some(&collection) };
    let mut store = common::Store::default();
    let outdated = world.live().capture(build, &mut store, &|| false);
    assert!(matches!(outdated, Err(CaptureError::Outdated)));
    // For another parent it is of no use.
    let collection = Collection::new(1);
    let build = Build { parent: 0, collected: Some(&collection) };
    assert!(matches!(world.live().capture(build, &mut store, &|| false), Err(CaptureError::Io { .. })));
}

#[test]
fn pages_change_while_they_are_read_and_the_capture_is_one_state() {
    let (mut world, app) = world();
    let mut app = Some(app);
    for round in 0..10 {
        // Another thread writes and checkpoints while the base is read.
        let mut writer = app.take().unwrap();
        let base = std::thread::scope(|scope| {
            let writing = scope.spawn(move || {
                for step in 0..30 {
                    update(&mut writer, 1 + (step * 67 + round * 31) % 1900);
                    if step % 5 == 4 {
                        writer.run("PRAGMA wal_checkpoint(RESTART);");
                    }
                }
                writer
            });
            let base = world.try_build(0, None);
            app = Some(writing.join().unwrap());
            base
        });
        match base {
            Ok(base) => world.commit(&base, &[]),
            Err(error) => assert!(matches!(error, CaptureError::NotQuiet { .. }), "{error}"),
        }
        world.capture();
    }
    app.unwrap().close();
    world.capture();
    world.assert_stored_is_the_file();
    for (seq, entry) in &world.store.entries {
        assert_eq!(digest_of(&world.store.state_at(*seq)), entry.state_digest, "entry {seq}");
    }
}
