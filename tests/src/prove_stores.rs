//! `cargo xtask prove stores`: every kind of store at its real server. First the contract, through the real plugin process;
//! then an app that writes, a service that is killed, and plugins that are killed: what was announced restores.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chatkeep_store::Store;
use chatkeep_store::conformance::{self, CaseResult, Extent, Outcome};
use chatkeep_store::memory::MemoryStore;
use chatkeep_store_host::manifest::find::Manifests;
use chatkeep_store_host::{PluginStore, Settings as PluginSettings, Spawn};
use chatkeep_store_local::LocalStore;
use chatkeep_tests::stack::random::Random;
use chatkeep_tests::stack::{Settings, Stack};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::prove::{Figures, Proof};
use crate::prove_rounds;
use crate::prove_stores_places::{self as places, Place};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// One round for each store, and the short suite: about eight minutes.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// How many rounds of writing and killing for each store.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Repeat the choices of an earlier run. What the kills hit differs: the machine is not repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// Only stores whose name begins like this.
    #[arg(long)]
    only: Option<String>,
}

/// The suite of the long form: without the races of an hour that slow servers would make of it.
const LONG: Extent = Extent { rounds: 10, racers: 16, listing_len: 1001, object_len: 16 << 20 };

/// Runs it; an error if a promise did not hold.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(chatkeep_tests::stack::machine::now_us);
    println!("seed {seed}");
    let started = Instant::now();
    let stack = Stack::start()?;
    let settings = Settings { traced: true, ..Settings::default() };
    let mut proof = Proof {
        stack,
        settings,
        random: Random::new(seed),
        figures: Figures::default(),
        needles: Vec::new(),
        places: Vec::new(),
        planted: true,
    };
    let mut table = BTreeMap::new();
    let mut names = Vec::new();
    for (number, start) in places::ALL.into_iter().enumerate() {
        let folder = proof.stack.root().join(format!("place{number}"));
        std::fs::create_dir_all(&folder)?;
        let place = start(&folder);
        if arguments.only.as_ref().is_some_and(|only| !place.name.starts_with(only)) {
            continue;
        }
        names.push(place.name);
        let before = Instant::now();
        if !place.hostile {
            let extent = if arguments.quick { Extent::QUICK } else { LONG };
            table.insert(place.name, contract(&place, &folder, extent)?);
        }
        let suite_s = before.elapsed().as_secs_f64();
        let rounds = if arguments.quick { 1 } else { arguments.rounds };
        for round in 0..rounds {
            write_and_kill(&mut proof, &place, number as u32 * 100 + round);
        }
        println!(
            "{}: suite {suite_s:.0} s, then {:.0} s",
            place.name,
            before.elapsed().as_secs_f64() - suite_s
        );
    }
    show(&table);
    finish(&proof, &names, &table, seed, started.elapsed())
}

/// The suite, through a plugin process where the store is one.
fn contract(place: &Place, folder: &Path, extent: Extent) -> Result<Vec<CaseResult>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    runtime.block_on(async {
        let (store, plugin): (Arc<dyn Store>, Option<Arc<PluginStore>>) = match place.shelf.url.as_str() {
            "memory:" => (Arc::new(MemoryStore::new()), None),
            url if url.starts_with("file:") => (Arc::new(LocalStore::from_url(url)?), None),
            _ => {
                let plugin = Arc::new(plugin(place, folder)?);
                plugin.open().await.with_context(|| place.name)?;
                (plugin.clone(), Some(plugin))
            }
        };
        let results = conformance::run(store, "suite", extent).await;
        if let Some(plugin) = plugin {
            plugin.close().await;
        }
        Ok(results)
    })
}

fn plugin(place: &Place, folder: &Path) -> Result<PluginStore> {
    let manifests = Manifests::shipped();
    let manifest = manifests.for_url(&place.shelf.url)?;
    let opening = manifest.complete(&place.opening())?;
    let launch = manifest.launch("suite", &opening)?;
    Ok(PluginStore::new(PluginSettings::new(launch, Arc::new(Spawn::new()), opening, &folder.join("run")))?)
}

