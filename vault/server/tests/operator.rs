//! What goes wrong when somebody sets up and runs a vault, and what he is told: one line that says where and what to do.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use chatkeep_vault_client::VaultError;
use common::program::{PROGRAM, Program, courier};
use common::{try_enroll, unlock};
use tempfile::TempDir;

struct Operator {
    dir: TempDir,
}

impl Operator {
    fn new() -> Self {
        let operator = Self { dir: tempfile::tempdir().unwrap() };
        operator.configure("");
        operator
    }

    /// Keys in software in `data`, with `settings`.
    fn configure(&self, settings: &str) {
        let data = self.data();
        let base = format!("data = '{}'\nlisten = '127.0.0.1:0'\ninsecure_dev = true\n", data.display());
        std::fs::write(self.config(), base + settings).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn program(&self, command: &str) -> Command {
        let mut program = Command::new(PROGRAM);
        program.arg(command).arg("--config").arg(self.config()).env("RUST_BACKTRACE", "1");
        program
    }

    /// What it prints when it succeeds.
    fn does(&self, command: &str) -> String {
        let output = self.program(command).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// It fails and says `why`.
    fn is_told(&self, command: &str, why: &str) {
        is_told(&mut self.program(command), why);
    }
}

fn is_told(command: &mut Command, why: &str) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(why), "{command:?}: {said}");
    assert!(!said.contains("backtrace") && output.stdout.is_empty(), "{command:?}: {said}");
}

const ALL_COMMANDS: [&str; 7] =
    ["serve", "status", "fingerprint", "rotate-seal-key", "enrol-witnesses", "restore-ceremony", "invite"];

#[test]
fn a_configuration_that_is_not_there_or_not_understood_is_named() {
    let operator = Operator::new();
    operator.configure("typo = 1\n");
    let config = operator.config();
    for command in ALL_COMMANDS.into_iter().chain(["init"]) {
        operator.is_told(command, "unknown field `typo`");
        operator.is_told(command, config.to_str().unwrap());
    }
    std::fs::remove_file(&config).unwrap();
    operator.is_told("init", &format!("`{}`: No such file", config.display()));
    is_told(Command::new(PROGRAM).arg("serve"), "<--config <CONFIG>|--data <DATA>>");
    is_told(Command::new(PROGRAM).args(["serve", "--config", "a", "--data", "b"]), "cannot be used with");
}

#[test]
fn a_vault_that_was_never_made_is_to_be_made() {
    let operator = Operator::new();
    operator.configure("[admission]\nkind = 'invite'\n");
    for command in ["serve", "status", "fingerprint", "rotate-seal-key", "enrol-witnesses", "invite"] {
        operator.is_told(command, "make a vault with `chatkeep-vault init`");
    }
    std::fs::create_dir(operator.data()).unwrap();
    operator.is_told("serve", operator.data().to_str().unwrap());
}

#[test]
fn a_vault_is_made_once() {
    let operator = Operator::new();
    let made = operator.does("init");
    assert_eq!(made, format!("identity {}", operator.does("fingerprint")));
    operator.is_told("init", "there is an anchor already");
    std::fs::remove_file(operator.data().join("anchor")).unwrap();
    operator.is_told("init", "holds a vault already");
    std::fs::remove_file(operator.data().join("vault.db")).unwrap();
    operator.is_told("init", "has the keys of a vault already: keys.soft");
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let operator = Operator::new();
    operator.does("init");
    let keys = operator.data().join("keys.soft");
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o644)).unwrap();
    for command in ["serve", "status", "fingerprint"] {
        operator.is_told(command, "keys.soft` must be readable by its owner only, it has mode 644");
    }
}

#[test]
fn keys_and_database_must_be_of_one_vault() {
    let (operator, other) = (Operator::new(), Operator::new());
    operator.does("init");
    other.does("init");
    std::fs::copy(other.data().join("keys.soft"), operator.data().join("keys.soft")).unwrap();
    operator.is_told("serve", "another vault's than the keys");
    std::fs::write(other.data().join("vault.db"), b"").unwrap();
    for command in ["serve", "status"] {
        other.is_told(command, "it is empty, or not a vault's");
    }
}

#[test]
fn what_a_serving_vault_holds_is_left_to_it() {
    let operator = Operator::new();
    operator.configure("[admission]\nkind = 'invite'\n");
    operator.does("init");
    let served = Program::start(&mut operator.program("serve")).ready();
    let mut ceremony = operator.program("restore-ceremony");
    ceremony.args(["--phrase", chatkeep_vault_server::ceremony::PHRASE]);
    for command in [&mut operator.program("serve"), &mut operator.program("rotate-seal-key"), &mut ceremony] {
        is_told(command, "is being served by another process: stop it first");
    }
    assert!(operator.does("status").contains("commits 0"));
    let invites = operator.program("invite").args(["--count", "3", "--expires", "1h"]).output().unwrap();
    assert_eq!(String::from_utf8(invites.stdout).unwrap().lines().count(), 3);
    served.stop();
}

