//! What a plugin may say that is not so: it costs an error, never a panic and never memory without bound.

use std::sync::Arc;
use std::time::Duration;

use chatkeep_store::{ErrorKind, PutCondition, Secrets, Store as _, StoreError, StoreKey};
use chatkeep_store_host::{Launch, Patience, PluginStore, Settings};
use zeroize::Zeroizing;

use crate::support::scripted::{OPENED, Scripted, answer};

fn key() -> StoreKey {
    StoreKey::try_from("a/log/1").unwrap()
}

struct Stand {
    store: PluginStore,
    _folder: tempfile::TempDir,
}

/// A store whose plugin answers every request but `POST /open` with this.
fn answering(bytes: impl Into<Vec<u8>>) -> Stand {
    let bytes = bytes.into();
    scripted(move |head| if head.starts_with("POST /open") { Vec::new() } else { bytes.clone() })
}

fn scripted(script: impl Fn(String) -> Vec<u8> + Send + Sync + 'static) -> Stand {
    let folder = tempfile::tempdir().unwrap();
    let launch = Launch { store: "liar".to_owned(), ..Launch::default() };
    let mut opening = chatkeep_store::Opening::of_url("x:");
    opening.secrets.set("token", Zeroizing::new("correct-horse".to_owned()));
    let mut settings =
        Settings::new(launch, Arc::new(Scripted::new(script)), opening, &folder.path().join("sockets"));
    let second = Duration::from_secs(1);
    settings.patience =
        Patience { window: second, answer: second, unknown_len: 0, listing: second, ..Patience::default() };
    Stand { store: PluginStore::new(settings).unwrap(), _folder: folder }
}

fn words(error: &StoreError) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

#[track_caller]
fn expect<T: std::fmt::Debug>(done: Result<T, StoreError>, kind: ErrorKind) -> String {
    let error = done.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", words(&error));
    words(&error)
}

