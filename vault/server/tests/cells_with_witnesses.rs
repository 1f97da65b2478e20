//! Two cells of one vault with one set of witnesses, which remember each cell by itself.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use chatkeep_vault_client::Identity;
use chatkeep_vault_protocol::head::{commits, restores};
use chatkeep_vault_server::ceremony::PHRASE;
use common::cells::{Cells, fail, succeed};
use common::program::{PROGRAM, Program, courier};
use common::try_enroll;
use common::witnessed::{Account, Behaviour, Node, disk, put_back, witnesses};

/// Long enough for a busy machine, when an answer is expected.
const LONG: Duration = Duration::from_mins(1);
/// When none is.
const SHORT: Duration = Duration::from_millis(700);

/// Both cells, running, with the same three witnesses, of which two must sign.
fn world() -> ([Arc<Node>; 2], Vec<Arc<Node>>) {
    let (cells, witnesses) = (Node::two_cells(), witnesses(3));
    for cell in &cells {
        cell.is_witnessed_by(&witnesses, 2);
    }
    for witness in &witnesses {
        witness.start(LONG).unwrap();
    }
    for cell in &cells {
        cell.start(LONG).unwrap();
    }
    (cells, witnesses)
}

#[test]
fn a_cell_that_was_put_back_is_refused_and_the_other_serves() {
    let ([one, other], witnesses) = world();
    let accounts = [Account::new(&one), Account::new(&other)];
    one.stop();
    let copy = disk(&one);
    one.start(LONG).unwrap();
    for n in 0..5 {
        accounts[0].left_after(&one, n);
    }
    assert_eq!(accounts[1].left_after(&other, 0), 9);
    one.stop();
    put_back(&one, &copy);
    let refused = one.start(SHORT).unwrap_err().to_string();
    assert!(refused.contains("commit 3") && refused.contains("does not serve"), "{refused}");
    assert_eq!(accounts[1].left_after(&other, 1), 8);
    // also after a start, for which witnesses are asked
    other.stop();
    other.start(LONG).unwrap();
    assert_eq!(accounts[1].left_after(&other, 2), 7);
    let held = witnesses.iter().filter(|witness| witness.latest_of(&one) == Some(8)).count();
    assert!(held >= 2, "three commits and five attempts: {held}");
}

/// A genuine head, of a cell that is further than this one: it would drive this one ahead.
#[test]
fn the_head_of_another_cell_is_not_taken_for_ones_own() {
    let ([one, other], witnesses) = world();
    let accounts = [Account::new(&one), Account::new(&other)];
    accounts[0].left_after(&one, 0);
    one.until(|one| witnesses.iter().all(|witness| witness.latest_of(one) == Some(one.info().seq)));
    other.stop();
    for liar in &witnesses[1..] {
        other.sees(liar, Behaviour::ShowsTheOtherCell);
    }
    let refused = other.start(SHORT).unwrap_err().to_string();
    for liar in &witnesses[1..] {
        let what = format!("`{}` lies: it shows a state of commit 4 that this vault never signed", liar.name);
        assert!(refused.contains(&what) && refused.contains("for cell 1 of 2"), "{refused}");
    }
    other.sees(&witnesses[1], Behaviour::Honest);
    other.start(LONG).unwrap();
    assert_eq!(accounts[1].left_after(&other, 1), 9);
}

#[test]
fn one_cell_is_restored_from_a_backup_by_itself() {
    let ([one, other], witnesses) = world();
    let accounts = [Account::new(&one), Account::new(&other)];
    one.stop();
    let backup = disk(&one);
    one.start(LONG).unwrap();
    accounts[0].left_after(&one, 0);
    one.stop();
    put_back(&one, &backup);
    let done = one.restore(false, LONG).unwrap();
    assert_eq!((done.accounts, done.reduced, done.restores), (1, 1, 1));
    one.start(LONG).unwrap();
    assert_eq!(accounts[0].left_after(&one, 1), 0, "the one attempt");
    assert_eq!(accounts[1].left_after(&other, 1), 9, "as if nothing had been");
    let counted = |cell: &Arc<Node>| restores(witnesses[0].latest_of(cell).unwrap());
    one.until(|one| commits(witnesses[0].latest_of(one).unwrap()) == commits(one.info().seq));
    assert_eq!((counted(&one), counted(&other)), (1, 0));
}

