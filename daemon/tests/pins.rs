//! The whole service in this process, asked over D-Bus as by anybody: what is pinned stays, what is forgotten is shown.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chatkeep_ipc::proxy::{DatabaseProxy, EncryptionProxy, JobProxy, Options, connect_stream};
use chatkeep_ipc::{Error, Peer, Secret, Server, Settings, names};
use chatkeep_store_host::Spawn;
use chatkeepd::catalogue::Catalogue;
use chatkeepd::config::Config;
use chatkeepd::courier::Courier;
use chatkeepd::event::Event;
use chatkeepd::guard::Book;
use chatkeepd::jobs::Tools;
use chatkeepd::keys::KeyFiles;
use chatkeepd::paths::Paths;
use chatkeepd::service::Service;
use chatkeepd::stores::Opener;
use tokio::net::UnixStream;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinHandle;
use zbus::zvariant::{OwnedFd, OwnedObjectPath, OwnedValue};

const DIGITS: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

type Point = HashMap<String, OwnedValue>;

/// A machine with a database, a store in a folder, and settings that keep only the newest point.
struct Machine {
    folder: tempfile::TempDir,
}

/// The service at work on it.
struct Daemon {
    events: Sender<Event>,
    connection: zbus::Connection,
    _peer: Peer,
    ended: JoinHandle<u8>,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["data/keys", "state/tables", "store", "run"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let machine = Self { folder };
        machine.write(10);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, rows: u64) {
        let database = rusqlite::Connection::open(self.path("chat.db")).unwrap();
        database.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS m (t TEXT)").unwrap();
        for row in 0..rows {
            database.execute("INSERT INTO m VALUES (?1)", [format!("message {row}")]).unwrap();
        }
    }

    fn config(&self) -> Config {
        let text = format!(
            "[capture]\nquiet = '1h'\nmax_age = '1h'\n\
             [retention]\neverything_for = '0s'\nhourly_for = '0s'\ndaily_for = '0s'\nmonthly_for = '0s'\n\
             latest = 1\nhourly = 0\ndaily = 0\nmonthly = 0\n\
             [[store]]\nname = 'disk'\nurl = 'file://{}'\n[[source]]\nname = 'chat'\npath = '{}'\n",
            self.path("store").display(),
            self.path("chat.db").display()
        );
        Config::parse(&text, Path::new("config.toml")).unwrap()
    }

    async fn start(&self) -> Daemon {
        let (calls, mut incoming_calls) = channel(16);
        let server = Server::new(calls, Settings::default());
        let (events, incoming) = channel(1024);
        let forward = events.clone();
        tokio::spawn(async move {
            while let Some(call) = incoming_calls.recv().await {
                if forward.send(Event::Call(call)).await.is_err() {
                    return;
                }
            }
        });
        let paths = Paths {
            config: self.path("config.toml"),
            data: self.path("data"),
            state: self.path("state"),
            runtime: self.path("run"),
        };
        let catalogue = Catalogue::open(&self.path("state/cache")).unwrap();
        let key_store = Arc::new(KeyFiles::new(self.path("data/keys")));
        let opener = Opener::with_launcher(&paths, key_store.clone(), Arc::new(Spawn::new()));
        let tools = Tools {
            opener: Arc::new(opener),
            catalogue: catalogue.clone(),
            key_store,
            book: Book::new(Arc::new(Courier::new(self.path("run/courier.sock"))), catalogue),
            notify: false,
            server: server.clone(),
            paths: Arc::new(paths),
        };
        let service = Service::new(tools.clone(), self.config(), self.path("config.toml")).unwrap();
        let ended = tokio::spawn(chatkeepd::hands::run(service, tools, events.clone(), incoming));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (peer, client) = tokio::join!(server.serve_peer(theirs), connect_stream(ours));
        let daemon = Daemon { events, connection: client.unwrap(), _peer: peer.unwrap(), ended };
        while daemon.database().await.state().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        daemon
    }
}

