//! The power goes off at every store call of a backup: what was announced restores, and the backup goes on.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use chatkeep_crypto::{BackupKey, DataRoots};
use chatkeep_format::{ArchiveId, Keyslot};
use chatkeep_ipc::Error;
use chatkeep_planner::{SourceId, UploadId};
use chatkeep_sqlite::{Existing, LiveConfig};
use chatkeep_store::chaos::{ChaosStore, LastCall};
use chatkeep_store::memory::MemoryStore;
use chatkeepd::archive::Archive;
use chatkeepd::catalogue::Catalogue;
use chatkeepd::clock::Clock;
use chatkeepd::event::{Event, UploadOrder};
use chatkeepd::fault::Fault;
use chatkeepd::follower::{CaptureOrder, Follower, Start};
use chatkeepd::keyring::Keys;
use chatkeepd::restore::{Destination, Source};
use chatkeepd::spool::Spool;
use chatkeepd::writer::Writer;
use rand_core::OsRng;

/// One machine with one database, and a store that can fail.
struct World {
    folder: tempfile::TempDir,
    store: Arc<ChaosStore<MemoryStore>>,
    keys: Keys,
    rows: u64,
    /// What its clock shows, µs since 1970; 0 for the real one.
    clock_us: u64,
    /// Rows that an announced point must have, by its number.
    announced: Vec<(u64, u64)>,
}

impl World {
    fn new() -> Self {
        Self::on(Arc::new(ChaosStore::new(MemoryStore::new(), 7)))
    }

    fn on(store: Arc<ChaosStore<MemoryStore>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("state")).unwrap();
        let keys = Keys {
            key: BackupKey::generate(&mut OsRng),
            roots: Arc::new(DataRoots::new(&mut OsRng)),
            counter: 1,
            slots: vec![Keyslot::Raw],
            secret: None,
        };
        let mut world = Self { folder, store, keys, rows: 0, clock_us: 0, announced: Vec::new() };
        world.write(6000);
        world
    }

    /// A chat program writes, and closes its database.
    fn write(&mut self, rows: u64) {
        let mut database = rusqlite::Connection::open(self.database()).unwrap();
        database.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS m (t TEXT)").unwrap();
        let transaction = database.transaction().unwrap();
        for row in 0..rows {
            let text = format!("message {row} {}", "lorem ipsum ".repeat(40));
            transaction.execute("INSERT INTO m VALUES (?1)", [text]).unwrap();
        }
        transaction.commit().unwrap();
        self.rows += rows;
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("messages.db")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn archive(&self) -> Archive {
        Archive { store: self.store.clone(), id: ArchiveId([9; 16]) }
    }

    /// A whole life of the daemon: it opens what is there, captures, uploads, and ends. With an error, it dies.
    async fn back_up(&mut self) -> Result<(), Fault> {
        let archive = self.archive();
        let catalogue = Catalogue::open(&self.state().join("cache")).unwrap();
        let spool = Spool::open(&self.state(), &archive.id).unwrap();
        let mut log = chatkeepd::log::open(&archive, &self.keys.roots, &catalogue, &spool).await?;
        if let Some(fault) = log.blocked {
            return Err(fault);
        }
        let writer = Writer {
            archive: archive.id,
            roots: self.keys.roots.clone(),
            spool: spool.clone(),
            source_name: "chat".to_owned(),
            app_id: String::new(),
            level: 1,
        };
        let (events, mut incoming) = tokio::sync::mpsc::channel(64);
        let start = Start {
            source: SourceId(0),
            databases: vec![LiveConfig {
                path: self.database(),
                digest_key: log.written.digest_key,
                state_dir: self.state().join("tables"),
                name: archive.id.to_string(),
            }],
            attachments: None,
            written_seq: log.written.seq,
            writer: writer.clone(),
            rebase: log.rebase,
            links: true,
        };
        let follower = Follower::start(start, events).unwrap();
        follower.capture(CaptureOrder {
            before: log.written.clone(),
            chain: log.chain.clone(),
            clock: match self.clock_us {
                0 => Clock::default(),
                now_us => Clock::new(move || now_us),
            },
            writer,
            cancelled: Arc::new(AtomicBool::new(false)),
            done_bytes: Arc::new(AtomicU64::new(0)),
            even_if_unchanged: false,
        });
        let captured = loop {
            if let Event::Captured { result, .. } = incoming.recv().await.unwrap() {
                break result?;
            }
        };
        if let Some(written) = captured.written {
            log.wrote(&written);
        }
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
                if chatkeepd::hands::upload(&catalogue, order).await?.spoiled {
                    spool.clear().unwrap();
                    return Err(Fault::internal("the queue is damaged"));
                }
                log.confirmed = true;
            }
            log.stored = written.head.clone();
            log.waiting.pop_front();
            self.announced.push((written.head.seq, self.rows));
        }
        Ok(())
    }

    /// Every announced point restores, with at least the rows it had when it was announced.
    async fn assert_every_recovery_point_restores(&self) {
        let catalogue = Catalogue::open(&self.state().join("cache")).unwrap();
        let points = catalogue.points(&self.archive().id);
        for (seq, _) in &self.announced {
            assert!(
                points.iter().any(|point| point.seq == *seq),
                "point {seq} was announced and is not listed"
            );
        }
        for point in points {
            let rows = self.restore(point.seq).await;
            let announced = self.announced.iter().find(|(seq, _)| *seq == point.seq);
            if let Some((seq, expected)) = announced {
                assert!(rows <= *expected, "point {seq} has {rows} rows of {expected}");
            }
        }
    }

    async fn restore(&self, seq: u64) -> u64 {
        let target = tempfile::tempdir().unwrap();
        let source = Source {
            archive: self.archive(),
            roots: self.keys.roots.clone(),
            cancelled: Arc::new(AtomicBool::new(false)),
            progress: Box::new(|_, _| {}),
        };
        let destination = Destination {
            folder: std::fs::File::open(target.path()).unwrap().into(),
            file_name: None,
            in_place: false,
            existing: Existing::Refuse,
            label: String::new(),
        };
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || source.restore(seq, destination, &runtime))
            .await
            .unwrap()
            .unwrap();
        let database = rusqlite::Connection::open(target.path().join("messages.db")).unwrap();
        database.query_row("SELECT count(*) FROM m", [], |row| row.get::<_, i64>(0)).unwrap() as u64
    }
}

