//! Both ends of the protocol in one process: what a store says arrives, and what it is asked arrives there.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::protocol::{AuthAnswer, AuthRequest};
use chatkeep_store::{
    Capabilities, CreateGuarantee, ErrorKind, ObjectMeta, Opening, PutCondition, PutReceipt, Result, Secrets,
    Store, StoreError, StoreKey, Usage,
};
use chatkeep_store_host::launch::{End, Launch, Launcher, Running, Walls};
use chatkeep_store_host::{PluginStore, Settings};
use chatkeep_store_serve::{Opened, Plugin, serve};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

/// A memory store that fails as it is told, and remembers what it was asked.
#[derive(Clone, Default)]
struct Told {
    memory: MemoryStore,
    fails: Arc<Mutex<Option<ErrorKind>>>,
    short_by: Arc<Mutex<u64>>,
    retained: Arc<Mutex<Vec<(StoreKey, u64)>>>,
    openings: Arc<Mutex<Vec<Opening>>>,
    renewed: Arc<Mutex<Option<Secrets>>>,
    caps: Arc<Mutex<Option<Capabilities>>>,
}

impl Told {
    fn check(&self, key: &StoreKey) -> Result<()> {
        let cause = || "why it is so".into();
        Err(match *self.fails.lock().unwrap() {
            None => return Ok(()),
            Some(ErrorKind::NotFound) => StoreError::NotFound { key: key.clone() },
            Some(ErrorKind::AlreadyExists) => StoreError::AlreadyExists { key: key.clone() },
            Some(ErrorKind::Transient) => StoreError::Transient(cause()),
            Some(ErrorKind::Offline) => StoreError::Offline(cause()),
            Some(ErrorKind::Throttled) => StoreError::Throttled { retry_after: Some(Duration::from_secs(7)) },
            Some(ErrorKind::Auth) => StoreError::Auth(cause()),
            Some(ErrorKind::Permission) => StoreError::Permission(cause()),
            Some(ErrorKind::Quota) => StoreError::Quota(cause()),
            Some(ErrorKind::TooLarge) => StoreError::TooLarge { len: 5, len_max: Some(4) },
            Some(ErrorKind::Corrupt) => StoreError::Corrupt { key: key.clone() },
            Some(ErrorKind::Retained) => StoreError::Retained { key: key.clone() },
            Some(ErrorKind::IncompleteListing) => StoreError::IncompleteListing { reason: "cut".to_owned() },
            Some(ErrorKind::Unsupported) => StoreError::Unsupported { what: "do this" },
            Some(_) => StoreError::Invalid { reason: "nonsense".to_owned() },
        })
    }
}

#[async_trait]
impl Store for Told {
    async fn put(&self, key: &StoreKey, body: Bytes, condition: PutCondition) -> Result<PutReceipt> {
        self.check(key)?;
        let receipt = self.memory.put(key, body, condition).await?;
        Ok(PutReceipt { len: receipt.len - *self.short_by.lock().unwrap() })
    }
    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes> {
        self.check(key)?;
        self.memory.get(key, range).await
    }
    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta> {
        self.check(key)?;
        self.memory.head(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.check(&key())?;
        self.memory.list(prefix).await
    }
    async fn delete(&self, key: &StoreKey) -> Result<()> {
        self.check(key)?;
        self.memory.delete(key).await
    }
    async fn retain(&self, key: &StoreKey, until_s: u64) -> Result<()> {
        self.check(key)?;
        self.retained.lock().unwrap().push((key.clone(), until_s));
        Ok(())
    }
    async fn usage(&self) -> Result<Usage> {
        self.check(&key())?;
        Ok(Usage { used: Some(1), total: None, free: Some(2) })
    }
    fn capabilities(&self) -> Capabilities {
        self.caps.lock().unwrap().unwrap_or(Capabilities { retain: true, ..self.memory.capabilities() })
    }
}

#[async_trait]
impl Opened for Told {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.clone())
    }
    fn secrets_changed(&self) -> bool {
        self.renewed.lock().unwrap().is_some()
    }
    fn renewed_secrets(&self) -> Secrets {
        self.renewed.lock().unwrap().take().unwrap_or_default()
    }
    async fn sign_in(&self, step: AuthRequest) -> Result<AuthAnswer> {
        let answer = |state: &str, step: &str| AuthAnswer {
            state: state.to_owned(),
            step: step.to_owned(),
            ..AuthAnswer::default()
        };
        match (step.step.as_str(), step.answer.as_str()) {
            ("", "") => Ok(answer("ask", "code")),
            ("code", "123456") => Ok(answer("done", "")),
            _ => Err(StoreError::Auth("that is not the code".into())),
        }
    }
}

