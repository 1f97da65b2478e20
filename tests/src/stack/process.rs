//! A program that runs beside us: it is killed when dropped, and what it says goes to a file.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A started program.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it writes to standard error is appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = append(log)?;
        let child = command.stderr(file).spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// As [`Process::start`], and gives back the first line that it prints on standard output.
    pub fn start_and_read_line(name: &str, command: &mut Command, log: &Path) -> Result<(Self, String)> {
        let mut process = Self::start(name, command.stdout(Stdio::piped()), log)?;
        let mut line = String::new();
        let output = process.child.stdout.take().context("standard output is a pipe")?;
        BufReader::new(output).read_line(&mut line)?;
        if line.is_empty() {
            bail!("{name} printed nothing:\n{}", process.log_tail());
        }
        Ok((process, line.trim().to_owned()))
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL. It has no chance to do anything.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("no signal to {}", self.name))
    }

    /// SIGTERM; it has to end by itself, and well, within `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait(patience)?;
        if !status.success() {
            bail!("{} ended with {status} after SIGTERM:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Waits for its end by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > patience {
                bail!("{} still runs after {} s:\n{}", self.name, patience.as_secs(), self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The last lines of what it said.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a file.
pub fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

pub(crate) fn append(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// Kills what programs of ours started themselves (the service starts its courier) and left behind: every process
/// whose environment names `root`, a folder that nobody else has.
pub(crate) fn sweep(root: &Path) {
    let root = root.as_os_str().as_encoded_bytes();
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let ours = environment.windows(root.len()).any(|window| window == root);
        if let Some(pid) = Pid::from_raw(pid).filter(|_| ours) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
