//! Clients that guess, each waiting for its answer before it asks again, over a connection that stays open.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use chatkeep_vault_line::Line;
use chatkeep_vault_protocol::answer::{self, Answer};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::message::{
    Begin, Commit, Envelope, Finish, Guess, Info, Operation, Request, owner_message, sign,
};
use chatkeep_vault_protocol::{Identity, Suite};
use ed25519_dalek::SigningKey;
use rand_core::{OsRng, RngCore as _};

use crate::program::Program;

/// Guesses at one account, of the hundred that it has.
const GUESSES: usize = 90;
/// Accounts of a measurement: enough for 20 000 guesses a second, for five seconds.
const ACCOUNTS: usize = 1_024;
/// How long questions are measured.
const QUESTIONS: Duration = Duration::from_secs(3);
/// Different elements; a guess counts if its element is not the one before.
const ELEMENTS: usize = 64;
/// Of so many answers the signature is checked by the clients, which would otherwise be slower than the vault.
const CHECK_EACH: usize = 64;

/// What all clients need.
struct Shared {
    identity: Identity,
    url: String,
    suite: Suite,
    elements: Vec<Vec<u8>>,
}

/// How often a second.
pub(crate) struct Rates {
    /// With so many clients.
    pub(crate) clients: usize,
    /// A guess: charged, durable, anchored, evaluated, signed.
    pub(crate) guesses: f64,
    /// A question that needs no record and no evaluation: connection, HTTP, CBOR and signature.
    pub(crate) questions: f64,
}

/// Rates with each number of clients.
pub(crate) fn measure(vault: &Program, clients: &[usize], seconds: u64) -> Result<Vec<Rates>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut line = Line::new(&vault.url, vault.identity)?;
        let Answer::Info(info) = ask(&mut line, vault.identity, Request::Info(Info {})).await? else {
            bail!("the vault does not say what it is");
        };
        let suite = Suite::from_number(*info.suites.first().context("a suite")?).context("a known suite")?;
        let element = |n: usize| suite.blind(&n.to_be_bytes(), &mut OsRng).element;
        let elements = (0..ELEMENTS).map(element).collect();
        let shared = Arc::new(Shared { identity: vault.identity, url: vault.url.clone(), suite, elements });
        let mut rates = Vec::new();
        for clients in clients {
            let (clients, time) = (*clients, Duration::from_secs(seconds));
            let questions = repeat(&shared, clients, QUESTIONS, |_, _| Ok(Request::Info(Info {}))).await?;
            let accounts = register(&shared, ACCOUNTS).await?;
            let each = accounts.len() / clients;
            let for_guesses = shared.clone();
            let guess = move |client: usize, done: usize| {
                let mine = &accounts[client * each..(client + 1) * each];
                let account = *mine.get(done / GUESSES).context("there are too few accounts")?;
                let blinded = Blob(for_guesses.elements[1 + done % (ELEMENTS - 1)].clone());
                Ok(Request::Guess(Guess { account: Fixed(account), epoch: Fixed([1; 16]), blinded }))
            };
            let guesses = repeat(&shared, clients, time, guess).await?;
            rates.push(Rates { clients, guesses, questions });
        }
        Ok(rates)
    })
}

async fn register(shared: &Arc<Shared>, count: usize) -> Result<Vec<[u8; 16]>> {
    let mut running = Vec::new();
    for _ in 0..64 {
        let (shared, mine) = (shared.clone(), count.div_ceil(64));
        running.push(tokio::spawn(async move {
            let mut line = Line::new(&shared.url, shared.identity)?;
            let mut accounts = Vec::new();
            for _ in 0..mine {
                accounts.push(account(&mut line, &shared).await?);
            }
            Ok::<_, anyhow::Error>(accounts)
        }));
    }
    let mut accounts = Vec::new();
    for client in running {
        accounts.extend(client.await??);
    }
    Ok(accounts)
}

async fn account(line: &mut Line, shared: &Shared) -> Result<[u8; 16]> {
    let mut account = [0; 16];
    OsRng.fill_bytes(&mut account);
    let key = SigningKey::generate(&mut OsRng);
    let (field, epoch) = (Fixed(account), Fixed([1; 16]));
    let public_key = Fixed(key.verifying_key().to_bytes());
    let message = owner_message(Operation::Commit, &shared.identity.0, &account, &epoch.0);
    let requests = [
        Request::Begin(Begin {
            account: field,
            epoch,
            suite: shared.suite as u8,
            blinded: Blob(shared.elements[0].clone()),
            attempts_max: 100,
            invite: None,
            signature: None,
        }),
        Request::Finish(Finish { account: field, epoch, public_key, signature: None }),
        Request::Commit(Commit { account: field, epoch, signature: sign(&key, &message) }),
    ];
    for request in requests {
        match ask(line, shared.identity, request).await? {
            Answer::Evaluated { .. } | Answer::Pending {} | Answer::Active { .. } => {}
            other => bail!("registering an account was answered with {other:?}"),
        }
    }
    Ok(account)
}

/// How often a second `clients` get an answer to `request`, which is made from the number of the client and of its
/// answers so far.
async fn repeat(
    shared: &Arc<Shared>,
    clients: usize,
    time: Duration,
    request: impl Fn(usize, usize) -> Result<Request> + Send + Sync + 'static,
) -> Result<f64> {
    let (start, request) = (Instant::now(), Arc::new(request));
    let mut running = Vec::new();
    for client in 0..clients {
        let (shared, request) = (shared.clone(), request.clone());
        running.push(tokio::spawn(async move {
            let mut line = Line::new(&shared.url, shared.identity)?;
            let mut done = 0;
            while start.elapsed() < time {
                let request = Envelope::new(request(client, done)?, &mut OsRng).encode();
                let answered = line.carry(Bytes::from(request.clone())).await?;
                if done % CHECK_EACH == 0 {
                    let body = answer::verify(&answered, &shared.identity.0, &request, now_s())?;
                    ensure!(matches!(body.answer, Answer::Charged(_) | Answer::Info(_)), "{:?}", body.answer);
                }
                done += 1;
            }
            Ok::<_, anyhow::Error>(done)
        }));
    }
    let mut done = 0;
    for client in running {
        done += client.await??;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

async fn ask(line: &mut Line, identity: Identity, request: Request) -> Result<Answer> {
    let request = Envelope::new(request, &mut OsRng).encode();
    let answered = line.carry(Bytes::from(request.clone())).await?;
    Ok(answer::verify(&answered, &identity.0, &request, now_s())?.answer)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
