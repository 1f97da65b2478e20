//! The process that has the keys never asks the kernel for a socket of the internet, whatever it is told to do.

#![allow(clippy::unwrap_used, reason = "tests")]

use chatkeep_tests::stack::notes::Notes;
use chatkeep_tests::stack::{Settings, Stack, programs};

/// A password, which needs vaults, a backup, a restore; with a bus, and with a courier of the service's own.
#[test]
fn the_service_asks_for_unix_sockets_only() {
    programs::require("dbus-daemon", "dbus-daemon").unwrap();
    let stack = Stack::start().unwrap();
    let settings = Settings { courier: false, traced: true, ..Settings::default() };
    let mut machine = stack.machine("traced", &settings).unwrap();
    machine.start().unwrap();
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say("a message").unwrap();
    let id = machine.register(notes.path(), "notes").unwrap();
    machine.enable_password(&id, "correct horse battery staple").unwrap();
    machine.wait_for_point(&id, 0).unwrap();
    machine.restore(&id, &machine.home().join("restored.db"), None).unwrap().success().unwrap();
    machine.stop().unwrap();
    let sockets = machine.trace.as_ref().unwrap().sockets("chatkeepd").unwrap();
    assert!(sockets.unix > 2, "the bus, the control socket, the courier: {sockets:?}");
    assert_eq!(sockets.others, Vec::<String>::new());
    // the courier that it started has the network: had it been looked at, it would have been seen
    let courier = machine.trace.as_ref().unwrap().sockets("chatkeep-courier").unwrap();
    assert!(courier.others.iter().any(|call| call.contains("AF_INET")), "{courier:?}");
}
