//! `chatkeep store check`: the public conformance kit, on a URL or on a plugin that somebody writes. Needs no service.

use std::path::Path;
use std::sync::Arc;

use chatkeep_store::conformance::{Extent, Outcome};
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{Opening, Store};
use chatkeep_store_host::Launch;
use chatkeep_store_host::check::{Report, Subject, check_plugin, check_store, tap};
use chatkeep_store_local::LocalStore;
use serde_json::json;
use zeroize::Zeroizing;

use super::add::{behind, pairs, refused};
use crate::args::CheckArguments;
use crate::explain::{Failure, Result};
use crate::output;
use crate::secret_input::Source;

/// Prints the report; the exit code says whether every case passed.
pub(super) async fn check(arguments: CheckArguments, json: bool) -> Result<u8> {
    let extent = if arguments.quick { Extent::QUICK } else { Extent::FULL };
    // one segment that nothing else in the store uses
    let root = format!("check-{:x}-{:x}", std::process::id(), crate::time::now());
    let in_process: Option<Arc<dyn Store>> = match arguments.target.as_str() {
        "memory:" => Some(Arc::new(MemoryStore::new())),
        url if url.starts_with("file:") => {
            Some(Arc::new(LocalStore::from_url(url).map_err(|error| refused(&error))?))
        }
        _ => None,
    };
    let report = if let Some(store) = in_process {
        check_store(store, &root, extent).await
    } else {
        let is_program = is_program(&arguments.target);
        let (launch, opening) =
            if is_program { program(&arguments).await? } else { by_url(&arguments).await? };
        // removed at the end, with the socket in it
        let folder = tempfile::tempdir().map_err(|error| Failure::local("no temporary folder", &error))?;
        let subject = Subject { launch, opening, folder: folder.path().to_owned(), root };
        check_plugin(subject, extent).await.map_err(|error| refused(&error))?
    };
    show(&report, json);
    Ok(u8::from(!report.passed()))
}

fn show(report: &Report, json: bool) {
    if !json {
        output::print(&tap(report));
        return;
    }
    let cases: Vec<serde_json::Value> = report
        .results
        .iter()
        .map(|result| {
            let (outcome, why) = match &result.outcome {
                Outcome::Passed => ("passed", ""),
                Outcome::Skipped(why) => ("skipped", why.as_str()),
                Outcome::Failed(why) => ("failed", why.as_str()),
            };
            json!({ "case": result.name, "outcome": outcome, "why": why })
        })
        .collect();
    output::json(&json!({ "passed": report.passed(), "cases": cases, "tap": tap(report) }));
}

/// A path, and not a URL.
fn is_program(target: &str) -> bool {
    target.starts_with('/') || target.starts_with("./") || target.starts_with("../")
}

/// A program that somebody writes: it has no manifest yet, and gets what the command line says.
async fn program(arguments: &CheckArguments) -> Result<(Launch, Opening)> {
    let program = std::fs::canonicalize(Path::new(&arguments.target))
        .map_err(|error| Failure::local("the plugin cannot be used", &error))?;
    let mut opening =
        Opening { options: pairs(&arguments.settings.options)?, ..Opening::of_url(&arguments.url) };
    if !arguments.settings.secrets.is_empty() {
        let mut source = Source::choose(arguments.settings.secret_fd)?;
        for name in &arguments.settings.secrets {
            let value = source.read(&format!("{name}: ")).await?;
            let text = value.as_str().ok_or_else(|| Failure::said("a secret is text", ""))?;
            opening.secrets.set(name, Zeroizing::new(text.to_owned()));
        }
    }
    let of_ours = ["PATH", "LANG", "HOME", "TMPDIR"].into_iter();
    let environment = of_ours.filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect();
    let launch =
        Launch { store: "check".to_owned(), program, environment, network: true, ..Launch::default() };
    Ok((launch, opening))
}

async fn by_url(arguments: &CheckArguments) -> Result<(Launch, Opening)> {
    let options = pairs(&arguments.settings.options)?;
    let mut opening = Opening { options, ..Opening::of_url(&arguments.target) };
    behind("check", &arguments.settings, &mut opening).await
}
