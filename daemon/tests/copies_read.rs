//! What copies are for: a restore when the main store is away or has lost something, and repairs. And copies that are read
//! back themselves.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use chatkeep_format::ObjectName;
use chatkeep_ipc::VerifyDepth;
use chatkeep_planner::{Prunable, RetentionPolicy, SourceId};
use chatkeep_sqlite::Existing;
use chatkeep_store::chaos::ChaosStore;
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{PutCondition, Store};
use chatkeepd::archive::Archive;
use chatkeepd::catalogue::CopyId;
use chatkeepd::copies::{CopyEnd, CopyOrder, bring_up};
use chatkeepd::event::{Outcome, Work};
use chatkeepd::fault::Fault;
use chatkeepd::restore::Destination;
use common::{World, key};

/// Two points of a chat of two packs and more, and a copy of them.
async fn world() -> (World, Arc<MemoryStore>) {
    let mut world = World::chat(16_000).await;
    world.back_up().await;
    world.sql("INSERT INTO m VALUES ('more')");
    world.back_up().await;
    let store = Arc::new(MemoryStore::new());
    let end = copy(&world, &store).await;
    assert!(end.objects >= 5, "{end:?}");
    (world, store)
}

async fn copy(world: &World, store: &Arc<MemoryStore>) -> CopyEnd {
    let id = world.id();
    let (counter, bytes) = (1, world.object(ObjectName::Keyring(1)).await);
    world.tools.catalogue.put_keyring(&id, counter, &bytes).unwrap();
    let order = CopyOrder {
        source: SourceId(0),
        store: "cloud".to_owned(),
        to: archive(world, store),
        main: "nas".to_owned(),
        opened: world.opened.clone(),
        others: Vec::new(),
        waiting: Vec::new(),
        written_seq: 2,
        pins: Vec::new(),
        policy: RetentionPolicy::default(),
        everything: false,
        list: true,
        now_us: 1,
        cancelled: Arc::new(AtomicBool::new(false)),
    };
    bring_up(&world.tools.catalogue, &order, &|_| {}).await.unwrap()
}

fn archive(world: &World, store: &Arc<MemoryStore>) -> Archive {
    Archive { store: store.clone(), id: world.id() }
}

/// Restores the newest point; gives back what the app finds, and the outcome.
async fn restore(world: &World, stores: Vec<(String, Archive)>) -> Result<(bool, Outcome), Fault> {
    let target = tempfile::tempdir().unwrap();
    let destination = Destination {
        folder: std::fs::File::open(target.path()).unwrap().into(),
        file_name: None,
        in_place: false,
        existing: Existing::Refuse,
        label: String::new(),
    };
    let opened = world.opened.clone();
    let outcome = world.run(Work::Restore { opened, stores, seq: 2, destination }).await?;
    let back = std::fs::read(target.path().join("messages.db")).unwrap();
    Ok((back == std::fs::read(world.database()).unwrap(), outcome))
}

fn stores(world: &World, main: Archive, copy: &Arc<MemoryStore>) -> Vec<(String, Archive)> {
    vec![("nas".to_owned(), main), ("cloud".to_owned(), archive(world, copy))]
}

