//! Something that runs SQL: SQLite in this process, or the program `sqlcipher`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail, ensure};
use chatkeep_tests::stack::programs;
use rusqlite::Connection;

/// An open database.
pub(crate) enum Database {
    Plain(Connection),
    Cipher { child: Child, to: ChildStdin, from: BufReader<ChildStdout> },
}

impl Database {
    pub(crate) fn plain(path: &Path) -> Result<Database> {
        Ok(Database::Plain(Connection::open(path).context("open")?))
    }

    pub(crate) fn cipher(path: &Path, key: &str) -> Result<Database> {
        ensure!(
            key.len() == 64 && key.bytes().all(|digit| digit.is_ascii_hexdigit()),
            "the key is 64 hex digits"
        );
        // Killed with us: the one that holds the locks is the one to be killed.
        let mut child = programs::leashed(Path::new("sqlcipher"))
            .args(["-batch", "-bail"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting sqlcipher")?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipes") };
        let mut database = Database::Cipher { child, to, from: BufReader::new(from) };
        database.run(&format!("PRAGMA key = \"x'{key}'\";"))?;
        Ok(database)
    }

    pub(crate) fn run(&mut self, sql: &str) -> Result<()> {
        match self {
            Database::Plain(connection) => Ok(connection.execute_batch(sql)?),
            Database::Cipher { .. } => self.ask(sql).map(|_| ()),
        }
    }

    /// Runs what others may be in the way of; `false` when they are.
    pub(crate) fn try_run(&mut self, sql: &str) -> Result<bool> {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
        let Database::Plain(connection) = self else { return self.run(sql).map(|()| true) };
        match connection.execute_batch(sql) {
            Ok(()) => Ok(true),
            Err(error)
                if matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
                    || error.to_string().contains("locked") =>
            {
                if !connection.is_autocommit() {
                    connection.execute_batch("ROLLBACK")?;
                }
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// First column of the first row.
    pub(crate) fn number(&mut self, sql: &str) -> Result<u64> {
        match self {
            Database::Plain(connection) => {
                let value: rusqlite::types::Value = connection.query_row(sql, [], |row| row.get(0))?;
                match value {
                    rusqlite::types::Value::Integer(number) => Ok(number.unsigned_abs()),
                    rusqlite::types::Value::Text(text) => Ok(text.parse()?),
                    other => bail!("{sql}: {other:?}"),
                }
            }
            Database::Cipher { .. } => {
                let answer = self.ask(&format!("{sql};"))?;
                let first = answer.first().and_then(|line| line.split('|').next()).unwrap_or_default();
                first.parse().with_context(|| format!("{sql}: {answer:?}"))
            }
        }
    }

    /// Lets the program run `sql` and say so: it stops at the first error.
    fn ask(&mut self, sql: &str) -> Result<Vec<String>> {
        let Database::Cipher { to, from, .. } = self else { bail!("not a program") };
        const DONE: &str = "-- done --";
        writeln!(to, "{sql}\nSELECT '{DONE}';")?;
        to.flush()?;
        let mut answer = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(
                from.read_line(&mut line)? > 0,
                "sqlcipher failed at {:?}",
                sql.chars().take(80).collect::<String>()
            );
            if line.trim_end() == DONE {
                return Ok(answer);
            }
            answer.push(line.trim_end().to_owned());
        }
    }

    pub(crate) fn close(self) -> Result<()> {
        match self {
            Database::Plain(connection) => connection.close().map_err(|(_, error)| error.into()),
            Database::Cipher { mut child, to, .. } => {
                drop(to);
                ensure!(child.wait()?.success(), "sqlcipher failed");
                Ok(())
            }
        }
    }
}
