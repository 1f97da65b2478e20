//! Plugins as units of systemd. The systemd here is a stand-in: a service on a real private bus that has the parts of
//! `org.freedesktop.systemd1` that are used, and really starts what it is asked to start. It puts up no walls.
#![allow(
    clippy::unused_self,
    clippy::needless_pass_by_value,
    clippy::used_underscore_binding,
    reason = "how methods of a D-Bus interface are written"
)]

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chatkeep_store::{ErrorKind, PutCondition, Store as _, StoreKey};
use chatkeep_store_host::{PluginStore, Settings, Units, Walls};
use rustix::process::{Pid, Signal, kill_process};
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, OwnedValue, Value};
use zbus::{Connection, connection, fdo, interface};

use crate::support::{launch, memory_plugin, script};

/// The types of the properties, as systemd reads them in `src/shared/bus-unit-util.c` and `src/core/dbus-*.c`.
const TYPES: [(&str, &str); 31] = [
    ("AddRef", "b"),
    ("After", "as"),
    ("BindPaths", "a(ssbt)"),
    ("BindReadOnlyPaths", "a(ssbt)"),
    ("BindsTo", "as"),
    ("CPUWeight", "t"),
    ("Description", "s"),
    ("ExecStart", "a(sasb)"),
    ("IOWeight", "t"),
    ("LimitCORE", "t"),
    ("LockPersonality", "b"),
    ("MemoryMax", "t"),
    ("NoNewPrivileges", "b"),
    ("PrivateTmp", "b"),
    ("ProtectHome", "s"),
    ("ProtectSystem", "s"),
    ("RestrictAddressFamilies", "(bas)"),
    ("RestrictNamespaces", "t"),
    ("RestrictSUIDSGID", "b"),
    ("Slice", "s"),
    ("StandardError", "s"),
    ("StandardInputFileDescriptor", "h"),
    ("StandardOutput", "s"),
    ("SyslogIdentifier", "s"),
    ("SystemCallErrorNumber", "i"),
    ("SystemCallFilter", "(bas)"),
    ("TasksMax", "t"),
    ("TimeoutStopUSec", "t"),
    ("Type", "s"),
    ("UMask", "u"),
    ("WorkingDirectory", "s"),
];

type Properties = HashMap<String, OwnedValue>;

/// The stand-in.
#[derive(Clone, Default)]
struct Systemd {
    units: Arc<Mutex<HashMap<String, OwnedObjectPath>>>,
    asked: Arc<Mutex<Vec<Properties>>>,
    /// Exits with 226 whenever namespaces are asked for.
    no_namespaces: bool,
}

#[derive(Default)]
struct Unit {
    state: String,
}

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        self.state.clone()
    }
}

#[derive(Default)]
struct Service {
    pid: u32,
    code: i32,
    status: i32,
}

