//! The real program, and the real courier in front of it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chatkeep_vault_client::{CourierTransport, Identity, VaultPin};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_chatkeep-vault");

/// A served vault; killed when dropped.
pub(crate) struct Served {
    child: Child,
    pub(crate) url: String,
    pub(crate) identity: Identity,
}

impl Served {
    /// Waits until it says that it listens.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::when_ready(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// As [`Self::start`], of a program whose output is piped.
    pub(crate) fn when_ready(mut child: Child) -> Self {
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["listening", "on", url, "identity", identity] = words[..] else { panic!("`{line}`") };
        Self { child, url: url.to_owned(), identity: identity.parse().unwrap() }
    }

    pub(crate) fn pin(&self) -> VaultPin {
        VaultPin { name: "served".to_owned(), url: self.url.clone(), identity: self.identity.0 }
    }

    /// SIGTERM: it ends by itself, and well.
    pub(crate) fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// Whether it ended by itself, within a while, and not well.
    pub(crate) fn failed(mut self) -> bool {
        !self.child.wait().unwrap().success()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().unwrap();
    }
}

pub(crate) fn courier(dir: &Path) -> CourierTransport {
    let socket = dir.join("courier.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(chatkeep_vault_courier::serve(listener, Duration::from_mins(1)));
    CourierTransport::new(socket)
}