#[test]
fn an_address_that_cannot_be_had_is_named_with_its_setting() {
    let operator = Operator::new();
    operator.does("init");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = TcpListener::bind(taken).unwrap();
    operator.configure(&format!("metrics = '{taken}'\n"));
    operator.is_told("serve", &format!("cannot listen on {taken} (`metrics`): Address already in use"));
    operator.configure("metrics = '0.0.0.0:9464'\n");
    operator.is_told("serve", "can be reached by other machines");
    let config = std::fs::read_to_string(operator.config()).unwrap();
    let config = config.replace("127.0.0.1:0", &taken.to_string()).replace("metrics", "#");
    std::fs::write(operator.config(), config).unwrap();
    operator.is_told("serve", &format!("cannot listen on {taken} (`listen`): Address already in use"));
    drop(holder);
}

#[test]
fn what_is_only_for_some_vaults_says_so() {
    let operator = Operator::new();
    operator.does("init");
    operator.is_told("invite", "set [admission] kind = \"invite\"");
    operator.is_told("enrol-witnesses", "names no witnesses");
    operator.is_told("rotate-seal-key", "software keys cannot be exchanged");
    operator.is_told("restore-ceremony", "--phrase");
    is_told(operator.program("sign-cells").arg("nowhere.toml"), "`nowhere.toml`: No such file");
    is_told(operator.program("invite").args(["--uses", "0"]), "1..=1000");
    is_told(operator.program("invite").args(["--expires", "90d"]), "30 days at most");
}

/// `program` in a file system of its own, of so many kilobytes, in the operator's `data`'s parent; `then` comes before it.
fn on_small_disk(operator: &Operator, kilobytes: u32, then: &str, command: &str) -> Command {
    let (disk, program) = (operator.dir.path().join("disk"), operator.program(command));
    let program: Vec<&str> = program.get_args().map(|argument| argument.to_str().unwrap()).collect();
    let script = format!(
        "mount -t tmpfs -o size={kilobytes}k tmpfs {disk} && {init} >&2; {then}; exec {PROGRAM} {program}",
        disk = disk.display(),
        init = format_args!("{PROGRAM} init --config {}", operator.config().display()),
        program = program.join(" "),
    );
    let mut unshared = Command::new("unshare");
    unshared.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    unshared
}

fn with_disk() -> (Operator, PathBuf) {
    let operator = Operator::new();
    let disk = operator.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let config = std::fs::read_to_string(operator.config()).unwrap();
    let data = operator.data().display().to_string();
    std::fs::write(operator.config(), config.replace(&data, &disk.join("data").display().to_string()))
        .unwrap();
    (operator, disk)
}

fn fill(disk: &Path) -> String {
    format!("dd 2>/dev/null if=/dev/zero of={}/filler bs=4k", disk.display())
}

#[test]
fn a_disk_that_cannot_be_written_is_named() {
    let (operator, disk) = with_disk();
    let read_only = format!("mount -o remount,ro {}", disk.display());
    let served = on_small_disk(&operator, 400, &read_only, "serve").output().unwrap();
    let said = String::from_utf8_lossy(&served.stderr);
    assert!(said.contains("data/lock: Read-only file system"), "{said}");
}

#[test]
fn a_vault_that_could_not_be_made_leaves_nothing_that_hinders_the_next_try() {
    let (operator, disk) = with_disk();
    let full = format!("rm -r {}/data; {}", disk.display(), fill(&disk));
    let again = format!(
        "{full}; {PROGRAM} init --config {}; rm {}/filler",
        operator.config().display(),
        disk.display()
    );
    let made = on_small_disk(&operator, 400, &again, "init").output().unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(said.contains("cannot make the keys: the key file: No space left on device"), "{said}");
    assert!(made.status.success(), "{said}");
}

/// What was not written is not answered; the process ends, and says why.
#[tokio::test]
async fn a_full_disk_ends_the_vault_before_it_answers() {
    let (operator, disk) = with_disk();
    let nearly_full = format!("{} count=80", fill(&disk));
    let served = Program::start(&mut on_small_disk(&operator, 400, &nearly_full, "serve")).ready();
    let (transport, pins) = (courier(operator.dir.path()), [served.pin()]);
    let error = loop {
        if let Err(error) = try_enroll(&transport, &pins, 1).await {
            break error;
        }
    };
    assert!(matches!(error, VaultError::Unreachable { .. }), "{error}");
    let said = served.failed();
    // database or anchor, whichever found no room first
    let full = said.contains("is full") || said.contains("No space left on device");
    assert!(said.contains("Error: stopped: the ") && full, "{said}");

    let said = Program::start(&mut on_small_disk(&operator, 400, &fill(&disk), "serve")).refused();
    assert!(said.contains("the disk with the vault's database is full"), "{said}");
}

/// The same as a new operator is told to do it.
#[tokio::test]
async fn made_served_and_asked_for_its_state_a_vault_says_what_it_is() {
    let operator = Operator::new();
    operator.does("init");
    let served = Program::start(&mut operator.program("serve")).ready();
    let (transport, pins) = (courier(operator.dir.path()), [served.pin()]);
    let slot = common::enroll(&transport, &pins, 1).await.slot;
    unlock(&transport, &pins, &slot, common::PASSWORD).await.unwrap();
    let status = operator.does("status");
    for line in ["hsm soft", "anchor file", "store sqlite", "restores 0", "records 1"] {
        assert!(status.lines().any(|found| found == line), "no `{line}` in {status}");
    }
    served.stop();
}
