//! Joins the pure core with keys, store and anchor: one thread decides and commits, in batches of whatever waits.
//!
//! Order of every batch: decide, commit, anchor, then release the answers. Evaluations and signatures are made by
//! whoever waits for the answer, so the writing thread does nothing but decide and write.

mod crowd;
mod sealed;
mod writer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chatkeep_vault_protocol::answer::{self, Answer, Body, Certificate, Refusal, VaultInfo};
use chatkeep_vault_protocol::head::{commits, restores};
use chatkeep_vault_protocol::limits::{CERTIFICATE_LIFETIME_S, VERSION};
use chatkeep_vault_protocol::message::{Envelope, Request};
use ed25519_dalek::SigningKey;
use rand_core::{CryptoRngCore, OsRng};

use crate::admission::{INVITE, Inviter};
use crate::anchor::{Anchor, AnchorError, Checked, Digester, Interrupter, Lags};
use crate::cells::Place;
use crate::core::{Policy, Reply};
use crate::hsm::{DeviceError, IdentityKey, Keys, SealKey, Sealer};
use crate::metrics::{self, Gauges, Metrics};
use crate::reseal::Resealed;
use crate::store::{self, Store};
use crate::witness::Witness;
use crate::witness::anchor::WitnessFault;
use crate::witness::service::Taken;
use crowd::{Crowd, Full, Turn};
use writer::{Writer, WriterError};

pub use crowd::OF_ONE_ACCOUNT_MAX;
pub use sealed::SealError;
pub(crate) use sealed::{open_record, seal_record};

/// Jobs that may wait for the writing thread. Requests never fill it: [`Crowd`] lets in fewer.
const QUEUE_LEN: usize = crowd::ALL_MAX + 16;
/// Who has waited so long is told `busy`: less than the patience of clients (20 s) and couriers (30 s).
const PATIENCE: Duration = Duration::from_secs(8);
/// While an anchor takes longer than this, nobody new is let in to wait: connections stay free for the vaults that this
/// one witnesses, which may be the ones it waits for.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Between two attempts to read an anchor at start.
const START_PAUSE: Duration = Duration::from_secs(1);

/// What a vault is made of.
pub struct Parts {
    /// Identity, seal and OPRF keys.
    pub keys: Keys,
    /// Records.
    pub store: Box<dyn Store>,
    /// Rollback protection.
    pub anchor: Box<dyn Anchor>,
    /// Keyed digest over all records.
    pub digester: Digester,
    /// Bounds on guessing.
    pub policy: Policy,
    /// Whether it serves although its keys are in software.
    pub insecure_dev: bool,
    /// Which accounts it serves, if not all.
    pub place: Option<Place>,
    /// Knows who may make an account; `None`: everybody.
    pub inviter: Option<Inviter>,
    /// Seconds since 1970.
    pub clock: Clock,
    /// What keys and challenges are drawn from.
    pub rng: Box<dyn CryptoRngCore + Send>,
}

/// Seconds since 1970, as a function, so that tests can let time pass.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A running vault. Dropping it stops the writing thread after the batch it is in.
pub struct Vault {
    shared: Arc<Shared>,
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    interrupter: Option<Interrupter>,
    lags: Option<Lags>,
    witness: Option<Witness>,
    patience: Duration,
}

/// Says when a vault that was begun serves, or why it does not.
pub struct Starting(Receiver<Result<(), AnchorError>>);

impl Starting {
    /// Waits for the check of store and anchor.
    pub fn wait(self) -> Result<(), AnchorError> {
        // without a word: the vault was dropped before it had started
        self.0.recv().unwrap_or(Err(WitnessFault::Stopped.into()))
    }
}

struct Shared {
    keys: Keys,
    policy: Policy,
    insecure_dev: bool,
    place: Option<Place>,
    inviter: Option<Inviter>,
    anchor_name: &'static str,
    anchor_limit: Option<&'static str>,
    store_name: &'static str,
    clock: Clock,
    seq: AtomicU64,
    evaluations: AtomicU64,
    signer: RwLock<Arc<Signer>>,
    /// Whether store and anchor were checked.
    ready: AtomicBool,
    stopping: AtomicBool,
    born: Instant,
    /// Milliseconds since `born` at which the anchor began to advance, plus one; 0: it does not.
    advancing_since: AtomicU64,
    crowd: Arc<Crowd>,
    metrics: Metrics,
}

