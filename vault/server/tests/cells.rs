//! One vault in several cells: a client that knows one address reaches every account, and each in one cell only.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use chatkeep_vault_client::{Invite, Invites, KdfParams, VaultError, VaultPin, info, register_invited};
use common::program::{PROGRAM, Program, courier};
use common::{KEY, PASSWORD, enroll, try_enroll, unlock};
use rand_core::OsRng;

/// Two cells of one vault, not yet served.
struct Cells {
    dir: tempfile::TempDir,
    ports: [u16; 2],
}

impl Cells {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // free a moment ago: good enough for a test
        let ports = [(); 2]
            .map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let cells = Self { dir, ports };
        succeed(Command::new(PROGRAM).args(["init", "--insecure-dev", "--data"]).arg(cells.data("keys")));
        let [a, b] = ports;
        let map = format!("version = 3\ncells = [['https://127.0.0.1:{a}'], ['https://127.0.0.1:{b}']]\n");
        std::fs::write(cells.path("map"), map).unwrap();
        for number in [0, 1] {
            let data = cells.data(&number.to_string());
            std::fs::create_dir(&data).unwrap();
            std::fs::copy(cells.data("keys").join("keys.soft"), data.join("keys.soft")).unwrap();
            let config = format!(
                "data = '{}'\nlisten = '127.0.0.1:{}'\ninsecure_dev = true\n[cell]\nmap = '{}'\nnumber = {number}\n",
                data.display(),
                ports[number],
                cells.path("map").display()
            );
            std::fs::write(cells.path(&format!("{number}.toml")), config).unwrap();
        }
        cells
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("data-".to_owned() + name)
    }

    fn sign_map(&self) {
        succeed(
            Command::new(PROGRAM)
                .arg("sign-cells")
                .arg("--data")
                .arg(self.data("keys"))
                .arg(self.path("map")),
        );
    }

    fn program(&self, command: &str, number: usize) -> Command {
        let mut program = Command::new(PROGRAM);
        program.arg(command).arg("--config").arg(self.path(&format!("{number}.toml")));
        program
    }

    fn records(&self, number: usize) -> u64 {
        let status = succeed(&mut self.program("status", number));
        let status = String::from_utf8(status.stdout).unwrap();
        status.lines().find_map(|line| line.strip_prefix("records ")).unwrap().parse().unwrap()
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn fail(command: &mut Command, why: &str) {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains(why), "{errors}");
}

