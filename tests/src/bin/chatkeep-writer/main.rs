//! Stands in for a chat app: writes a database in its own process, and knows nothing of Chatkeep.
//!
//! Every commit is acknowledged in a file after SQLite said it is done. Any error of SQLite ends it with a failure,
//! unless others write as well and it may be theirs.

mod database;
mod options;
mod serve;

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use chatkeep_tests::chat;
use chatkeep_tests::stack::random::Random;
use clap::Parser;

use database::Database;
use options::{AutoVacuum, Journal, Options, Sync};

/// Rows of a transaction of the prefill.
const PREFILL_ROWS: u64 = 2000;
/// Between two commits of a writer that has written much.
const SLOW_PAUSE: Duration = Duration::from_millis(200);
/// Every page size that SQLite has.
const PAGE_SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];
const CHECKPOINTS: [&str; 4] = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"];

fn main() -> Result<()> {
    let options = Options::parse();
    if options.serve {
        return match open(&options)? {
            Database::Plain(connection) => serve::serve(connection),
            Database::Cipher { .. } => bail!("only of SQLite itself"),
        };
    }
    let mut app = App::start(&options)?;
    if options.visitor { app.visit() } else { app.write() }?;
    app.database.close()
}

struct App<'a> {
    options: &'a Options,
    database: Database,
    random: Random,
    began: Instant,
}

impl<'a> App<'a> {
    fn start(options: &'a Options) -> Result<Self> {
        // Two processes with the same seed write the same, and behave differently.
        let random = Random::new(options.seed ^ u64::from(std::process::id()) << 32);
        Ok(App { database: open(options)?, options, random, began: Instant::now() })
    }

    fn is_over(&self) -> bool {
        self.options.seconds > 0.0 && self.began.elapsed().as_secs_f64() >= self.options.seconds
    }

    fn reopen(&mut self) -> Result<()> {
        // The old one first: it has to be the last that closes, now and then.
        let closed =
            std::mem::replace(&mut self.database, Database::plain(std::path::Path::new(":memory:"))?);
        closed.close()?;
        self.database = open(self.options)?;
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let options = self.options;
        let table = if options.any { "chatkeep_demo_messages" } else { "messages" };
        let seed = prepare(&mut self.database, options)?;
        let ack = options.ack.as_ref();
        let mut ack = ack.map(|path| File::options().create(true).append(true).open(path)).transpose()?;
        let newest = format!("SELECT coalesce(max(n), 0) FROM {table}");
        let mut n = self.database.number(&newest)?;
        for count in 1.. {
            if self.is_over() {
                break;
            }
            if !self.run("BEGIN IMMEDIATE;").context("begin")? {
                continue;
            }
            n = if options.shared { self.database.number(&newest)? } else { n } + 1;
            if !self.commit(seed, n).with_context(|| format!("commit {n}"))? {
                continue;
            }
            if let Some(ack) = &mut ack {
                let now_us = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
                ack.write_all(format!("{n} {now_us}\n").as_bytes())?;
            }
            self.tidy_up(n, count)?;
            if options.many > 0 && n >= options.many {
                std::thread::sleep(SLOW_PAUSE);
            } else if options.rate > 0.0 {
                let due = Duration::from_secs_f64(count as f64 / options.rate);
                std::thread::sleep(due.saturating_sub(self.began.elapsed()));
            }
        }
        Ok(())
    }

    /// Writes commit `n` into the transaction that was begun; `false` when others were in the way.
    fn commit(&mut self, seed: u64, n: u64) -> Result<bool> {
        let any = self.options.any;
        let body = if any { chat::statements_any(seed, n) } else { chat::statements(seed, n) };
        if !self.run(&body)? {
            return Ok(false);
        }
        if self.options.dawdle_ms > 0 {
            std::thread::sleep(Duration::from_millis(self.options.dawdle_ms));
        }
        self.run("COMMIT;")
    }

    /// Runs what nobody else is in the way of, unless others are there; `false` when they were.
    fn run(&mut self, sql: &str) -> Result<bool> {
        if self.options.shared { self.database.try_run(sql) } else { self.database.run(sql).map(|()| true) }
    }

