//! The real program over real TLS through the real courier code: also when it is killed, also with somebody in between.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chatkeep_vault_client::{
    CourierTransport, Identity, KdfParams, TransportError, VaultError, VaultPin, info, register,
};
use chatkeep_vault_server::ceremony::PHRASE;
use common::program::{PROGRAM, Program, courier};
use common::{CONTEXT, KEY, PASSWORD, unlock};
use rand_core::{OsRng, RngCore as _};

fn serve(data: &Path) -> Program {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--insecure-dev", "--data"]).arg(data);
    Program::start(&mut command).ready()
}

fn init(data: &Path) {
    let made = Command::new(PROGRAM).args(["init", "--insecure-dev", "--data"]).arg(data).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[tokio::test]
async fn a_password_makes_the_whole_way_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("vault");
    init(&data);
    let served = serve(&data);
    let (transport, pins) = (courier(dir.path()), [served.pin()]);
    let kdf = KdfParams::TESTING;
    let registered = register(&transport, &pins, 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng).await.unwrap();
    assert_eq!(*unlock(&transport, &pins, &registered.slot, PASSWORD).await.unwrap().key, KEY);
    let wrong = unlock(&transport, &pins, &registered.slot, b"wrong").await.unwrap_err();
    assert_eq!(wrong, VaultError::WrongPassword { left: 9, max: 10 });

    let shown = Command::new(PROGRAM).args(["fingerprint", "--data"]).arg(&data).output().unwrap();
    assert_eq!(String::from_utf8(shown.stdout).unwrap().trim(), Identity(served.pin().identity).to_string());

    served.stop();
    let away = unlock(&transport, &pins, &registered.slot, PASSWORD).await.unwrap_err();
    assert!(
        matches!(&away, VaultError::Unreachable { what, .. } if what.contains("unreachable-connect")),
        "{away}"
    );
}

#[tokio::test]
async fn somebody_in_between_with_another_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [mine, theirs] = ["mine", "theirs"].map(|name| dir.path().join(name));
    init(&mine);
    init(&theirs);
    let (mine, theirs) = (serve(&mine), serve(&theirs));
    let transport = courier(dir.path());
    info(&transport, &mine.pin(), &mut OsRng).await.unwrap();
    let redirected = VaultPin { url: theirs.pin().url, ..mine.pin() };
    let error = info(&transport, &redirected, &mut OsRng).await.unwrap_err();
    assert!(
        matches!(&error, VaultError::Untrusted { what, .. } if what.contains("tls-untrusted")),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_address_is_told_from_an_absent_vault() {
    let dir = tempfile::tempdir().unwrap();
    let transport = courier(dir.path());
    let call = async |url: &str| {
        let pin = VaultPin { name: "x".to_owned(), url: url.to_owned(), identity: [1; 32] };
        chatkeep_vault_client::Transport::call(&transport, &pin, vec![1]).await.unwrap_err()
    };
    assert!(matches!(call("http://127.0.0.1:1").await, TransportError::Rejected { .. }));
    assert!(
        matches!(call("https://127.0.0.1:1").await, TransportError::Unreachable { what } if what.contains("connect"))
    );
    assert!(
        matches!(call("https://nowhere.invalid").await, TransportError::Unreachable { what } if what.contains("dns"))
    );
    let none = CourierTransport::new(dir.path().join("none"));
    let pin = VaultPin { name: "x".to_owned(), url: "https://a".to_owned(), identity: [1; 32] };
    let error = chatkeep_vault_client::Transport::call(&none, &pin, vec![1]).await.unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }));
}

