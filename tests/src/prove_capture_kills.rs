//! SIGKILL to a whole process with the service in it, between any two system calls; what it left is opened by the next.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use chatkeep_tests::simulation::child;
use chatkeep_tests::stack::programs;
use chatkeep_tests::stack::random::Random;

use serde_json::json;

use crate::prove_capture::Failures;

/// Kills of one world.
const KILLS: u64 = 50;
/// A process is killed so long after its start at the latest: it has opened everything and made some points by then.
const LATEST_MS: u64 = 600;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Everything is in it.
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    seed: u64,
    /// How many processes there were before.
    #[arg(long)]
    start: u64,
}

/// The process that is killed.
pub(crate) fn live(arguments: &Arguments) -> Result<()> {
    let program = programs::ours("chatkeep-writer")?;
    child::live(&arguments.folder, &program, arguments.seed, arguments.start)
}

#[derive(clap::Args)]
pub(crate) struct Alone {
    #[arg(long)]
    kills: u64,
    #[arg(long)]
    seed: u64,
}

/// This part alone; the figures as JSON last.
pub(crate) fn alone(arguments: &Alone) -> Result<()> {
    let mut failures = Failures::default();
    let sum = kills(&mut Random::new(arguments.seed), arguments.kills, &mut failures)?;
    println!("{}", json!({ "seed": arguments.seed, "kills": sum.sent, "restores": sum.restores }));
    ensure!(failures.count() == 0, "not every promise held");
    Ok(())
}

/// What the kills gave.
#[derive(Default)]
pub(crate) struct Kills {
    /// SIGKILLs.
    pub(crate) sent: u64,
    pub(crate) restores: u64,
    pub(crate) points_lost: u64,
    pub(crate) corrupt: u64,
}

/// Kills so many processes, and checks what is left of each world.
pub(crate) fn kills(random: &mut Random, kills: u64, failures: &mut Failures) -> Result<Kills> {
    let mut sum = Kills::default();
    while sum.sent < kills {
        let seed = random.number();
        let mut folder = tempfile::Builder::new().prefix("ck").tempdir()?;
        if let Err(error) = world(folder.path(), seed, KILLS.min(kills), &mut sum) {
            let text = format!("{error:#}");
            if text.contains("is lost") {
                sum.points_lost += 1;
            } else {
                sum.corrupt += 1;
            }
            folder.disable_cleanup(true);
            failures.add(format!("kills, seed {seed}, {}: {text}", folder.path().display()));
            sum.sent += KILLS;
        }
        println!("{} kills of {kills}: {} restores, {} failures", sum.sent, sum.restores, failures.count());
    }
    Ok(sum)
}

fn world(folder: &Path, seed: u64, kills: u64, sum: &mut Kills) -> Result<()> {
    let program = programs::ours("chatkeep-writer")?;
    let mut random = Random::new(seed);
    let own = std::env::current_exe()?;
    let log = folder.join("log");
    for start in 0..kills {
        let mut command = programs::leashed(&own);
        command.args(["prove", "capture-child", "--folder"]).arg(folder);
        command.args(["--seed", &seed.to_string(), "--start", &start.to_string()]);
        let log_file = std::fs::File::create(&log)?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file).spawn()?;
        // The first one has to come to something.
        let wait = if start == 0 { LATEST_MS * 4 } else { random.below(LATEST_MS) };
        std::thread::sleep(Duration::from_micros(wait * 1000 + random.below(1000)));
        if let Some(status) = child.try_wait()? {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("start {start} ended by itself ({status}): {said}");
        }
        child.kill().context("killing")?;
        child.wait()?;
        sum.sent += 1;
    }
    let restored = child::check(folder, &program, seed, kills)?;
    ensure!(restored > 0, "nothing was restored");
    sum.restores += restored;
    Ok(())
}
