//! Several processes write, checkpoint, close and die at random; every capture is whole and up to date.
//!
//! Captures are built on the newest entry, on older ones, and on none, some with pages collected beforehand. What a
//! restore makes of each entry, along its parents, is compared byte by byte with the state captured.
//!
//! `CHATKEEP_CHAOS_SECONDS` makes it longer.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chatkeep_sqlite::{Capture, CaptureError, Collection};
use common::{App, State, World, digest_of};

#[test]
fn app_process() {
    common::app_process();
}

/// xorshift64*, so that a seed names a run (as far as processes let it).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

fn open(path: &Path, random: &mut Random) -> App {
    let mut app = App::open(path);
    app.run("PRAGMA busy_timeout = 10000; PRAGMA synchronous = OFF;");
    app.run(&format!("PRAGMA mmap_size = {};", [0, 1 << 24][random.below(2) as usize]));
    app.run(&format!("PRAGMA wal_autocheckpoint = {};", [0, 20, 60, 300][random.below(4) as usize]));
    app
}

fn create(path: &Path) {
    let mut app = App::open(path);
    app.run("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;");
    app.run("CREATE TABLE counter(n INTEGER); INSERT INTO counter VALUES (0);");
    app.run("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, body BLOB); CREATE INDEX i ON t(body);");
    app.close();
}

/// The writer: numbered commits, some large, some rolled back, and deaths.
fn write(path: &Path, acknowledged: &AtomicU64, stop: &AtomicBool, seed: u64) {
    let mut random = Random(seed);
    let mut app = open(path, &mut random);
    while !stop.load(Ordering::Relaxed) {
        let n = acknowledged.load(Ordering::SeqCst) + 1;
        let insert = format!("INSERT INTO t(n, body) VALUES ({n}, randomblob({}));", 10 + random.below(3000));
        let more = match random.below(12) {
            0 => format!("DELETE FROM t WHERE id % 7 = {} AND n < {n};", random.below(7)),
            1 => "PRAGMA cache_size = 5; UPDATE t SET body = randomblob(400) WHERE id % 5 = 1;".to_owned(),
            2 => "PRAGMA incremental_vacuum;".to_owned(),
            _ => String::new(),
        };
        let end = if random.below(15) == 0 { "ROLLBACK" } else { "COMMIT" };
        app.run(&format!("BEGIN IMMEDIATE; {insert} {more} UPDATE counter SET n = {n}; {end};"));
        if end == "COMMIT" {
            acknowledged.store(n, Ordering::SeqCst);
        }
        match random.below(120) {
            0 => {
                app.close();
                app = open(path, &mut random);
            }
            1 => {
                app.kill();
                app = open(path, &mut random);
            }
            2 => app.run("VACUUM;"),
            _ => std::thread::sleep(Duration::from_micros(random.below(4000))),
        }
    }
    app.close();
}

/// Another process: checkpoints, reads, comes and goes.
fn disturb(path: &Path, stop: &AtomicBool, seed: u64) {
    let mut random = Random(seed);
    let mut app = open(path, &mut random);
    while !stop.load(Ordering::Relaxed) {
        let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.below(4) as usize];
        match random.below(8) {
            0..=3 => app.run(&format!("PRAGMA wal_checkpoint({mode});")),
            4 => app.run("SELECT count(*) FROM t;"),
            5 => {
                app.close();
                app = open(path, &mut random);
            }
            6 => {
                app.kill();
                app = open(path, &mut random);
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(random.below(40)));
    }
    app.close();
}

/// Checks what a restore would give: whole, and not older than `acknowledged`.
#[track_caller]
fn check(world: &World, acknowledged: u64) -> u64 {
    let path = world.folder.path().join("restored");
    std::fs::write(&path, world.stored_bytes()).unwrap();
    let uri = format!("file:{}?immutable=1", path.display());
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_URI;
    let database = rusqlite::Connection::open_with_flags(uri, flags).unwrap();
    let integrity: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok");
    let n: i64 = database.query_row("SELECT n FROM counter", [], |row| row.get(0)).unwrap();
    assert!(n as u64 >= acknowledged, "commit {acknowledged} was acknowledged, {n} captured");
    n as u64
}

