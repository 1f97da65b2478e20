//! The chat database: its tables, and messages written one event a transaction as an app does, or in bulk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, Statement, Transaction, TransactionBehavior, params,
};

use crate::chat::{self, Media, Message};
use crate::random::Vocabulary;

/// Rows of a transaction when a database is filled.
const BULK: i64 = 20_000;

/// How long an app waits for a lock: Litestream 0.5 takes some, and says that apps have to wait.
const PATIENCE: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE chats(id INTEGER PRIMARY KEY, name TEXT NOT NULL, last_message INTEGER, unread INTEGER NOT NULL);
CREATE TABLE messages(id INTEGER PRIMARY KEY, chat INTEGER NOT NULL, sender INTEGER NOT NULL, stanza BLOB NOT NULL,
  sent_ms INTEGER NOT NULL, state INTEGER NOT NULL, body TEXT NOT NULL);
CREATE UNIQUE INDEX messages_by_stanza ON messages(stanza);
CREATE INDEX messages_by_chat ON messages(chat, sent_ms);
CREATE TABLE receipts(message INTEGER NOT NULL, person INTEGER NOT NULL, read_ms INTEGER NOT NULL,
  PRIMARY KEY(message, person)) WITHOUT ROWID;
CREATE TABLE reactions(id INTEGER PRIMARY KEY, message INTEGER NOT NULL, person INTEGER NOT NULL, emoji TEXT NOT NULL);
CREATE TABLE media(message INTEGER PRIMARY KEY, file TEXT NOT NULL, bytes INTEGER NOT NULL, thumbnail BLOB NOT NULL);
CREATE VIRTUAL TABLE search USING fts5(body, content='messages', content_rowid='id');
";

/// An open chat database and what comes next in it.
pub(crate) struct Database<'c> {
    connection: &'c Connection,
    sql: Sql<'c>,
    words: Vocabulary,
    seed: u64,
    next: i64,
}

/// All that is written, prepared once as apps do.
struct Sql<'c> {
    message: Statement<'c>,
    search: Statement<'c>,
    chat: Statement<'c>,
    media: Statement<'c>,
    receipt: Statement<'c>,
    read: Statement<'c>,
    reaction: Statement<'c>,
}

/// One transaction of a live app.
#[derive(Clone, Copy)]
enum Event {
    Message,
    Receipts,
    Reaction,
}

/// What writing without a pause came to.
#[derive(Debug, Default)]
pub(crate) struct Hammered {
    /// Time of each commit, in microseconds, ascending.
    pub(crate) commits_us: Vec<u64>,
    /// How often SQLite said that the database was locked: nobody but us is here.
    pub(crate) busy: u64,
    pub(crate) seconds: f64,
}

/// Fills a new database with `messages` messages.
pub(crate) fn create(file: &Path, messages: i64, seed: u64) -> Result<()> {
    ensure!(!file.exists(), "{} exists", file.display());
    let connection = Connection::open(file)?;
    // nobody needs a half-filled one: no journal, no sync
    connection.execute_batch(
        "PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000;",
    )?;
    connection.execute_batch(SCHEMA)?;
    for chat in 0..chat::CHATS as i64 {
        connection
            .execute("INSERT INTO chats VALUES (?, ?, NULL, 0)", params![chat, format!("chat {chat}")])?;
    }
    connection.execute("INSERT INTO meta VALUES ('seed', ?)", [seed.to_string()])?;
    let mut database = Database::new(&connection)?;
    // The full-text index first, merged into one segment as time does it: the pages that merging leaves free are
    // used by the tables, and no burst pays for merging what came before it.
    database.fill(messages, Sql::write_text)?;
    connection.execute_batch("INSERT INTO search(search) VALUES ('optimize')")?;
    database.fill(messages, |sql, message| {
        sql.write_row(message)?;
        followers(message).into_iter().try_for_each(|event| sql.write(event, message))
    })?;
    drop(database);
    connection.execute_batch("PRAGMA journal_mode = WAL;")?;
    close(connection)
}

