//! A TPM 2.0 of its own for a test: swtpm with its state in a folder. It talks to one program at a time, and a second one waits.

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// What is in the auth file of [`Swtpm::settings`].
pub const AUTH: &str = "c3dlZXQgYXMgYSBudXQgaXMgdGhlIHRwbQ";

/// The auth value of the vault's NV indices, which it makes of [`AUTH`], for tpm2-tools.
pub fn index_auth() -> String {
    auth_value("chatkeep vault tpm index auth v1")
}

/// The same of its root key.
pub fn root_auth() -> String {
    auth_value("chatkeep vault tpm root auth v1")
}

fn auth_value(label: &str) -> String {
    format!("hex:{}", hex::encode(Sha256::digest(format!("{label}{AUTH}"))))
}

/// A running TPM; killed and forgotten when dropped.
pub struct Swtpm {
    dir: TempDir,
    port: u16,
    process: Mutex<Option<Child>>,
}

impl Swtpm {
    /// Starts one.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let (port, process) =
            (0..50).find_map(|_| start(&dir.path().join("state"), None)).expect("a free port");
        let tpm = Self { dir, port, process: Mutex::new(Some(process)) };
        tpm.write_secret("auth", AUTH);
        tpm
    }

    /// As when its power fails.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap().take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Power is back, after [`Self::kill`].
    pub fn restart(&self) {
        let (_, process) = start(&self.state(), Some(self.port)).unwrap();
        *self.process.lock().unwrap() = Some(process);
    }

    /// Where its memory is.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How programs reach it.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// A file that only its owner reads.
    pub fn write_secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Settings for a vault with its keys here; `more` goes before the tables.
    pub fn settings(&self, data: &Path, more: &str) -> String {
        settings(&self.tcti(), &self.auth_file(), data, more)
    }

    /// What `auth_file` names.
    pub fn auth_file(&self) -> PathBuf {
        self.path("auth")
    }

    /// Where [`Self::tool`] looks for files, and puts them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One of tpm2-tools, as anybody runs it who may talk to the TPM.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .current_dir(self.dir.path())
            .env("TPM2TOOLS_TCTI", self.tcti())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error} (Debian package: tpm2-tools)"))
    }

    /// As [`Self::tool`], for what must succeed; gives what it printed.
    pub fn do_tool(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
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
    let port = port.or_else(free_port)?;
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

/// One whose next one is free, too.
pub fn free_port() -> Option<u16> {
    let one = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = one.local_addr().unwrap().port();
    TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok()?;
    Some(port)
}

fn settings(tcti: &str, auth_file: &Path, data: &Path, more: &str) -> String {
    format!(
        "data = \"{}\"\nlisten = \"127.0.0.1:0\"\ninsecure_dev = true\n{more}\n[hsm]\nkind = \"tpm2\"\ntcti = \"{tcti}\"\n\
         auth_file = \"{}\"\nanchor_pause = \"0s\"\nseal_key_lifetime = \"0s\"\n",
        data.display(),
        auth_file.display()
    )
}

/// A TPM for several programs at once, as the kernel's `/dev/tpmrm0` is: tpm2-abrmd in front of it, on a bus of its own.
pub struct Brokered {
    /// The TPM itself.
    pub tpm: Swtpm,
    bus: Child,
    bus_address: String,
    broker: Child,
}

impl Brokered {
    /// Starts bus, TPM and broker.
    pub fn new() -> Self {
        let tpm = Swtpm::new();
        let mut bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("dbus-daemon: {error} (Debian package: dbus-daemon)"));
        let mut bus_address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut bus_address).unwrap();
        let bus_address = bus_address.trim().to_owned();
        let broker = Command::new("/usr/sbin/tpm2-abrmd")
            .args(["--session", "--allow-root", &format!("--tcti={}", tpm.tcti())])
            .env("DBUS_SESSION_BUS_ADDRESS", &bus_address)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("tpm2-abrmd: {error} (Debian package: tpm2-abrmd)"));
        let mut brokered = Self { tpm, bus, bus_address, broker };
        while !brokered.command("tpm2_getcap").arg("properties-fixed").output().unwrap().status.success() {
            assert!(brokered.broker.try_wait().unwrap().is_none(), "tpm2-abrmd has ended");
            std::thread::sleep(Duration::from_millis(50));
        }
        brokered
    }

    const TCTI: &str = "tabrmd:bus_name=com.intel.tss2.Tabrmd,bus_type=session";

    /// A process that finds it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DBUS_SESSION_BUS_ADDRESS", &self.bus_address).env("TPM2TOOLS_TCTI", Self::TCTI);
        command
    }

    /// See [`Swtpm::settings`].
    pub fn settings(&self, data: &Path, more: &str) -> String {
        settings(Self::TCTI, &self.tpm.auth_file(), data, more)
    }
}

impl Drop for Brokered {
    fn drop(&mut self) {
        for process in [&mut self.broker, &mut self.bus] {
            process.kill().ok();
            process.wait().ok();
        }
    }
}