#[tokio::test]
async fn a_status_that_a_request_does_not_have_is_an_error() {
    for (status, kind) in [
        ("200 OK", ErrorKind::Invalid),
        ("204 No Content", ErrorKind::Invalid),
        ("302 Found", ErrorKind::Invalid),
        ("299 What", ErrorKind::Invalid),
        ("418 Teapot", ErrorKind::Invalid),
        ("500 Oh", ErrorKind::Transient),
        ("599 Oh", ErrorKind::Transient),
        ("999 Oh", ErrorKind::Transient),
        ("404 No", ErrorKind::NotFound),
    ] {
        let stand = answering(answer(status, "", ""));
        expect(stand.store.put(&key(), "x".into(), PutCondition::Overwrite).await, kind);
    }
    for bytes in
        ["HTTP/1.1 7 OK\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "SSH-2.0-OpenSSH\r\n", "\0\0\0\0\0\0\0\0\r\n\r\n"]
    {
        let stand = answering(bytes);
        expect(stand.store.get(&key(), None).await, ErrorKind::Transient);
    }
}

#[tokio::test]
async fn headers_without_end_are_an_error() {
    let many = "x: y\r\n".repeat(200_000);
    expect(answering(answer("200 OK", &many, "")).store.get(&key(), None).await, ErrorKind::Transient);
    let long = format!("x: {}\r\n", "y".repeat(10 << 20));
    expect(answering(answer("200 OK", &long, "")).store.get(&key(), None).await, ErrorKind::Transient);
}

#[tokio::test]
async fn a_length_that_is_not_kept_is_an_error() {
    let short = answering("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc");
    // the connection stays open, so nothing but the clock says that there is no more
    expect(short.store.get(&key(), None).await, ErrorKind::Transient);
    let huge = answering("HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\nabc");
    expect(huge.store.get(&key(), None).await, ErrorKind::Invalid);
    let two = answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabc");
    expect(two.store.get(&key(), None).await, ErrorKind::Transient);
    let none = answering("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    expect(none.store.head(&key()).await, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_an_error() {
    for range in ["bytes 0-2/100", "bytes 5-8/100", "bytes 5-7/100", "garbage"] {
        let stand = answering(answer("206 Partial", &format!("content-range: {range}\r\n"), "abc"));
        expect(stand.store.get(&key(), Some(5..9)).await, ErrorKind::Invalid);
    }
    let longer = answering(answer("206 Partial", "content-range: bytes 5-7/100\r\n", "abc"));
    expect(longer.store.get(&key(), Some(5..7)).await, ErrorKind::Invalid);
    let good = answering(answer("206 Partial", "content-range: bytes 5-7/8\r\n", "abc"));
    assert_eq!(good.store.get(&key(), Some(5..9)).await.unwrap(), "abc");
    let whole = answering(answer("200 OK", "", "0123456789"));
    assert_eq!(whole.store.get(&key(), Some(5..9)).await.unwrap(), "5678");
    let without_range = answering(answer("206 Partial", "content-range: bytes 0-2/3\r\n", "abc"));
    expect(without_range.store.get(&key(), None).await, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_listing_is_believed_only_with_its_end() {
    let list = async |body: &str| answering(answer("200 OK", "", body)).store.list("a").await;
    assert_eq!(list("{\"k\":\"a/1\",\"n\":5}\n{\"end\":true,\"count\":1}\n").await.unwrap().len(), 1);
    let long_line = format!("{{\"k\":\"{}\",\"n\":5}}\n", "a".repeat(2000));
    for body in [
        "",
        "{\"k\":\"a/1\",\"n\":5}\n",
        "{\"k\":\"a/1\",\"n\":5}\n{\"end\":true,\"count\":2}\n",
        "{\"end\":true,\"count\":0}\n{\"k\":\"a/1\",\"n\":5}\n",
        "{\"end\":true,\"count\":0}\n{\"end\":true,\"count\":0}\n",
        "{\"end\":false,\"count\":0}\n",
        "{\"k\":\"a/1\",\"n\":5}\n{\"end\":true,\"count\":1}",
        "{\"k\":\"a/1\"}\n{\"end\":true,\"count\":1}\n",
        "{\"k\":\"a/1\",\"n\":-5}\n{\"end\":true,\"count\":1}\n",
        "\n{\"end\":true,\"count\":0}\n",
        "[]\n",
        "<html>\n",
        &long_line,
    ] {
        expect(list(body).await, ErrorKind::IncompleteListing);
    }
    let elsewhere = list("{\"k\":\"b/1\",\"n\":5}\n{\"end\":true,\"count\":1}\n").await;
    expect(elsewhere, ErrorKind::UntrustedListing);
    let breaks_off = answering("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"k\":\"a/1\",\"n\":5}\n");
    expect(breaks_off.store.list("a").await, ErrorKind::Transient);
}

#[tokio::test]
async fn a_listing_or_a_line_without_end_takes_no_memory_without_bound() {
    let folder = tempfile::tempdir().unwrap();
    // real bytes from a real process: `yes` writes lines for ever
    let endless = |name: &str, line: &str| {
        let text = format!(
            "#!/usr/bin/python3\nimport socket, sys\nlistener = socket.socket(fileno=0)\nwhile True:\n \
             c, _ = listener.accept()\n while True:\n  head = b''\n  while not head.endswith(b'\\r\\n\\r\\n'): head += c.recv(1)\n  \
             if head.startswith(b'POST /open'):\n   n = int(head.lower().split(b'content-length: ')[1].split()[0])\n   c.recv(n)\n   \
             b = b'{OPENED}'\n   c.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n' % len(b) + b)\n   continue\n  \
             c.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n')\n  try:\n   while True: c.sendall({line})\n  except OSError: break\n"
        );
        crate::support::script(folder.path(), name, &text)
    };
    for (name, line) in [
        ("lines", "b''.join(b'{\"k\":\"a/%09d\",\"n\":1}\\n' % n for n in range(50000))"),
        ("line", "b'x' * 65536"),
    ] {
        let settings = crate::support::settings(endless(name, line), "x:", folder.path());
        let store = PluginStore::new(settings).unwrap();
        let error = expect(store.list("a").await, ErrorKind::IncompleteListing);
        assert!(error.contains("more than 2000000") || error.contains("line that is too long"), "{error}");
        if name == "line" {
            expect(store.get(&key(), None).await, ErrorKind::Invalid);
        }
        store.close().await;
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_is_given_up() {
    let silent = answering("");
    let error = expect(silent.store.head(&key()).await, ErrorKind::Transient);
    assert!(error.contains("no answer in 1 s"), "{error}");
    expect(silent.store.list("").await, ErrorKind::Transient);
    expect(silent.store.put(&key(), "x".into(), PutCondition::Overwrite).await, ErrorKind::Transient);
    let stops = answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc");
    let error = expect(stops.store.get(&key(), None).await, ErrorKind::Transient);
    assert!(error.contains("bytes moved"), "{error}");
}

#[tokio::test]
async fn an_opening_that_makes_no_sense_is_an_error_and_is_tried_again() {
    for body in ["", "{}", "[1]", r#"{"protocol":2,"name":"x","version":"1"}"#, "null"] {
        let stand = scripted(move |_| answer("200 OK", "", body));
        expect(stand.store.open().await, ErrorKind::Invalid);
        expect(stand.store.open().await, ErrorKind::Invalid);
    }
    let long = format!(r#"{{"protocol":1,"name":"{}","version":"1"}}"#, "x".repeat(2 << 20));
    let stand = scripted(move |_| answer("200 OK", "", &long));
    expect(stand.store.open().await, ErrorKind::Invalid);
    let odd =
        r#"{"protocol":1,"name":"x","version":"1","caps":{"parallel":65535,"create":"sure","later":[]}}"#;
    let stand = scripted(move |_| answer("200 OK", "", odd));
    let caps = stand.store.open().await.unwrap();
    assert_eq!((caps.parallel, caps.create), (32, chatkeep_store::CreateGuarantee::None));
}

#[tokio::test]
async fn problems_are_read_from_body_header_or_status_and_never_tell_a_secret() {
    let detail = r#"{"kind":"auth","detail":"token correct-horse is no good\u001b[2J"}"#;
    let error =
        expect(answering(answer("401 No", "", detail)).store.get(&key(), None).await, ErrorKind::Auth);
    assert!(error.contains("token (redacted) is no good") && !error.contains('\u{1b}'), "{error}");
    let offline = answering(answer("503 No", "store-problem: offline\r\n", ""));
    expect(offline.store.head(&key()).await, ErrorKind::Offline);
    let throttled =
        answering(answer("429 No", "retry-after: 7\r\n", "")).store.head(&key()).await.unwrap_err();
    assert!(matches!(throttled, StoreError::Throttled { retry_after: Some(wait) } if wait.as_secs() == 7));
    let long = format!(r#"{{"kind":"quota","detail":"{}"}}"#, "x".repeat(1 << 20));
    expect(answering(answer("507 No", "", &long)).store.get(&key(), None).await, ErrorKind::Quota);
    expect(answering(answer("507 No", "", "<html>")).store.get(&key(), None).await, ErrorKind::Quota);
}

#[tokio::test]
async fn renewed_secrets_are_fetched_kept_and_used_when_the_store_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let (sent, seen) = std::sync::mpsc::channel();
    let script = move |head: String| match head.split(' ').nth(1) {
        Some("/open") => Vec::new(),
        Some("/secrets") => answer("200 OK", "", r#"{"token":"renewed-horse"}"#),
        // for ever, as a plugin that never notices would say
        _ => answer("200 OK", "store-secrets-changed: 1\r\n", "x"),
    };
    let launch = Launch { store: "renewing".to_owned(), ..Launch::default() };
    let opening = chatkeep_store::Opening::of_url("x:");
    let mut settings = Settings::new(launch, Arc::new(Scripted::new(script)), opening, folder.path());
    settings.on_secrets = Arc::new(move |secrets: &Secrets| {
        sent.send(secrets.get("token").unwrap().to_owned()).unwrap();
    });
    let store = PluginStore::new(settings).unwrap();
    store.get(&key(), None).await.unwrap();
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["renewed-horse"]);
}
