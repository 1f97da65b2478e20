//! The processes of one app, one follower of its database, and a replica of what was captured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use chatkeep_sqlite::{Build, CaptureError, Integrity, Kind, LiveConfig, LiveDatabase};

use super::habits::Habits;
use super::replica::{Collecting, DIGEST_KEY, Replica};
use crate::check::{Checked, Expect, check_database, check_sqlcipher};
use crate::stack::programs;
use crate::stack::random::Random;

/// Of encrypted databases. The app's, not ours.
const CIPHER_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// An app that does not commit for so long, on whatever machine, has a problem.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a capture may be refused because the file is being written, before it is left for the next time.
const QUIET_PATIENCE: Duration = Duration::from_secs(2);
/// Commits after which an app writes slowly: every row is checked after every capture, on whatever machine.
const MANY: &str = "3000";
/// Entries that are kept for later restores, beside what they build on.
const KEPT: usize = 12;
/// Chains are cut at this length, as the planner does.
const CHAIN_MAX: usize = 40;

/// What happened, over all runs.
#[derive(Debug, Default, Clone)]
pub struct Totals {
    /// Captures that succeeded.
    pub captures: u64,
    /// Those with nothing new.
    pub unchanged: u64,
    /// Those built on an older entry than the newest.
    pub spans: u64,
    /// Those with every page.
    pub bases: u64,
    /// Those for which pages were collected before.
    pub collected: u64,
    /// Pages that came with what they were before.
    pub patched_pages: u64,
    /// Restores that were made and checked.
    pub restores: u64,
    /// Whole databases read, by reason.
    pub gaps: BTreeMap<&'static str, u64>,
    /// Captures that found no quiet moment.
    pub refused: u64,
    /// SIGKILLs of writers and visitors.
    pub kills: u64,
    /// Followers dropped at any moment, and opened again.
    pub reopened: u64,
    /// Crashes between an entry that was written down and its commit.
    pub prepared: u64,
    /// Captures that were given up, or cut off.
    pub aborted: u64,
    /// Commits of the writers.
    pub commits: u64,
    /// The longest chain.
    pub chain_max: usize,
    /// Databases that were compared byte by byte at the end.
    pub compared: u64,
    /// Looks for locks of ours.
    pub lock_looks: u64,
}

impl Totals {
    /// Adds another run.
    pub fn add(&mut self, other: &Totals) {
        for (sum, more) in [
            (&mut self.captures, other.captures),
            (&mut self.unchanged, other.unchanged),
            (&mut self.spans, other.spans),
            (&mut self.bases, other.bases),
            (&mut self.collected, other.collected),
            (&mut self.patched_pages, other.patched_pages),
            (&mut self.restores, other.restores),
            (&mut self.refused, other.refused),
            (&mut self.kills, other.kills),
            (&mut self.reopened, other.reopened),
            (&mut self.prepared, other.prepared),
            (&mut self.aborted, other.aborted),
            (&mut self.commits, other.commits),
            (&mut self.compared, other.compared),
            (&mut self.lock_looks, other.lock_looks),
        ] {
            *sum += more;
        }
        self.chain_max = self.chain_max.max(other.chain_max);
        for (reason, count) in &other.gaps {
            *self.gaps.entry(reason).or_default() += count;
        }
    }
}

/// What became of an attempt to capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A state that was checked.
    Captured(Checked),
    /// It was cut off, or the database was not quiet.
    Nothing,
}

/// One app, one live database, one store.
pub struct Rig {
    folder: tempfile::TempDir,
    program: PathBuf,
    habits: Habits,
    seed: u64,
    processes: Vec<Option<Child>>,
    live: Option<LiveDatabase>,
    replica: Replica,
    collecting: Option<Collecting>,
    /// The newest entry.
    seq: u64,
    /// It was written down before it was kept, and not committed.
    prepared: bool,
    newest_commit: u64,
    random: Random,
    /// What happened so far.
    pub totals: Totals,
}

impl Rig {
    /// A folder below `parent`, with the app running in it. `program` is `chatkeep-writer`.
    pub fn start(parent: &Path, program: &Path, habits: Habits, seed: u64) -> Result<Rig, String> {
        let folder = tempfile::Builder::new().prefix("ck").tempdir_in(parent).map_err(why("a folder"))?;
        std::fs::create_dir(folder.path().join("app")).map_err(why("a folder"))?;
        let processes = (0..habits.writers.len() + habits.visitors.len()).map(|_| None).collect();
        let mut rig = Rig {
            folder,
            program: program.to_owned(),
            habits,
            seed,
            processes,
            live: None,
            replica: Replica::default(),
            collecting: None,
            seq: 0,
            prepared: false,
            newest_commit: 0,
            random: Random::new(seed),
            totals: Totals::default(),
        };
        // The first one creates the database.
        rig.start_process(0)?;
        rig.wait_for_commits(1)?;
        (1..rig.processes.len()).try_for_each(|at| rig.start_process(at))?;
        Ok(rig)
    }