    /// What this app does between commits.
    fn tidy_up(&mut self, n: u64, count: u64) -> Result<()> {
        let options = self.options;
        let is_due = |every: u64| every > 0 && count.is_multiple_of(every);
        if options.truncate_each {
            self.checkpoint("TRUNCATE").with_context(|| format!("after commit {n}"))?;
        }
        if is_due(options.checkpoint_every) {
            let mode = *self.random.pick(&CHECKPOINTS);
            self.checkpoint(mode).with_context(|| format!("after commit {n}"))?;
        }
        if is_due(options.rollback_every) {
            let change = "BEGIN IMMEDIATE; PRAGMA cache_size = 5; \
                          UPDATE messages SET body = body || ' never committed', sent_us = sent_us + 1; \
                          INSERT INTO history SELECT id + 1000000, stanza, body, hash FROM messages; ROLLBACK;";
            self.maintain(change)?;
        }
        if is_due(options.vacuum_every) {
            self.maintain("VACUUM;")?;
        }
        if options.auto_vacuum == Some(AutoVacuum::Incremental) && self.random.one_in(10) {
            self.maintain("PRAGMA incremental_vacuum(3);")?;
        }
        if is_due(options.resize_every) {
            // Not possible with a log.
            let size = *self.random.pick(&PAGE_SIZES);
            self.maintain(&format!("PRAGMA journal_mode = DELETE; PRAGMA page_size = {size}; VACUUM;"))?;
            self.back_to_its_journal()?;
        }
        if is_due(options.switch_every) {
            let other = *self.random.pick(&["DELETE", "TRUNCATE", "PERSIST", "WAL"]);
            self.maintain(&format!("PRAGMA journal_mode = {other};"))?;
            // Some commits in the other one; a log that is there already stays.
            if self.random.one_in(2) {
                self.back_to_its_journal()?;
            }
        }
        if is_due(options.reopen_every) {
            self.reopen()?;
        }
        Ok(())
    }

    fn back_to_its_journal(&mut self) -> Result<()> {
        match self.options.journal {
            Some(journal) => self.maintain(&format!("PRAGMA journal_mode = {};", word(journal))),
            None => Ok(()),
        }
    }

    fn maintain(&mut self, sql: &str) -> Result<()> {
        self.run(sql).map(|_| ()).with_context(|| sql.to_owned())
    }

    fn checkpoint(&mut self, mode: &str) -> Result<()> {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        if self.options.shared {
            return self.database.try_run(&sql).map(|_| ());
        }
        let busy = self.database.number(&sql)?;
        ensure!(busy == 0, "somebody held up the checkpoint ({mode})");
        Ok(())
    }

    /// Another program that has the database open: it reads, checkpoints, comes and goes.
    fn visit(&mut self) -> Result<()> {
        while !self.is_over() {
            match self.random.below(8) {
                0..=3 => {
                    let mode = *self.random.pick(&CHECKPOINTS);
                    self.checkpoint(mode)?;
                }
                4 => self.maintain("SELECT count(*) FROM sqlite_schema;")?,
                5 => {
                    // A reader that stays: checkpoints cannot finish meanwhile.
                    self.maintain("BEGIN; SELECT count(*) FROM sqlite_schema;")?;
                    std::thread::sleep(Duration::from_millis(self.random.below(60)));
                    self.maintain("COMMIT;")?;
                }
                6 => self.reopen()?,
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(self.random.below(30)));
        }
        Ok(())
    }
}

fn word(journal: Journal) -> &'static str {
    match journal {
        Journal::Wal => "WAL",
        Journal::Delete => "DELETE",
        Journal::Truncate => "TRUNCATE",
        Journal::Persist => "PERSIST",
    }
}

fn open(options: &Options) -> Result<Database> {
    let mut database = match &options.key {
        Some(key) if options.sqlcipher => Database::cipher(&options.database, key)?,
        _ => Database::plain(&options.database)?,
    };
    database.run(&format!("PRAGMA busy_timeout = {};", options.busy_timeout_ms))?;
    let journal = options.journal.filter(|_| !options.visitor);
    let sync = options.sync.or((options.journal == Some(Journal::Wal)).then_some(Sync::Normal));
    let settings = [
        options.exclusive.then(|| "locking_mode = EXCLUSIVE".to_owned()),
        // These two of a new database only: before its first page is written.
        options.page_size.map(|size| format!("page_size = {size}")),
        options.auto_vacuum.map(|kind| format!("auto_vacuum = {}", kind as u8)),
        options.mmap_mb.map(|megabytes| format!("mmap_size = {}", u64::from(megabytes) << 20)),
        options.cache_pages.map(|pages| format!("cache_size = {pages}")),
        journal.map(|journal| format!("journal_mode = {}", word(journal))),
        sync.map(|sync| format!("synchronous = {}", sync as u8)),
        options.autocheckpoint.map(|pages| format!("wal_autocheckpoint = {pages}")),
    ];
    for setting in settings.into_iter().flatten() {
        let sql = format!("PRAGMA {setting};");
        // Somebody may have the database open in another journal mode, or be rolling it back.
        if options.shared { database.try_run(&sql).map(|_| ()) } else { database.run(&sql) }?;
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
    let schema = format!(
        "BEGIN IMMEDIATE; {} {} INSERT OR IGNORE INTO meta VALUES ('seed', '{seed}'); COMMIT;",
        chat::SCHEMA,
        if full_text { chat::SCHEMA_FTS } else { "" }
    );
    if options.shared {
        while !database.try_run(&schema)? {}
    } else {
        database.run(&schema)?;
    }
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