#[test]
fn new_witnesses_are_enrolled_cell_by_cell() {
    let (cells, _gone) = world();
    let accounts = [Account::new(&cells[0]), Account::new(&cells[1])];
    let new = witnesses(3);
    for cell in &cells {
        cell.stop();
        cell.is_witnessed_by(&new, 2);
    }
    for witness in &new {
        witness.start(LONG).unwrap();
    }
    cells[0].enrol(LONG).unwrap();
    cells[0].start(LONG).unwrap();
    assert_eq!(accounts[0].left_after(&cells[0], 0), 9);
    let unknown = cells[1].start(SHORT).unwrap_err().to_string();
    assert!(unknown.contains("at commit 3, the anchor at 0"), "{unknown}");
    cells[1].enrol(LONG).unwrap();
    cells[1].start(LONG).unwrap();
    assert_eq!(accounts[1].left_after(&cells[1], 0), 9);
}

fn witness_of(dir: &Path, vault: &[u8; 32]) -> Program {
    let data = dir.join("witness");
    succeed(Command::new(PROGRAM).args(["init", "--insecure-dev", "--data"]).arg(&data));
    let settings = format!(
        "data = '{}'\nlisten = '127.0.0.1:0'\ninsecure_dev = true\n[[witness_for]]\nidentity = '{}'\n",
        data.display(),
        Identity(*vault)
    );
    let config = dir.join("witness.toml");
    std::fs::write(&config, settings).unwrap();
    Program::start(Command::new(PROGRAM).args(["serve", "--config"]).arg(config))
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The programs, over TLS, with the commands that an operator has.
#[tokio::test]
async fn cells_have_witnesses_by_their_configuration() {
    let cells = Cells::new();
    cells.sign_map();
    let keys = succeed(Command::new(PROGRAM).args(["fingerprint", "--data"]).arg(cells.data("keys")));
    let identity: Identity = String::from_utf8(keys.stdout).unwrap().trim().parse().unwrap();
    let witness = witness_of(cells.dir.path(), &identity.0);
    let anchors = format!(
        "[anchor]\nkinds = ['file', 'witness']\nquorum = 1\n[[witness]]\nidentity = '{}'\naddress = '{}'\n",
        Identity(witness.pin().identity),
        witness.pin().url
    );
    for number in [0, 1] {
        cells.configure(number, &anchors);
        succeed(&mut cells.program("init", number));
    }
    let serve = |number| Program::start(&mut cells.program("serve", number));
    let other = serve(1).ready();
    let transport = courier(cells.dir.path());
    let fill = async |pin: &_, number: usize| {
        let before = cells.records(number);
        while cells.records(number) == before {
            // about every second one is of this cell; those of one that is away fail
            drop(try_enroll(&transport, std::slice::from_ref(pin), 1).await);
        }
    };
    let one = serve(0);
    fill(&one.pin(), 0).await;
    one.stop();
    let (data, backup) = (cells.data("0"), cells.path("backup"));
    copy_files(&data, &backup);
    let one = serve(0);
    fill(&one.pin(), 0).await;
    one.stop();
    std::fs::remove_dir_all(&data).unwrap();
    copy_files(&backup, &data);

    let refused = serve(0).refused();
    assert!(refused.contains("an old or foreign copy"), "{refused}");
    fail(&mut cells.program("enrol-witnesses", 0), "went another way");
    fill(&other.pin(), 1).await;
    succeed(cells.program("restore-ceremony", 0).args(["--phrase", PHRASE]));
    let one = serve(0).ready();
    fill(&one.pin(), 0).await;
    one.stop();
    let enrolled = succeed(&mut cells.program("enrol-witnesses", 0));
    assert!(String::from_utf8(enrolled.stdout).unwrap().contains("a quorum of witnesses holds commit"));
    fill(&other.pin(), 1).await;
}
