//! How current and how safe the backups are: the command that scripts and people run most.

use serde_json::{Value, json};
use zbus::zvariant::OwnedObjectPath;

use super::{Context, copies, store, vault, verify};
use crate::explain::Result;
use crate::output::{self, Colour, paint, plain, size};
use crate::view::{Database, Object, View};
use crate::{job, time};

/// The worse one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Fine,
    /// Overdue, or the user must do something.
    Attention,
    Failing,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Attention => "attention",
            Self::Failing => "failing",
        }
    }

    fn colour(self) -> Colour {
        match self {
            Self::Fine => Colour::Green,
            Self::Attention => Colour::Yellow,
            Self::Failing => Colour::Red,
        }
    }
}

pub(super) async fn status(context: &Context) -> Result<u8> {
    let view = context.view().await?;
    let reasons = judge(&view);
    let verdict = reasons.iter().map(|(verdict, _)| *verdict).max().unwrap_or(Verdict::Fine);
    if context.json {
        output::json(&to_json(&view, verdict, &reasons));
    } else {
        show(&view, &reasons);
    }
    Ok(verdict as u8)
}

/// Everything that is not fine, in one sentence each.
fn judge(view: &View) -> Vec<(Verdict, String)> {
    let mut reasons = Vec::new();
    for error in view.manager.list("ConfigErrors") {
        reasons.push((Verdict::Failing, format!("configuration: {error}")));
    }
    if view.databases.is_empty() {
        reasons.push((Verdict::Attention, "nothing is backed up yet: `chatkeep register FILE`".into()));
    }
    for database in &view.databases {
        judge_database(database, &mut reasons);
    }
    for store in &view.stores {
        let id = store.text("Id");
        match store.text("State").as_str() {
            "auth" => reasons.push((Verdict::Attention, format!("store {id} wants a sign-in"))),
            "full" => reasons.push((Verdict::Attention, format!("store {id} is full"))),
            "error" => {
                reasons.push((Verdict::Failing, format!("store {id}: {}", store.error("LastError").1)));
            }
            // unreachable: the machine may just be offline; overdue says when that is a problem
            _ => {}
        }
    }
    for vault in &view.vaults {
        let id = vault::id(vault);
        let left = vault.get::<u32>("AttemptsLeft");
        if let Some(alarm) = vault::alarm(vault) {
            reasons.push((Verdict::Attention, alarm));
        }
        match vault.text("State").as_str() {
            "destroyed" => {
                reasons.push((
                    Verdict::Attention,
                    format!("vault {id} has destroyed the key; set a new password"),
                ));
            }
            "superseded" => {
                let text = format!("vault {id} knows a newer password; unlock with it");
                reasons.push((Verdict::Attention, text));
            }
            "untrusted" => {
                reasons.push((Verdict::Attention, format!("vault {id} is not the one that was chosen")));
            }
            "ok" | "backoff" | "frozen"
                if vault.get::<u32>("AttemptsMax") > 0 && left <= vault::FEW_ATTEMPTS =>
            {
                reasons.push((Verdict::Attention, format!("vault {id}: only {left} attempts are left")));
            }
            _ => {}
        }
    }
    reasons
}