struct Signer {
    key: SigningKey,
    certificate: Vec<u8>,
}

type Done = Box<dyn FnOnce(Option<Reply>) + Send>;

enum Job {
    Call(Call),
    Reseal { after: Option<[u8; 16]>, limit: usize, done: SyncSender<Resealed> },
}

struct Call {
    envelope: Envelope,
    done: Done,
    /// Whoever waited was told `busy`: if it was not decided yet, it is not charged either.
    given_up: Arc<AtomicBool>,
    /// Also when whoever waited has hung up: what is in the queue counts.
    _turn: Arc<Turn>,
}

/// What becomes of a request.
enum Submitted {
    Answered(Answer),
    Waiting {
        /// To be set to say that nobody waits any more.
        given_up: Arc<AtomicBool>,
        /// To be kept until the answer is made; witnesses' questions have a queue of their own.
        turn: Option<Arc<Turn>>,
    },
}

/// The vault ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the vault has stopped")]
pub struct Stopped;

/// No answer, signed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unanswered {
    /// Too many wait already; nothing was charged or changed. A signature would be work, too.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The vault cannot know what became of the request. The process ends.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl Vault {
    /// Checks the store against the anchor and starts the writing thread.
    ///
    /// `on_failure` is called once, from that thread, if a commit failed: nothing is answered from then on.
    pub fn start(
        parts: Parts,
        on_failure: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, AnchorError> {
        let (vault, starting) = Self::begin(parts, None, false, on_failure)?;
        starting.wait()?;
        Ok(vault)
    }

    /// As [`Self::start`], but comes back at once: until store and anchor are checked, only what `witness` answers is
    /// answered. So two vaults that witness each other can both start.
    ///
    /// `keep_trying`: while witnesses are away, wait for them instead of giving up.
    pub fn begin(
        mut parts: Parts,
        witness: Option<Witness>,
        keep_trying: bool,
        on_failure: impl FnOnce(String) + Send + 'static,
    ) -> Result<(Self, Starting), AnchorError> {
        let shared = Arc::new(Shared {
            signer: RwLock::new(Arc::new(Signer::new(&*parts.keys.identity, (parts.clock)())?)),
            keys: parts.keys,
            policy: parts.policy,
            insecure_dev: parts.insecure_dev,
            place: parts.place,
            inviter: parts.inviter,
            anchor_name: parts.anchor.name(),
            anchor_limit: parts.anchor.limit(),
            store_name: parts.store.name(),
            clock: parts.clock,
            seq: AtomicU64::new(0),
            evaluations: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            born: Instant::now(),
            advancing_since: AtomicU64::new(0),
            crowd: Crowd::new(crowd::ALL_MAX),
            metrics: Metrics::default(),
        });
        let (interrupter, lags) = (parts.anchor.interrupter(), parts.anchor.lags());
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let (started, starting) = sync_channel(1);
        let for_writer = shared.clone();
        let writer = std::thread::Builder::new()
            .name("vault-writer".to_owned())
            .spawn(move || {
                let shared = for_writer;
                let checked =
                    shared.check(&mut *parts.store, &mut *parts.anchor, &parts.digester, keep_trying);
                let Checked { head, tags, sealed_by } = match checked {
                    Ok(checked) => checked,
                    Err(error) => return drop(started.send(Err(error))),
                };
                shared.seq.store(head.seq, Ordering::Release);
                shared.metrics.records.store(tags.len() as u64, Ordering::Relaxed);
                shared.ready.store(true, Ordering::Release);
                drop(started.send(Ok(())));
                let (store, anchor, digester, rng) = (parts.store, parts.anchor, parts.digester, parts.rng);
                let mut writer = Writer { shared, store, anchor, digester, rng, head, tags, sealed_by };
                match writer.run(&queue) {
                    Ok(()) | Err(WriterError::Anchor(AnchorError::Witness(WitnessFault::Stopped))) => {}
                    Err(error) => on_failure(store::chain(&error)),
                }
            })
            .map_err(AnchorError::Io)?;
        let (jobs, writer) = (Some(jobs), Some(writer));
        let vault = Self { shared, jobs, writer, interrupter, lags, witness, patience: PATIENCE };
        Ok((vault, Starting(starting)))
    }

    /// Tells who waits `busy` after `patience` instead of eight seconds: for tests.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The key that clients pin.
    pub fn identity(&self) -> [u8; 32] {
        self.shared.keys.identity.public()
    }

    /// Evaluations released by this process: for measurements and tests.
    pub fn evaluations(&self) -> u64 {
        self.shared.evaluations.load(Ordering::Relaxed)
    }

    /// Draws a new operational key. Called daily; a certificate lives for seven days.
    pub fn renew_certificate(&self) -> Result<(), DeviceError> {
        let signer = Signer::new(&*self.shared.keys.identity, (self.shared.clock)())?;
        *self.shared.signer.write().expect("no one panics while holding it") = Arc::new(signer);
        Ok(())
    }

    /// The signed answer to `request`. Waits for the commit that it needs, but not for ever.
    pub async fn answer(&self, request: Vec<u8>) -> Result<Vec<u8>, Unanswered> {
        let (envelope, since) = (Envelope::decode(&request), Instant::now());
        let kind = metrics::kind(envelope.as_ref());
        let answer = self.wait_for_answer(envelope).await;
        self.shared.metrics.answered(kind, &answer, since.elapsed());
        Ok(self.shared.sign(&request, answer?))
    }

    async fn wait_for_answer(&self, envelope: Option<Envelope>) -> Result<Answer, Unanswered> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let (given_up, turn) = match self.submit(envelope, Box::new(move |reply| drop(sender.send(reply))))? {
            Submitted::Answered(answer) => return Ok(answer),
            Submitted::Waiting { given_up, turn } => (given_up, turn),
        };
        let Ok(reply) = tokio::time::timeout(self.patience, receiver).await else {
            return Ok(give_up(&given_up));
        };
        let reply = reply.map_err(|_| Stopped)?.ok_or(Stopped)?;
        let shared = self.shared.clone();
        if matches!(reply, Reply::Evaluate(_)) && shared.keys.oprf.waits() {
            // who hangs up does not end the evaluation, so it keeps its place
            let evaluation = move || {
                let _turn = turn;
                shared.carry_out(reply)
            };
            return Ok(tokio::task::spawn_blocking(evaluation).await.map_err(|_| Stopped)?);
        }
        Ok(shared.carry_out(reply))
    }

    /// As [`Self::answer`], for callers without a runtime.
    pub fn answer_blocking(&self, request: &[u8]) -> Result<Vec<u8>, Unanswered> {
        let (sender, receiver) = sync_channel(1);
        let envelope = Envelope::decode(request);
        let answer = match self.submit(envelope, Box::new(move |reply| drop(sender.send(reply))))? {
            Submitted::Answered(answer) => answer,
            Submitted::Waiting { given_up, turn: _turn } => match receiver.recv_timeout(self.patience) {
                Ok(reply) => self.shared.carry_out(reply.ok_or(Stopped)?),
                Err(RecvTimeoutError::Timeout) => give_up(&given_up),
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped.into()),
            },
        };
        Ok(self.shared.sign(request, answer))
    }

    /// What `info` says.
    pub fn info(&self) -> VaultInfo {
        self.shared.info()
    }

    /// For Prometheus, with `connections` of clients.
    pub fn metrics(&self, connections: usize) -> String {
        let (shared, seq) = (&self.shared, self.shared.seq.load(Ordering::Acquire));
        let key_made_at_s = shared.metrics.seal_key_made_at_s.load(Ordering::Relaxed);
        shared.metrics.text(&Gauges {
            ready: shared.ready.load(Ordering::Acquire),
            commits: commits(seq),
            restores: restores(seq),
            in_flight: shared.crowd.len(),
            connections,
            seal_key_age_s: (key_made_at_s != 0).then(|| self.now_s().saturating_sub(key_made_at_s)),
            witness_lags: self.lags.as_ref().map(|lags| lags()).unwrap_or_default(),
        })
    }

    /// Which accounts it serves, for people; `None`: all.
    pub fn cell(&self) -> Option<String> {
        self.shared.place.as_ref().map(Place::describe)
    }

    /// Where the keys are.
    pub fn hsm(&self) -> &str {
        &self.shared.keys.name
    }

    /// What the anchor cannot notice.
    pub fn anchor_limit(&self) -> Option<&'static str> {
        self.shared.anchor_limit
    }

    /// What encrypts records.
    pub fn sealer(&self) -> &dyn Sealer {
        &*self.shared.keys.sealer
    }

    /// The vault's time, in seconds since 1970.
    pub fn now_s(&self) -> u64 {
        (self.shared.clock)()
    }

    /// Seals at most `limit` records, those after `after`, again with the newest key; the commit is between those of requests.
    pub fn reseal(&self, after: Option<[u8; 16]>, limit: usize) -> Result<Resealed, Stopped> {
        let (done, receiver) = sync_channel(1);
        self.jobs.as_ref().ok_or(Stopped)?.send(Job::Reseal { after, limit, done }).map_err(|_| Stopped)?;
        receiver.recv().map_err(|_| Stopped)
    }

    /// Lets a commit that waits for others end, and with it the thread. What waits for it is not answered.
    pub fn interrupt(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(interrupt) = &self.interrupter {
            interrupt();
        }
    }

    /// An answer that needs no record, or `done` is called with the reply.
    fn submit(&self, envelope: Option<Envelope>, done: Done) -> Result<Submitted, Unanswered> {
        let now = |answer| Ok(Submitted::Answered(answer));
        let Some(envelope) = envelope else {
            return now(Answer::Refused { why: Refusal::Malformed });
        };
        let given_up = Arc::new(AtomicBool::new(false));
        if let Request::Cosign(_) | Request::Latest(_) = envelope.request {
            let Some(witness) = &self.witness else {
                return now(Answer::Refused { why: Refusal::NotWitnessed });
            };
            let done = Box::new(move |answer| done(Some(Reply::Answer(answer))));
            return match witness.submit(envelope.request, done) {
                Taken::Now(answer) => now(answer),
                Taken::Later => Ok(Submitted::Waiting { given_up, turn: None }),
                Taken::Stopped => Err(Stopped.into()),
            };
        }
        if !self.shared.ready.load(Ordering::Acquire) {
            return now(Answer::Busy {});
        }
        if let Request::Info(_) = envelope.request {
            return now(Answer::Info(Box::new(self.shared.info())));
        }
        let account = envelope.request.account();
        let there = self.shared.place.as_ref().zip(account);
        if let Some(elsewhere) = there.and_then(|(place, account)| place.elsewhere(&account)) {
            return now(elsewhere);
        }
        if self.shared.is_stalled() {
            return now(Answer::Busy {});
        }
        let turn = match self.shared.crowd.enter(account) {
            Ok(turn) => Arc::new(turn),
            Err(Full::Account) => return now(Answer::Busy {}),
            Err(Full::Everybody) => return Err(Unanswered::Overloaded),
        };
        let call = Call { envelope, done, given_up: given_up.clone(), _turn: turn.clone() };
        match self.jobs.as_ref().ok_or(Stopped)?.try_send(Job::Call(call)) {
            Ok(()) => Ok(Submitted::Waiting { given_up, turn: Some(turn) }),
            Err(TrySendError::Full(_)) => Err(Unanswered::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(Stopped.into()),
        }
    }
}