/// Serves the store in a task of the test: a stand-in for the process, with the real end of the protocol.
struct InTask(Told);

struct Task(JoinHandle<()>);

#[async_trait]
impl Launcher for InTask {
    async fn launch(&self, _: &Launch, listener: BorrowedFd<'_>) -> io::Result<Box<dyn Running>> {
        let listener = StdListener::from(listener.try_clone_to_owned()?);
        listener.set_nonblocking(true)?;
        let (listener, told) = (UnixListener::from_std(listener)?, self.0.clone());
        let opener = move |opening: Opening| {
            let told = told.clone();
            async move {
                told.openings.lock().unwrap().push(opening);
                Ok(Box::new(told) as Box<dyn Opened>)
            }
        };
        let plugin = Plugin::new("told", "1.2", opener);
        let never = std::future::pending::<()>();
        Ok(Box::new(Task(tokio::spawn(async move {
            serve(listener, plugin, never, Duration::ZERO).await.unwrap();
        }))))
    }
}

#[async_trait]
impl Running for Task {
    fn pid(&self) -> Option<u32> {
        None
    }
    fn walls(&self) -> Walls {
        Walls::None
    }
    async fn ended(&mut self) -> End {
        let _ = (&mut self.0).await;
        End { clean: true, words: "the task ended".to_owned() }
    }
    async fn terminate(&mut self) {
        self.0.abort();
    }
    async fn kill(&mut self) {
        self.0.abort();
    }
}

fn key() -> StoreKey {
    StoreKey::try_from("a/log/1").unwrap()
}

struct Ends {
    told: Told,
    store: PluginStore,
    kept: Arc<Mutex<Vec<String>>>,
    folder: tempfile::TempDir,
}

fn ends(read_only: bool) -> Ends {
    let (told, folder) = (Told::default(), tempfile::tempdir().unwrap());
    let mut opening = Opening { read_only, ..Opening::of_url("told://x") };
    opening.options.insert("region".to_owned(), "eu".to_owned());
    opening.secrets.set("token", Zeroizing::new("first".to_owned()));
    let launch = Launch { store: "told".to_owned(), ..Launch::default() };
    let mut settings = Settings::new(launch, Arc::new(InTask(told.clone())), opening, folder.path());
    let kept = Arc::new(Mutex::new(Vec::new()));
    settings.on_secrets = Arc::new({
        let kept = Arc::clone(&kept);
        move |secrets: &Secrets| kept.lock().unwrap().push(secrets.get("token").unwrap().to_owned())
    });
    Ends { told, store: PluginStore::new(settings).unwrap(), kept, folder }
}

#[tokio::test]
async fn every_error_of_a_store_arrives_as_the_same_error_whatever_was_called() {
    let ends = ends(false);
    ends.store.open().await.unwrap();
    let store = &ends.store;
    for kind in ErrorKind::ALL {
        // what a listing names is judged by the host itself
        if kind == ErrorKind::UntrustedListing {
            continue;
        }
        *ends.told.fails.lock().unwrap() = Some(kind);
        let came = [
            store.put(&key(), "hello".into(), PutCondition::Overwrite).await.map(drop).unwrap_err(),
            store.get(&key(), None).await.unwrap_err(),
            store.get(&key(), Some(0..5)).await.unwrap_err(),
            store.head(&key()).await.unwrap_err(),
            store.delete(&key()).await.unwrap_err(),
            store.retain(&key(), 5).await.unwrap_err(),
        ];
        for error in came {
            assert_eq!(error.kind(), kind, "{error}");
            if let StoreError::Throttled { retry_after } = error {
                assert_eq!(retry_after, Some(Duration::from_secs(7)));
            }
        }
        let about_a_key =
            [ErrorKind::NotFound, ErrorKind::AlreadyExists, ErrorKind::Corrupt, ErrorKind::Retained];
        if !about_a_key.contains(&kind) {
            assert_eq!(store.list("a").await.unwrap_err().kind(), kind);
            assert_eq!(store.usage().await.unwrap_err().kind(), kind);
        }
    }
}

