//! Lines that are slow, dead or faulty: a proxy before moto.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chatkeep_store::{ErrorKind, NextStep, PutCondition, Store, StoreError};
use chatkeep_store_rig::moto::Moto;
use chatkeep_store_rig::server::free_port;
use chatkeep_store_rig::slow::{Deed, Proxy, Response};
use common::{create, key, names, pattern, trusting};
use object_store::aws::AmazonS3Builder;
use object_store::{ClientOptions, ObjectStoreExt as _, RetryConfig};

struct World {
    _moto: Moto,
    proxy: Proxy,
    store: Arc<dyn Store>,
}

impl World {
    async fn at(bytes_per_s: u64) -> Self {
        let moto = Moto::start();
        moto.bucket("plain", false);
        let proxy = Proxy::start(moto.address(), bytes_per_s);
        let store = trusting(&format!("http://{}", proxy.address()), "plain").await;
        Self { _moto: moto, proxy, store }
    }

    /// The next `times` requests with this method come to this.
    fn once(&self, method: &'static str, times: u32, deed: impl Fn() -> Deed + Send + Sync + 'static) {
        let left = AtomicU32::new(times);
        self.proxy.rule(move |request| {
            let mine = request.method == method
                && left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok();
            if mine { deed() } else { Deed::Pass }
        });
    }

    fn requests(&self, method: &str) -> usize {
        self.proxy.seen().iter().filter(|(seen, _)| seen == method).count()
    }
}

