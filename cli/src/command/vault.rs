//! Vaults and stores.

use chatkeep_ipc::proxy::{Options, VaultProxy};
use serde_json::json;

use super::Context;
use crate::args::VaultCommand;
use crate::explain::{Failure, Result};
use crate::output::{self, Colour, paint, plain};
use crate::view::{Database, Object, View};
use crate::{job, time};

/// From here on the user is warned.
pub(super) const FEW_ATTEMPTS: u32 = 3;

pub(super) async fn run(context: &Context, command: VaultCommand) -> Result<()> {
    match command {
        VaultCommand::Status => status(context).await,
        VaultCommand::Refresh => {
            ask(context).await?;
            context.done("the vaults were asked; `chatkeep vault status` shows what they said");
            Ok(())
        }
        VaultCommand::Freeze { vault, duration } => freeze(context, vault.as_deref(), &duration).await,
        VaultCommand::Unfreeze { vault } => unfreeze(context, vault.as_deref()).await,
        VaultCommand::Acknowledge { vault } => {
            for vault in chosen(context, vault.as_deref()).await? {
                proxy(context, &vault).await?.acknowledge(Options::new()).await?;
            }
            context.done("acknowledged; further attempts are shown again");
            Ok(())
        }
    }
}

/// Asks all of them; one that does not answer is shown as such.
async fn ask(context: &Context) -> Result<()> {
    for vault in &context.view().await?.vaults {
        if let Ok(path) = proxy(context, vault).await?.refresh(Options::new()).await {
            let _ = job::follow(&context.service.connection, &path, false).await;
        }
    }
    Ok(())
}

async fn status(context: &Context) -> Result<()> {
    ask(context).await?;
    let view = context.view().await?;
    if context.json {
        let vaults: Vec<_> = view.vaults.iter().map(to_json).collect();
        output::json(&json!({ "vaults": vaults }));
        return Ok(());
    }
    if view.vaults.is_empty() {
        output::line("no vault is set up");
        return Ok(());
    }
    output::print(&output::table(&rows(&view.vaults)));
    let mut said: Vec<String> = Vec::new();
    for note in view.vaults.iter().flat_map(notes) {
        if !said.contains(&note) {
            output::line(&note);
            said.push(note);
        }
    }
    view.databases
        .iter()
        .filter_map(|database| guarded(&view, database))
        .for_each(|line| output::line(&line));
    Ok(())
}

async fn proxy<'a>(context: &'a Context, vault: &'a Object) -> Result<VaultProxy<'a>> {
    Ok(VaultProxy::builder(&context.service.connection).path(&vault.path)?.build().await?)
}

/// The vault of this name, or all that guard something.
async fn chosen(context: &Context, name: Option<&str>) -> Result<Vec<Object>> {
    let view = context.view().await?;
    let known: Vec<String> = view.vaults.iter().map(id).collect();
    let guards = |vault: &Object| vault.get::<u32>("AttemptsMax") > 0;
    let found: Vec<Object> = match name {
        Some(name) => view.vaults.into_iter().filter(|vault| id(vault) == name).collect(),
        None => view.vaults.into_iter().filter(guards).collect(),
    };
    match (found.is_empty(), name) {
        (false, _) => Ok(found),
        (true, Some(name)) => {
            let advice = format!("there are: {}", known.join(", "));
            Err(Failure::said(&format!("there is no vault {name}"), &advice))
        }
        (true, None) => Err(Failure::said(
            "no vault guards anything on this machine",
            "`chatkeep vault status` shows what is set up",
        )),
    }
}

async fn freeze(context: &Context, name: Option<&str>, duration: &str) -> Result<()> {
    let wrong = || Failure::said(&format!("`{duration}` is not a duration"), "write it as 12h or 7d");
    let lasting = time::parse_duration(duration).ok_or_else(wrong)?;
    let until = time::now().saturating_add(lasting);
    for vault in chosen(context, name).await? {
        let job = proxy(context, &vault).await?.freeze(until, Options::new()).await?;
        let until = time::date_time(until);
        let done = format!("{}: nobody can try the password until {until} UTC", plain(&id(&vault)));
        context.follow(&job, &done).await?;
    }
    if !context.json {
        output::line(
            "now change the password, if somebody else tried it: `chatkeep encryption change-password`",
        );
    }
    Ok(())
}

async fn unfreeze(context: &Context, name: Option<&str>) -> Result<()> {
    for vault in chosen(context, name).await? {
        let job = proxy(context, &vault).await?.unfreeze(Options::new()).await?;
        context.follow(&job, &format!("{}: the password can be used again", plain(&id(&vault)))).await?;
    }
    Ok(())
}