#[tokio::test]
async fn what_a_store_is_opened_with_arrives_and_so_does_what_it_can() {
    let ends = ends(false);
    let caps = ends.store.open().await.unwrap();
    assert_eq!(caps, ends.told.capabilities());
    let opening = ends.told.openings.lock().unwrap()[0].clone();
    assert_eq!((opening.url.as_str(), opening.option("region")), ("told://x", Some("eu")));
    assert_eq!(opening.secrets.get("token"), Some("first"));
    assert_eq!(ends.store.state().plugin, Some(("told".to_owned(), "1.2".to_owned())));
    assert_eq!(ends.store.usage().await.unwrap(), Usage { used: Some(1), total: None, free: Some(2) });
    ends.store.retain(&key(), 1_900_000_000).await.unwrap();
    assert_eq!(*ends.told.retained.lock().unwrap(), [(key(), 1_900_000_000)]);
}

#[tokio::test]
async fn other_secrets_open_the_store_anew() {
    let ends = ends(false);
    ends.store.open().await.unwrap();
    ends.store.open().await.unwrap();
    assert_eq!(ends.told.openings.lock().unwrap().len(), 1);
    let mut secrets = Secrets::new();
    secrets.set("token", Zeroizing::new("second".to_owned()));
    ends.store.set_secrets(secrets);
    ends.store.head(&key()).await.unwrap_err();
    let openings = ends.told.openings.lock().unwrap();
    assert_eq!(openings.len(), 2);
    assert_eq!(openings[1].secrets.get("token"), Some("second"));
}

#[tokio::test]
async fn a_renewed_secret_is_kept_once_and_used_from_then_on() {
    let ends = ends(false);
    ends.store.open().await.unwrap();
    let mut renewed = Secrets::new();
    renewed.set("token", Zeroizing::new("renewed".to_owned()));
    *ends.told.renewed.lock().unwrap() = Some(renewed);
    for _ in 0..3 {
        ends.store.list("").await.unwrap();
    }
    assert_eq!(*ends.kept.lock().unwrap(), ["renewed"]);
    ends.store.stop().await;
    ends.store.list("").await.unwrap();
    assert_eq!(ends.told.openings.lock().unwrap().last().unwrap().secrets.get("token"), Some("renewed"));
}

#[tokio::test]
async fn a_sign_in_goes_step_by_step() {
    let ends = ends(false);
    let begin = ends.store.sign_in(&AuthRequest::default()).await.unwrap();
    assert_eq!((begin.state.as_str(), begin.step.as_str()), ("ask", "code"));
    let wrong = AuthRequest { step: begin.step.clone(), answer: "0".to_owned() };
    assert_eq!(ends.store.sign_in(&wrong).await.unwrap_err().kind(), ErrorKind::Auth);
    let right = AuthRequest { step: begin.step, answer: "123456".to_owned() };
    assert_eq!(ends.store.sign_in(&right).await.unwrap().state, "done");
}

#[tokio::test]
async fn nothing_is_written_to_a_store_that_was_opened_for_reading() {
    let ends = ends(true);
    let put = ends.store.put(&key(), "x".into(), PutCondition::Overwrite).await.map(drop);
    let (delete, retain) = (ends.store.delete(&key()).await, ends.store.retain(&key(), 5).await);
    for done in [put, delete, retain] {
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Permission);
    }
    assert_eq!(ends.store.list("").await.unwrap(), []);
}

