//! One list of cases for every store, then what only PostgreSQL has to do. The servers are real.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use chatkeep_vault_rig::postgres::{Cluster, DATABASE, Node, eventually};
use chatkeep_vault_server::cells::{Cell, CellMap, Place};
use chatkeep_vault_server::store::{
    DATABASE_FILE, Head, PostgresConfig, PostgresStore, Row, SqliteStore, Store, StoreError, Write,
};
use tempfile::TempDir;

/// Where a store is, so that it can be opened again, twice, or changed behind its back.
enum Home {
    Sqlite(TempDir),
    Postgres(Database),
}

/// A database of its own on a server that all tests share which run at the same time.
struct Database {
    config: PostgresConfig,
    cluster: Arc<Cluster>,
}

impl Database {
    fn new() -> Self {
        static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let cluster = {
            let mut shared = CLUSTER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let cluster = Arc::new(Cluster::alone());
                *shared = Arc::downgrade(&cluster);
                cluster
            })
        };
        let name = format!("{DATABASE}_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        cluster.node("a").sql(&format!("CREATE DATABASE {name} OWNER vault"));
        let config = PostgresConfig { allow_asynchronous: true, ..cluster.config_of(&name) };
        Self { config, cluster }
    }

    /// With tables and a first head.
    fn created() -> Self {
        let database = Self::new();
        PostgresStore::create(&database.config, &Cell::WHOLE, &head(0)).unwrap();
        database
    }

    fn server(&self) -> &Node {
        self.cluster.node("a")
    }

    /// Waits for nobody.
    fn open(&self) -> Result<PostgresStore, StoreError> {
        PostgresStore::open(&self.config, &mut || panic!("somebody else has it"))
    }

    /// Ends every session, as an administrator does who wants another process to take over.
    fn disconnect(&self) {
        let name = &self.config.database;
        let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
        self.server().sql(&sql);
    }
}

impl Home {
    fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        SqliteStore::create(dir.path(), &head(0)).unwrap();
        Self::Sqlite(dir)
    }

    fn postgres() -> Self {
        Self::Postgres(Database::created())
    }

    /// Opens it for writing, also if it is open elsewhere.
    fn open(&self) -> Box<dyn Store> {
        match self {
            Self::Sqlite(dir) => Box::new(SqliteStore::open(dir.path()).unwrap()),
            Self::Postgres(database) => {
                Box::new(PostgresStore::open(&database.config, &mut || database.disconnect()).unwrap())
            }
        }
    }

    /// Lets somebody change it who is not the vault.
    fn tamper(&self, sqlite: &str, postgres: &str) {
        match self {
            Self::Sqlite(dir) => {
                rusqlite::Connection::open(dir.path().join(DATABASE_FILE))
                    .unwrap()
                    .execute_batch(sqlite)
                    .unwrap();
            }
            Self::Postgres(database) => {
                database.server().sql_in(&database.config.database, postgres);
            }
        }
    }
}

fn root(seq: u64) -> [u8; 32] {
    let mut root = [0xa5; 32];
    root[..8].copy_from_slice(&seq.to_be_bytes());
    root
}

fn head(seq: u64) -> Head {
    Head { seq, root: root(seq), previous_root: root(seq.wrapping_sub(1)), mac: [seq as u8; 32] }
}

fn write(account: u8, revision: u64) -> Write {
    let row = Row { revision, key_id: 7, sealed: vec![account ^ revision as u8; 348] };
    Write { account: [account; 16], row }
}

fn all(store: &mut dyn Store) -> BTreeMap<[u8; 16], Row> {
    let mut rows = BTreeMap::new();
    store
        .scan(&mut |account, row| assert!(rows.insert(*account, row.clone()).is_none(), "seen twice"))
        .unwrap();
    rows
}

/// Runs a case over every store.
fn for_every_store(case: impl Fn(&Home)) {
    for home in [Home::sqlite(), Home::postgres()] {
        case(&home);
    }
}

