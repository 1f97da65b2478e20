//! Somebody copies the vault's disk, burns attempts, and puts the copy back: it must not serve, and the newest disk must.
//! With an anchor that is a file, and goes back with the disk, it serves, and says that it cannot know.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use chatkeep_tests::stack::programs;
use chatkeep_tests::stack::random::Random;
use chatkeep_vault_client::{CourierTransport, KdfParams, VaultError, VaultPin, register};
use chatkeep_vault_rig::KeyDevice;
use chatkeep_vault_rig::local::{CONTEXT, KEY, PASSWORD, unlock};
use chatkeep_vault_rig::program::{Program, courier};
use chatkeep_vault_rig::soft_token::SoftToken;
use chatkeep_vault_rig::swtpm::Swtpm;
use rand_core::OsRng;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::prove_vault::Figures;

/// Attempts that a vault grants (docs/vault-protocol.md, section 8).
const ATTEMPTS: u64 = 10;

/// What binds the state of the vault, and what is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A file, and the database alone is put back.
    DatabaseAlone,
    /// A file, and the whole disk is put back.
    File,
    /// A PKCS#11 token, and the whole disk.
    Token,
    /// A TPM, and the whole disk.
    Tpm,
    /// Two other vaults, and the whole disk.
    Witnesses,
}

const KINDS: [Kind; 5] = [Kind::DatabaseAlone, Kind::Token, Kind::Tpm, Kind::Witnesses, Kind::File];

/// A vault with its disk, and whatever it needs beside it.
struct Guarded {
    folder: TempDir,
    device: Option<Box<dyn KeyDevice>>,
    witnesses: Vec<Program>,
    running: Option<Program>,
    runtime: Runtime,
    transport: CourierTransport,
}

pub(crate) fn rollbacks(figures: &mut Figures, random: &mut Random, rounds: u32) {
    for round in 0..rounds {
        let kind = KINDS[round as usize % KINDS.len()];
        if let Err(error) = rollback(figures, random, kind) {
            figures.failures.add(format!("rollback {round}, {kind:?}: {error:#}"));
        }
    }
}

/// One account, from its first attempt to its last, with a rollback after every few.
fn rollback(figures: &mut Figures, random: &mut Random, kind: Kind) -> Result<()> {
    let mut vault = Guarded::new(kind)?;
    let pin = vault.serve()?;
    let slot = vault.register(&pin)?;
    let mut answered = 0;
    loop {
        vault.end(figures, random);
        let copy = vault.copy(kind)?;
        vault.serve()?;
        // at least one: a copy of the newest disk is the newest disk
        let mut burnt = 0;
        for _ in 0..random.between(1, 4) {
            match vault.guess(&pin, &slot)? {
                Some(left) => {
                    (answered, burnt) = (answered + 1, burnt + 1);
                    ensure!(
                        kind == Kind::File || u64::from(left) <= ATTEMPTS - answered,
                        "{left} left after {answered}"
                    );
                }
                None => break,
            }
        }
        if burnt == 0 {
            break;
        }
        vault.end(figures, random);
        let newest = vault.put_in(&copy)?;
        if kind == Kind::File {
            let said = vault.status()?;
            ensure!(said.contains("this vault cannot know"), "it does not say what it cannot know: {said}");
            ensure!(vault.serve().is_ok(), "a disk with its anchor does not start");
            figures.rollbacks_unnoticed_by_file += 1;
            return Ok(());
        }
        figures.rollbacks_tried += 1;
        match vault.serve() {
            Ok(_) => bail!("an old disk is served"),
            Err(said) => check_reason(&said)?,
        }
        figures.rollbacks_refused += 1;
        vault.put_in(&newest)?;
        vault.serve().context("the newest disk, put in again")?;
    }
    figures.guesses += answered;
    figures.evaluations_over_limit += answered.saturating_sub(ATTEMPTS);
    ensure!(answered == ATTEMPTS, "{answered} attempts were answered");
    Ok(())
}

