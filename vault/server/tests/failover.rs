//! What becomes of the count when servers and processes die: real PostgreSQL with two synchronous standbys.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use chatkeep_vault_client::{
    CourierTransport, DirectTransport, Transport, TransportError, VaultError, VaultPin,
};
use chatkeep_vault_rig::postgres::{Cluster, eventually};
use chatkeep_vault_server::anchor::{ANCHOR_FILE, AnchorError};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::setup;
use chatkeep_vault_server::store::{PostgresConfig, PostgresStore, StoreConfig};
use chatkeep_vault_server::vault::Vault;
use common::program::{PROGRAM, Program, courier};
use common::{enroll, unlock};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn settings(dir: &TempDir, config: &PostgresConfig) -> Config {
    Config { store: StoreConfig::Postgres(config.clone()), ..Config::development(dir.path()) }
}

/// A vault in this process with its records in a cluster. Not in a runtime's thread: the store has one of its own.
struct World {
    dir: TempDir,
    config: PostgresConfig,
    pin: VaultPin,
    vault: Arc<Mutex<Option<Arc<Vault>>>>,
    runtime: Runtime,
}

impl World {
    fn new(config: PostgresConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = setup::init(&settings(&dir, &config)).unwrap();
        let pin = VaultPin { name: "cell".to_owned(), url: "https://cell.example".to_owned(), identity };
        Self { dir, config, pin, vault: Arc::default(), runtime: Runtime::new().unwrap() }
    }

    /// What the vault says when it stops comes through the channel.
    fn start(&self) -> Result<Receiver<String>, AnchorError> {
        let waiting = &mut || panic!("nobody else has the store");
        let (parts, _) = setup::open_or_wait(&settings(&self.dir, &self.config), waiting).unwrap();
        let (says, stopped) = channel();
        let vault = Vault::start(parts, move |what| drop(says.send(what)))?;
        *self.vault.lock().unwrap() = Some(Arc::new(vault));
        Ok(stopped)
    }

    fn stop(&self) {
        *self.vault.lock().unwrap() = None;
    }

    fn evaluations(&self) -> u64 {
        self.vault.lock().unwrap().as_ref().unwrap().evaluations()
    }

    fn transport(&self) -> DirectTransport {
        let (mut transport, vault) = (DirectTransport::new(), self.vault.clone());
        transport.insert(self.pin.identity, move |request| {
            let away = || TransportError::Unreachable { what: "stopped".to_owned() };
            let vault = vault.lock().unwrap().clone().ok_or_else(away)?;
            vault.answer_blocking(request).map_err(|_| away())
        });
        transport
    }

    fn enroll(&self) -> Vec<u8> {
        self.runtime.block_on(enroll(&self.transport(), std::slice::from_ref(&self.pin), 1)).slot
    }

    fn guess_wrong(&self, slot: &[u8]) -> VaultError {
        self.runtime
            .block_on(unlock(&self.transport(), std::slice::from_ref(&self.pin), slot, b"wrong"))
            .unwrap_err()
    }

    fn left_after_a_wrong_guess(&self, slot: &[u8]) -> u16 {
        left(&self.guess_wrong(slot))
    }
}

fn left(error: &VaultError) -> u16 {
    match error {
        VaultError::WrongPassword { left, .. } => *left,
        other => panic!("{other}"),
    }
}

/// Guesses under way when the primary dies have an unknown outcome until a standby says what it has.
#[test]
fn the_count_holds_when_the_primary_dies_under_load() {
    let cluster = Cluster::of_three();
    let world = World::new(cluster.config());
    let stopped = world.start().unwrap();
    assert_eq!(world.vault.lock().unwrap().as_ref().unwrap().info().store, "postgres");
    let slots: Vec<Vec<u8>> = (0..4).map(|_| world.enroll()).collect();
    let before = world.evaluations();
    let guessed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for slot in &slots {
            scope.spawn(|| {
                for expected in (0..10).rev() {
                    assert_eq!(world.left_after_a_wrong_guess(slot), expected);
                    guessed.fetch_add(1, Ordering::Relaxed);
                }
                assert!(matches!(world.guess_wrong(slot), VaultError::Destroyed { .. }));
            });
        }
        eventually("some guesses are made", || guessed.load(Ordering::Relaxed) > 5);
        cluster.node("a").kill();
        cluster.fail_over();
    });
    // a repeated request is evaluated again, and charged once: never more than what was charged is told
    assert!(world.evaluations() - before >= 40);
    assert!(stopped.try_recv().is_err(), "it never stopped");
    world.stop();
    world.start().unwrap();
    assert!(matches!(world.guess_wrong(&slots[0]), VaultError::Destroyed { .. }));
}

