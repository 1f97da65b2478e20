//! How many guesses a vault answers in a second: `cargo run --release --example measure [DIR]`, or `[CONFIG.toml]` for a
//! vault with its keys elsewhere, which is made.
//!
//! The whole path but the network: CBOR, decision, SQLite commit, anchor, evaluation, signature. Every client has
//! its own account; `clients` guess at the same time, each waiting for its answer.
#![allow(clippy::unwrap_used, reason = "a measurement has nobody to tell")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatkeep_vault_protocol::Suite;
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::message::{
    Begin, Commit, Envelope, Finish, Guess, Operation, Request, owner_message, sign,
};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::core::Policy;
use chatkeep_vault_server::setup;
use chatkeep_vault_server::vault::{Parts, Vault};
use ed25519_dalek::SigningKey;
use rand_core::{OsRng, RngCore as _};

const RUN: Duration = Duration::from_secs(3);

fn main() -> anyhow::Result<()> {
    let argument = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()));
    let from_file = argument.extension().is_some_and(|extension| extension == "toml");
    let dir = if from_file { tempfile::tempdir()? } else { tempfile::tempdir_in(&argument)? };
    let config = if from_file { Config::read(&argument)? } else { Config::development(dir.path()) };
    setup::init(&config)?;
    // so many attempts that none is destroyed while it is measured
    let policy = Policy { attempts_max: u16::MAX, lifetime_failures_max: u32::MAX, delays_s: Vec::new() };
    let (parts, _lock) = setup::open(&config)?;
    let vault = Arc::new(Vault::start(Parts { policy, ..parts }, |what| panic!("{what}"))?);
    let suite = Suite::from_number(vault.info().suites[0]).unwrap();
    println!("hsm {}, anchor {}, {suite:?}", vault.hsm(), vault.info().anchor);
    let runtime = tokio::runtime::Runtime::new()?;
    for clients in [1, 16, 256] {
        let accounts: Vec<[u8; 16]> = (0..clients).map(|_| account(&vault, suite)).collect();
        let start = Instant::now();
        let guesses: u32 = runtime.block_on(async {
            let running: Vec<_> = accounts
                .into_iter()
                .map(|account| {
                    let vault = vault.clone();
                    tokio::spawn(async move {
                        let mut guesses = 0;
                        while start.elapsed() < RUN {
                            // blinding costs the client, not the vault: random elements are drawn cheaply by it too
                            let blinded = suite.blind(&OsRng.next_u64().to_be_bytes(), &mut OsRng);
                            let request = Request::Guess(Guess {
                                account: Fixed(account),
                                epoch: Fixed([1; 16]),
                                blinded: Blob(blinded.element),
                            });
                            vault.answer(Envelope::new(request, &mut OsRng).encode()).await.unwrap();
                            guesses += 1;
                        }
                        guesses
                    })
                })
                .collect();
            let mut sum = 0;
            for client in running {
                sum += client.await.unwrap();
            }
            sum
        });
        let rate = f64::from(guesses) / start.elapsed().as_secs_f64();
        println!(
            "{clients:>4} clients: {rate:>8.0} guesses/s, {:.1} ms each",
            f64::from(clients) / rate * 1000.0
        );
    }
    Ok(())
}

fn account(vault: &Vault, suite: Suite) -> [u8; 16] {
    let mut account = [0; 16];
    OsRng.fill_bytes(&mut account);
    let key = SigningKey::generate(&mut OsRng);
    let (account_field, epoch) = (Fixed(account), Fixed([1; 16]));
    let begin = Begin {
        account: account_field,
        epoch,
        suite: suite as u8,
        blinded: Blob(suite.blind(b"x", &mut OsRng).element),
        attempts_max: u16::MAX,
        signature: None,
        invite: None,
    };
    let public_key = Fixed(key.verifying_key().to_bytes());
    let finish = Finish { account: account_field, epoch, public_key, signature: None };
    let message = owner_message(Operation::Commit, &vault.identity(), &account, &epoch.0);
    let commit = Commit { account: account_field, epoch, signature: sign(&key, &message) };
    for request in [Request::Begin(begin), Request::Finish(finish), Request::Commit(commit)] {
        vault.answer_blocking(&Envelope::new(request, &mut OsRng).encode()).unwrap();
    }
    account
}
