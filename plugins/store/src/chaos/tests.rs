#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use super::*;
use crate::conformance::{Extent, assert_all_passed, run};
use crate::memory::MemoryStore;

fn key(text: &str) -> StoreKey {
    StoreKey::try_from(text).unwrap()
}

fn chaos(seed: u64) -> ChaosStore<MemoryStore> {
    ChaosStore::new(MemoryStore::new(), seed)
}

async fn create(store: &impl Store, name: &str, body: &'static str) -> Result<PutReceipt> {
    store.put(&key(name), Bytes::from_static(body.as_bytes()), PutCondition::CreateIfAbsent).await
}

async fn read(store: &impl Store, name: &str) -> Result<Bytes> {
    store.get(&key(name), None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_script_it_changes_nothing() {
    let results = run(Arc::new(chaos(1)), "conformance", Extent::QUICK).await;
    assert_all_passed(&results);
}

#[tokio::test]
async fn after_the_crash_everything_fails_until_the_power_is_back() {
    let store = chaos(1);
    store.crash_at_call_where(1, LastCall::Lands);
    create(&store, "a/0", "zero").await.unwrap();
    assert_eq!(create(&store, "a/1", "one").await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(create(&store, "a/2", "two").await.unwrap_err().kind(), ErrorKind::Offline);
    assert_eq!(store.list("").await.unwrap_err().kind(), ErrorKind::Offline);
    store.power_on();
    assert_eq!(read(&store, "a/1").await.unwrap(), "one");
    assert_eq!(read(&store, "a/2").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.calls(), 6);
}

#[tokio::test]
async fn the_coin_of_a_crash_falls_both_ways_and_the_same_way_for_one_seed() {
    let landed = async |seed| {
        let store = chaos(seed);
        store.crash_at_call(0);
        create(&store, "a/0", "zero").await.unwrap_err();
        read(store.inner(), "a/0").await.is_ok()
    };
    let mut outcomes = [0; 2];
    for seed in 0..32 {
        assert_eq!(landed(seed).await, landed(seed).await);
        outcomes[usize::from(landed(seed).await)] += 1;
    }
    assert!(outcomes.iter().all(|count| *count > 4), "{outcomes:?}");
}

#[tokio::test]
async fn every_error_kind_can_be_asked_for() {
    for kind in ErrorKind::ALL {
        let store = chaos(1);
        store.fault_next(Fault::Fail(kind));
        assert_eq!(create(&store, "a/0", "zero").await.unwrap_err().kind(), kind);
        assert_eq!(read(&store, "a/0").await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_lost_acknowledgement_leaves_the_object() {
    for fault in [Fault::DoneButFails(ErrorKind::Transient), Fault::ExistsAfterOwnPut] {
        let store = chaos(1);
        store.fault_at_call(0, fault);
        create(&store, "a/0", "zero").await.unwrap_err();
        assert_eq!(read(&store, "a/0").await.unwrap(), "zero");
    }
}

#[tokio::test]
async fn what_was_acknowledged_can_be_damaged_or_gone() {
    let store = chaos(1);
    store.fault_at_call(0, Fault::Short { keep: 2 });
    store.fault_at_call(1, Fault::FlippedBit { bit: 9 });
    store.fault_at_call(2, Fault::Forgotten);
    assert_eq!(create(&store, "a/0", "zero").await.unwrap().len, 4);
    create(&store, "a/1", "abc").await.unwrap();
    create(&store, "a/2", "two").await.unwrap();
    assert_eq!(read(&store, "a/0").await.unwrap(), "ze");
    assert_eq!(read(&store, "a/1").await.unwrap(), "a`c");
    assert_eq!(read(&store, "a/2").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_damaged_read_leaves_the_object_whole() {
    let store = chaos(1);
    create(&store, "a/0", "zero").await.unwrap();
    store.fault_next(Fault::FlippedBit { bit: 0 });
    assert_ne!(read(&store, "a/0").await.unwrap(), "zero");
    assert_eq!(read(&store, "a/0").await.unwrap(), "zero");
}

#[tokio::test]
async fn visibility_is_delayed_by_calls() {
    let store = chaos(1);
    store.fault_at_call(0, Fault::InvisibleFor { calls: 2 });
    create(&store, "a/0", "zero").await.unwrap();
    assert_eq!(read(&store, "a/0").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.list("a").await.unwrap(), []);
    assert_eq!(read(&store, "a/0").await.unwrap(), "zero");
}

#[tokio::test]
async fn a_stale_answer_is_the_one_before() {
    let store = chaos(1);
    for call in [3, 4, 5] {
        store.fault_at_call(call, Fault::Stale);
    }
    create(&store, "a/0", "zero").await.unwrap();
    store.put(&key("a/0"), Bytes::from_static(b"nought"), PutCondition::Overwrite).await.unwrap();
    create(&store, "a/1", "one").await.unwrap();
    assert_eq!(read(&store, "a/0").await.unwrap(), "zero");
    assert_eq!(read(&store, "a/1").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.list("a").await.unwrap().len(), 1);
    assert_eq!(store.list("a").await.unwrap().len(), 2);
}

#[tokio::test]
async fn listings_lie_in_every_way() {
    let store = chaos(1);
    for name in ["a/0", "a/1", "a/2"] {
        create(&store, name, "x").await.unwrap();
    }
    store.fault_next(Fault::ListWithoutEnd);
    assert_eq!(store.list("a").await.unwrap_err().kind(), ErrorKind::IncompleteListing);
    store.fault_next(Fault::ListForeignName);
    assert_eq!(store.list("a").await.unwrap_err().kind(), ErrorKind::UntrustedListing);
    store.fault_next(Fault::ListShrunk { by: 2 });
    assert_eq!(store.list("a").await.unwrap().len(), 1);
    store.fault_next(Fault::ListDuplicates);
    assert_eq!(store.list("a").await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_full_store_still_reads_and_deletes() {
    let store = chaos(1);
    store.set_quota(Some(6));
    create(&store, "a/0", "zero").await.unwrap();
    assert_eq!(create(&store, "a/1", "one").await.unwrap_err().kind(), ErrorKind::Quota);
    assert_eq!(store.usage().await.unwrap().free, Some(2));
    assert_eq!(read(&store, "a/0").await.unwrap(), "zero");
    store.delete(&key("a/0")).await.unwrap();
    create(&store, "a/1", "one").await.unwrap();
}

#[tokio::test]
async fn random_faults_are_as_frequent_as_asked_and_repeat_with_the_seed() {
    let failures = async |seed| {
        let store = chaos(seed);
        store.fault_randomly(250, &[Fault::Fail(ErrorKind::Transient), Fault::Fail(ErrorKind::Quota)]);
        let mut failures = Vec::new();
        for _ in 0..400 {
            failures.push(store.head(&key("a")).await.unwrap_err().kind());
        }
        failures
    };
    let first = failures(5).await;
    assert_eq!(first, failures(5).await);
    assert_ne!(first, failures(6).await);
    let failed = first.iter().filter(|kind| **kind != ErrorKind::NotFound).count();
    assert!((60..140).contains(&failed), "{failed} of 400");
    assert!(first.contains(&ErrorKind::Quota) && first.contains(&ErrorKind::Transient));
}
