//! The `gs:` store against a fake of Google's XML interface (see the rig for why it is one).

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use chatkeep_store::conformance::{Extent, LOCKED, assert_skipped_only, run};
use chatkeep_store::{ErrorKind, Opening, Store};
use chatkeep_store_cloud::open;
use chatkeep_store_rig::gcs::{BUCKET, Gcs, service_account};
use common::{create, key};

async fn store(gcs: &Gcs, place: &str) -> Arc<dyn Store> {
    let mut opening = Opening::of_url(&format!("gs://{place}"));
    opening.options.insert("endpoint".to_owned(), gcs.endpoint());
    opening.secrets.set("service_account", service_account().into());
    open(&opening).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_with_and_without_a_prefix() {
    let gcs = Gcs::start();
    for (place, extent) in [
        (format!("{BUCKET}/laptop"), Extent { listing_len: 1001, ..Extent::QUICK }),
        (BUCKET.to_owned(), Extent::QUICK),
    ] {
        let results = run(store(&gcs, &place).await, "suite", extent).await;
        assert_skipped_only(&results, &[LOCKED]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_google_are_understood() {
    let gcs = Gcs::start();
    let error = store(&gcs, "nowhere").await.list("").await.unwrap_err();
    assert_eq!(error.to_string(), "the bucket `nowhere` does not exist");
    let store = store(&gcs, BUCKET).await;
    create(&store, "d/1", "x").await.unwrap();
    gcs.retain();
    assert_eq!(store.delete(&key("d/1")).await.unwrap_err().kind(), ErrorKind::Retained);
    assert_eq!(store.retain(&key("d/1"), 1).await.unwrap_err().kind(), ErrorKind::Unsupported);
}
