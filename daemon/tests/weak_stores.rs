//! The log on stores that are worth less than the best: they cost time, never an entry.

#![allow(clippy::unwrap_used, reason = "tests")]

mod small_world;

use std::sync::Arc;

use bytes::Bytes;
use chatkeep_format::ObjectName;
use chatkeep_ipc::Error;
use chatkeep_planner::Level;
use chatkeep_store::chaos::{Fault as Chaos, LastCall, Operation};
use chatkeep_store::{CreateGuarantee, ErrorKind, PutCondition, Store, StoreKey, Visibility};
use chatkeepd::fault::Fault;
use small_world::{BEGIN_US, Permitting, Promising, Running, World};

fn key(world: &World, name: ObjectName) -> StoreKey {
    StoreKey::try_from(name.store_key(&world.archive().id)).unwrap()
}

/// A world whose store promises less.
async fn world(change: impl FnOnce(&mut chatkeep_store::Capabilities)) -> World {
    let mut world = World::new();
    world.front = Some(Arc::new(Promising::new(world.store.clone(), change)));
    world.write(&[Level::Base, Level::Entry], BEGIN_US).await;
    world
}

async fn write_one(world: &mut World, running: &mut Running) -> Result<(), Fault> {
    let at_us = BEGIN_US + 1_000_000 * running.opened.log.written.seq as i64;
    world.write_one(running, Level::Entry, at_us, Vec::new(), Vec::new(), Vec::new()).await
}

/// The machine and its clone: the same keys, the same cache, the same queue, the same store.
fn cloned(world: &World) -> World {
    let mut clone = world.copy_state();
    (clone.store, clone.front) = (world.store.clone(), world.front.clone());
    clone
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_identity_are_fenced_also_without_an_atomic_create() {
    for create in [CreateGuarantee::Advisory, CreateGuarantee::None] {
        let mut first = world(|can| can.create = create).await;
        let mut second = cloned(&first);
        // Both run, and have asked the store whether the log is theirs.
        let (mut one, mut two) = (first.start().await, second.start().await);
        write_one(&mut first, &mut one).await.unwrap();
        let third = key(&first, ObjectName::Entry(3));
        let of_first = first.store.inner().get(&third, None).await.unwrap();
        let fault = write_one(&mut second, &mut two).await.unwrap_err();
        assert!(matches!(fault.error, Error::WriterFenced(_)), "{create:?}: {fault:?}");
        assert_eq!(first.store.inner().get(&third, None).await.unwrap(), of_first, "{create:?}");
        // The first goes on.
        write_one(&mut first, &mut one).await.unwrap();
        drop(one);
        assert_eq!(first.assert_all_offered_restore("fenced").await, [1, 2, 3, 4]);
    }
}

/// Both looked at the same moment and both wrote: who was overwritten notices at the next entry, before it writes.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_overwritten_at_the_same_moment_notices_before_the_next_entry() {
    let mut first = world(|can| can.create = CreateGuarantee::None).await;
    let mut second = cloned(&first);
    let (mut one, mut two) = (first.start().await, second.start().await);
    write_one(&mut first, &mut one).await.unwrap();
    let third = key(&first, ObjectName::Entry(3));
    first.store.inner().delete(&third).await.unwrap();
    write_one(&mut second, &mut two).await.unwrap();
    let of_second = first.store.inner().get(&third, None).await.unwrap();
    let fault = write_one(&mut first, &mut one).await.unwrap_err();
    assert!(matches!(fault.error, Error::WriterFenced(_)), "{fault:?}");
    assert_eq!(first.entries().await, [1, 2, 3]);
    assert_eq!(first.store.inner().get(&third, None).await.unwrap(), of_second);
}

