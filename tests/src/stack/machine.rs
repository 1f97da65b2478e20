//! One user's machine: a home, a session bus, the service with its courier, and the command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::bus::Bus;
use super::command::{self, Ran};
use super::process::{self, Process};
use super::trace::Trace;
use super::{Vault, programs, wait};

/// How a machine is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `capture.quiet`
    pub quiet: String,
    /// `capture.max_age`
    pub max_age: String,
    /// Give it a session bus; without dbus-daemon it has none whatever is said here.
    pub bus: bool,
    /// Run the courier as systemd does; otherwise the service has to start its own.
    pub courier: bool,
    /// Write down which sockets the service asks for.
    pub traced: bool,
    /// The store, if it is not the stack's folder.
    pub shelf: Option<Shelf>,
}

/// A store of a machine, as the user configures it.
#[derive(Debug, Clone)]
pub struct Shelf {
    /// Its URL.
    pub url: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// Its secrets, kept beside the machine's keys.
    pub secrets: BTreeMap<String, String>,
}

impl Shelf {
    fn section(&self) -> String {
        let inline = |pairs: Vec<String>| format!("{{ {} }}", pairs.join(", "));
        let options = self.options.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
        let secrets = self.secrets.keys().map(|name| format!("{name} = \"keyring\"")).collect();
        let (url, options, secrets) = (&self.url, inline(options), inline(secrets));
        format!("[[store]]\nname = \"{STORE}\"\nurl = {url:?}\noptions = {options}\nsecrets = {secrets}\n")
    }

    /// As the service keeps them, with `key_storage = "file"`.
    fn keep_secrets(&self, data: &Path) -> Result<()> {
        let folder = data.join("keys");
        let mut private = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
        private.recursive(true).create(&folder)?;
        for (name, value) in &self.secrets {
            std::fs::write(folder.join(format!("store.{STORE}.{name}.secret")), value)?;
        }
        Ok(())
    }
}

impl Default for Settings {
    /// Quick captures, for tests; a bus; a courier.
    fn default() -> Self {
        Self {
            quiet: "200ms".into(),
            max_age: "1s".into(),
            bus: true,
            courier: true,
            traced: false,
            shelf: None,
        }
    }
}

/// A machine.
pub struct Machine {
    /// Its session bus, where there is one.
    pub bus: Option<Bus>,
    /// What sockets its service asks for, where that is written down.
    pub trace: Option<Trace>,
    root: PathBuf,
    courier: Option<Process>,
    service: Option<Process>,
}

/// A moment a database can be restored to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its name.
    pub id: String,
    /// When the state was read, in microseconds since 1970.
    pub time_us: u64,
    /// Bytes that it added to the store.
    pub size: u64,
    /// Whether it holds every page.
    pub base: bool,
    /// Whether something that it needs is known to be damaged.
    pub damaged: bool,
}

impl Point {
    fn read(point: &Value) -> Self {
        Self {
            id: point["id"].as_str().unwrap_or_default().to_owned(),
            time_us: point["time"].as_u64().unwrap_or_default(),
            size: point["size"].as_u64().unwrap_or_default(),
            base: point["base"].as_bool().unwrap_or_default(),
            damaged: point["damaged"].as_bool().unwrap_or_default(),
        }
    }
}

impl Machine {
    pub(crate) fn new(root: &Path, store: &Path, vault: &Vault, settings: &Settings) -> Result<Self> {
        for folder in ["home", "config/chatkeep", "data", "state", "nowhere"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        // others can have no way into it: the session's sockets are here
        let mut private = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
        private.create(root.join("run"))?;
        let bus = if settings.bus { Bus::start(root)? } else { None };
        let trace = settings.traced.then(|| Trace::into(&root.join("trace"))).transpose()?;
        let mut machine = Self { bus, trace, root: root.to_owned(), courier: None, service: None };
        machine.configure(&config(store, vault, settings))?;
        if let Some(shelf) = &settings.shelf {
            shelf.keep_secrets(&machine.data())?;
        }
        if settings.courier {
            machine.start_courier()?;
        }
        Ok(machine)
    }

    /// Replaces `config.toml`; it is read at the next start.
    pub fn configure(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(self.config_file(), text)?)
    }

