//! Follows a job to its end: a progress bar on a terminal, lines of JSON for scripts, Ctrl-C cancels.

use std::collections::HashMap;
use std::io::IsTerminal as _;

use chatkeep_ipc::names::BUS_NAME;
use chatkeep_ipc::proxy::{JobProxy, Options};
use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value as Json, json};
use zbus::Connection;
use zbus::fdo::PropertiesProxy;
use zbus::proxy::CacheProperties;
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Value};

use crate::explain::{Failure, Result};
use crate::output::{self, note, size};
use crate::time;

type Properties = HashMap<String, OwnedValue>;

/// An object that is damaged: its key, how, what it holds, points that it costs.
pub(crate) type Damage = (String, String, String, Vec<String>);

/// A vault that is not configured: name, address, fingerprint.
pub(crate) type UnknownVault = (String, String, String);

/// How a job that did not fail ended.
pub(crate) struct Outcome {
    result: Properties,
}

impl Outcome {
    /// What the user should know although all went well.
    pub(crate) fn warning(&self) -> Option<String> {
        self.result.get("warning").and_then(|value| <&str>::try_from(value).ok()).map(str::to_owned)
    }

    /// How many of something; 0 when it is not told.
    pub(crate) fn count(&self, name: &str) -> u32 {
        get(&self.result, name)
    }

    /// A size or time; 0 when it is not told.
    pub(crate) fn number(&self, name: &str) -> u64 {
        get(&self.result, name)
    }

    /// Of forgotten points: identifier, bytes, and when it is deleted at the earliest.
    pub(crate) fn points(&self) -> Vec<(String, u64, u64)> {
        let value = self.result.get("points").and_then(|value| value.try_clone().ok());
        value.and_then(|value| Vec::try_from(value).ok()).unwrap_or_default()
    }
}

/// A job that failed, with what it said about it.
pub(crate) struct Ended {
    pub(crate) failure: Failure,
    pub(crate) attempts_left: Option<u32>,
    pub(crate) retry_after: Option<u64>,
    /// What a verification found.
    pub(crate) damage: Vec<Damage>,
    /// Vaults that the user would have to confirm.
    pub(crate) unknown_vaults: Vec<UnknownVault>,
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Self {
        ended.failure
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            attempts_left: None,
            retry_after: None,
            damage: Vec::new(),
            unknown_vaults: Vec::new(),
        }
    }
}

impl From<zbus::Error> for Ended {
    fn from(error: zbus::Error) -> Self {
        Failure::from(error).into()
    }
}

/// Waits for the end of `path`, showing progress.
pub(crate) async fn follow(
    connection: &Connection,
    path: &OwnedObjectPath,
    as_json: bool,
) -> Result<Outcome, Ended> {
    let job = JobProxy::builder(connection).path(path)?.cache_properties(CacheProperties::No).build().await?;
    let properties = PropertiesProxy::builder(connection).destination(BUS_NAME)?.path(path)?.build().await?;
    let mut changes = properties.receive_properties_changed().await?;
    // subscribed: now the state is read once, so an end in between is not missed
    let name = zbus::names::InterfaceName::from_static_str_unchecked("io.github.chatkeep.Chatkeep1.Job");
    let mut state = properties.get_all(name).await.map_err(zbus::Error::from)?;
    let show = Show::new(as_json);
    let mut cancelled = false;
    loop {
        show.update(path, &state);
        if let Some(end) = ending(&state) {
            show.finish(path, &state);
            // who pressed Ctrl-C is told that, whatever word the job ended with
            let ours = |ended: &Ended| cancelled && ended.failure.is_cancelled();
            return end.map_err(|ended| if ours(&ended) { Failure::interrupted().into() } else { ended });
        }
        tokio::select! {
            change = changes.next() => match change {
                Some(change) => merge(&mut state, &change)?,
                None => return Err(Failure::no_service(&"it ended before the job did").into()),
            },
            signal = tokio::signal::ctrl_c() => {
                signal.map_err(|error| Failure::local("signals cannot be received", &error))?;
                if cancelled {
                    return Err(Failure::interrupted().into());
                }
                cancelled = true;
                note("cancelling; press Ctrl-C again to leave at once");
                job.cancel(Options::new()).await.map_err(Failure::from)?;
            }
            () = connection.closed() => {
                return Err(Failure::no_service(&"it ended before the job did").into());
            }
        }
    }
}

fn merge(state: &mut Properties, change: &zbus::fdo::PropertiesChanged) -> Result<()> {
    let change = change.args()?;
    for (name, value) in change.changed_properties() {
        let value: &Value<'_> = value;
        state.insert((*name).to_owned(), value.try_to_owned().map_err(zbus::Error::from)?);
    }
    Ok(())
}

fn get<T>(state: &Properties, name: &str) -> T
where
    T: TryFrom<OwnedValue> + Default,
{
    state
        .get(name)
        .and_then(|value| value.try_clone().ok())
        .and_then(|value| T::try_from(value).ok())
        .unwrap_or_default()
}

fn details(state: &Properties) -> Properties {
    let value = state.get("Result").and_then(|value| value.try_clone().ok());
    value.and_then(|value| Properties::try_from(value).ok()).unwrap_or_default()
}

