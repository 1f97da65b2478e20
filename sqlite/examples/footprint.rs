//! What following a large database takes: peak and resident memory, and CPU time, step by step.
//!
//! `cargo run --release -p chatkeep-sqlite --example footprint -- [MiB] [folder]` makes a database of that size (1024)
//! in that folder (a temporary one) with a process of its own, and removes it afterwards.
#![allow(clippy::unwrap_used, reason = "a tool for people who measure")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use chatkeep_sqlite::{Build, Collection, LiveConfig, LiveDatabase, PageSink};

/// Takes pages and keeps none.
#[derive(Default)]
struct Counter(u64);

impl PageSink for Counter {
    fn begin(&mut self, _page_size: u32, _is_base: bool) -> io::Result<()> {
        Ok(())
    }

    fn page(&mut self, _pgno: u32, _image: &[u8], _base: Option<&[u8]>) -> io::Result<()> {
        self.0 += 1;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The app: runs SQL on the database, in WAL mode, and keeps it open until its standard input ends.
fn app(path: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;").unwrap();
    connection.execute_batch(sql).unwrap();
    println!("ready");
    io::stdin().read_line(&mut String::new()).unwrap();
}

/// An app that has done its work, and has the database open.
struct App(std::process::Child);

impl App {
    fn run(path: &Path, sql: &str) -> App {
        let piped = std::process::Stdio::piped;
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.arg("app").arg(path).arg(sql).stdin(piped()).stdout(piped()).spawn().unwrap();
        let mut ready = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.take().unwrap()), &mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        App(child)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// A field of `/proc/self/status`, in MiB.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().split(' ').next().unwrap().parse::<f64>().unwrap() / 1024.0
}

/// CPU seconds of this process.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs a step and says what it took.
fn step<T>(name: &str, act: impl FnOnce(&mut Counter) -> T) -> T {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (began, mut counter) = (cpu(), Counter::default());
    let result = act(&mut counter);
    let (peak, resident) = (memory("VmHWM"), memory("VmRSS"));
    println!(
        "{name:40} {:9} pages {:7.2} CPU s   peak {peak:6.1} MiB   then {resident:6.1} MiB",
        counter.0,
        cpu() - began
    );
    result
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == "app") {
        return app(Path::new(&arguments[2]), &arguments[3]);
    }
    let mib: u64 = arguments.get(1).map_or(1024, |text| text.parse().unwrap());
    let folder = arguments.get(2).map_or_else(std::env::temp_dir, PathBuf::from).join("chatkeep-footprint");
    std::fs::create_dir_all(folder.join("app")).unwrap();
    let path = folder.join("app/chat.db");
    // Three rows a page; a checkpoint now and then keeps the log short.
    let rows = mib * 256 * 3;
    for first in (0..rows).step_by(300_000) {
        let last = (first + 300_000).min(rows);
        drop(App::run(
            &path,
            &format!(
                "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, body BLOB);
                 INSERT INTO t(id, body) WITH RECURSIVE n(i) AS (SELECT {first} + 1 UNION ALL SELECT i + 1 FROM n
                 WHERE i < {last}) SELECT i, randomblob(1300) FROM n;
                 PRAGMA wal_checkpoint(TRUNCATE);"
            ),
        ));
    }
    println!("{} MiB", std::fs::metadata(&path).unwrap().len() >> 20);
    measure(&folder, &path, rows);
    std::fs::remove_dir_all(folder).unwrap();
}

fn measure(folder: &Path, path: &Path, rows: u64) {
    let app = App::run(path, "PRAGMA user_version = 1;");
    let config = || LiveConfig {
        path: path.to_owned(),
        digest_key: [7; 32],
        state_dir: folder.join("state"),
        name: "chat".to_owned(),
    };
    let mut live = step("open", |_| LiveDatabase::open(config()).unwrap());
    let mut seq = 0;
    let mut capture = |live: &mut LiveDatabase, build: Build, counter: &mut Counter| {
        let capture = live.capture(build, counter, &|| false).unwrap();
        seq += 1;
        live.commit(seq, &[1, 2]).unwrap();
        capture
    };
    step("first capture", |counter| capture(&mut live, Build::on(0), counter));
    let small = "INSERT INTO t(body) VALUES (randomblob(1300));";
    drop(App::run(path, small));
    step("one message", |counter| capture(&mut live, Build::on(1), counter));
    let scattered = format!("UPDATE t SET body = randomblob(1300) WHERE id % {} = 5;", rows / 10_000);
    let other = App::run(path, &scattered);
    step("10,000 pages all over", |counter| capture(&mut live, Build::on(2), counter));
    drop(other);
    step("since entry 1", |counter| capture(&mut live, Build::on(1), counter));
    drop(app);
    drop(live);
    let mut live = step("open again", |_| LiveDatabase::open(config()).unwrap());
    let newest = live.table_seq().unwrap();
    step("after a restart", |counter| capture(&mut live, Build::on(newest), counter));
    step("a new base in slices of 4 MiB", |counter| {
        let mut collection = Collection::new(0);
        while !live.collect(&mut collection, 4 << 20, counter).unwrap() {}
        capture(&mut live, Build { parent: 0, collected: Some(&collection) }, counter)
    });
    // Every page is another one, and its frames fill the log.
    let app = App::run(path, "UPDATE t SET body = randomblob(1300);");
    let newest = live.table_seq().unwrap();
    step("all pages rewritten", |counter| capture(&mut live, Build::on(newest), counter));
    drop(app);
    let newest = live.table_seq().unwrap();
    step("closed", |counter| capture(&mut live, Build::on(newest), counter));
    step("nothing", |_| live.look().unwrap());
}
