//! `cargo xtask prove capture`: captures under stress, crashes, and a year of use. The seed is printed first, the figures
//! last.
//!
//! | part | what is real | what is ours |
//! | --- | --- | --- |
//! | stress | apps, databases, the reader | the store, in memory |
//! | crashes | databases, the service's library | the store fails when it is told to, the clock, when it crashes |
//! | kills | all of it, in a process that is killed | the clock |
//! | year | databases, the service's library | the store, in memory, the clock |
//! | service | everything | |

use std::time::Instant;

use anyhow::{Result, ensure};
use chatkeep_tests::stack::random::Random;
use serde_json::{Value, json};

use crate::prove_capture_crashes::{Crashes, crashes};
use crate::prove_capture_kills::{Kills, kills};
use crate::prove_capture_service::{MAX_AGE, Service, service};
use crate::prove_capture_stress::{Stress, stress};
use crate::prove_capture_year::year;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Little of everything: less than five minutes.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// How many runs of the stress matrix; the rest follows from it, unless it is given.
    #[arg(long, default_value_t = 240)]
    rounds: u32,
    /// How many crashes of the simulation [default: 42 for each round].
    #[arg(long)]
    crashes: Option<u64>,
    /// How many kills of a process with the service in it [default: 4 for each round].
    #[arg(long)]
    kills: Option<u64>,
    /// How many days the year has, at most 365 [default: 2 for each round].
    #[arg(long)]
    days: Option<u32>,
    /// How many rounds of the whole service [default: 4].
    #[arg(long)]
    service: Option<u32>,
    /// Repeat the choices of an earlier run. Where processes race, the machine is not repeated.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs of the quick form. One takes about five seconds on two busy cores.
const QUICK_ROUNDS: u32 = 12;
/// Rounds of the service, and how many seconds each writes.
const SERVICE: (u32, u64) = (4, 40);
const QUICK_SERVICE: (u32, u64) = (1, 24);

/// What went wrong, in words.
#[derive(Default)]
pub(crate) struct Failures(Vec<String>);

impl Failures {
    pub(crate) fn add(&mut self, what: String) {
        eprintln!("  \u{2717} {what}");
        self.0.push(what);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// What all parts gave.
struct Figures {
    stress: Stress,
    crashes: Crashes,
    kills: Kills,
    year: Value,
    service: Service,
}

/// Runs all of it; an error if a promise did not hold.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(chatkeep_tests::stack::machine::now_us);
    println!("seed {seed}");
    let rounds = if arguments.quick { QUICK_ROUNDS } else { arguments.rounds };
    let (service_rounds, service_s) = if arguments.quick { QUICK_SERVICE } else { SERVICE };
    let service_rounds = arguments.service.unwrap_or(service_rounds);
    let crash_count = arguments.crashes.unwrap_or(u64::from(rounds) * 42);
    let kill_count = arguments.kills.unwrap_or(u64::from(rounds) * 4);
    let days = arguments.days.unwrap_or(rounds * 2).clamp(1, 365);
    let started = Instant::now();
    let mut failures = Failures::default();
    // Each part has its own choices: what one of them does changes nothing in the next.
    let random = |part: u64| Random::new(seed ^ part << 56);
    let mut figures = Figures {
        stress: stress(&mut random(1), rounds, &mut failures)?,
        crashes: crashes(&mut random(2), crash_count, &mut failures)?,
        kills: kills(&mut random(3), kill_count, &mut failures)?,
        year: year(&mut random(4), days, &mut failures)?,
        service: service(&mut random(5), service_rounds, service_s, &mut failures)?,
    };
    let held = failures.count() == 0;
    let mut line = figures.line();
    line["seed"] = json!(seed);
    line["failures"] = json!(failures.count());
    line["seconds"] = json!(started.elapsed().as_secs());
    line["held"] = json!(held);
    println!("{line}");
    ensure!(held, "not every promise held");
    Ok(())
}

impl Figures {
    fn line(&mut self) -> Value {
        let (median, worst) = self.service.at_risk();
        let Figures { stress, crashes, kills, year, service } = self;
        let (totals, simulated) = (&stress.totals, &crashes.figures);
        json!({
            "rounds": stress.runs,
            "captures": totals.captures + simulated.entries + service.points,
            "spans": totals.spans + simulated.levels[1..8].iter().sum::<u64>(),
            "bases": totals.bases + simulated.levels[8],
            "restores": totals.restores + simulated.restores + kills.restores + service.restores,
            "corrupt": stress.corrupt + crashes.corrupt + kills.corrupt + service.corrupt,
            "points_lost": crashes.points_lost + kills.points_lost + service.points_lost,
            "backward": stress.backward + service.backward,
            "crash_points": simulated.crashes,
            "kills": totals.kills + kills.sent + service.kills,
            "gaps": totals.gaps,
            "chain_max": simulated.chain_max.max(totals.chain_max as u64),
            "writer_errors": stress.writer_errors + service.writer_errors,
            "locks_seen": stress.locks, "lock_looks": totals.lock_looks,
            "runs_with_busy_timeout_0": stress.runs_without_waiting,
            "capture_max_age": MAX_AGE, "at_risk_median_s": median, "at_risk_worst_s": worst,
            "stress": {
                "captures": totals.captures, "unchanged": totals.unchanged, "spans": totals.spans, "bases": totals.bases,
                "collected": totals.collected, "patched_pages": totals.patched_pages, "restores": totals.restores,
                "refused": totals.refused, "aborted": totals.aborted, "reopened": totals.reopened,
                "crashed_commits": totals.prepared, "kills": totals.kills, "commits": totals.commits,
                "compared": totals.compared, "encrypted": stress.encrypted,
            },
            "simulation": {
                "worlds": crashes.worlds, "crashes": simulated.crashes, "in_store_calls": simulated.crashes_in_calls,
                "entries": simulated.entries, "levels": simulated.levels, "announced": simulated.announced,
                "restores": simulated.restores, "chain_max": simulated.chain_max, "late_max": simulated.late_max,
                "gaps": simulated.gaps, "prunes": simulated.prunes, "forgotten": simulated.forgotten,
                "deleted": simulated.deleted,
            },
            "processes_killed": kills.sent,
            "processes_killed_restores": kills.restores,
            "year": year,
        })
    }
}
