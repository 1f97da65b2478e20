//! The `dav:` store at a server that lies, breaks off or falls silent. The server is a fake.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chatkeep_store::{ErrorKind, PutCondition, Result, Store, StoreError};
use chatkeep_store_dav::{Tuning, open_tuned};
use common::fake::{Fake, Fault, Request, file, folder_with, multistatus};
use common::{TUNING, create, key, names, opening};

async fn open(fake: &Fake) -> Arc<dyn Store> {
    open_tuned(&opening(fake.port), TUNING).await.unwrap()
}

async fn world() -> (Fake, Arc<dyn Store>) {
    let fake = Fake::start();
    let store = open(&fake).await;
    (fake, store)
}

fn is(request: &Request, method: &str) -> bool {
    request.method == method
}

fn lists(request: &Request, path: &str) -> bool {
    is(request, "PROPFIND") && request.headers["depth"] == "1" && request.path == path
}

/// What listing everything answers when the folder `a/log` is listed like this.
async fn listing_of(answer: String) -> Result<Vec<String>> {
    let (fake, store) = world().await;
    fake.file("/backups/a/log/1", "x");
    fake.file("/backups/b", "x");
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1", "b"]);
    fake.plan(move |request| lists(request, "/backups/a/log/").then(|| Fault::Raw(answer.clone())));
    names(&*store).await
}

