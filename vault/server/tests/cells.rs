//! One vault in several cells: a client that knows one address reaches every account, and each in one cell only.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use chatkeep_vault_client::{Invite, Invites, KdfParams, VaultError, VaultPin, info, register_invited};
use chatkeep_vault_server::anchor::AnchorError;
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::setup;
use chatkeep_vault_server::store::{DATABASE_FILE, Row, Write};
use chatkeep_vault_server::vault::Vault;
use common::cells::{Cells, fail, refuse, succeed};
use common::program::{Program, courier};
use common::{KEY, PASSWORD, enroll, try_enroll, unlock};
use rand_core::OsRng;

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
        cells.configure(number, "[admission]\nkind = 'invite'\n");
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
    refuse(&mut cells.program("serve", 0), "not signed by this vault's identity");
    std::fs::write(cells.path("map"), &text).unwrap();

    let number = cells.path("0.toml");
    let config = std::fs::read_to_string(&number).unwrap();
    std::fs::write(&number, config.replace("number = 0", "number = 2")).unwrap();
    refuse(&mut cells.program("serve", 0), "there is no cell 2");

    std::fs::remove_file(cells.data("1").join("keys.soft")).unwrap();
    fail(&mut cells.program("init", 1), "needs the vault's keys");
}

/// Records of another cell could be guessed at here and there.
#[tokio::test]
async fn a_disk_of_another_cell_is_not_served_with_records_and_without() {
    let cells = Cells::new();
    cells.sign_map();
    for number in [0, 1] {
        succeed(&mut cells.program("init", number));
    }
    // nothing was committed in either: all but the key of the digest is the same
    let database = |number: &str| cells.data(number).join(DATABASE_FILE);
    std::fs::rename(database("1"), cells.path("empty")).unwrap();
    std::fs::copy(database("0"), database("1")).unwrap();
    refuse(&mut cells.program("serve", 1), "do not match their digest");
    std::fs::rename(cells.path("empty"), database("1")).unwrap();
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
    // the same disk, anchor included, served as the other cell
    move_all(&cells.data("0"), &cells.data("1"));
    refuse(&mut cells.program("serve", 1), "do not match their digest");
}

/// Should they ever be in its database under its own digest.
#[test]
fn a_cell_with_accounts_of_another_cell_does_not_serve() {
    let cells = Cells::new();
    cells.sign_map();
    succeed(&mut cells.program("init", 0));
    let open = || setup::open(&Config::read(&cells.path("0.toml")).unwrap()).unwrap();
    let (mut parts, lock) = open();
    let head = parts.store.head().unwrap();
    let account = [0xff; 16];
    let row = Row { revision: 1, key_id: 1, sealed: vec![1; 9] };
    let root = parts.digester.replace(&head.root, &account, None, Some(&row));
    let next = parts.digester.head(head.seq + 1, root, head.root);
    parts.store.commit_batch(&next, &[Write { account, row }]).unwrap();
    drop((parts, lock));
    let (parts, _lock) = open();
    let refused = Vault::start(parts, |_| {}).err();
    assert!(matches!(refused, Some(AnchorError::OtherCell)), "{refused:?}");
}

fn move_all(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).unwrap();
    std::fs::rename(from, to).unwrap();
}