#[test]
fn what_was_written_is_there_and_all_else_is_not() {
    for_every_store(|home| {
        let mut store = home.open();
        assert_eq!(store.head().unwrap(), head(0));
        assert_eq!(store.load(&[]).unwrap(), []);
        assert_eq!(store.load(&[[1; 16]]).unwrap(), [None]);
        store.commit_batch(&head(1), &[write(1, 1), write(2, 1)]).unwrap();
        let (one, two) = (Some(write(1, 1).row), Some(write(2, 1).row));
        // in the order asked for, also twice
        let asked = [[2; 16], [3; 16], [1; 16], [2; 16]];
        assert_eq!(store.load(&asked).unwrap(), [two.clone(), None, one, two]);
        drop(store);
        let mut store = home.open();
        assert_eq!(store.head().unwrap(), head(1));
        assert_eq!(store.load(&[[2; 16]]).unwrap(), [Some(write(2, 1).row)]);
    });
}

#[test]
fn a_second_write_replaces_the_first_and_nothing_else() {
    for_every_store(|home| {
        let mut store = home.open();
        store.commit_batch(&head(1), &[write(1, 1), write(2, 1)]).unwrap();
        store.commit_batch(&head(2), &[write(2, 2), write(3, 1)]).unwrap();
        let expected = [write(1, 1), write(2, 2), write(3, 1)].map(|write| (write.account, write.row));
        assert_eq!(all(&mut *store), BTreeMap::from(expected));
    });
}

#[test]
fn a_scan_sees_every_row_once() {
    for_every_store(|home| {
        let mut store = home.open();
        let writes: Vec<Write> = (0..2000u16)
            .map(|n| {
                let mut account = [0x55; 16];
                account[14..].copy_from_slice(&n.to_be_bytes());
                Write { account, ..write(1, u64::from(n)) }
            })
            .collect();
        for (n, batch) in writes.chunks(500).enumerate() {
            store.commit_batch(&head(n as u64 + 1), batch).unwrap();
        }
        let expected = writes.into_iter().map(|write| (write.account, write.row)).collect();
        assert_eq!(all(&mut *store), expected);
    });
}

#[test]
fn records_that_another_key_sealed_are_found_in_order_and_in_parts() {
    for_every_store(|home| {
        let mut store = home.open();
        let sealed = |account: u8, key_id: u32| {
            let Write { account, row } = write(account, 1);
            Write { account, row: Row { key_id, ..row } }
        };
        let writes = [sealed(0xff, 1), sealed(3, 2), sealed(0, 1), sealed(2, u32::MAX), sealed(1, 1)];
        store.commit_batch(&head(1), &writes).unwrap();
        let mut found = |key_id, after: Option<u8>, limit| {
            let after = after.map(|byte| [byte; 16]);
            let found = store.sealed_by_others(key_id, after.as_ref(), limit).unwrap();
            found.iter().map(|account| account[0]).collect::<Vec<u8>>()
        };
        assert_eq!(found(2, None, 9), [0, 1, 2, 0xff]);
        assert_eq!(found(2, None, 2), [0, 1]);
        assert_eq!(found(2, Some(1), 2), [2, 0xff]);
        assert_eq!(found(1, None, 9), [2, 3]);
        assert_eq!(found(2, Some(0xff), 9), [] as [u8; 0]);
    });
}

/// A restore writes under the number there is, and then jumps; it still builds on what is there, or not at all.
#[test]
fn a_restore_keeps_the_number_and_then_jumps() {
    for_every_store(|home| {
        let mut store = home.open();
        store.commit_batch(&head(1), &[write(1, 1)]).unwrap();
        let (kept, jumped) =
            (Head { root: [8; 32], ..head(1) }, Head { previous_root: [7; 32], ..head(1 << 48) });
        store.commit_from(1, &head(1).root, &kept, &[write(1, 2)]).unwrap();
        assert!(store.commit_from(1, &head(1).root, &jumped, &[]).is_err());
        store.commit_from(1, &kept.root, &jumped, &[]).unwrap();
        assert_eq!(
            (store.head().unwrap(), store.load(&[[1; 16]]).unwrap()),
            (jumped, vec![Some(write(1, 2).row)])
        );
    });
}

