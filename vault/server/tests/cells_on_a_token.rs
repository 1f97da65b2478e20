//! Two cells of one vault on one token (SoftHSM2), which all of their processes reach, with records in PostgreSQL: each cell
//! has an anchor and seal keys of its own there.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;
use std::process::Command;

use chatkeep_vault_client::{CourierTransport, VaultError, VaultPin, info};
use chatkeep_vault_rig::postgres::{Cluster, DATABASE, eventually};
use chatkeep_vault_rig::soft_token::SoftToken;
use chatkeep_vault_server::ceremony::PHRASE;
use common::cells::{fail, refuse, succeed};
use common::program::{PROGRAM, Program, courier};
use common::{enroll, try_enroll, unlock};
use rand_core::OsRng;
use rustix::process::Signal;

/// The database of cell 1; that of cell 0 is the rig's.
const SECOND: &str = "cell_1";

/// A token with the keys of a vault, and the settings of its cells: of every cell two processes, `0a` and `0b`, with nothing in
/// common but token, database and map.
struct World {
    dir: tempfile::TempDir,
    token: SoftToken,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap(), token: SoftToken::new() };
        let whole = world.token.settings(&world.path("data-whole"), "");
        std::fs::write(world.path("whole.toml"), whole).unwrap();
        succeed(&mut world.program("init", "whole"));
        world
    }

    /// With a map of so many cells; `store` says where the records of a cell are.
    fn cut(&self, cells: usize, store: impl Fn(usize) -> String) {
        // free a moment ago: good enough for a test
        let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ports: Vec<[u16; 2]> = (0..cells).map(|_| [port(), port()]).collect();
        let cell = |[a, b]: &[u16; 2]| format!("['https://127.0.0.1:{a}', 'https://127.0.0.1:{b}']");
        let map = ports.iter().map(cell).collect::<Vec<_>>().join(", ");
        std::fs::write(self.path("map"), format!("version = 1\ncells = [{map}]\n")).unwrap();
        succeed(self.program("sign-cells", "whole").arg(self.path("map")));
        for (number, ports) in ports.iter().enumerate() {
            for (process, port) in ["a", "b"].iter().zip(ports) {
                let name = format!("{number}{process}");
                let data = self.path(&format!("data-{name}"));
                std::fs::create_dir_all(&data).unwrap();
                let settings =
                    self.token.settings(&data, "").replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
                let map = self.path("map");
                let cell = format!("[cell]\nmap = '{}'\nnumber = {number}\n", map.display());
                std::fs::write(self.path(&format!("{name}.toml")), settings + &store(number) + &cell)
                    .unwrap();
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, command: &str, name: &str) -> Command {
        let mut program = self.token.command(PROGRAM);
        program.arg(command).arg("--config").arg(self.path(&format!("{name}.toml")));
        program
    }

    fn serve(&self, name: &str) -> Program {
        Program::start(&mut self.program("serve", name))
    }

    /// One after the other: SoftHSM2 fails now and then when two processes log in at the same moment.
    fn serve_both(&self) -> (Program, Program) {
        (self.serve("0a").ready(), self.serve("1a").ready())
    }

    /// One line of `status`, also of a cell that is served.
    fn status(&self, name: &str, what: &str) -> String {
        let status = said(&mut self.program("status", name));
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{what} ")));
        line.unwrap_or_else(|| panic!("{status}")).to_owned()
    }
}

fn said(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).unwrap()
}

/// Settings for the records of a cell in `cluster`.
fn in_cluster(cluster: &Cluster, number: usize, allow_asynchronous: bool) -> String {
    let config = cluster.config_of([DATABASE, SECOND][number]);
    let (hosts, database, user) = (config.hosts, config.database, config.user);
    format!(
        "[store]\nkind = 'postgres'\nhosts = {hosts:?}\ndatabase = {database:?}\nuser = {user:?}\n\
         allow_asynchronous = {allow_asynchronous}\npatience = '50s'\n"
    )
}

