//! Captures under a writer that goes on writing: every one is restored, and must be a state the writer committed.
//!
//! Rates are what two busy cores can follow between two rounds of the log, with a database that stays small enough to be
//! checked row by row. A writer at full speed is left to the negative control.
//!
//! The writer is a process of its own that knows nothing of Chatkeep and does not wait for locks. Every restored
//! state is checked row by row; it must be at least as new as what was acknowledged before the capture began, and
//! commit numbers never go back.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chatkeep_sqlite::{
    Capture, CaptureError, Existing, Integrity, Kind, LiveConfig, LiveDatabase, PageSink, RestoreError,
    RestoreWriter,
};
use chatkeep_tests::{Checked, Expect, check_database, check_sqlcipher};

const DIGEST_KEY: [u8; 32] = [42; 32];
const CIPHER_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A store in memory: the committed pages, and those of the capture under way.
#[derive(Default)]
struct Store {
    committed: HashMap<u32, Vec<u8>>,
    new: HashMap<u32, Vec<u8>>,
    is_base: bool,
}

impl PageSink for Store {
    fn begin(&mut self, _page_size: u32, is_base: bool) -> io::Result<()> {
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

impl Store {
    fn commit(&mut self, capture: &Capture) {
        if self.is_base {
            self.committed.clear();
        }
        self.committed.extend(self.new.drain());
        self.committed.retain(|pgno, _| *pgno <= capture.page_count);
    }

    fn restore(&self, capture: &Capture, directory: &Path, name: &str) -> Result<Integrity, RestoreError> {
        let opened = File::open(directory).unwrap().into();
        let mut writer =
            RestoreWriter::create(opened, name, capture.page_size, capture.page_count, DIGEST_KEY)?;
        for (pgno, image) in &self.committed {
            writer.write_page(*pgno, image)?;
        }
        let restored = writer.finish(capture.state_digest, capture.kind, Existing::Refuse, "test")?;
        Ok(restored.integrity)
    }
}

/// One writer, one live database, one store.
struct World {
    folder: tempfile::TempDir,
    writer_options: Vec<String>,
    writer: Option<Child>,
    live: Option<LiveDatabase>,
    store: Store,
    seq: u64,
    newest_restored: u64,
    cipher: bool,
}

#[derive(Debug, Default)]
struct Totals {
    restores: u32,
    bases: u32,
    gaps: BTreeMap<&'static str, u32>,
    not_quiet: u32,
}

impl World {
    /// A temporary folder in memory where there is one: the tests are about order, not about disks.
    fn new(writer_options: &str, cipher: bool) -> World {
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        std::fs::create_dir(folder.path().join("app")).unwrap();
        let mut options: Vec<String> = writer_options.split_whitespace().map(str::to_owned).collect();
        if cipher {
            options.extend(["--sqlcipher", "--key", CIPHER_KEY].map(str::to_owned));
        }
        let mut world = World {
            folder,
            writer_options: options,
            writer: None,
            live: None,
            store: Store::default(),
            seq: 0,
            newest_restored: 0,
            cipher,
        };
        world.start_writer();
        world.wait_for_commits(1);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start_writer(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_chatkeep-writer"))
            .arg("--database")
            .arg(self.path("app/chat.db"))
            .arg("--ack")
            .arg(self.path("ack"))
            .args(["--seconds", "0"])
            .args(&self.writer_options)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.writer = Some(child);
    }

    /// The newest commit that the writer reported.
    fn acknowledged(&self) -> u64 {
        let text = std::fs::read_to_string(self.path("ack")).unwrap_or_default();
        let whole = &text[..text.rfind('\n').unwrap_or(0)];
        whole.lines().last().and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0)
    }

    fn wait_for_commits(&mut self, n: u64) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.acknowledged() < n {
            self.assert_writer_runs();
            assert!(Instant::now() < until, "the writer does not write");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn assert_writer_runs(&mut self) {
        let status = self.writer.as_mut().unwrap().try_wait().unwrap();
        assert!(status.is_none(), "the writer ended: {status:?}");
    }

    fn live(&mut self) -> &mut LiveDatabase {
        let (path, state_dir) = (self.path("app/chat.db"), self.path("state"));
        self.live.get_or_insert_with(|| {
            let config = LiveConfig { path, digest_key: DIGEST_KEY, state_dir, name: "chat".to_owned() };
            LiveDatabase::open(config).unwrap()
        })
    }

    /// Looks as the daemon does, at once on every event, for this long.
    fn follow_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        let live = self.live();
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            live.wait(left).unwrap();
            live.look().unwrap();
        }
    }

    /// Captures, restores and checks.
    fn capture(&mut self, totals: &mut Totals) -> Result<Checked, String> {
        let acknowledged = self.acknowledged();
        let until = Instant::now() + Duration::from_secs(20);
        let mut store = std::mem::take(&mut self.store);
        let capture = loop {
            match self.live().capture(&mut store, &|| false) {
                Ok(capture) => break capture,
                Err(CaptureError::NotQuiet { .. }) if Instant::now() < until => {
                    store.new.clear();
                    totals.not_quiet += 1;
                }
                Err(error) => panic!("capture: {error:?}"),
            }
        };
        self.store = store;
        assert_eq!(capture.kind, if self.cipher { Kind::Opaque } else { Kind::Plain });
        self.store.commit(&capture);
        self.seq += 1;
        let seq = self.seq;
        self.live().commit(seq).unwrap();
        if let Some(gap) = capture.gap {
            *totals.gaps.entry(gap.as_str()).or_default() += 1;
        }
        totals.bases += u32::from(capture.is_base);

        let name = format!("restored-{seq}");
        let directory = self.folder.path().to_owned();
        let restored = self.store.restore(&capture, &directory, &name);
        match restored.map_err(|error| format!("restore: {error}"))? {
            Integrity::Ok | Integrity::Opaque => {}
            Integrity::Inconclusive(why) | Integrity::Complaints(why) => return Err(why),
        }
        totals.restores += 1;
        let path = self.path(&name);
        let expect = Expect { at_least: acknowledged };
        let checked = if self.cipher {
            check_sqlcipher(&path, CIPHER_KEY, expect)
        } else {
            check_database(&path, expect)
        }?;
        std::fs::remove_file(path).unwrap();
        assert!(checked.newest_commit >= self.newest_restored, "commits went back");
        self.newest_restored = checked.newest_commit;
        Ok(checked)
    }

    fn kill_writer(&mut self) {
        let mut child = self.writer.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.writer.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// This process holds no lock on a file of the app. (It may on restored copies, which other tests check meanwhile.)
fn assert_no_locks(app: &Path) {
    let own = std::process::id().to_string();
    let inodes: Vec<String> = std::fs::read_dir(app)
        .unwrap()
        .flatten()
        .filter_map(|file| Some(file.metadata().ok()?.ino().to_string()))
        .collect();
    for line in std::fs::read_to_string("/proc/locks").unwrap().lines() {
        // number, class, kind, access, process, device:device:inode, range; descriptors' locks have no process
        let fields: Vec<&str> = line.split_whitespace().filter(|field| *field != "->").collect();
        let theirs = fields[1] != "OFDLCK" && fields[4] != own;
        let elsewhere = !inodes.iter().any(|inode| fields[5].rsplit(':').next() == Some(inode.as_str()));
        assert!(theirs || elsewhere, "{line}");
    }
}

/// `captures` captures under a writer with these options, with `kills` deaths of the writer in between.
fn stress(options: &str, cipher: bool, captures: u32, pause_ms: u64, kills: u32) {
    let mut world = World::new(options, cipher);
    let mut totals = Totals::default();
    for number in 1..=captures {
        world.follow_for(Duration::from_millis(pause_ms));
        world.capture(&mut totals).unwrap_or_else(|error| panic!("{options}: capture {number}: {error}"));
        assert_no_locks(&world.path("app"));
        world.assert_writer_runs();
        if kills > 0 && number % (captures / (kills + 1)) == 0 {
            world.kill_writer();
            if number % 2 == 0 {
                // Also the state a dead app left behind is captured whole.
                world.capture(&mut totals).unwrap_or_else(|error| panic!("{options}: after a kill: {error}"));
            }
            let acknowledged = world.acknowledged();
            world.start_writer();
            world.wait_for_commits(acknowledged + 1);
        }
        if number % 10 == 0 {
            // As after a restart of the daemon: only the table on disk is known.
            world.live = None;
        }
    }
    println!("{options}: {totals:?}, newest commit {}", world.newest_restored);
    assert!(totals.restores >= captures);
}

#[test]
fn log_with_rare_checkpoints() {
    stress("--journal wal --autocheckpoint 1000 --rate 1500", false, 30, 20, 3);
}

#[test]
fn log_with_checkpoints_every_100_pages() {
    stress("--journal wal --autocheckpoint 100 --rate 300", false, 30, 20, 3);
}

#[test]
fn log_with_checkpoints_every_20_pages() {
    stress("--journal wal --autocheckpoint 20 --rate 100", false, 30, 20, 3);
}

#[test]
fn log_truncated_after_each_message() {
    stress("--journal wal --truncate-each --rate 100", false, 30, 20, 3);
}

#[test]
fn database_closed_and_opened_again_and_again() {
    stress("--journal wal --reopen-every 4 --rate 100", false, 30, 20, 3);
}

#[test]
fn rollback_journal() {
    stress("--journal delete --rate 15", false, 40, 50, 3);
}

#[test]
fn sqlcipher_with_a_log() {
    stress("--journal wal --autocheckpoint 100 --rate 200", true, 25, 20, 2);
}

#[test]
fn sqlcipher_with_a_rollback_journal() {
    stress("--journal delete --rate 15", true, 30, 50, 2);
}

/// With the proof that nothing was missed switched off, corruption must be found: else the tests above prove nothing.
#[test]
fn without_the_proof_the_harness_finds_corruption() {
    let mut world = World::new("--journal wal --autocheckpoint 20 --rate 0", false);
    let mut totals = Totals::default();
    world.live().disable_proof();
    for _ in 0..60 {
        // Long enough for the log to go round several times unseen.
        std::thread::sleep(Duration::from_millis(20));
        if let Err(found) = world.capture(&mut totals) {
            println!("found: {}", found.lines().next().unwrap_or_default());
            return;
        }
    }
    panic!("nothing was found in {totals:?}");
}
