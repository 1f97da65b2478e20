//! An app in a process of its own, and a store in memory.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use chatkeep_sqlite::{
    Build, Capture, CaptureError, Collection, Digest, LiveConfig, LiveDatabase, PageSink, page_digest,
};

pub(crate) const KEY: [u8; 32] = [9; 32];
const PATH_VARIABLE: &str = "CHATKEEP_TEST_APP";
/// Instead of SQL.
const REOPEN: &str = "reopen";

/// The body of the test `app_process` of every test file: does nothing, unless it was started by [`App::open`].
///
/// A process of its own, because closing a file drops all locks that the *process* has on it.
pub(crate) fn app_process() {
    let Some(path) = std::env::var_os(PATH_VARIABLE) else { return };
    let open = || {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        connection
    };
    let mut connection = open();
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        let answer = if line == REOPEN {
            connection.close().unwrap();
            connection = open();
            "ok".to_owned()
        } else {
            match connection.execute_batch(&line) {
                Ok(()) => "ok".to_owned(),
                Err(error) => format!("{error}").replace('\n', " "),
            }
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

    /// Closes the database and opens it again at once.
    pub(crate) fn reopen(&mut self) {
        self.run(REOPEN);
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

/// The images a database has at one entry.
pub(crate) type State = BTreeMap<u32, Vec<u8>>;

/// What an entry of the log holds.
pub(crate) struct Entry {
    pub(crate) parent: u64,
    pub(crate) page_count: u32,
    pub(crate) state_digest: Digest,
    pub(crate) pages: State,
}

/// A log of entries in memory, and the capture that is being made.
#[derive(Default)]
pub(crate) struct Store {
    /// The newest state.
    pub(crate) pages: State,
    pub(crate) new: State,
    pub(crate) is_base: bool,
    pub(crate) entries: BTreeMap<u64, Entry>,
    /// What the entry has that the capture being made is built on.
    parent: State,
    /// How many images of before came along with pages, each compared with the parent.
    pub(crate) bases: u32,
}

impl Store {
    /// The state at an entry, as a restore makes it: entries along their parents, the oldest first.
    pub(crate) fn state_at(&self, seq: u64) -> State {
        let mut chain = Vec::new();
        let mut at = seq;
        while at != 0 {
            let entry = &self.entries[&at];
            assert!(entry.parent < at, "a parent is older");
            chain.push(entry);
            at = entry.parent;
        }
        let mut state = State::new();
        for entry in chain.into_iter().rev() {
            state.extend(entry.pages.iter().map(|(pgno, image)| (*pgno, image.clone())));
            state.retain(|pgno, _| *pgno <= entry.page_count);
        }
        state
    }
}

/// The digest of a state.
pub(crate) fn digest_of(state: &State) -> Digest {
    let mut sum = Digest::default();
    for (pgno, image) in state {
        sum.iter_mut().zip(page_digest(&KEY, *pgno, image)).for_each(|(a, b)| *a ^= b);
    }
    sum
}

impl PageSink for Store {
    fn begin(&mut self, _page_size: u32, is_base: bool) -> io::Result<()> {
        assert!(self.new.is_empty(), "begin without restart");
        self.is_base = is_base;
        Ok(())
    }

    fn page(&mut self, pgno: u32, image: &[u8], base: Option<&[u8]>) -> io::Result<()> {
        if let Some(base) = base {
            assert!(!self.is_base);
            assert!(self.parent.get(&pgno).is_some_and(|known| known == base), "page {pgno}: another base");
            self.bases += 1;
        }
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
        LiveDatabase::open(self.config())
    }

    fn config(&self) -> LiveConfig {
        LiveConfig {
            path: self.db(),
            digest_key: KEY,
            state_dir: self.folder.path().join("state"),
            name: "chat".to_owned(),
        }
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

    /// As after a restart of the daemon, whose log stands at entry `seq`.
    pub(crate) fn restart_at(&mut self, seq: u64) {
        self.live = None;
        self.live = Some(LiveDatabase::open_at(self.config(), seq).unwrap());
    }

    /// The newest entry, as far as the table knows.
    fn newest(&mut self) -> u64 {
        self.live().table_seq().unwrap_or(0)
    }

    pub(crate) fn try_capture(&mut self) -> Result<Capture, CaptureError> {
        let newest = self.newest();
        self.try_build(newest, None)
    }

    /// Captures on top of any entry; `collected` with what was collected for it.
    pub(crate) fn try_build(
        &mut self,
        parent: u64,
        collected: Option<(&Collection, &State)>,
    ) -> Result<Capture, CaptureError> {
        let mut store = std::mem::take(&mut self.store);
        store.new.clear();
        store.parent = store.state_at(parent);
        let build = Build { parent, collected: collected.map(|(collection, _)| collection) };
        let capture = self.live().capture(build, &mut store, &|| false);
        if let Some((_, before)) = collected {
            for (pgno, image) in before {
                store.new.entry(*pgno).or_insert_with(|| image.clone());
            }
        }
        self.store = store;
        capture
    }

    /// Collects a slice.
    pub(crate) fn try_collect(
        &mut self,
        collection: &mut Collection,
        max_bytes: u64,
        into: &mut State,
    ) -> Result<bool, CaptureError> {
        let mut store = std::mem::take(&mut self.store);
        store.new = std::mem::take(into);
        // `begin` is called with the first slice only.
        store.is_base = collection.parent() == 0;
        store.parent = store.state_at(collection.parent());
        let finished = self.live().collect(collection, max_bytes, &mut store);
        *into = std::mem::take(&mut store.new);
        self.store = store;
        finished
    }

    /// Captures, commits, and checks that the pages in the store add up to the state digest.
    pub(crate) fn capture(&mut self) -> Capture {
        let newest = self.newest();
        self.build(newest, &[])
    }

    /// Captures on top of any entry, commits with these marks, and checks.
    pub(crate) fn build(&mut self, parent: u64, marks: &[u64]) -> Capture {
        let capture = self.try_build(parent, None).unwrap();
        self.commit(&capture, marks);
        capture
    }

    /// Keeps what was captured as the next entry, and checks it.
    pub(crate) fn commit(&mut self, capture: &Capture, marks: &[u64]) {
        self.seq += 1;
        let seq = self.seq;
        self.live().commit(seq, marks).unwrap();
        self.keep(capture);
    }

    pub(crate) fn keep(&mut self, capture: &Capture) {
        assert_eq!(self.store.is_base, capture.is_base);
        if self.store.is_base {
            self.store.pages.clear();
        }
        let mut new = std::mem::take(&mut self.store.new);
        new.retain(|pgno, _| *pgno <= capture.page_count);
        assert_eq!(new.len(), capture.pages as usize);
        self.store.pages.extend(new.clone());
        self.store.pages.retain(|pgno, _| *pgno <= capture.page_count);
        assert_eq!(digest_of(&self.store.pages), capture.state_digest);
        assert_eq!(self.store.pages.len(), capture.page_count as usize);
        let Capture { parent, page_count, state_digest, .. } = *capture;
        self.store.entries.insert(self.seq, Entry { parent, page_count, state_digest, pages: new });
        assert!(self.store.state_at(self.seq) == self.store.pages, "a restore gives something else");
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
