//! The database's primary dies while guesses are under way: a standby that has every commit goes on, one that lacks the
//! last is refused.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use chatkeep_tests::stack::programs;
use chatkeep_tests::stack::random::Random;
use chatkeep_vault_client::{CourierTransport, KdfParams, VaultError, VaultPin, register};
use chatkeep_vault_rig::local::{CONTEXT, KEY, PASSWORD, unlock};
use chatkeep_vault_rig::postgres::{Cluster, eventually};
use chatkeep_vault_rig::program::{Program, courier};
use chatkeep_vault_server::store::PostgresConfig;
use rand_core::OsRng;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::prove_vault::Figures;

/// Attempts that a vault grants (docs/vault-protocol.md, section 8).
const ATTEMPTS: u64 = 10;
/// Accounts that are guessed at when the primary dies.
const THIEVES: usize = 4;
/// A failover takes some seconds, and a cluster more to be made.
const ROUNDS_EACH: u32 = 10;

struct Served {
    folder: TempDir,
    runtime: Runtime,
    transport: CourierTransport,
}

pub(crate) fn failover(figures: &mut Figures, random: &mut Random, rounds: u32) -> Result<()> {
    for _ in 0..rounds.div_ceil(ROUNDS_EACH) {
        goes_on(figures, random).context("the newest standby takes over")?;
        is_refused(figures).context("a standby without the last commit takes over")?;
    }
    Ok(())
}

/// Every account is guessed at until it is gone, and the primary dies somewhere in it: ten answers each at most, since
/// the answer to a charged guess can be lost.
fn goes_on(figures: &mut Figures, random: &mut Random) -> Result<()> {
    let cluster = Cluster::of_three();
    let served = Served::new(&cluster.config())?;
    let program = served.serve()?;
    let pin = program.pin();
    let slots = (0..THIEVES).map(|_| served.register(&pin)).collect::<Result<Vec<_>>>()?;
    let (answered, after) = (AtomicU64::new(0), random.between(1, 30));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let thieves: Vec<_> = slots
            .iter()
            .map(|slot| scope.spawn(|| served.guess_until_destroyed(&pin, slot, &answered)))
            .collect();
        let killer = scope.spawn(|| {
            eventually("enough was guessed", || {
                answered.load(Ordering::Relaxed) >= after || over.load(Ordering::Relaxed)
            });
            cluster.node("a").kill();
            cluster.fail_over();
        });
        let ended: Result<Vec<u64>> =
            thieves.into_iter().map(|thief| thief.join().expect("a thief does not panic")).collect();
        over.store(true, Ordering::Relaxed);
        killer.join().expect("the cluster fails over");
        for granted in ended? {
            figures.guesses += granted;
            figures.evaluations_over_limit += granted.saturating_sub(ATTEMPTS);
        }
        figures.failovers += 1;
        Ok(())
    })
}

/// The two servers with the last commit die; somebody promotes the third.
fn is_refused(figures: &mut Figures) -> Result<()> {
    let cluster = Cluster::of_three();
    let mut config = cluster.config();
    config.patience.seconds = 3;
    let served = Served::new(&config)?;
    let program = served.serve()?;
    let pin = program.pin();
    let slot = served.register(&pin)?;
    cluster.node("c").stop();
    ensure!(
        matches!(served.guess(&pin, &slot), Err(VaultError::WrongPassword { left: 9, .. })),
        "one attempt"
    );
    cluster.node("a").kill();
    cluster.node("b").kill();
    cluster.node("c").start();
    cluster.node("c").sql("SELECT pg_promote()");
    cluster.rebuild("b", "c");
    figures.failovers += 1;
    figures.rollbacks_tried += 1;
    ensure!(
        served.guess(&pin, &slot).is_err_and(|error| !matches!(error, VaultError::WrongPassword { .. })),
        "it guessed"
    );
    let said = program.failed();
    ensure!(said.contains("was durable"), "it stopped, but why? {said}");
    match served.serve() {
        Ok(_) => bail!("it serves without the last commit"),
        Err(said) => ensure!(format!("{said}").contains("does not serve"), "refused, but why? {said}"),
    }
    figures.rollbacks_refused += 1;
    Ok(())
}

impl Served {
    fn new(config: &PostgresConfig) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let PostgresConfig { hosts, database, user, patience, .. } = config;
        let text = format!(
            "data = '{}'\nlisten = '127.0.0.1:0'\ninsecure_dev = true\n[store]\nkind = 'postgres'\nhosts = {hosts:?}\n\
             database = {database:?}\nuser = {user:?}\npatience = '{}s'\n",
            folder.path().join("data").display(),
            patience.seconds
        );
        let runtime = Runtime::new()?;
        let transport = runtime.block_on(async { courier(folder.path()) });
        let served = Self { folder, runtime, transport };
        std::fs::write(served.config(), text)?;
        let made = served.command("init")?.output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(served)
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("vault.toml")
    }

    fn command(&self, what: &str) -> Result<Command> {
        let mut command = Command::new(programs::ours("chatkeep-vault")?);
        command.arg(what).arg("--config").arg(self.config());
        Ok(command)
    }

    fn serve(&self) -> Result<Program> {
        Program::start(&mut self.command("serve")?).listening().map_err(anyhow::Error::msg)
    }

    fn register(&self, pin: &VaultPin) -> Result<Vec<u8>> {
        let (pins, kdf) = (std::slice::from_ref(pin), KdfParams::TESTING);
        let mut rng = OsRng;
        let registered = register(&self.transport, pins, 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut rng);
        Ok(self.runtime.block_on(registered)?.slot)
    }

    fn guess(&self, pin: &VaultPin, slot: &[u8]) -> Result<(), VaultError> {
        let guessed = unlock(&self.transport, std::slice::from_ref(pin), slot, b"wrong");
        self.runtime.block_on(guessed).map(drop)
    }

    /// How many guesses were answered.
    fn guess_until_destroyed(&self, pin: &VaultPin, slot: &[u8], all: &AtomicU64) -> Result<u64> {
        let mut answered = 0;
        loop {
            match self.guess(pin, slot) {
                Err(VaultError::WrongPassword { .. }) => {
                    answered += 1;
                    all.fetch_add(1, Ordering::Relaxed);
                }
                Err(VaultError::Destroyed { .. }) => return Ok(answered),
                Err(VaultError::Busy { .. } | VaultError::Unreachable { .. }) => {}
                Err(error) => bail!("a guess: {error}"),
                Ok(()) => bail!("a wrong password opens it"),
            }
        }
    }
}
