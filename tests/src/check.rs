//! Is a database a state that the writer committed, whole and undamaged?

use std::path::Path;
use std::process::Command;

use rusqlite::{Connection, OpenFlags};

use crate::chat::{self, Message};

/// What a database must at least be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expect {
    /// A commit that was acknowledged before: it must be there.
    pub at_least: u64,
}

/// What a database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Commits found; as many as the newest says, or it would be an error.
    pub commits: u64,
    /// Rows of all tables, recomputed one by one.
    pub rows: u64,
    /// Number of the newest commit; 0 when there is none.
    pub newest_commit: u64,
}

/// Checks an unencrypted database at rest: SQLite's integrity check, the full-text index, and every row.
///
/// The file is opened immutable: nothing is created beside it, and a log lying there is not read.
pub fn check_database(path: &Path, expect: Expect) -> Result<Checked, String> {
    let why = |what: &'static str| move |error: rusqlite::Error| format!("{what}: {error}");
    let uri = format!("file:{}?immutable=1", path.display());
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(uri, flags).map_err(why("open"))?;
    let text = |sql: &str| database.query_row(sql, [], |row| row.get::<_, String>(0));
    let integrity = text("PRAGMA integrity_check").map_err(why("integrity check"))?;
    if integrity != "ok" {
        return Err(format!("integrity check: {integrity}"));
    }
    let tables = text("SELECT group_concat(name) FROM sqlite_schema").map_err(why("schema"))?;
    if tables.contains("messages_fts") {
        check_full_text(path)?;
    }
    let seed = text("SELECT value FROM meta WHERE key = 'seed'").map_err(why("seed"))?;
    let seed = seed.parse().map_err(|_| format!("seed: {seed:?}"))?;

    let rows_of = |sql: &str| -> rusqlite::Result<Vec<Message>> {
        let mut statement = database.prepare(sql)?;
        let rows = statement.query_map([], |row| {
            Ok(Message {
                n: row.get::<_, i64>(0)?.unsigned_abs(),
                i: row.get::<_, i64>(1)?.unsigned_abs(),
                stanza: row.get(2)?,
                body: row.get(3)?,
                hash: row.get(4)?,
            })
        })?;
        rows.collect()
    };
    let messages = rows_of(MESSAGES).map_err(why("messages"))?;
    let history = rows_of(HISTORY).map_err(why("history"))?;
    check_rows(seed, &messages, &history, expect)
}

const MESSAGES: &str = "SELECT n, i, stanza, body, hash FROM messages ORDER BY n, i";
const HISTORY: &str = "SELECT id, 0, stanza, body, hash FROM history ORDER BY id";

/// FTS5's own check needs a connection that may write, so it works on a copy.
fn check_full_text(path: &Path) -> Result<(), String> {
    let copy = path.with_extension("fts-check");
    std::fs::copy(path, &copy).map_err(|error| format!("copy: {error}"))?;
    let check = || -> rusqlite::Result<()> {
        let database = Connection::open(&copy)?;
        database.execute_batch(
            "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF;
             INSERT INTO messages_fts(messages_fts, rank) VALUES ('integrity-check', 1);",
        )
    };
    let result = check().map_err(|error| format!("full-text index: {error}"));
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = copy.clone().into_os_string();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
    result
}

fn check_rows(
    seed: u64,
    messages: &[Message],
    history: &[Message],
    expect: Expect,
) -> Result<Checked, String> {
    let newest = messages.last().map_or(0, |message| message.n);
    let mut found = messages.iter();
    for n in 1..=newest {
        for expected in chat::expected(seed, n, newest) {
            match found.next() {
                Some(row) if *row == expected => {}
                row => return Err(format!("commit {n} of {newest}: expected {expected:?}, found {row:?}")),
            }
        }
    }
    if let Some(row) = found.next() {
        return Err(format!("unexpected row {row:?}"));
    }
    for (id, row) in (1..).zip(history) {
        let expected = Message { n: id, i: 0, ..chat::history(seed, id) };
        if *row != expected {
            return Err(format!("history {id}: expected {expected:?}, found {row:?}"));
        }
    }
    if newest < expect.at_least {
        return Err(format!("commit {} was acknowledged, the newest here is {newest}", expect.at_least));
    }
    let rows = (messages.len() + history.len()) as u64;
    Ok(Checked { commits: newest, rows, newest_commit: newest })
}

/// The same for a SQLCipher database, through the program `sqlcipher`. `key` is 64 hexadecimal digits.
pub fn check_sqlcipher(path: &Path, key: &str, expect: Expect) -> Result<Checked, String> {
    let run = |sql: &str| -> Result<String, String> {
        let output = Command::new("sqlcipher")
            .args(["-batch", "-bail", "-separator", "|"])
            .arg(path)
            .arg(format!("PRAGMA key = \"x'{key}'\"; {sql};"))
            .output()
            .map_err(|error| format!("sqlcipher: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() || !output.stderr.is_empty() {
            return Err(format!("{sql}: {text} {}", String::from_utf8_lossy(&output.stderr)));
        }
        // Newer versions answer the key with a line.
        Ok(text.strip_prefix("ok\n").unwrap_or(&text).to_owned())
    };
    let integrity = run("SELECT count(*) FROM sqlite_master; PRAGMA integrity_check")?;
    if integrity.lines().last() != Some("ok") {
        return Err(format!("integrity check: {integrity}"));
    }
    let seed = run("SELECT value FROM meta WHERE key = 'seed'")?;
    let seed = seed.trim().parse().map_err(|_| format!("seed: {seed:?}"))?;
    let messages = parse_rows(&run(MESSAGES)?)?;
    let history = parse_rows(&run(HISTORY)?)?;
    check_rows(seed, &messages, &history, expect)
}

fn parse_rows(text: &str) -> Result<Vec<Message>, String> {
    let parse = |line: &str| {
        let mut columns = line.split('|');
        let mut next = || columns.next().map(str::to_owned);
        Some(Message {
            n: next()?.parse().ok()?,
            i: next()?.parse().ok()?,
            stanza: next()?,
            body: next()?,
            hash: next()?,
        })
    };
    text.lines().map(|line| parse(line).ok_or_else(|| format!("row {line:?}"))).collect()
}
