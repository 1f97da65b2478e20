//! What surrounds the service on a desktop: the keyring that holds its keys, and the manager that starts and stops it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use chatkeep_tests::stack::machine::now_us;
use chatkeep_tests::stack::notes::Notes;
use chatkeep_tests::stack::process::Process;
use chatkeep_tests::stack::{Machine, Settings, Stack, programs, scan, wait};
use rustix::process::Signal;

const TEXT: &str = "the harbour at nine, bring the red folder";

/// GNOME Keyring on the machine's bus, unlocked as at log-in.
fn keyring(machine: &Machine) -> Process {
    let program = programs::require("gnome-keyring-daemon", "gnome-keyring").unwrap();
    let mut command = programs::leashed(&program);
    for (name, value) in machine.service_command().unwrap().get_envs() {
        value.map(|value| command.env(name, value));
    }
    // "--unlock" reads the log-in password from standard input until its end
    let password = machine.root().join("login");
    std::fs::write(&password, "log-in password").unwrap();
    command.args(["--unlock", "--components=secrets", "--foreground"]).env_remove("DISPLAY");
    command.stdin(std::fs::File::open(&password).unwrap()).stdout(Stdio::null());
    let log = machine.root().join("keyring.log");
    let process = Process::start("gnome-keyring-daemon", &mut command, &log).unwrap();
    // whoever asks for the name before would have the bus start another one, which nobody unlocks
    let mut ask = Command::new(programs::require("dbus-send", "dbus-bin").unwrap());
    ask.envs(machine.service_command().unwrap().get_envs().filter_map(|(name, value)| Some((name, value?))));
    ask.args(["--session", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"]);
    ask.args(["org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.secrets"]);
    wait::until("the keyring is on the bus", wait::PATIENCE, || {
        let owned = String::from_utf8_lossy(&ask.output()?.stdout).contains("true");
        Ok((owned && machine.root().join("data/keyrings/login.keyring").exists()).then_some(()))
    })
    .unwrap();
    process
}

/// Takes out where keys are kept: the default is the desktop's keyring.
fn configure_for_keyring(machine: &Machine) {
    let config = std::fs::read_to_string(machine.config_file()).unwrap();
    machine.configure(&config.replace("key_storage = \"file\"\n", "")).unwrap();
}

#[test]
fn the_desktop_keyring_keeps_the_keys_and_no_file_does() {
    programs::require("dbus-daemon", "dbus-daemon").unwrap();
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("desktop", &Settings::default()).unwrap();
    configure_for_keyring(&machine);
    let _keyring = keyring(&machine);
    machine.start().unwrap();
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say(TEXT).unwrap();
    let id = machine.register(notes.path(), "notes").unwrap();
    let digits = machine.enable_digits(&id).unwrap();
    machine.wait_for_point(&id, 0).unwrap();
    let places = [machine.data(), machine.state(), machine.root().join("data/keyrings"), stack.store()];
    assert_eq!(scan::scan(&places, &scan::digits("digits", &digits)).unwrap().len(), 0);
    assert!(!machine.data().join("keys").exists(), "a key file although the keyring has the key");

    machine.stop().unwrap();
    machine.start().unwrap();
    notes.say(TEXT).unwrap();
    machine.wait_for_point(&id, now_us() - 1).map(drop).or_else(|_| machine.back_up(&id)).unwrap();
}

/// The bus starts a keyring that nobody unlocked: keys cannot be kept, so nothing is encrypted with them.
#[test]
fn a_keyring_that_nobody_unlocked_is_named_and_nothing_is_enabled() {
    programs::require("dbus-daemon", "dbus-daemon").unwrap();
    programs::require("gnome-keyring-daemon", "gnome-keyring").unwrap();
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("bare", &Settings::default()).unwrap();
    configure_for_keyring(&machine);
    machine.start().unwrap();
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say(TEXT).unwrap();
    let id = machine.register(notes.path(), "notes").unwrap();
    let error = format!("{:#}", machine.enable_digits(&id).unwrap_err());
    assert!(error.contains("keyring"), "{error}");
    assert_eq!(machine.database(&id).unwrap()["encryption"]["mode"], "none");
    assert!(!machine.data().join("keys").exists());
}

/// What systemd sees of a service of `Type=notify-reload`.
#[test]
fn the_manager_is_told_of_start_life_reload_and_end() {
    let stack = Stack::start().unwrap();
    let machine = stack.machine("managed", &Settings { bus: false, ..Settings::default() }).unwrap();
    let path = machine.root().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let next = |wanted: &str| loop {
        let mut message = [0; 4096];
        let len = socket.recv(&mut message).unwrap_or_else(|error| panic!("no {wanted}: {error}"));
        let message = String::from_utf8_lossy(&message[..len]).into_owned();
        if message.lines().any(|line| line == wanted) {
            return message;
        }
    };
    let mut command: Command = machine.service_command().unwrap();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    let mut service = Process::start("chatkeepd", &mut command, &machine.log()).unwrap();
    next("READY=1");
    assert!(machine.run(&["status"], None).unwrap().lines.len() == 1, "ready means that it answers");
    for _ in 0..3 {
        next("WATCHDOG=1");
    }
    service.signal(Signal::HUP).unwrap();
    let reloading = next("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    next("READY=1");
    service.signal(Signal::TERM).unwrap();
    next("STOPPING=1");
    assert!(service.wait(Duration::from_secs(20)).unwrap().success());
}
