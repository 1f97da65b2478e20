//! Stands in for a chat app: writes a database in its own process, and knows nothing of Chatkeep.
//!
//! Every commit is acknowledged in a file after SQLite said it is done. Any error of SQLite ends it with a failure.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use chatkeep_tests::chat;
use clap::{Parser, ValueEnum};
use rusqlite::Connection;

/// Rows of a transaction of the prefill.
const PREFILL_ROWS: u64 = 2000;

#[derive(Clone, Copy, ValueEnum)]
enum Journal {
    Wal,
    Delete,
}

/// Writes a chat database, as an app would.
#[derive(Parser)]
struct Options {
    /// The database; created if it does not exist, else continued.
    #[arg(long)]
    database: PathBuf,
    /// Sets the journal mode.
    #[arg(long)]
    journal: Option<Journal>,
    /// Pages of log after which SQLite checkpoints.
    #[arg(long)]
    autocheckpoint: Option<u32>,
    /// Checkpoint with TRUNCATE after each commit.
    #[arg(long)]
    truncate_each: bool,
    /// Close and open the database after so many commits; 0 = never.
    #[arg(long, default_value_t = 0)]
    reopen_every: u64,
    /// Commits a second; 0 = without a pause.
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// How long; 0 = until killed.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// What is written follows from it. A database that is continued keeps its own.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Gets a line `n unix_us` after every commit.
    #[arg(long)]
    ack: Option<PathBuf>,
    /// Write an encrypted database with the program `sqlcipher`.
    #[arg(long, requires = "key")]
    sqlcipher: bool,
    /// Its raw key, 64 hexadecimal digits.
    #[arg(long)]
    key: Option<String>,
    /// Fill the database to about this size first.
    #[arg(long, default_value_t = 0)]
    prefill_mb: u64,
    /// How long SQLite waits for a lock; 0 as in apps that never expect to wait.
    #[arg(long, default_value_t = 0)]
    busy_timeout_ms: u64,
    /// Write into one table of our own in whatever database this is.
    #[arg(long)]
    any: bool,
}

/// Something that runs SQL.
enum Database {
    Plain(Connection),
    Cipher { child: Child, to: ChildStdin, from: BufReader<ChildStdout> },
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut database = open(&options)?;
    let table = if options.any { "chatkeep_demo_messages" } else { "messages" };
    let seed = prepare(&mut database, &options)?;
    let mut ack =
        options.ack.as_ref().map(|path| File::options().create(true).append(true).open(path)).transpose()?;
    let newest = database.number(&format!("SELECT coalesce(max(n), 0) FROM {table}"))?;
    let began = Instant::now();
    for count in 1.. {
        if options.seconds > 0.0 && began.elapsed().as_secs_f64() >= options.seconds {
            break;
        }
        let n = newest + count;
        let body = if options.any { chat::statements_any(seed, n) } else { chat::statements(seed, n) };
        database.run(&format!("BEGIN IMMEDIATE;\n{body}COMMIT;\n")).with_context(|| format!("commit {n}"))?;
        if let Some(ack) = &mut ack {
            let now_us = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
            ack.write_all(format!("{n} {now_us}\n").as_bytes())?;
        }
        if options.truncate_each {
            let busy = database.number("PRAGMA wal_checkpoint(TRUNCATE)")?;
            ensure!(busy == 0, "commit {n}: somebody held up the checkpoint");
        }
        if options.reopen_every > 0 && count % options.reopen_every == 0 {
            database.close()?;
            database = open(&options)?;
        }
        if options.rate > 0.0 {
            let due = Duration::from_secs_f64(count as f64 / options.rate);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    database.close()
}

fn open(options: &Options) -> Result<Database> {
    let mut database = match &options.key {
        Some(key) if options.sqlcipher => Database::cipher(options, key)?,
        _ => Database::Plain(Connection::open(&options.database).context("open")?),
    };
    database.run(&format!("PRAGMA busy_timeout = {};", options.busy_timeout_ms))?;
    match options.journal {
        Some(Journal::Wal) => database.run("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")?,
        Some(Journal::Delete) => database.run("PRAGMA journal_mode = DELETE;")?,
        None => {}
    }
    if let Some(pages) = options.autocheckpoint {
        database.run(&format!("PRAGMA wal_autocheckpoint = {pages};"))?;
    }
    Ok(database)
}

/// Creates what is missing, and returns the seed of the database.
fn prepare(database: &mut Database, options: &Options) -> Result<u64> {
    if options.any {
        database.run(chat::SCHEMA_ANY)?;
        return Ok(options.seed);
    }
    let full_text = match database {
        Database::Plain(_) => true,
        Database::Cipher { .. } => database.number("SELECT sqlite_compileoption_used('ENABLE_FTS5')")? == 1,
    };
    let seed = options.seed;
    database.run(&format!(
        "BEGIN IMMEDIATE; {} {} INSERT OR IGNORE INTO meta VALUES ('seed', '{seed}'); COMMIT;",
        chat::SCHEMA,
        if full_text { chat::SCHEMA_FTS } else { "" }
    ))?;
    let seed = database.number("SELECT value FROM meta WHERE key = 'seed'")?;
    let mut rows = database.number("SELECT coalesce(max(id), 0) FROM history")?;
    // Not the file's length: without checkpoints it does not grow.
    let page_size = database.number("PRAGMA page_size")?;
    while options.prefill_mb > 0
        && database.number("PRAGMA page_count")? * page_size < options.prefill_mb << 20
    {
        let sql = chat::statements_history(seed, rows + 1, PREFILL_ROWS);
        database.run(&format!("BEGIN IMMEDIATE;\n{sql}COMMIT;\n"))?;
        rows += PREFILL_ROWS;
    }
    Ok(seed)
}

impl Database {
    fn cipher(options: &Options, key: &str) -> Result<Database> {
        ensure!(
            key.len() == 64 && key.bytes().all(|digit| digit.is_ascii_hexdigit()),
            "the key is 64 hex digits"
        );
        let mut child = Command::new("sqlcipher")
            .args(["-batch", "-bail"])
            .arg(&options.database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting sqlcipher")?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipes") };
        let mut database = Database::Cipher { child, to, from: BufReader::new(from) };
        database.run(&format!("PRAGMA key = \"x'{key}'\";"))?;
        Ok(database)
    }

    fn run(&mut self, sql: &str) -> Result<()> {
        match self {
            Database::Plain(connection) => Ok(connection.execute_batch(sql)?),
            Database::Cipher { .. } => self.ask(sql).map(|_| ()),
        }
    }

    /// First column of the first row.
    fn number(&mut self, sql: &str) -> Result<u64> {
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

    fn close(self) -> Result<()> {
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