fn multi(responses: &[String]) -> String {
    let body = multistatus(responses);
    format!("HTTP/1.1 207 Multi-Status\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_listing_with_a_part_that_is_not_whole_is_an_error() {
    let itself = folder_with("/backups/a/log/", "");
    let whole = multi(&[itself.clone(), file("/backups/a/log/1", 1)]);
    assert_eq!(listing_of(whole.clone()).await.unwrap(), ["a/log/1", "b"]);
    let no_status = whole.replace("200 OK", "500 KO");
    let no_len = whole.replace("getcontentlength", "getcontentlangth");
    for (answer, kind) in [
        ("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_owned(), ErrorKind::Transient),
        ("HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n".to_owned(), ErrorKind::IncompleteListing),
        // the connection ends before the length is reached, or before the XML ends
        (whole[..whole.len() - 30].to_owned(), ErrorKind::Transient),
        (no_length(&whole[..whole.len() - 30]), ErrorKind::Transient),
        (multi(&[]).replace("</multistatus>", "              "), ErrorKind::IncompleteListing),
        (multi(&[]), ErrorKind::IncompleteListing),
        (multi(&[file("/backups/a/log/1", 1)]), ErrorKind::IncompleteListing),
        (no_status, ErrorKind::IncompleteListing),
        (no_len, ErrorKind::IncompleteListing),
        (
            "HTTP/1.1 207 Multi-Status\r\nContent-Length: 13\r\n\r\n<html></html>".to_owned(),
            ErrorKind::IncompleteListing,
        ),
    ] {
        assert_eq!(listing_of(answer.clone()).await.unwrap_err().kind(), kind, "{answer}");
    }
}

fn no_length(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.lines().next().unwrap();
    format!("{status}\r\n\r\n{body}")
}

#[tokio::test]
async fn a_listing_that_names_what_lies_elsewhere_is_not_believed() {
    let itself = folder_with("/backups/a/log/", "");
    for href in [
        "/backups/a/other/1",
        "/backups/b",
        "/etc/passwd",
        "/backups/a/log/../../b",
        "/backups/a/log/%2e%2e/b",
        "/backups/a/log/deeper/1",
        "/backups/a/log/x%2fy",
        "/backups/a/log/%zz",
        "/backups/a/log/%00",
        "/backups/a/log/Big",
        "/backups/a/logs",
    ] {
        let error = listing_of(multi(&[itself.clone(), file(href, 1)])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UntrustedListing, "{href}");
    }
    let endless = multi(&[itself.clone(), folder_with("/backups/a/log/Sub/", "")]);
    assert_eq!(listing_of(endless).await.unwrap_err().kind(), ErrorKind::UntrustedListing);
    // a server behind a proxy names itself otherwise; the path is what counts
    let absolute = multi(&[itself, file("http://inside.example:81/backups/a/log/7", 1)]);
    assert_eq!(listing_of(absolute).await.unwrap(), ["a/log/7", "b"]);
}

#[tokio::test]
async fn a_short_upload_that_the_server_acknowledges_is_noticed() {
    let (fake, store) = world().await;
    fake.plan(|request| is(request, "PUT").then_some(Fault::Keeps(3)));
    assert_eq!(create(&*store, "a/log/1").await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(fake.seen().iter().all(|request| !is(request, "MOVE")), "it was moved into place");
}

#[tokio::test]
async fn a_condition_is_asked_with_overwrite_and_not_with_a_header_that_servers_ignore() {
    let (fake, store) = world().await;
    create(&*store, "a/log/1").await.unwrap();
    assert_eq!(create(&*store, "a/log/1").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let seen = fake.seen();
    assert!(seen.iter().all(|request| !request.headers.contains_key("if-none-match")));
    let moves: Vec<_> = seen.iter().filter(|request| is(request, "MOVE")).collect();
    assert_eq!(moves.len(), 2);
    assert!(moves.iter().all(|request| request.headers["overwrite"] == "F"));
    assert!(seen.iter().filter(|request| is(request, "PUT")).all(|put| put.path.contains("/.chatkeep-tmp/")));
    assert_eq!(fake.paths(), ["/backups/a/log/1"]);
}

#[tokio::test]
async fn a_put_whose_last_answer_got_lost_is_looked_up() {
    for condition in [PutCondition::CreateIfAbsent, PutCondition::Overwrite] {
        let (fake, store) = world().await;
        fake.plan(|request| is(request, "MOVE").then_some(Fault::Lost));
        let receipt = store.put(&key("a/log/1"), "body".into(), condition).await.unwrap();
        assert_eq!(receipt.len, 4);
        assert_eq!(fake.paths(), ["/backups/a/log/1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beside_an_overwrite_see_the_object_although_the_server_removes_it_first() {
    let (fake, store) = world().await;
    let (a, len) = (key("a/log/1"), "a/log/1".len() as u64);
    create(&*store, "a/log/1").await.unwrap();
    fake.plan(|request| is(request, "MOVE").then(|| Fault::RemovesFirst(Duration::from_millis(300))));
    for call in 0..3 {
        let (putting, target) = (Arc::clone(&store), a.clone());
        let put =
            tokio::spawn(
                async move { putting.put(&target, "a/log/2".into(), PutCondition::Overwrite).await },
            );
        while !fake.paths().is_empty() && fake.paths() != [put_aside(&fake)] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match call {
            0 => assert_eq!(store.get(&a, None).await.unwrap(), "a/log/2"),
            1 => assert_eq!(store.head(&a).await.unwrap().len, len),
            _ => assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]),
        }
        put.await.unwrap().unwrap();
    }
}

/// The temporary file, if there is one.
fn put_aside(fake: &Fake) -> String {
    fake.paths().into_iter().find(|path| path.contains("/.chatkeep-tmp/")).unwrap_or_default()
}

#[tokio::test]
async fn each_refusal_of_a_put_leads_to_what_helps() {
    for (method, status, header, kind) in [
        ("PUT", "401 Unauthorized", "X: y", ErrorKind::Auth),
        ("PUT", "403 Forbidden", "X: y", ErrorKind::Permission),
        ("PUT", "413 Too Large", "X: y", ErrorKind::TooLarge),
        ("PUT", "423 Locked", "X: y", ErrorKind::Transient),
        ("PUT", "429 Slow Down", "Retry-After: 7", ErrorKind::Throttled),
        ("PUT", "503 Maintenance", "Retry-After: 7", ErrorKind::Throttled),
        ("PUT", "503 Overloaded", "X: y", ErrorKind::Transient),
        ("PUT", "507 Insufficient Storage", "X: y", ErrorKind::Quota),
        ("MOVE", "507 Insufficient Storage", "X: y", ErrorKind::Quota),
        ("MOVE", "423 Locked", "X: y", ErrorKind::Transient),
        ("MOVE", "403 Forbidden", "X: y", ErrorKind::Permission),
        ("MKCOL", "507 Insufficient Storage", "X: y", ErrorKind::Quota),
        ("PUT", "307 Temporary Redirect", "Location: http://127.0.0.1:1/elsewhere", ErrorKind::Invalid),
    ] {
        let (fake, store) = world().await;
        fake.plan(move |request| is(request, method).then_some(Fault::Status(status, header)));
        let error = create(&*store, "a/log/1").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{method} {status}");
        if let StoreError::Throttled { retry_after } = error {
            assert_eq!(retry_after, Some(Duration::from_secs(7)));
        }
        assert!(!fake.paths().contains(&"/backups/a/log/1".to_owned()));
    }
}

#[tokio::test]
async fn a_redirection_is_followed_for_reading_and_on_the_same_server_only() {
    let (fake, store) = world().await;
    fake.file("/new/1", "moved");
    fake.plan(|request| {
        (is(request, "GET") && request.path == "/backups/a")
            .then_some(Fault::Status("302 Found", "Location: /new/1"))
    });
    assert_eq!(store.get(&key("a"), None).await.unwrap(), "moved");
    fake.plan(|request| {
        is(request, "GET").then_some(Fault::Status("301 Moved", "Location: http://localhost:1/backups/a"))
    });
    let error = store.get(&key("a"), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("http://localhost:1/backups/a"), "{error}");
    fake.plan(|request| is(request, "GET").then_some(Fault::Status("302 Found", "Location: /backups/b")));
    assert_eq!(store.get(&key("a"), None).await.unwrap_err().kind(), ErrorKind::Transient, "in circles");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_or_sends_other_ones_gives_no_wrong_bytes() {
    let (fake, store) = world().await;
    fake.file("/backups/a", "0123456789");
    assert_eq!(store.get(&key("a"), Some(2..5)).await.unwrap(), "234");
    assert_eq!(store.get(&key("a"), Some(8..15)).await.unwrap(), "89");
    assert_eq!(store.get(&key("a"), Some(20..25)).await.unwrap(), "");
    for (range, body) in
        [("0-2/10", "012"), ("2-4/10", "23"), ("2-3/10", "23"), ("2-4/*", "234"), ("", "234")]
    {
        let answer = format!(
            "HTTP/1.1 206 Partial\r\nContent-Range: bytes {range}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        fake.plan(move |request| is(request, "GET").then(|| Fault::Raw(answer.clone())));
        let kind = store.get(&key("a"), Some(2..5)).await.unwrap_err().kind();
        assert_eq!(kind, ErrorKind::Transient, "{range}");
    }
}

#[tokio::test]
async fn an_object_that_breaks_off_is_an_error() {
    let (fake, store) = world().await;
    for answer in [
        "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 10\r\n\r\n01234",
        "HTTP/1.1 200 OK\r\nETag: \"1\"\r\n\r\n01234",
    ] {
        fake.plan(move |request| is(request, "GET").then(|| Fault::Raw(answer.to_owned())));
        assert_eq!(store.get(&key("a"), None).await.unwrap_err().kind(), ErrorKind::Transient, "{answer}");
    }
}

const IMPATIENT: Tuning =
    Tuning { stall: Duration::from_millis(300), connect: Duration::from_millis(300), slowest: 1 << 40 };

#[tokio::test]
async fn silence_ends_a_request_and_slowness_does_not() {
    let fake = Fake::start();
    let store = open_tuned(&opening(fake.port), IMPATIENT).await.unwrap();
    fake.plan(|request| is(request, "GET").then_some(Fault::Silence));
    assert_eq!(store.get(&key("a"), None).await.unwrap_err().kind(), ErrorKind::Transient);
    fake.plan(|request| is(request, "PUT").then_some(Fault::Silence));
    assert_eq!(create(&*store, "a/log/1").await.unwrap_err().kind(), ErrorKind::Transient);
}

/// Nothing of it is read, and what fits into buffers on the way is far less than is sent.
#[tokio::test]
async fn a_server_that_stops_reading_ends_an_upload() {
    let fake = Fake::start();
    let store = open_tuned(&opening(fake.port), IMPATIENT).await.unwrap();
    fake.deaf();
    let put = store.put(&key("a/pack/1"), Bytes::from(vec![1; 64 << 20]), PutCondition::Overwrite).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::Transient);
}

#[tokio::test]
async fn a_quota_is_told_as_far_as_the_server_tells_it() {
    let fake = Fake::start();
    let quota = |free: &str| {
        format!(
            "<quota-available-bytes>{free}</quota-available-bytes><quota-used-bytes>40</quota-used-bytes>"
        )
    };
    fake.properties(&quota("60"));
    let store = open(&fake).await;
    assert!(store.capabilities().usage);
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.used, usage.free, usage.total), (Some(40), Some(60), Some(100)));
    // Nextcloud's "without a bound"
    fake.properties(&quota("-3"));
    let usage = open(&fake).await.usage().await.unwrap();
    assert_eq!((usage.used, usage.free, usage.total), (Some(40), None, None));
    fake.properties("");
    let store = open(&fake).await;
    assert!(!store.capabilities().usage);
    assert_eq!(store.usage().await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_store_that_is_made_by_opening_it_knows_its_quota() {
    let fake = Fake::start();
    fake.properties("<quota-used-bytes>40</quota-used-bytes>");
    let before = Mutex::new(true);
    fake.plan(move |request| {
        let first = std::mem::take(&mut *before.lock().unwrap());
        (first && is(request, "PROPFIND")).then_some(Fault::Status("404 Not Found", "X: y"))
    });
    assert!(open(&fake).await.capabilities().usage);
    assert!(fake.seen().iter().any(|request| is(request, "MKCOL") && request.path == "/backups/"));
}

#[tokio::test]
async fn a_connection_that_the_server_had_closed_already_is_made_again() {
    let (fake, store) = world().await;
    let before = Mutex::new(BTreeSet::new());
    fake.plan(move |request| {
        let what = (request.method.clone(), request.path.clone());
        before.lock().unwrap().insert(what).then(|| Fault::Raw(String::new()))
    });
    create(&*store, "a/log/1").await.unwrap();
    assert_eq!(names(&*store).await.unwrap(), ["a/log/1"]);
}

#[tokio::test]
async fn what_is_not_webdav_is_said_to_be_none() {
    let fake = Fake::start();
    fake.plan(|request| {
        is(request, "PROPFIND").then_some(Fault::Status("405 Method Not Allowed", "Allow: GET"))
    });
    let error = open_tuned(&opening(fake.port), TUNING).await.err().unwrap();
    assert!(error.to_string().contains("WebDAV"), "{error}");
}
