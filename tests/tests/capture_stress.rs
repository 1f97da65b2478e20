//! Captures under a writer that goes on writing: every one is restored, and must be a state the writer committed.
//!
//! Rates are what two busy cores can follow between two rounds of the log, with a database that stays small enough to be
//! checked row by row. A writer at full speed is left to the negative control. `cargo xtask prove capture` has the long
//! form, with random habits.
//!
//! The writers are processes of their own that know nothing of Chatkeep, and do not wait for locks when they are alone.
//! Every restored state is checked row by row; it must be at least as new as what was acknowledged before the capture
//! began, and commit numbers never go back.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use chatkeep_tests::stress::run::{Length, run};
use chatkeep_tests::stress::{Habits, Rig};

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_chatkeep-writer").into()
}

/// In memory where there is one: the tests are about order, not about disks.
fn folder() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

/// Another seed each time; it is printed with a failure.
fn seed() -> u64 {
    let seed = std::env::var("CHATKEEP_SEED").ok().and_then(|text| text.parse().ok());
    seed.unwrap_or_else(chatkeep_tests::stack::machine::now_us)
}

#[track_caller]
fn stress(habits: &Habits, captures: u32) {
    let seed = seed();
    let length = Length { captures, absence_ms: 60 };
    let (totals, result) = run(&folder(), &program(), habits, length, seed);
    println!("seed {seed}: {habits:?}: {totals:?}");
    result.unwrap_or_else(|error| panic!("seed {seed}: {habits:?}: {error}"));
    assert!(totals.restores > 0 && totals.compared == 1);
}

#[test]
fn log_with_rare_checkpoints() {
    stress(&Habits::one("--journal wal --autocheckpoint 1000 --rate 1500"), 30);
}

#[test]
fn log_with_checkpoints_every_100_pages() {
    stress(&Habits::one("--journal wal --autocheckpoint 100 --rate 300"), 30);
}

#[test]
fn log_with_checkpoints_every_20_pages() {
    stress(&Habits::one("--journal wal --autocheckpoint 20 --rate 100"), 30);
}

#[test]
fn log_truncated_after_each_message() {
    stress(&Habits::one("--journal wal --truncate-each --rate 100"), 30);
}

#[test]
fn database_closed_and_opened_again_and_again() {
    stress(&Habits::one("--journal wal --reopen-every 4 --rate 100"), 30);
}

#[test]
fn rollback_journal() {
    stress(&Habits::one("--journal delete --rate 15 --cache-pages 5 --rollback-every 20"), 30);
}

#[test]
fn page_sizes_vacuum_and_journal_modes_change_meanwhile() {
    let options =
        "--journal wal --auto-vacuum full --rate 40 --vacuum-every 23 --resize-every 41 --switch-every 17";
    stress(&Habits::one(options), 30);
}

#[test]
fn two_writers_and_a_visitor_with_other_habits() {
    let shared = "--shared --busy-timeout-ms 20000";
    let mut habits = Habits::one(&format!("--journal wal --autocheckpoint 20 --rate 100 {shared}"));
    let other = Habits::one(&format!("--journal wal --autocheckpoint 1000 --rate 50 --mmap-mb 64 {shared}"));
    habits.writers.extend(other.writers);
    habits.visitors = Habits::one(&format!("--visitor --autocheckpoint 0 {shared}")).writers;
    stress(&habits, 30);
}

#[test]
fn sqlcipher_with_a_log() {
    stress(&Habits::encrypted("--journal wal --autocheckpoint 100 --rate 200"), 20);
}

#[test]
fn sqlcipher_with_a_rollback_journal() {
    stress(&Habits::encrypted("--journal delete --rate 15"), 20);
}

/// With the proof that nothing was missed switched off, corruption must be found: else the tests above prove nothing.
#[test]
fn without_the_proof_the_harness_finds_corruption() {
    let habits = Habits::one("--journal wal --autocheckpoint 20 --rate 0");
    let mut rig = Rig::start(&folder(), &program(), habits, seed()).unwrap();
    rig.disable_proof().unwrap();
    for _ in 0..60 {
        // Long enough for the log to go round several times unseen.
        std::thread::sleep(Duration::from_millis(20));
        if let Err(found) = rig.capture() {
            println!("found: {}", found.lines().next().unwrap_or_default());
            return;
        }
    }
    panic!("nothing was found in {:?}", rig.totals);
}
