//! A machine whose battery is low sends nothing by itself, says so, and does what a person asks for.
//!
//! python-dbusmock stands in the place of UPower, which needs a battery.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::process::{Command, Stdio};

use chatkeep_tests::stack::machine::now_us;
use chatkeep_tests::stack::notes::Notes;
use chatkeep_tests::stack::process::Process;
use chatkeep_tests::stack::{Machine, Settings, Stack, programs, wait};
use zbus::Connection;
use zbus::zvariant::Value;

const UPOWER: &str = "org.freedesktop.UPower";
const POWER: (&str, &str) = ("/org/freedesktop/UPower", UPOWER);
const BATTERY: (&str, &str) =
    ("/org/freedesktop/UPower/devices/DisplayDevice", "org.freedesktop.UPower.Device");

/// A battery for the machine.
struct Battery {
    bus: Connection,
    _mock: Process,
}

impl Battery {
    async fn of(machine: &Machine) -> Self {
        let address = &machine.bus.as_ref().unwrap().address;
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-m", "dbusmock", "--template", "upower"]).env("DBUS_SYSTEM_BUS_ADDRESS", address);
        command.stdout(Stdio::null());
        let mock = Process::start("dbusmock", &mut command, &machine.root().join("upower.log")).unwrap();
        let bus = zbus::connection::Builder::address(address.as_str()).unwrap().build().await.unwrap();
        let broker = zbus::fdo::DBusProxy::new(&bus).await.unwrap();
        while !broker.name_has_owner(UPOWER.try_into().unwrap()).await.unwrap() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let battery = Self { bus, _mock: mock };
        battery.set(BATTERY, "IsPresent", Value::from(true)).await;
        battery
    }

    async fn set(&self, (path, interface): (&str, &str), property: &str, value: Value<'_>) {
        let body = (interface, HashMap::from([(property, value)]));
        let mock = Some("org.freedesktop.DBus.Mock");
        self.bus.call_method(Some(UPOWER), path, mock, "UpdateProperties", &body).await.unwrap();
    }

    /// Unplugged, with so many percent.
    async fn drain(&self, percent: f64) {
        self.set(BATTERY, "Percentage", Value::from(percent)).await;
        self.set(POWER, "OnBattery", Value::from(true)).await;
    }
}

fn store_state(machine: &Machine) -> (String, String) {
    let store = machine.status().unwrap()["stores"][0].clone();
    let text = |name: &str| store[name].as_str().unwrap().to_owned();
    (text("state"), text("pause_reason"))
}

fn wait_for_state(machine: &Machine, state: &str, reason: &str) {
    wait::until("the store is in the state that is expected", wait::PATIENCE, || {
        Ok((store_state(machine) == (state.to_owned(), reason.to_owned())).then_some(()))
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_battery_holds_what_nobody_asked_for() {
    programs::require("dbus-daemon", "dbus-daemon").unwrap();
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("laptop", &Settings::default()).unwrap();
    let battery = Battery::of(&machine).await;
    machine.start().unwrap();
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say("plugged in").unwrap();
    let id = machine.register(notes.path(), "notes").unwrap();
    machine.enable_digits(&id).unwrap();
    let first = machine.wait_for_point(&id, 0).unwrap();

    battery.drain(12.0).await;
    wait_for_state(&machine, "paused", "battery");
    notes.say("on the way").unwrap();
    wait::until("the change waits", wait::PATIENCE, || {
        let database = machine.database(&id)?;
        Ok((database["state"] == "paused" && database["pending_bytes"].as_u64() > Some(0)).then_some(()))
    })
    .unwrap();
    assert_eq!(machine.points(&id).unwrap().last(), Some(&first), "a point although nothing is sent");

    let before = now_us();
    machine.back_up(&id).unwrap();
    assert!(machine.points(&id).unwrap().len() > 1, "a person asked, and nothing came of it");
    wait_for_state(&machine, "paused", "battery");

    notes.say("still on the way").unwrap();
    battery.set(POWER, "OnBattery", Value::from(false)).await;
    machine.wait_for_point(&id, before.max(now_us() - 1_000_000)).unwrap();
    let (state, reason) = store_state(&machine);
    assert_eq!((state.as_str(), reason.as_str()), ("ok", ""));
}
