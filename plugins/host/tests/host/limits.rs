//! Limits, and calls that are given up, with a real process at the other end.

use std::sync::Arc;
use std::time::Duration;

use chatkeep_store::{PutCondition, Store as _, StoreKey};

use crate::support::memory_store;

fn key(number: u32) -> StoreKey {
    StoreKey::try_from(format!("a/log/{number}")).unwrap()
}

async fn until_it_runs(store: &chatkeep_store_host::PluginStore, bytes: u64) {
    while store.control().counters().bytes_up < bytes {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_by_its_caller_stores_nothing_and_disturbs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(memory_store(folder.path()));
    store.open().await.unwrap();
    store.control().set_limit(Some(256 << 10));
    for number in 0..3 {
        let before = store.control().counters().bytes_up;
        let put = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.put(&key(number), vec![7; 64 << 20].into(), PutCondition::Overwrite).await }
        });
        until_it_runs(&store, before + 1).await;
        put.abort();
        assert!(put.await.unwrap_err().is_cancelled());
        // at this limit a quarter of a mebibyte would leave in the second after it
        let (at_once, second) = (store.control().counters().bytes_up, Duration::from_secs(1));
        tokio::time::sleep(second).await;
        let later = store.control().counters().bytes_up;
        assert!(later - at_once <= 64 << 10, "{} bytes were sent after it was given up", later - at_once);
    }
    store.control().set_limit(None);
    assert_eq!(store.list("").await.unwrap(), []);
    store.put(&key(9), "x".into(), PutCondition::CreateIfAbsent).await.unwrap();
    assert_eq!(store.list("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn every_request_and_every_byte_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = memory_store(folder.path());
    store.put(&key(1), vec![1; 100_000].into(), PutCondition::CreateIfAbsent).await.unwrap();
    store.put(&key(1), vec![1; 100_000].into(), PutCondition::CreateIfAbsent).await.unwrap_err();
    store.get(&key(1), None).await.unwrap();
    store.get(&key(1), Some(0..10)).await.unwrap();
    store.head(&key(1)).await.unwrap();
    store.delete(&key(1)).await.unwrap();
    let counters = store.control().counters();
    assert_eq!((counters.puts, counters.gets, counters.heads, counters.deletes), (2, 2, 1, 1));
    assert_eq!((counters.bytes_up, counters.bytes_down, counters.others), (200_000, 100_010, 1));
    store.list("").await.unwrap();
    let listed = store.control().counters();
    assert_eq!((listed.lists, listed.bytes_down), (1, 100_010 + "{\"end\":true,\"count\":0}\n".len() as u64));
}
