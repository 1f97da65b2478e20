//! Looks for what could be wrong, from this side of the socket.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::connect::{connect, default_socket};
use crate::explain::{FAILED, NO_SERVICE, Result};
use crate::output::{self, Colour, paint, plain};
use crate::view::View;

struct Finding {
    what: &'static str,
    good: bool,
    text: String,
}

pub(super) async fn doctor(socket: Option<&Path>, as_json: bool) -> Result<u8> {
    let mut findings = Vec::new();
    let mut add = |what, good, text: String| findings.push(Finding { what, good, text });

    add("command", true, format!("version {}", env!("CARGO_PKG_VERSION")));
    let path = socket.map(Path::to_owned).or_else(default_socket);
    let exists = path.as_deref().is_some_and(Path::exists);
    let named =
        path.map_or_else(|| "XDG_RUNTIME_DIR is not set".to_owned(), |path| path.display().to_string());
    add("control socket", exists, if exists { named } else { format!("missing: {named}") });
    let mut reached = false;
    let mut units = vec!["chatkeepd.service"];
    match connect(socket).await {
        Ok(service) => match View::read(&service.connection).await {
            Ok(view) => {
                reached = true;
                add("service", true, format!("answers on {}", service.way));
                look_at(&view, &mut add);
                if !view.vaults.is_empty() {
                    units.push("chatkeep-courier.socket");
                }
            }
            Err(_) => add("service", false, format!("does not answer properly on {}", service.way)),
        },
        Err(_) => {
            add("service", false, "cannot be reached; start it: `systemctl --user start chatkeepd`".into());
        }
    }
    for unit in units {
        if let Some(state) = unit_state(unit) {
            add(unit, state == "active", state);
        }
    }

    let good = findings.iter().all(|finding| finding.good);
    if as_json {
        let findings: Vec<_> = findings
            .iter()
            .map(|finding| json!({"what": finding.what, "ok": finding.good, "text": finding.text}))
            .collect();
        output::json(&json!({"ok": good, "findings": findings}));
    } else {
        let mark = |good| if good { paint("ok", Colour::Green) } else { paint("PROBLEM", Colour::Red) };
        let rows: Vec<Vec<String>> = findings
            .iter()
            .map(|finding| vec![mark(finding.good), finding.what.to_owned(), plain(&finding.text)])
            .collect();
        output::print(&output::table(&rows));
    }
    Ok(match (reached, good) {
        (false, _) => NO_SERVICE,
        (true, false) => FAILED,
        (true, true) => 0,
    })
}

fn look_at(view: &View, add: &mut impl FnMut(&'static str, bool, String)) {
    let version = view.manager.text("Version");
    let same = version == env!("CARGO_PKG_VERSION");
    let hint = if same { "" } else { ", not the command's: restart it after an upgrade" };
    add("service version", same, format!("{version}{hint}"));
    let errors = view.manager.list("ConfigErrors");
    if errors.is_empty() {
        add("configuration", true, "no mistakes".into());
    }
    for error in errors {
        add("configuration", false, error);
    }
    let storage = view.manager.text("KeyStorage");
    let text = match storage.as_str() {
        "" => "none: keys cannot be kept on this machine".to_owned(),
        "file" => "a file: a copy of the home directory opens the backups".to_owned(),
        other => other.to_owned(),
    };
    add("key storage", !storage.is_empty(), text);
    let sandbox = view.manager.list("Sandbox");
    add("sandbox", true, if sandbox.is_empty() { "nothing in force".into() } else { sandbox.join(", ") });
    for store in &view.stores {
        let state = store.text("State");
        let good = matches!(state.as_str(), "ok" | "unknown");
        add(
            "store",
            good,
            format!("{}: {state} {}", store.text("Id"), store.error("LastError").1).trim_end().into(),
        );
    }
}

/// What systemd says of a unit; nothing where there is no user manager or the unit is not installed.
fn unit_state(unit: &str) -> Option<String> {
    let output = Command::new("systemctl")
        .args(["--user", "show", "--property=LoadState,ActiveState", "--value", unit])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut lines = text.lines();
    let (first, second) = (lines.next()?, lines.next()?);
    match (first, second) {
        ("not-found", _) | (_, "not-found") => None,
        ("loaded", active) | (active, "loaded") => Some(active.to_owned()),
        _ => None,
    }
}