/// Waits until a second process asks for the database of cell 0.
fn wait_for_a_standby(cluster: &Cluster) {
    let sql = format!(
        "SELECT count(DISTINCT application_name) FROM pg_stat_activity
         WHERE application_name LIKE 'chatkeep-vault/%' AND datname = '{DATABASE}'"
    );
    eventually("the standby waits", || cluster.node("a").sql(&sql) == "2");
}

/// An account in each of two cells that are served.
async fn fill(world: &World, transport: &CourierTransport, pin: &VaultPin) -> [Vec<u8>; 2] {
    let mut slots = [None, None];
    for _ in 0..64 {
        let before = world.status("0a", "records");
        let slot = enroll(transport, std::slice::from_ref(pin), 1).await.slot;
        slots[usize::from(world.status("0a", "records") == before)] = Some(slot);
        if let [Some(one), Some(two)] = &slots {
            return [one.clone(), two.clone()];
        }
    }
    panic!("all accounts are of one cell");
}

/// Any address of the vault leads to the account.
async fn left(transport: &CourierTransport, pin: &VaultPin, slot: &[u8]) -> u16 {
    match unlock(transport, std::slice::from_ref(pin), slot, b"wrong").await.unwrap_err() {
        VaultError::WrongPassword { left, .. } => left,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_standby_takes_over_with_the_token_and_an_old_database_of_one_cell_is_refused() {
    let cluster = Cluster::of_three();
    cluster.node("a").sql(&format!("CREATE DATABASE {SECOND} OWNER vault"));
    let world = World::new();
    world.cut(2, |number| in_cluster(&cluster, number, false));
    for name in ["0a", "1a"] {
        succeed(&mut world.program("init", name));
    }
    let (first, other) = world.serve_both();
    let transport = courier(world.dir.path());
    assert_eq!(first.pin().identity, other.pin().identity, "one vault");
    let (shown, hsm) = info(&transport, &first.pin(), &mut OsRng).await.unwrap();
    assert_eq!((shown.anchor.as_str(), hsm.as_str()), ("pkcs11", "pkcs11+software"));
    let slots = fill(&world, &transport, &first.pin()).await;
    first.stop();
    cluster.node("a").sql(&format!("CREATE DATABASE old TEMPLATE {DATABASE} OWNER vault"));

    let first = world.serve("0a").ready();
    let second = world.serve("0b");
    wait_for_a_standby(&cluster);
    assert_eq!(left(&transport, &first.pin(), &slots[0]).await, 9);
    first.signal(Signal::KILL);
    drop(first);
    cluster.node("a").kill();
    let primary = cluster.fail_over();
    assert_eq!(left(&transport, &second.pin(), &slots[0]).await, 8);
    assert_eq!(left(&transport, &other.pin(), &slots[1]).await, 9);
    second.stop();

    let rename = |from, to| cluster.node(primary).sql(&format!("ALTER DATABASE {from} RENAME TO {to}"));
    rename(DATABASE, "newest");
    rename("old", DATABASE);
    for process in ["0a", "0b"] {
        let refused = world.serve(process).refused();
        assert!(refused.contains("the anchor at"), "{refused}");
    }
    assert_eq!(left(&transport, &other.pin(), &slots[1]).await, 8, "the other cell serves");
    assert_eq!(world.status("0a", "anchor"), "pkcs11");

    // the old one after a ceremony, which is this cell's only
    succeed(world.program("restore-ceremony", "0b").args(["--phrase", PHRASE]));
    let first = world.serve("0a").ready();
    assert_eq!(left(&transport, &first.pin(), &slots[0]).await, 0, "the one attempt");
    assert_eq!(left(&transport, &other.pin(), &slots[1]).await, 7);
    let restores = ["0a", "1a"].map(|name| world.status(name, "restores"));
    assert_eq!(restores, ["1", "0"]);
}

/// And a process that opened the token before knows the new key when its turn comes.
#[tokio::test]
async fn the_seal_key_of_one_cell_is_exchanged_while_the_other_serves() {
    let cluster = Cluster::alone();
    cluster.node("a").sql(&format!("CREATE DATABASE {SECOND} OWNER vault"));
    let world = World::new();
    world.cut(2, |number| in_cluster(&cluster, number, true));
    for name in ["0a", "1a"] {
        succeed(&mut world.program("init", name));
    }
    let (first, other) = world.serve_both();
    let transport = courier(world.dir.path());
    let slots = fill(&world, &transport, &first.pin()).await;
    let standby = world.serve("0b");
    wait_for_a_standby(&cluster);
    // it sleeps, and knows the old key only
    standby.signal(Signal::STOP);
    first.stop();
    assert!(said(&mut world.program("rotate-seal-key", "0a")).contains("seal key 2"));
    assert_eq!(["0a", "1a"].map(|name| world.status(name, "seal keys")), ["[2]", "[1]"]);
    assert_eq!(left(&transport, &other.pin(), &slots[1]).await, 9);

    standby.signal(Signal::CONT);
    assert_eq!(left(&transport, &standby.pin(), &slots[0]).await, 9);
    assert_eq!(left(&transport, &other.pin(), &slots[1]).await, 8);
    // with the other one's key untouched, it opens its records after a start, too
    other.stop();
    let other = world.serve("1a").ready();
    assert_eq!(left(&transport, &other.pin(), &slots[1]).await, 7);
}

#[test]
fn what_a_cell_has_on_the_token_is_made_once_and_for_one_number_of_cells() {
    let world = World::new();
    world.cut(2, |_| String::new());
    refuse(&mut world.program("serve", "0a"), "is not cut into cells");
    succeed(&mut world.program("init", "0a"));
    // the disk of a second process is empty: what is there is on the token
    fail(&mut world.program("init", "0b"), "has a `chatkeep-vault anchor 0/2` already");
    refuse(&mut world.program("serve", "1a"), "has no `chatkeep-vault anchor 1/2`");
    succeed(&mut world.program("init", "1a"));
    refuse(&mut world.program("serve", "whole"), "is cut into 2 cells");
    // what all cells have in common is there for whoever looks after the vault
    let identity = said(&mut world.program("fingerprint", "whole"));
    assert_eq!(said(&mut world.program("fingerprint", "1a")), identity);

    world.cut(4, |_| String::new());
    let fixed = "has 2 cells, and the map 4: their number cannot be changed";
    fail(&mut world.program("init", "3a"), fixed);
    refuse(&mut world.program("serve", "0b"), fixed);
}

#[tokio::test]
async fn a_vault_that_was_used_whole_cannot_be_cut() {
    let world = World::new();
    let served = world.serve("whole");
    try_enroll(&courier(world.dir.path()), &[served.pin()], 1).await.unwrap();
    served.stop();
    world.cut(2, |_| String::new());
    fail(&mut world.program("init", "0a"), "has commits and is whole");
    world.serve("whole").ready().stop();
}

/// Root and identity are the same on both, and what each cell has of its own is on one of them.
#[tokio::test]
async fn cells_can_be_on_clones_of_a_token_that_were_made_before_them() {
    let world = World::new();
    world.cut(2, |_| String::new());
    let clone = world.token.cloned();
    let on_clone = |command: &str| {
        let mut program = clone.command(PROGRAM);
        program.arg(command).arg("--config").arg(world.path("1a.toml"));
        program
    };
    succeed(&mut world.program("init", "0a"));
    succeed(&mut on_clone("init"));
    refuse(&mut world.program("serve", "1a"), "has no `chatkeep-vault anchor 1/2`");
    let (one, other) = (world.serve("0a"), Program::start(&mut on_clone("serve")));
    assert_eq!(one.pin().identity, other.pin().identity);
    let transport = courier(world.dir.path());
    let slots = fill(&world, &transport, &one.pin()).await;
    for (slot, away) in slots.iter().zip([other.pin(), one.pin()]) {
        assert_eq!(left(&transport, &away, slot).await, 9);
    }
}