#[tokio::test]
async fn a_store_that_acknowledges_less_than_it_got_has_a_damaged_object() {
    let ends = ends(false);
    *ends.told.short_by.lock().unwrap() = 1;
    let put = ends.store.put(&key(), "hello".into(), PutCondition::Overwrite).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn what_a_store_cannot_do_is_not_even_asked() {
    let ends = ends(false);
    let none = Capabilities {
        create: CreateGuarantee::None,
        retain: false,
        usage: false,
        object_len_max: Some(4),
        ..MemoryStore::new().capabilities()
    };
    *ends.told.caps.lock().unwrap() = Some(none);
    let create = ends.store.put(&key(), "x".into(), PutCondition::CreateIfAbsent).await;
    assert_eq!(create.unwrap_err().kind(), ErrorKind::Unsupported);
    let large = ends.store.put(&key(), "12345".into(), PutCondition::Overwrite).await;
    assert!(matches!(large, Err(StoreError::TooLarge { len: 5, len_max: Some(4) })));
    assert_eq!(ends.store.retain(&key(), 5).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(ends.store.usage().await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(ends.store.control().counters().others, 1, "only the opening was asked");
}

/// Says what our own client never says, on a connection of its own.
async fn raw(ends: &Ends, request: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    ends.store.open().await.unwrap();
    let socket = ends.folder.path().join("told.sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_caller_who_breaks_the_protocol_is_refused_and_stores_nothing() {
    let ends = ends(false);
    let long_key = format!("PUT /o/{} HTTP/1.1", "a".repeat(201));
    for (first, headers, status, kind) in [
        ("PUT /o/a HTTP/1.1", "content-length: 300000000", 413, "too-large"),
        ("PUT /o/a HTTP/1.1", "transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0", 400, "invalid"),
        ("PUT /o/a HTTP/1.1", "content-length: 0\r\nif-match: \"x\"", 501, "unsupported"),
        ("PUT /o/a HTTP/1.1", "content-length: 0\r\nif-none-match: \"x\"", 501, "unsupported"),
        ("PUT /o/a HTTP/1.1", "content-length: 0\r\ncontent-digest: sha-256=:AAAA:", 422, "corrupt"),
        ("PUT /o/../a HTTP/1.1", "content-length: 0", 400, "invalid"),
        ("PUT /o/A HTTP/1.1", "content-length: 0", 400, "invalid"),
        ("PUT /o/ HTTP/1.1", "content-length: 0", 400, "invalid"),
        (&long_key, "content-length: 0", 400, "invalid"),
        ("PATCH /o/a HTTP/1.1", "x: y", 400, "invalid"),
        ("PATCH /o/a HTTP/1.1", "store-retain-until: tomorrow", 400, "invalid"),
        ("GET /o/a HTTP/1.1", "range: bytes=5-1", 400, "invalid"),
        ("OPTIONS /o/a HTTP/1.1", "x: y", 400, "invalid"),
        ("GET /l/A HTTP/1.1", "x: y", 400, "invalid"),
        ("POST /auth HTTP/1.1", "content-length: 5\r\n\r\nhello", 400, "invalid"),
        ("POST /open HTTP/1.1", "content-length: 2\r\n\r\n{}", 400, "invalid"),
        ("POST /open HTTP/1.1", "content-length: 3000000", 400, "invalid"),
    ] {
        let request = format!("{first}\r\nhost: x\r\nconnection: close\r\n{headers}\r\n\r\n");
        let answer = raw(&ends, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{first} {headers}: {answer}");
        assert!(answer.contains(&format!("store-problem: {kind}\r\n")), "{first} {headers}: {answer}");
        assert!(answer.contains(&format!("\"kind\":\"{kind}\"")), "{first} {headers}: {answer}");
    }
    assert_eq!(ends.store.list("").await.unwrap(), []);
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_as_json_tells_nothing_of_what_was_sent() {
    let ends = ends(false);
    let body = r#"{"protocol":[1],"store":"x","url":"x:","secrets":{"token":["correct-horse"]}}"#;
    let head = format!(
        "POST /open HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let answer = raw(&ends, &format!("{head}{body}")).await;
    assert!(answer.contains("400") && !answer.contains("correct-horse"), "{answer}");
    let other = body.replace("[1]", "[2,3]").replace("[\"correct-horse\"]", "\"x\"");
    let head = head.replace(&body.len().to_string(), &other.len().to_string());
    assert!(raw(&ends, &format!("{head}{other}")).await.contains("speaks protocol 1 only"));
}
