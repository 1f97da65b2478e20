//! A small app of ours, in this process: a database with messages whose texts the caller chooses.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, OpenFlags};

/// An open database.
pub struct Notes {
    connection: Connection,
    path: PathBuf,
}

impl Notes {
    /// Makes or opens the database, in WAL mode as chat apps have it.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY, author TEXT, text TEXT NOT NULL)",
        )?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Writes one message, in a transaction of its own.
    pub fn say(&self, text: &str) -> Result<()> {
        self.connection.execute("INSERT INTO message (author, text) VALUES ('alice', ?1)", [text])?;
        Ok(())
    }

    /// Replaces the text of every message.
    pub fn rewrite(&self, text: &str) -> Result<()> {
        self.connection.execute("UPDATE message SET text = ?1", [text])?;
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// All messages of a database that nobody uses, after `integrity_check`.
pub fn texts(path: &Path) -> Result<Vec<String>> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .with_context(|| path.display().to_string())?;
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    anyhow::ensure!(verdict == "ok", "{}: integrity_check says {verdict}", path.display());
    let mut statement = connection.prepare("SELECT text FROM message ORDER BY id")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
