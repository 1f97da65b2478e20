//! Which requests share a commit.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::message::{Begin, Envelope, Request};
use chatkeep_vault_server::anchor::{Anchor, AnchorError, Anchored};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::setup;
use chatkeep_vault_server::vault::{Parts, Vault};
use rand_core::OsRng;

/// Rests until somebody says that it is enough, once; then never again.
struct Resting {
    anchor: Box<dyn Anchor>,
    enough: Receiver<()>,
}

impl Anchor for Resting {
    fn name(&self) -> &'static str {
        "resting"
    }

    fn read(&mut self) -> Result<Anchored, AnchorError> {
        self.anchor.read()
    }

    fn advance(&mut self, next: &Anchored) -> Result<(), AnchorError> {
        self.anchor.advance(next)
    }

    fn rest(&self) -> Duration {
        self.enough.recv().ok();
        Duration::ZERO
    }
}

fn begin(account: u8) -> Vec<u8> {
    let begin = Begin {
        account: Fixed([account; 16]),
        epoch: Fixed([1; 16]),
        suite: Suite::P256 as u8,
        blinded: Blob(Suite::P256.blind(b"x", &mut OsRng).element),
        attempts_max: 10,
        invite: None,
        signature: None,
    };
    Envelope::new(Request::Begin(begin), &mut OsRng).encode()
}

/// However many strangers make accounts: a device that must not be written often is written once for all of them.
#[tokio::test(flavor = "current_thread")]
async fn what_comes_while_the_anchor_rests_is_one_commit() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::development(dir.path());
    setup::init(&config).unwrap();
    let (parts, _lock) = setup::open(&config).unwrap();
    let (enough, rest) = sync_channel(1);
    let anchor = Box::new(Resting { anchor: parts.anchor, enough: rest });
    let vault = Arc::new(Vault::start(Parts { anchor, ..parts }, |what| panic!("{what}")).unwrap());
    let asking: Vec<_> = (0..100)
        .map(|account| {
            let vault = vault.clone();
            tokio::spawn(async move { vault.answer(begin(account)).await.unwrap() })
        })
        .collect();
    // each of them runs until it waits for the commit; the runtime takes a few dozen at a time
    for _ in 0..asking.len() {
        tokio::task::yield_now().await;
    }
    enough.send(()).unwrap();
    drop(enough);
    for answer in asking {
        answer.await.unwrap();
    }
    assert_eq!(vault.info().seq, 1);
}