#[test]
fn numbers_and_records_keep_their_extremes() {
    for_every_store(|home| {
        let mut store = home.open();
        let extremes: Vec<Write> = [(0, u64::MAX, u32::MAX, 4096), (0xff, 0, 0, 0), (0x80, 1 << 63, 1, 1)]
            .map(|(account, revision, key_id, len)| {
                let row = Row { revision, key_id, sealed: vec![0xff; len] };
                Write { account: [account; 16], row }
            })
            .into();
        store.commit_batch(&head(1), &extremes).unwrap();
        let expected = extremes.into_iter().map(|write| (write.account, write.row)).collect();
        assert_eq!(all(&mut *store), expected);
    });
}

/// A batch that builds on another head than the one there is would lose what came in between.
#[test]
fn a_head_moves_only_from_where_it_is_and_only_with_its_rows() {
    for_every_store(|home| {
        let mut store = home.open();
        store.commit_batch(&head(1), &[write(1, 1)]).unwrap();
        for wrong in [head(1), head(3), Head { previous_root: [9; 32], ..head(2) }] {
            let error = store.commit_batch(&wrong, &[write(1, 9), write(9, 9)]).unwrap_err();
            assert!(matches!(error, StoreError::Fenced | StoreError::Behind { .. }), "{error}");
        }
        assert_eq!(store.head().unwrap(), head(1));
        assert_eq!(all(&mut *store), BTreeMap::from([([1; 16], write(1, 1).row)]));
        store.commit_batch(&head(2), &[]).unwrap();
        assert_eq!(store.head().unwrap(), head(2));
    });
}

#[test]
fn a_writer_whose_place_was_taken_commits_nothing() {
    for_every_store(|home| {
        let mut former = home.open();
        former.commit_batch(&head(1), &[write(1, 1)]).unwrap();
        let mut active = home.open();
        active.commit_batch(&head(2), &[write(1, 2)]).unwrap();
        let error = former.commit_batch(&head(2), &[write(1, 3), write(2, 1)]).unwrap_err();
        assert!(matches!(error, StoreError::Fenced), "{error}");
        assert_eq!(active.head().unwrap(), head(2));
        assert_eq!(all(&mut *active), BTreeMap::from([([1; 16], write(1, 2).row)]));
        active.commit_batch(&head(3), &[]).unwrap();
    });
}

#[test]
fn a_store_that_went_back_is_noticed_by_its_writer() {
    for_every_store(|home| {
        let mut store = home.open();
        store.commit_batch(&head(1), &[]).unwrap();
        store.commit_batch(&head(2), &[]).unwrap();
        let back = hex::encode(head(1).root);
        home.tamper(
            &format!("UPDATE head SET seq = 1, root = x'{back}'"),
            &format!("UPDATE chatkeep.head SET seq = 1, root = '\\x{back}'"),
        );
        let error = store.commit_batch(&head(3), &[write(1, 1)]).unwrap_err();
        assert!(matches!(error, StoreError::Behind { found: 1, expected: 2 }), "{error}");
    });
}

#[test]
fn values_of_hostile_length_are_damage_and_no_panic() {
    let free = "ALTER TABLE chatkeep.record DROP CONSTRAINT record_account_check, DROP CONSTRAINT record_sealed_check;";
    let row = |account: usize, sealed: usize| {
        let (account, sealed) = ("00".repeat(account), "00".repeat(sealed));
        let values = |quote: &str| format!("VALUES ({quote}{account}', 1, 1, {quote}{sealed}')");
        (
            format!("INSERT INTO record {}", values("x'")),
            format!("{free} INSERT INTO chatkeep.record {}", values("'\\x")),
        )
    };
    for (account, sealed) in [(15, 348), (17, 348), (0, 348), (16, 4097)] {
        for_every_store(|home| {
            let mut store = home.open();
            let (sqlite, postgres) = row(account, sealed);
            home.tamper(&sqlite, &postgres);
            let error = store.scan(&mut |_, _| {}).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{account}, {sealed}: {error}");
            if account == 16 {
                assert!(matches!(store.load(&[[0; 16]]), Err(StoreError::Damaged { .. })));
            }
        });
    }
    for column in ["root", "previous_root", "mac"] {
        for_every_store(|home| {
            let mut store = home.open();
            home.tamper(
                &format!("UPDATE head SET {column} = x'0011'"),
                &format!("UPDATE chatkeep.head SET {column} = '\\x0011'"),
            );
            assert!(matches!(store.head(), Err(StoreError::Damaged { .. })), "{column}");
        });
    }
}

