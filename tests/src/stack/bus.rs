//! A private session bus, and somebody who listens to all of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use super::process::Process;
use super::{programs, wait};

/// A running dbus-daemon.
pub struct Bus {
    /// For `DBUS_SESSION_BUS_ADDRESS`.
    pub address: String,
    _daemon: Process,
    monitor: Option<(Process, PathBuf)>,
}

impl Bus {
    /// Starts one if dbus-daemon is installed.
    pub fn start(folder: &Path) -> Result<Option<Self>> {
        let Some(program) = programs::installed("dbus-daemon") else { return Ok(None) };
        let socket = format!("--address=unix:path={}", folder.join("bus").display());
        let mut command = programs::leashed(&program);
        command.args(["--session", "--print-address", "--nofork", "--nopidfile", &socket]);
        let (daemon, address) =
            Process::start_and_read_line("dbus-daemon", &mut command, &folder.join("bus.log"))?;
        Ok(Some(Self { address, _daemon: daemon, monitor: None }))
    }

    /// Records every message from now on, as a real monitor of the bus; [`Bus::recording`] has it.
    pub fn record(&mut self, folder: &Path) -> Result<()> {
        let program = programs::require("dbus-monitor", "dbus-bin")?;
        let file = folder.join("bus.pcap");
        let mut command = programs::leashed(&program);
        command
            .args(["--address", &self.address, "--pcap"])
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&file)?);
        let monitor = Process::start("dbus-monitor", &mut command, &folder.join("bus.log"))?;
        self.monitor = Some((monitor, file.clone()));
        // it listens once it records something: the hello of somebody else
        let probe = programs::require("dbus-send", "dbus-bin")?;
        wait::until("the monitor of the bus records", wait::PATIENCE, || {
            let mut hello = Command::new(&probe);
            hello.env("DBUS_SESSION_BUS_ADDRESS", &self.address).args(["--session", "--print-reply"]);
            hello.args(["--dest=org.freedesktop.DBus", "/", "org.freedesktop.DBus.ListNames"]);
            hello.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            Ok(contains(&std::fs::read(&file)?, b"ListNames").then_some(()))
        })
    }

    /// The file with everything that was sent, in the format of pcap.
    pub fn recording(&self) -> Option<&Path> {
        self.monitor.as_ref().map(|(_, file)| file.as_path())
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_monitor_records_what_others_send() {
        programs::require("dbus-daemon", "dbus-daemon").unwrap();
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let mut bus = Bus::start(folder.path()).unwrap().unwrap();
        bus.record(folder.path()).unwrap();
        let send = programs::require("dbus-send", "dbus-bin").unwrap();
        let mut call = Command::new(send);
        call.env("DBUS_SESSION_BUS_ADDRESS", &bus.address).args(["--session", "/x", "a.b.Planted"]);
        assert!(call.status().unwrap().success());
        wait::until("the signal is recorded", wait::PATIENCE, || {
            Ok(contains(&std::fs::read(bus.recording().unwrap())?, b"Planted").then_some(()))
        })
        .unwrap();
    }
}
