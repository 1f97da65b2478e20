//! How each store of a database is doing.

use std::collections::HashMap;

use serde_json::{Value, json};
use zbus::zvariant::OwnedValue;

use crate::output::{self, Colour, paint, plain, size};
use crate::time;
use crate::view::{Database, View};

/// A copy that is behind and got nothing for so long is worth a look: a week, in µs.
const BEHIND_FOR_US: u64 = 7 * 24 * 3_600 * 1_000_000;

/// One store of a database.
pub(super) struct Copy(HashMap<String, OwnedValue>);

impl Copy {
    /// All stores of a database, the main one first.
    pub(super) fn of(database: &Database) -> Vec<Self> {
        database.state.get::<Vec<HashMap<String, OwnedValue>>>("Copies").into_iter().map(Self).collect()
    }

    fn get<T: TryFrom<OwnedValue> + Default>(&self, name: &str) -> T {
        let value = self.0.get(name).and_then(|value| value.try_clone().ok());
        value.and_then(|value| T::try_from(value).ok()).unwrap_or_default()
    }

    fn text(&self, name: &str) -> String {
        self.get(name)
    }

    fn error(&self) -> (String, String) {
        let value = self.0.get("last-error").and_then(|value| value.try_clone().ok());
        value.and_then(|value| <(String, String)>::try_from(value).ok()).unwrap_or_default()
    }

    /// `3 points, 2.0 MiB`
    fn behind(&self) -> String {
        match (self.get::<u32>("behind-points"), self.get::<u64>("behind-bytes")) {
            (0, 0) => "-".to_owned(),
            (points, bytes) => format!("{points} points, {}", size(bytes)),
        }
    }

    /// What the user must look at.
    pub(super) fn complaint(&self, now: u64) -> Option<String> {
        if self.get::<bool>("main") {
            return None;
        }
        let store = self.text("store");
        match self.error() {
            // the machine may just be offline; its age says when that is a problem
            (error, _) if matches!(error.as_str(), "" | "StoreUnreachable") => {}
            (error, text) => return Some(format!("the copy in {store} cannot go on: {text} ({error})")),
        }
        let last = self.get::<u64>("last-upload");
        let old = last > 0 && now.saturating_sub(last) > BEHIND_FOR_US;
        (old && self.get::<u32>("behind-points") > 0).then(|| {
            format!(
                "the copy in {store} is {} behind, its newest came {}",
                self.behind(),
                time::age(last, now)
            )
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let (error, message) = self.error();
        let last_error =
            if error.is_empty() { Value::Null } else { json!({"error": error, "message": message}) };
        json!({
            "store": self.text("store"), "main": self.get::<bool>("main"), "state": self.text("state"),
            "last_upload": self.get::<u64>("last-upload"), "last_verified": self.get::<u64>("last-verified"),
            "last_error": last_error, "caution": self.text("caution"),
            "behind_points": self.get::<u32>("behind-points"), "behind_bytes": self.get::<u64>("behind-bytes"),
            "lacking_points": self.get::<u32>("lacking-points"),
        })
    }
}

/// A line for each store of each database that has more than one.
pub(super) fn show(view: &View, now: u64) {
    let mut rows = Vec::new();
    let mut cautions = Vec::new();
    for database in &view.databases {
        let copies = Copy::of(database);
        if copies.len() < 2 {
            continue;
        }
        for copy in copies {
            let (store, main) = (copy.text("store"), copy.get::<bool>("main"));
            rows.push(vec![
                plain(&database.id()),
                plain(&format!("{store}{}", if main { " (main)" } else { "" })),
                plain(&copy.text("state")),
                time::age(copy.get("last-upload"), now),
                time::age(copy.get("last-verified"), now),
                copy.behind(),
            ]);
            let (_, error) = copy.error();
            let said = [error, copy.text("caution")].into_iter().filter(|text| !text.is_empty() && !main);
            cautions.extend(said.map(|text| plain(&format!("{}, {store}: {text}", database.id()))));
        }
    }
    if rows.is_empty() {
        return;
    }
    let headings = ["DATABASE", "IN", "STATE", "UPLOADED", "VERIFIED", "BEHIND"];
    rows.insert(0, headings.map(|heading| paint(heading, Colour::Bold)).to_vec());
    output::line("");
    output::print(&output::table(&rows));
    for line in cautions {
        output::line(&line);
    }
}