    /// Adds to `config.toml`.
    pub fn configure_also(&self, text: &str) -> Result<()> {
        let before = std::fs::read_to_string(self.config_file())?;
        self.configure(&format!("{before}\n{text}\n"))
    }

    /// `config.toml`
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config/chatkeep/config.toml")
    }

    /// Where apps keep their databases.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// The service's registrations and keys.
    pub fn data(&self) -> PathBuf {
        self.root.join("data/chatkeep")
    }

    /// The service's cache.
    pub fn state(&self) -> PathBuf {
        self.root.join("state/chatkeep")
    }

    /// What the service said.
    pub fn log(&self) -> PathBuf {
        self.root.join("chatkeepd.log")
    }

    /// All of it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Starts the service and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.service_command()?;
        self.service = Some(Process::start("chatkeepd", command.stdin(Stdio::null()), &self.log())?);
        wait::until("chatkeepd answers", wait::PATIENCE, || {
            if let Some(status) = self.service.as_mut().map(Process::ended).transpose()?.flatten() {
                bail!("chatkeepd ended with {status}:\n{}", process::tail(&self.log()));
            }
            // the name on the bus is requested last
            let ran = self.run_as_app(&["status"], None)?;
            Ok(ran.lines.first().is_some_and(|status| status["verdict"].is_string()).then_some(()))
        })
        .with_context(|| format!("the service said:\n{}", process::tail(&self.log())))
    }

    /// The service, not started: for tests of how it refuses to.
    pub fn service_command(&self) -> Result<Command> {
        let program = programs::ours("chatkeepd")?;
        let mut command = match &self.trace {
            Some(trace) => trace.command(&program)?,
            None => programs::leashed(&program),
        };
        self.environment(&mut command);
        command.env("RUST_LOG", std::env::var("CHATKEEP_TEST_LOG").unwrap_or_else(|_| "info".into()));
        if self.bus.is_none() {
            command.arg("--no-bus");
        }
        Ok(command)
    }

    /// SIGKILL to the service.
    pub fn kill(&mut self) {
        self.service = None;
    }

    /// SIGKILL to the service, while others still look at the machine; [`Machine::kill`] has to follow.
    pub fn kill_at_once(&self) -> Result<()> {
        self.service.as_ref().map_or(Ok(()), |service| service.signal(rustix::process::Signal::KILL))
    }

    /// SIGTERM to the service, to a good end.
    pub fn stop(&mut self) -> Result<()> {
        match self.service.take() {
            Some(mut service) => service.terminate(wait::PATIENCE),
            None => Ok(()),
        }
    }

    /// Whether the service runs.
    pub fn is_running(&mut self) -> bool {
        self.service.as_mut().is_some_and(|service| matches!(service.ended(), Ok(None)))
    }

    fn start_courier(&mut self) -> Result<()> {
        let socket = std::os::unix::net::UnixListener::bind(self.root.join("run/chatkeep-courier.sock"))?;
        let mut command = programs::leashed(&programs::ours("chatkeep-courier")?);
        command.arg("--idle-timeout").arg("86400").stdin(Stdio::from(std::os::fd::OwnedFd::from(socket)));
        self.courier =
            Some(Process::start("chatkeep-courier", &mut command, &self.root.join("courier.log"))?);
        Ok(())
    }

    fn environment(&self, command: &mut Command) {
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.home()).env("XDG_RUNTIME_DIR", self.root.join("run"));
        for (name, folder) in
            [("XDG_CONFIG_HOME", "config"), ("XDG_DATA_HOME", "data"), ("XDG_STATE_HOME", "state")]
        {
            command.env(name, self.root.join(folder));
        }
        // Never the bus of whoever runs this. The session's is the system's, too: what is on it (power, network), a test says.
        let none = || format!("unix:path={}", self.root.join("nowhere/bus").display());
        let address = self.bus.as_ref().map_or_else(none, |bus| bus.address.clone());
        command.env("DBUS_SESSION_BUS_ADDRESS", &address).env("DBUS_SYSTEM_BUS_ADDRESS", &address);
    }

    /// Runs `chatkeep --json ARGUMENTS` over the control socket, with a secret on descriptor 0 if there is one.
    pub fn run(&self, arguments: &[&str], secret: Option<&str>) -> Result<Ran> {
        let mut command = Command::new(programs::ours("chatkeep")?);
        self.environment(&mut command);
        command::run(with_json(command, arguments), secret)
    }

    /// As [`Machine::run`], but over the session bus, as an app would.
    pub fn run_on_bus(&self, arguments: &[&str], secret: Option<&str>) -> Result<Ran> {
        if self.bus.is_none() {
            bail!("this machine has no session bus: dbus-daemon is not installed (Debian: dbus-daemon)");
        }
        let mut command = Command::new(programs::ours("chatkeep")?);
        self.environment(&mut command);
        command.env("XDG_RUNTIME_DIR", self.root.join("nowhere"));
        command::run(with_json(command, arguments), secret)
    }

    /// Over the session bus where there is one, else over the control socket.
    pub fn run_as_app(&self, arguments: &[&str], secret: Option<&str>) -> Result<Ran> {
        if self.bus.is_some() { self.run_on_bus(arguments, secret) } else { self.run(arguments, secret) }
    }

    /// All that the service shows.
    pub fn status(&self) -> Result<Value> {
        let ran = self.run(&["status"], None)?;
        let status = ran.last();
        if !status["verdict"].is_string() {
            bail!("no status: {}", ran.explanation());
        }
        Ok(status)
    }

    /// What the service shows about one vault, as it knows it without asking.
    pub fn vault(&self, id: &str) -> Result<Value> {
        let status = self.status()?;
        let found = status["vaults"].as_array().and_then(|all| all.iter().find(|one| one["id"] == id));
        found.cloned().with_context(|| format!("{id} is not among the vaults of {status}"))
    }

    /// What the service shows about one database.
    pub fn database(&self, id: &str) -> Result<Value> {
        let status = self.status()?;
        let found = status["databases"].as_array().and_then(|all| all.iter().find(|one| one["id"] == id));
        found.cloned().with_context(|| format!("{id} is not among the databases of {status}"))
    }

    /// Has a database watched; gives back its identifier.
    pub fn register(&self, file: &Path, name: &str) -> Result<String> {
        let ran = self.run(&["register", text(file)?, "--name", name], None)?.success()?;
        let id = ran.last()["id"].as_str().unwrap_or_default().to_owned();
        if id.is_empty() {
            bail!("register gave no identifier: {}", ran.last());
        }
        Ok(id)
    }

    /// Encrypts with a password, through the vault.
    pub fn enable_password(&self, id: &str, password: &str) -> Result<()> {
        let arguments = ["encryption", "enable-password", id, "--password-fd", "0"];
        self.run(&arguments, Some(password))?.success().map(drop)
    }

    /// Encrypts with 64 new digits, and gives them back; they are confirmed.
    pub fn enable_digits(&self, id: &str) -> Result<String> {
        self.new_digits(&["encryption", "generate-key", id])
    }

    /// Replaces the digits, and gives the new ones back; they are confirmed.
    pub fn rotate_digits(&self, id: &str) -> Result<String> {
        self.new_digits(&["encryption", "rotate-key", id])
    }

    /// The digits of the key in use, against the password.
    pub fn show_digits(&self, id: &str, password: &str) -> Result<String> {
        let file = self.root.join("shown");
        let arguments = ["encryption", "show-key", id, "--key-out", text(&file)?, "--password-fd", "0"];
        let ran = self.run(&arguments, Some(password))?.success();
        let digits = std::fs::read_to_string(&file);
        let _ = std::fs::remove_file(&file);
        ran?;
        Ok(digits?.trim().to_owned())
    }

    fn new_digits(&self, arguments: &[&str]) -> Result<String> {
        let file = self.root.join("digits");
        let path = text(&file)?;
        let arguments = [arguments, &["--key-out", path, "--confirm-from-file", path]].concat();
        let ran = self.run(&arguments, None)?.success();
        let digits = std::fs::read_to_string(&file);
        let _ = std::fs::remove_file(&file);
        ran?;
        Ok(digits?.trim().to_owned())
    }

    /// The recovery points, newest first. While the archive is being opened the service is busy, and asked again.
    pub fn points(&self, id: &str) -> Result<Vec<Point>> {
        wait::until("the archive is open", wait::PATIENCE, || {
            let ran = self.run(&["points", id], None)?;
            if ran.error() == "Busy" {
                return Ok(None);
            }
            let points = ran.success()?.last()["points"].as_array().cloned().unwrap_or_default();
            let mut points: Vec<Point> = points.iter().map(Point::read).collect();
            points.sort_by_key(|point| std::cmp::Reverse(point.time_us));
            Ok(Some(points))
        })
    }

    /// Waits for a recovery point of a state that was read after `time_us`.
    pub fn wait_for_point(&self, id: &str, time_us: u64) -> Result<Point> {
        let what = format!("a recovery point of {id}");
        let look = || Ok(self.points(id)?.into_iter().next().filter(|point| point.time_us > time_us));
        wait::until(&what, wait::PATIENCE, look).with_context(|| self.describe(id))
    }

    /// Backs up now, and waits for it.
    pub fn back_up(&self, id: &str) -> Result<()> {
        self.run(&["backup", id, "--wait"], None)?.success().with_context(|| self.describe(id)).map(drop)
    }

    /// The archives in the store: identifier and mode.
    pub fn list_remote(&self) -> Result<Vec<(String, String)>> {
        let ran = self.run(&["list-remote", STORE], None)?.success()?;
        let archives = ran.last()["archives"].as_array().cloned().unwrap_or_default();
        let part = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        Ok(archives.iter().map(|one| (part(one, "id"), part(one, "mode"))).collect())
    }

    /// Takes an archive over; gives back the identifier that the database has here.
    pub fn adopt(&self, archive: &str, to: &Path) -> Result<String> {
        self.run(&["adopt", STORE, archive, "--to", text(to)?], None)?.success()?;
        let status = self.status()?;
        let all = status["databases"].as_array().cloned().unwrap_or_default();
        let path = text(to)?;
        let found = all.iter().find(|one| one["path"] == path).and_then(|one| one["id"].as_str());
        found.map(str::to_owned).with_context(|| format!("nothing adopted for {path}: {status}"))
    }

    /// Unlocks with a password.
    pub fn unlock(&self, id: &str, password: &str) -> Result<Ran> {
        self.run(&["unlock", id, "--password-fd", "0"], Some(password))
    }

    /// Unlocks with the digits.
    pub fn unlock_digits(&self, id: &str, digits: &str) -> Result<Ran> {
        self.run(&["unlock", id, "--key-fd", "0"], Some(digits))
    }

    /// Restores the newest point, or `point`, into a new file.
    pub fn restore(&self, id: &str, to: &Path, point: Option<&str>) -> Result<Ran> {
        let mut arguments = vec!["restore", id, "--to", text(to)?];
        if let Some(point) = point {
            arguments.extend(["--point", point]);
        }
        self.run(&arguments, None)
    }

    /// Checks what is stored.
    pub fn verify(&self, id: &str, depth: &str) -> Result<Ran> {
        self.run(&["verify", id, "--depth", depth], None)
    }

    /// Deletes all that the machine has: home, configuration, keys, cache. The service must not run.
    pub fn erase(&mut self) -> Result<()> {
        self.kill();
        for folder in ["home", "config", "data", "state"] {
            std::fs::remove_dir_all(self.root.join(folder))?;
        }
        Ok(())
    }

    fn describe(&self, id: &str) -> String {
        let state = self.database(id).map_or_else(|error| error.to_string(), |state| state.to_string());
        format!("{state}\nthe service said:\n{}", process::tail(&self.log()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        self.courier = None;
        process::sweep(&self.root);
    }
}

/// The store's name in every configuration.
pub const STORE: &str = "shelf";
/// The vault's name in every configuration.
pub const VAULT: &str = "tower";

/// The configuration of a machine.
pub fn config(store: &Path, vault: &Vault, settings: &Settings) -> String {
    let folder = || format!("[[store]]\nname = \"{STORE}\"\nurl = \"file://{}\"\n", store.display());
    let store = settings.shelf.as_ref().map_or_else(folder, Shelf::section);
    format!(
        "[service]\nkey_storage = \"file\"\n\n[capture]\nquiet = \"{}\"\nmax_age = \"{}\"\n\n{store}\n\
         [[vault]]\nname = \"{VAULT}\"\nurl = \"{}\"\nidentity = \"{}\"\n",
        settings.quiet, settings.max_age, vault.url, vault.identity
    )
}

/// Microseconds since 1970.
pub fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_micros() as u64
}

fn with_json(mut command: Command, arguments: &[&str]) -> Command {
    command.arg("--json").args(arguments);
    command
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
