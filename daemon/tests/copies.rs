//! Copies in further stores: what they get, in which order, what they lose, and what becomes of stores that are away, lie,
//! or are somebody else's.

#![allow(clippy::unwrap_used, reason = "tests")]

mod small_world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use chatkeep_crypto::write_keyring;
use chatkeep_format::{Keyslot, ObjectName};
use chatkeep_ipc::Error;
use chatkeep_planner::{FOLLOWED_MAX, Level, SourceId};
use chatkeep_store::chaos::{ChaosStore, Fault as Chaos, LastCall, Operation};
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{ErrorKind, PutCondition, Store, StoreKey};
use chatkeepd::archive::Archive;
use chatkeepd::catalogue::{CopyFacts, CopyId};
use chatkeepd::copies::{Behind, CopyEnd, CopyOrder, bring_up};
use chatkeepd::fault::Fault;
use rand_core::OsRng;
use small_world::{BEGIN_US, DAY_US, HOUR_US, NOTHING, Running, World};

const WEEK_US: i64 = 7 * DAY_US;
const NOW_US: i64 = BEGIN_US + 100 * DAY_US;

/// A further store of a world.
struct Further {
    store: Arc<ChaosStore<MemoryStore>>,
}

impl Further {
    fn new() -> Self {
        Self { store: Arc::new(ChaosStore::new(MemoryStore::new(), 11)) }
    }

    fn archive(&self, world: &World) -> Archive {
        Archive { store: self.store.clone(), id: world.archive().id }
    }

    fn id(world: &World) -> CopyId {
        CopyId::new(&world.archive().id, "cloud")
    }