fn give_up(waiting: &AtomicBool) -> Answer {
    waiting.store(true, Ordering::Release);
    Answer::Busy {}
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.jobs.take();
        self.interrupt();
        if let Some(writer) = self.writer.take() {
            // a panic there was already reported on standard error
            drop(writer.join());
        }
    }
}

impl Shared {
    fn check(
        &self,
        store: &mut dyn Store,
        anchor: &mut dyn Anchor,
        digester: &Digester,
        keep_trying: bool,
    ) -> Result<Checked, AnchorError> {
        let checked = digester.check_store(store)?;
        if let Some(place) = &self.place
            && !checked.tags.keys().all(|account| place.cell.contains(account))
        {
            return Err(AnchorError::OtherCell);
        }
        loop {
            match anchor.settle(&checked.head) {
                Ok(()) => {
                    self.check_seal_keys(&checked.sealed_by)?;
                    return Ok(checked);
                }
                Err(error) if keep_trying && error.is_temporary() => {
                    tracing::warn!(%error, "not serving yet");
                }
                Err(error) => return Err(error),
            }
            std::thread::sleep(START_PAUSE);
            if self.stopping.load(Ordering::Acquire) {
                return Err(WitnessFault::Stopped.into());
            }
        }
    }

    /// Who lacks a key now would charge nobody, but could answer nobody either.
    fn check_seal_keys(&self, sealed_by: &BTreeMap<u32, u64>) -> Result<(), AnchorError> {
        let keys = self.keys.sealer.keys()?;
        self.note_seal_key(&keys);
        match sealed_by.iter().find(|(key_id, _)| keys.iter().all(|key| key.id != **key_id)) {
            Some((&key_id, &records)) => Err(AnchorError::Shredded { key_id, records }),
            None => Ok(()),
        }
    }