    /// The folder of the app.
    pub fn app(&self) -> PathBuf {
        self.folder.path().join("app")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Leaves everything where it is, for whoever looks into a failure.
    pub fn keep(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// Whoever waits for a lock of ours would fail: there is one process, and it does not wait.
    pub fn waits_for_nobody(&self) -> bool {
        self.habits.alone()
    }

    fn command(&self, options: &[String]) -> std::process::Command {
        let mut command = programs::leashed(&self.program);
        command.arg("--database").arg(self.path("app/chat.db")).args(["--seed", &self.seed.to_string()]);
        if self.habits.cipher {
            command.args(["--sqlcipher", "--key", CIPHER_KEY]);
        }
        command.args(options).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn start_process(&mut self, at: usize) -> Result<(), String> {
        let mut options = ["--seconds", "0", "--many", MANY].map(str::to_owned).to_vec();
        let writers = self.habits.writers.len();
        if at < writers {
            options.extend(["--ack".to_owned(), self.path("ack").display().to_string()]);
            options.extend_from_slice(&self.habits.writers[at]);
        } else {
            options.extend_from_slice(&self.habits.visitors[at - writers]);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.path("log"));
        let mut command = self.command(&options);
        command.stderr(log.map_err(why("a log"))?);
        self.processes[at] = Some(command.spawn().map_err(why("starting the writer"))?);
        Ok(())
    }

    /// The newest commit that a writer reported.
    pub fn acknowledged(&self) -> u64 {
        let text = std::fs::read_to_string(self.path("ack")).unwrap_or_default();
        let whole = &text[..text.rfind('\n').unwrap_or(0)];
        let number = |line: &str| line.split(' ').next()?.parse::<u64>().ok();
        // Several writers report out of order, by as many lines as there are writers.
        whole.lines().rev().take(8).filter_map(number).max().unwrap_or(0)
    }

    fn wait_for_commits(&mut self, n: u64) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        while self.acknowledged() < n {
            self.check_writers()?;
            if Instant::now() > until {
                return Err("the writer does not write".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// An error when one ended by itself: it saw an error of SQLite.
    pub fn check_writers(&mut self) -> Result<(), String> {
        for child in self.processes.iter_mut().flatten() {
            if let Some(status) = child.try_wait().map_err(why("waiting"))? {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(format!("a writer ended ({status}): {log}"));
            }
        }
        Ok(())
    }

    /// SIGKILL to one of the processes that run.
    pub fn kill_one(&mut self) -> Result<(), String> {
        self.check_writers()?;
        let at = self.random.below(self.processes.len() as u64) as usize;
        self.kill(at);
        Ok(())
    }

    fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.processes[at].take() {
            let _ = child.kill();
            let _ = child.wait();
            self.totals.kills += 1;
        }
    }

    /// Starts whatever does not run.
    pub fn revive(&mut self) -> Result<(), String> {
        let acknowledged = self.acknowledged();
        let dead: Vec<_> = (0..self.processes.len()).filter(|at| self.processes[*at].is_none()).collect();
        for at in &dead {
            self.start_process(*at)?;
        }
        if dead.is_empty() { Ok(()) } else { self.wait_for_commits(acknowledged + 1) }
    }

    fn open(&mut self) -> Result<&mut LiveDatabase, String> {
        if self.live.is_none() {
            let (path, state_dir) = (self.path("app/chat.db"), self.path("state"));
            let config = LiveConfig { path, digest_key: DIGEST_KEY, state_dir, name: "chat".to_owned() };
            let mut live = LiveDatabase::open_at(config, self.seq).map_err(why("opening the database"))?;
            let stands_elsewhere = live.table_seq().is_some_and(|at| at != self.seq);
            if std::mem::take(&mut self.prepared) && live.table_seq() != Some(self.seq) {
                return Err("what was written down for the newest entry is lost".to_owned());
            }
            if stands_elsewhere {
                live.forget().map_err(why("dropping the table"))?;
            }
            self.live = Some(live);
        }
        Ok(self.live.as_mut().expect("it was just opened"))
    }

    /// As after a kill of the daemon: only what is on the disk is known.
    pub fn drop_follower(&mut self) {
        self.totals.reopened += u64::from(self.live.is_some());
        self.live = None;
        self.collecting = None;
    }

    /// Follows without the proof that nothing was missed.
    pub fn disable_proof(&mut self) -> Result<(), String> {
        self.open()?.disable_proof();
        Ok(())
    }

    /// Looks as the daemon does, at once on every event, for this long.
    pub fn follow_for(&mut self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        let live = self.open()?;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            live.wait(left).map_err(why("waiting"))?;
            live.look().map_err(why("looking"))?;
        }
        Ok(())
    }

    /// Captures on top of the newest entry, keeps it, restores it and checks.
    pub fn capture(&mut self) -> Result<Outcome, String> {
        let seq = self.seq;
        self.capture_on(seq, true)
    }

    /// Captures on top of a random entry, in one of the ways there are, and with luck keeps it.
    pub fn capture_somehow(&mut self) -> Result<Outcome, String> {
        let points = self.replica.points();
        let newest_is_long = self.replica.chain(self.seq).len() >= CHAIN_MAX;
        let parent = match self.random.below(20) {
            0 => 0,
            1..=4 if !points.is_empty() => *self.random.pick(&points),
            _ if newest_is_long => 0,
            _ => self.seq,
        };
        if self.collecting.is_none() && self.random.one_in(6) {
            let parent = if self.random.one_in(2) || points.is_empty() { 0 } else { parent };
            self.collecting = Some(Collecting::new(parent));
        }
        self.collect_some()?;
        match self.collecting.as_ref().filter(|collecting| collecting.finished) {
            Some(finished) if self.random.one_in(2) => {
                let parent = finished.parent();
                self.capture_on(parent, false)
            }
            _ => self.capture_on(parent, false),
        }
    }

    /// Reads some slices for a later capture.
    fn collect_some(&mut self) -> Result<(), String> {
        for _ in 0..self.random.below(4) {
            let Some(mut collecting) = self.collecting.take_if(|collecting| !collecting.finished) else {
                return Ok(());
            };
            let bytes = self.random.between(1, 400_000);
            self.open()?;
            let live = self.live.as_mut().expect("it was just opened");
            match collecting.read_slice(live, bytes, &self.replica) {
                Ok(()) => self.collecting = Some(collecting),
                Err(CaptureError::Outdated) => return Ok(()),
                Err(error) => return Err(format!("collecting: {error:?}")),
            }
        }
        Ok(())
    }

    /// `insist`: keep trying, and keep what comes.
    fn capture_on(&mut self, parent: u64, insist: bool) -> Result<Outcome, String> {
        let acknowledged = self.acknowledged();
        let collecting = self
            .collecting
            .take_if(|collecting| collecting.finished && collecting.parent() == parent && !insist);
        let cut_off = if !insist && self.random.one_in(25) { self.random.below(50) } else { u64::MAX };
        let polls = std::cell::Cell::new(0);
        let cancelled = || polls.replace(polls.get() + 1) >= cut_off;
        let until = Instant::now() + if insist { PATIENCE } else { QUIET_PATIENCE };
        self.open()?;
        let live = self.live.as_mut().expect("it was just opened");
        // A table that was dropped knows no parent.
        let parent = if live.table_seq().is_some() { parent } else { 0 };
        let capture = loop {
            self.replica.begin_entry(parent);
            let collected = collecting.as_ref().map(|collecting| {
                self.replica.take_collected(collecting);
                &collecting.collection
            });
            match live.capture(Build { parent, collected }, &mut self.replica, &cancelled) {
                Ok(capture) => break capture,
                Err(CaptureError::NotQuiet { .. }) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(CaptureError::NotQuiet { .. }) if self.habits.may_refuse && !insist => {
                    self.totals.refused += 1;
                    return Ok(Outcome::Nothing);
                }
                Err(CaptureError::Cancelled | CaptureError::Outdated) => {
                    self.totals.aborted += 1;
                    return Ok(Outcome::Nothing);
                }
                Err(error) => return Err(format!("capture: {error:?}")),
            }
        };
        let kind = if self.habits.cipher { Kind::Opaque } else { Kind::Plain };
        if capture.kind != kind || capture.gone {
            return Err(format!("the database is {:?}, gone: {}", capture.kind, capture.gone));
        }
        if let Some(gap) = capture.gap {
            *self.totals.gaps.entry(gap.as_str()).or_default() += 1;
        }
        if !insist && self.random.one_in(15) {
            self.totals.aborted += 1;
            live.abort();
            return Ok(Outcome::Nothing);
        }
        if capture.unchanged && self.seq > 0 && self.random.one_in(2) {
            // The daemon writes no entry; the newest one has to do.
            live.commit(self.seq, &[]).map_err(why("committing"))?;
            self.totals.unchanged += 1;
        } else if !self.keep_entry(&capture, collecting.is_some(), insist)? {
            return Ok(Outcome::Nothing);
        }
        self.totals.captures += 1;
        self.check_newest(acknowledged).map(Outcome::Captured)
    }

    /// `false` when a crash came before it was kept.
    fn keep_entry(
        &mut self,
        capture: &chatkeep_sqlite::Capture,
        collected: bool,
        insist: bool,
    ) -> Result<bool, String> {
        let crash = if insist { 0 } else { self.random.below(60) };
        let live = self.live.as_mut().expect("it was just captured with");
        let prepared = crash < 57;
        if prepared {
            live.prepare(self.seq + 1).map_err(why("preparing"))?;
        }
        if crash == 1 {
            // Killed before the entry is on the disk: it never was.
            self.totals.prepared += 1;
            self.drop_follower();
            return Ok(false);
        }
        self.totals.spans += u64::from(!capture.is_base && capture.parent < self.seq);
        self.totals.bases += u64::from(capture.is_base);
        self.totals.collected += u64::from(collected);
        self.totals.patched_pages += u64::from(capture.bases);
        self.seq += 1;
        self.replica.keep(self.seq, capture)?;
        self.totals.chain_max = self.totals.chain_max.max(self.replica.chain(self.seq).len());

        let mut kept = self.replica.points();
        while kept.len() > KEPT {
            kept.remove(self.random.below(kept.len() as u64 - 1) as usize);
        }
        kept.extend(self.collecting.as_ref().map(Collecting::parent));
        self.replica.forget_all_but(&kept);
        if crash == 2 || crash > 57 {
            // The entry is on the disk, the daemon is killed before the table is.
            self.totals.prepared += 1;
            self.prepared = prepared;
            self.drop_follower();
            return Ok(true);
        }
        let mut marks = kept;
        marks.retain(|_| self.random.one_in(2));
        let live = self.live.as_mut().expect("it was just captured with");
        live.commit(self.seq, &marks).map_err(why("committing"))?;
        Ok(true)
    }

    /// The newest entry is whole and not older than `acknowledged`; a random older one is what it was.
    fn check_newest(&mut self, acknowledged: u64) -> Result<Checked, String> {
        let checked = self.restore(self.seq, Expect { at_least: acknowledged })?;
        if checked.newest_commit < self.newest_commit {
            return Err(format!(
                "commits went back from {} to {}",
                self.newest_commit, checked.newest_commit
            ));
        }
        self.newest_commit = checked.newest_commit;
        self.totals.commits = self.newest_commit;
        if self.random.one_in(3) {
            let points = self.replica.points();
            let seq = *self.random.pick(&points);
            self.restore(seq, Expect::default())?;
        }
        Ok(checked)
    }

    fn restore(&mut self, seq: u64, expect: Expect) -> Result<Checked, String> {
        let name = format!("restored-{seq}");
        let path = self.path(&name);
        let context = |error: String| format!("entry {seq} of {:?}: {error}", self.replica.chain(seq));
        let restored = self.replica.restore(seq, self.folder.path(), &name);
        match restored.map_err(|error| context(format!("restore: {error}")))? {
            Integrity::Ok | Integrity::Opaque => {}
            Integrity::Inconclusive(why) | Integrity::Complaints(why) => return Err(context(why)),
        }
        let checked = if self.habits.cipher {
            check_sqlcipher(&path, CIPHER_KEY, expect)
        } else {
            check_database(&path, expect)
        };
        let checked = checked.map_err(context)?;
        std::fs::remove_file(path).map_err(why("removing a copy"))?;
        if !self.replica.holds(seq, checked.newest_commit) {
            return Err(format!("entry {seq} ends at commit {} now", checked.newest_commit));
        }
        self.totals.restores += 1;
        Ok(checked)
    }

    /// Ends the app, brings its database to rest, and compares it with the newest entry, byte by byte.
    pub fn finish(&mut self) -> Result<(), String> {
        self.check_writers()?;
        (0..self.processes.len()).for_each(|at| self.kill(at));
        // One that opens it, finds nothing to do, and closes it as the last one.
        let status = self
            .command(&["--seconds", "0.000001", "--busy-timeout-ms", "10000"].map(str::to_owned))
            .status();
        if !status.map_err(why("starting the writer"))?.success() {
            return Err("the database cannot be brought to rest".to_owned());
        }
        self.capture()?;
        let name = "at-rest";
        self.replica.restore(self.seq, self.folder.path(), name).map_err(why("restoring"))?;
        let read = |path: PathBuf| std::fs::read(path).map_err(why("reading a database"));
        if read(self.path(name))? != read(self.path("app/chat.db"))? {
            return Err("at rest the newest entry is not what the file is".to_owned());
        }
        self.totals.compared += 1;
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        (0..self.processes.len()).for_each(|at| self.kill(at));
    }
}

fn why<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error:?}")
}
