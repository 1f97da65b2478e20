//! One run: an app with these habits, a follower that comes and goes, captures, and in the end a comparison.

use std::path::Path;
use std::time::Duration;

use super::habits::Habits;
use super::locks::LockWatch;
use super::rig::{Outcome, Rig, Totals};
use crate::stack::random::Random;

/// How long and how wild.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Captures that are tried.
    pub captures: u32,
    /// The follower sleeps or is gone up to so long, while the app goes on.
    pub absence_ms: u64,
}

/// Plays one run. What happened until an error is in the totals.
pub fn run(
    parent: &Path,
    program: &Path,
    habits: &Habits,
    length: Length,
    seed: u64,
) -> (Totals, Result<(), String>) {
    let mut rig = match Rig::start(parent, program, habits.clone(), seed) {
        Ok(rig) => rig,
        Err(error) => return (Totals::default(), Err(error)),
    };
    let watch = LockWatch::start(&rig.app());
    let mut random = Random::new(seed ^ 0x5eed);
    let played = play(&mut rig, length, &mut random).and_then(|()| rig.finish());
    let seen = watch.finish();
    rig.totals.lock_looks += seen.looks;
    let result = match seen.locks.first() {
        Some(lock) => Err(format!("a lock of ours on a file of the app: {lock}")),
        None => played,
    };
    if result.is_err() {
        eprintln!("kept: {}", rig.keep().display());
    }
    (rig.totals.clone(), result)
}

fn play(rig: &mut Rig, length: Length, random: &mut Random) -> Result<(), String> {
    for number in 1..=length.captures {
        let step = |error: String| format!("capture {number}: {error}");
        match random.below(20) {
            // The app goes on while nobody looks.
            0..3 => std::thread::sleep(Duration::from_millis(random.below(length.absence_ms + 1))),
            3 | 4 => {
                rig.drop_follower();
                std::thread::sleep(Duration::from_millis(random.below(length.absence_ms + 1)));
            }
            5 | 6 => {
                rig.kill_one().map_err(step)?;
                // Also the state that a dead app left behind is captured whole.
                if random.one_in(2) {
                    rig.capture_somehow().map_err(step)?;
                }
                rig.revive().map_err(step)?;
            }
            _ => rig.follow_for(Duration::from_millis(random.below(40))).map_err(step)?,
        }
        let outcome = rig.capture_somehow().map_err(step)?;
        rig.check_writers().map_err(step)?;
        if outcome == Outcome::Nothing && random.one_in(4) {
            rig.drop_follower();
        }
    }
    Ok(())
}