/// Opens one as an app does, to go on in it.
pub(crate) fn open(file: &Path) -> Result<Connection> {
    ensure!(file.exists(), "{} does not exist", file.display());
    let connection = Connection::open(file)?;
    connection.execute_batch("PRAGMA synchronous = NORMAL;")?;
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

/// Closes it; the last one to close moves the log into the database.
pub(crate) fn close(connection: Connection) -> Result<()> {
    connection.close().map_err(|(_, error)| error.into())
}

impl<'c> Database<'c> {
    pub(crate) fn new(connection: &'c Connection) -> Result<Self> {
        let seed: Option<String> = connection
            .query_row("SELECT value FROM meta WHERE key = 'seed'", [], |row| row.get(0))
            .optional()?;
        let seed = seed.context("a database of another program")?.parse()?;
        let next =
            connection.query_row("SELECT ifnull(max(id), 0) + 1 FROM messages", [], |row| row.get(0))?;
        Ok(Self { connection, sql: Sql::prepare(connection)?, words: Vocabulary::new(), seed, next })
    }

    /// Does `write` for the messages from the first to `last`, many a transaction.
    fn fill(
        &mut self,
        last: i64,
        write: impl Fn(&mut Sql<'c>, &Message) -> rusqlite::Result<()>,
    ) -> Result<()> {
        self.next = 1;
        while self.next <= last {
            self.connection.execute_batch("BEGIN")?;
            for _ in 0..BULK.min(last + 1 - self.next) {
                let message = self.take();
                write(&mut self.sql, &message)?;
            }
            self.connection.execute_batch("COMMIT")?;
        }
        Ok(())
    }

    /// Writes `count` messages and what follows them, one event a transaction; returns the transactions.
    pub(crate) fn burst(&mut self, count: i64) -> Result<u64> {
        let mut transactions = 0;
        for _ in 0..count {
            let message = self.take();
            for event in events(&message) {
                self.commit(&message, event)?;
                transactions += 1;
            }
        }
        Ok(transactions)
    }

    /// Writes `count` messages and what follows them in one transaction.
    pub(crate) fn one_transaction(&mut self, count: i64) -> Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        for _ in 0..count {
            let message = self.take();
            for event in events(&message) {
                self.sql.write(event, &message)?;
            }
        }
        Ok(self.connection.execute_batch("COMMIT")?)
    }

    /// Writes without a pause for `duration`, and times every commit. It waits for no lock, but counts them.
    pub(crate) fn hammer(&mut self, duration: Duration) -> Result<Hammered> {
        self.connection.busy_timeout(Duration::ZERO)?;
        let mut hammered = Hammered::default();
        let began = Instant::now();
        while began.elapsed() < duration {
            let message = self.take();
            for event in events(&message) {
                let started = Instant::now();
                while let Err(error) = self.commit(&message, event) {
                    ensure!(error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy), error);
                    hammered.busy += 1;
                }
                hammered.commits_us.push(started.elapsed().as_micros() as u64);
            }
        }
        hammered.seconds = began.elapsed().as_secs_f64();
        hammered.commits_us.sort_unstable();
        self.connection.busy_timeout(PATIENCE)?;
        Ok(hammered)
    }

    /// Moves the log into the database.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let busy: i64 = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        ensure!(busy == 0, "somebody holds up the checkpoint");
        Ok(())
    }

    fn take(&mut self) -> Message {
        let message = chat::message(&self.words, self.seed, self.next);
        self.next += 1;
        message
    }

    fn commit(&mut self, message: &Message, event: Event) -> rusqlite::Result<()> {
        // rolled back when dropped, so a busy one can be tried again
        let transaction = Transaction::new_unchecked(self.connection, TransactionBehavior::Immediate)?;
        self.sql.write(event, message)?;
        transaction.commit()
    }
}

/// The message, and what follows it.
fn events(message: &Message) -> Vec<Event> {
    [vec![Event::Message], followers(message)].concat()
}

fn followers(message: &Message) -> Vec<Event> {
    let mut events = Vec::new();
    if !message.receipts.is_empty() {
        events.push(Event::Receipts);
    }
    if message.reaction.is_some() {
        events.push(Event::Reaction);
    }
    events
}

