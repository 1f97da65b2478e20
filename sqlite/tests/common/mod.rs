//! An app in a process of its own, and a store in memory.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use chatkeep_sqlite::{Capture, CaptureError, LiveConfig, LiveDatabase, PageSink, page_digest};

pub(crate) const KEY: [u8; 32] = [9; 32];
const PATH_VARIABLE: &str = "CHATKEEP_TEST_APP";

/// The body of the test `app_process` of every test file: does nothing, unless it was started by [`App::open`].
///
/// A process of its own, because closing a file drops all locks that the *process* has on it.
pub(crate) fn app_process() {
    let Some(path) = std::env::var_os(PATH_VARIABLE) else { return };
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.busy_timeout(Duration::ZERO).unwrap();
    for line in io::stdin().lock().lines() {
        let answer = match connection.execute_batch(&line.unwrap()) {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("{error}").replace('\n', " "),
        };
        println!("\nanswer: {answer}");
    }
    connection.close().unwrap();
    std::process::exit(0);
}

pub(crate) struct App {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl App {
    pub(crate) fn open(path: &Path) -> App {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "app_process", "--nocapture", "--test-threads=1"])
            .env(PATH_VARIABLE, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        App { child, to, from }
    }

    /// Opens it in WAL mode, and creates a table if there is none.
    pub(crate) fn wal(path: &Path) -> App {
        let mut app = App::open(path);
        app.run("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0;");
        app.run("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, body BLOB);");
        app
    }

    /// Opens it with a rollback journal, and creates a table if there is none.
    pub(crate) fn rollback(path: &Path) -> App {
        let mut app = App::open(path);
        app.run("PRAGMA journal_mode = DELETE; PRAGMA synchronous = OFF;");
        app.run("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, body BLOB);");
        app
    }

    /// Runs one line of SQL, and returns SQLite's complaint.
    pub(crate) fn try_run(&mut self, sql: &str) -> Result<(), String> {
        writeln!(self.to.as_mut().unwrap(), "{}", sql.replace('\n', " ")).unwrap();
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "the app ended");
            match line.trim_end().strip_prefix("answer: ") {
                Some("ok") => return Ok(()),
                Some(error) => return Err(error.to_owned()),
                None => {}
            }
        }
    }

    pub(crate) fn run(&mut self, sql: &str) {
        self.try_run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// One commit that changes a few pages.
    pub(crate) fn insert(&mut self, count: u32) {
        self.run(&format!(
            "INSERT INTO t(body) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
             SELECT randomblob(1500) FROM n;"
        ));
    }

    pub(crate) fn close(mut self) {
        drop(self.to.take());
        assert!(self.child.wait().unwrap().success());
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) pages: BTreeMap<u32, Vec<u8>>,
    pub(crate) new: BTreeMap<u32, Vec<u8>>,
    pub(crate) is_base: bool,
}

impl PageSink for Store {
    fn begin(&mut self, _page_size: u32, is_base: bool) -> io::Result<()> {
        assert!(self.new.is_empty(), "begin without restart");
        self.is_base = is_base;
        Ok(())
    }

    fn page(&mut self, pgno: u32, image: &[u8]) -> io::Result<()> {
        self.new.insert(pgno, image.to_vec());
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.new.clear();
        Ok(())
    }
}

/// A folder with a database, its follower and its store.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) live: Option<LiveDatabase>,
    pub(crate) store: Store,
    pub(crate) seq: u64,
}

impl World {
    pub(crate) fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("app")).unwrap();
        World { folder, live: None, store: Store::default(), seq: 0 }
    }

    pub(crate) fn db(&self) -> PathBuf {
        self.folder.path().join("app/chat.db")
    }

    pub(crate) fn open(&self) -> Result<LiveDatabase, CaptureError> {
        LiveDatabase::open(LiveConfig {
            path: self.db(),
            digest_key: KEY,
            state_dir: self.folder.path().join("state"),
            name: "chat".to_owned(),
        })
    }

    pub(crate) fn live(&mut self) -> &mut LiveDatabase {
        if self.live.is_none() {
            self.live = Some(self.open().unwrap());
        }
        self.live.as_mut().unwrap()
    }

    /// As after a restart of the daemon.
    pub(crate) fn restart(&mut self) {
        self.live = None;
    }

    pub(crate) fn try_capture(&mut self) -> Result<Capture, CaptureError> {
        let mut store = std::mem::take(&mut self.store);
        store.new.clear();
        let capture = self.live().capture(&mut store, &|| false);
        self.store = store;
        capture
    }

    /// Captures, commits, and checks that the pages in the store add up to the state digest.
    pub(crate) fn capture(&mut self) -> Capture {
        let capture = self.try_capture().unwrap();
        self.seq += 1;
        let seq = self.seq;
        self.live().commit(seq).unwrap();
        self.keep(&capture);
        capture
    }

    pub(crate) fn keep(&mut self, capture: &Capture) {
        if self.store.is_base {
            self.store.pages.clear();
        }
        let new = std::mem::take(&mut self.store.new);
        self.store.pages.extend(new);
        self.store.pages.retain(|pgno, _| *pgno <= capture.page_count);
        let mut state = [0_u8; 16];
        for (pgno, image) in &self.store.pages {
            let digest = page_digest(&KEY, *pgno, image);
            state.iter_mut().zip(digest).for_each(|(a, b)| *a ^= b);
        }
        assert_eq!(state, capture.state_digest);
        assert_eq!(self.store.pages.len(), capture.page_count as usize);
    }

    /// What a restore would give.
    pub(crate) fn stored_bytes(&self) -> Vec<u8> {
        self.store.pages.values().flatten().copied().collect()
    }

    /// The store has what the app has, which is not running (any more).
    #[track_caller]
    pub(crate) fn assert_stored_is_the_file(&self) {
        assert!(self.stored_bytes() == std::fs::read(self.db()).unwrap(), "not the same bytes");
    }

    /// Names in the app's folder.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("app")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
