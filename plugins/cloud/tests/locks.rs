//! Object locks against moto.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use chatkeep_store::ErrorKind;
use chatkeep_store_cloud::open;
use chatkeep_store_rig::moto::Moto;
use chatkeep_store_rig::slow::{Deed, Proxy, Request};
use common::{create, key, names, s3};

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn locked_until(moto: &Moto, name: &str) -> Option<String> {
    let answer = moto.ask(&Request::new("HEAD", &format!("/vault/{name}"), b""));
    answer.header("x-amz-object-lock-retain-until-date").map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_holds_is_renewed_and_never_shortened() {
    let moto = Moto::start();
    moto.bucket("vault", true);
    for mode in ["compliance", "governance"] {
        let options = [("retain_mode", mode), ("conditions", "on")];
        let store = open(&s3(&moto.endpoint(), "vault/laptop", &options)).await.unwrap();
        assert!(store.capabilities().retain);
        let name = format!("d/{mode}");
        create(&store, &name, "x").await.unwrap();
        assert_eq!(locked_until(&moto, &format!("laptop/{name}")), None);
        store.retain(&key(&name), now_s() + 1_000).await.unwrap();
        let first = locked_until(&moto, &format!("laptop/{name}")).unwrap();
        store.retain(&key(&name), now_s() + 100_000).await.unwrap();
        let second = locked_until(&moto, &format!("laptop/{name}")).unwrap();
        assert!(second > first, "{first} {second}");
        store.retain(&key(&name), now_s() + 10).await.unwrap();
        assert_eq!(locked_until(&moto, &format!("laptop/{name}")), Some(second));
        assert_eq!(store.delete(&key(&name)).await.unwrap_err().kind(), ErrorKind::Retained);
        assert_eq!(store.get(&key(&name), None).await.unwrap(), "x");
        let missing = store.retain(&key("d/missing"), now_s() + 10).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        store.delete(&key("d/missing")).await.unwrap();
    }
}

/// What is said in the manual: without the option, S3 itself puts a marker over a locked object.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_object_that_is_locked_stays_as_a_version() {
    let moto = Moto::start();
    moto.bucket("vault", true);
    let options = [("retain_mode", "compliance"), ("conditions", "on")];
    let locking = open(&s3(&moto.endpoint(), "vault", &options)).await.unwrap();
    create(&locking, "d/1", "x").await.unwrap();
    locking.retain(&key("d/1"), now_s() + 1_000).await.unwrap();
    let plain = open(&s3(&moto.endpoint(), "vault", &[("conditions", "on")])).await.unwrap();
    assert!(!plain.capabilities().retain);
    assert_eq!(plain.retain(&key("d/1"), now_s()).await.unwrap_err().kind(), ErrorKind::Unsupported);
    plain.delete(&key("d/1")).await.unwrap();
    assert!(names(&plain, "").await.unwrap().is_empty());
    let versions = moto.ask(&Request::new("GET", "/vault?versions", b""));
    let versions = String::from_utf8(versions.body).unwrap();
    assert_eq!((versions.matches("<Version>").count(), versions.matches("<DeleteMarker>").count()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_without_leave_to_look_is_set_all_the_same_and_a_bucket_without_locks_says_so() {
    let moto = Moto::start();
    moto.bucket("vault", true);
    moto.bucket("plain", false);
    let proxy = Proxy::start(moto.address(), 0);
    let options = [("retain_mode", "compliance"), ("conditions", "on")];
    let store = open(&s3(&format!("http://{}", proxy.address()), "vault", &options)).await.unwrap();
    create(&store, "d/1", "x").await.unwrap();
    proxy.rule(|request| match request.method.as_str() {
        "PUT" => Deed::Pass,
        _ => Deed::Answer(chatkeep_store_rig::slow::Response::error(403, "AccessDenied")),
    });
    store.retain(&key("d/1"), now_s() + 1_000).await.unwrap();
    assert!(locked_until(&moto, "d/1").is_some());
    let plain = open(&s3(&moto.endpoint(), "plain", &options)).await.unwrap();
    create(&plain, "d/1", "x").await.unwrap();
    assert_eq!(plain.retain(&key("d/1"), now_s() + 1_000).await.unwrap_err().kind(), ErrorKind::Invalid);
}

/// S3 wants a digest of every put into a bucket with locks.
#[tokio::test(flavor = "multi_thread")]
async fn every_put_carries_its_digest() {
    let moto = Moto::start();
    moto.bucket("vault", true);
    let proxy = Proxy::start(moto.address(), 0);
    let store =
        open(&s3(&format!("http://{}", proxy.address()), "vault", &[("conditions", "on")])).await.unwrap();
    proxy.rule(|request| match (request.method.as_str(), request.header("content-md5")) {
        // of `x`
        ("PUT", Some("ndTkYSaMgDT1yFZOFVxnpg==")) => Deed::Pass,
        _ => Deed::HangUp,
    });
    create(&store, "d/1", "x").await.unwrap();
    create(&store, "d/2", "y").await.unwrap_err();
}
