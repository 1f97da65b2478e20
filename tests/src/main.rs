//! `chatkeep-tests`: shows and proves what Chatkeep promises, with the real programs. `cargo xtask` builds and runs it.

mod demo;
mod demo_steps;
mod prove;
mod prove_attempts;
mod prove_capture;
mod prove_capture_crashes;
mod prove_capture_kills;
mod prove_capture_service;
mod prove_capture_stress;
mod prove_capture_year;
mod prove_changes;
mod prove_rounds;
mod prove_stores;
mod prove_stores_places;
mod prove_vault;
mod prove_vault_changes;
mod prove_vault_failover;
mod prove_vault_model;
mod prove_vault_quorum;
mod prove_vault_rollbacks;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "chatkeep-tests", version, about = "Shows and proves what Chatkeep promises")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole story: back up, kill, lose the machine, restore, guess passwords.
    Demo(demo::Arguments),
    /// The long, seeded form of the tests.
    #[command(subcommand)]
    Prove(Prove),
}

#[derive(Subcommand)]
enum Prove {
    /// Random writers and random kills.
    Spine(prove::Arguments),
    /// Captures under stress, crashes, and a year of use.
    Capture(prove_capture::Arguments),
    /// The vault in every order of crashes, rollbacks and lies.
    Vault(prove_vault::Arguments),
    /// Every kind of store at its real server, and weak, lying and dying ones.
    Stores(prove_stores::Arguments),
    /// The kills of `capture` alone.
    #[command(hide = true)]
    CaptureKills(prove_capture_kills::Alone),
    /// The process that `capture` kills.
    #[command(hide = true)]
    CaptureChild(prove_capture_kills::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Prove(Prove::Spine(arguments)) => prove::run(&arguments),
        Command::Prove(Prove::Capture(arguments)) => prove_capture::run(&arguments),
        Command::Prove(Prove::Vault(arguments)) => prove_vault::run(&arguments),
        Command::Prove(Prove::Stores(arguments)) => prove_stores::run(&arguments),
        Command::Prove(Prove::CaptureKills(arguments)) => prove_capture_kills::alone(&arguments),
        Command::Prove(Prove::CaptureChild(arguments)) => prove_capture_kills::live(&arguments),
    }
}
