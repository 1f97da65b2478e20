//! `cargo xtask prove spine`: the long, seeded form of the tests. The seed is printed first, the figures last.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chatkeep_tests::stack::random::Random;
use chatkeep_tests::stack::scan::{self, Needle};
use chatkeep_tests::stack::{Machine, Settings, Stack};
use serde_json::json;

use crate::{prove_attempts, prove_changes, prove_rounds};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Few rounds: less than five minutes.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// How many rounds.
    #[arg(long, default_value_t = 60)]
    rounds: u32,
    /// How many changes of password and key are cut off [default: a third of the rounds].
    #[arg(long)]
    changes: Option<u32>,
    /// Repeat the choices of an earlier run. What the kills hit differs: the machine is not repeated.
    #[arg(long)]
    seed: Option<u64>,
}

/// Rounds of the quick form. One takes about 12 s.
const QUICK_ROUNDS: u32 = 12;

/// A password and a message that are looked for where they must not be.
pub(crate) const PASSWORD: &str = "zebra-crossing-4711-planted";
pub(crate) const PLANTED: &str = "planted message: meet me where the river bends, 23:15";

/// What was measured, over all rounds.
#[derive(Default)]
pub(crate) struct Figures {
    /// Recovery points that were announced.
    pub(crate) captures: u64,
    /// Restores that were made and checked.
    pub(crate) restores: u64,
    /// Restores that failed, or whose result was wrong.
    pub(crate) corrupt: u64,
    /// Announced points that were gone after a kill.
    pub(crate) points_lost: u64,
    /// Points that lack a message committed before their time, or go back behind an older point.
    pub(crate) backward: u64,
    /// Seconds of writing that were lost when the machine was, one for each round.
    pub(crate) lost_s: Vec<f64>,
    /// SIGKILLs sent.
    pub(crate) kills: u64,
    /// Sockets other than unix ones that the service asked for, where somebody looked.
    pub(crate) inet_sockets: Vec<String>,
    /// Times the writer saw an error, which it never must because of us.
    pub(crate) writer_errors: u64,
    /// Guesses that were answered while the vault was killed after each answer: exactly ten.
    pub(crate) granted: u64,
    /// Guesses that were answered while the vault was killed at any moment: at most ten, because an answer can be lost.
    pub(crate) granted_under_fire: u64,
    /// Changes of password and key that were cut off.
    pub(crate) changes: u64,
    /// What went wrong, in words.
    pub(crate) failures: Vec<String>,
}

impl Figures {
    pub(crate) fn fail(&mut self, what: String) {
        eprintln!("  \u{2717} {what}");
        self.failures.push(what);
    }
}

/// Everything that a round needs, and what it leaves behind.
pub(crate) struct Proof {
    pub(crate) stack: Stack,
    /// How its machines are set up.
    pub(crate) settings: Settings,
    pub(crate) random: Random,
    pub(crate) figures: Figures,
    /// What must not be readable.
    pub(crate) needles: Vec<Needle>,
    /// Where it must not be.
    pub(crate) places: Vec<PathBuf>,
    /// The message is in what the service really read.
    pub(crate) planted: bool,
}

/// Runs the rounds; an error if a promise did not hold.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(chatkeep_tests::stack::machine::now_us);
    println!("seed {seed}");
    let rounds = if arguments.quick { QUICK_ROUNDS } else { arguments.rounds };
    let started = Instant::now();
    let mut needles = scan::text("the planted message", PLANTED);
    needles.extend(scan::text("the password", PASSWORD));
    let stack = Stack::start()?;
    let places = vec![stack.store(), stack.vault.data(), stack.vault.log()];
    let random = Random::new(seed);
    let settings = Settings::default();
    let mut proof =
        Proof { stack, settings, random, figures: Figures::default(), needles, places, planted: false };

    for round in 1..=rounds {
        if let Err(error) = prove_rounds::round(&mut proof, round) {
            proof.figures.fail(format!("round {round}: {error:#}"));
        }
        let figures = &proof.figures;
        println!(
            "round {round} of {rounds}: {} points, {} restores, {} kills, {} failures, {:.0} s",
            figures.captures,
            figures.restores,
            figures.kills,
            figures.failures.len(),
            started.elapsed().as_secs_f64()
        );
    }
    if let Err(error) = prove_changes::changes(&mut proof, arguments.changes.unwrap_or(rounds.div_ceil(3))) {
        proof.figures.fail(format!("changes: {error:#}"));
    }
    if let Err(error) = prove_attempts::attempts(&mut proof) {
        proof.figures.fail(format!("attempts: {error:#}"));
    }
    let hits = scan::scan(&proof.places, &proof.needles)?;
    for hit in &hits {
        proof.figures.fail(format!("{} is readable in {} at {}", hit.needle, hit.file.display(), hit.at));
    }
    if !proof.planted {
        proof
            .figures
            .fail("the planted message was in no database: nothing was proved by not finding it".into());
    }
    finish(proof, seed, rounds, hits.len(), started.elapsed())
}

fn finish(proof: Proof, seed: u64, rounds: u32, hits: usize, took: Duration) -> Result<()> {
    let Proof { stack, mut figures, .. } = proof;
    figures.lost_s.sort_by(f64::total_cmp);
    let rounded = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
    let median = figures.lost_s.get(figures.lost_s.len() / 2).copied().unwrap_or_default();
    let worst = figures.lost_s.last().copied().unwrap_or_default();
    let held = figures.failures.is_empty();
    if !held {
        println!("logs and data are kept in {}", stack.keep().display());
    }
    println!(
        "{}",
        json!({
            "seed": seed, "rounds": rounds, "captures": figures.captures, "restores": figures.restores,
            "corrupt": figures.corrupt, "points_lost": figures.points_lost, "backward": figures.backward,
            "capture_max_age": Settings::default().max_age, "commits_lost_median_s": rounded(median), "commits_lost_worst_s": rounded(worst),
            "kills": figures.kills, "changes_cut_off": figures.changes, "writer_errors": figures.writer_errors, "plaintext_hits": hits,
            "attempts_granted": figures.granted, "attempts_granted_under_fire": figures.granted_under_fire,
            "failures": figures.failures.len(), "seconds": took.as_secs(), "held": held,
        })
    );
    ensure!(held, "not every promise held");
    Ok(())
}

impl Proof {
    /// A machine with a recorded bus where there is one; all it leaves behind is scanned.
    pub(crate) fn machine(&mut self, name: &str) -> Result<Machine> {
        let mut machine = self.stack.machine(name, &self.settings)?;
        let root = machine.root().to_owned();
        let has_monitor = chatkeep_tests::stack::programs::installed("dbus-monitor").is_some();
        if let Some(bus) = machine.bus.as_mut().filter(|_| has_monitor) {
            bus.record(&root).context("the bus is recorded")?;
        }
        self.places.extend(["bus.pcap", "chatkeepd.log", "courier.log"].map(|file| root.join(file)));
        machine.start()?;
        Ok(machine)
    }
}