#[tokio::test]
async fn one_address_leads_to_every_account() {
    let cells = Cells::new();
    cells.sign_map();
    for number in [0, 1] {
        succeed(&mut cells.program("init", number));
    }
    let mut served = [0, 1].map(|number| Some(Program::start(&mut cells.program("serve", number))));
    let pins = [served[0].as_ref().unwrap().pin()];
    assert_eq!(served[1].as_ref().unwrap().pin().identity, pins[0].identity);
    let transport = courier(cells.dir.path());
    assert_eq!(info(&transport, &pins[0], &mut OsRng).await.unwrap().0.store, "sqlite");

    let mut slots = Vec::new();
    while slots.len() < 8 || (cells.records(0).min(cells.records(1)) == 0 && slots.len() < 64) {
        slots.push(enroll(&transport, &pins, 1).await.slot);
    }
    for slot in &slots {
        let wrong = unlock(&transport, &pins, slot, b"wrong").await.unwrap_err();
        assert_eq!(wrong, VaultError::WrongPassword { left: 9, max: 10 });
        assert_eq!(*unlock(&transport, &pins, slot, PASSWORD).await.unwrap().key, KEY);
    }
    let records = [cells.records(0), cells.records(1)];
    assert_eq!(records[0] + records[1], slots.len() as u64);
    assert!(records[0] > 0 && records[1] > 0, "{records:?}");

    // the accounts of a cell that is away are away, the others are not
    served[1] = None;
    let mut away = 0;
    for slot in &slots {
        match unlock(&transport, &pins, slot, PASSWORD).await {
            Ok(_) => {}
            Err(VaultError::Unreachable { .. }) => away += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(away, records[1]);
}

#[tokio::test]
async fn cells_that_disagree_are_noticed_by_the_client() {
    let cells = Cells::new();
    // the other cell's address leads to the first one, which sends the client there again
    let [a, _] = cells.ports;
    let map = format!("version = 4\ncells = [['https://127.0.0.1:{a}'], ['https://127.0.0.1:{a}']]\n");
    std::fs::write(cells.path("map"), map).unwrap();
    cells.sign_map();
    succeed(&mut cells.program("init", 0));
    let served = Program::start(&mut cells.program("serve", 0));
    let pin: VaultPin = served.pin();
    let transport = courier(cells.dir.path());
    for _ in 0..64 {
        match try_enroll(&transport, std::slice::from_ref(&pin), 1).await {
            Ok(_) => {}
            Err(VaultError::Protocol { what, .. }) if what.contains("each other") => return,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("no account was of the other cell");
}

/// Cells have no store in common that could count for all of them.
#[tokio::test]
async fn an_invitation_is_counted_in_each_cell_and_its_record_is_at_home_there() {
    let cells = Cells::new();
    cells.sign_map();
    for number in [0, 1] {
        let path = cells.path(&format!("{number}.toml"));
        let config = std::fs::read_to_string(&path).unwrap() + "[admission]\nkind = 'invite'\n";
        std::fs::write(path, config).unwrap();
        succeed(&mut cells.program("init", number));
    }
    let made = succeed(cells.program("invite", 0).args(["--expires", "1h"]));
    let invite: Invite = String::from_utf8(made.stdout).unwrap().parse().unwrap();
    let serve = || [0, 1].map(|number| Program::start(&mut cells.program("serve", number)).ready());
    let served = serve();
    let (transport, pins) = (courier(cells.dir.path()), [served[0].pin()]);
    let invites = Invites::from([(pins[0].identity, invite)]);
    let mut admitted = 0;
    for _ in 0..64 {
        let (kdf, context) = (KdfParams::TESTING, [1; 16]);
        match register_invited(&transport, &pins, &invites, 1, &context, PASSWORD, &KEY, kdf, &mut OsRng)
            .await
        {
            Ok(_) => admitted += 1,
            Err(VaultError::AdmissionRefused { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((admitted, cells.records(0), cells.records(1)), (2, 2, 2));
    drop(served);
    // each still has records of its own only, or it would not
    serve();
}

#[test]
fn a_cell_needs_a_signed_map_the_vaults_keys_and_its_own_records() {
    let cells = Cells::new();
    fail(&mut cells.program("init", 0), "not signed by this vault's identity");
    cells.sign_map();
    succeed(&mut cells.program("init", 0));
    fail(&mut cells.program("init", 0), "there is an anchor already");

    let text = std::fs::read_to_string(cells.path("map")).unwrap();
    std::fs::write(cells.path("map"), text.replace("version = 3", "version = 4")).unwrap();
    fail(&mut cells.program("serve", 0), "not signed by this vault's identity");
    std::fs::write(cells.path("map"), &text).unwrap();

    let number = cells.path("0.toml");
    let config = std::fs::read_to_string(&number).unwrap();
    std::fs::write(&number, config.replace("number = 0", "number = 2")).unwrap();
    fail(&mut cells.program("serve", 0), "there is no cell 2");

    std::fs::remove_file(cells.data("1").join("keys.soft")).unwrap();
    fail(&mut cells.program("init", 1), "needs the vault's keys");
}

/// Records of another cell could be guessed at here and there.
#[tokio::test]
async fn a_cell_with_accounts_of_another_cell_does_not_serve() {
    let cells = Cells::new();
    cells.sign_map();
    succeed(&mut cells.program("init", 0));
    {
        let served = Program::start(&mut cells.program("serve", 0));
        let (transport, pins) = (courier(cells.dir.path()), [served.pin()]);
        // some of them are of the other cell, which is away
        for _ in 0..64 {
            if cells.records(0) > 0 {
                break;
            }
            drop(try_enroll(&transport, &pins, 1).await);
        }
        assert!(cells.records(0) > 0);
    }
    // the same disk, served as the other cell
    move_all(&cells.data("0"), &cells.data("1"));
    fail(&mut cells.program("serve", 1), "records of another cell");
}

fn move_all(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).unwrap();
    std::fs::rename(from, to).unwrap();
}
