//! The real program over real TLS through the real courier code: also when it is killed, also with somebody in between.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chatkeep_vault_client::{
    CourierTransport, KdfParams, TransportError, VaultError, VaultPin, info, register,
};
use common::program::{PROGRAM, Served, courier};
use common::{CONTEXT, KEY, PASSWORD, unlock};
use rand_core::{OsRng, RngCore as _};

fn serve(data: &Path) -> Served {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--insecure-dev", "--data"]).arg(data);
    Served::start(&mut command)
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
    assert_eq!(String::from_utf8(shown.stdout).unwrap().trim(), served.identity.to_string());

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
    let redirected = VaultPin { url: theirs.url.clone(), ..mine.pin() };
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
