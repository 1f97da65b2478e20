//! `cargo xtask prove vault`: no order of crashes, replays, rollbacks and lies gives a thief more guesses, and none takes
//! the owner's last way in. The seed is printed first, the figures last.
//!
//! | part | what is real | what is ours |
//! | --- | --- | --- |
//! | model | the vault, its thread and its check at start | store and anchor in memory; records are not encrypted |
//! | rollbacks | the program, SoftHSM2, swtpm, TLS, the disk that is put back | |
//! | vaults | vaults and clients in this process, on real disks | the network between them, who lies |
//! | changes | the same | which messages arrive, and a day that passes |
//! | failover | PostgreSQL with two synchronous standbys, the program | |

use std::time::Instant;

use anyhow::{Result, ensure};
use chatkeep_tests::stack::random::Random;
use serde_json::json;

use crate::prove_capture::Failures;
use crate::{
    prove_vault_changes, prove_vault_failover, prove_vault_model, prove_vault_quorum, prove_vault_rollbacks,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Little of everything: less than five minutes.
    #[arg(long, conflicts_with_all = ["rounds", "depth"])]
    quick: bool,
    /// How many rounds each part has.
    #[arg(long, default_value_t = 60)]
    rounds: u32,
    /// How many steps the model goes in every direction [default: 4].
    #[arg(long)]
    depth: Option<usize>,
    /// Repeat the choices of an earlier run. Where processes race, the machine is not repeated.
    #[arg(long)]
    seed: Option<u64>,
}

/// Rounds and depth of the quick form.
const QUICK: (u32, usize) = (6, 3);
const DEPTH: usize = 4;

/// What was measured, over all parts.
#[derive(Default)]
pub(crate) struct Figures {
    /// Different states of the model, and steps between them.
    pub(crate) states: u64,
    pub(crate) steps: u64,
    /// Guesses that a thief was granted beyond what he was told.
    pub(crate) evaluations_over_limit: u64,
    /// Disks that were put back, and those of them that were refused.
    pub(crate) rollbacks_tried: u64,
    pub(crate) rollbacks_refused: u64,
    /// Disks put back, anchor included, below a vault that says it cannot know; it served all of them.
    pub(crate) rollbacks_unnoticed_by_file: u64,
    /// Wrong passwords that were counted.
    pub(crate) guesses: u64,
    /// SIGKILLs, and failovers of a database.
    pub(crate) kills: u64,
    pub(crate) failovers: u64,
    /// Recoveries with absent, lying and rolled back vaults.
    pub(crate) recoveries: u64,
    /// Changes of password that were cut off, and those after which no slot opened.
    pub(crate) changes: u64,
    pub(crate) slots_unopenable: u64,
    pub(crate) failures: Failures,
}

/// Runs all of it; an error if a promise did not hold.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(chatkeep_tests::stack::machine::now_us);
    println!("seed {seed}");
    let (rounds, depth) =
        if arguments.quick { QUICK } else { (arguments.rounds, arguments.depth.unwrap_or(DEPTH)) };
    let (started, mut random, mut figures) = (Instant::now(), Random::new(seed), Figures::default());
    let mut part = |name: &str, run: &dyn Fn(&mut Figures, &mut Random) -> Result<()>| {
        if let Err(error) = run(&mut figures, &mut random) {
            figures.failures.add(format!("{name}: {error:#}"));
        }
        println!("{name}: {} failures, {:.0} s", figures.failures.count(), started.elapsed().as_secs_f64());
    };
    part("model", &|figures, random| {
        prove_vault_model::model(figures, random, depth, rounds);
        Ok(())
    });
    part("rollbacks", &|figures, random| {
        prove_vault_rollbacks::rollbacks(figures, random, rounds);
        Ok(())
    });
    part("vaults", &|figures, random| prove_vault_quorum::quorum(figures, random, rounds));
    part("changes", &|figures, _| prove_vault_changes::changes(figures, arguments.quick));
    part("failover", &|figures, random| prove_vault_failover::failover(figures, random, rounds));
    finish(&figures, seed, rounds, depth, started)
}

fn finish(figures: &Figures, seed: u64, rounds: u32, depth: usize, started: Instant) -> Result<()> {
    let held = figures.failures.count() == 0
        && figures.evaluations_over_limit == 0
        && figures.slots_unopenable == 0
        && figures.rollbacks_tried == figures.rollbacks_refused;
    println!(
        "{}",
        json!({
            "seed": seed, "rounds": rounds, "depth": depth, "states": figures.states, "steps": figures.steps,
            "evaluations_over_limit": figures.evaluations_over_limit, "rollbacks_tried": figures.rollbacks_tried,
            "rollbacks_refused": figures.rollbacks_refused, "rollbacks_unnoticed_by_file": figures.rollbacks_unnoticed_by_file,
            "guesses": figures.guesses, "kills": figures.kills, "failovers": figures.failovers, "recoveries": figures.recoveries,
            "changes_cut_off": figures.changes, "slots_unopenable": figures.slots_unopenable,
            "failures": figures.failures.count(), "seconds": started.elapsed().as_secs(), "held": held,
        })
    );
    ensure!(held, "not every promise held");
    Ok(())
}
