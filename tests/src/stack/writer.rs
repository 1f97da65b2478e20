//! The writer: an app in a process of its own that commits without pause, and notes what was acknowledged.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use super::process::Process;
use super::random::Random;
use super::scan::{self, Needle};
use super::{programs, wait};
use crate::chat;
use crate::check::{Checked, Expect, check_database};

/// How an app writes.
#[derive(Debug, Clone)]
pub struct Profile {
    /// `wal` or `delete`
    pub journal: &'static str,
    /// Pages after which SQLite checkpoints by itself, 0 for never.
    pub autocheckpoint: u32,
    /// Shorten the WAL at every checkpoint.
    pub truncate_each: bool,
    /// Close and open again after so many commits, 0 for never.
    pub reopen_every: u32,
    /// Commits a second, 0 for as many as can be.
    pub rate: u32,
    /// Size of the database before the first commit.
    pub prefill_mb: u32,
    /// Write into any database, without knowing its tables.
    pub any: bool,
}

impl Profile {
    /// A chat app on a good day.
    pub fn steady(rate: u32) -> Self {
        Self {
            journal: "wal",
            autocheckpoint: 1000,
            truncate_each: false,
            reopen_every: 0,
            rate,
            prefill_mb: 0,
            any: false,
        }
    }

    /// Anything that apps do.
    pub fn random(random: &mut Random) -> Self {
        let mut profile = Self {
            journal: if random.one_in(4) { "delete" } else { "wal" },
            autocheckpoint: *random.pick(&[1000, 1000, 100, 10, 0]),
            truncate_each: random.one_in(5),
            reopen_every: *random.pick(&[0, 0, 0, 50, 7]),
            rate: *random.pick(&[20, 100, 400, 0]),
            prefill_mb: *random.pick(&[0, 0, 1, 4]),
            any: false,
        };
        if profile.journal == "delete" {
            // without a log nothing can be read while the file is written: an app that never pauses is `DatabaseBusy`
            profile.rate = *random.pick(&[2, 8, 20]);
        } else if profile.autocheckpoint == 0 {
            // its log only ever grows: at full speed it would fill the disk
            (profile.rate, profile.prefill_mb) = (100, 0);
        }
        profile
    }
}

/// A running writer, or one that was killed and can be started again.
pub struct Writer {
    database: PathBuf,
    ack: PathBuf,
    log: PathBuf,
    profile: Profile,
    seed: u64,
    process: Option<Process>,
}

/// One commit that SQLite acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Its number, from 1.
    pub number: u64,
    /// When, in microseconds since 1970.
    pub at_us: u64,
}

impl Writer {
    /// Starts to write into `database`; `folder` takes what it acknowledged and said.
    pub fn start(database: &Path, folder: &Path, profile: Profile, seed: u64) -> Result<Self> {
        let file = |kind: &str| {
            let name = database.file_name().unwrap_or_default().to_string_lossy();
            folder.join(format!("{name}.{kind}"))
        };
        let (ack, log) = (file("ack"), file("log"));
        let mut writer = Self { database: database.to_owned(), ack, log, profile, seed, process: None };
        writer.restart()?;
        wait::until("the writer commits", wait::PATIENCE, || {
            writer.check()?;
            Ok(writer.acknowledged()?.last().map(|_| ()))
        })?;
        Ok(writer)
    }

