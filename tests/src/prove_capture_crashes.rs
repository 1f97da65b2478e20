//! The simulation: worlds in which the service crashes all the time, and its store fails.

use anyhow::Result;
use chatkeep_tests::simulation::play::play;
use chatkeep_tests::simulation::world::Figures;
use chatkeep_tests::stack::programs;
use chatkeep_tests::stack::random::Random;

use crate::prove_capture::Failures;

/// Crashes in one world: enough for some hundred points.
const CRASHES: u64 = 100;

/// What the worlds gave.
#[derive(Default)]
pub(crate) struct Crashes {
    pub(crate) figures: Figures,
    pub(crate) worlds: u64,
    /// Points that were announced and are gone.
    pub(crate) points_lost: u64,
    /// Points that do not restore, or to something else.
    pub(crate) corrupt: u64,
}

/// Plays worlds with so many crashes in all.
pub(crate) fn crashes(random: &mut Random, crashes: u64, failures: &mut Failures) -> Result<Crashes> {
    let program = programs::ours("chatkeep-writer")?;
    let folder = super::prove_capture_stress::memory();
    let mut sum = Crashes::default();
    let worlds = crashes.div_ceil(CRASHES);
    for number in 1..=worlds {
        let seed = random.number();
        let (figures, result) = play(&folder, &program, CRASHES.min(crashes), seed);
        sum.worlds += 1;
        sum.figures.add(&figures);
        if let Err(error) = result {
            let text = format!("{error:#}");
            if text.contains("is lost") {
                sum.points_lost += 1;
            } else {
                sum.corrupt += 1;
            }
            failures.add(format!("world {number}, seed {seed}: {text}"));
        }
        if number.is_multiple_of(10) || number == worlds {
            let figures = &sum.figures;
            println!(
                "world {number} of {worlds}: {} crashes, {} points, {} restores, chain {}, {} failures",
                figures.crashes,
                figures.announced,
                figures.restores,
                figures.chain_max,
                failures.count()
            );
        }
    }
    Ok(sum)
}
