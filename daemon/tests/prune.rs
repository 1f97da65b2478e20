//! Points are forgotten and deleted, while the power goes off, the store lies, and clocks are wrong: what is offered
//! restores, and what is to stay is there.

#![allow(clippy::unwrap_used, reason = "tests")]

mod small_world;

use chatkeep_format::{ChunkRef, FileOp, FileRecord, FileSet, FolderRecord, ObjectName};
use chatkeep_ipc::Error;
use chatkeep_planner::{Level, RetentionPolicy};
use chatkeep_store::chaos::{Fault, LastCall, Operation};
use chatkeep_store::{ErrorKind, Store, StoreKey};
use small_world::{BEGIN_US, DAY_US, HOUR_US, NOTHING, World};

const WEEK_US: i64 = 7 * DAY_US;

/// Two days with a few entries; the second begins with a day's entry.
async fn two_days() -> World {
    let mut world = World::new();
    world.write(&[Level::Base, Level::Entry, Level::Entry, Level::Dozen, Level::Entry], BEGIN_US).await;
    world.write(&[Level::Day, Level::Entry, Level::Dozen, Level::Entry], BEGIN_US + DAY_US).await;
    world
}

/// The same, all but the newest point and what it needs forgotten a week ago, and two entries since.
async fn ripe() -> (World, i64) {
    let mut world = two_days().await;
    let marked_at_us = BEGIN_US + 2 * DAY_US;
    world.prune(NOTHING, marked_at_us).await.unwrap();
    world.write(&[Level::Entry, Level::Entry], marked_at_us + HOUR_US).await;
    (world, marked_at_us + WEEK_US)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_is_not_offered_and_goes_a_week_and_two_entries_later() {
    let mut world = two_days().await;
    let before = world.objects().await;
    let marked_at_us = BEGIN_US + 2 * DAY_US;
    let report = world.prune(NOTHING, marked_at_us).await.unwrap();
    assert_eq!((report.newly_forgotten, report.deleted_objects), (5, 0));
    assert_eq!(report.points.iter().map(|point| point.seq).collect::<Vec<_>>(), [7, 5, 4, 3, 2]);
    assert!(report.points.iter().all(|point| point.until_us == marked_at_us + WEEK_US && point.bytes > 0));
    assert_eq!(world.offered().await, [1, 6, 8, 9]);
    assert_eq!(world.objects().await, before, "nothing is deleted when it is forgotten");

    // a week alone is not enough, nor are two entries
    world.prune(NOTHING, marked_at_us + 2 * WEEK_US).await.unwrap();
    world.write(&[Level::Entry, Level::Entry], marked_at_us + HOUR_US).await;
    world.prune(NOTHING, marked_at_us + WEEK_US - 1).await.unwrap();
    assert!(world.objects().await.is_superset(&before));

    let report = world.prune(NOTHING, marked_at_us + WEEK_US).await.unwrap();
    assert_eq!((report.deleted_points, report.deleted_objects), (5, 9));
    assert_eq!(world.entries().await, [1, 6, 8, 9, 10, 11]);
    assert_eq!(world.assert_all_offered_restore("at the end").await, [1, 6, 8, 9, 10, 11]);
    let running = world.start().await;
    assert_eq!(running.catalogue.prune_facts(&world.archive().id).waiting_bytes, report.waiting_bytes);
    assert!(running.catalogue.forgotten(&world.archive().id).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_it_all_and_changes_nothing() {
    let (world, now_us) = ripe().await;
    let (offered, objects) = (world.offered().await, world.objects().await);
    let running = world.start().await;
    let marks = running.catalogue.marks(&world.archive().id);
    let report = world.prune_with(&running, NOTHING, now_us, true).await.unwrap();
    assert_eq!((report.deleted_points, report.deleted_objects, report.newly_forgotten), (5, 9, 0));
    let ends: Vec<_> = report.points.iter().map(|point| (point.seq, point.until_us)).collect();
    assert_eq!(ends, [(7, 0), (5, 0), (4, 0), (3, 0), (2, 0)]);
    assert_eq!(running.catalogue.marks(&world.archive().id), marks);
    drop(running);
    assert_eq!((world.offered().await, world.objects().await), (offered, objects));
    assert_eq!(world.prune(NOTHING, now_us).await.unwrap().deleted_objects, 9);
}

/// Cuts the power at every store call of a prune that deletes, once before and once after the call took effect.
#[tokio::test(flavor = "multi_thread")]
async fn a_prune_survives_a_crash_at_any_store_call() {
    let (world, now_us) = ripe().await;
    let whole = world.copy().await;
    let running = whole.start().await;
    let first = whole.store.calls();
    whole.prune_with(&running, NOTHING, now_us, false).await.unwrap();
    let calls = whole.store.calls() - first;
    let (left, offered) = (whole.objects().await, {
        drop(running);
        whole.offered().await
    });
    assert!(calls >= 12, "a listing, looks at the newest entry and nine deletions, {calls} calls");
    for crash_at in 0..calls {
        for last_call in [LastCall::IsLost, LastCall::Lands] {
            let world = world.copy().await;
            let running = world.start().await;
            let when = format!("after a crash at call {crash_at}, {last_call:?}");
            world.store.crash_at_call_where(world.store.calls() + crash_at, last_call);
            world.prune_with(&running, NOTHING, now_us, false).await.expect_err("the power went off");
            drop(running);
            world.store.power_on();
            let found = world.assert_all_offered_restore(&when).await;
            assert!(offered.iter().all(|seq| found.contains(seq)), "{when}: only {found:?} are offered");
            assert!(world.objects().await.is_superset(&left), "{when}");

            // a new machine that looks just now finds only what restores, too
            let other = world.copy().await;
            other.lose_cache();
            let found = other.assert_all_offered_restore(&format!("on a new machine {when}")).await;
            assert!(offered.iter().all(|seq| found.contains(seq)), "{when}: only {found:?} on a new machine");

            world.prune(NOTHING, now_us).await.unwrap();
            assert_eq!(world.objects().await, left, "{when}");
            assert_eq!(world.assert_all_offered_restore(&when).await, offered);
            let catalogue = world.start().await.catalogue;
            assert!(catalogue.forgotten(&world.archive().id).is_empty(), "{when}");
            assert!(catalogue.marks(&world.archive().id).is_empty(), "{when}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_points_are_forgotten_costs_nothing() {
    let world = two_days().await;
    let running = world.start().await;
    let first = world.store.calls();
    world.prune_with(&running, NOTHING, BEGIN_US + 2 * DAY_US, true).await.unwrap();
    let calls = world.store.calls() - first;
    drop(running);
    for crash_at in 0..calls {
        let world = world.copy().await;
        let running = world.start().await;
        world.store.crash_at_call_where(world.store.calls() + crash_at, LastCall::IsLost);
        world.prune_with(&running, NOTHING, BEGIN_US + 2 * DAY_US, false).await.expect_err("no power");
        drop(running);
        world.store.power_on();
        assert_eq!(world.assert_all_offered_restore("after a crash").await, (1..=9).collect::<Vec<_>>());
    }
}

/// A listing that silently leaves out names, one more each time: it deletes and forgets nothing, unless all that is
/// missing is what nobody needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_shrinks_deletes_nothing() {
    let (whole, now_us) = ripe().await;
    let needed = whole.needed().await;
    let names: Vec<StoreKey> = whole.objects().await.into_iter().collect();
    let mut hindered = 0;
    for by in 1..=names.len() {
        let world = whole.copy().await;
        let (objects, offered) = (world.objects().await, world.offered().await);
        let running = world.start().await;
        world.store.fault_next(Fault::ListShrunk { by });
        let report = world.prune_with(&running, NOTHING, now_us, false).await.unwrap();
        drop(running);
        world.assert_all_offered_restore(&format!("after a listing that lacked {by} names")).await;
        let Some(error) = report.hindrance else {
            let missing = &names[names.len() - by..];
            assert!(!missing.iter().any(|name| needed.contains(name)), "{missing:?}");
            continue;
        };
        hindered += 1;
        assert!(matches!(error, Error::ObjectMissing(_) | Error::RollbackDetected(_)), "{by}: {error:?}");
        assert_eq!((report.newly_forgotten, report.deleted_objects, report.planned), (0, 0, false));
        assert_eq!(world.objects().await, objects, "{by} missing");
        let told = world.start().await.catalogue.prune_facts(&world.archive().id).hindrance;
        assert_eq!(told, Some((error.short_name(), error.text())));
        let later = world.prune(NOTHING, now_us).await.unwrap();
        assert_eq!((later.deleted_objects, later.hindrance.is_none()), (9, true), "{by} missing before");
        assert_eq!(world.offered().await, offered, "{by} missing before");
    }
    assert!(hindered > names.len() / 2, "{hindered}");
}

/// Forgotten points are in the store for a week: a listing that lacks more than a twentieth of all is not believed, though
/// every point that is offered is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_lacks_what_is_forgotten_does_not_lead_to_forgetting_it_altogether() {
    let world = two_days().await;
    let marked_at_us = BEGIN_US + 2 * DAY_US;
    world.prune(NOTHING, marked_at_us).await.unwrap();
    let id = world.archive().id;
    let running = world.start().await;
    let forgotten = running.catalogue.forgotten(&id);
    let key = StoreKey::try_from(ObjectName::Entry(4).store_key(&id)).unwrap();
    let body = world.store.inner().get(&key, None).await.unwrap();
    world.store.inner().delete(&key).await.unwrap();
    let report = world.prune_with(&running, NOTHING, marked_at_us + HOUR_US, false).await.unwrap();
    assert!(matches!(report.hindrance, Some(Error::ObjectMissing(_))), "one of 18: {report:?}");
    assert_eq!(running.catalogue.forgotten(&id), forgotten);
    world.store.inner().put(&key, body, chatkeep_store::PutCondition::Overwrite).await.unwrap();
    let report = world.prune_with(&running, NOTHING, marked_at_us + HOUR_US, false).await.unwrap();
    assert_eq!(report.hindrance, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_permits_no_listing_is_no_failure_and_is_not_asked_every_hour() {
    let (world, now_us) = ripe().await;
    let running = world.start().await;
    world.store.fault_next(Fault::Fail(ErrorKind::Permission));
    let report = world.prune_with(&running, NOTHING, now_us, false).await.unwrap();
    assert!(matches!(report.hindrance, Some(Error::AccessDenied(_))), "{report:?}");
    let facts = running.catalogue.prune_facts(&world.archive().id);
    assert_eq!((facts.pruned_us, facts.hindrance.unwrap().0.as_str()), (now_us as u64, "AccessDenied"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_fails_or_breaks_off_deletes_nothing() {
    for fault in [
        Fault::Fail(ErrorKind::Offline),
        Fault::Fail(ErrorKind::Transient),
        Fault::ListWithoutEnd,
        Fault::ListForeignName,
    ] {
        let (world, now_us) = ripe().await;
        let objects = world.objects().await;
        let running = world.start().await;
        world.store.fault_next(fault);
        world.prune_with(&running, NOTHING, now_us, false).await.expect_err("no listing");
        assert_eq!(world.objects().await, objects, "{fault:?}");
    }
}

/// The newest entry vanishes, or is exchanged, while objects are deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_goes_back_deletes_nothing() {
    let (world, now_us) = ripe().await;
    let objects = world.objects().await;
    let running = world.start().await;
    // the list, the newest entry (its length and its bytes), and then the look before the first deletion
    world.store.fault_at_call(world.store.calls() + 3, Fault::Fail(ErrorKind::NotFound));
    let fault = world.prune_with(&running, NOTHING, now_us, false).await.unwrap_err();
    assert!(matches!(fault.error, Error::RollbackDetected(_)), "{fault:?}");
    assert_eq!(world.objects().await, objects);

    let newest = StoreKey::try_from(ObjectName::Entry(11).store_key(&world.archive().id)).unwrap();
    let older = ObjectName::Entry(9).store_key(&world.archive().id);
    let older = world.store.inner().get(&StoreKey::try_from(older).unwrap(), None).await.unwrap();
    world.store.inner().put(&newest, older, chatkeep_store::PutCondition::Overwrite).await.unwrap();
    let report = world.prune_with(&running, NOTHING, now_us, false).await.unwrap();
    assert!(matches!(report.hindrance, Some(Error::Corrupt(_))), "{:?}", report.hindrance);
    assert_eq!(world.objects().await, objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_wrote_ends_the_prune() {
    let (world, now_us) = ripe().await;
    let running = world.start().await;
    let key = StoreKey::try_from(ObjectName::Entry(12).store_key(&world.archive().id)).unwrap();
    let body = bytes::Bytes::from_static(b"of somebody else");
    world.store.inner().put(&key, body, chatkeep_store::PutCondition::CreateIfAbsent).await.unwrap();
    let objects = world.objects().await;
    let report = world.prune_with(&running, NOTHING, now_us, false).await.unwrap();
    assert!(matches!(report.hindrance, Some(Error::WriterFenced(_))), "{:?}", report.hindrance);
    assert_eq!(world.objects().await, objects);
}

/// The cache is lost between forgetting and deleting: the waiting begins again, and nothing else is lost.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_cache_the_waiting_begins_again() {
    let (mut world, now_us) = ripe().await;
    world.lose_cache();
    let objects = world.objects().await;
    assert_eq!(world.assert_all_offered_restore("without the cache").await, (1..=11).collect::<Vec<_>>());
    let report = world.prune(NOTHING, now_us).await.unwrap();
    assert_eq!((report.newly_forgotten, report.deleted_objects), (5, 0));
    world.write(&[Level::Entry, Level::Entry], now_us).await;
    assert!(world.objects().await.is_superset(&objects));
    let report = world.prune(NOTHING, now_us + WEEK_US).await.unwrap();
    assert_eq!(report.deleted_points, 5);
    world.assert_all_offered_restore("at the end").await;
}

/// The clock says ten years later, for as long as it takes: what is kept by count stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forward_does_not_delete_what_is_kept_by_count() {
    let policy = RetentionPolicy {
        everything_for_ms: 48 * 3_600_000,
        monthly_for_ms: None,
        latest: 3,
        daily: 2,
        ..NOTHING
    };
    let mut world = two_days().await;
    let later_us = BEGIN_US + 3650 * DAY_US;
    world.prune(policy, later_us).await.unwrap();
    world.write(&[Level::Entry, Level::Entry], later_us).await;
    let report = world.prune(policy, later_us + WEEK_US).await.unwrap();
    assert!(report.deleted_points > 0);
    // the three newest, both of a day or more, and what these need
    assert_eq!(world.assert_all_offered_restore("ten years later").await, [1, 6, 8, 9, 10, 11]);

    // and back: what was only forgotten then is offered again, and nothing more goes
    let mut world = two_days().await;
    world.prune(policy, later_us).await.unwrap();
    world.write(&[Level::Entry, Level::Entry], BEGIN_US + DAY_US + HOUR_US).await;
    world.prune(policy, BEGIN_US + DAY_US + 2 * HOUR_US).await.unwrap();
    assert_eq!(world.assert_all_offered_restore("with the right clock").await, (1..=11).collect::<Vec<_>>());
    let report = world.prune(policy, later_us + WEEK_US).await.unwrap();
    assert_eq!(report.deleted_objects, 0, "the waiting began again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_behind_the_newest_entry_forgets_nothing() {
    let world = two_days().await;
    let report = world.prune(NOTHING, BEGIN_US).await.unwrap();
    assert_eq!((report.newly_forgotten, report.waiting_objects), (0, 0));
    assert_eq!(world.offered().await.len(), 9);
}

/// What the store holds on to keeps its parents and packs; all else goes, and the rest when it is let go.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_holds_on_to_keeps_what_it_needs() {
    let (world, now_us) = ripe().await;
    let running = world.start().await;
    // the list, three looks at the newest entry, the deletions of 7, 5 and 4: then 3, which stays with its parent 2
    world.store.fault_at_call(world.store.calls() + 7, Fault::Fail(ErrorKind::Retained));
    let report = world.prune_with(&running, NOTHING, now_us, false).await.unwrap();
    let deletions = world.store.log().into_iter().filter(|call| call.operation == Operation::Delete);
    assert!(deletions.count() >= 4);
    assert_eq!(world.entries().await, [1, 2, 3, 6, 8, 9, 10, 11]);
    assert!(matches!(report.hindrance, Some(Error::AccessDenied(_))), "{:?}", report.hindrance);
    world.assert_restores(3, "held by the store").await;
    drop(running);
    let report = world.prune(NOTHING, now_us).await.unwrap();
    assert!(report.deleted_objects >= 4 && report.hindrance.is_none());
    assert_eq!(world.entries().await, [1, 6, 8, 9, 10, 11]);
    world.assert_all_offered_restore("at the end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_permits_no_deletion_is_no_failure() {
    let (world, now_us) = ripe().await;
    let objects = world.objects().await;
    let running = world.start().await;
    world.store.fault_at_call(world.store.calls() + 4, Fault::Fail(ErrorKind::Permission));
    let report = world.prune_with(&running, NOTHING, now_us, false).await.unwrap();
    assert!(matches!(report.hindrance, Some(Error::AccessDenied(_))), "{:?}", report.hindrance);
    assert_eq!((report.deleted_objects, report.newly_forgotten), (0, 0));
    assert_eq!(report.waiting_objects, 9);
    assert_eq!(world.objects().await, objects);
    let deletions = world.store.log().into_iter().filter(|call| call.operation == Operation::Delete);
    assert_eq!(deletions.count(), 1, "one refusal is enough");
}

/// A capture comes up with the content of a pack that is about to be deleted: before the prune, or while it deletes.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_needed_again_is_not_deleted() {
    for meanwhile in [false, true] {
        let (world, now_us) = ripe().await;
        let running = world.start().await;
        let id = world.archive().id;
        let pack = running.catalogue.forgotten_point(&id, 3).unwrap().packs[0];
        let name = ObjectName::Pack(pack);
        let sealed = world.archive().get(name).await.unwrap();
        let plaintext = chatkeep_crypto::open(&id, name, &world.keys.roots, &sealed).unwrap();
        let capture = |done: usize| {
            if done == 1 {
                assert_eq!(world.pack(&running.opened, 12, 0, &plaintext).0.name, pack);
            }
        };
        if !meanwhile {
            capture(1);
        }
        let pruning = chatkeepd::jobs::prune::Pruning {
            opened: &running.opened,
            catalogue: &running.catalogue,
            pins: &[],
            policy: NOTHING,
            now_us,
            dry_run: false,
            cancelled: &std::sync::atomic::AtomicBool::new(false),
            progress: &|done, _| capture(if meanwhile { done } else { 0 }),
        };
        let report = pruning.run().await.unwrap();
        assert_eq!((report.deleted_points, report.deleted_objects), (5, 8), "meanwhile: {meanwhile}");
        assert!(world.archive().has(name).await.unwrap(), "meanwhile: {meanwhile}");
        assert!(!running.catalogue.is_being_deleted(&id, pack));
    }
}

/// The entry that needs such a pack has come while objects were deleted, and the queue is empty again.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_of_an_entry_that_came_meanwhile_is_not_deleted() {
    let (world, now_us) = ripe().await;
    let running = world.start().await;
    let (catalogue, id) = (&running.catalogue, world.archive().id);
    let pack = catalogue.forgotten_point(&id, 3).unwrap().packs[0];
    let publish = |done: usize, _: usize| {
        if done == 1 {
            let head = catalogue.head(&id).unwrap().unwrap();
            let mut point = catalogue.point(&id, head.seq).unwrap();
            (point.seq, point.packs) = (12, vec![pack]);
            catalogue.advance(&id, &chatkeepd::catalogue::Head { seq: 12, ..head }, Some(&point)).unwrap();
        }
    };
    let pruning = chatkeepd::jobs::prune::Pruning {
        opened: &running.opened,
        catalogue,
        pins: &[],
        policy: NOTHING,
        now_us,
        dry_run: false,
        cancelled: &std::sync::atomic::AtomicBool::new(false),
        progress: &publish,
    };
    assert_eq!(pruning.run().await.unwrap().deleted_objects, 8);
    assert!(world.archive().has(ObjectName::Pack(pack)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_points_stay_also_without_the_cache() {
    let mut world = two_days().await;
    world.pins = vec![3];
    world.write(&[Level::Entry], BEGIN_US + DAY_US + HOUR_US).await;
    let marked_at_us = BEGIN_US + 2 * DAY_US;
    world.prune(NOTHING, marked_at_us).await.unwrap();
    assert_eq!(world.offered().await, [1, 2, 3, 6, 8, 9, 10]);
    world.lose_cache();
    world.pins = world.start().await.opened.log.written.pins;
    assert_eq!(world.pins, [3], "the newest entry has them");
    world.prune(NOTHING, marked_at_us).await.unwrap();
    world.write(&[Level::Entry, Level::Entry], marked_at_us + HOUR_US).await;
    let report = world.prune(NOTHING, marked_at_us + WEEK_US).await.unwrap();
    assert!(report.deleted_points > 0);
    let offered = world.assert_all_offered_restore("at the end").await;
    assert!(offered.contains(&3) && offered.contains(&2) && !offered.contains(&4), "{offered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_forgotten_comes_back_when_the_policy_wants_it() {
    let (world, now_us) = ripe().await;
    let kind = RetentionPolicy { latest: 100, ..NOTHING };
    let report = world.prune(kind, now_us).await.unwrap();
    assert_eq!((report.deleted_objects, report.waiting_objects), (0, 0));
    assert_eq!(world.assert_all_offered_restore("under a kinder policy").await, (1..=11).collect::<Vec<_>>());
    assert!(world.start().await.catalogue.marks(&world.archive().id).is_empty());
}

/// Packs that only a list of files names, where the list is a pack itself: they are known to be needed also after the
/// cache is lost.
#[tokio::test(flavor = "multi_thread")]
async fn packs_that_lists_of_files_name_stay() {
    let mut world = World::new();
    let mut running = world.start().await;
    let (blob, object) = world.pack(&running.opened, 1, 0, b"what is in a file");
    let chunk = ChunkRef { id: [1; 16], pack: blob.name, offset: 0, len: 17 };
    let file = FileRecord { mode: 0o600, mtime_ns: 0, len: 17, chunks: vec![chunk] };
    let files = FileSet::new(vec![(b"a.jpg".to_vec(), FileOp::File(file))]).unwrap();
    let (list, listed) = world.pack(&running.opened, 1, 1, &files.encode());
    let folder = FolderRecord {
        name: "media".to_owned(),
        is_base: true,
        files: 1,
        bytes: 17,
        unread: 0,
        packs: vec![list],
        inline: FileSet::default(),
    };
    let objects = vec![object, listed];
    world
        .write_one(&mut running, Level::Base, BEGIN_US, vec![folder], vec![blob.name], objects)
        .await
        .unwrap();
    drop(running);
    world.write(&[Level::Entry, Level::Entry, Level::Dozen], BEGIN_US + HOUR_US).await;
    for lost_cache in [false, true] {
        if lost_cache {
            world.lose_cache();
        }
        let known = world.start().await.catalogue.point(&world.archive().id, 1).unwrap();
        assert!(known.packs.contains(&blob.name) && known.packs.contains(&list.name), "{lost_cache}");
        assert!(!known.lists_unread);
        let report = world.prune(NOTHING, BEGIN_US + DAY_US).await.unwrap();
        assert_eq!(report.waiting_objects, 4, "entries 2 and 3 and their packs");
    }
    // a list that cannot be read: nothing that it may name is touched
    world.lose_cache();
    let key = StoreKey::try_from(ObjectName::Pack(list.name).store_key(&world.archive().id)).unwrap();
    let whole = world.store.inner().get(&key, None).await.unwrap();
    let mut broken = whole.to_vec();
    *broken.last_mut().unwrap() ^= 1;
    let overwrite = chatkeep_store::PutCondition::Overwrite;
    world.store.inner().put(&key, broken.into(), overwrite).await.unwrap();
    let report = world.prune(NOTHING, BEGIN_US + DAY_US).await.unwrap();
    assert_eq!(report.waiting_objects, 2, "entries 2 and 3, which are newer than the one in doubt");
    world.store.inner().put(&key, whole, overwrite).await.unwrap();
    let report = world.prune(NOTHING, BEGIN_US + DAY_US).await.unwrap();
    assert_eq!(report.waiting_objects, 4, "the list is read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_read_hides_no_older_one_and_stays() {
    let mut world = two_days().await;
    let key = StoreKey::try_from(ObjectName::Entry(5).store_key(&world.archive().id)).unwrap();
    let mut broken = world.store.inner().get(&key, None).await.unwrap().to_vec();
    *broken.last_mut().unwrap() ^= 1;
    world.store.inner().put(&key, broken.into(), chatkeep_store::PutCondition::Overwrite).await.unwrap();
    world.lose_cache();
    assert_eq!(world.assert_all_offered_restore("without entry 5").await, [1, 2, 3, 4, 6, 7, 8, 9]);
    world.prune(NOTHING, BEGIN_US + 2 * DAY_US).await.unwrap();
    world.write(&[Level::Entry, Level::Entry], BEGIN_US + 2 * DAY_US).await;
    let report = world.prune(NOTHING, BEGIN_US + 2 * DAY_US + WEEK_US).await.unwrap();
    assert_eq!(world.entries().await, [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]);
    assert_eq!(report.deleted_objects, 1, "no pack, and nothing that entry 5 may need");
}

/// An entry in the middle is lost: what builds on it is not offered, and the rest is.
#[tokio::test(flavor = "multi_thread")]
async fn points_without_their_parent_are_not_offered() {
    for lost_cache in [false, true] {
        let world = two_days().await;
        let key = StoreKey::try_from(ObjectName::Entry(2).store_key(&world.archive().id)).unwrap();
        world.store.inner().delete(&key).await.unwrap();
        if lost_cache {
            world.lose_cache();
        }
        let offered = world.assert_all_offered_restore("without entry 2").await;
        assert_eq!(offered, [1, 4, 5, 6, 7, 8, 9], "lost cache: {lost_cache}");
        let report = world.prune(NOTHING, BEGIN_US + 2 * DAY_US).await.unwrap();
        assert_eq!(report.hindrance.is_some(), !lost_cache, "what is known to be missing may come back");
    }
}

/// A verification found a pack lost: what it costs stays, and everything else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_to_be_lost_does_not_end_all_pruning() {
    let mut world = two_days().await;
    let id = world.archive().id;
    let pack = world.start().await.catalogue.point(&id, 5).unwrap().packs[0];
    let name = ObjectName::Pack(pack);
    let key = StoreKey::try_from(name.store_key(&id)).unwrap();
    world.store.inner().delete(&key).await.unwrap();
    let marked_at_us = BEGIN_US + 2 * DAY_US;
    assert!(world.prune(NOTHING, marked_at_us).await.unwrap().hindrance.is_some());
    let lost = chatkeepd::damage::damage(&id, name, chatkeepd::damage::DamageKind::Missing, "gone");
    let running = world.start().await;
    running.catalogue.update_damage(&id, |report, _| report.add(vec![lost]));
    drop(running);
    let report = world.prune(NOTHING, marked_at_us).await.unwrap();
    assert_eq!((report.hindrance, report.newly_forgotten), (None, 3));
    assert_eq!(world.offered().await, [1, 4, 5, 6, 8, 9], "5 may be mended, and needs 4");
    world.write(&[Level::Entry, Level::Entry], marked_at_us).await;
    let report = world.prune(NOTHING, marked_at_us + WEEK_US).await.unwrap();
    assert_eq!((report.hindrance, report.deleted_points), (None, 3));
    for seq in [1, 4, 6, 8, 9, 11] {
        world.assert_restores(seq, "beside a damaged point").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_stops_when_it_is_told() {
    let (world, now_us) = ripe().await;
    let running = world.start().await;
    let cancelled = std::sync::atomic::AtomicBool::new(false);
    let stop = |done: usize, _: usize| {
        if done == 3 {
            cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let pruning = chatkeepd::jobs::prune::Pruning {
        opened: &running.opened,
        catalogue: &running.catalogue,
        pins: &[],
        policy: NOTHING,
        now_us,
        dry_run: false,
        cancelled: &cancelled,
        progress: &stop,
    };
    let fault = pruning.run().await.unwrap_err();
    assert!(matches!(fault.error, Error::Cancelled(_)), "{fault:?}");
    drop(running);
    assert_eq!(world.entries().await, [1, 2, 3, 6, 8, 9, 10, 11]);
    world.assert_all_offered_restore("stopped half way").await;
    assert_eq!(world.prune(NOTHING, now_us).await.unwrap().deleted_objects, 6);
}