/// The process ends after any of its batches: the next one finds all of them, whole.
#[test]
fn a_crash_between_batches_costs_nothing() {
    for_every_store(|home| {
        for seq in 1..=5 {
            let mut store = home.open();
            assert_eq!(store.head().unwrap(), head(seq - 1));
            store.commit_batch(&head(seq), &[write(seq as u8, 1), write(200, seq)]).unwrap();
            std::mem::forget(store); // no destructor runs in a crash
        }
        let mut store = home.open();
        assert_eq!(all(&mut *store).len(), 6);
        assert_eq!(store.load(&[[200; 16]]).unwrap(), [Some(write(200, 5).row)]);
    });
}

/// The connection breaks; nobody else took over; so the same process goes on where it was.
#[test]
fn a_broken_connection_is_made_again_without_a_gap() {
    let database = Database::created();
    let mut store = database.open().unwrap();
    for seq in 1..4 {
        store.commit_batch(&head(seq), &[write(1, seq)]).unwrap();
        database.disconnect();
        assert_eq!(store.load(&[[1; 16]]).unwrap(), [Some(write(1, seq).row)]);
        database.disconnect();
    }
    assert_eq!(store.head().unwrap(), head(3));
    assert_eq!((store.term(), PostgresStore::look(&database.config).unwrap().term), (1, 1));
}

#[test]
fn a_second_process_waits_until_the_first_is_gone() {
    let database = Database::created();
    let mut first = database.open().unwrap();
    let (says, waits) = std::sync::mpsc::channel();
    let second = {
        let config = database.config.clone();
        std::thread::spawn(move || {
            PostgresStore::open(&config, &mut || says.send(()).unwrap()).unwrap().term()
        })
    };
    waits.recv().unwrap();
    first.commit_batch(&head(1), &[]).unwrap();
    assert!(!second.is_finished());
    let seen = PostgresStore::look(&database.config).unwrap();
    assert_eq!((seen.head, seen.term, seen.records, seen.name), (head(1), 1, 0, "postgres-asynchronous"));
    drop(first);
    assert_eq!(second.join().unwrap(), 2);
}

#[test]
fn a_server_that_may_lose_commits_is_refused_unless_that_is_allowed() {
    let database = Database::created();
    let strict = PostgresConfig { allow_asynchronous: false, ..database.config.clone() };
    let refused = |setting: &str| {
        let error = PostgresStore::open(&strict, &mut || {}).err().expect("it is refused");
        assert!(matches!(&error, StoreError::Unsafe { what } if what.contains(setting)), "{error}");
    };
    refused("synchronous_standby_names");
    assert!(PostgresStore::create(&strict, &Cell::WHOLE, &head(0)).is_err());
    for (seq, weak) in (1..).zip(["off", "local", "remote_write"]) {
        let name = &strict.database;
        database.server().sql(&format!("ALTER DATABASE {name} SET synchronous_commit = {weak}"));
        refused("synchronous_commit");
        let mut store = database.open().unwrap();
        assert_eq!(store.name(), "postgres-asynchronous");
        store.commit_batch(&head(seq), &[]).unwrap();
    }
}

