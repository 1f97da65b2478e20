//! The public conformance kit: what `chatkeep store check` runs on any store, and on any plugin.
//!
//! First the suite that every store passes, then what only a process can get wrong, and what the claims are worth.

mod claims;
mod process;
mod raw;
mod tap;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chatkeep_store::conformance::{CaseResult, Extent, Outcome, run};
use chatkeep_store::{Capabilities, Opening, Result, Store};

use crate::launch::{Launch, Spawn};
use crate::process::lock;
use crate::store::{PluginStore, Settings};

pub use claims::Found;
pub use tap::tap;

/// Most lines of standard error that are kept.
const LINES_MAX: usize = 10_000;

/// What came of a check.
#[derive(Debug, Clone)]
pub struct Report {
    /// Every case, in the order they ran.
    pub results: Vec<CaseResult>,
    /// What the store says it can do.
    pub claimed: Capabilities,
    /// What was found.
    pub found: Found,
}

impl Report {
    /// Whether no case failed.
    pub fn passed(&self) -> bool {
        !self.results.iter().any(|result| matches!(result.outcome, Outcome::Failed(_)))
    }
}

/// A plugin to check.
pub struct Subject {
    /// How it is started.
    pub launch: Launch,
    /// What it is opened with.
    pub opening: Opening,
    /// A folder for its socket, for this user alone.
    pub folder: PathBuf,
    /// One segment of a key, below which nothing else is.
    pub root: String,
}

/// Checks a store that runs in this process.
pub async fn check_store(store: Arc<dyn Store>, root: &str, extent: Extent) -> Report {
    let mut results = run(Arc::clone(&store), root, extent).await;
    let (claim, found) = claims::probe(&*store, root, extent).await;
    results.push(claim);
    Report { results, claimed: store.capabilities(), found }
}

/// Checks a plugin: its store, and the process. Fails only where the store cannot be opened at all.
///
/// The process is killed several times. It runs as a child, without the walls that systemd would put around it.
pub async fn check_plugin(subject: Subject, extent: Extent) -> Result<Report> {
    let said = Said::default();
    let store = Arc::new(plugin(&subject, &subject.launch.store, &subject.opening, &said)?);
    store.open().await?;
    let mut report = check_store(store.clone(), &subject.root, extent).await;
    let case = process::Cases { store: &store, subject: &subject, extent, said: &said };
    report.found.range = case.finds_ranges().await;
    report.results.extend(case.run().await);
    store.close().await;
    Ok(report)
}

/// What a plugin wrote to standard error.
#[derive(Debug, Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    fn lines(&self) -> Vec<String> {
        lock(&self.0).clone()
    }
}

fn plugin(subject: &Subject, name: &str, opening: &Opening, said: &Said) -> Result<PluginStore> {
    let lines = Arc::clone(&said.0);
    let launcher = Spawn::with_lines(Arc::new(move |_, line| {
        let mut lines = lock(&lines);
        if lines.len() < LINES_MAX {
            lines.push(line.to_owned());
        }
    }));
    let launch = Launch { store: name.to_owned(), ..subject.launch.clone() };
    let mut settings = Settings::new(launch, Arc::new(launcher), opening.clone(), &subject.folder);
    // it is killed on purpose, more often than a plugin may crash
    settings.life.crashes.crashes_max = usize::MAX;
    settings.life.crashes.first_wait = Duration::ZERO;
    PluginStore::new(settings)
}