    fn note_seal_key(&self, keys: &[SealKey]) {
        let made_at_s = keys.last().map_or(0, |key| key.made_at_s);
        self.metrics.seal_key_made_at_s.store(made_at_s, Ordering::Relaxed);
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_stalled(&self) -> bool {
        let since = self.advancing_since.load(Ordering::Acquire);
        since != 0 && u128::from(self.milliseconds().saturating_sub(since)) > STALLED_AFTER.as_millis()
    }

    fn info(&self) -> VaultInfo {
        VaultInfo {
            suites: self.keys.oprf.suites().iter().map(|suite| *suite as u8).collect(),
            attempts_max: self.policy.attempts_max,
            delays_s: self.policy.delays_s.clone(),
            lifetime_failures_max: self.policy.lifetime_failures_max,
            anchor: self.anchor_name.to_owned(),
            store: self.store_name.to_owned(),
            admission: if self.inviter.is_some() { INVITE.to_owned() } else { String::new() },
            insecure_dev: self.insecure_dev,
            seq: self.seq.load(Ordering::Acquire),
            software: concat!("chatkeep-vault ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    fn carry_out(&self, reply: Reply) -> Answer {
        match reply {
            Reply::Answer(answer) => answer,
            Reply::Evaluate(evaluation) => {
                self.evaluations.fetch_add(1, Ordering::Relaxed);
                let evaluated = self.metrics.evaluation_s.time(|| evaluation.carry_out(&*self.keys.oprf));
                evaluated.unwrap_or(Answer::Busy {})
            }
        }
    }

    fn sign(&self, request: &[u8], answer: Answer) -> Vec<u8> {
        let signer = self.signer.read().expect("no one panics while holding it").clone();
        let body = Body { version: VERSION, hsm: self.keys.name.clone(), time_s: (self.clock)(), answer };
        answer::sign(&signer.key, &signer.certificate, &self.keys.identity.public(), request, &body)
    }
}

impl Signer {
    fn new(identity: &dyn IdentityKey, now_s: u64) -> Result<Self, DeviceError> {
        let key = SigningKey::generate(&mut OsRng);
        let certificate = Certificate {
            operational: key.verifying_key().to_bytes(),
            not_before_s: now_s,
            not_after_s: now_s + CERTIFICATE_LIFETIME_S,
        };
        let signature = identity.sign(&certificate.message())?;
        Ok(Self { key, certificate: certificate.encode(&signature) })
    }
}
