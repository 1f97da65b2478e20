//! One machine with a chat program that has a database and a folder of attachments, a follower that runs, and a store.

#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chatkeep_crypto::{BackupKey, DataRoots};
use chatkeep_format::{ArchiveId, Entry, Keyslot};
use chatkeep_planner::{SourceId, UploadId};
use chatkeep_sqlite::{Existing, LiveConfig};
use chatkeep_store::memory::MemoryStore;
use chatkeepd::archive::Archive;
use chatkeepd::catalogue::{Catalogue, Point};
use chatkeepd::clock::Clock;
use chatkeepd::event::{Event, UploadOrder};
use chatkeepd::fault::Fault;
use chatkeepd::follower::{Attachments, CaptureOrder, Captured, Follower, Start};
use chatkeepd::keyring::Keys;
use chatkeepd::log::Log;
use chatkeepd::restore::{Destination, Report, Source};
use chatkeepd::spool::Spool;
use chatkeepd::writer::Writer;
use rand_core::OsRng;
use tokio::sync::mpsc::Receiver;

/// What is in a folder: of each path the permissions, the time and the content.
pub(crate) type Tree = BTreeMap<PathBuf, (u32, i128, Vec<u8>)>;

/// One machine.
pub(crate) struct Machine {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) keys: Keys,
    pub(crate) catalogue: Option<Catalogue>,
    pub(crate) log: Option<Log>,
    pub(crate) follower: Option<Follower>,
    pub(crate) events: Option<Receiver<Event>>,
    /// What its clock shows, µs since 1970; 0 for the real one.
    pub(crate) clock_us: u64,
    /// What was in the folder at each point.
    pub(crate) trees: BTreeMap<u64, Tree>,
    /// The last caution.
    pub(crate) caution: Option<String>,
}

/// Where the database is of a process that is to write.
const CHAT: &str = "CHATKEEP_TEST_CHAT";

/// A chat program in a process of its own: what it locks does not end when the service closes a file.
pub(crate) struct Chat(Child);

impl Chat {
    /// It ends, having closed its database.
    pub(crate) fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What [`Machine::chat`] runs: writes until its standard input ends. A test among others when nobody asks for it.
pub(crate) fn chat_process() {
    let Some(path) = std::env::var_os(CHAT) else { return };
    let ended = Arc::new(AtomicBool::new(false));
    let noticed = ended.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        noticed.store(true, Ordering::Relaxed);
    });
    let database = rusqlite::Connection::open(path).unwrap();
    while !ended.load(Ordering::Relaxed) {
        database.execute("INSERT INTO m VALUES ('and another message')", []).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    database.close().unwrap();
}

impl Machine {
    pub(crate) async fn new() -> Self {
        let mut machine = Self::without_service();
        machine.start().await;
        machine
    }

    pub(crate) fn without_service() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["state", "media"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let keys = Keys {
            key: BackupKey::generate(&mut OsRng),
            roots: Arc::new(DataRoots::new(&mut OsRng)),
            counter: 1,
            slots: vec![Keyslot::Raw],
            secret: None,
        };
        let machine = Self {
            folder,
            store: Arc::new(MemoryStore::new()),
            keys,
            catalogue: None,
            log: None,
            follower: None,
            events: None,
            clock_us: 0,
            trees: BTreeMap::new(),
            caution: None,
        };
        machine.say("first");
        machine
    }

