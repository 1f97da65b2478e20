//! A TPM 2.0 of its own for a test: swtpm with its state in a folder. It talks to one program at a time, and a second one waits.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each uses a part of this")]

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

/// What is in the auth file of [`Swtpm::settings`].
pub(crate) const AUTH: &str = "c3dlZXQgYXMgYSBudXQgaXMgdGhlIHRwbQ";

/// A running TPM; killed and forgotten when dropped.
pub(crate) struct Swtpm {
    dir: TempDir,
    port: u16,
    process: Mutex<Option<Child>>,
}

impl Swtpm {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let (port, process) =
            (0..50).find_map(|_| start(&dir.path().join("state"), None)).expect("a free port");
        let tpm = Self { dir, port, process: Mutex::new(Some(process)) };
        tpm.write_secret("auth", AUTH);
        tpm
    }

    /// As when its power fails.
    pub(crate) fn kill(&self) {
        let mut process = self.process.lock().unwrap().take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Power is back, after [`Self::kill`].
    pub(crate) fn restart(&self) {
        let (_, process) = start(&self.state(), Some(self.port)).unwrap();
        *self.process.lock().unwrap() = Some(process);
    }

    /// Where its memory is.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// A file that only its owner reads.
    pub(crate) fn write_secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Settings for a vault with its keys here; `more` belongs to `[hsm]`, or begins another table.
    pub(crate) fn settings(&self, data: &Path, more: &str) -> String {
        format!(
            "data = \"{}\"\nlisten = \"127.0.0.1:0\"\ninsecure_dev = true\n[hsm]\nkind = \"tpm2\"\ntcti = \"{}\"\n\
             auth_file = \"{}\"\nseal_key_lifetime = \"0s\"\n{more}\n",
            data.display(),
            self.tcti(),
            self.dir.path().join("auth").display()
        )
    }

    /// One of tpm2-tools, as anybody runs it who may talk to the TPM.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .current_dir(self.dir.path())
            .env("TPM2TOOLS_TCTI", self.tcti())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error} (Debian package: tpm2-tools)"))
    }

    /// As [`Self::tool`], for what must succeed; gives what it printed.
    pub(crate) fn do_tool(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
        let ran = self.tool(program, arguments);
        assert!(ran.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        ran.stdout
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        if let Some(process) = self.process.lock().unwrap().as_mut() {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

/// On `port`, or on any with a free one after it: the library takes that for the second channel.
fn start(state: &Path, port: Option<u16>) -> Option<(u16, Child)> {
    let port = match port {
        Some(port) => port,
        None => {
            let one = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = one.local_addr().unwrap().port();
            TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok()?;
            port
        }
    };
    let mut process = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .arg("--tpmstate")
        .arg(format!("dir={}", state.display()))
        .arg("--server")
        .arg(format!("type=tcp,bindaddr=127.0.0.1,port={port}"))
        .arg("--ctrl")
        .arg(format!("type=tcp,bindaddr=127.0.0.1,port={}", port + 1))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("swtpm: {error} (Debian package: swtpm)"));
    // the channel for control is opened last
    loop {
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        if TcpStream::connect(("127.0.0.1", port + 1)).is_ok() {
            return Some((port, process));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
