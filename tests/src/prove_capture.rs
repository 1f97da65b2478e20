//! `cargo xtask prove capture`: captures under stress, crashes, and a year of use. The seed is printed first, the figures
//! last.

use std::time::Instant;

use anyhow::{Result, ensure};
use chatkeep_tests::stack::random::Random;
use serde_json::json;

use crate::{prove_capture_crashes, prove_capture_kills, prove_capture_stress};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Few rounds: less than five minutes.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// How many runs of the stress matrix.
    #[arg(long, default_value_t = 240)]
    rounds: u32,
    /// How many crashes of the simulation.
    #[arg(long, default_value_t = 10_000)]
    crashes: u64,
    /// How many kills of a process with the service in it.
    #[arg(long, default_value_t = 1000)]
    kills: u64,
    /// Repeat the choices of an earlier run. Where processes race, the machine is not repeated.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs of the quick form. One takes about four seconds.
const QUICK_ROUNDS: u32 = 20;

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

/// Runs all of it; an error if a promise did not hold.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(chatkeep_tests::stack::machine::now_us);
    println!("seed {seed}");
    let rounds = if arguments.quick { QUICK_ROUNDS } else { arguments.rounds };
    let started = Instant::now();
    let mut random = Random::new(seed);
    let mut failures = Failures::default();
    let stress = prove_capture_stress::stress(&mut random, rounds, &mut failures)?;
    let crashes = prove_capture_crashes::crashes(&mut random, arguments.crashes, &mut failures)?;
    let kills = prove_capture_kills::kills(&mut random, arguments.kills, &mut failures)?;
    let held = failures.count() == 0;
    let totals = &stress.totals;
    println!(
        "{}",
        json!({
            "seed": seed, "rounds": stress.runs, "captures": totals.captures, "spans": totals.spans, "bases": totals.bases,
            "collected": totals.collected, "patched_pages": totals.patched_pages, "restores": totals.restores,
            "corrupt": stress.corrupt, "backward": stress.backward, "kills": totals.kills, "gaps": totals.gaps,
            "refused": totals.refused, "compared": totals.compared, "writer_errors": stress.writer_errors,
            "crashes": format!("{:?}", crashes.figures),
            "killed": kills.kills, "killed_restores": kills.restores,
            "failures": failures.count(), "seconds": started.elapsed().as_secs(), "held": held,
        })
    );
    ensure!(held, "not every promise held");
    Ok(())
}