/// Cuts the power at every store call, one later each time, once before and once after the call took effect.
#[tokio::test(flavor = "multi_thread")]
async fn backup_survives_a_crash_at_any_store_call() {
    let mut world = World::new();
    world.back_up().await.unwrap();
    let calls = world.store.calls();
    assert!(calls >= 3, "a base of several objects, {calls} calls");
    for crash_at in 0..calls {
        for last_call in [LastCall::IsLost, LastCall::Lands] {
            let mut world = World::new();
            world.store.crash_at_call_where(crash_at, last_call);
            world.back_up().await.expect_err("the power went off");
            world.store.power_on();
            world.assert_every_recovery_point_restores().await;
            world.write(10);
            world.back_up().await.unwrap();
            world.assert_every_recovery_point_restores().await;
            let newest = world.announced.last().unwrap();
            assert_eq!(world.restore(newest.0).await, world.rows, "after a crash at call {crash_at}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_cache_the_daemon_continues_from_the_store() {
    let mut world = World::new();
    for _ in 0..3 {
        world.back_up().await.unwrap();
        world.write(5);
    }
    std::fs::remove_dir_all(world.state()).unwrap();
    std::fs::create_dir(world.state()).unwrap();
    world.back_up().await.unwrap();
    assert_eq!(world.announced.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    world.assert_every_recovery_point_restores().await;
    assert_eq!(world.restore(4).await, world.rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloned_machine_is_fenced_and_writes_nothing() {
    let mut first = World::new();
    first.back_up().await.unwrap();
    let mut clone = World { keys: first.keys.clone(), ..World::on(first.store.clone()) };
    copy(&first.state(), &clone.state());
    std::fs::copy(first.database(), clone.database()).unwrap();
    first.write(5);
    first.back_up().await.unwrap();
    let objects = first.store.calls();
    clone.write(6);
    let fault = clone.back_up().await.unwrap_err();
    assert!(matches!(fault.error, Error::WriterFenced(_)), "{fault:?}");
    let puts = first.store.log().into_iter().skip(objects as usize);
    let puts: Vec<_> = puts.filter(|call| call.operation == chatkeep_store::chaos::Operation::Put).collect();
    assert!(puts.is_empty(), "{puts:?}");
    first.assert_every_recovery_point_restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_store_is_noticed() {
    let mut world = World::new();
    world.back_up().await.unwrap();
    world.write(5);
    world.back_up().await.unwrap();
    let newest = chatkeep_format::ObjectName::Entry(2).store_key(&world.archive().id);
    let newest = chatkeep_store::StoreKey::try_from(newest).unwrap();
    chatkeep_store::Store::delete(world.store.inner(), &newest).await.unwrap();
    let fault = world.back_up().await.unwrap_err();
    assert!(matches!(fault.error, Error::RollbackDetected(_)), "{fault:?}");
}

/// An entry in the middle of the chain is lost: what comes next builds on nothing that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_hole_in_the_chain_the_next_point_restores() {
    for lost_cache in [false, true] {
        let mut world = World::new();
        for _ in 0..3 {
            world.back_up().await.unwrap();
            world.write(5);
        }
        let key = chatkeep_format::ObjectName::Entry(2).store_key(&world.archive().id);
        let key = chatkeep_store::StoreKey::try_from(key).unwrap();
        chatkeep_store::Store::delete(world.store.inner(), &key).await.unwrap();
        if lost_cache {
            std::fs::remove_dir_all(world.state().join("cache")).unwrap();
        }
        world.back_up().await.unwrap();
        assert_eq!(world.restore(4).await, world.rows, "lost cache: {lost_cache}");
    }
}

/// What lies in the queue is damaged before it is uploaded: it is not announced, and the next capture replaces it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_queue_is_not_announced() {
    for what in ["entry", "pack"] {
        let mut world = World::new();
        world.store.crash_at_call_where(1, LastCall::IsLost);
        world.back_up().await.expect_err("the power went off");
        world.store.power_on();
        let queue = world.state().join("spool").join(world.archive().id.to_string());
        let spoiled = std::fs::read_dir(&queue).unwrap().map(|entry| entry.unwrap().path());
        let spoiled = spoiled.into_iter().find(|path| path.to_string_lossy().contains(what)).unwrap();
        let mut bytes = std::fs::read(&spoiled).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&spoiled, bytes).unwrap();
        // The first life may end at the damage; the one after it begins without what was damaged.
        let _ = world.back_up().await;
        world.write(5);
        world.back_up().await.unwrap();
        world.assert_every_recovery_point_restores().await;
        let newest = world.announced.last().unwrap().0;
        assert_eq!(world.restore(newest).await, world.rows, "a damaged {what}");
    }
}

/// Months of a life: entries that stand for hours, days and months come, nothing needs long to restore, and every point
/// of the history is what it was.
#[tokio::test(flavor = "multi_thread")]
async fn every_point_of_a_long_history_restores() {
    let mut world = World::new();
    world.clock_us = 1_700_000_000_000_000;
    let mut levels = std::collections::BTreeMap::new();
    for step in 0_u64..250 {
        // Minutes, then hours, then days.
        world.clock_us += [60, 3_600, 90_000][step as usize * 3 / 250] * 1_000_000;
        world.write(1 + step % 3);
        world.back_up().await.unwrap();
    }
    let points = {
        let catalogue = Catalogue::open(&world.state().join("cache")).unwrap();
        catalogue.points(&world.archive().id)
    };
    for point in &points {
        *levels.entry(point.level).or_insert(0) += 1;
    }
    assert!((1..=7).all(|level| level == 2 || levels.contains_key(&level)), "{levels:?}");
    assert!(levels[&0] > 50, "{levels:?}");
    let small = points.iter().filter(|point| point.bytes < 10_000).count();
    assert!(small > 100, "{small} of {} points are patches", points.len());
    for (seq, rows) in world.announced.clone() {
        assert_eq!(world.restore(seq).await, rows, "point {seq}");
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
