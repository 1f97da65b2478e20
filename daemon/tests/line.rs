//! What the system says of the line, the battery and its sleep reaches the loop.
//!
//! A real dbus-daemon; behind it python-dbusmock in the places of NetworkManager, UPower, power profiles and logind, which
//! need hardware, a seat and root.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chatkeep_planner::Conditions;
use chatkeepd::event::Event;
use tokio::sync::{mpsc, oneshot};
use zbus::Connection;
use zbus::zvariant::Value;

const PATIENCE: Duration = Duration::from_secs(30);
const MOCK: &str = "org.freedesktop.DBus.Mock";
const NM: (&str, &str) = ("org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager");
const UPOWER: (&str, &str) = ("org.freedesktop.UPower", "/org/freedesktop/UPower");
const BATTERY: (&str, &str) = ("org.freedesktop.UPower", "/org/freedesktop/UPower/devices/DisplayDevice");
const PROFILES: (&str, &str) = ("net.hadess.PowerProfiles", "/net/hadess/PowerProfiles");
const LOGIND: (&str, &str) = ("org.freedesktop.login1", "/org/freedesktop/login1");

/// Killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A system bus with stand-ins on it, and the watcher.
struct World {
    bus: Connection,
    address: String,
    events: mpsc::Receiver<Event>,
    mocks: Vec<Process>,
    _watcher: tokio::task::JoinHandle<zbus::Result<()>>,
    _daemon: Process,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let (daemon, address) = dbus_daemon(folder.path());
        let bus = zbus::connection::Builder::address(address.as_str()).unwrap().build().await.unwrap();
        let watched = zbus::connection::Builder::address(address.as_str()).unwrap().build().await.unwrap();
        let (sender, events) = mpsc::channel(16);
        let watcher = tokio::spawn(async move { chatkeepd::line::watch(&watched, &sender).await });
        Self { bus, address, events, mocks: Vec::new(), _watcher: watcher, _daemon: daemon, _folder: folder }
    }

    /// Lets a template of dbusmock take its place, and waits until it has.
    async fn start(&mut self, template: &str, (name, _): (&str, &str)) {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-m", "dbusmock", "--template", template]);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address).stdout(Stdio::null());
        self.mocks.push(Process(command.spawn().expect("python3, of Debian, with python3-dbusmock")));
        let broker = zbus::fdo::DBusProxy::new(&self.bus).await.unwrap();
        let there = async {
            while !broker.name_has_owner(name.try_into().unwrap()).await.unwrap() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.expect("dbusmock (Debian: python3-dbusmock)");
    }

    async fn mock(
        &self,
        (name, path): (&str, &str),
        method: &str,
        body: &(impl serde::Serialize + zbus::zvariant::DynamicType),
    ) {
        self.bus.call_method(Some(name), path, Some(MOCK), method, body).await.unwrap();
    }

    async fn set(&self, object: (&str, &str), interface: &str, property: &str, value: Value<'_>) {
        self.mock(object, "UpdateProperties", &(interface, HashMap::from([(property, value)]))).await;
    }

    /// The next that is told.
    async fn told(&mut self) -> (Conditions, oneshot::Sender<()>) {
        let event =
            tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("nothing was told").unwrap();
        let Event::Conditions { conditions, seen } = event else { panic!("another event") };
        (conditions, seen)
    }

    /// Waits until this is told; what is between comes from services that appear bit by bit.
    async fn expect(&mut self, expected: Conditions) {
        loop {
            let (conditions, seen) = self.told().await;
            seen.send(()).unwrap();
            if conditions == expected {
                return;
            }
        }
    }

    async fn prepare_for_sleep(&self, starts: bool) {
        let signal = ("org.freedesktop.login1.Manager", "PrepareForSleep", "b", vec![Value::from(starts)]);
        self.mock(LOGIND, "EmitSignal", &signal).await;
    }

    /// Who keeps the machine from sleeping.
    async fn inhibitors(&self) -> usize {
        let (name, path) = LOGIND;
        let manager = Some("org.freedesktop.login1.Manager");
        let answer = self.bus.call_method(Some(name), path, manager, "ListInhibitors", &()).await.unwrap();
        let list: Vec<(String, String, String, String, u32, u32)> = answer.body().deserialize().unwrap();
        list.iter()
            .filter(|(what, who, _, mode, ..)| what == "sleep" && who == "Chatkeep" && mode == "delay")
            .count()
    }

    async fn wait_for_inhibitors(&self, count: usize) {
        let wait = async {
            while self.inhibitors().await != count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never {count} inhibitors"));
    }
}

fn dbus_daemon(folder: &Path) -> (Process, String) {
    let mut command = Command::new("dbus-daemon");
    let socket = format!("--address=unix:path={}", folder.join("bus").display());
    command.args(["--session", "--print-address", "--nofork", "--nopidfile", &socket]).stdout(Stdio::piped());
    let mut child = command.spawn().expect("dbus-daemon (Debian: dbus-daemon)");
    let mut address = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
    (Process(child), address.trim().to_owned())
}

#[tokio::test]
async fn a_machine_that_says_nothing_is_well() {
    let mut world = World::new().await;
    let (conditions, _) = world.told().await;
    assert_eq!(conditions, Conditions::default());
}

#[tokio::test]
async fn the_line_is_told_and_when_it_changes() {
    let mut world = World::new().await;
    world.expect(Conditions::default()).await;
    world.start("networkmanager", NM).await;
    world.mock(NM, "AddProperty", &(NM.0, "Metered", Value::from(0_u32))).await;
    // 3 is a guess that it is, 4 a guess that it is not
    world.set(NM, NM.0, "Metered", Value::from(3_u32)).await;
    world.expect(Conditions { metered: true, ..Conditions::default() }).await;
    world.set(NM, NM.0, "Metered", Value::from(4_u32)).await;
    world.expect(Conditions::default()).await;
    // disconnected, then connected to the whole net
    world.set(NM, NM.0, "State", Value::from(20_u32)).await;
    world.expect(Conditions { offline: true, ..Conditions::default() }).await;
    world.set(NM, NM.0, "State", Value::from(70_u32)).await;
    world.expect(Conditions::default()).await;
    // a service that dies says nothing any more
    world.set(NM, NM.0, "Metered", Value::from(1_u32)).await;
    world.expect(Conditions { metered: true, ..Conditions::default() }).await;
    world.mocks.clear();
    world.expect(Conditions::default()).await;
}

#[tokio::test]
async fn the_battery_and_the_wish_to_save_it_are_told() {
    let mut world = World::new().await;
    world.start("upower", UPOWER).await;
    let on_battery = Conditions { on_battery: true, battery_percent: Some(0), ..Conditions::default() };
    world.set(UPOWER, UPOWER.0, "OnBattery", Value::from(true)).await;
    world.set(BATTERY, "org.freedesktop.UPower.Device", "IsPresent", Value::from(true)).await;
    world.expect(on_battery).await;
    world.set(BATTERY, "org.freedesktop.UPower.Device", "Percentage", Value::from(41.6_f64)).await;
    world.expect(Conditions { battery_percent: Some(42), ..on_battery }).await;
    world.start("power_profiles_daemon", PROFILES).await;
    world.set(PROFILES, PROFILES.0, "ActiveProfile", Value::from("power-saver")).await;
    world.expect(Conditions { battery_percent: Some(42), power_saver: true, ..on_battery }).await;
}

/// logind waits while somebody holds a lock: until the loop has stopped what it sends.
#[tokio::test]
async fn the_machine_sleeps_when_the_loop_has_taken_it_in() {
    let mut world = World::new().await;
    // before the watcher looks for it
    world.start("logind", LOGIND).await;
    world.expect(Conditions::default()).await;
    world.prepare_for_sleep(false).await;
    world.wait_for_inhibitors(1).await;
    world.prepare_for_sleep(true).await;
    let (conditions, seen) = world.told().await;
    assert!(conditions.sleeping);
    assert_eq!(world.inhibitors().await, 1, "the lock is released before anything has stopped");
    seen.send(()).unwrap();
    world.wait_for_inhibitors(0).await;
    world.prepare_for_sleep(false).await;
    world.expect(Conditions::default()).await;
    world.wait_for_inhibitors(1).await;
}
