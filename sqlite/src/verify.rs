//! SQLite's own opinion of a restored file that nobody else knows yet.

use std::fmt::Write;
use std::os::fd::{AsRawFd, BorrowedFd};

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
    let uri = format!("file:/proc/self/fd/{}/{}?immutable=1", directory.as_raw_fd(), percent_encoded(name));
    match complaints(&uri) {
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

fn complaints(uri: &str) -> rusqlite::Result<Vec<String>> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let database = Connection::open_with_flags(uri, flags)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    database.execute_batch("PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY;")?;
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
    fn a_name_survives_being_part_of_a_uri() {
        assert_eq!(percent_encoded("a b?c%#.db"), "a%20b%3Fc%25%23.db");
        assert_eq!(percent_encoded("ä"), "%C3%A4");
    }
}
