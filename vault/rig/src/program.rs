//! The real program as a process of its own, and the real courier in front of it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use chatkeep_vault_client::{CourierTransport, Identity, VaultPin};
use rustix::process::{Pid, Signal, kill_process};

/// A running `chatkeep-vault serve`; killed when dropped.
pub struct Program {
    child: Child,
    output: Mutex<BufReader<ChildStdout>>,
    errors: File,
    pin: OnceLock<VaultPin>,
}

impl Program {
    /// Does not wait: vaults may need each other, or a lease, before they serve.
    pub fn start(command: &mut Command) -> Self {
        // a file, because a pipe that nobody reads would stop a program that says much
        let errors = tempfile::tempfile().unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(errors.try_clone().unwrap()).spawn().unwrap();
        let output = Mutex::new(BufReader::new(child.stdout.take().unwrap()));
        Self { child, output, errors, pin: OnceLock::new() }
    }

    /// Waits until it says that it listens.
    #[must_use]
    pub fn ready(self) -> Self {
        self.pin();
        self
    }

    /// As [`Self::ready`]; what it said if it ends instead.
    pub fn listening(mut self) -> Result<Self, String> {
        if self.read_pin().is_some() {
            return Ok(self);
        }
        self.child.wait().unwrap();
        Err(self.said())
    }

    /// How clients know it; waits until it says that it listens.
    pub fn pin(&self) -> VaultPin {
        self.read_pin().unwrap_or_else(|| panic!("it does not serve: {}", self.said()))
    }

    fn read_pin(&self) -> Option<VaultPin> {
        if let Some(pin) = self.pin.get() {
            return Some(pin.clone());
        }
        let mut line = String::new();
        self.output.lock().unwrap().read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["listening", "on", url, "identity", identity] = words[..] else { return None };
        let identity: Identity = identity.parse().unwrap();
        let pin = VaultPin { name: "vault".to_owned(), url: url.to_owned(), identity: identity.0 };
        Some(self.pin.get_or_init(|| pin).clone())
    }

    /// All that it wrote to standard error so far.
    pub fn said(&self) -> String {
        let mut bytes = vec![0; self.errors.metadata().unwrap().len() as usize];
        self.errors.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM: it ends by itself, and well. Gives what it said.
    pub fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        assert!(self.child.wait().unwrap().success(), "{}", self.said());
        self.said()
    }

    /// Waits until it ends by itself, and not well. Gives what it said.
    pub fn failed(mut self) -> String {
        assert!(!self.child.wait().unwrap().success(), "{}", self.said());
        self.said()
    }

    /// As [`Self::failed`], and before it ever listened.
    pub fn refused(self) -> String {
        let mut line = String::new();
        self.output.lock().unwrap().read_line(&mut line).unwrap();
        assert!(line.is_empty(), "it serves: {line}");
        self.failed()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().unwrap();
    }
}

/// In this process, until its runtime ends.
pub fn courier(dir: &Path) -> CourierTransport {
    let socket = dir.join("courier.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(chatkeep_vault_courier::serve(listener, Duration::from_mins(10)));
    CourierTransport::new(socket)
}