impl<'c> Sql<'c> {
    fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            message: connection.prepare("INSERT INTO messages VALUES (?, ?, ?, ?, ?, 0, ?)")?,
            search: connection.prepare("INSERT INTO search(rowid, body) VALUES (?, ?)")?,
            chat: connection
                .prepare("UPDATE chats SET last_message = ?, unread = unread + 1 WHERE id = ?")?,
            media: connection.prepare("INSERT INTO media VALUES (?, ?, ?, ?)")?,
            receipt: connection.prepare("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?)")?,
            read: connection.prepare("UPDATE messages SET state = 2 WHERE id = ?")?,
            reaction: connection.prepare("INSERT INTO reactions(message, person, emoji) VALUES (?, ?, ?)")?,
        })
    }

    fn write(&mut self, event: Event, message: &Message) -> rusqlite::Result<()> {
        match event {
            Event::Message => {
                self.write_row(message)?;
                self.write_text(message)?;
            }
            Event::Receipts => {
                for (of, person) in &message.receipts {
                    self.receipt.execute(params![of, person, message.sent_ms + 1000])?;
                    self.read.execute([of])?;
                }
            }
            Event::Reaction => {
                if let Some((of, person, emoji)) = message.reaction {
                    self.reaction.execute(params![of, person, emoji])?;
                }
            }
        }
        Ok(())
    }

    fn write_row(&mut self, message: &Message) -> rusqlite::Result<()> {
        let Message { n, chat, sender, stanza, sent_ms, body, media, .. } = message;
        self.message.execute(params![n, chat, sender, stanza, sent_ms, body])?;
        self.chat.execute(params![n, chat])?;
        if let Some(Media { file, bytes, thumbnail }) = media {
            self.media.execute(params![n, file, bytes, thumbnail])?;
        }
        Ok(())
    }

    fn write_text(&mut self, message: &Message) -> rusqlite::Result<()> {
        self.search.execute(params![message.n, message.body]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("chatkeep-bench-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn filled(folder: &Path, name: &str) -> std::path::PathBuf {
        let file = folder.join(name);
        create(&file, 300, 7).unwrap();
        file
    }

    #[test]
    fn the_same_seed_gives_the_same_file_and_the_same_bursts() {
        let folder = folder("same");
        let files = ["a", "b"].map(|name| filled(&folder, name));
        let bytes = files.each_ref().map(|file| {
            let connection = open(file).unwrap();
            Database::new(&connection).unwrap().burst(50).unwrap();
            close(connection).unwrap();
            std::fs::read(file).unwrap()
        });
        assert!(bytes[0] == bytes[1]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn locks_that_others_hold_are_counted() {
        let folder = folder("locked");
        let file = filled(&folder, "chat.db");
        let connection = open(&file).unwrap();
        let (locked, let_go) = std::sync::mpsc::channel();
        let other = std::thread::spawn({
            let file = file.clone();
            move || {
                let other = open(&file).unwrap();
                other.execute_batch("BEGIN IMMEDIATE").unwrap();
                locked.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(50));
                other.execute_batch("ROLLBACK").unwrap();
            }
        });
        let_go.recv().unwrap();
        let done = Database::new(&connection).unwrap().hammer(Duration::from_millis(100)).unwrap();
        other.join().unwrap();
        assert!(done.busy > 0 && !done.commits_us.is_empty(), "{done:?}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_burst_is_one_event_a_transaction_and_adds_its_messages() {
        let folder = folder("burst");
        let file = filled(&folder, "chat.db");
        let connection = open(&file).unwrap();
        let transactions = Database::new(&connection).unwrap().burst(50).unwrap();
        assert!(transactions > 50 && transactions < 150, "{transactions}");
        let query = "SELECT count(*) FROM messages, search WHERE search.rowid = messages.id";
        let messages: i64 = connection.query_row(query, [], |row| row.get(0)).unwrap();
        assert_eq!(messages, 350);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