fn judge_database(database: &Database, reasons: &mut Vec<(Verdict, String)>) {
    let id = database.id();
    let (error, text) = database.state.error("LastError");
    match error.as_str() {
        "" => {}
        // somebody has to act, nothing is broken
        "KeyUnavailable" | "KeyringLocked" | "StoreAuth" | "StoreFull" | "NotEnabled" | "Unconfirmed"
        | "Paused" => {
            reasons.push((Verdict::Attention, format!("{id}: {text}")));
        }
        _ => reasons.push((Verdict::Failing, format!("{id}: {text} ({error})"))),
    }
    match database.state.text("State").as_str() {
        "missing" => reasons.push((Verdict::Failing, format!("{id}: the database file is gone"))),
        "blocked" if error.is_empty() => {
            reasons.push((Verdict::Failing, format!("{id}: backups cannot go on")));
        }
        _ => {}
    }
    match database.encryption.text("State").as_str() {
        "off" => reasons.push((
            Verdict::Attention,
            format!("{id} has no key yet: `chatkeep encryption enable-password {id}` or `generate-key {id}`"),
        )),
        "unconfirmed" => {
            reasons.push((
                Verdict::Attention,
                format!("{id}: type the digits back: `chatkeep encryption confirm {id}`"),
            ));
        }
        "locked" => reasons.push((Verdict::Attention, format!("{id} is locked: `chatkeep unlock {id}`"))),
        "broken" => reasons.push((
            Verdict::Failing,
            format!("{id}: its keys do not open the backups: `chatkeep unlock {id}`"),
        )),
        _ => {}
    }
    let older = database.state.text("StoreOlder");
    if !older.is_empty() {
        reasons.push((Verdict::Failing, format!("{id}: {older}")));
    }
    if database.state.flag("Overdue") {
        reasons.push((Verdict::Attention, format!("{id}: the last backup is older than it should be")));
    }
    let damaged = database.state.get::<Vec<job::Damage>>("Damage").len();
    if damaged > 0 {
        let text =
            format!("{id}: {damaged} objects in the store are damaged; `chatkeep verify {id}` lists them");
        reasons.push((Verdict::Failing, text));
    }
    if let Some((at, error, text)) = verify::failed(&database.state.map("LastDrillResult")) {
        let age = time::age(at, time::now());
        // An absent store or a full disk says nothing about what is stored.
        let verdict = match error.as_str() {
            "Corrupt" | "ObjectMissing" | "NewerFormat" | "Internal" => Verdict::Failing,
            _ => Verdict::Attention,
        };
        reasons.push((verdict, format!("{id}: rehearsing a restore failed {age}: {text}")));
    }
    let (hindrance, text) = database.state.error("LastPruneError");
    // a store that permits no deletion may be meant so
    if !matches!(hindrance.as_str(), "" | "AccessDenied") {
        reasons.push((Verdict::Attention, format!("{id}: nothing is deleted: {text}")));
    }
    for copy in copies::Copy::of(database) {
        if let Some(complaint) = copy.complaint(time::now()) {
            reasons.push((Verdict::Attention, format!("{id}: {complaint}")));
        }
    }
    let deletion = database.state.number("DeletePending");
    if deletion != 0 {
        let when = time::date_time(deletion);
        reasons.push((Verdict::Attention, format!("{id}: its backups will be deleted on {when} UTC")));
    }
}

fn show(view: &View, reasons: &[(Verdict, String)]) {
    let now = time::now();
    if !view.databases.is_empty() {
        let mut rows = vec![
            [
                "DATABASE", "STATE", "CAPTURED", "UPLOADED", "VERIFIED", "DRILL", "POINTS", "STORED",
                "WAITING", "KEY",
            ]
            .map(|heading| paint(heading, Colour::Bold))
            .to_vec(),
        ];
        for database in &view.databases {
            let state = &database.state;
            rows.push(vec![
                plain(&database.id()),
                plain(&state.text("State")),
                time::age(state.number("LastCapture"), now),
                time::age(state.number("LastSuccess"), now),
                time::age(state.number("LastVerified"), now),
                time::age(state.number("LastDrill"), now),
                state.get::<u32>("RecoveryPoints").to_string(),
                size(state.number("RemoteBytes")),
                size(state.number("PendingBytes")),
                plain(&encryption_words(&database.encryption)),
            ]);
        }
        output::print(&output::table(&rows));
        for database in &view.databases {
            if let Some(line) = verify::summary(&database.state.map("LastDrillResult"), now) {
                output::line(&plain(&format!("{}: {line}", database.id())));
            }
        }
    }
    for database in &view.databases {
        let caution = database.state.text("Caution");
        if !caution.is_empty() {
            output::line(&format!("{}: {}", plain(&database.id()), plain(&caution)));
        }
    }
    copies::show(view, now);
    view.databases.iter().filter_map(forgotten).for_each(|line| output::line(&line));
    if !view.stores.is_empty() {
        output::line("");
        output::print(&output::table(&store::rows(&view.stores)));
    }
    if !view.vaults.is_empty() {
        output::line("");
        output::print(&output::table(&vault::rows(&view.vaults)));
    }
    if view.manager.flag("Paused") {
        output::line(&format!("\npaused: {}", plain(&view.manager.list("PauseReasons").join(", "))));
    }
    if !view.databases.is_empty() || !reasons.is_empty() {
        output::line("");
    }
    for (verdict, reason) in reasons {
        output::line(&paint(&plain(reason), verdict.colour()));
    }
    if reasons.is_empty() {
        output::line(&paint("everything is fine", Colour::Green));
    }
}

