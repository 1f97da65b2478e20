//! Recovery points: which there are, which stay, and which go.

use std::collections::HashMap;

use chatkeep_ipc::proxy::Options;
use serde_json::{Value as Json, json};
use zbus::zvariant::OwnedValue;

use super::register::{number, text};
use super::{Context, backup};
use crate::explain::Result;
use crate::output::{self, plain, size};
use crate::{job, time};

type Map = HashMap<String, OwnedValue>;

pub(super) async fn points(context: &Context, id: &str, limit: Option<u32>, all: bool) -> Result<()> {
    let view = context.view().await?;
    let mut options = Options::new();
    if let Some(limit) = limit {
        options.insert("limit", limit.into());
    }
    if all {
        options.insert("forgotten", true.into());
    }
    let database = view.database(id)?;
    let points = backup::proxy(context, database).await?.list_recovery_points(options).await?;
    let older = database.state.text("StoreOlder");
    if !older.is_empty() {
        output::note(&plain(&format!("warning: {older}")));
    }
    let now = time::now();
    if context.json {
        let points: Vec<_> = points.iter().map(|point| point_json(point, now)).collect();
        output::json(&json!({ "points": points }));
        return Ok(());
    }
    if points.is_empty() {
        output::line("there is no recovery point yet");
        return Ok(());
    }
    let headings = ["POINT", "TIME (UTC)", "AGE", "SIZE", "KIND", "VERIFIED"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(points.iter().map(|point| {
        vec![
            plain(&text(point, "id")),
            time::date_time(number(point, "time")),
            time::age(number(point, "time"), now),
            size(number(point, "size")),
            plain(&kind(point)),
            time::age(number(point, "verified"), now),
        ]
    }));
    output::print(&output::table(&rows));
    Ok(())
}

/// `base`, `hour, pinned` … A service that does not tell the level tells at least which points are whole.
fn kind(point: &Map) -> String {
    let flag = |key: &str| point.get(key).is_some_and(|value| bool::try_from(value).unwrap_or(false));
    let level = text(point, "level");
    let mut kind = match (level.as_str(), flag("base")) {
        (_, true) => "base".to_owned(),
        ("", false) => "increment".to_owned(),
        (level, false) => level.to_owned(),
    };
    for (key, word) in [("pinned", ", pinned"), ("forgotten", ", forgotten"), ("damaged", ", damaged")] {
        if flag(key) {
            kind.push_str(word);
        }
    }
    kind
}

/// With its age in seconds.
fn point_json(point: &Map, now: u64) -> Json {
    let mut json = job::to_json(point);
    json["age"] = json!(now.saturating_sub(number(point, "time")) / time::SECOND);
    json
}

pub(super) async fn pin(context: &Context, id: &str, point: &str, pinned: bool) -> Result<()> {
    let view = context.view().await?;
    let database = backup::proxy(context, view.database(id)?).await?;
    database.pin(point, pinned, Options::new()).await?;
    let point = plain(point);
    context.done(&if pinned {
        format!("point {point} stays until `chatkeep unpin`")
    } else {
        format!("point {point} is kept no longer than others")
    });
    Ok(())
}

pub(super) async fn prune(context: &Context, id: &str, dry_run: bool) -> Result<()> {
    let view = context.view().await?;
    let options = Options::from([("dry-run", dry_run.into())]);
    let path = backup::proxy(context, view.database(id)?).await?.prune(options).await?;
    let outcome = job::follow(&context.service.connection, &path, context.json).await?;
    if context.json {
        return Ok(());
    }
    if dry_run {
        show_points(&outcome);
    }
    let (deleted, waiting) = (outcome.count("deleted-objects"), outcome.count("waiting-objects"));
    let mut lines = Vec::new();
    if deleted > 0 {
        let would = if dry_run { "would be deleted" } else { "deleted" };
        lines.push(format!(
            "{would}: {} points, {deleted} objects, {}",
            outcome.count("deleted-points"),
            size(outcome.number("deleted-bytes"))
        ));
    }
    if waiting > 0 {
        lines.push(format!("waiting: {waiting} objects, {}", size(outcome.number("waiting-bytes"))));
    }
    if lines.is_empty() && outcome.warning().is_none() {
        lines.push("there is nothing to delete".to_owned());
    }
    for line in lines {
        output::line(&line);
    }
    if let Some(warning) = outcome.warning() {
        output::note(&plain(&warning));
    }
    Ok(())
}

/// What is forgotten, or would be, and when it goes.
fn show_points(outcome: &job::Outcome) {
    let points = outcome.points();
    if points.is_empty() {
        return;
    }
    let mut rows = vec![["POINT", "SIZE", "DELETED"].map(str::to_owned).to_vec()];
    rows.extend(points.into_iter().map(|(point, bytes, until)| {
        let when = match until {
            0 => "now".to_owned(),
            until => format!("after {} UTC", time::date_time(until)),
        };
        vec![plain(&point), size(bytes), when]
    }));
    output::print(&output::table(&rows));
    output::line("");
}
