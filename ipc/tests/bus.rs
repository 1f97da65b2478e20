//! With a real bus: a private `dbus-daemon` that the test starts.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chatkeep_ipc::names::{BUS_NAME, database_path};
use chatkeep_ipc::proxy::{self, EncryptionProxy, ManagerProxy, Options};
use chatkeep_ipc::{BusAddress, ServeError, Settings};
use common::{eventually, secret, start};
use futures_util::StreamExt as _;
use zbus::fdo::{DBusProxy, MonitoringProxy};
use zbus::{Connection, MessageStream};

/// A bus of its own, ended when dropped.
struct Bus {
    daemon: Child,
    address: String,
}

impl Bus {
    fn start() -> Self {
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address=1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is needed for this test (Debian package: dbus-daemon)");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(!address.trim().is_empty(), "dbus-daemon did not say where it is");
        Self { daemon, address: address.trim().to_owned() }
    }

    async fn connect(&self) -> Connection {
        zbus::connection::Builder::address(self.address.as_str()).unwrap().build().await.unwrap()
    }

    fn address(&self) -> BusAddress {
        BusAddress::Address(self.address.clone())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sees_the_name_finds_everything_in_place() {
    let bus = Bus::start();
    let watcher = bus.connect().await;
    let dbus = DBusProxy::new(&watcher).await.unwrap();
    let mut owners = dbus.receive_name_owner_changed_with_args(&[(0, BUS_NAME)]).await.unwrap();
    let (server, _) = start(Settings::default());
    let address = bus.address();
    let serving = tokio::spawn(async move { server.serve_bus(&address).await });
    owners.next().await.unwrap();
    // not waiting for serve_bus: an activated service is called the moment it has its name
    let objects = proxy::object_manager(&watcher).await.unwrap().get_managed_objects().await.unwrap();
    assert!(objects.keys().any(|path| *path == database_path("notes")));
    let encryption = EncryptionProxy::builder(&watcher).path(database_path("notes")).unwrap();
    let encryption = encryption.build().await.unwrap();
    encryption.enable_with_password(secret("hunter2").into(), Options::new()).await.unwrap();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_second_instance_is_told_apart_from_a_missing_bus() {
    let bus = Bus::start();
    let (first, _) = start(Settings::default());
    let serving = first.serve_bus(&bus.address()).await.unwrap();
    let (second, _) = start(Settings::default());
    let answer = second.serve_bus(&bus.address()).await;
    assert!(matches!(answer, Err(ServeError::NameTaken)), "{answer:?}");
    serving.leave().await;
    let next = second.serve_bus(&bus.address()).await.unwrap();
    drop(bus);
    tokio::time::timeout(Duration::from_secs(5), next.closed()).await.expect("the end of the bus is noticed");
    let nowhere = BusAddress::Address("unix:path=/nonexistent/bus".into());
    assert!(matches!(second.serve_bus(&nowhere).await, Err(ServeError::Bus(_))));
}

/// A monitor gets a copy of every message and descriptor on the bus. On the control socket there is nothing to copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_sees_no_password_that_goes_through_the_control_socket() {
    let bus = Bus::start();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("chatkeep/control.sock");
    let (server, log) = start(Settings::default());
    let _bus = server.serve_bus(&bus.address()).await.unwrap();
    let _socket = server.serve_control_socket(&path).await.unwrap();

    let monitor = bus.connect().await;
    MonitoringProxy::new(&monitor).await.unwrap().become_monitor(&[], 0).await.unwrap();
    let seen = common::Log::default();
    let log_of_monitor = seen.clone();
    tokio::spawn(async move {
        let mut messages = MessageStream::from(&monitor);
        while let Some(Ok(message)) = messages.next().await {
            let member = message.header().member().map(ToString::to_string).unwrap_or_default();
            let body = String::from_utf8_lossy(message.body().data()).into_owned();
            log_of_monitor.add(format!("{member} {} {body}", message.data().fds().len()));
        }
    });

    let control = proxy::connect_socket(&path).await.unwrap();
    let encryption = EncryptionProxy::builder(&control).path(database_path("notes")).unwrap();
    let encryption = encryption.build().await.unwrap();
    encryption.enable_with_password(secret("correct horse battery").into(), Options::new()).await.unwrap();
    assert_eq!(log.lines(), ["password correct horse battery None"]);

    // the monitor works: it sees an ordinary call, and the signals of the change
    let client = bus.connect().await;
    ManagerProxy::new(&client).await.unwrap().version().await.unwrap();
    eventually("the monitor sees the signal", || {
        seen.lines().iter().any(|line| line.starts_with("PropertiesChanged"))
    })
    .await;
    eventually("the monitor sees the call", || seen.lines().iter().any(|line| line.starts_with("Get"))).await;
    for line in seen.lines() {
        assert!(!line.contains("correct horse") && !line.starts_with("EnableWithPassword"), "{line}");
        assert!(line.split(' ').nth(1) == Some("0"), "no descriptor crosses the bus: {line}");
    }
}