/// A round of `prove spine` whose store is this one, while plugins die at any moment.
fn write_and_kill(proof: &mut Proof, place: &Place, number: u32) {
    // what is in it does not outlive the service
    if place.shelf.url == "memory:" {
        return;
    }
    proof.settings.shelf = Some(place.shelf.clone());
    let (over, killed) = (AtomicBool::new(false), AtomicU64::new(0));
    let root = proof.stack.root().to_owned();
    let seed = proof.random.number();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| kill_plugins(&root, seed, &over, &killed));
        let result = prove_rounds::round(proof, number);
        over.store(true, Ordering::Relaxed);
        result
    });
    proof.figures.kills += killed.load(Ordering::Relaxed);
    if let Err(error) = result {
        proof.figures.fail(format!("{}: {error:#}", place.name));
    }
    for machine in [format!("m{number}"), format!("f{number}")] {
        let seen = chatkeep_tests::stack::trace::Trace::into(&root.join(machine).join("trace"))
            .and_then(|trace| trace.sockets("chatkeepd"));
        match seen {
            Ok(sockets) => {
                for socket in &sockets.others {
                    proof.figures.fail(format!("{}: the service asked for {socket}", place.name));
                }
                proof.figures.inet_sockets.extend(sockets.others);
            }
            Err(error) => proof.figures.fail(format!("{}: nobody saw its sockets: {error:#}", place.name)),
        }
    }
}

/// A plugin that crashes five times in ten minutes is not started again: so many of a machine's are killed.
const KILLS_MAX: usize = 4;

/// SIGKILL to a plugin of a service below `root`, every second or two.
fn kill_plugins(root: &Path, seed: u64, over: &AtomicBool, killed: &AtomicU64) {
    let mut random = Random::new(seed);
    let mut by_home: BTreeMap<String, usize> = BTreeMap::new();
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(random.between(600, 2500)));
        let plugins = plugins_below(root);
        if plugins.is_empty() {
            continue;
        }
        let (victim, home) = &plugins[random.below(plugins.len() as u64) as usize];
        let kills = by_home.entry(home.clone()).or_default();
        if *kills < KILLS_MAX && kill_process(*victim, Signal::KILL).is_ok() {
            *kills += 1;
            killed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Plugin processes whose home is below `root`, with that home.
fn plugins_below(root: &Path) -> Vec<(Pid, String)> {
    let begin = format!("HOME={}", root.display());
    let home_of = |folder: &Path| {
        let name = std::fs::read_to_string(folder.join("comm")).ok()?;
        let environment = std::fs::read(folder.join("environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let home = environment.split('\0').find(|variable| variable.starts_with(&begin))?.to_owned();
        (name.trim() == "chatkeep-store").then_some(home)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = processes.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        Some((pid, home_of(&entry.path())?))
    });
    ours.collect()
}

/// A row for each case, a column for each store.
fn show(table: &BTreeMap<&str, Vec<CaseResult>>) {
    for (store, results) in table {
        println!("\n{store}");
        for result in results {
            println!("  {result}");
        }
    }
}

fn finish(
    proof: &Proof,
    names: &[&str],
    table: &BTreeMap<&str, Vec<CaseResult>>,
    seed: u64,
    took: Duration,
) -> Result<()> {
    let figures = &proof.figures;
    let cases = || table.values().flatten();
    let failed = cases().filter(|case| matches!(case.outcome, Outcome::Failed(_))).count();
    let skipped = cases().filter(|case| matches!(case.outcome, Outcome::Skipped(_))).count();
    let lost = figures.points_lost + figures.corrupt + figures.backward;
    let held = failed == 0 && lost == 0 && figures.inet_sockets.is_empty() && figures.failures.is_empty();
    println!(
        "{}",
        json!({
            "seed": seed, "stores": names.len(), "cases": cases().count(), "failed": failed, "skipped": skipped,
            "captures": figures.captures, "restores": figures.restores, "kills": figures.kills,
            "objects_lost": lost, "inet_sockets_of_daemon": figures.inet_sockets.len(),
            "writer_errors": figures.writer_errors, "failures": figures.failures.len(), "seconds": took.as_secs(), "held": held,
        })
    );
    ensure!(held, "not every promise held");
    Ok(())
}
