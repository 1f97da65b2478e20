//! A program that has a database open, in a process of its own: closing a file drops all locks that the process has on it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::stack::programs;
use crate::stack::random::Random;

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS m(id INTEGER PRIMARY KEY, n INTEGER NOT NULL, t TEXT NOT NULL); \
     CREATE INDEX IF NOT EXISTS m_by_text ON m(t);";

/// Tells states apart: how many rows, what is in them, and the newest.
pub const FINGERPRINT: &str = "SELECT count(*) || ' ' || coalesce(sum((id * 7919 + n) * length(t) % 1000003), 0) \
     || ' ' || coalesce(max(n), 0) FROM m";

/// The program, running or not.
pub struct App {
    program: PathBuf,
    database: PathBuf,
    running: Option<Running>,
    /// Numbers what it writes.
    n: u64,
}

struct Running {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl App {
    /// `program` is `chatkeep-writer`.
    pub fn new(program: &Path, database: &Path) -> App {
        App { program: program.to_owned(), database: database.to_owned(), running: None, n: 0 }
    }

    /// The database.
    pub fn database(&self) -> &Path {
        &self.database
    }

    fn running(&mut self) -> Result<&mut Running> {
        if self.running.is_none() {
            let mut command = programs::leashed(&self.program);
            command.arg("--serve").arg("--database").arg(&self.database);
            command.args(["--journal", "wal", "--busy-timeout-ms", "10000"]);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipes") };
            self.running = Some(Running { child, to, from: BufReader::new(from) });
            self.run(SCHEMA)?;
            self.n = self.run("SELECT coalesce(max(n), 0) FROM m;")?.parse()?;
        }
        self.running.as_mut().context("it was just started")
    }

    /// Runs one line of SQL; returns the first value of the last row.
    pub fn run(&mut self, sql: &str) -> Result<String> {
        let running = self.running()?;
        writeln!(running.to, "{}", sql.replace('\n', " "))?;
        running.to.flush()?;
        let mut line = String::new();
        running.from.read_line(&mut line)?;
        match line.trim_end().split_once(' ') {
            Some(("ok", value)) => Ok(value.to_owned()),
            None if line.trim_end() == "ok" => Ok(String::new()),
            _ => bail!("{sql}: {line:?}"),
        }
    }

    /// What the database is now.
    pub fn fingerprint(&mut self) -> Result<String> {
        self.run(FINGERPRINT)
    }

    /// Changes something, as apps do.
    pub fn write(&mut self, random: &mut Random) -> Result<()> {
        self.running()?;
        self.n += 1;
        let n = self.n;
        let rows = if random.one_in(40) { random.between(500, 2500) } else { random.between(1, 12) };
        let length = random.between(20, 500);
        let salt = random.number();
        // Text that compresses as badly as messages do, and follows from the seed.
        let insert = format!(
            "INSERT INTO m(n, t) WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < {rows}) \
             SELECT {n}, substr(printf('%d', (i * 2654435761 + {salt}) % 99999989) || \
             printf('%.{length}c', 'x') || i * {salt}, 1, {length} + i % 37) FROM r;"
        );
        let more = match random.below(16) {
            0 => format!("DELETE FROM m WHERE id % 5 = {} AND n < {n};", random.below(5)),
            1 => format!("UPDATE m SET t = t || '!' WHERE id % 17 = {};", random.below(17)),
            _ => String::new(),
        };
        self.run(&format!("BEGIN IMMEDIATE; {insert} {more} COMMIT;"))?;
        match random.below(40) {
            0 => drop(self.run("VACUUM;")?),
            1 => self.close()?,
            2 => self.kill(),
            3..8 => {
                let mode = random.pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
                self.run(&format!("PRAGMA wal_checkpoint({mode});"))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// A few short messages.
    pub fn say(&mut self, random: &mut Random) -> Result<()> {
        self.running()?;
        self.n += 1;
        let (n, rows, salt) = (self.n, random.between(1, 4), random.number());
        self.run(&format!(
            "INSERT INTO m(n, t) WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < {rows}) \
             SELECT {n}, hex(i * {salt}) || substr('{salt:x}{salt}{salt:o}', 1, 10 + i * 7 % 40) FROM r;"
        ))
        .map(|_| ())
    }

    /// Closes it as an app does that ends.
    pub fn close(&mut self) -> Result<()> {
        let Some(Running { mut child, to, .. }) = self.running.take() else { return Ok(()) };
        drop(to);
        anyhow::ensure!(child.wait()?.success(), "the app failed");
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(Running { mut child, .. }) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a restored database is, after SQLite's own check.
pub fn fingerprint_of(path: &Path) -> Result<String> {
    use rusqlite::OpenFlags;
    let uri = format!("file:{}?immutable=1", path.display());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let database = rusqlite::Connection::open_with_flags(uri, flags)?;
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    anyhow::ensure!(verdict == "ok", "integrity_check says {verdict}");
    Ok(database.query_row(FINGERPRINT, [], |row| row.get(0))?)
}
