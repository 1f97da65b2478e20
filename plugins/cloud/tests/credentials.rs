//! Credentials that are missing, wrong, or good for writing only. moto checks signatures and policies itself.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use chatkeep_store::{ErrorKind, Opening, PutCondition};
use chatkeep_store_cloud::open;
use chatkeep_store_rig::moto::Moto;
use common::{create, key, s3, s3_as};

/// The policy of docs/stores/cloud.md, without its condition on `s3:if-none-match`, which moto does not know.
const APPEND_ONLY: &str = r#"{"Version":"2012-10-17","Statement":[
    {"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::vault/laptop/*"}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_nothing_is_opened_and_so_nobody_is_asked_for_any() {
    for url in ["s3://b", "gs://b", "az://b"] {
        let mut opening = Opening::of_url(url);
        if url.starts_with("az") {
            opening.options.insert("account".to_owned(), "someone".to_owned());
        }
        let error = open(&opening).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("the secret `"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_that_can_only_put_everything_is_appended_and_nothing_else_works() {
    let moto = Moto::start();
    moto.bucket("vault", false);
    let only = moto.only_user(APPEND_ONLY);
    for (conditions, place) in [("on", "vault/laptop"), ("auto", "vault/laptop"), ("off", "vault/laptop")] {
        let options = [("conditions", conditions)];
        let store = open(&s3_as(&moto.endpoint(), place, &options, &only.id, &only.secret)).await.unwrap();
        for name in ["d/pack/1", "d/log/1"] {
            create(&store, &format!("{name}-{conditions}"), "x").await.unwrap();
        }
        store.put(&key("d/over"), "x".into(), PutCondition::Overwrite).await.unwrap();
        let there = key("d/log/1-on");
        assert_eq!(store.get(&there, None).await.unwrap_err().kind(), ErrorKind::Permission);
        assert_eq!(store.head(&there).await.unwrap_err().kind(), ErrorKind::Permission);
        assert_eq!(store.list("").await.unwrap_err().kind(), ErrorKind::Permission);
        assert_eq!(store.delete(&there).await.unwrap_err().kind(), ErrorKind::Permission);
    }
    // the trial of conditions is not permitted there, and puts below are all the same
    let store = open(&s3_as(&moto.endpoint(), "vault", &[], &only.id, &only.secret)).await.unwrap();
    create(&store, "laptop/2", "x").await.unwrap();
    assert_eq!(create(&store, "elsewhere/1", "x").await.unwrap_err().kind(), ErrorKind::Permission);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_ask_for_a_sign_in_and_do_not_show() {
    let moto = Moto::start();
    moto.bucket("vault", false);
    let only = moto.only_user(APPEND_ONLY);
    let stranger = s3(&moto.endpoint(), "vault", &[]);
    let wrong = s3_as(&moto.endpoint(), "vault", &[], &only.id, "hunter2hunter2hunter2hunter2");
    for opening in [stranger, wrong] {
        let store = open(&opening).await.unwrap();
        for error in [
            create(&store, "laptop/1", "x").await.unwrap_err(),
            store.get(&key("laptop/1"), None).await.unwrap_err(),
            store.head(&key("laptop/1")).await.unwrap_err(),
            store.list("").await.unwrap_err(),
            store.delete(&key("laptop/1")).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Auth, "{error:?}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