/// 16 MiB over 2 Mbit/s take 64 s, twice the 30 s that `object_store` gives a request. Here both are an eighth and a tenth.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_object_goes_up_over_a_slow_line_where_a_total_timeout_never_lets_it() {
    let world = World::at(512 << 10).await;
    let body = pattern(4 << 20);
    let theirs = AmazonS3Builder::new()
        .with_endpoint(format!("http://{}", world.proxy.address()))
        .with_bucket_name("plain")
        .with_access_key_id("x")
        .with_secret_access_key("x")
        .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(3)))
        .with_retry(RetryConfig { max_retries: 1, ..RetryConfig::default() })
        .build()
        .unwrap();
    theirs.put(&"d/theirs".into(), body.clone().into()).await.unwrap_err();
    create(&world.store, "d/ours", body.clone()).await.unwrap();
    assert!(world.store.get(&key("d/ours"), None).await.unwrap() == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_stands_is_given_up() {
    let world = World::at(0).await;
    world.proxy.stall_after(1 << 20);
    let error = create(&world.store, "d/1", pattern(16 << 20)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Offline, "{error:?}");
    assert_eq!(error.next_step(), NextStep::WaitUntilReachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_is_given_up() {
    let world = World::at(0).await;
    create(&world.store, "d/1", "x").await.unwrap();
    world.proxy.stall(true);
    for error in [
        world.store.get(&key("d/1"), None).await.unwrap_err(),
        world.store.list("").await.unwrap_err(),
        create(&world.store, "d/2", "x").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Offline, "{error:?}");
    }
    world.proxy.stall(false);
    assert_eq!(world.store.get(&key("d/1"), None).await.unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_reached_is_offline_and_not_broken() {
    let store = trusting(&format!("http://127.0.0.1:{}", free_port()), "plain").await;
    assert_eq!(create(&store, "d/1", "x").await.unwrap_err().kind(), ErrorKind::Offline);
    let store = trusting("https://does-not-exist.invalid", "plain").await;
    assert_eq!(store.list("").await.unwrap_err().kind(), ErrorKind::Offline);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hiccup_is_tried_again_but_not_for_long() {
    let world = World::at(0).await;
    world.once("PUT", 2, || Deed::Answer(Response::error(500, "InternalError")));
    create(&world.store, "d/1", "x").await.unwrap();
    assert_eq!(world.requests("PUT"), 3);
    world.once("GET", u32::MAX, || Deed::Answer(Response::new(502, "<html>bad gateway")));
    assert_eq!(world.store.get(&key("d/1"), None).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(world.requests("GET"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_to_slow_down_is_not_asked_again_at_once() {
    let world = World::at(0).await;
    world.once("PUT", u32::MAX, || Deed::Answer(Response::error(503, "SlowDown").with("retry-after", "17")));
    match create(&world.store, "d/1", "x").await.unwrap_err() {
        StoreError::Throttled { retry_after } => assert_eq!(retry_after, Some(Duration::from_secs(17))),
        other => panic!("{other:?}"),
    }
    world.once("PUT", u32::MAX, || Deed::Answer(Response::new(507, "")));
    assert_eq!(create(&world.store, "d/1", "x").await.unwrap_err().kind(), ErrorKind::Quota);
    world.once("PUT", u32::MAX, || Deed::Answer(Response::error(400, "EntityTooLarge")));
    assert_eq!(create(&world.store, "d/1", "x").await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(world.requests("PUT"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_our_own_lost_request_made_is_ours() {
    let world = World::at(0).await;
    // it was done, and the answer says that it was not
    world.once("PUT", 1, || Deed::PassAndAnswer(Response::error(500, "InternalError")));
    create(&world.store, "d/1", "mine").await.unwrap();
    // it was done, and there is no answer
    world.once("PUT", 1, || Deed::PassAndHangUp);
    create(&world.store, "d/2", "mine").await.unwrap();
    assert_eq!(world.requests("PUT"), 4);
    // the object of somebody else is not ours, whatever was lost, and whether or not it is as long
    for theirs in ["rest", "the rest"] {
        world.store.put(&key("d/3"), theirs.into(), PutCondition::Overwrite).await.unwrap();
        world.once("PUT", 1, || Deed::Answer(Response::error(500, "InternalError")));
        let error = create(&world.store, "d/3", "mine").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(world.store.get(&key("d/3"), None).await.unwrap(), theirs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_cut_off_is_never_taken_for_whole() {
    let world = World::at(0).await;
    let body = pattern(300_000);
    create(&world.store, "d/1", body.clone()).await.unwrap();
    // once: read on from there
    world.once("GET", 1, || Deed::Cut(100_000));
    assert!(world.store.get(&key("d/1"), None).await.unwrap() == body);
    assert_eq!(world.requests("GET"), 2);
    // always: an error
    world.once("GET", u32::MAX, || Deed::Cut(0));
    assert_eq!(world.store.get(&key("d/1"), None).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(world.store.get(&key("d/1"), Some(5..50_000)).await.unwrap_err().kind(), ErrorKind::Transient);
}

/// Whole as an answer, and not what it says it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_shorter_than_it_says_is_never_taken_for_whole() {
    let world = World::at(0).await;
    create(&world.store, "d/1", pattern(1000)).await.unwrap();
    let short = || Response::new(206, "hello").with("content-range", "bytes 0-9/1000").with("etag", "\"x\"");
    world.once("GET", u32::MAX, move || Deed::Answer(short()));
    let error = world.store.get(&key("d/1"), Some(0..10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_was_cut_off_left_nothing() {
    let world = World::at(0).await;
    world.once("PUT", u32::MAX, || Deed::HangUp);
    assert_eq!(create(&world.store, "d/1", "x").await.unwrap_err().kind(), ErrorKind::Transient);
    assert!(names(&world.store, "").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_follow_a_server_that_points_elsewhere() {
    let world = World::at(0).await;
    let elsewhere = Proxy::start(([127, 0, 0, 1], free_port()).into(), 0);
    let location = format!("http://{}/plain/d/1", elsewhere.address());
    world.once("GET", u32::MAX, move || Deed::Answer(Response::new(307, "").with("location", &location)));
    assert_eq!(world.store.get(&key("d/1"), None).await.unwrap_err().kind(), ErrorKind::Transient);
    assert!(elsewhere.seen().is_empty());
    let moved = || Response::error(301, "PermanentRedirect").with("x-amz-bucket-region", "eu-west-1");
    world.once("GET", u32::MAX, move || Deed::Answer(moved()));
    let error = world.store.get(&key("d/1"), None).await.unwrap_err();
    assert!(error.to_string().contains("`region` to `eu-west-1`"), "{error}");
}
