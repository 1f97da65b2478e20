//! What is kept, and the one promise: when [`Store::commit_batch`] returns, the batch survives a power cut.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};

/// One sealed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Counts the writes of this account; bound into the seal.
    pub revision: u64,
    /// Which key sealed it.
    pub key_id: u32,
    /// Nonce, ciphertext, tag.
    pub sealed: Vec<u8>,
}

/// Where the whole store is: changed by every batch, in the same transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Batches so far.
    pub seq: u64,
    /// Keyed digest over all rows.
    pub root: [u8; 32],
    /// The digest one batch earlier.
    pub previous_root: [u8; 32],
    /// Over the three, by the anchor key: a head is made by the vault only.
    pub mac: [u8; 32],
}

/// One write of a batch.
pub struct Write {
    /// Account.
    pub account: [u8; 16],
    /// What it becomes.
    pub row: Row,
}

/// A store failed or is not what it should be. The vault stops: it cannot know what is durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database said no.
    #[error("the vault's database")]
    Database(#[from] rusqlite::Error),
    /// The database holds something this program did not write.
    #[error("the vault's database is damaged: {what}")]
    Damaged {
        /// Where.
        what: &'static str,
    },
}

/// Kept records. One writer; the caller is its only user.
pub trait Store: Send {
    /// The head after the last batch.
    fn head(&mut self) -> Result<Head, StoreError>;
    /// One record.
    fn load(&mut self, account: &[u8; 16]) -> Result<Option<Row>, StoreError>;
    /// All of `writes` and the new head, or nothing. Durable when it returns.
    fn commit_batch(&mut self, head: &Head, writes: &[Write]) -> Result<(), StoreError>;
    /// Every record, in any order.
    fn scan(&mut self, visit: &mut dyn FnMut(&[u8; 16], &Row)) -> Result<(), StoreError>;
    /// At most `limit` accounts after `after`, in ascending order, whose records another key than `key_id` sealed.
    fn sealed_by_others(
        &mut self,
        key_id: u32,
        after: Option<&[u8; 16]>,
        limit: usize,
    ) -> Result<Vec<[u8; 16]>, StoreError>;
}

/// SQLite in WAL mode with `synchronous=EXTRA`: every commit is on the disk before it returns.
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

impl SqliteStore {
    /// Makes an empty database with this head.
    pub fn create(dir: &Path, head: &Head) -> Result<Self, StoreError> {
        let mut store = Self::connect(&dir.join(DATABASE_FILE))?;
        let transaction = store.connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        put_head(&transaction, head)?;
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
        if version != 1 {
            return Err(StoreError::Damaged { what: "another version" });
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

    fn load(&mut self, account: &[u8; 16]) -> Result<Option<Row>, StoreError> {
        let mut statement =
            self.connection.prepare("SELECT revision, key_id, sealed FROM record WHERE account = ?1")?;
        let row = statement
            .query_row([&account[..]], |row| {
                Ok(Row { revision: row.get::<_, i64>(0)? as u64, key_id: row.get(1)?, sealed: row.get(2)? })
            })
            .optional()?;
        Ok(row)
    }

    fn commit_batch(&mut self, head: &Head, writes: &[Write]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        {
            let mut statement = transaction.prepare(
                "INSERT INTO record (account, revision, key_id, sealed) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (account) DO UPDATE SET revision = ?2, key_id = ?3, sealed = ?4",
            )?;
            for Write { account, row } in writes {
                statement.execute(params![&account[..], row.revision as i64, row.key_id, row.sealed])?;
            }
        }
        put_head(&transaction, head)?;
        transaction.commit()?;
        Ok(())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8; 16], &Row)) -> Result<(), StoreError> {
        let mut statement =
            self.connection.prepare("SELECT account, revision, key_id, sealed FROM record")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let account: [u8; 16] = row.get(0)?;
            let revision = row.get::<_, i64>(1)? as u64;
            visit(&account, &Row { revision, key_id: row.get(2)?, sealed: row.get(3)? });
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

fn put_head(connection: &Connection, head: &Head) -> Result<(), StoreError> {
    connection
        .prepare(
            "INSERT OR REPLACE INTO head (one, seq, root, previous_root, mac) VALUES (1, ?1, ?2, ?3, ?4)",
        )?
        .execute(params![head.seq as i64, &head.root[..], &head.previous_root[..], &head.mac[..]])?;
    Ok(())
}
