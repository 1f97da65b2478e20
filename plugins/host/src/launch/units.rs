//! Plugins as transient units of the systemd user manager: behind walls, and with the network that we do not have.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use zbus::fdo::{PropertiesChangedStream, PropertiesProxy};
use zbus::names::InterfaceName;
use zbus::zvariant::{Fd, ObjectPath, OwnedObjectPath, OwnedValue, Value};
use zbus::{Connection, proxy};

use super::{End, Launch, Launcher, Running, Walls};

/// What systemd exits with when it cannot set up namespaces for a program.
const EXIT_NAMESPACE: i32 = 226;
/// Exited by itself, in the words of wait(2): `CLD_EXITED`.
const EXITED: i32 = 1;
/// Where `env` is: it clears what the user manager gives all of its units.
const ENV: &str = "/usr/bin/env";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const MEMORY_MAX: u64 = 512 << 20;
const TASKS_MAX: u64 = 64;
const STOP_TIMEOUT_US: u64 = 5_000_000;

/// Asks the user manager for units named `chatkeep-store-NAME.service`.
#[derive(Clone)]
pub struct Units {
    connection: Connection,
    bound_to: Option<String>,
}

impl Units {
    /// Through a connection to the session bus. With `bound_to`, plugins end together with that unit.
    pub fn new(connection: Connection, bound_to: Option<String>) -> Self {
        Self { connection, bound_to }
    }

    /// The unit that this process is, if it is one of the user manager; see [`Units::new`].
    pub fn own_unit() -> Option<String> {
        unit_of(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
    }

    async fn start(
        &self,
        what: &Launch,
        listener: BorrowedFd<'_>,
        namespaces: bool,
    ) -> zbus::Result<Started> {
        let manager = ManagerProxy::new(&self.connection).await?;
        manager.subscribe().await?;
        let mut jobs = manager.receive_job_removed().await?;
        let name = unit_name(&what.store);
        let properties = properties(what, listener, self.bound_to.as_deref(), namespaces);
        let job = match manager.start_transient_unit(&name, "replace", &properties, &[]).await {
            Err(zbus::Error::MethodError(error, ..)) if error.as_str().ends_with(".UnitExists") => {
                // what an earlier run left behind
                let _ = manager.kill_unit(&name, "all", 9).await;
                let _ = manager.reset_failed_unit(&name).await;
                manager.start_transient_unit(&name, "replace", &properties, &[]).await?
            }
            job => job?,
        };
        let result = loop {
            let Some(signal) = jobs.next().await else {
                return Err(zbus::Error::Failure("the connection to systemd broke off".to_owned()));
            };
            let done = signal.args()?;
            let is_ours = done.job().as_str() == job.as_str();
            let result = (*done.result()).to_owned();
            if is_ours {
                break result;
            }
        };
        let path = manager.get_unit(&name).await?;
        let unit = PropertiesProxy::new(&self.connection, "org.freedesktop.systemd1", path).await?;
        let changes = unit.receive_properties_changed().await?;
        let plugin = UnitPlugin {
            manager,
            name,
            unit,
            changes,
            pid: None,
            walls: if namespaces { Walls::All } else { Walls::WithoutNamespaces },
            how: None,
        };
        Ok(Started { plugin, done: result == "done" })
    }
}

struct Started {
    plugin: UnitPlugin,
    done: bool,
}

#[async_trait]
impl Launcher for Units {
    async fn launch(&self, what: &Launch, listener: BorrowedFd<'_>) -> io::Result<Box<dyn Running>> {
        let mut started = self.start(what, listener, true).await.map_err(io::Error::other)?;
        if !started.done && started.plugin.exit_status().await == Some(EXIT_NAMESPACE) {
            tracing::warn!(
                store = what.store,
                "no user namespaces on this machine: the plugin runs without those walls that need them"
            );
            // until systemd has forgotten it, its name is taken
            started.plugin.ended().await;
            started = self.start(what, listener, false).await.map_err(io::Error::other)?;
        }
        let mut plugin = started.plugin;
        if !started.done {
            let end = plugin.ended().await;
            return Err(io::Error::other(format!("systemd could not start it: {}", end.words)));
        }
        plugin.pid = plugin.number(SERVICE, "MainPID").await;
        Ok(Box::new(plugin))
    }
}

/// A unit of the user manager. It is kept by it until we have seen how it ended.
struct UnitPlugin {
    manager: ManagerProxy<'static>,
    name: String,
    unit: PropertiesProxy<'static>,
    changes: PropertiesChangedStream,
    pid: Option<u32>,
    walls: Walls,
    how: Option<End>,
}

impl UnitPlugin {
    async fn property(&self, interface: &'static str, name: &str) -> Option<OwnedValue> {
        self.unit.get(InterfaceName::from_static_str_unchecked(interface), name).await.ok()
    }

