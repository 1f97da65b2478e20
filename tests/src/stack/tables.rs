//! What is in the tables of a database that we know nothing about.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

/// Rows of each table, and a hash over all values in the order of SQLite's own scan.
pub type Tables = BTreeMap<String, (u64, blake3::Hash)>;

/// Reads all tables that SQLite keeps itself, but those in `except`. What an extension serves is left out: its data
/// is in tables of SQLite, too.
pub fn read(path: &Path, except: &[&str]) -> Result<Tables> {
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .with_context(|| path.display().to_string())?;
    let mut statement = database.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name",
    )?;
    let names = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    let mut tables = Tables::new();
    for name in names.into_iter().filter(|name| !except.contains(&name.as_str())) {
        let mut statement = database.prepare(&format!("SELECT * FROM \"{}\"", name.replace('"', "\"\"")))?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let (mut count, mut hasher) = (0, blake3::Hasher::new());
        while let Some(row) = rows.next()? {
            count += 1;
            for column in 0..columns {
                add(&mut hasher, row.get_ref(column)?);
            }
        }
        tables.insert(name, (count, hasher.finalize()));
    }
    Ok(tables)
}

/// Each value with its kind and length, so that no two rows look alike.
fn add(hasher: &mut blake3::Hasher, value: ValueRef<'_>) {
    let (kind, bytes): (u8, &[u8]) = match value {
        ValueRef::Null => (0, &[]),
        ValueRef::Integer(number) => (1, &number.to_le_bytes()),
        ValueRef::Real(number) => (2, &number.to_le_bytes()),
        ValueRef::Text(text) => (3, text),
        ValueRef::Blob(bytes) => (4, bytes),
    };
    hasher.update(&[kind]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn one_changed_value_shows() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.db");
        let database = Connection::open(&file).unwrap();
        database
            .execute_batch("CREATE TABLE \"a b\"(x, y); INSERT INTO \"a b\" VALUES (1, 'z'), (2, NULL);")
            .unwrap();
        let before = read(&file, &[]).unwrap();
        assert_eq!((before.len(), before["a b"].0), (1, 2));
        database.execute_batch("CREATE TABLE other(x); UPDATE \"a b\" SET y = '' WHERE x = 2;").unwrap();
        let after = read(&file, &["other"]).unwrap();
        assert!(after.len() == 1 && after != before);
    }
}
