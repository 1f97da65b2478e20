//! The short form of what `cargo xtask prove capture` does for long: a world in which the service crashes all the time, a
//! process with the service in it that is killed, and a month of use.
//!
//! Another seed each time, which is printed with a failure; `CHATKEEP_SEED` repeats an earlier one.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use chatkeep_tests::simulation::{play, year};
use serde_json::Value;

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_chatkeep-writer").into()
}

fn folder() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

fn seed() -> u64 {
    let seed = std::env::var("CHATKEEP_SEED").ok().and_then(|text| text.parse().ok());
    seed.unwrap_or_else(chatkeep_tests::stack::machine::now_us)
}

#[test]
fn every_announced_point_survives_crashes_at_store_calls_and_between_steps() {
    for world in 0..3 {
        let seed = seed() + world;
        let (figures, result) = play::play(&folder(), &program(), 20, seed);
        result.unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        println!("seed {seed}: {figures:?}");
        assert!(figures.crashes >= 20 && figures.restores > figures.announced, "{figures:?}");
    }
}

#[test]
fn a_month_of_hourly_use_restores_and_forgets_what_is_old() {
    let seed = seed();
    let report =
        year::live(&folder(), &program(), 26, seed).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    println!("seed {seed}: {report:?}");
    assert_eq!(report.entries, 26 * 24);
    // Hours of the first days are forgotten, and deleted a week later.
    assert!(report.points < report.entries && report.deletes > 0, "{report:?}");
    assert!(report.chain_max <= 60);
}

#[test]
fn a_process_with_the_service_in_it_survives_kills_at_any_moment() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_chatkeep-tests"));
    command.args(["prove", "capture-kills", "--kills", "12", "--seed", &seed().to_string()]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let figures: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(figures["kills"], 12);
    assert!(figures["restores"].as_u64().unwrap() > 0, "{figures}");
}
