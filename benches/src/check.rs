//! Whether a database is sound, and how much is in it.

use std::path::Path;

use anyhow::Result;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Map, Value, json};

use crate::cpu::cpu_seconds;

/// SQLite's own check with its CPU seconds, and the rows of every table.
pub(crate) fn check(file: &Path) -> Result<Value> {
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // as the service's restores do
    connection.pragma_update(None, "cache_size", -16_384)?;
    let began = cpu_seconds();
    let integrity: String = connection.query_row("PRAGMA integrity_check(3)", [], |row| row.get(0))?;
    let check_cpu = cpu_seconds() - began;
    let mut names =
        connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let names: Vec<String> = names.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut rows = Map::new();
    for name in names {
        let count: i64 =
            connection.query_row(&format!("SELECT count(*) FROM \"{name}\""), [], |row| row.get(0))?;
        rows.insert(name, count.into());
    }
    // the last message tells which state it is
    let newest: i64 = connection.query_row("SELECT max(id) FROM messages", [], |row| row.get(0))?;
    Ok(json!({ "integrity": integrity, "cpu": check_cpu, "rows": rows, "newest": newest }))
}
