//! SQLite in WAL mode with `synchronous=EXTRA`: every commit is on the disk before it returns. One machine, one disk.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, ffi, params};

use super::{Head, Row, Store, StoreError, Write};

/// Records in a file.
pub struct SqliteStore {
    connection: Connection,
}

/// Name of the database in the data directory.
pub const DATABASE_FILE: &str = "vault.db";

const SCHEMA: &str = "
    CREATE TABLE record (account BLOB PRIMARY KEY, revision INTEGER NOT NULL, key_id INTEGER NOT NULL, sealed BLOB NOT NULL)
        STRICT, WITHOUT ROWID;
    CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, root BLOB NOT NULL,
        previous_root BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
    PRAGMA user_version = 1;";

impl From<rusqlite::Error> for StoreError {
    /// A value of the wrong type or length was written by somebody else; all else is the engine's.
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, SqliteFailure,
        };
        match error {
            FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) => {
                Self::Damaged { what: "a value of another length or type" }
            }
            // the second, when there is no room for the memory that its processes share
            SqliteFailure(failure, _)
                if [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_SHMSIZE].contains(&failure.extended_code) =>
            {
                Self::Full
            }
            other => Self::Database(Box::new(other)),
        }
    }
}

impl SqliteStore {
    /// Makes an empty database with this head.
    pub fn create(dir: &Path, head: &Head) -> Result<Self, StoreError> {
        let mut store = Self::connect(&dir.join(DATABASE_FILE))?;
        let transaction = store.connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.execute(
            "INSERT INTO head (one, seq, root, previous_root, mac) VALUES (1, ?1, ?2, ?3, ?4)",
            params![head.seq as i64, head.root, head.previous_root, head.mac],
        )?;
        transaction.commit()?;
        Ok(store)
    }

    /// Opens the database in `dir`.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(DATABASE_FILE);
        if !path.exists() {
            return Err(StoreError::Damaged { what: "there is none" });
        }
        let store = Self::connect(&path)?;
        let version: i64 = store.connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match version {
            1 => {}
            0 => return Err(StoreError::Damaged { what: "it is empty, or not a vault's" }),
            _ => return Err(StoreError::Damaged { what: "another version" }),
        }
        Ok(store)
    }

    /// For tests that change the database behind the vault's back.
    #[cfg(test)]
    pub(crate) fn connection_for_tests(&self) -> &Connection {
        &self.connection
    }

    fn connect(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
        connection.pragma_update(None, "synchronous", "EXTRA")?;
        connection.pragma_update(None, "secure_delete", "ON")?;
        Ok(Self { connection })
    }
}

impl Store for SqliteStore {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn head(&mut self) -> Result<Head, StoreError> {
        let sql = "SELECT seq, root, previous_root, mac FROM head WHERE one = 1";
        let head = self.connection.query_row(sql, [], |row| {
            Ok(Head {
                seq: row.get::<_, i64>(0)? as u64,
                root: row.get(1)?,
                previous_root: row.get(2)?,
                mac: row.get(3)?,
            })
        });
        Ok(head?)
    }

    fn load(&mut self, accounts: &[[u8; 16]]) -> Result<Vec<Option<Row>>, StoreError> {
        let sql = "SELECT revision, key_id, sealed FROM record WHERE account = ?1";
        let mut statement = self.connection.prepare(sql)?;
        let mut one = |account: &[u8; 16]| {
            let row = statement.query_row([&account[..]], |row| read(row, 0)).optional()?;
            row.map(Row::checked).transpose()
        };
        accounts.iter().map(&mut one).collect()
    }

    fn commit_from(
        &mut self,
        expected: u64,
        root: &[u8; 32],
        head: &Head,
        writes: &[Write],
    ) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        // first: it takes the lock for writing, and what comes after is for nothing if somebody else was here
        let moved = transaction.execute(
            "UPDATE head SET seq = ?1, root = ?2, previous_root = ?3, mac = ?4
             WHERE one = 1 AND seq = ?5 AND root = ?6",
            params![head.seq as i64, head.root, head.previous_root, head.mac, expected as i64, root],
        )?;
        if moved != 1 {
            let found: i64 =
                transaction.query_row("SELECT seq FROM head WHERE one = 1", [], |row| row.get(0))?;
            return Err(StoreError::moved(found as u64, expected));
        }
        {
            let mut statement = transaction.prepare(
                "INSERT INTO record (account, revision, key_id, sealed) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (account) DO UPDATE SET revision = ?2, key_id = ?3, sealed = ?4",
            )?;
            for Write { account, row } in writes {
                statement.execute(params![account, row.revision as i64, row.key_id, row.sealed])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8; 16], &Row)) -> Result<(), StoreError> {
        let mut statement =
            self.connection.prepare("SELECT account, revision, key_id, sealed FROM record")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            visit(&row.get(0)?, &read(row, 1)?.checked()?);
        }
        Ok(())
    }

    fn sealed_by_others(
        &mut self,
        key_id: u32,
        after: Option<&[u8; 16]>,
        limit: usize,
    ) -> Result<Vec<[u8; 16]>, StoreError> {
        let sql = "SELECT account FROM record WHERE account > ?1 AND key_id <> ?2 ORDER BY account LIMIT ?3";
        let after = after.map_or(&[][..], |account| &account[..]);
        let mut statement = self.connection.prepare(sql)?;
        let accounts = statement.query_map(params![after, key_id, limit as i64], |row| row.get(0))?;
        Ok(accounts.collect::<Result<_, _>>()?)
    }
}

/// Revision, key and ciphertext, from column `first` on.
fn read(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Row> {
    Ok(Row {
        revision: row.get::<_, i64>(first)? as u64,
        key_id: row.get(first + 1)?,
        sealed: row.get(first + 2)?,
    })
}