#[test]
fn a_standby_that_lost_the_last_commit_is_refused() {
    let cluster = Cluster::of_three();
    let mut config = cluster.config();
    config.patience.seconds = 3;
    let world = World::new(config);
    let stopped = world.start().unwrap();
    let slot = world.enroll();
    cluster.node("c").stop();
    assert_eq!(world.left_after_a_wrong_guess(&slot), 9);

    // the two that have the commit are gone; somebody promotes the one that has not
    cluster.node("a").kill();
    cluster.node("b").kill();
    cluster.node("c").start();
    cluster.node("c").sql("SELECT pg_promote()");
    cluster.rebuild("b", "c");

    assert!(matches!(world.guess_wrong(&slot), VaultError::Unreachable { .. }));
    let why = stopped.recv().unwrap();
    assert!(why.contains("was durable: a failover or an old copy lost it"), "{why}");
    world.stop();
    match world.start() {
        Err(AnchorError::RolledBack { found, anchored }) => assert_eq!(found + 1, anchored),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it serves a store that forgot an attempt"),
    }

    // with a server that has it, all is well
    cluster.node("b").stop();
    cluster.node("c").stop();
    cluster.node("a").start();
    cluster.rebuild("b", "a");
    world.start().unwrap();
    assert_eq!(world.left_after_a_wrong_guess(&slot), 8);
}

/// PostgreSQL lets an administrator cancel the wait for a standby, and calls the commit a success.
#[test]
fn no_standby_no_answer_not_even_if_an_administrator_cuts_the_waiting_short() {
    let cluster = Cluster::of_three();
    let world = World::new(cluster.config());
    let stopped = world.start().unwrap();
    let slot = world.enroll();
    cluster.node("b").stop();
    cluster.node("c").stop();
    let waiters = || -> BTreeSet<String> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        cluster.node("a").sql(sql).lines().map(str::to_owned).collect()
    };
    std::thread::scope(|scope| {
        let guess = scope.spawn(|| world.left_after_a_wrong_guess(&slot));
        let mut cancelled = BTreeSet::new();
        for _ in 0..3 {
            let mut waiter = None;
            eventually("a new session waits for a standby", || {
                waiter = waiters().into_iter().find(|pid| !cancelled.contains(pid));
                waiter.is_some()
            });
            let pid = waiter.unwrap();
            cluster.node("a").sql(&format!("SELECT pg_cancel_backend({pid})"));
            cancelled.insert(pid);
        }
        assert!(!guess.is_finished());
        cluster.node("b").start();
        assert_eq!(guess.join().unwrap(), 9);
    });
    assert!(stopped.try_recv().is_err());
    assert_eq!(world.left_after_a_wrong_guess(&slot), 8);
}

/// An administrator who empties the list of standbys makes every later commit asynchronous.
#[test]
fn a_server_that_stops_being_safe_stops_the_vault() {
    let cluster = Cluster::of_three();
    let world = World::new(cluster.config());
    let stopped = world.start().unwrap();
    let slot = world.enroll();
    cluster.node("a").configure("synchronous_standby_names = ''");
    eventually("the server knows", || cluster.node("a").sql("SHOW synchronous_standby_names").is_empty());
    assert!(matches!(world.guess_wrong(&slot), VaultError::Unreachable { .. }));
    assert!(stopped.recv().unwrap().contains("synchronous_standby_names"));
}

/// A data directory, and a courier to call whoever serves it.
struct Shared {
    dir: TempDir,
    transport: CourierTransport,
    runtime: Runtime,
}

impl Shared {
    fn new(config: &PostgresConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let PostgresConfig { hosts, database, user, allow_asynchronous, .. } = config;
        let text = format!(
            "data = '{data}'\nlisten = '127.0.0.1:0'\ninsecure_dev = true\n[policy]\ndelays = []\n[store]
             kind = 'postgres'\nhosts = {hosts:?}\ndatabase = {database:?}\nuser = {user:?}
             allow_asynchronous = {allow_asynchronous}\npatience = '50s'\n",
            data = dir.path().join("data").display(),
        );
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        let runtime = Runtime::new().unwrap();
        let transport = runtime.block_on(async { courier(dir.path()) });
        let shared = Self { dir, transport, runtime };
        let made = shared.program("init").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        shared
    }

    fn program(&self, command: &str) -> Command {
        let mut program = Command::new(PROGRAM);
        program.arg(command).arg("--config").arg(self.dir.path().join("config.toml"));
        program
    }

    fn spawn(&self) -> Program {
        Program::start(&mut self.program("serve"))
    }

    fn left_after_a_wrong_guess(&self, pin: &VaultPin, slot: &[u8]) -> Result<u16, VaultError> {
        let transport: &dyn Transport = &self.transport;
        let error =
            self.runtime.block_on(unlock(transport, std::slice::from_ref(pin), slot, b"wrong")).unwrap_err();
        if let VaultError::Unreachable { .. } = error { Err(error) } else { Ok(left(&error)) }
    }

    fn enroll(&self, pin: &VaultPin) -> Vec<u8> {
        let pins = std::slice::from_ref(pin);
        self.runtime.block_on(enroll(&self.transport, pins, 1)).slot
    }