/// Whatever is missing or damaged in the main store, each object once: it comes from the copy, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_takes_from_a_copy_what_the_main_store_does_not_have_intact() {
    let (world, cloud) = world().await;
    let packs = world.packs().await.into_iter().map(ObjectName::Pack);
    for name in packs.chain([ObjectName::Entry(1), ObjectName::Entry(2)]) {
        let good = world.object(name).await;
        let mut flipped = good.to_vec();
        flipped[good.len() / 2] ^= 1;
        for harmed in [None, Some(good.slice(..good.len() / 2)), Some(Bytes::from(flipped))] {
            world.exchange(name, harmed).await;
            restore(&world, vec![("nas".to_owned(), world.opened.archive.clone())]).await.unwrap_err();
            let all = stores(&world, world.opened.archive.clone(), &cloud);
            let (same, outcome) = restore(&world, all).await.unwrap();
            assert!(same, "{name:?}");
            let Outcome::Restored { warning: Some(warning), from_copies: true, damages, .. } = outcome else {
                panic!("{outcome:?}")
            };
            assert!(warning.contains("`cloud`") && warning.contains("`nas`"), "{warning}");
            assert_eq!(
                damages.iter().filter_map(chatkeepd::damage::Damage::name).collect::<Vec<_>>(),
                [name]
            );
        }
        world.exchange(name, Some(good)).await;
    }
    let (same, outcome) =
        restore(&world, stores(&world, world.opened.archive.clone(), &cloud)).await.unwrap();
    assert!(
        same && matches!(outcome, Outcome::Restored { from_copies: false, warning: None, .. }),
        "{outcome:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_does_not_need_the_main_store() {
    let (world, cloud) = world().await;
    let away = Arc::new(ChaosStore::new(MemoryStore::new(), 5));
    away.crash_at_call(0);
    let main = Archive { store: away.clone(), id: world.id() };
    let (same, outcome) = restore(&world, stores(&world, main.clone(), &cloud)).await.unwrap();
    assert!(same);
    let Outcome::Restored { damages, from_copies: true, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(damages, [], "a store that is away is not damaged");
    assert!(away.calls() <= 3, "it is not asked for each object: {}", away.calls());
    let fault = restore(&world, vec![("nas".to_owned(), main)]).await.unwrap_err();
    assert!(matches!(fault.error, chatkeep_ipc::Error::StoreUnreachable(_)), "{fault:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_in_every_store_is_named_as_damage() {
    let (world, cloud) = world().await;
    let name = ObjectName::Pack(world.packs().await[0]);
    let half = world.object(name).await.slice(..1000);
    world.exchange(name, Some(half.clone())).await;
    cloud.put(&key(&world.id(), name), half, PutCondition::Overwrite).await.unwrap();
    let all = stores(&world, world.opened.archive.clone(), &cloud);
    let fault = restore(&world, all).await.unwrap_err();
    assert_eq!(fault.damage().iter().filter_map(chatkeepd::damage::Damage::name).collect::<Vec<_>>(), [name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_main_store_lost_comes_back_from_a_copy_that_has_it_intact() {
    let (world, cloud) = world().await;
    let packs = world.packs().await;
    let (lost, damaged, hopeless) =
        (ObjectName::Entry(1), ObjectName::Pack(packs[0]), ObjectName::Pack(packs[1]));
    let good = [world.object(lost).await, world.object(damaged).await];
    world.exchange(lost, None).await;
    world.exchange(damaged, Some(good[1].slice(..500))).await;
    world.exchange(hopeless, None).await;
    cloud.put(&key(&world.id(), hopeless), good[1].clone(), PutCondition::Overwrite).await.unwrap();
    let fetch = Work::Fetch {
        opened: world.opened.clone(),
        copies: vec![("cloud".to_owned(), archive(&world, &cloud))],
        objects: vec![lost, damaged, hopeless],
    };
    let Outcome::Fetched { objects } = world.run(fetch).await.unwrap() else { panic!() };
    assert_eq!(objects, [lost, damaged]);
    assert_eq!([world.object(lost).await, world.object(damaged).await], good);
    assert_eq!(world.opened.spool.repairs().unwrap(), []);
    assert_eq!(world.verify(VerifyDepth::Chunks).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_read_back_and_what_is_damaged_there_is_sent_again() {
    let (world, cloud) = world().await;
    let verify = async || {
        let (opened, copy) = (world.opened.clone(), archive(&world, &cloud));
        let work = Work::VerifyCopy { opened, store: "cloud".to_owned(), copy };
        let Outcome::CopyVerified { damages, .. } = world.run(work).await.unwrap() else { panic!() };
        damages.iter().filter_map(chatkeepd::damage::Damage::name).collect::<Vec<_>>()
    };
    assert_eq!(verify().await, []);
    let packs = world.packs().await;
    let harmed = [ObjectName::Entry(1), ObjectName::Pack(packs[0]), ObjectName::Pack(packs[1])];
    for name in harmed {
        let mut bytes = world.object(name).await.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        cloud.put(&key(&world.id(), name), bytes.into(), PutCondition::Overwrite).await.unwrap();
    }
    let mut found = verify().await;
    found.sort();
    let mut expected = harmed.to_vec();
    expected.sort();
    assert_eq!(found, expected);
    // As the service does it.
    let lost = [Prunable::Entry(1), Prunable::Pack(packs[0]), Prunable::Pack(packs[1])];
    world.tools.catalogue.spoil(&CopyId::new(&world.id(), "cloud"), &lost).unwrap();
    copy(&world, &cloud).await;
    assert_eq!(verify().await, []);
    assert_eq!(world.verify(VerifyDepth::Chunks).await, [], "nothing was changed in the main store");
}
