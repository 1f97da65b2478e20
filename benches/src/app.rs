//! A chat app that stays open: it takes orders on standard input, one a line, and answers each with a line of JSON.
//!
//! `burst N`, `single N` (one transaction), `drip SECONDS` (one message a second), `hammer SECONDS`, `checkpoint`.
//! At the end of its input it closes the database.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::database::{self, Database};

/// Runs until its input ends.
pub(crate) fn run(file: &Path) -> Result<()> {
    let connection = database::open(file)?;
    let mut database = Database::new(&connection)?;
    let mut answers = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = obey(&mut database, &line).with_context(|| format!("order `{line}`"))?;
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    drop(database);
    database::close(connection)
}

fn obey(database: &mut Database<'_>, line: &str) -> Result<Value> {
    let (order, number) = line.split_once(' ').unwrap_or((line, "0"));
    let number: u64 = number.parse()?;
    let started = Instant::now();
    let transactions = match order {
        "burst" => database.burst(number as i64)?,
        "single" => {
            database.one_transaction(number as i64)?;
            1
        }
        "drip" => drip(database, number)?,
        "hammer" => return hammer(database, number),
        "checkpoint" => {
            database.checkpoint()?;
            0
        }
        _ => bail!("there is no such order"),
    };
    Ok(json!({ "transactions": transactions, "seconds": started.elapsed().as_secs_f64() }))
}

fn drip(database: &mut Database<'_>, seconds: u64) -> Result<u64> {
    let began = Instant::now();
    let mut transactions = 0;
    for second in 1..=seconds {
        transactions += database.burst(1)?;
        std::thread::sleep(Duration::from_secs(second).saturating_sub(began.elapsed()));
    }
    Ok(transactions)
}

fn hammer(database: &mut Database<'_>, seconds: u64) -> Result<Value> {
    let done = database.hammer(Duration::from_secs(seconds))?;
    let at = |share: f64| {
        let place = (done.commits_us.len() as f64 * share) as usize;
        done.commits_us.get(place).or(done.commits_us.last()).copied().unwrap_or_default()
    };
    Ok(json!({
        "commits": done.commits_us.len(), "seconds": done.seconds, "busy": done.busy,
        "median_us": at(0.5), "p99_us": at(0.99), "worst_us": at(1.0),
    }))
}