    fn order(&self, world: &World, running: &Running) -> CopyOrder {
        CopyOrder {
            source: SourceId(0),
            store: "cloud".to_owned(),
            to: self.archive(world),
            main: "nas".to_owned(),
            opened: Arc::new(running.opened.clone()),
            others: Vec::new(),
            waiting: Vec::new(),
            written_seq: running.opened.log.written.seq,
            pins: world.pins.clone(),
            policy: chatkeep_planner::RetentionPolicy::default(),
            everything: false,
            list: false,
            now_us: NOW_US,
            cancelled: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Brings it up to date; `change` changes the order first.
    async fn bring_up(
        &self,
        world: &World,
        running: &Running,
        change: impl FnOnce(&mut CopyOrder),
    ) -> Result<CopyEnd, Fault> {
        let mut order = self.order(world, running);
        change(&mut order);
        bring_up(&running.catalogue, &order, &|_| {}).await
    }

    async fn entries(&self, world: &World) -> Vec<u64> {
        let archive = Archive { store: Arc::new(self.store.inner().clone()), id: world.archive().id };
        archive.list().await.unwrap().entries.into_keys().collect()
    }

    async fn objects(&self) -> BTreeSet<StoreKey> {
        self.store.inner().list("").await.unwrap().into_iter().map(|object| object.key).collect()
    }

    /// Every entry that is there restores from there, whatever else is missing.
    async fn assert_all_restore(&self, world: &World, when: &str) -> Vec<u64> {
        let archive = Archive { store: Arc::new(self.store.inner().clone()), id: world.archive().id };
        let entries = self.entries(world).await;
        for seq in &entries {
            world.assert_restores_from(archive.clone(), *seq, when).await;
        }
        entries
    }

    async fn body(&self, key: &StoreKey) -> Bytes {
        self.store.inner().get(key, None).await.unwrap()
    }
}

/// A world with a keyring and entries of these levels.
async fn world(levels: &[Level]) -> World {
    let mut world = World::new();
    put_keyring(&world, 1).await;
    world.write(levels, BEGIN_US).await;
    world
}

async fn put_keyring(world: &World, counter: u64) {
    let (id, keys) = (world.archive().id, &world.keys);
    let keyring = write_keyring(&id, counter, &keys.key, &keys.roots, vec![Keyslot::Raw], &mut OsRng);
    world.archive().put_new(ObjectName::Keyring(counter), keyring.clone().into()).await.unwrap();
    world.start().await.catalogue.put_keyring(&id, counter, &keyring).unwrap();
}

fn key(world: &World, name: ObjectName) -> StoreKey {
    StoreKey::try_from(name.store_key(&world.archive().id)).unwrap()
}

const ROW: [Level; 4] = [Level::Base, Level::Entry, Level::Entry, Level::Entry];

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_the_same_bytes_and_is_an_archive_by_itself() {
    let world = world(&ROW).await;
    let running = world.start().await;
    let copy = Further::new();
    let end = copy.bring_up(&world, &running, |order| order.list = true).await.unwrap();
    assert!(end.listed && end.objects == 9, "{end:?}");
    let objects = world.objects().await;
    assert_eq!(copy.objects().await, objects);
    for key in &objects {
        assert_eq!(copy.body(key).await, world.store.inner().get(key, None).await.unwrap(), "{key}");
    }
    copy.assert_all_restore(&world, "from the copy").await;
    let facts = running.catalogue.copy_facts(&Further::id(&world));
    assert_eq!((facts.newest_seq, facts.lacking, facts.keyring), (4, 0, 1));
    assert!(facts.uploaded_us > 0 && facts.listed_us == NOW_US as u64);
    // and there is nothing left to do, nor to ask
    let calls = copy.store.calls();
    assert_eq!(copy.bring_up(&world, &running, |_| {}).await.unwrap().objects, 0);
    assert_eq!(copy.store.calls(), calls);
}

/// The power of the copy goes off at each of its calls: whatever is there restores, and it goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_survives_a_crash_at_any_call() {
    let world = world(&ROW).await;
    let whole = Further::new();
    whole.bring_up(&world, &world.start().await, |order| order.list = true).await.unwrap();
    for crash_at in 0..whole.store.calls() {
        for last_call in [LastCall::IsLost, LastCall::Lands] {
            let world = world.copy().await;
            let copy = Further::new();
            let running = world.start().await;
            copy.store.crash_at_call_where(crash_at, last_call);
            let run = copy.bring_up(&world, &running, |order| order.list = true).await;
            // The last call of all is a listing of what is to be deleted, or none.
            run.expect_err("the power went off");
            let when = format!("after a crash at call {crash_at}, {last_call:?}");
            copy.assert_all_restore(&world, &when).await;
            copy.store.power_on();
            copy.bring_up(&world, &running, |order| order.list = true).await.unwrap();
            assert_eq!(copy.objects().await, whole.objects().await, "{when}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_follows_gets_every_point_and_one_that_was_away_the_least() {
    let mut world = world(&ROW).await;
    let copy = Further::new();
    copy.bring_up(&world, &world.start().await, |_| {}).await.unwrap();
    world.write(&[Level::Entry, Level::Entry], BEGIN_US + HOUR_US).await;
    let running = world.start().await;
    assert_eq!(copy.bring_up(&world, &running, |_| {}).await.unwrap().objects, 4);
    drop(running);

    // It is away, while much is written and a point pinned.
    let many = [Level::Entry; FOLLOWED_MAX + 4];
    world.write(&many, BEGIN_US + 2 * HOUR_US).await;
    world.pins = vec![8];
    world.write(&[Level::Day, Level::Entry], BEGIN_US + DAY_US).await;
    let running = world.start().await;
    let told = std::sync::Mutex::new(Vec::new());
    let order = copy.order(&world, &running);
    let end =
        bring_up(&running.catalogue, &order, &|behind| told.lock().unwrap().push(behind)).await.unwrap();
    assert_eq!(copy.entries(&world).await, [1, 2, 3, 4, 5, 6, 7, 8, 27, 28]);
    assert_eq!(end.objects, 8, "two up to the pinned point, the day, the newest, each with a pack");
    copy.assert_all_restore(&world, "caught up").await;
    let told = told.into_inner().unwrap();
    assert_eq!((told[0].entries, told.last().unwrap()), (22, &Behind::default()));
    let facts = running.catalogue.copy_facts(&Further::id(&world));
    assert_eq!((facts.newest_seq, facts.lacking), (28, 18), "that it lacks these is no damage");
    // Nor do they come with the next listing.
    assert_eq!(copy.bring_up(&world, &running, |order| order.list = true).await.unwrap().objects, 0);

    // Who wants it to be the main store gets everything.
    copy.bring_up(&world, &running, |order| (order.everything, order.list) = (true, true)).await.unwrap();
    assert_eq!(copy.entries(&world).await, (1..=28).collect::<Vec<_>>());
    assert_eq!(running.catalogue.copy_facts(&Further::id(&world)).lacking, 0);
    copy.assert_all_restore(&world, "with everything").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_brings_a_point_that_was_missed() {
    let mut world = world(&[Level::Base; 1]).await;
    let copy = Further::new();
    world.write(&[Level::Entry; FOLLOWED_MAX + 4], BEGIN_US + HOUR_US).await;
    world.write(&[Level::Base], BEGIN_US + DAY_US).await;
    copy.bring_up(&world, &world.start().await, |_| {}).await.unwrap();
    assert_eq!(copy.entries(&world).await, [22]);
    world.pins = vec![3];
    copy.bring_up(&world, &world.start().await, |_| {}).await.unwrap();
    assert_eq!(copy.assert_all_restore(&world, "with a pin").await, [1, 2, 3, 22]);
}

/// While the main store is away, what waits in the queue goes to the copy; it can be restored from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_main_store_that_is_away_does_not_hold_up_a_copy() {
    let mut world = world(&ROW).await;
    let copy = Further::new();
    let mut running = world.start().await;
    copy.bring_up(&world, &running, |_| {}).await.unwrap();
    world.store.crash_at_call(world.store.calls());
    world
        .write_one(&mut running, Level::Entry, BEGIN_US + HOUR_US, Vec::new(), Vec::new(), Vec::new())
        .await
        .expect_err("the main store is away");
    assert_eq!(running.opened.log.waiting.len(), 1);
    let waiting = vec![running.opened.log.waiting[0].point.clone()];
    let end = copy.bring_up(&world, &running, |order| order.waiting = waiting).await.unwrap();
    assert!(end.unread.is_none(), "{end:?}");
    assert_eq!(copy.assert_all_restore(&world, "without the main store").await, [1, 2, 3, 4, 5]);
    assert_eq!(running.catalogue.point_elsewhere(&world.archive().id, 5).unwrap().seq, 5);

    // A second copy that has nothing yet: what it needs is in the main store, or in the first copy.
    let other = Further::new();
    let second = |order: &mut CopyOrder| {
        order.store = "disk".to_owned();
        order.waiting = vec![running.opened.log.waiting[0].point.clone()];
    };
    let end = other.bring_up(&world, &running, second).await.unwrap();
    assert!(end.unread.is_some() && other.entries(&world).await.is_empty(), "{end:?}");
    let with_first = |order: &mut CopyOrder| {
        second(order);
        order.others = vec![("cloud".to_owned(), copy.archive(&world))];
    };
    other.bring_up(&world, &running, with_first).await.unwrap();
    assert_eq!(other.assert_all_restore(&world, "from the first copy").await, [1, 2, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_copy_lost_or_damaged_is_sent_again() {
    let world = world(&ROW).await;
    let running = world.start().await;
    let copy = Further::new();
    copy.bring_up(&world, &running, |_| {}).await.unwrap();
    let objects = copy.objects().await;
    let pack = running.catalogue.point(&world.archive().id, 2).unwrap().packs[0];
    let lost = [ObjectName::Pack(pack), ObjectName::Entry(3), ObjectName::Keyring(1)];
    for name in lost {
        copy.store.inner().delete(&key(&world, name)).await.unwrap();
    }
    // The newest entry is looked at whenever it is listed.
    let newest = key(&world, ObjectName::Entry(4));
    let good = copy.body(&newest).await;
    copy.store.inner().put(&newest, good.slice(..good.len() / 2), PutCondition::Overwrite).await.unwrap();
    let end = copy.bring_up(&world, &running, |order| order.list = true).await.unwrap();
    assert_eq!(copy.objects().await, objects);
    assert_eq!(copy.body(&newest).await, good);
    assert!(end.caution.is_some(), "two of eight objects were missing: {end:?}");
    let end = copy.bring_up(&world, &running, |order| order.list = true).await.unwrap();
    assert_eq!((end.caution, end.objects), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_wrote_there_stays_and_ends_the_copying() {
    let world = world(&ROW).await;
    let running = world.start().await;
    let other = small_world_of_somebody_else(&world).await;
    // Another entry 4, and one that is newer than ours.
    for (name, from) in
        [(ObjectName::Entry(4), ObjectName::Entry(4)), (ObjectName::Entry(5), ObjectName::Entry(5))]
    {
        let copy = Further::new();
        copy.bring_up(&world, &running, |_| {}).await.unwrap();
        let foreign = other.store.inner().get(&key(&other, from), None).await.unwrap();
        copy.store.inner().put(&key(&world, name), foreign.clone(), PutCondition::Overwrite).await.unwrap();
        let objects = copy.objects().await;
        let fault = copy.bring_up(&world, &running, |order| order.list = true).await.unwrap_err();
        assert!(matches!(fault.error, Error::WriterFenced(_)), "{fault:?}");
        assert_eq!((copy.objects().await, copy.body(&key(&world, name)).await), (objects, foreign));
    }
}

/// The same archive with the same keys, continued by another installation after entry 3.
async fn small_world_of_somebody_else(world: &World) -> World {
    let mut other = world.copy().await;
    other.store.inner().delete(&key(world, ObjectName::Entry(4))).await.unwrap();
    other.lose_cache();
    other.write(&[Level::Entry, Level::Entry], BEGIN_US + HOUR_US).await;
    other
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_from_the_main_store_is_deleted_from_the_copy() {
    let mut world = World::new();
    put_keyring(&world, 1).await;
    world.write(&[Level::Base, Level::Entry, Level::Entry, Level::Dozen], BEGIN_US).await;
    let copy = Further::new();
    copy.bring_up(&world, &world.start().await, |_| {}).await.unwrap();
    let marked_at_us = BEGIN_US + 2 * DAY_US;
    world.prune(NOTHING, marked_at_us).await.unwrap();
    world.write(&[Level::Entry, Level::Entry], marked_at_us + HOUR_US).await;
    copy.bring_up(&world, &world.start().await, |order| order.list = true).await.unwrap();
    assert_eq!(copy.entries(&world).await, [1, 2, 3, 4, 5, 6], "forgotten points are still there");
    let report = world.prune(NOTHING, marked_at_us + WEEK_US).await.unwrap();
    assert!(report.deleted_objects > 0);
    // Not while the listing lacks more than a twentieth of what should be there.
    let running = world.start().await;
    copy.store.fault_next(Chaos::ListShrunk { by: 2 });
    let end = copy
        .bring_up(&world, &running, |order| (order.list, order.now_us) = (true, marked_at_us + WEEK_US))
        .await
        .unwrap();
    assert!(end.caution.is_some() && end.deleted == 0, "{end:?}");
    let end = copy
        .bring_up(&world, &running, |order| (order.list, order.now_us) = (true, marked_at_us + WEEK_US))
        .await
        .unwrap();
    drop(running);
    assert_eq!((end.deleted as usize, end.caution), (report.deleted_objects, None));
    assert_eq!(copy.objects().await, world.objects().await);
    copy.assert_all_restore(&world, "after the prune").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_names_goes_a_week_later_and_only_with_both_listings() {
    let world = world(&ROW).await;
    let running = world.start().await;
    let copy = Further::new();
    copy.bring_up(&world, &running, |_| {}).await.unwrap();
    let objects = copy.objects().await;
    let stray = key(&world, ObjectName::Pack([0xab; 16]));
    copy.store.inner().put(&stray, Bytes::from(vec![7; 500]), PutCondition::Overwrite).await.unwrap();
    let deleted = async |now_us: i64| {
        let run = copy.bring_up(&world, &running, |order| (order.list, order.now_us) = (true, now_us)).await;
        run.unwrap().deleted
    };
    assert_eq!(deleted(NOW_US).await, 0);
    assert_eq!(deleted(NOW_US + WEEK_US - 1).await, 0);
    // The main store cannot be listed: nobody knows what it would name.
    world.store.fault_next(Chaos::Fail(ErrorKind::Offline));
    assert_eq!(deleted(NOW_US + WEEK_US).await, 0);
    assert_eq!(deleted(NOW_US + WEEK_US).await, 1);
    assert_eq!(copy.objects().await, objects);
}

/// A keyring with a slot that was taken away goes from the copy when the main store does not have it any more, and the
/// newest never does.
#[tokio::test(flavor = "multi_thread")]
async fn keyrings_are_those_of_the_main_store() {
    let world = world(&ROW).await;
    put_keyring(&world, 2).await;
    let running = world.start().await;
    let copy = Further::new();
    copy.bring_up(&world, &running, |order| order.list = true).await.unwrap();
    let keyrings =
        async || copy.archive(&world).list().await.unwrap().keyrings.into_keys().collect::<Vec<_>>();
    assert_eq!(keyrings().await, [1, 2]);
    world.store.inner().delete(&key(&world, ObjectName::Keyring(1))).await.unwrap();
    copy.bring_up(&world, &running, |order| order.list = true).await.unwrap();
    assert_eq!(keyrings().await, [2]);
    world.store.inner().delete(&key(&world, ObjectName::Keyring(2))).await.unwrap();
    copy.bring_up(&world, &running, |order| order.list = true).await.unwrap();
    assert_eq!(keyrings().await, [2]);
    // A change of the password reaches the copy without a listing, also while the main store is away.
    drop(running);
    put_keyring(&world, 3).await;
    let running = world.start().await;
    world.store.crash_at_call(world.store.calls());
    copy.bring_up(&world, &running, |_| {}).await.unwrap();
    assert_eq!(keyrings().await, [2, 3]);
}

/// Appending works where nothing else is permitted.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_may_only_be_written_to_gets_every_point() {
    let mut world = world(&ROW).await;
    let copy = Further::new();
    let only_puts = Arc::new(small_world::Permitting::new(copy.store.clone(), &[Operation::Put]));
    for written in 4..7 {
        let running = world.start().await;
        let to = Archive { store: only_puts.clone(), id: world.archive().id };
        let end = copy.bring_up(&world, &running, |order| (order.to, order.list) = (to, true)).await.unwrap();
        assert!(end.caution.unwrap().contains("permit"));
        assert_eq!(copy.entries(&world).await, (1..=written).collect::<Vec<_>>());
        drop(running);
        world.write(&[Level::Entry], BEGIN_US + written as i64 * HOUR_US).await;
    }
    copy.assert_all_restore(&world, "written blindly").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_cache_the_device_finds_out_what_a_copy_has() {
    let world = world(&ROW).await;
    let copy = Further::new();
    copy.bring_up(&world, &world.start().await, |_| {}).await.unwrap();
    world.lose_cache();
    let running = world.start().await;
    assert_eq!(running.catalogue.copy_facts(&Further::id(&world)), CopyFacts::default());
    let puts = || copy.store.log().into_iter().filter(|call| call.operation == Operation::Put).count();
    let before = puts();
    copy.bring_up(&world, &running, |order| order.list = true).await.unwrap();
    assert_eq!(puts(), before, "nothing is sent twice");
    let facts = running.catalogue.copy_facts(&Further::id(&world));
    assert_eq!((facts.newest_seq, facts.lacking), (4, 0));
    assert!(facts.uploaded_us >= BEGIN_US as u64, "as old as its newest point, if nobody remembers");
}
