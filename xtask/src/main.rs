//! `cargo xtask`: build, test and demonstrate Chatkeep. `cargo xtask --help` lists the commands.

mod build;
mod test;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test and demonstrate Chatkeep")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that must hold: format, lints, tests, units. Installs Debian packages when root.
    Test,
    /// The whole story in about a minute: back up, kill, lose the machine, restore, guess passwords.
    Demo {
        /// Play it with a copy of this SQLite database.
        #[arg(long, value_name = "FILE")]
        database: Option<PathBuf>,
    },
    /// The long, seeded form of the tests: prints its seed first and its figures as JSON last.
    #[command(subcommand)]
    Prove(Prove),
}

#[derive(Subcommand)]
enum Prove {
    /// Random writers and random kills: every announced recovery point restores, nothing is readable, ten guesses.
    Spine(Length),
    /// Apps with every habit, thousands of crashes, a year of use: every capture is a state that was committed, every
    /// announced recovery point restores, no app ever waits for us.
    Capture(Length),
    /// The vault in every order of crashes, replays, rollbacks and lies: no guess more than was told, and a way in for
    /// the owner.
    Vault(Length),
    /// Every kind of store at its real server, and weak, lying and dying ones: the contract is kept, nothing that was
    /// announced is lost, and the service has no network.
    Stores(Length),
}

/// How long, and which choices.
#[derive(clap::Args)]
struct Length {
    /// Few rounds: less than five minutes.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// How many rounds.
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Repeat the choices of an earlier run.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Test => test::run(),
        Command::Demo { database } => {
            let mut arguments: Vec<OsString> = vec!["demo".into()];
            if let Some(file) = database {
                arguments.extend(["--database".into(), std::path::absolute(file)?.into()]);
            }
            build::and_run(arguments)
        }
        Command::Prove(Prove::Spine(length)) => build::and_run(length.of("spine")),
        Command::Prove(Prove::Capture(length)) => build::and_run(length.of("capture")),
        Command::Prove(Prove::Stores(length)) => {
            test::bring_up()?;
            build::with_more_and_run(&["chatkeep-store-program"], &[], length.of("stores"))
        }
        Command::Prove(Prove::Vault(length)) => {
            test::bring_up()?;
            build::with_more_and_run(&[], &[test::FEATURES], length.of("vault"))
        }
    }
}

impl Length {
    /// The arguments of `chatkeep-tests` that prove `what`.
    fn of(self, what: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["prove".into(), what.into()];
        if self.quick {
            arguments.push("--quick".into());
        }
        for (name, value) in [("--rounds", self.rounds.map(u64::from)), ("--seed", self.seed)] {
            if let Some(value) = value {
                arguments.extend([name.into(), value.to_string().into()]);
            }
        }
        arguments
    }
}
