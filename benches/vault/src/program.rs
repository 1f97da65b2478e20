//! The vault's program, on a core of its own.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use chatkeep_vault_protocol::Identity;
use chatkeep_vault_rig::KeyDevice;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::parts::Parts;

/// A vault's settings, and what its program needs to find its keys.
pub(crate) struct Settings {
    path: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

/// A vault that serves; killed when dropped.
pub(crate) struct Program {
    child: Child,
    pub(crate) url: String,
    pub(crate) identity: Identity,
}

/// As many attempts as settings permit, and no waiting.
const POLICY: &str = "[policy]\nattempts_max = 100\nlifetime_failures_max = 10000\ndelays = []\n";

/// Leaves `core` to somebody else. What is started later inherits that.
pub(crate) fn stay_off(core: usize, cores: usize) -> Result<()> {
    let mut set = CpuSet::new();
    (0..cores).filter(|n| *n != core).for_each(|n| set.set(n));
    sched_setaffinity(None, &set).context("choosing the cores of the clients")
}

impl Settings {
    /// Keys in a file.
    pub(crate) fn soft(folder: &Path) -> Self {
        let data = folder.join("data");
        let text =
            format!("data = \"{}\"\nlisten = \"127.0.0.1:0\"\ninsecure_dev = true\n{POLICY}", data.display());
        Self::write(folder, &text, Vec::new())
    }

    /// Keys in a device.
    pub(crate) fn on(folder: &Path, device: &dyn KeyDevice) -> Self {
        let settings = device.settings(&folder.join("data"), "");
        let text = format!("{settings}{POLICY}");
        let given = device.command("true");
        let environment =
            given.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
        Self::write(folder, &text, environment)
    }

    fn write(folder: &Path, text: &str, environment: Vec<(OsString, OsString)>) -> Self {
        let path = folder.join("config.toml");
        std::fs::write(&path, text).expect("a temporary folder can be written");
        Self { path, environment }
    }

    /// Makes keys, database and anchor.
    pub(crate) fn init(&self, program: &Path) -> Result<()> {
        let made = self.command(program).arg("init").arg("--config").arg(&self.path).output()?;
        ensure!(made.status.success(), "chatkeep-vault init: {}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    }

    /// What its parts cost on `core`.
    pub(crate) fn parts(&self, core: usize, batches: &[usize]) -> Result<Parts> {
        let batches: Vec<String> = batches.iter().map(usize::to_string).collect();
        let output = self
            .on_core(core, &std::env::current_exe()?)
            .arg("parts")
            .arg(&self.path)
            .args(["--batches", &batches.join(",")])
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "measuring the parts failed");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn on_core(&self, core: usize, program: &Path) -> Command {
        let mut command = self.command(Path::new("taskset"));
        command.args(["-c", &core.to_string()]).arg(program);
        command
    }
}

impl Program {
    /// Starts it and waits until it listens.
    pub(crate) fn serve(program: &Path, settings: &Settings, core: usize) -> Result<Self> {
        let mut command = settings.on_core(core, program);
        command.arg("serve").arg("--config").arg(&settings.path).env("RUST_LOG", "warn");
        let mut child =
            command.stdout(Stdio::piped()).spawn().context("taskset, of the package util-linux")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["listening", "on", url, "identity", identity] = words[..] else {
            child.kill()?;
            anyhow::bail!("chatkeep-vault said `{line}`");
        };
        let identity = identity.parse().ok().context("an identity")?;
        Ok(Self { url: url.to_owned(), identity, child })
    }

    /// CPU time so far, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = stat.rsplit_once(')').context("stat has a name")?.1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().map(|n| fields[*n].parse::<f64>().unwrap_or(0.0)).sum();
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Memory in use, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
