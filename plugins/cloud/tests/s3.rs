//! The `s3:` store against moto: the suite every store passes, and what is S3's own.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use chatkeep_store::conformance::{Extent, LOCKED, assert_all_passed, assert_skipped_only, run};
use chatkeep_store::{CreateGuarantee, ErrorKind, PutCondition};
use chatkeep_store_cloud::open;
use chatkeep_store_rig::moto::Moto;
use chatkeep_store_rig::slow::{Deed, Proxy, Response};
use common::{create, key, names, pattern, probing, s3, trusting};

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_with_and_without_a_prefix() {
    let moto = Moto::start();
    moto.bucket("plain", false);
    for place in ["plain/Some-Folder/laptop", "plain"] {
        let store = probing(&moto.endpoint(), place).await;
        let results = run(store.clone(), "suite", Extent::QUICK).await;
        // of the races nothing is left out: the probe found out that conditions hold
        assert_skipped_only(&results, &[LOCKED]);
        assert_eq!(store.capabilities().create, CreateGuarantee::Atomic);
    }
}

/// The bucket has versions, as it must to have locks: nothing that a version more or less is may show.
#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_where_objects_can_be_locked() {
    let moto = Moto::start();
    moto.bucket("locked", true);
    let options = [("retain_mode", "governance"), ("conditions", "on")];
    let store = open(&s3(&moto.endpoint(), "locked/laptop", &options)).await.unwrap();
    assert_skipped_only(&run(store, "suite", Extent::QUICK).await, &[]);
}

/// A thousand objects are one page; this is two.
#[tokio::test(flavor = "multi_thread")]
async fn the_whole_suite_passes_with_a_second_page() {
    let moto = Moto::start();
    moto.bucket("plain", false);
    let store = probing(&moto.endpoint(), "plain/laptop").await;
    assert_all_passed(&run(store, "suite", Extent { object_len: 8 << 20, ..Extent::FULL }).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_above_64_mib_goes_up_in_parts_and_is_still_created_only_once() {
    let moto = Moto::start();
    moto.bucket("plain", false);
    let proxy = Proxy::start(moto.address(), 0);
    let store =
        open(&s3(&format!("http://{}", proxy.address()), "plain", &[("conditions", "on")])).await.unwrap();
    let body = pattern((64 << 20) + 1);
    create(&store, "d/long", body.clone()).await.unwrap();
    assert!(proxy.seen().iter().any(|(method, target)| method == "POST" && target.contains("uploads")));
    assert!(store.get(&key("d/long"), None).await.unwrap() == body);
    assert_eq!(create(&store, "d/long", body.clone()).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    // another writer comes between the look and the end
    proxy.rule(|request| match request.method.as_str() {
        "HEAD" => Deed::Answer(Response::new(404, "")),
        "GET" => Deed::Answer(Response::error(404, "NoSuchKey")),
        _ => Deed::Pass,
    });
    assert_eq!(create(&store, "d/long", body.clone()).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    store.put(&key("d/long"), body, PutCondition::Overwrite).await.unwrap();
    assert_eq!(uploads_left(&moto), 0, "parts were left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_thrown_away_when_an_upload_fails_or_is_cancelled() {
    let moto = Moto::start();
    moto.bucket("plain", false);
    let proxy = Proxy::start(moto.address(), 0);
    let store =
        open(&s3(&format!("http://{}", proxy.address()), "plain", &[("conditions", "on")])).await.unwrap();
    proxy.rule(|request| match request.query("partNumber").as_deref() {
        Some("3") => Deed::Answer(Response::error(507, "QuotaExceeded")),
        _ => Deed::Pass,
    });
    let body = pattern((64 << 20) + 1);
    assert_eq!(create(&store, "d/full", body.clone()).await.unwrap_err().kind(), ErrorKind::Quota);
    assert_eq!(uploads_left(&moto), 0);
    // cancelled while its third part is stuck
    proxy.stall_after(40 << 20);
    let long = tokio::spawn(async move { create(&store, "d/cancelled", body).await });
    while uploads_left(&moto) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    long.abort();
    long.await.unwrap_err();
    proxy.stall_after(u64::MAX >> 1);
    while uploads_left(&moto) > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn uploads_left(moto: &Moto) -> usize {
    let answer = moto.ask(&chatkeep_store_rig::slow::Request::new("GET", "/plain?uploads", b""));
    String::from_utf8(answer.body).unwrap().matches("<UploadId>").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_misconfigured_is_said_in_words() {
    let moto = Moto::start();
    moto.bucket("plain", false);
    let store = trusting(&moto.endpoint(), "nowhere").await;
    let expected = "the bucket `nowhere` does not exist";
    assert_eq!(create(&store, "d/1", "x").await.unwrap_err().to_string(), expected);
    assert_eq!(store.list("").await.unwrap_err().to_string(), expected);
    assert_eq!(store.head(&key("d/1")).await.unwrap_err().to_string(), expected);
    assert_eq!(store.get(&key("d/1"), None).await.unwrap_err().to_string(), expected);
    assert_eq!(store.delete(&key("d/1")).await.unwrap_err().to_string(), expected);
    let class = s3(&moto.endpoint(), "plain", &[("storage_class", "STANDARD_IA")]);
    let store = open(&class).await.unwrap();
    create(&store, "d/1", "x").await.unwrap();
    let answer = moto.ask(&chatkeep_store_rig::slow::Request::new("HEAD", "/plain/d/1", b""));
    assert_eq!(answer.header("x-amz-storage-class"), Some("STANDARD_IA"));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_ours_spoil_a_listing_but_a_folder_made_in_a_console_does_not() {
    let moto = Moto::start();
    moto.bucket("plain", false);
    let put = |name: &str| {
        moto.ask(&chatkeep_store_rig::slow::Request::new("PUT", &format!("/plain/{name}"), b""));
    };
    let store = trusting(&moto.endpoint(), "plain/backups").await;
    create(&store, "d/log/1", "x").await.unwrap();
    put("backups/");
    put("Other-Things/IMG%200001.jpg");
    assert_eq!(names(&store, "").await.unwrap(), ["d/log/1"]);
    for name in ["backups/d/", "backups/d/log/UPPER", "backups/d//2", "backups/d/log/%20"] {
        put(name);
        let error = store.list("d").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UntrustedListing, "{name}: {error}");
        moto.ask(&chatkeep_store_rig::slow::Request::new("DELETE", &format!("/plain/{name}"), b""));
    }
    assert_eq!(names(&store, "d/log").await.unwrap(), ["d/log/1"]);
}