    async fn number<T: TryFrom<OwnedValue>>(&self, interface: &'static str, name: &str) -> Option<T> {
        T::try_from(self.property(interface, name).await?).ok()
    }

    async fn exit_status(&self) -> Option<i32> {
        self.number(SERVICE, "ExecMainStatus").await
    }

    async fn is_over(&self) -> bool {
        match self.number::<String>(UNIT, "ActiveState").await {
            Some(state) => state == "inactive" || state == "failed",
            // nobody can say any more, so nobody could stop it either
            None => true,
        }
    }

    async fn how(&self) -> End {
        let code: Option<i32> = self.number(SERVICE, "ExecMainCode").await;
        let status = self.exit_status().await;
        match (code, status) {
            (Some(EXITED), Some(status)) => {
                End { clean: status == 0, words: format!("exit status {status}") }
            }
            (Some(_), Some(signal)) if signal != 0 => End { clean: false, words: format!("signal {signal}") },
            _ => End { clean: false, words: "an end that systemd does not tell".to_owned() },
        }
    }

    /// Lets systemd forget it.
    async fn forget(&self) {
        let _ = self.manager.unref_unit(&self.name).await;
        let _ = self.manager.reset_failed_unit(&self.name).await;
    }
}

#[async_trait]
impl Running for UnitPlugin {
    fn pid(&self) -> Option<u32> {
        self.pid
    }

    fn walls(&self) -> Walls {
        self.walls
    }

    async fn ended(&mut self) -> End {
        while self.how.is_none() {
            if self.is_over().await {
                self.how = Some(self.how().await);
                self.forget().await;
            } else if self.changes.next().await.is_none() {
                self.how =
                    Some(End { clean: false, words: "the connection to systemd broke off".to_owned() });
            }
        }
        self.how.clone().expect("it was just found out")
    }

    async fn terminate(&mut self) {
        let _ = self.manager.stop_unit(&self.name, "replace").await;
    }

    async fn kill(&mut self) {
        let _ = self.manager.kill_unit(&self.name, "all", 9).await;
    }
}

impl Drop for UnitPlugin {
    fn drop(&mut self) {
        if self.how.is_none()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (manager, name) = (self.manager.clone(), self.name.clone());
            runtime.spawn(async move { manager.stop_unit(&name, "replace").await.map(drop) });
        }
    }
}

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        aux: &[(&str, Vec<(&str, Value<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn unref_unit(&self, name: &str) -> zbus::Result<()>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn subscribe(&self) -> zbus::Result<()>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: ObjectPath<'_>, unit: &str, result: &str) -> zbus::Result<()>;
}

/// The unit of a store. Other characters than letters, digits and `-` are written as systemd escapes them.
fn unit_name(store: &str) -> String {
    let escaped: String = store
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
            other => format!("\\x{other:02x}"),
        })
        .collect();
    format!("chatkeep-store-{escaped}.service")
}

fn unit_of(cgroups: &str) -> Option<String> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below_user_manager = path.split_once("/user@")?.1;
    let unit = below_user_manager.rsplit('/').next()?;
    unit.ends_with(".service").then(|| unit.to_owned()).filter(|unit| !unit.starts_with(char::is_numeric))
}

