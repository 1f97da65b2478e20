//! `chatkeep-tests`: shows and proves what Chatkeep promises, with the real programs. `cargo xtask` builds and runs it.

mod demo;
mod demo_steps;
mod prove;
mod prove_attempts;
mod prove_changes;
mod prove_rounds;

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
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Prove(Prove::Spine(arguments)) => prove::run(&arguments),
    }
}