#[interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.pid
    }

    #[zbus(property)]
    fn exec_main_code(&self) -> i32 {
        self.code
    }

    #[zbus(property)]
    fn exec_main_status(&self) -> i32 {
        self.status
    }
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn subscribe(&self) {}

    async fn start_transient_unit(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        name: String,
        _mode: String,
        properties: Vec<(String, OwnedValue)>,
        _aux: Vec<(String, Vec<(String, OwnedValue)>)>,
    ) -> fdo::Result<OwnedObjectPath> {
        let number = self.asked.lock().unwrap().len();
        let properties: Properties = properties.into_iter().collect();
        let fails = self.no_namespaces && properties.contains_key("ProtectSystem");
        let (service, child) = if fails {
            (Service { pid: 0, code: 1, status: 226 }, None)
        } else {
            let child = start(&properties);
            (Service { pid: child.id(), code: 0, status: 0 }, Some(child))
        };
        self.asked.lock().unwrap().push(properties);
        let path = OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/unit/u{number}")).unwrap();
        let state = if fails { "failed" } else { "active" }.to_owned();
        connection.object_server().at(&path, Unit { state }).await?;
        connection.object_server().at(&path, service).await?;
        self.units.lock().unwrap().insert(name.clone(), path.clone());
        let (emitter, connection) = (emitter.to_owned(), connection.clone());
        let job = ObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{number}")).unwrap();
        let answer = OwnedObjectPath::from(job.clone());
        tokio::spawn(async move {
            let result = if fails { "failed" } else { "done" };
            Self::job_removed(&emitter, 1, job, &name, result).await.unwrap();
            if let Some(child) = child {
                follow(child, &connection, &path).await;
            }
        });
        Ok(answer)
    }

    async fn stop_unit(
        &self,
        #[zbus(connection)] connection: &Connection,
        name: String,
        _mode: String,
    ) -> fdo::Result<OwnedObjectPath> {
        self.signal(connection, &name, Signal::TERM).await;
        Ok(OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/0").unwrap())
    }

    async fn kill_unit(
        &self,
        #[zbus(connection)] connection: &Connection,
        name: String,
        _whom: String,
        signal: i32,
    ) {
        assert_eq!(signal, 9);
        self.signal(connection, &name, Signal::KILL).await;
    }

    fn reset_failed_unit(&self, _name: String) {}

    fn unref_unit(&self, _name: String) {}

    fn get_unit(&self, name: String) -> fdo::Result<OwnedObjectPath> {
        self.units
            .lock()
            .unwrap()
            .get(&name)
            .cloned()
            .ok_or_else(|| fdo::Error::Failed("no such unit".to_owned()))
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

impl Systemd {
    async fn signal(&self, connection: &Connection, name: &str, signal: Signal) {
        let path = self.units.lock().unwrap().get(name).cloned().unwrap();
        let service = connection.object_server().interface::<_, Service>(&path).await.unwrap();
        let pid = service.get().await.pid;
        let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
    }
}

/// Starts what `ExecStart` says, with the descriptor as its standard input and an environment full of things.
fn start(properties: &Properties) -> Child {
    let exec: Vec<(String, Vec<String>, bool)> =
        properties["ExecStart"].try_clone().unwrap().try_into().unwrap();
    let Value::Fd(stdin) = &*properties["StandardInputFileDescriptor"] else { panic!("no descriptor") };
    Command::new(&exec[0].0)
        .args(&exec[0].1[1..])
        .env("SECRET_OF_THE_SESSION", "canary")
        .current_dir("/")
        .stdin(Stdio::from(stdin.as_fd().try_clone_to_owned().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Tells how a child ended.
async fn follow(mut child: Child, connection: &Connection, path: &OwnedObjectPath) {
    use std::os::unix::process::ExitStatusExt as _;
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    let server = connection.object_server();
    let service = server.interface::<_, Service>(path).await.unwrap();
    {
        let mut service = service.get_mut().await;
        service.code = if status.code().is_some() { 1 } else { 2 };
        service.status = status.code().or(status.signal()).unwrap();
    }
    let unit = server.interface::<_, Unit>(path).await.unwrap();
    let state = if status.success() { "inactive" } else { "failed" };
    state.clone_into(&mut unit.get_mut().await.state);
    unit.get().await.active_state_changed(unit.signal_emitter()).await.unwrap();
}

/// A private bus with the stand-in on it; killed when dropped.
struct Bus {
    daemon: Child,
    address: String,
    systemd: Systemd,
    _service: Connection,
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Bus {
    async fn start(folder: &Path, no_namespaces: bool) -> Self {
        let socket = folder.join("bus");
        let address = format!("unix:path={}", socket.display());
        // a test that is killed leaves no bus behind
        let daemon = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "dbus-daemon"])
            .args(["--session", "--nofork", "--nopidfile", "--address", &address])
            .spawn()
            .unwrap_or_else(|error| panic!("dbus-daemon: {error} (Debian package: dbus-daemon)"));
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let systemd = Systemd { no_namespaces, ..Systemd::default() };
        let builder = connection::Builder::address(address.as_str()).unwrap();
        let builder = builder.serve_at("/org/freedesktop/systemd1", systemd.clone()).unwrap();
        let service = builder.name("org.freedesktop.systemd1").unwrap().build().await.unwrap();
        Self { daemon, address, systemd, _service: service }
    }

    async fn settings(&self, program: std::path::PathBuf, folder: &Path) -> Settings {
        let connection = connection::Builder::address(self.address.as_str()).unwrap().build().await.unwrap();
        let units = Units::new(connection, Some("chatkeepd.service".to_owned()));
        let mut launch = launch("nas 2", program);
        launch.paths = vec!["/home/a/.ssh".into()];
        let opening = chatkeep_store::Opening::of_url("memory:");
        let mut settings = Settings::new(launch, Arc::new(units), opening, &folder.join("sockets"));
        settings.life.crashes.first_wait = Duration::from_millis(1);
        settings
    }
}

fn key() -> StoreKey {
    StoreKey::try_from("a/log/1").unwrap()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_mins(1), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("in a minute it did not happen that {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_is_asked_for_with_all_walls_and_serves_the_socket_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path(), false).await;
    let store = PluginStore::new(bus.settings(memory_plugin(), folder.path()).await).unwrap();
    store.put(&key(), "hello".into(), PutCondition::CreateIfAbsent).await.unwrap();
    assert_eq!(store.get(&key(), None).await.unwrap(), "hello");
    assert_eq!(store.state().running.unwrap().1, Walls::All);

    let asked = bus.systemd.asked.lock().unwrap();
    let mut types: Vec<(&str, String)> =
        asked[0].iter().map(|(name, value)| (name.as_str(), value.value_signature().to_string())).collect();
    types.sort_unstable();
    assert_eq!(types, TYPES.map(|(name, signature)| (name, signature.to_owned())));
    let shown = |name: &str| format!("{:?}", *asked[0][name]);
    assert!(shown("RestrictAddressFamilies").contains("AF_INET6"));
    assert!(shown("BindPaths").contains("/home/a/.ssh"));
    assert!(shown("BindsTo").contains("chatkeepd.service"));
    let names: Vec<String> = bus.systemd.units.lock().unwrap().keys().cloned().collect();
    assert_eq!(names, ["chatkeep-store-nas\\x202.service"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_that_was_killed_is_noticed_and_started_again_and_one_that_is_stopped_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path(), false).await;
    let store = PluginStore::new(bus.settings(memory_plugin(), folder.path()).await).unwrap();
    store.put(&key(), "hello".into(), PutCondition::Overwrite).await.unwrap();
    let pid = store.state().running.unwrap().0.unwrap();
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    until("the end is noticed", || store.state().running.is_none()).await;
    assert_eq!(store.get(&key(), None).await.unwrap_err().kind(), ErrorKind::NotFound);
    let pid = store.state().running.unwrap().0.unwrap();
    store.close().await;
    assert!(!Path::new(&format!("/proc/{pid}/fd/0")).exists());
    assert_eq!(bus.systemd.asked.lock().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_user_namespaces_the_unit_is_started_without_those_walls_and_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path(), true).await;
    let store = PluginStore::new(bus.settings(memory_plugin(), folder.path()).await).unwrap();
    store.open().await.unwrap();
    assert_eq!(store.state().running.unwrap().1, Walls::WithoutNamespaces);
    let asked = bus.systemd.asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    assert!(asked[1].contains_key("RestrictAddressFamilies") && !asked[1].contains_key("ProtectHome"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_has_nothing_of_the_environment_of_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Bus::start(folder.path(), false).await;
    let told = folder.path().join("told");
    let text = format!("#!/bin/sh\nenv > {0}.new\nmv {0}.new {0}\n", told.display());
    let program = script(folder.path(), "tell", &text);
    let mut settings = bus.settings(program, folder.path()).await;
    settings.launch.environment.push(("LANG".to_owned(), "C".to_owned()));
    let store = PluginStore::new(settings).unwrap();
    // it serves nothing
    store.open().await.unwrap_err();
    until("it told", || told.exists()).await;
    let told = std::fs::read_to_string(told).unwrap();
    let names: Vec<&str> = told.lines().filter_map(|line| line.split('=').next()).collect();
    assert!(names.contains(&"PATH") && names.contains(&"LANG") && !told.contains("canary"), "{told}");
}