impl Guarded {
    fn new(kind: Kind) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let runtime = Runtime::new()?;
        let transport = runtime.block_on(async { courier(folder.path()) });
        let device: Option<Box<dyn KeyDevice>> = match kind {
            Kind::Token => Some(Box::new(SoftToken::new())),
            Kind::Tpm => Some(Box::new(Swtpm::new())),
            _ => None,
        };
        let mut vault = Self { folder, device, witnesses: Vec::new(), running: None, runtime, transport };
        let data = vault.data();
        let settings = match &vault.device {
            Some(device) => device.settings(&data, ""),
            None => settings(&data),
        };
        std::fs::write(vault.config(), &settings)?;
        vault.run("init")?;
        if kind == Kind::Witnesses {
            vault.witness(&settings)?;
        }
        Ok(vault)
    }

    /// Two vaults that remember the state of this one.
    fn witness(&mut self, settings: &str) -> Result<()> {
        let identity = self.run("fingerprint")?;
        let mut table = "[anchor]\nkinds = [\"file\", \"witness\"]\nquorum = 2\n".to_owned();
        for name in ["one", "two"] {
            let folder = self.folder.path().join(name);
            std::fs::create_dir(&folder)?;
            let config = folder.join("vault.toml");
            let text = self::settings(&folder.join("data"));
            std::fs::write(&config, format!("{text}[[witness_for]]\nidentity = \"{}\"\n", identity.trim()))?;
            let program = programs::ours("chatkeep-vault")?;
            run(Command::new(&program).arg("init").arg("--config").arg(&config))?;
            let witness =
                Program::start(Command::new(&program).arg("serve").arg("--config").arg(&config)).ready();
            let VaultPin { url, identity, .. } = witness.pin();
            let identity = chatkeep_vault_client::Identity(identity);
            table = format!("{table}[[witness]]\nidentity = \"{identity}\"\naddress = \"{url}\"\n");
            self.witnesses.push(witness);
        }
        std::fs::write(self.config(), format!("{settings}{table}"))?;
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("vault.toml")
    }

    fn command(&self, what: &str) -> Result<Command> {
        let program = programs::ours("chatkeep-vault")?;
        let mut command = match &self.device {
            Some(device) => {
                device.command(program.to_str().context("the path of the workspace is not UTF-8")?)
            }
            None => Command::new(program),
        };
        command.arg(what).arg("--config").arg(self.config());
        Ok(command)
    }

    fn run(&self, what: &str) -> Result<String> {
        run(&mut self.command(what)?)
    }

    fn status(&self) -> Result<String> {
        self.run("status")
    }

    /// An error with its words if it does not serve.
    fn serve(&mut self) -> Result<VaultPin> {
        match Program::start(&mut self.command("serve")?).listening() {
            Ok(program) => {
                let pin = program.pin();
                self.running = Some(program);
                Ok(pin)
            }
            Err(said) => bail!("{said}"),
        }
    }

    /// By a signal that it cannot or can answer.
    fn end(&mut self, figures: &mut Figures, random: &mut Random) {
        let Some(program) = self.running.take() else { return };
        if random.one_in(2) {
            drop(program.stop());
        } else {
            program.signal(Signal::KILL);
            figures.kills += 1;
        }
    }

    fn register(&self, pin: &VaultPin) -> Result<Vec<u8>> {
        let pins = std::slice::from_ref(pin);
        let kdf = KdfParams::TESTING;
        let mut rng = OsRng;
        let registered = register(&self.transport, pins, 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut rng);
        Ok(self.runtime.block_on(registered)?.slot)
    }

    /// Attempts left after a wrong password; `None` if the key is gone.
    fn guess(&self, pin: &VaultPin, slot: &[u8]) -> Result<Option<u16>> {
        // the port is another one after each start, the identity is not
        let now = self.running.as_ref().context("it serves")?.pin();
        ensure!(now.identity == pin.identity, "another identity");
        let guessed = unlock(&self.transport, std::slice::from_ref(&now), slot, b"wrong");
        match self.runtime.block_on(guessed) {
            Err(VaultError::WrongPassword { left, .. }) => Ok(Some(left)),
            Err(VaultError::Destroyed { .. }) => Ok(None),
            Err(error) => bail!("a guess: {error}"),
            Ok(_) => bail!("a wrong password opens it"),
        }
    }

    /// A copy of what is to be put back later.
    fn copy(&self, kind: Kind) -> Result<PathBuf> {
        let copy = self.folder.path().join("copy");
        drop(std::fs::remove_dir_all(&copy));
        copy_folder(&self.data(), &copy)?;
        if kind == Kind::DatabaseAlone {
            std::fs::remove_file(copy.join("anchor"))?;
        }
        Ok(copy)
    }

    /// Puts `disk` in and gives the one that was there. What it lacks stays as it is.
    fn put_in(&self, disk: &Path) -> Result<PathBuf> {
        let newest = self.folder.path().join("newest");
        if !newest.exists() {
            copy_folder(&self.data(), &newest)?;
        }
        for rest in ["vault.db", "vault.db-wal", "vault.db-shm"] {
            drop(std::fs::remove_file(self.data().join(rest)));
        }
        copy_folder(disk, &self.data())?;
        if disk == newest {
            std::fs::remove_dir_all(&newest)?;
        }
        Ok(newest)
    }
}

/// It says that it does not serve because of the disk.
fn check_reason(said: &anyhow::Error) -> Result<()> {
    ensure!(format!("{said:#}").contains("does not serve"), "refused, but why? {said:#}");
    Ok(())
}

fn settings(data: &Path) -> String {
    format!("data = \"{}\"\nlisten = \"127.0.0.1:0\"\ninsecure_dev = true\n", data.display())
}

fn run(command: &mut Command) -> Result<String> {
    let ran = command.output()?;
    ensure!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8(ran.stdout)?)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
