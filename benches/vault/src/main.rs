//! `chatkeep-bench-vault`: guesses a second, end to end, beside what each part allows by itself in the same run.
//!
//! The vault is the real program, over TLS, on one core; its clients, and a TPM in software, are on the others. What the
//! parts cost is measured on that core, too, just before. docs/benchmarks.md has the figures.

mod clients;
mod parts;
mod program;
mod size;
#[cfg(feature = "tpm2")]
mod zgen;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use chatkeep_vault_rig::KeyDevice;
use chatkeep_vault_rig::soft_token::SoftToken;
use chatkeep_vault_rig::swtpm::Swtpm;
use clap::{Parser, Subcommand};
use serde_json::json;

use clients::Rates;
use parts::Parts;
use program::{Program, Settings};

/// Measures a vault.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Guesses a second, for each backend
    Guesses {
        /// The program; built with --profile dist, or --release
        #[arg(long)]
        program: PathBuf,
        /// Where the keys are
        #[arg(long, value_delimiter = ',', default_values = ["soft", "pkcs11"])]
        backends: Vec<String>,
        /// How many clients wait for an answer at the same time
        #[arg(long, value_delimiter = ',', default_values = ["1", "16", "256"])]
        clients: Vec<usize>,
        /// How long each is measured
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Disk, memory and time to start with many accounts
    Size {
        /// The program
        #[arg(long)]
        program: PathBuf,
        /// How many accounts
        #[arg(long, default_value_t = 1_000_000)]
        accounts: usize,
    },
    /// What the parts of the vault with these settings cost; run by `guesses`
    #[command(hide = true)]
    Parts {
        /// Settings of a vault that is made and does not run
        config: PathBuf,
        /// How many writes a commit has
        #[arg(long, value_delimiter = ',')]
        batches: Vec<usize>,
    },
}

/// The core of the vault.
const VAULT_CORE: usize = 0;

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Guesses { program, backends, clients, seconds } => {
            let cores = std::thread::available_parallelism()?.get();
            ensure!(cores > 1, "needs a core for the vault and one for its clients");
            program::stay_off(VAULT_CORE, cores)?;
            println!(
                "| keys | clients | guesses/s | each, ms | the slowest part allows | of it | all in turn | of it |"
            );
            println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
            for backend in backends {
                guesses(&program, &backend, &clients, seconds)?;
            }
            Ok(())
        }
        Command::Size { program, accounts } => size::measure(&program, accounts),
        Command::Parts { config, batches } => {
            println!("{}", serde_json::to_string(&Parts::measure(&config, &batches)?)?);
            Ok(())
        }
    }
}

fn guesses(program: &std::path::Path, backend: &str, clients: &[usize], seconds: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let device: Option<Box<dyn KeyDevice>> = match backend {
        "soft" => None,
        "pkcs11" => Some(Box::new(SoftToken::new())),
        "tpm2" => Some(Box::new(Swtpm::new())),
        _ => bail!("the backends are soft, pkcs11 and tpm2, not {backend}"),
    };
    let settings = match &device {
        None => Settings::soft(folder.path()),
        Some(device) => Settings::on(folder.path(), &**device),
    };
    settings.init(program)?;
    let parts = settings.parts(VAULT_CORE, clients).context("measuring the parts")?;
    let vault = Program::serve(program, &settings, VAULT_CORE)?;
    let rates = clients::measure(&vault, clients, seconds)?;
    for rates in &rates {
        let allowed = parts.allow(rates);
        let (name, slowest) = allowed.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are four");
        let in_turn = 1.0 / allowed.iter().map(|(_, allowed)| 1.0 / allowed).sum::<f64>();
        let Rates { clients, guesses, .. } = rates;
        println!(
            "| {backend} | {clients} | {guesses:.0} | {:.1} | {slowest:.0} ({name}) | {:.2} | {in_turn:.0} | {:.2} |",
            *clients as f64 * 1000.0 / guesses,
            guesses / slowest,
            guesses / in_turn,
        );
    }
    let cpu = vault.cpu_seconds()?;
    eprintln!(
        "{}",
        json!({ "backend": backend, "questions": rates.iter().map(|r| r.questions).collect::<Vec<_>>(), "parts": parts, "cpu_s": cpu })
    );
    Ok(())
}