/// On a store without conditions the power goes off at each call of a backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_conditions_survives_a_crash_at_any_call() {
    let mut whole = world(|can| can.create = CreateGuarantee::None).await;
    let mut running = whole.start().await;
    let first = whole.store.calls();
    write_one(&mut whole, &mut running).await.unwrap();
    let calls = whole.store.calls() - first;
    drop(running);
    for crash_at in 0..calls {
        for last_call in [LastCall::IsLost, LastCall::Lands] {
            let mut world = world(|can| can.create = CreateGuarantee::None).await;
            let mut running = world.start().await;
            world.store.crash_at_call_where(world.store.calls() + crash_at, last_call);
            write_one(&mut world, &mut running).await.expect_err("the power went off");
            drop(running);
            world.store.power_on();
            let mut running = world.start().await;
            world.upload(&mut running).await.unwrap();
            write_one(&mut world, &mut running).await.unwrap();
            drop(running);
            let offered = world.assert_all_offered_restore("after a crash").await;
            assert_eq!(offered, [1, 2, 3, 4], "call {crash_at}, {last_call:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_counts_when_it_is_to_be_seen_with_its_whole_length() {
    let mut world = world(|can| can.read_after_write = Visibility::Eventual).await;
    let mut running = world.start().await;
    let before = world.store.calls();
    // The pack, which is seen at once, and the entry, which is not.
    world.store.fault_at_call(before + 3, Chaos::InvisibleFor { calls: 3 });
    write_one(&mut world, &mut running).await.unwrap();
    let log = world.store.log().split_off(before as usize);
    let entry = ObjectName::Entry(3).store_key(&world.archive().id);
    let looks = log.iter().filter(|call| call.operation == Operation::Head && call.on == entry).count();
    assert!(looks >= 3, "{log:?}");
    assert_eq!(running.catalogue.head(&world.archive().id).unwrap().unwrap().seq, 3);
}

/// A store that acknowledges what it cut off: the entry is not announced, and put again.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_store_cut_off_is_put_again() {
    let mut world = world(|can| can.read_after_write = Visibility::Eventual).await;
    let mut running = world.start().await;
    // Whatever is told of its length, it is not what was sent. (The look does not go on for a minute: the store fails.)
    let before = world.store.calls();
    world.store.fault_at_call(before + 3, Chaos::Short { keep: 40 });
    world.store.fault_at_call(before + 5, Chaos::Fail(ErrorKind::Transient));
    write_one(&mut world, &mut running).await.expect_err("it is not seen with its length");
    assert_eq!(running.catalogue.head(&world.archive().id).unwrap().unwrap().seq, 2);
    world.upload(&mut running).await.unwrap();
    drop(running);
    assert_eq!(world.assert_all_offered_restore("put again").await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_another_length_is_not_believed() {
    let mut world = world(|_| {}).await;
    let mut lies = Promising::new(world.store.clone(), |_| {});
    lies.acknowledges_less = 1;
    world.front = Some(Arc::new(lies));
    let mut running = world.start().await;
    let fault = write_one(&mut world, &mut running).await.unwrap_err();
    assert!(matches!(fault.error, Error::StoreUnreachable(_)), "{fault:?}");
    assert_ne!(fault.retry(), chatkeep_planner::Retry::Never);
    assert_eq!(world.entries().await, [1, 2]);
    // It is there all the same, and found to be ours.
    world.front = None;
    drop(running);
    let mut running = world.start().await;
    world.upload(&mut running).await.unwrap();
    drop(running);
    assert_eq!(world.assert_all_offered_restore("in the end").await, [1, 2, 3]);
}

/// Only puts are permitted: points are made, one after the other and after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_may_only_be_written_to_gets_every_point() {
    let mut world = World::new();
    world.write(&[Level::Base], BEGIN_US).await;
    for written in 2..5 {
        world.front = Some(Arc::new(Permitting::new(world.store.clone(), &[Operation::Put])));
        let mut running = world.start().await;
        assert!(running.opened.log.blind && running.opened.log.confirmed);
        write_one(&mut world, &mut running).await.unwrap();
        assert_eq!(running.catalogue.head(&world.archive().id).unwrap().unwrap().seq, written);
    }
    world.front = None;
    assert_eq!(world.assert_all_offered_restore("written blindly").await, [1, 2, 3, 4]);
}

/// The answer to a put got lost, and nothing can be read back: what has the number is ours, for it was written down before.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_of_a_store_that_cannot_be_read_does_not_end_the_backups() {
    let mut world = World::new();
    world.write(&[Level::Base], BEGIN_US).await;
    world.front = Some(Arc::new(Permitting::new(world.store.clone(), &[Operation::Put])));
    let mut running = world.start().await;
    world.store.fault_at_call(world.store.calls() + 1, Chaos::DoneButFails(ErrorKind::Transient));
    write_one(&mut world, &mut running).await.expect_err("nobody knows");
    drop(running);
    let mut running = world.start().await;
    world.upload(&mut running).await.unwrap();
    assert_eq!(running.catalogue.head(&world.archive().id).unwrap().unwrap().seq, 2);
    // What somebody else wrote was not written down here.
    let foreign = Bytes::from(vec![5; 300]);
    let name = key(&world, ObjectName::Entry(3));
    world.store.inner().put(&name, foreign, PutCondition::Overwrite).await.unwrap();
    let fault = write_one(&mut world, &mut running).await.unwrap_err();
    assert!(matches!(fault.error, Error::WriterFenced(_)), "{fault:?}");
}