/// What is on its way out of the store, and what holds it up.
fn forgotten(database: &Database) -> Option<String> {
    let state = &database.state;
    let (points, bytes) = (state.get::<u32>("ForgottenPoints"), state.number("ForgottenBytes"));
    if points == 0 && bytes == 0 {
        return None;
    }
    let (_, hindrance) = state.error("LastPruneError");
    let why = if hindrance.is_empty() { "wait to be deleted".to_owned() } else { plain(&hindrance) };
    Some(format!("{}: {points} forgotten points, {}: {why}", plain(&database.id()), size(bytes)))
}

/// `password`, `key, locked` …
fn encryption_words(encryption: &Object) -> String {
    let (mode, state) = (encryption.text("Mode"), encryption.text("State"));
    match (mode.as_str(), state.as_str()) {
        ("none" | "", "off" | "") => "none".into(),
        (mode, "on") => mode.to_owned(),
        (mode, state) => format!("{mode}, {state}"),
    }
}

fn to_json(view: &View, verdict: Verdict, reasons: &[(Verdict, String)]) -> Value {
    let databases: Vec<Value> = view.databases.iter().map(|database| database_json(view, database)).collect();
    let stores: Vec<Value> = view.stores.iter().map(store::to_json).collect();
    let vaults: Vec<Value> = view.vaults.iter().map(vault::to_json).collect();
    let reasons: Vec<Value> =
        reasons.iter().map(|(verdict, text)| json!({"verdict": verdict.word(), "text": text})).collect();
    json!({
        "verdict": verdict.word(), "reasons": reasons, "time": time::now(),
        "version": view.manager.text("Version"), "paused": view.manager.flag("Paused"),
        "pause_reasons": view.manager.list("PauseReasons"), "config_errors": view.manager.list("ConfigErrors"),
        "key_storage": view.manager.text("KeyStorage"), "databases": databases, "stores": stores, "vaults": vaults,
    })
}

fn database_json(view: &View, database: &Database) -> Value {
    let (state, encryption) = (&database.state, &database.encryption);
    let vault = view.vault_of(database);
    let vaults: Vec<OwnedObjectPath> = encryption.get("Vaults");
    let named = |path: &OwnedObjectPath| chatkeep_ipc::names::id_of_path("vault", path.as_str());
    let vaults: Vec<String> = vaults.iter().filter_map(named).collect();
    json!({
        "id": database.id(), "name": state.text("DisplayName"), "app": state.text("AppId"), "path": state.text("Path"),
        "state": state.text("State"), "overdue": state.flag("Overdue"),
        "last_capture": state.number("LastCapture"), "last_upload": state.number("LastSuccess"),
        "last_attempt": state.number("LastAttempt"), "last_verified": state.number("LastVerified"),
        "last_drill": state.number("LastDrill"), "drill": job::to_json(&state.map("LastDrillResult")),
        "damage": state.get::<Vec<job::Damage>>("Damage"), "last_error": error_json(&state.error("LastError")),
        "caution": state.text("Caution"), "store_older": state.text("StoreOlder"),
        "next_run": state.number("NextRun"), "pending_bytes": state.number("PendingBytes"),
        "stored_bytes": state.number("RemoteBytes"), "points": state.get::<u32>("RecoveryPoints"),
        "oldest": state.number("Oldest"), "newest": state.number("Newest"),
        "stores": copies::Copy::of(database).iter().map(copies::Copy::to_json).collect::<Vec<_>>(),
        "delete_pending": state.number("DeletePending"), "last_prune": state.number("LastPrune"),
        "last_prune_error": error_json(&state.error("LastPruneError")),
        "forgotten_points": state.get::<u32>("ForgottenPoints"), "forgotten_bytes": state.number("ForgottenBytes"),
        "encryption": {
            "mode": encryption.text("Mode"), "state": encryption.text("State"), "key_id": encryption.text("KeyId"),
            "key_on_device": encryption.flag("KeyOnDevice"), "last_checked": encryption.number("LastChecked"),
            "vaults": vaults, "threshold": encryption.get::<u32>("Threshold"),
            "vault": vault.map(vault::id), "attempts_left": vault.map(|vault| vault.get::<u32>("AttemptsLeft")),
        },
    })
}

fn error_json((name, text): &(String, String)) -> Value {
    if name.is_empty() { Value::Null } else { json!({"error": name, "message": text}) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_worst_verdict() {
        assert_eq!(
            [Verdict::Fine, Verdict::Attention, Verdict::Failing].map(|verdict| verdict as u8),
            [0, 1, 2]
        );
        assert!(Verdict::Failing > Verdict::Attention);
    }
}
