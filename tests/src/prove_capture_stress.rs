//! The stress matrix: apps with random habits, captures in every way, each restored and checked.

use std::path::{Path, PathBuf};

use anyhow::Result;
use chatkeep_tests::stack::programs;
use chatkeep_tests::stack::random::Random;
use chatkeep_tests::stress::run::{Length, run};
use chatkeep_tests::stress::{Habits, Totals};

use crate::prove_capture::Failures;

/// Captures that are tried in a run, and how long nobody looks at most.
const LENGTH: Length = Length { captures: 30, absence_ms: 120 };

/// What the runs gave.
#[derive(Default)]
pub(crate) struct Stress {
    pub(crate) totals: Totals,
    pub(crate) runs: u32,
    /// Runs in which somebody wrote who does not wait for locks.
    pub(crate) runs_without_waiting: u32,
    pub(crate) encrypted: u32,
    /// Restores that failed or gave what was never committed.
    pub(crate) corrupt: u64,
    /// Restores older than what was acknowledged, or than the one before.
    pub(crate) backward: u64,
    /// Errors that a writer saw.
    pub(crate) writer_errors: u64,
    /// Locks of ours on a file of an app.
    pub(crate) locks: u64,
}

/// Plays `runs` of them.
pub(crate) fn stress(random: &mut Random, runs: u32, failures: &mut Failures) -> Result<Stress> {
    let program = programs::ours("chatkeep-writer")?;
    let has_cipher = programs::installed("sqlcipher").is_some();
    let mut stress = Stress::default();
    for number in 1..=runs {
        let seed = random.number();
        let habits = Habits::random(&mut Random::new(seed), has_cipher);
        // Mostly in memory: this is about order, not about disks; some on a disk, which has other clocks.
        let folder = if number.is_multiple_of(4) { std::env::temp_dir() } else { memory() };
        play(&mut stress, &folder, &program, &habits, (number, seed), failures);
        if number.is_multiple_of(10) || number == runs {
            let totals = &stress.totals;
            println!(
                "stress {number} of {runs}: {} captures, {} restores, {} kills, {} failures",
                totals.captures,
                totals.restores,
                totals.kills,
                failures.count()
            );
        }
    }
    Ok(stress)
}

/// A folder in memory where there is one.
pub(crate) fn memory() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

fn play(
    stress: &mut Stress,
    folder: &Path,
    program: &Path,
    habits: &Habits,
    (number, seed): (u32, u64),
    failures: &mut Failures,
) {
    stress.runs += 1;
    stress.encrypted += u32::from(habits.cipher);
    stress.runs_without_waiting += u32::from(habits.alone());
    let (totals, result) = run(folder, program, habits, LENGTH, seed);
    stress.totals.add(&totals);
    let Err(error) = result else { return };
    if error.contains("a writer ended") {
        stress.writer_errors += 1;
    } else if error.contains("a lock of ours") {
        stress.locks += 1;
    } else if error.contains("went back") || error.contains("was acknowledged") {
        stress.backward += 1;
    } else {
        stress.corrupt += 1;
    }
    failures.add(format!("stress {number}, seed {seed}, {habits:?}: {error}"));
}
