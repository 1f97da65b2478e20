//! Several processes write, checkpoint, close and die at random; every capture is whole and up to date.
//!
//! `CHATKEEP_CHAOS_SECONDS` makes it longer.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chatkeep_sqlite::CaptureError;
use common::{App, World};

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

fn run(seed: u64, time: Duration) {
    let mut world = World::new();
    let path = world.db();
    create(&path);
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut random = Random(seed ^ 0x5555);
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
            match world.try_capture() {
                Ok(_) if random.below(10) == 0 => world.live().abort(),
                Ok(capture) => {
                    world.commit(&capture, &[]);
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
    println!("seed {seed}: {captures} captures, {refused} refused, {newest} commits");
    assert!(captures > 0);
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
