//! A third party's store: a program in another language and a manifest, in the user's home directory, through the real service.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use chatkeep_tests::stack::machine::now_us;
use chatkeep_tests::stack::notes::{self, Notes};
use chatkeep_tests::stack::{Machine, Settings, Stack, wait};

/// Puts the plugin of docs/plugins.md where a user would.
fn install(machine: &Machine) -> PathBuf {
    let program = machine.home().join("folder.py");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/examples/folder.py");
    std::fs::copy(example, &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let manifests = machine.data().join("stores");
    std::fs::create_dir_all(&manifests).unwrap();
    let manifest = format!("schemes = [\"folder\"]\nexec = \"{}\"\n", program.display());
    std::fs::write(manifests.join("folder.toml"), manifest).unwrap();
    program
}

fn store_error(machine: &Machine, name: &str) -> String {
    let status = machine.status().unwrap();
    let store =
        status["stores"].as_array().unwrap().iter().find(|store| store["id"] == name).unwrap().clone();
    store["last_error"]["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_plugin_of_the_home_directory_backs_up_and_restores_once_it_is_trusted_and_as_long_as_it_stays_the_same()
{
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("plugged", &Settings { bus: false, ..Settings::default() }).unwrap();
    let program = install(&machine);
    machine.start().unwrap();
    let url = format!("folder://{}", machine.root().join("kept").display());
    let add = ["store", "add", "mine", url.as_str()];
    let before = std::fs::read_to_string(machine.config_file()).unwrap();

    let refused = machine.run(&add, None).unwrap();
    assert!(refused.explanation().contains("chatkeep store trust folder"), "{}", refused.explanation());
    assert_eq!(
        std::fs::read_to_string(machine.config_file()).unwrap(),
        before,
        "a failure changed the configuration"
    );

    machine.run(&["store", "trust", "folder"], None).unwrap().success().unwrap();
    machine.run(&add, None).unwrap().success().unwrap();
    let notes = Notes::open(&machine.home().join("notes.db")).unwrap();
    notes.say("over a plugin in Python").unwrap();
    let path = notes.path().to_str().unwrap();
    machine.run(&["register", path, "--name", "notes", "--store", "mine"], None).unwrap().success().unwrap();
    machine.enable_digits("notes").unwrap();
    machine.wait_for_point("notes", 0).unwrap();
    let back = machine.home().join("back.db");
    machine.restore("notes", &back, None).unwrap().success().unwrap();
    assert_eq!(notes::texts(&back).unwrap(), ["over a plugin in Python"]);

    // exchanged: it is not run again, and the service says what to do and goes on with its other stores
    machine.stop().unwrap();
    let text = std::fs::read_to_string(&program).unwrap();
    std::fs::write(&program, format!("{text}\n# and more\n")).unwrap();
    machine.start().unwrap();
    wait::until("the store is refused", wait::PATIENCE, || {
        Ok(store_error(&machine, "mine").contains("chatkeep store trust folder").then_some(()))
    })
    .unwrap();
    machine.run(&["store", "test", "shelf"], None).unwrap().success().unwrap();

    // the user has looked at it, and it goes on where it was
    machine.run(&["store", "trust", "folder"], None).unwrap().success().unwrap();
    machine.run(&["store", "test", "mine"], None).unwrap().success().unwrap();
    let before = now_us();
    notes.say("after it was looked at").unwrap();
    machine.wait_for_point("notes", before).unwrap();
}

#[test]
fn a_store_that_fails_its_trial_leaves_the_configuration_as_it_was() {
    let stack = Stack::start().unwrap();
    let mut machine = stack.machine("tried", &Settings { bus: false, ..Settings::default() }).unwrap();
    machine.start().unwrap();
    let before = std::fs::read_to_string(machine.config_file()).unwrap();
    for (url, more, told) in [
        ("nothing:x", &[][..], "no store plugin has the scheme `nothing:`"),
        ("s3://bucket/x", &["--option", "endpont=x"], "there is no option `endpont`"),
        ("sftp://127.0.0.1/x", &["--option", "port=1"], "Connection refused"),
        ("file:relative", &[], "absolute"),
    ] {
        let arguments: Vec<&str> = ["store", "add", "new", url].iter().chain(more).copied().collect();
        let ran = machine.run(&arguments, Some("key\nsecret\n")).unwrap();
        assert_ne!(ran.code, 0, "{url}");
        assert!(ran.explanation().contains(told), "{url}: {}", ran.explanation());
        assert_eq!(std::fs::read_to_string(machine.config_file()).unwrap(), before, "{url}");
    }
    machine.run(&["store", "test", "shelf"], None).unwrap().success().unwrap();
}

/// The kit that authors of plugins use, on the example of the documentation and on one that lies.
#[test]
fn the_kit_tells_a_good_plugin_from_a_bad_one() {
    let stack = Stack::start().unwrap();
    let machine = stack.machine("author", &Settings { bus: false, ..Settings::default() }).unwrap();
    let program = install(&machine);
    let url = format!("folder://{}", machine.root().join("kept").display());
    let path = program.to_str().unwrap();
    let check = || machine.run(&["store", "check", path, "--url", &url, "--quick"], None).unwrap();
    let good = check();
    assert_eq!((good.code, good.last()["passed"].as_bool()), (0, Some(true)), "{}", good.last()["tap"]);
    assert!(good.last()["tap"].as_str().unwrap().starts_with("TAP version 13\n1.."));

    let text = std::fs::read_to_string(&program).unwrap();
    let bad = text.replace("\"create\": \"atomic\"", "\"create\": \"atomic\", \"usage\": True");
    assert_ne!(bad, text);
    std::fs::write(&program, bad).unwrap();
    let bad = check();
    assert_eq!((bad.code, bad.last()["passed"].as_bool()), (1, Some(false)), "{}", bad.last()["tap"]);
}
