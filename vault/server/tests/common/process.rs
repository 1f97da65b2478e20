//! The vault as a process of its own, and the courier that carries to it.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each uses a part of this")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use chatkeep_vault_client::{CourierTransport, Identity, VaultPin};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_chatkeep-vault");

/// In this process, until its runtime ends.
pub(crate) fn courier(dir: &Path) -> CourierTransport {
    let socket = dir.join("courier.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(chatkeep_vault_courier::serve(listener, Duration::from_mins(10)));
    CourierTransport::new(socket)
}

/// A vault's process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// `program` with its arguments.
    pub(crate) fn start(program: &mut Command) -> Self {
        let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Waits until it serves.
    pub(crate) fn pin(&mut self) -> VaultPin {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["listening", "on", url, "identity", identity] = words[..] else { panic!("`{line}`") };
        let identity: Identity = identity.parse().unwrap();
        VaultPin { name: "cell".to_owned(), url: url.to_owned(), identity: identity.0 }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it ends by itself, and gives its last words.
    pub(crate) fn last_words(mut self) -> String {
        let mut words = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        assert!(!self.child.wait().unwrap().success(), "{words}");
        words
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().unwrap();
    }
}
