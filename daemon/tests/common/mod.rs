//! One machine with one database, an archive in memory, and everything that jobs need.

#![allow(clippy::unwrap_used, dead_code, reason = "tests; not every test file uses everything")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use bytes::Bytes;
use chatkeep_crypto::{BackupKey, DataRoots, write_keyring};
use chatkeep_format::{ArchiveId, Keyslot, ObjectName};
use chatkeep_ipc::{Server, Settings, VerifyDepth};
use chatkeep_planner::{SourceId, UploadId};
use chatkeep_sqlite::{Existing, LiveConfig};
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{PutCondition, Store, StoreKey};
use chatkeep_store_host::Spawn;
use chatkeepd::archive::Archive;
use chatkeepd::catalogue::Catalogue;
use chatkeepd::clock::Clock;
use chatkeepd::courier::Courier;
use chatkeepd::damage::{Damage, DamageReport};
use chatkeepd::event::{Event, Opened, Outcome, UploadOrder, Work};
use chatkeepd::fault::Fault;
use chatkeepd::follower::{CaptureOrder, Follower, LostPack, Start};
use chatkeepd::guard::Book;
use chatkeepd::jobs::{Job, Tools};
use chatkeepd::keyring::Keys;
use chatkeepd::keys::KeyFiles;
use chatkeepd::log::Log;
use chatkeepd::paths::Paths;
use chatkeepd::restore::{Destination, Source};
use chatkeepd::spool::{Spool, Spooled};
use chatkeepd::stores::Opener;
use chatkeepd::writer::Writer;
use rand_core::OsRng;
use tokio::sync::mpsc::Receiver;

pub(crate) struct World {
    folder: tempfile::TempDir,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) opened: Arc<Opened>,
    pub(crate) tools: Tools,
    log: Log,
    follower: Follower,
    events: Receiver<Event>,
    /// SHA-like fingerprint of the database at each point.
    states: BTreeMap<u64, [u8; 32]>,
}

impl World {
    /// With what `make` makes of a database.
    pub(crate) async fn with(make: impl FnOnce(&std::path::Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        make(&folder.path().join("messages.db"));
        let store = Arc::new(MemoryStore::new());
        let archive = Archive { store: store.clone(), id: ArchiveId([9; 16]) };
        let (key, roots) = (BackupKey::generate(&mut OsRng), DataRoots::new(&mut OsRng));
        let keyring = write_keyring(&archive.id, 1, &key, &roots, vec![Keyslot::Raw], &mut OsRng);
        archive.put_new(ObjectName::Keyring(1), Bytes::from(keyring)).await.unwrap();
        let roots = Arc::new(roots);
        let keys = Keys { key, roots: roots.clone(), counter: 1, slots: vec![Keyslot::Raw], secret: None };
        let catalogue = Catalogue::open(&state.join("cache")).unwrap();
        let spool = Spool::open(&state, &archive.id).unwrap();
        let log = chatkeepd::log::open(&archive, &roots, &catalogue, &spool).await.unwrap();
        let writer = writer(&archive, &roots, &spool);
        let (sender, events) = tokio::sync::mpsc::channel(64);
        let start = Start {
            attachments: None,
            source: SourceId(0),
            databases: vec![LiveConfig {
                path: folder.path().join("messages.db"),
                digest_key: log.written.digest_key,
                state_dir: state.join("tables"),
                name: archive.id.to_string(),
            }],
            written_seq: log.written.seq,
            writer,
            rebase: false,
            links: true,
        };
        let follower = Follower::start(start, sender).unwrap();
        let paths = Paths {
            config: folder.path().join("config.toml"),
            data: folder.path().join("data"),
            state,
            runtime: folder.path().join("run"),
        };
        let (calls, _) = tokio::sync::mpsc::channel(1);
        let key_store = Arc::new(KeyFiles::new(paths.data.clone()));
        let opener = Opener::with_launcher(&paths, key_store.clone(), Arc::new(Spawn::new()));
        let tools = Tools {
            opener: Arc::new(opener),
            key_store,
            book: Book::new(Arc::new(Courier::new(paths.courier_socket())), catalogue.clone()),
            notify: false,
            paths: Arc::new(paths),
            catalogue,
            server: Server::new(calls, Settings::default()),
        };
        let opened = Opened { archive, keys, spool, log: log.clone(), vaults: Vec::new() };
        Self {
            folder,
            store,
            opened: Arc::new(opened),
            tools,
            log,
            follower,
            events,
            states: BTreeMap::new(),
        }
    }

    /// With a chat of so many messages.
    pub(crate) async fn chat(rows: u32) -> Self {
        Self::with(|path| write(path, rows)).await
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("messages.db")
    }

    pub(crate) fn id(&self) -> ArchiveId {
        self.opened.archive.id
    }

    /// A chat program runs this, and closes its database.
    pub(crate) fn sql(&self, sql: &str) {
        rusqlite::Connection::open(self.database()).unwrap().execute_batch(sql).unwrap();
    }

    /// Captures and uploads; the number of the new point.
    pub(crate) async fn back_up(&mut self) -> u64 {
        self.follower.capture(CaptureOrder {
            even_if_unchanged: false,
            before: self.log.written.clone(),
            chain: self.log.chain.clone(),
            clock: Clock::default(),
            writer: writer(&self.opened.archive, &self.opened.keys.roots, &self.opened.spool),
            cancelled: Arc::new(AtomicBool::new(false)),
            done_bytes: Arc::new(AtomicU64::new(0)),
        });
        let captured = loop {
            if let Event::Captured { result, .. } = self.events.recv().await.unwrap() {
                break result.unwrap();
            }
        };
        let written = captured.written.unwrap();
        self.log.wrote(&written);
        self.log.confirmed = true;
        let last = written.objects.len() - 1;
        for (at, object) in written.objects.iter().enumerate() {
            let order = UploadOrder {
                source: SourceId(0),
                upload: UploadId(0),
                object: object.clone(),
                archive: self.opened.archive.clone(),
                keys: self.opened.keys.clone(),
                spool: self.opened.spool.clone(),
                publishes: (at == last).then(|| written.clone()),
                log: Box::new(self.log.clone()),
            };
            chatkeepd::hands::upload(&self.tools.catalogue, order).await.unwrap();
        }
        self.log.stored = written.head.clone();
        self.log.waiting.clear();
        self.states
            .insert(written.head.seq, *blake3::hash(&std::fs::read(self.database()).unwrap()).as_bytes());
        written.head.seq
    }

    /// Runs a job to its end.
    pub(crate) async fn run(&self, work: Work) -> Result<Outcome, Fault> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let id = self.tools.server.new_job_id();
        Job { tools: self.tools.clone(), id, cancelled, vault: None, keys: None }.run(work).await
    }

