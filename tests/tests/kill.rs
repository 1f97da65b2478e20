//! SIGKILL to the service, the vault and the app at random moments, a hundred times: a run of `chatkeep-tests prove
//! spine`.
//!
//! `CHATKEEP_ROUNDS` makes it longer, `CHATKEEP_SEED` repeats the choices of an earlier run.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use serde_json::Value;

/// About ten seconds each, with six kills or so: more than a hundred in all.
const ROUNDS: &str = "16";
/// The least there must be of them.
const KILLS_MIN: u64 = 100;

#[test]
fn every_announced_recovery_point_survives_kills_and_the_vault_counts_ten() {
    let rounds = std::env::var("CHATKEEP_ROUNDS").unwrap_or_else(|_| ROUNDS.to_owned());
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatkeep-tests"));
    command.args(["prove", "spine", "--rounds", &rounds]);
    if let Ok(seed) = std::env::var("CHATKEEP_SEED") {
        command.args(["--seed", &seed]);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let figures: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    // nothing held that was not tried
    for tried in ["captures", "restores", "kills"] {
        assert!(figures[tried].as_u64().unwrap() > 0, "{figures}");
    }
    if std::env::var_os("CHATKEEP_ROUNDS").is_none() {
        assert!(figures["kills"].as_u64().unwrap() >= KILLS_MIN, "{figures}");
    }
    for none in ["corrupt", "points_lost", "backward", "writer_errors", "plaintext_hits", "failures"] {
        assert_eq!(figures[none], 0, "{figures}");
    }
    assert_eq!(figures["attempts_granted"], 10, "{figures}");
    assert!(figures["attempts_granted_under_fire"].as_u64().unwrap() <= 10, "{figures}");
}