/// The settings of the unit, as D-Bus has them; systemd.exec(5) and systemd.resource-control(5) say what they do.
fn properties<'a>(
    what: &'a Launch,
    listener: BorrowedFd<'a>,
    bound_to: Option<&'a str>,
    namespaces: bool,
) -> Vec<(&'a str, Value<'a>)> {
    let mut argv = vec![ENV.to_owned(), "-i".to_owned()];
    argv.extend(what.environment.iter().map(|(name, value)| format!("{name}={value}")));
    argv.push(what.program.to_string_lossy().into_owned());
    let families: &[&str] = if what.network { &["AF_INET", "AF_INET6", "AF_UNIX"] } else { &["AF_UNIX"] };
    let mut properties: Vec<(&str, Value<'_>)> = vec![
        ("Description", format!("Chatkeep store {}", what.store).into()),
        ("Type", "exec".into()),
        // keeps the unit until we have seen how it ended
        ("AddRef", true.into()),
        ("ExecStart", vec![(ENV, argv, false)].into()),
        ("StandardInputFileDescriptor", Value::Fd(Fd::from(listener))),
        ("StandardOutput", "null".into()),
        ("StandardError", "journal".into()),
        ("SyslogIdentifier", format!("chatkeep-store-{}", what.store).into()),
        ("WorkingDirectory", "/".into()),
        ("TimeoutStopUSec", STOP_TIMEOUT_US.into()),
        ("Slice", "background.slice".into()),
        ("NoNewPrivileges", true.into()),
        ("RestrictAddressFamilies", (true, families.to_vec()).into()),
        ("SystemCallFilter", (true, vec!["@system-service"]).into()),
        ("SystemCallErrorNumber", rustix::io::Errno::PERM.raw_os_error().into()),
        // the namespaces that stay permitted: none
        ("RestrictNamespaces", 0_u64.into()),
        ("RestrictSUIDSGID", true.into()),
        ("LockPersonality", true.into()),
        ("UMask", 0o077_u32.into()),
        ("MemoryMax", MEMORY_MAX.into()),
        ("TasksMax", TASKS_MAX.into()),
        ("CPUWeight", 20_u64.into()),
        ("IOWeight", 20_u64.into()),
        ("LimitCORE", 0_u64.into()),
    ];
    if namespaces {
        let paths: Vec<_> = what.paths.iter().map(|path| bind(path)).collect();
        properties.extend([
            ("ProtectSystem", "strict".into()),
            ("ProtectHome", "tmpfs".into()),
            ("PrivateTmp", true.into()),
            ("BindPaths", paths.into()),
            // one that lies in the home directory must see itself
            ("BindReadOnlyPaths", vec![bind(what.program.parent().unwrap_or(Path::new("/")))].into()),
        ]);
    }
    if let Some(unit) = bound_to {
        properties.extend([("BindsTo", vec![unit].into()), ("After", vec![unit].into())]);
    }
    properties
}

/// A bind mount to the same place, left out where there is nothing, with what is mounted below it.
fn bind(path: &Path) -> (String, String, bool, u64) {
    const RECURSIVE: u64 = 0x4000;
    let path = path.to_string_lossy().into_owned();
    (path.clone(), path, true, RECURSIVE)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_name_of_a_store_is_a_name_of_a_unit() {
        assert_eq!(unit_name("nas"), "chatkeep-store-nas.service");
        assert_eq!(unit_name("my nas/2"), "chatkeep-store-my\\x20nas\\x2f2.service");
    }

    #[test]
    fn only_a_unit_of_the_user_manager_is_bound_to() {
        let user = "0::/user.slice/user-1000.slice/user@1000.service/background.slice/chatkeepd.service\n";
        assert_eq!(unit_of(user).as_deref(), Some("chatkeepd.service"));
        assert_eq!(unit_of("0::/system.slice/docker.service\n"), None);
        assert_eq!(unit_of("0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n"), None);
        assert_eq!(unit_of("0::/\n"), None);
    }

    #[test]
    fn without_namespaces_what_needs_them_is_left_out_and_the_rest_stays() {
        let names = |namespaces| {
            let (launch, stdin) = (Launch::default(), std::io::stdin());
            let properties = properties(&launch, stdin.as_fd(), Some("chatkeepd.service"), namespaces);
            properties.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>()
        };
        let (with, without) = (names(true), names(false));
        let gone: Vec<_> = with.iter().filter(|name| !without.contains(name)).collect();
        assert_eq!(gone, ["ProtectSystem", "ProtectHome", "PrivateTmp", "BindPaths", "BindReadOnlyPaths"]);
        for kept in ["RestrictAddressFamilies", "SystemCallFilter", "NoNewPrivileges", "BindsTo"] {
            assert!(without.iter().any(|name| name == kept), "{kept}");
        }
    }
}
