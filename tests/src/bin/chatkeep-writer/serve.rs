//! An app that does what it is told, one line of SQL at a time.

use std::io::{BufRead, Write};

use anyhow::{Context, Result};
use rusqlite::Connection;
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::types::ValueRef;

/// Runs each line of standard input, and answers with `ok ` and the first value of its last row, or with `error `.
pub(crate) fn serve(connection: Connection) -> Result<()> {
    let mut output = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let answer = match run(&connection, &line.context("standard input")?) {
            Ok(value) => format!("ok {value}"),
            Err(error) => format!("error {error}"),
        };
        writeln!(output, "{}", answer.replace('\n', " "))?;
        output.flush()?;
    }
    connection.close().map_err(|(_, error)| error.into())
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<String> {
    let mut batch = rusqlite::Batch::new(connection, sql);
    let mut value = String::new();
    while let Some(mut statement) = batch.next()? {
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            value = match row.get_ref(0)? {
                ValueRef::Integer(number) => number.to_string(),
                ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                _ => String::new(),
            };
        }
    }
    Ok(value)
}