    /// Starts it again, on the same database.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        let mut command = programs::leashed(&programs::ours("chatkeep-writer")?);
        command.arg("--database").arg(&self.database).arg("--ack").arg(&self.ack).args(["--seconds", "0"]);
        if !self.profile.any {
            command.args(["--journal", self.profile.journal]);
        }
        for (name, value) in [
            ("--autocheckpoint", self.profile.autocheckpoint.to_string()),
            ("--rate", self.profile.rate.to_string()),
            ("--seed", self.seed.to_string()),
        ] {
            command.arg(name).arg(value);
        }
        for (name, value) in
            [("--reopen-every", self.profile.reopen_every), ("--prefill-mb", self.profile.prefill_mb)]
        {
            if value > 0 {
                command.arg(name).arg(value.to_string());
            }
        }
        for (name, wanted) in [("--truncate-each", self.profile.truncate_each), ("--any", self.profile.any)] {
            if wanted {
                command.arg(name);
            }
        }
        self.process = Some(Process::start(
            "chatkeep-writer",
            command.stdin(Stdio::null()).stdout(Stdio::null()),
            &self.log,
        )?);
        Ok(())
    }

    /// An error if it ended by itself: then something disturbed it.
    pub fn check(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process
            && let Some(status) = process.ended()?
        {
            bail!("the writer ended with {status}: {}", process.log_tail());
        }
        Ok(())
    }

    /// SIGKILL, after [`Writer::check`].
    pub fn kill(&mut self) -> Result<()> {
        self.check()?;
        self.process = None;
        Ok(())
    }

    /// The database.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// Checks a restored copy, row by row: all that was written up to its newest commit, and nothing else.
    pub fn check_copy(&self, copy: &Path) -> Result<Checked> {
        let checked = if self.profile.any {
            check_any(copy, self.seed)
        } else {
            check_database(copy, Expect::default())
        };
        checked.map_err(|error| anyhow::anyhow!("{}: {error}", copy.display()))
    }

    /// Texts that it certainly wrote, to look for where they must not be readable.
    pub fn needles(&self) -> Vec<Needle> {
        let first = chat::expected(self.seed, 1, 1).into_iter();
        first
            .flat_map(|message| {
                [scan::text("a message", &message.body), scan::text("a stanza", &message.stanza)].concat()
            })
            .collect()
    }

    /// What was acknowledged so far, oldest first.
    pub fn acknowledged(&self) -> Result<Vec<Commit>> {
        acknowledged(&self.ack)
    }
}

/// The rows of a replay into a database whose other tables we do not know.
fn check_any(copy: &Path, seed: u64) -> Result<Checked, String> {
    let check = || -> rusqlite::Result<Result<Checked, String>> {
        let database = rusqlite::Connection::open(copy)?;
        let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Ok(Err(format!("integrity check: {verdict}")));
        }
        let mut statement =
            database.prepare("SELECT n, stanza, body, hash FROM chatkeep_demo_messages ORDER BY n")?;
        let mut rows = statement.query([])?;
        let mut newest = 0;
        while let Some(row) = rows.next()? {
            newest += 1;
            let expected = chat::expected(seed, newest, newest).swap_remove(0);
            let found = (row.get::<_, i64>(0)? as u64, row.get(1)?, row.get(2)?, row.get(3)?);
            if found != (newest, expected.stanza, expected.body, expected.hash) {
                return Ok(Err(format!("commit {newest}: found {found:?}")));
            }
        }
        Ok(Ok(Checked { commits: newest, rows: newest, newest_commit: newest }))
    };
    check().map_err(|error| error.to_string())?
}

/// Reads the file of acknowledged commits; a last line that was cut off by a kill does not count.
fn acknowledged(path: &Path) -> Result<Vec<Commit>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line: &str| {
        let (number, at_us) =
            line.split_once(' ').with_context(|| format!("`{line}` acknowledges nothing"))?;
        Ok(Commit { number: number.trim().parse()?, at_us: at_us.trim().parse()? })
    };
    whole.lines().map(parse).collect()
}

/// The newest commit that was acknowledged before `time_us`; 0 if none was.
pub fn newest_before(commits: &[Commit], time_us: u64) -> u64 {
    commits.iter().filter(|commit| commit.at_us < time_us).map(|commit| commit.number).max().unwrap_or(0)
}

/// Seconds of work that are gone when the last commit left is `kept`: from the first lost acknowledgement, or nothing
/// if none is lost, to `end_us`.
pub fn lost_seconds(commits: &[Commit], kept: u64, end_us: u64) -> f64 {
    let first_lost = commits.iter().find(|commit| commit.number > kept && commit.at_us <= end_us);
    first_lost.map_or(0.0, |commit| (end_us - commit.at_us) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_lost_is_counted_from_the_first_commit_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ack");
        std::fs::write(&file, "1 1000000\n2 2000000\n3 3500000\n4 40").unwrap();
        let commits = acknowledged(&file).unwrap();
        assert_eq!(commits.len(), 3);
        assert_eq!(newest_before(&commits, 2_000_001), 2);
        assert_eq!(newest_before(&commits, 1), 0);
        assert!((lost_seconds(&commits, 1, 4_000_000) - 2.0).abs() < 1e-9);
        assert!(lost_seconds(&commits, 3, 4_000_000).abs() < 1e-9);
    }
}