    /// What a verification finds, with the points that it costs.
    pub(crate) async fn verify(&self, depth: VerifyDepth) -> Vec<Damage> {
        let outcome = self.run(Work::Verify { opened: self.opened.clone(), depth }).await.unwrap();
        let Outcome::Verified { damages, .. } = outcome else { panic!("{outcome:?}") };
        let mut report = DamageReport::of(damages);
        report.locate(&self.tools.catalogue.points(&self.id()), &[]);
        report.damages
    }

    pub(crate) async fn drill(&self) -> (Vec<u64>, Option<Fault>) {
        let work = Work::Verify { opened: self.opened.clone(), depth: VerifyDepth::Restore };
        let outcome = self.run(work).await.unwrap();
        let Outcome::Drilled { points, failure } = outcome else { panic!("{outcome:?}") };
        assert!(
            !self.tools.paths.drills().exists() || is_empty(&self.tools.paths.drills()),
            "it is thrown away"
        );
        (points, failure)
    }

    /// Has packs made again; how many could not be.
    pub(crate) async fn rebuild(&mut self, lost: Vec<LostPack>) -> (Vec<Spooled>, usize) {
        self.follower.rebuild(lost);
        loop {
            if let Event::Rebuilt { packs, lost, .. } = self.events.recv().await.unwrap() {
                return (packs, lost);
            }
        }
    }

    pub(crate) fn source(&self) -> Source {
        Source {
            archive: self.opened.archive.clone(),
            roots: self.opened.keys.roots.clone(),
            cancelled: Arc::new(AtomicBool::new(false)),
            progress: Box::new(|_, _| {}),
        }
    }

    /// Restores a point; what comes back is what the app had then.
    pub(crate) async fn restore(&self, seq: u64) -> Result<(), Fault> {
        let target = tempfile::tempdir().unwrap();
        let destination = Destination {
            folder: std::fs::File::open(target.path()).unwrap().into(),
            file_name: None,
            in_place: false,
            existing: Existing::Refuse,
            label: String::new(),
        };
        let (source, runtime) = (self.source(), tokio::runtime::Handle::current());
        let restore = move || source.restore(seq, destination, &runtime);
        tokio::task::spawn_blocking(restore).await.unwrap()?;
        let back = std::fs::read(target.path().join("messages.db")).unwrap();
        assert_eq!(*blake3::hash(&back).as_bytes(), self.states[&seq], "point {seq}");
        Ok(())
    }

    pub(crate) async fn object(&self, name: ObjectName) -> Bytes {
        self.store.get(&key(&self.id(), name), None).await.unwrap()
    }

    /// Puts other bytes in the place of an object, or none.
    pub(crate) async fn exchange(&self, name: ObjectName, body: Option<Bytes>) {
        let key = key(&self.id(), name);
        self.store.delete(&key).await.unwrap();
        if let Some(body) = body {
            self.store.put(&key, body, PutCondition::CreateIfAbsent).await.unwrap();
        }
    }

    /// The packs of the store, by their names.
    pub(crate) async fn packs(&self) -> Vec<[u8; 16]> {
        self.opened.archive.list().await.unwrap().packs.into_keys().collect()
    }
}

pub(crate) fn key(archive: &ArchiveId, name: ObjectName) -> StoreKey {
    StoreKey::try_from(name.store_key(archive)).unwrap()
}

fn is_empty(folder: &std::path::Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

fn writer(archive: &Archive, roots: &Arc<DataRoots>, spool: &Spool) -> Writer {
    Writer {
        archive: archive.id,
        roots: roots.clone(),
        spool: spool.clone(),
        source_name: "chat".to_owned(),
        app_id: String::new(),
        level: 1,
    }
}

/// A chat of so many messages, in WAL mode, closed.
pub(crate) fn write(path: &std::path::Path, rows: u32) {
    let database = rusqlite::Connection::open(path).unwrap();
    database
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; CREATE TABLE m (t TEXT); CREATE TABLE empty (x);
             INSERT INTO m WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             SELECT 'message ' || i || hex(randomblob(200)) FROM n;"
        ))
        .unwrap();
}