impl Daemon {
    async fn database(&self) -> DatabaseProxy<'_> {
        let path = names::database_path("chat");
        let builder = DatabaseProxy::builder(&self.connection).path(path).unwrap();
        builder.cache_properties(zbus::proxy::CacheProperties::No).build().await.unwrap()
    }

    async fn turn_on(&self) {
        let path = names::database_path("chat");
        let encryption =
            EncryptionProxy::builder(&self.connection).path(path).unwrap().build().await.unwrap();
        let key = Secret::new(zeroize::Zeroizing::new(DIGITS.as_bytes().to_vec())).into_pipe().unwrap();
        let job = encryption.enable_with_key(OwnedFd::from(key).into(), Options::new()).await.unwrap();
        assert_eq!(self.end_of(&job).await, "done");
    }

    /// Waits for a job; the word that it ended with.
    async fn end_of(&self, job: &OwnedObjectPath) -> String {
        let job = JobProxy::builder(&self.connection)
            .path(job)
            .unwrap()
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await
            .unwrap();
        loop {
            let state = job.state().await.unwrap();
            if ["done", "cancelled"].contains(&state.as_str()) {
                return state;
            }
            if state == "failed" {
                return format!("failed: {:?}", job.error().await.unwrap());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn back_up(&self) {
        // right after the start its database may not have been found
        for _ in 0..500 {
            if let Ok(job) = self.database().await.backup_now(Options::new()).await
                && self.end_of(&job).await == "done"
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it is never backed up");
    }

    async fn prune(&self) {
        let job = self.database().await.prune(Options::new()).await.unwrap();
        assert_eq!(self.end_of(&job).await, "done");
    }

    async fn points(&self, all: bool) -> Vec<Point> {
        let options = Options::from([("forgotten", all.into())]);
        self.database().await.list_recovery_points(options).await.unwrap()
    }

    /// Identifiers of the points, newest first, pinned ones with `!`, forgotten ones with `-`.
    async fn ids(&self, all: bool) -> Vec<String> {
        let flag = |point: &Point, key: &str| bool::try_from(point[key].try_clone().unwrap()).unwrap();
        let text = |point: &Point| {
            let id = String::try_from(point["id"].try_clone().unwrap()).unwrap();
            let pinned = if flag(point, "pinned") { "!" } else { "" };
            let forgotten = if flag(point, "forgotten") { "-" } else { "" };
            format!("{id}{pinned}{forgotten}")
        };
        self.points(all).await.iter().map(text).collect()
    }

    async fn stop(self) {
        self.events.send(Event::Stop).await.unwrap();
        self.ended.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_points_stay_through_restarts_and_the_loss_of_the_cache() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    daemon.turn_on().await;
    for _ in 0..3 {
        machine.write(5);
        daemon.back_up().await;
    }
    let database = daemon.database().await;
    assert_eq!(daemon.ids(false).await, ["3", "2", "1"]);

    // nothing changed in the database: the pin makes an entry of its own
    database.pin("2", true, Options::new()).await.unwrap();
    daemon.back_up().await;
    assert_eq!(daemon.ids(false).await, ["4", "3", "2!", "1"]);
    database.pin("2", true, Options::new()).await.unwrap();
    daemon.back_up().await;
    assert_eq!(daemon.ids(false).await.len(), 4, "a pin that is there already changes nothing");
    for wrong in ["9", "two", "-1"] {
        let answer = database.pin(wrong, true, Options::new()).await;
        assert!(matches!(answer, Err(Error::NotFound(_))), "{wrong}: {answer:?}");
    }
    daemon.stop().await;

    std::fs::remove_dir_all(machine.path("state/cache")).unwrap();
    let daemon = machine.start().await;
    machine.write(5);
    daemon.back_up().await;
    assert_eq!(daemon.ids(false).await, ["5", "4", "3", "2!", "1"]);
    let database = daemon.database().await;
    database.pin("2", false, Options::new()).await.unwrap();
    daemon.back_up().await;
    assert_eq!(daemon.ids(false).await, ["6", "5", "4", "3", "2", "1"]);
    daemon.stop().await;

    let daemon = machine.start().await;
    daemon.back_up().await;
    assert_eq!(daemon.ids(false).await, ["6", "5", "4", "3", "2", "1"], "unpinned stays unpinned");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_is_shown_and_a_pin_brings_it_back() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    daemon.turn_on().await;
    // twelve entries after the base make a longer one, which the next ones build on
    for _ in 0..14 {
        machine.write(1);
        daemon.back_up().await;
    }
    let database = daemon.database().await;
    assert_eq!(database.recovery_points().await.unwrap(), 14);
    let job = database.prune(Options::from([("dry-run", true.into())])).await.unwrap();
    assert_eq!(daemon.end_of(&job).await, "done");
    assert_eq!((database.recovery_points().await.unwrap(), database.last_prune().await.unwrap()), (14, 0));

    daemon.prune().await;
    let kept = daemon.ids(false).await;
    let all = daemon.ids(true).await;
    assert!(kept.len() < 5 && kept[0] == "14" && kept.last().unwrap() == "1", "{kept:?}");
    assert_eq!(all.len(), 14);
    let forgotten = database.forgotten_points().await.unwrap();
    assert_eq!(
        (kept.len() + forgotten as usize, database.recovery_points().await.unwrap() as usize),
        (14, kept.len())
    );
    assert!(database.forgotten_bytes().await.unwrap() > 4096 * u64::from(forgotten) / 2);
    assert!(database.last_prune().await.unwrap() > 0);
    assert_eq!(database.last_prune_error().await.unwrap(), (String::new(), String::new()));
    assert!(all.contains(&"5-".to_owned()), "{all:?}");

    // a forgotten point restores while it is there, and stays when it is pinned
    let target = machine.path("restored");
    std::fs::create_dir(&target).unwrap();
    let dir = OwnedFd::from(std::os::fd::OwnedFd::from(std::fs::File::open(&target).unwrap()));
    let options = Options::from([("point", "5".into())]);
    let job = database.restore_to(dir.into(), "chat.db", options).await.unwrap();
    assert_eq!(daemon.end_of(&job).await, "done");
    let rows = rusqlite::Connection::open(target.join("chat.db")).unwrap();
    assert_eq!(rows.query_row("SELECT count(*) FROM m", [], |row| row.get::<_, i64>(0)).unwrap(), 15);
    database.pin("5", true, Options::new()).await.unwrap();
    daemon.prune().await;
    let kept = daemon.ids(false).await;
    for seq in ["5!", "4", "3", "2", "1"] {
        assert!(kept.contains(&seq.to_owned()), "{seq} is not among {kept:?}");
    }
    assert!(!kept.contains(&"6".to_owned()));
    daemon.stop().await;
}
