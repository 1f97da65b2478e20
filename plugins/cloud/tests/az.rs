//! The `az:` store against Azurite.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use chatkeep_store::conformance::{Extent, LOCKED, assert_all_passed, assert_skipped_only, run};
use chatkeep_store::{ErrorKind, Opening};
use chatkeep_store_cloud::open;
use chatkeep_store_rig::azurite::{ACCOUNT, ACCOUNT_KEY, Azurite};
use chatkeep_store_rig::slow::{Deed, Proxy, Response};
use common::{create, key};

fn opening(endpoint: &str, place: &str, account_key: &str) -> Opening {
    let mut opening = Opening::of_url(&format!("az://{place}"));
    opening.options.insert("account".to_owned(), ACCOUNT.to_owned());
    opening.options.insert("endpoint".to_owned(), endpoint.to_owned());
    opening.secrets.set("account_key", account_key.to_owned().into());
    opening
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_with_and_without_a_prefix() {
    let azurite = Azurite::start();
    azurite.container("vault");
    for place in ["vault/laptop", "vault"] {
        let store = open(&opening(&azurite.endpoint(), place, ACCOUNT_KEY)).await.unwrap();
        let results = run(store, "suite", Extent::QUICK).await;
        assert_skipped_only(&results, &[LOCKED]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_access_signature_is_enough_and_permits_what_it_says() {
    let azurite = Azurite::start();
    azurite.container("vault");
    let with = |permissions: &str| {
        let mut opening = opening(&azurite.endpoint(), "vault/laptop", "");
        opening.secrets = chatkeep_store::Secrets::new();
        opening.secrets.set("sas_token", azurite.sas("vault", permissions).into());
        opening
    };
    let store = open(&with("racwdl")).await.unwrap();
    assert_all_passed(&run(store, "suite", Extent::QUICK).await);
    // `c` creates, and does not replace
    let store = open(&with("c")).await.unwrap();
    create(&store, "d/1", "x").await.unwrap();
    for error in [
        store.put(&key("d/1"), "y".into(), chatkeep_store::PutCondition::Overwrite).await.unwrap_err(),
        store.get(&key("d/1"), None).await.unwrap_err(),
        store.list("").await.unwrap_err(),
        store.delete(&key("d/1")).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Permission, "{error:?}");
        assert!(!format!("{error:?}").contains("sig="), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_azure_are_understood() {
    let azurite = Azurite::start();
    azurite.container("vault");
    let nowhere = open(&opening(&azurite.endpoint(), "nowhere", ACCOUNT_KEY)).await.unwrap();
    let expected = "the bucket `nowhere` does not exist";
    assert_eq!(nowhere.list("").await.unwrap_err().to_string(), expected);
    assert_eq!(nowhere.head(&key("d/1")).await.unwrap_err().to_string(), expected);
    assert_eq!(create(&nowhere, "d/1", "x").await.unwrap_err().to_string(), expected);
    let stranger = open(&opening(&azurite.endpoint(), "vault", "c3RyYW5nZXI=")).await.unwrap();
    // Azure says `AuthenticationFailed` to a wrong key, which is a sign-in; Azurite does not
    assert_eq!(stranger.list("").await.unwrap_err().kind(), ErrorKind::Permission);
    assert_eq!(create(&stranger, "d/1", "x").await.unwrap_err().kind(), ErrorKind::Permission);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_a_policy_holds_is_reported_as_locked() {
    let azurite = Azurite::start();
    azurite.container("vault");
    let proxy = Proxy::start(azurite.address(), 0);
    let endpoint = format!("http://{}/{ACCOUNT}", proxy.address());
    let store = open(&opening(&endpoint, "vault", ACCOUNT_KEY)).await.unwrap();
    create(&store, "d/1", "x").await.unwrap();
    // Azurite has no such policies; this is the answer that Azure documents
    let held = || Response::new(409, "").with("x-ms-error-code", "BlobImmutableDueToPolicy");
    proxy.rule(move |request| if request.method == "DELETE" { Deed::Answer(held()) } else { Deed::Pass });
    assert_eq!(store.delete(&key("d/1")).await.unwrap_err().kind(), ErrorKind::Retained);
    assert_eq!(store.retain(&key("d/1"), 1).await.unwrap_err().kind(), ErrorKind::Unsupported);
}