fn ending(state: &Properties) -> Option<Result<Outcome, Ended>> {
    let result = details(state);
    match get::<String>(state, "State").as_str() {
        "done" => Some(Ok(Outcome { result })),
        "failed" | "cancelled" => {
            let error = state.get("Error").and_then(|value| value.try_clone().ok());
            let (name, text) =
                error.and_then(|value| <(String, String)>::try_from(value).ok()).unwrap_or_default();
            Some(Err(Ended {
                failure: Failure::of_job(&name, &text),
                attempts_left: result.get("attempts-left").and_then(|left| u32::try_from(left).ok()),
                retry_after: result
                    .get("retry-after")
                    .and_then(|at| u64::try_from(at).ok())
                    .filter(|at| *at != 0),
                damage: get(&result, "damage"),
                unknown_vaults: get(&result, "unknown-vaults"),
            }))
        }
        _ => None,
    }
}

enum Show {
    Nothing,
    Lines,
    Bar(ProgressBar),
}

impl Show {
    fn new(as_json: bool) -> Self {
        if as_json {
            return Self::Lines;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Nothing;
        }
        Self::Bar(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()))
    }

    fn update(&self, path: &OwnedObjectPath, state: &Properties) {
        let (done, total) = (get::<u64>(state, "BytesDone"), get::<u64>(state, "BytesTotal"));
        match self {
            Self::Nothing => {}
            Self::Lines => output::json(&json!({
                "event": "progress", "job": path.as_str(),
                "operation": get::<String>(state, "Operation"), "state": get::<String>(state, "State"),
                "phase": get::<String>(state, "Phase"), "progress": get::<f64>(state, "Progress"),
                "bytes_done": done, "bytes_total": total, "rate": get::<u64>(state, "Rate"),
                "expected_end": get::<u64>(state, "ExpectedEnd"),
            })),
            Self::Bar(bar) => {
                let phase: String = get(state, "Phase");
                let phase = if phase.is_empty() { get(state, "Operation") } else { phase };
                if total > 0 {
                    bar.set_style(style("{bar:30} {percent:>3}%  {msg}"));
                    bar.set_length(total);
                    bar.set_position(done.min(total));
                } else {
                    bar.set_style(style("{spinner} {msg}"));
                    bar.tick();
                }
                bar.set_message(output::plain(&message(&phase, state, done, total)));
            }
        }
    }

    fn finish(&self, path: &OwnedObjectPath, state: &Properties) {
        match self {
            Self::Nothing => {}
            Self::Lines => {
                let error = state.get("Error").and_then(|value| value.try_clone().ok());
                let error =
                    error.and_then(|value| <(String, String)>::try_from(value).ok()).unwrap_or_default();
                output::json(&json!({
                    "event": "finished", "job": path.as_str(), "state": get::<String>(state, "State"),
                    "error": error.0, "message": error.1, "result": to_json(&details(state)),
                }));
            }
            Self::Bar(bar) => bar.finish_and_clear(),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a constant template")
}

/// `uploading  3.1 of 12.0 MiB, 1.2 MiB/s, 8 s left`
fn message(phase: &str, state: &Properties, done: u64, total: u64) -> String {
    let mut parts = Vec::new();
    match (done, total) {
        (0, 0) => {}
        (done, 0) => parts.push(size(done)),
        (done, total) => parts.push(format!("{} of {}", size(done), size(total))),
    }
    let rate: u64 = get(state, "Rate");
    if rate > 0 {
        parts.push(format!("{}/s", size(rate)));
    }
    let end: u64 = get(state, "ExpectedEnd");
    if end > 0 {
        parts.push(format!("{} left", time::span(end.saturating_sub(time::now()).div_ceil(time::SECOND))));
    }
    if parts.is_empty() { phase.to_owned() } else { format!("{phase}  {}", parts.join(", ")) }
}

/// Details for scripts: numbers, texts, truth values and lists of them as such, anything else as it prints.
pub(crate) fn to_json(details: &Properties) -> Json {
    details.iter().map(|(name, value)| (name.clone(), value_json(value))).collect()
}

fn value_json(value: &Value<'_>) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::U32(value) => json!(value),
        Value::U64(value) => json!(value),
        Value::I64(value) => json!(value),
        Value::F64(value) => json!(value),
        Value::Str(value) => json!(value.as_str()),
        Value::Array(values) => values.iter().map(value_json).collect(),
        Value::Structure(fields) => fields.fields().iter().map(value_json).collect(),
        other => json!(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn state(pairs: &[(&str, Value<'_>)]) -> Properties {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.try_to_owned().unwrap())).collect()
    }

    #[test]
    fn the_message_has_what_is_known() {
        assert_eq!(message("capturing", &state(&[]), 0, 0), "capturing");
        let known = state(&[("Rate", Value::from(1_048_576_u64))]);
        assert_eq!(message("uploading", &known, 1024, 2048), "uploading  1.0 KiB of 2.0 KiB, 1.0 MiB/s");
    }

    #[test]
    fn the_end_of_a_job_is_told_from_its_properties() {
        assert!(ending(&state(&[("State", "running".into())])).is_none());
        assert!(ending(&state(&[("State", "done".into())])).unwrap().is_ok());
        let details = state(&[("attempts-left", Value::from(3_u32))]);
        let failed = state(&[
            ("State", "failed".into()),
            ("Error", Value::from(("WrongSecret", "no"))),
            ("Result", Value::from(details)),
        ]);
        let ended = ending(&failed).unwrap().err().unwrap();
        assert_eq!(ended.attempts_left, Some(3));
        assert!(ended.failure.is_wrong_secret());
    }
}