/// What the log gets beside ordinary increments.
struct Builder {
    random: Random,
    /// Entries that captures are built on again and again.
    marks: Vec<u64>,
    collection: Option<(Collection, State)>,
    spans: u32,
    bases: u32,
    collected: u32,
}

impl Builder {
    fn new(seed: u64) -> Builder {
        let random = Random(seed ^ 0x3333);
        Builder { random, marks: Vec::new(), collection: None, spans: 0, bases: 0, collected: 0 }
    }

    /// Captures on top of something, or goes on collecting.
    fn capture(&mut self, world: &mut World) -> Result<Capture, CaptureError> {
        let newest = world.live().table_seq().unwrap_or(0);
        if let Some((mut collection, mut pages)) = self.collection.take() {
            let slice = 4096 * (1 + self.random.below(200));
            match world.try_collect(&mut collection, slice, &mut pages) {
                Ok(true) => {
                    self.collected += 1;
                    return world.try_build(collection.parent(), Some((&collection, &pages)));
                }
                Ok(false) => self.collection = Some((collection, pages)),
                Err(CaptureError::Outdated) => {}
                Err(error) => return Err(error),
            }
        }
        let mark = self.marks.get(self.random.below(4) as usize).copied().filter(|mark| *mark <= newest);
        match (self.random.below(12), mark) {
            (0, _) => {
                let parent = mark.unwrap_or(0);
                self.collection.get_or_insert_with(|| (Collection::new(parent), State::new()));
                world.try_build(newest, None)
            }
            (1, _) => {
                self.bases += 1;
                world.try_build(0, None)
            }
            (2..5, Some(mark)) => {
                self.spans += 1;
                world.try_build(mark, None)
            }
            _ => world.try_build(newest, None),
        }
    }

    /// Keeps the entry, and some marks.
    fn commit(&mut self, world: &mut World, capture: &Capture) {
        if self.random.below(5) == 0 {
            self.marks.push(world.seq + 1);
        }
        if self.marks.len() > 4 || self.random.below(30) == 0 && !self.marks.is_empty() {
            let oldest = self.random.below(self.marks.len() as u64) as usize;
            self.marks.remove(oldest);
        }
        world.commit(capture, &self.marks);
    }
}

fn run(seed: u64, time: Duration) {
    let mut world = World::new();
    let path = world.db();
    create(&path);
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut random = Random(seed ^ 0x5555);
    let mut builder = Builder::new(seed);
    let (mut captures, mut refused, mut newest) = (0, 0, 0);
    std::thread::scope(|scope| {
        // Also when a check fails, the other threads have to end.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        scope.spawn(|| write(&path, &acknowledged, &stop, seed));
        scope.spawn(|| disturb(&path, &stop, seed ^ 0xaaaa));
        let until = Instant::now() + time;
        while Instant::now() < until {
            let pause = Instant::now() + Duration::from_millis(random.below(60));
            while let Some(left) = pause.checked_duration_since(Instant::now()) {
                world.live().wait(left).unwrap();
                world.live().look().unwrap();
            }
            let before = acknowledged.load(Ordering::SeqCst);
            match builder.capture(&mut world) {
                Ok(_) if random.below(10) == 0 => world.live().abort(),
                Ok(capture) => {
                    builder.commit(&mut world, &capture);
                    let found = check(&world, before);
                    assert!(found >= newest, "commits went back");
                    newest = found;
                    captures += 1;
                }
                Err(CaptureError::NotQuiet { .. }) => refused += 1,
                Err(error) => panic!("{error:?}"),
            }
            if random.below(15) == 0 {
                world.restart();
            }
        }
    });
    // At rest the store has the very bytes of the file.
    world.capture();
    world.assert_stored_is_the_file();
    let Builder { spans, bases, collected, .. } = builder;
    println!("seed {seed}: {captures} captures, {refused} refused, {newest} commits");
    println!("{spans} on older entries, {bases} bases, {collected} collected, {} patches", world.store.bases);
    assert!(captures > 0);
    for (seq, entry) in &world.store.entries {
        assert_eq!(digest_of(&world.store.state_at(*seq)), entry.state_digest, "entry {seq}");
    }
}

#[test]
fn whatever_several_processes_do_every_capture_is_whole_and_up_to_date() {
    let seconds =
        std::env::var("CHATKEEP_CHAOS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    println!("seed {seed}");
    run(seed, Duration::from_secs(seconds));
}