pub(super) fn to_json(vault: &Object) -> serde_json::Value {
    json!({
        "id": id(vault), "url": vault.text("Url"), "state": vault.text("State"),
        "attempts_left": vault.get::<u32>("AttemptsLeft"), "attempts_max": vault.get::<u32>("AttemptsMax"),
        "retry_after": vault.number("RetryAfter"), "last_contact": vault.number("LastContact"),
        "fingerprint": vault.text("Fingerprint"), "frozen_until": vault.number("FrozenUntil"),
        "failed_attempts": vault.get::<u32>("FailedAttempts"), "failed_here": vault.get::<u32>("FailedHere"),
        "failed_elsewhere": vault.get::<u32>("FailedElsewhere"),
        "operator": vault.text("Operator"), "jurisdiction": vault.text("Jurisdiction"),
        "warnings": vault.list("Warnings"),
        "unacknowledged": vault.get::<u32>("Unacknowledged"), "elsewhere_seen": vault.number("ElsewhereSeen"),
    })
}

/// What is to be said of a vault in sentences.
pub(super) fn notes(vault: &Object) -> Vec<String> {
    let name = plain(&id(vault));
    let mut notes = Vec::new();
    if let Some(alarm) = alarm(vault) {
        notes.push(paint(&alarm, Colour::Red));
    }
    notes.extend(
        vault.list("Warnings").iter().map(|text| paint(&plain(&format!("warning: {text}")), Colour::Yellow)),
    );
    let frozen = vault.number("FrozenUntil");
    if frozen > time::now() {
        notes.push(format!("{name}: frozen until {} UTC: no password is tried", time::date_time(frozen)));
    }
    notes
}

/// `notes: 2 of 3 vaults have to answer (a, b, c); each gives 6 attempts …`
fn guarded(view: &View, database: &Database) -> Option<String> {
    let paths: Vec<zbus::zvariant::OwnedObjectPath> = database.encryption.get("Vaults");
    let threshold = database.encryption.get::<u32>("Threshold");
    if paths.len() < 2 || threshold == 0 {
        return None;
    }
    let vaults: Vec<&Object> = view.vaults.iter().filter(|vault| paths.contains(&vault.path)).collect();
    let names: Vec<String> = vaults.iter().map(|vault| plain(&id(vault))).collect();
    let (n, each) = (paths.len(), vaults.iter().map(|vault| vault.get::<u32>("AttemptsMax")).max()?);
    let all = u64::from(each) * n as u64 / u64::from(threshold);
    Some(format!(
        "{}: {threshold} of {n} vaults have to answer ({}); each gives {each} attempts, so that somebody who spreads \
         guesses over them gets {all} in all",
        plain(&database.id()),
        names.join(", ")
    ))
}

/// Attempts of somebody else that nobody acknowledged.
pub(super) fn alarm(vault: &Object) -> Option<String> {
    let count = vault.get::<u32>("Unacknowledged");
    if count == 0 {
        return None;
    }
    let (name, seen) = (plain(&id(vault)), time::date_time(vault.number("ElsewhereSeen")));
    Some(format!(
        "vault {name}: {count} wrong passwords were not tried on this machine, noticed {seen} UTC; if that was not you, \
         `chatkeep vault freeze` and change the password; if it was, `chatkeep vault acknowledge`"
    ))
}

pub(super) fn id(object: &Object) -> String {
    ["vault", "store"]
        .iter()
        .find_map(|kind| chatkeep_ipc::names::id_of_path(kind, object.path.as_str()))
        .unwrap_or_default()
}

pub(super) fn rows(vaults: &[Object]) -> Vec<Vec<String>> {
    let now = time::now();
    let mut rows = vec![
        ["VAULT", "STATE", "ATTEMPTS LEFT", "FAILED HERE", "ELSEWHERE", "LAST CONTACT", "FINGERPRINT"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for vault in vaults {
        let (left, max) = (vault.get::<u32>("AttemptsLeft"), vault.get::<u32>("AttemptsMax"));
        let attempts = match max {
            0 => "-".to_owned(),
            max if left <= FEW_ATTEMPTS => paint(&format!("{left} of {max}"), Colour::Red),
            max => format!("{left} of {max}"),
        };
        let state = vault.text("State");
        let colour = if matches!(state.as_str(), "ok" | "frozen") { Colour::Green } else { Colour::Yellow };
        rows.push(vec![
            plain(&id(vault)),
            paint(&plain(&state), colour),
            attempts,
            vault.get::<u32>("FailedHere").to_string(),
            vault.get::<u32>("FailedElsewhere").to_string(),
            time::age(vault.number("LastContact"), now),
            plain(&vault.text("Fingerprint")),
        ]);
    }
    rows
}