/// Killed at random moments while several guess at once: in all its lives together it evaluates at most ten times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_vault_gives_no_further_guesses() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("vault");
    init(&data);
    let transport = Arc::new(courier(dir.path()));
    let slot = {
        let served = serve(&data);
        let kdf = KdfParams::TESTING;
        register(&*transport, &[served.pin()], 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng)
            .await
            .unwrap()
            .slot
    };
    let slot = Arc::new(slot);
    let evaluated = Arc::new(AtomicU32::new(0));
    let mut kills = 0;
    loop {
        let served = serve(&data);
        let pin = served.pin();
        let guesses: Vec<_> = (0..3)
            .map(|_| {
                let (transport, slot, pin) = (transport.clone(), slot.clone(), pin.clone());
                let evaluated = evaluated.clone();
                tokio::spawn(async move {
                    let error = unlock(&*transport, &[pin], &slot, b"wrong").await.unwrap_err();
                    if let VaultError::WrongPassword { .. } = error {
                        evaluated.fetch_add(1, Ordering::Relaxed);
                    }
                    matches!(error, VaultError::Destroyed { .. })
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(u64::from(OsRng.next_u32() % 60))).await;
        drop(served);
        kills += 1;
        let mut destroyed = false;
        for guess in guesses {
            destroyed |= guess.await.unwrap();
        }
        assert!(evaluated.load(Ordering::Relaxed) <= 10);
        if destroyed {
            break;
        }
        assert!(kills < 200, "guesses are charged");
    }
    assert!(kills > 1, "it lived more than once");
    let served = serve(&data);
    let gone = unlock(&*transport, &[served.pin()], &slot, PASSWORD).await.unwrap_err();
    assert!(matches!(gone, VaultError::Destroyed { .. }), "{gone}");
}

/// Three programs over TLS: a vault with two witnesses that both must sign, one of which it witnesses itself. They start
/// together; one goes away, and comes back; then the vault's disk is put back.
#[tokio::test]
async fn vaults_witness_each_other_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let [vault, one, two] = ["vault", "one", "two"].map(|name| Configured::new(&dir.path().join(name)));
    let both_witness = [
        "[anchor]",
        "kinds = [\"file\", \"witness\"]",
        "quorum = 2",
        &one.entry("witness"),
        &two.entry("witness"),
        &one.entry("witness_for"),
    ];
    vault.configure(&both_witness);
    let mutual = [
        "[anchor]",
        "kinds = [\"witness\"]",
        "quorum = 1",
        &vault.entry("witness"),
        &vault.entry("witness_for"),
    ];
    one.configure(&mutual);
    two.configure(&[&vault.entry("witness_for")]);

    // neither the vault nor its first witness serves before the other answers
    let starting = [&vault, &one, &two].map(Configured::spawn);
    let [served_vault, _served_one, served_two] = starting.map(Program::ready);
    let (transport, pins) = (courier(dir.path()), [served_vault.pin()]);
    let kdf = KdfParams::TESTING;
    let slot = register(&transport, &pins, 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng).await.unwrap().slot;
    let left = async |left| {
        let wrong = unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
        assert_eq!(wrong, VaultError::WrongPassword { left, max: 10 });
    };
    left(9).await;

    drop(served_two);
    let away = unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
    assert!(matches!(away, VaultError::Busy { .. }), "{away}");
    let _served_two = two.spawn().ready();
    // charged already: with the answer lost, that one is gone
    let mut next = unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
    while matches!(next, VaultError::Busy { .. }) {
        next = unlock(&transport, &pins, &slot, b"wrong").await.unwrap_err();
    }
    assert_eq!(next, VaultError::WrongPassword { left: 7, max: 10 });

    drop(served_vault);
    let copy = dir.path().join("copy");
    copy_disk(&vault.data, &copy);
    let served_vault = vault.spawn().ready();
    left(6).await;
    drop(served_vault);
    copy_disk(&copy, &vault.data);
    let refused = vault.serve().output().unwrap();
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("does not serve"), "{why}");

    let ceremony = |phrase: &[&str]| {
        let config = ["restore-ceremony", "--config", vault.file.to_str().unwrap()];
        Command::new(PROGRAM).args(config).args(phrase).output().unwrap()
    };
    let asked = ceremony(&[]);
    assert!(!asked.status.success() && String::from_utf8_lossy(&asked.stderr).contains(PHRASE));
    let done = ceremony(&["--phrase", PHRASE]);
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && said.contains("restores 1"),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let status = Command::new(PROGRAM).args(["status", "--data"]).arg(&vault.data).output().unwrap();
    assert!(String::from_utf8_lossy(&status.stdout).contains("restores 1"));
    let _served_vault = vault.spawn().ready();
    left(0).await;
}

/// Clients take all connections of two vaults that need each other, and wait: the vaults still reach each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_take_every_connection_do_not_lock_two_vaults_out_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| Configured::new(&dir.path().join(name)));
    let few = "connections_max = 3\n[anchor]\nkinds = [\"witness\"]\nquorum = 1";
    one.configure(&[few, &two.entry("witness"), &two.entry("witness_for")]);
    two.configure(&[few, &one.entry("witness"), &one.entry("witness_for")]);
    let served = [&one, &two].map(Configured::spawn).map(Program::ready);
    let transport = Arc::new(courier(dir.path()));
    // longer than a vault leaves an idle connection open: theirs to each other must not be among those
    tokio::time::sleep(Duration::from_secs(12)).await;
    let clients: Vec<_> = (0..12)
        .map(|n| {
            let (transport, pin) = (transport.clone(), served[n % 2].pin());
            tokio::spawn(async move {
                let kdf = KdfParams::TESTING;
                for _ in 0..50 {
                    let pins = [pin.clone()];
                    let made =
                        register(&*transport, &pins, 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng).await;
                    match made {
                        Ok(_) => return,
                        Err(VaultError::Busy { .. } | VaultError::Unreachable { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                panic!("never served");
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
}

/// A data directory with a configuration file and an address of its own.
struct Configured {
    data: PathBuf,
    file: PathBuf,
    address: SocketAddr,
    identity: String,
}

impl Configured {
    fn new(data: &Path) -> Self {
        init(data);
        let shown = Command::new(PROGRAM).args(["fingerprint", "--data"]).arg(data).output().unwrap();
        let identity = String::from_utf8(shown.stdout).unwrap().trim().to_owned();
        // free now, and nobody else asks for it in the moment before the vault does
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { data: data.to_owned(), file: data.with_extension("toml"), address, identity }
    }

    fn entry(&self, kind: &str) -> String {
        let identity = format!("[[{kind}]]\nidentity = \"{}\"", self.identity);
        if kind == "witness" {
            format!("{identity}\naddress = \"https://{}\"", self.address)
        } else {
            identity
        }
    }

    fn configure(&self, settings: &[&str]) {
        let (data, listen) = (self.data.display(), self.address);
        let base = format!("data = \"{data}\"\nlisten = \"{listen}\"\ninsecure_dev = true\n");
        std::fs::write(&self.file, base + &settings.join("\n")).unwrap();
    }

    fn serve(&self) -> Command {
        let mut serve = Command::new(PROGRAM);
        serve.args(["serve", "--config"]).arg(&self.file);
        serve
    }

    fn spawn(&self) -> Program {
        Program::start(&mut self.serve())
    }
}

fn copy_disk(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).ok();
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
