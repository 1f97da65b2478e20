//! Is what is stored right, and does it come back?

use std::collections::HashMap;

use chatkeep_ipc::proxy::Options;
use zbus::zvariant::OwnedValue;

use super::{Context, backup};
use crate::explain::Result;
use crate::job::Damage;
use crate::output::{self, Colour, paint, plain, size};
use crate::{job, time};

/// So many points are named for each object.
const POINTS_NAMED: usize = 4;

pub(super) async fn verify(context: &Context, id: &str, depth: &str) -> Result<()> {
    if run(context, id, depth).await? && !context.json {
        output::line("everything that was looked at is right");
    }
    Ok(())
}

/// A rehearsal of a restore, and what it found.
pub(super) async fn drill(context: &Context, id: &str) -> Result<()> {
    let ran = run(context, id, "restore").await;
    if !context.json {
        let view = context.view().await?;
        let result = view.database(id)?.state.map("LastDrillResult");
        let line = summary(&result, time::now());
        if let Some(line) = line.filter(|_| ran.is_ok()) {
            output::line(&format!("rehearsed and proved: {line}"));
        }
    }
    ran.map(drop)
}

/// Runs a verification to its end, and lists what it found damaged.
async fn run(context: &Context, id: &str, depth: &str) -> Result<bool> {
    let view = context.view().await?;
    let options = Options::from([("depth", depth.into())]);
    let path = backup::proxy(context, view.database(id)?).await?.verify(options).await?;
    match job::follow(&context.service.connection, &path, context.json).await {
        Ok(_) => Ok(true),
        Err(ended) => {
            if !context.json && !ended.damage.is_empty() {
                output::print(&table(&ended.damage));
                output::line("");
                output::line(
                    "`chatkeep points` marks the points that cannot be restored as things are. What the database still \
                     has is stored again by itself; verify once more in a while.",
                );
            }
            Err(ended.failure)
        }
    }
}

/// What is damaged, and what that costs.
pub(super) fn table(damage: &[Damage]) -> String {
    let mut rows =
        vec![["OBJECT", "DAMAGE", "HOLDS", "POINTS"].map(|text| paint(text, Colour::Bold)).to_vec()];
    for (object, kind, holds, points) in damage {
        // All are of one archive.
        let object = object.split_once('/').map_or(object.as_str(), |(_, name)| name);
        rows.push(vec![plain(object), plain(kind), plain(holds), plain(&some(points))]);
    }
    output::table(&rows)
}

/// `9, 8, 7, 6 and 12 more`
fn some(points: &[String]) -> String {
    let named = points[..points.len().min(POINTS_NAMED)].join(", ");
    match points.len().saturating_sub(POINTS_NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// `2.0 GiB, 12 tables, 3,306,000 rows, whole`; nothing when there was no rehearsal that went well.
pub(super) fn found(result: &HashMap<String, OwnedValue>) -> Option<String> {
    let number = |name: &str| {
        let value = result.get(name)?;
        u64::try_from(value).ok().or_else(|| u32::try_from(value).ok().map(u64::from))
    };
    let verdict = match <&str>::try_from(result.get("verdict")?).ok()? {
        "whole" => "whole",
        "opaque" => "every page proved (encrypted by its app)",
        "complaints" => "every page proved; SQLite finds the app's database damaged",
        _ => "every page proved",
    };
    let bytes = size(number("bytes")?);
    Some(match number("tables")? {
        0 => format!("{bytes}, {verdict}"),
        tables => {
            let rows = grouped(number("rows")?);
            format!("{bytes}, {tables} tables, {rows} rows, {verdict}")
        }
    })
}

/// `drill 3 days ago: 2.0 GiB, …`
pub(super) fn summary(result: &HashMap<String, OwnedValue>, now: u64) -> Option<String> {
    let time = u64::try_from(result.get("time")?).ok()?;
    Some(format!("drill {}: {}", time::age(time, now), found(result)?))
}

/// When a rehearsal failed that was not made good since: its time, error and words.
pub(super) fn failed(result: &HashMap<String, OwnedValue>) -> Option<(u64, String, String)> {
    let text = |name: &str| <&str>::try_from(result.get(name)?).ok().map(str::to_owned);
    let at = u64::try_from(result.get("failed-time")?).ok()?;
    Some((at, text("failed-error")?, text("failed-message")?))
}

/// `3,306,000`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use zbus::zvariant::Value;

    use super::*;

    fn result(pairs: &[(&str, Value<'_>)]) -> HashMap<String, OwnedValue> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.try_to_owned().unwrap())).collect()
    }

    #[test]
    fn a_rehearsal_is_one_line() {
        let known = [
            ("time", Value::from(time::SECOND)),
            ("bytes", Value::from(2_147_483_648_u64)),
            ("tables", Value::from(12_u32)),
            ("rows", Value::from(3_306_000_u64)),
            ("verdict", Value::from("whole")),
        ];
        let now = (3 * 86_400 + 1) * time::SECOND;
        let line = summary(&result(&known), now).unwrap();
        assert_eq!(line, "drill 3 days ago: 2.0 GiB, 12 tables, 3,306,000 rows, whole");
        assert_eq!(summary(&result(&[]), now), None);
        let opaque = [
            ("bytes", Value::from(4096_u64)),
            ("tables", Value::from(0_u32)),
            ("verdict", Value::from("opaque")),
        ];
        assert_eq!(found(&result(&opaque)).unwrap(), "4.0 KiB, every page proved (encrypted by its app)");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let grouped = [0, 7, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(grouped, ["0", "7", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn damage_is_listed_without_the_archive_and_with_a_few_points() {
        let points: Vec<String> = (1..=7).rev().map(|seq| seq.to_string()).collect();
        let damage = ("ab/log/0000000000000001".into(), "missing".into(), "a recovery point".into(), points);
        let table = table(&[damage]);
        let line = table.lines().nth(1).unwrap();
        assert_eq!(line, "log/0000000000000001  missing  a recovery point  7, 6, 5, 4 and 3 more");
    }
}
