//! SQLite's own opinion of a restored file that nobody else knows yet.

use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// What SQLite says about the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Integrity {
    /// `PRAGMA integrity_check` found nothing.
    Ok,
    /// Encrypted: the digest over all pages is the proof.
    Opaque,
    /// The check needs something that only the app has; the digest over all pages is the proof.
    Inconclusive(String),
    /// SQLite finds it damaged: the first complaints. The digest over all pages proves that this is exactly what the
    /// app had when it was captured.
    Complaints(String),
}

/// Pages kept while SQLite checks, 16 MiB: with its own 2 MiB it reads those of the indexes again and again, which costs a
/// quarter more.
const CACHE_KIB: i64 = 16 << 10;

/// So many complaints are told.
const COMPLAINTS_TOLD: usize = 3;

/// Complaints about what the app brings along (tokenizers, collations, functions, modules), not about the file.
const NEEDS_THE_APP: [&str; 6] = [
    "no such module",
    "no such tokenizer",
    "unknown tokenizer",
    "no such collation",
    "no such function",
    "error in tokenizer constructor",
];

/// Lets SQLite check the file, which must not be changing. Runs nothing that the schema contains.
///
/// Whatever it says is an opinion, not a reason to withhold pages whose digest is right: an app lives with a damaged
/// index for years, and what can be saved from it is in the backup.
pub(crate) fn check_integrity(directory: BorrowedFd<'_>, name: &str) -> Integrity {
    match complaints(&uri_of(directory, name)) {
        Ok(found) => {
            let damage = found.iter().filter(|complaint| !needs_the_app(complaint)).map(String::as_str);
            let told = damage.take(COMPLAINTS_TOLD).collect::<Vec<_>>().join("; ");
            match found.into_iter().next() {
                None => Integrity::Ok,
                Some(first) if told.is_empty() => Integrity::Inconclusive(first),
                Some(_) => Integrity::Complaints(told),
            }
        }
        Err(error) => {
            let text = error.to_string();
            let damaged = matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::SystemIoFailure)
            );
            if damaged && !needs_the_app(&text) {
                Integrity::Complaints(text)
            } else {
                Integrity::Inconclusive(text)
            }
        }
    }
}

/// How much is in a database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Tables whose rows were counted.
    pub tables: u32,
    /// Rows in all of them.
    pub rows: u64,
    /// Tables that could not be counted: damaged ones, and those that need something only the app has.
    pub uncounted: u32,
}

/// Counts the rows of every table of a file that must not be changing; nothing when SQLite cannot read what tables there
/// are. Of the content nothing is told, and nothing that the schema contains is run: virtual tables are left out (what is in
/// them is in tables of its own).
pub fn count_rows(directory: impl AsFd, name: &str) -> Option<RowCounts> {
    let database = open_checked(&uri_of(directory.as_fd(), name)).ok()?;
    let tables = table_names(&database).ok()?;
    let mut counts = RowCounts::default();
    for table in tables {
        let quoted = table.replace('"', "\"\"");
        let count = format!("SELECT count(*) FROM main.\"{quoted}\"");
        match database.query_row(&count, [], |row| row.get::<_, i64>(0)) {
            Ok(rows) => {
                counts.tables += 1;
                counts.rows += rows.unsigned_abs();
            }
            Err(_) => counts.uncounted += 1,
        }
    }
    Some(counts)
}

/// Tables that have pages of their own: views and virtual tables have none.
fn table_names(database: &Connection) -> rusqlite::Result<Vec<String>> {
    let listed = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND rootpage > 0";
    let mut statement = database.prepare(listed)?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect()
}

/// A name in a folder that is open, as a file that does not change.
fn uri_of(directory: BorrowedFd<'_>, name: &str) -> String {
    format!("file:/proc/self/fd/{}/{}?immutable=1", directory.as_raw_fd(), percent_encoded(name))
}

/// Read-only, and without trust in what the schema contains.
fn open_checked(uri: &str) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let database = Connection::open_with_flags(uri, flags)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    database.execute_batch("PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY;")?;
    database.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(database)
}

fn complaints(uri: &str) -> rusqlite::Result<Vec<String>> {
    let database = open_checked(uri)?;
    let mut check = database.prepare("PRAGMA integrity_check")?;
    let rows = check.query_map([], |row| row.get::<_, String>(0))?;
    let found: rusqlite::Result<Vec<String>> = rows.collect();
    Ok(found?.into_iter().filter(|row| row != "ok").collect())
}

fn needs_the_app(complaint: &str) -> bool {
    NEEDS_THE_APP.iter().any(|known| complaint.contains(known))
}

fn percent_encoded(name: &str) -> String {
    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes everything");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_sqlite_has_no_wal_reset_bug() {
        // Fixed in 3.51.3: sqlite.org/wal.html#the_wal_reset_bug
        assert!(rusqlite::version_number() >= 3_051_003);
    }

    #[test]
    fn rows_are_counted_whatever_tables_are_called() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = Connection::open(folder.path().join("a b.db")).expect("a database");
        database
            .execute_batch(
                "CREATE TABLE plain(x); INSERT INTO plain VALUES (1), (2), (3);
                 CREATE TABLE \"od\"\"d 'name\"(k PRIMARY KEY) WITHOUT ROWID; INSERT INTO \"od\"\"d 'name\" VALUES (1);
                 CREATE VIEW v AS SELECT * FROM plain;
                 PRAGMA writable_schema = ON;
                 INSERT INTO sqlite_schema VALUES ('table', 'u', 'u', 0, 'CREATE VIRTUAL TABLE u USING unknown(a)');",
            )
            .expect("tables");
        database.close().expect("closed");
        let directory = std::fs::File::open(folder.path()).expect("a folder");
        let expected = RowCounts { tables: 2, rows: 4, uncounted: 0 };
        assert_eq!(count_rows(&directory, "a b.db"), Some(expected));
        std::fs::write(folder.path().join("noise"), [7; 4096]).expect("a file");
        assert_eq!(count_rows(&directory, "noise"), None);
    }

    #[test]
    fn a_name_survives_being_part_of_a_uri() {
        assert_eq!(percent_encoded("a b?c%#.db"), "a%20b%3Fc%25%23.db");
        assert_eq!(percent_encoded("ä"), "%C3%A4");
    }
}