    /// Another process of the chat program that writes every 10 ms.
    pub(crate) fn chat(&self) -> Chat {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "chat_process", "--nocapture", "--test-threads=1"])
            .env(CHAT, self.database())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Chat(child)
    }

    /// The chat program writes.
    pub(crate) fn say(&self, text: &str) {
        let database = rusqlite::Connection::open(self.database()).unwrap();
        database.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS m (t TEXT)").unwrap();
        database.execute("INSERT INTO m VALUES (?1)", [text]).unwrap();
    }

    /// It saves an attachment, and a while has passed since.
    pub(crate) fn save(&self, path: &str, content: &[u8]) {
        let path = self.media().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        let settled = std::time::SystemTime::now() - Duration::from_hours(1);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(settled).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        std::fs::remove_file(self.media().join(path)).unwrap();
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.media().join(from), self.media().join(to)).unwrap();
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("messages.db")
    }

    pub(crate) fn media(&self) -> PathBuf {
        self.folder.path().join("media")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn archive(&self) -> Archive {
        Archive { store: self.store.clone(), id: ArchiveId([9; 16]) }
    }

    /// The service starts.
    pub(crate) async fn start(&mut self) {
        let archive = self.archive();
        let catalogue = Catalogue::open(&self.state().join("cache")).unwrap();
        let spool = Spool::open(&self.state(), &archive.id).unwrap();
        let log = chatkeepd::log::open(&archive, &self.keys.roots, &catalogue, &spool).await.unwrap();
        assert!(log.blocked.is_none(), "{:?}", log.blocked);
        let known = catalogue.known_files(&archive.id).unwrap();
        let queue = (&log, spool.list().unwrap());
        chatkeepd::known::bring_up_to_date(&known, &archive, &self.keys.roots, &catalogue, queue)
            .await
            .unwrap();
        let (events, incoming) = tokio::sync::mpsc::channel(4096);
        let start = Start {
            source: SourceId(0),
            databases: vec![LiveConfig {
                path: self.database(),
                digest_key: log.written.digest_key,
                state_dir: self.state().join("tables"),
                name: archive.id.to_string(),
            }],
            attachments: Some(Attachments {
                folders: vec![self.media()],
                known,
                digest_key: log.written.digest_key,
            }),
            written_seq: log.written.seq,
            writer: self.writer(spool),
            rebase: log.rebase,
            links: false,
        };
        self.follower = Some(Follower::start(start, events).unwrap());
        self.caution = None;
        (self.catalogue, self.log, self.events) = (Some(catalogue), Some(log), Some(incoming));
    }

    fn writer(&self, spool: Spool) -> Writer {
        Writer {
            archive: self.archive().id,
            roots: self.keys.roots.clone(),
            spool,
            source_name: "chat".to_owned(),
            app_id: String::new(),
            level: 1,
        }
    }

    /// The queue; not opened, which would sweep what the follower just makes.
    /// What lies in the queue, also of entries to come.
    pub(crate) fn spooled_bytes(&self) -> u64 {
        let folder = self.state().join("spool").join(self.archive().id.to_string());
        let files = std::fs::read_dir(folder).unwrap().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    pub(crate) fn spool(&self) -> Spool {
        Spool::at(&self.state(), &self.archive().id)
    }

    /// It ends in good order.
    pub(crate) fn stop(&mut self) {
        self.events = None;
        self.follower = None;
        if let Some(catalogue) = self.catalogue.take() {
            catalogue.flush();
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.stop();
        self.start().await;
    }

    /// What the follower told since the last time: whether it wants a capture.
    pub(crate) fn listen(&mut self) -> bool {
        let mut wants = false;
        while let Ok(event) = self.events.as_mut().unwrap().try_recv() {
            match event {
                Event::Changed { .. } => wants = true,
                Event::Caution { caution, .. } => self.caution = caution,
                _ => {}
            }
        }
        wants
    }

    /// Waits until the user is told this, or nothing.
    pub(crate) async fn wait_for_caution(&mut self, text: Option<&str>) {
        for waits in 0_u32.. {
            assert!(waits < 12_000, "waiting for {text:?}, told {:?}", self.caution);
            self.listen();
            match (&self.caution, text) {
                (None, None) => return,
                (Some(caution), Some(text)) if caution.contains(text) => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Captures; what was written waits in the queue.
    pub(crate) async fn capture(&mut self) -> Result<Captured, Fault> {
        let log = self.log.as_ref().unwrap();
        self.follower.as_ref().unwrap().capture(CaptureOrder {
            even_if_unchanged: false,
            before: log.written.clone(),
            chain: log.chain.clone(),
            clock: match self.clock_us {
                0 => Clock::default(),
                now_us => Clock::new(move || now_us),
            },
            writer: self.writer(self.spool()),
            cancelled: Arc::new(AtomicBool::new(false)),
            done_bytes: Arc::new(AtomicU64::new(0)),
        });
        let captured = loop {
            match self.events.as_mut().unwrap().recv().await.unwrap() {
                Event::Captured { result, .. } => break result?,
                Event::Caution { caution, .. } => self.caution = caution,
                _ => {}
            }
        };
        if let Some(written) = &captured.written {
            self.log.as_mut().unwrap().wrote(written);
        }
        Ok(captured)
    }

    /// Puts what waits into the store.
    pub(crate) async fn upload(&mut self) {
        let (archive, spool) = (self.archive(), self.spool());
        let log = self.log.as_mut().unwrap();
        while let Some(written) = log.waiting.front().cloned() {
            let last = written.objects.len() - 1;
            for (at, object) in written.objects.iter().enumerate() {
                let order = UploadOrder {
                    source: SourceId(0),
                    upload: UploadId(0),
                    object: object.clone(),
                    archive: archive.clone(),
                    keys: self.keys.clone(),
                    spool: spool.clone(),
                    publishes: (at == last).then(|| written.clone()),
                    log: Box::new(log.clone()),
                };
                let catalogue = self.catalogue.as_ref().unwrap();
                let stored = chatkeepd::hands::upload(catalogue, order).await.unwrap();
                assert!(!stored.spoiled && !stored.rebase, "{stored:?}");
                log.confirmed = true;
            }
            log.stored = written.head.clone();
            log.waiting.pop_front();
        }
    }

    /// A backup. Returns the new entry, if there was something new, and remembers what was in the folder.
    pub(crate) async fn back_up(&mut self) -> Option<Point> {
        let captured = self.capture().await.unwrap();
        self.upload().await;
        let point = captured.written?.point;
        self.trees.insert(point.seq, tree(&self.media()));
        Some(point)
    }

    /// Captures whenever the follower asks for it, until all attachments are in entries.
    pub(crate) async fn back_up_everything(&mut self) {
        loop {
            let captured = self.capture().await.unwrap();
            if let Some(written) = &captured.written {
                self.trees.insert(written.head.seq, tree(&self.media()));
            }
            self.upload().await;
            if !captured.more {
                return;
            }
            // Like the service, which captures again after a while also when it was told before the capture ended.
            for _ in 0..400 {
                if self.listen() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.log.as_ref().unwrap().written.seq
    }

    pub(crate) fn points(&self) -> Vec<Point> {
        self.catalogue.as_ref().unwrap().points(&self.archive().id)
    }

    pub(crate) async fn entry(&self, seq: u64) -> Entry {
        self.archive().entry(seq, &self.keys.roots).await.unwrap().0
    }

    /// Restores a point; returns the folder it is in.
    pub(crate) async fn restore(&self, seq: u64) -> tempfile::TempDir {
        let target = tempfile::tempdir().unwrap();
        self.restore_into(seq, target.path(), Existing::Refuse).await.unwrap();
        target
    }

    pub(crate) async fn restore_into(
        &self,
        seq: u64,
        target: &Path,
        existing: Existing,
    ) -> Result<Report, Fault> {
        let source = Source {
            archive: self.archive(),
            roots: self.keys.roots.clone(),
            cancelled: Arc::new(AtomicBool::new(false)),
            progress: Box::new(|_, _| {}),
        };
        let destination = Destination {
            folder: std::fs::File::open(target).unwrap().into(),
            file_name: None,
            in_place: false,
            existing,
            label: "test".to_owned(),
        };
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || source.restore(seq, destination, &runtime)).await.unwrap()
    }

    /// Every point restores to what was in the folder then.
    pub(crate) async fn assert_every_point_restores(&self) {
        for point in self.points() {
            let restored = self.restore(point.seq).await;
            assert_eq!(
                same(&tree(&restored.path().join("media"))),
                same(&self.trees[&point.seq]),
                "point {}",
                point.seq
            );
        }
    }
}

/// For messages that can be read: contents by their hashes.
pub(crate) fn same(tree: &Tree) -> Vec<String> {
    let file = |(path, (mode, mtime, content)): (&PathBuf, &(u32, i128, Vec<u8>))| {
        let hash = blake3::hash(content).to_hex();
        format!("{} {mode:o} {mtime} {} {}", path.display(), content.len(), &hash[..8])
    };
    tree.iter().map(file).collect()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// All files below a folder.
pub(crate) fn tree(folder: &Path) -> Tree {
    fn add(folder: &Path, root: &Path, tree: &mut Tree) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_dir() {
                add(&path, root, tree);
            } else if metadata.is_file() {
                let mtime = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
                let mode = metadata.permissions().mode() & 0o777;
                let name = path.strip_prefix(root).unwrap().to_owned();
                tree.insert(name, (mode, mtime, std::fs::read(&path).unwrap_or_default()));
            }
        }
    }
    let mut all = Tree::new();
    add(folder, folder, &mut all);
    all
}
