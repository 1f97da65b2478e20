//! `chatkeep store check`: the public conformance kit, on a URL or on a plugin that somebody writes. Needs no service.

use std::path::Path;
use std::sync::Arc;

use chatkeep_store::Opening;
use chatkeep_store::conformance::{Extent, Outcome};
use chatkeep_store::memory::MemoryStore;
use chatkeep_store_host::Launch;
use chatkeep_store_host::check::{Report, Subject, check_plugin, check_store, tap};
use chatkeep_store_host::manifest::find::{Manifests, Places};
use chatkeep_store_host::manifest::trust::TrustList;
use chatkeep_store_local::LocalStore;
use serde_json::json;
use zeroize::Zeroizing;

use super::add::{ask, pairs, refused};
use super::trusted;
use crate::args::CheckArguments;
use crate::explain::{Failure, Result};
use crate::output;
use crate::secret_input::Source;

/// Prints the report; the exit code says whether every case passed.
pub(super) async fn check(arguments: CheckArguments, json: bool) -> Result<u8> {
    let extent = if arguments.quick { Extent::QUICK } else { Extent::FULL };
    // one segment that nothing else in the store uses
    let root = format!("check-{:x}-{:x}", std::process::id(), crate::time::now());
    let report = if is_program(&arguments.target) {
        check_plugin(program(&arguments, root).await?, extent).await.map_err(|error| refused(&error))?
    } else if arguments.target == "memory:" {
        check_store(Arc::new(MemoryStore::new()), &root, extent).await
    } else if arguments.target.starts_with("file:") {
        let store = LocalStore::from_url(&arguments.target).map_err(|error| refused(&error))?;
        check_store(Arc::new(store), &root, extent).await
    } else {
        check_plugin(by_url(&arguments, root).await?, extent).await.map_err(|error| refused(&error))?
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
async fn program(arguments: &CheckArguments, root: String) -> Result<Subject> {
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
    subject(launch, opening, root)
}

async fn by_url(arguments: &CheckArguments, root: String) -> Result<Subject> {
    let manifests = Manifests::load(&Places::usual());
    let manifest = manifests.for_url(&arguments.target).map_err(|error| refused(&error))?;
    TrustList::new(&trusted()?).check(manifest).map_err(|error| refused(&error))?;
    let mut opening =
        Opening { options: pairs(&arguments.settings.options)?, ..Opening::of_url(&arguments.target) };
    ask(manifest, &arguments.settings, &mut opening).await?;
    let opening = manifest.complete(&opening).map_err(|error| refused(&error))?;
    let launch = manifest.launch("check", &opening).map_err(|error| refused(&error))?;
    subject(launch, opening, root)
}

fn subject(launch: Launch, opening: Opening, root: String) -> Result<Subject> {
    let folder = tempfile::tempdir().map_err(|error| Failure::local("no temporary folder", &error))?;
    Ok(Subject { launch, opening, folder: folder.keep(), root })
}