    fn anchored(&self) -> u64 {
        let bytes = std::fs::read(self.dir.path().join("data").join(ANCHOR_FILE)).unwrap();
        u64::from_be_bytes(bytes[..8].try_into().unwrap())
    }
}

fn sessions(cluster: &Cluster) -> String {
    let sql = "SELECT count(DISTINCT application_name) FROM pg_stat_activity WHERE application_name LIKE 'chatkeep-vault/%'";
    cluster.node("a").sql(sql)
}

/// It slept through a failover, wakes up, and still thinks that the store is its own.
#[test]
fn a_former_active_process_that_wakes_up_is_fenced() {
    let cluster = Cluster::of_three();
    let shared = Shared::new(&cluster.config());
    let first = shared.spawn();
    let at_first = first.pin();
    let slot = shared.enroll(&at_first);
    assert_eq!(shared.left_after_a_wrong_guess(&at_first, &slot), Ok(9));
    let second = shared.spawn();
    eventually("the standby waits", || sessions(&cluster) == "2");

    first.signal(Signal::STOP);
    cluster.node("a").kill();
    cluster.fail_over();
    let at_second = second.pin();

    // the head is still where the first one left it: only the name of the holder tells
    first.signal(Signal::CONT);
    assert!(shared.left_after_a_wrong_guess(&at_first, &slot).is_err());
    let words = first.failed();
    assert!(words.contains("another process has taken this store over"), "{words}");
    assert_eq!(shared.left_after_a_wrong_guess(&at_second, &slot), Ok(8));
    assert_eq!(shared.left_after_a_wrong_guess(&at_second, &slot), Ok(7));
}

/// The anchor's file is a pipe that nobody reads: the process stands still after the commit, and is killed there.
#[test]
fn a_standby_goes_on_from_a_commit_that_was_not_anchored() {
    let cluster = Cluster::alone();
    let config = PostgresConfig { allow_asynchronous: true, ..cluster.config() };
    let shared = Shared::new(&config);
    let first = shared.spawn();
    let at_first = first.pin();
    let slot = shared.enroll(&at_first);
    assert_eq!(shared.left_after_a_wrong_guess(&at_first, &slot), Ok(9));
    let second = shared.spawn();
    eventually("the standby waits", || sessions(&cluster) == "2");

    let pipe = shared.dir.path().join("data").join(ANCHOR_FILE).with_extension("new");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let committed = || PostgresStore::look(&config).unwrap().head.seq;
    let before = committed();
    std::thread::scope(|scope| {
        let unanswered = scope.spawn(|| shared.left_after_a_wrong_guess(&at_first, &slot));
        eventually("the guess is committed", || committed() == before + 1);
        assert_eq!(shared.anchored(), before);
        std::fs::remove_file(&pipe).unwrap();
        first.signal(Signal::KILL);
        assert!(unanswered.join().unwrap().is_err());
    });

    let at_second = second.pin();
    assert_eq!(shared.anchored(), before + 1);
    // the one that was never answered is charged
    assert_eq!(shared.left_after_a_wrong_guess(&at_second, &slot), Ok(7));
}

/// Whoever wants to work on a store that is served need not find out by waiting.
#[test]
fn a_command_on_a_store_that_is_served_does_not_wait_for_it() {
    let cluster = Cluster::alone();
    let config = PostgresConfig { allow_asynchronous: true, ..cluster.config() };
    let shared = Shared::new(&config);
    let served = shared.spawn().ready();
    let refused = |command: &str, arguments: &[&str]| {
        let output = shared.program(command).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("served by another process"), "{said}");
    };
    refused("rotate-seal-key", &[]);
    refused("restore-ceremony", &["--phrase", chatkeep_vault_server::ceremony::PHRASE]);
    assert!(
        String::from_utf8(shared.program("status").output().unwrap().stdout).unwrap().contains("commits 0")
    );
    served.stop();
    let freed = shared.program("rotate-seal-key").output().unwrap();
    assert!(String::from_utf8_lossy(&freed.stderr).contains("software keys cannot be exchanged"));
}

/// Keys are made once, so they are not made for a database that cannot be had.
#[test]
fn a_database_that_cannot_be_used_is_told_before_keys_are_made() {
    let cluster = Cluster::alone();
    let dir = tempfile::tempdir().unwrap();
    let strict = settings(&dir, &cluster.config());
    let refused = format!("{:#}", setup::init(&strict).unwrap_err());
    assert!(refused.contains("synchronous"), "{refused}");
    let config = PostgresConfig { allow_asynchronous: true, ..cluster.config() };
    setup::init(&settings(&dir, &config)).unwrap();
    let second = tempfile::tempdir().unwrap();
    let refused = format!("{:#}", setup::init(&settings(&second, &config)).unwrap_err());
    assert!(refused.contains("the tables of a vault already"), "{refused}");
    assert_eq!(std::fs::read_dir(second.path()).unwrap().count(), 0);
}