#[test]
fn a_wrong_setting_is_told_at_once_and_an_absent_server_after_a_while() {
    let database = Database::new();
    let error = database.open().err().unwrap();
    assert!(matches!(error, StoreError::Database(_)), "there are no tables: {error}");
    PostgresStore::create(&database.config, &Cell::WHOLE, &head(0)).unwrap();
    let again = PostgresStore::create(&database.config, &Cell::WHOLE, &head(0));
    assert!(matches!(again, Err(StoreError::Database(_))));
    let stranger = PostgresConfig { user: "nobody".to_owned(), ..database.config.clone() };
    assert!(matches!(PostgresStore::open(&stranger, &mut || {}), Err(StoreError::Database(_))));

    let mut absent = database.config.clone();
    absent.hosts = vec!["/nonexistent".to_owned(), "127.0.0.1:1".to_owned()];
    absent.patience.seconds = 1;
    match PostgresStore::open(&absent, &mut || {}) {
        Err(StoreError::Unreachable { what }) => {
            assert!(what.contains("/nonexistent") && what.contains("127.0.0.1:1"), "{what}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("nobody is there"),
    }
}

/// The database itself refuses an account of another cell, whatever the program thinks.
#[test]
fn the_table_of_a_cell_takes_only_its_accounts() {
    let map = "version = 1\ncells = [['https://a'], ['https://b'], ['https://c'], ['https://d']]";
    for (number, inside, outside) in [(0, 0x3f, 0x40), (1, 0x40, 0x80), (1, 0x7f, 0x3f), (3, 0xff, 0xbf)] {
        let cell = Place::new(CellMap::parse(map).unwrap(), number).unwrap().cell;
        let database = Database::new();
        PostgresStore::create(&database.config, &cell, &head(0)).unwrap();
        let mut store = database.open().unwrap();
        store.commit_batch(&head(1), &[write(inside, 1)]).unwrap();
        let error = store.commit_batch(&head(2), &[write(outside, 1)]).unwrap_err();
        assert!(matches!(error, StoreError::Database(_)), "{error}");
        assert_eq!(store.head().unwrap(), head(1));
    }
}

/// Certificate and key of a server on this machine, and the authority's certificate.
fn certificate() -> (String, String, String) {
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(authority, key()).unwrap();
    let server = key();
    let names = vec!["localhost".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&server, &authority).unwrap();
    let certificates = [certificate.der(), authority.der()].map(|der| pem("CERTIFICATE", der));
    let [certificate, authority] = certificates;
    (certificate, pem("PRIVATE KEY", &server.serialize_der()), authority)
}

/// By hand (RFC 7468): what makes the certificates is built without it.
fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut base64 = String::new();
    for three in der.chunks(3) {
        let bits = [0, 1, 2].map(|n| u32::from(*three.get(n).unwrap_or(&0)));
        let bits = bits[0] << 16 | bits[1] << 8 | bits[2];
        for digit in 0..4 {
            let used = digit <= three.len();
            base64.push(if used { DIGITS[(bits >> (18 - 6 * digit) & 63) as usize] as char } else { '=' });
        }
        if base64.len() % 65 == 64 {
            base64.push('\n');
        }
    }
    format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n")
}

#[test]
fn over_a_network_there_is_tls_with_the_right_authority_and_a_password() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cluster = Cluster::listening(port, "listen_addresses = '127.0.0.1'");
    let server = cluster.node("a");
    let (certificate, key, authority) = certificate();
    server.give("server.crt", &certificate);
    server.give("server.key", &key);
    server.configure("ssl = on");
    eventually("TLS is on", || server.sql("SHOW ssl") == "on");
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Some(path)
    };
    let mut config = PostgresConfig {
        hosts: vec![format!("localhost:{port}")],
        tls_ca: file("ca", &authority),
        password_file: file("password", "pass word\n"),
        allow_asynchronous: true,
        ..cluster.config()
    };
    config.patience.seconds = 1;
    PostgresStore::create(&config, &Cell::WHOLE, &head(0)).unwrap();
    let mut store = PostgresStore::open(&config, &mut || {}).unwrap();
    store.commit_batch(&head(1), &[write(1, 1)]).unwrap();
    let sql =
        "SELECT DISTINCT version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'vault'";
    assert_eq!(server.sql(sql), "TLSv1.3");
    drop(store);

    let open =
        |config: &PostgresConfig| PostgresStore::open(config, &mut || {}).err().expect("it is refused");
    let another = PostgresConfig { tls_ca: file("other", &self::certificate().2), ..config.clone() };
    assert!(matches!(open(&another), StoreError::Unreachable { what } if what.contains("certificate")));
    let another = PostgresConfig { hosts: vec![format!("127.0.0.1:{port}")], ..config.clone() };
    assert!(matches!(open(&another), StoreError::Unreachable { what } if what.contains("certificate")));
    let wrong = PostgresConfig { password_file: file("wrong", "password"), ..config.clone() };
    assert!(matches!(open(&wrong), StoreError::Database(_)));
    let clear = PostgresConfig { tls_ca: None, ..config.clone() };
    assert!(matches!(open(&clear), StoreError::Unsafe { what } if what.contains("TLS")));
    server.configure("ssl = off");
    eventually("TLS is off", || server.sql("SHOW ssl") == "off");
    assert!(matches!(open(&config), StoreError::Unreachable { what } if what.contains("TLS")));
}
