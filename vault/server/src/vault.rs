//! Joins the pure core with keys, store and anchor: one thread decides and commits, in batches of whatever waits.
//!
//! Order of every batch: decide, commit, anchor, then release the answers. Evaluations and signatures are made by
//! whoever waits for the answer, so the writing thread does nothing but decide and write.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use chatkeep_vault_protocol::answer::{self, Answer, Body, Certificate, Refusal, VaultInfo};
use chatkeep_vault_protocol::limits::{CERTIFICATE_LIFETIME_S, VERSION};
use chatkeep_vault_protocol::message::{Envelope, Request};
use ed25519_dalek::SigningKey;
use rand_core::OsRng;

use crate::anchor::{Anchor, AnchorError, Anchored, Digester, Revisions};
use crate::cells::Place;
use crate::core::{Context, Policy, Record, Reply, step};
use crate::hsm::{IdentityKey, OprfRoot, Sealer};
use crate::store::{self, Head, Row, Store, StoreError, Write};

/// Requests that may wait; beyond it `busy` is answered and nothing charged.
const QUEUE_LEN: usize = 1024;
/// Requests in one commit.
const BATCH_MAX: usize = 512;

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
    /// Seconds since 1970.
    pub clock: Clock,
}

/// The three uses of an HSM; the same device or three.
#[derive(Clone)]
pub struct Keys {
    /// What every answer says of it.
    pub name: &'static str,
    /// Pinned by clients.
    pub identity: Arc<dyn IdentityKey>,
    /// Encrypts records.
    pub sealer: Arc<dyn Sealer>,
    /// Evaluates.
    pub oprf: Arc<dyn OprfRoot>,
}

/// Seconds since 1970, as a function, so that tests can let time pass.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A running vault. Dropping it stops the writing thread after the batch it is in.
pub struct Vault {
    shared: Arc<Shared>,
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    keys: Keys,
    policy: Policy,
    insecure_dev: bool,
    place: Option<Place>,
    anchor_name: &'static str,
    store_name: &'static str,
    clock: Clock,
    seq: AtomicU64,
    evaluations: AtomicU64,
    signer: RwLock<Arc<Signer>>,
}

struct Signer {
    key: SigningKey,
    certificate: Vec<u8>,
}

type Done = Box<dyn FnOnce(Option<Reply>) + Send>;

struct Job {
    envelope: Envelope,
    done: Done,
}

/// No answer, signed or not: the vault cannot know what became of the request. The process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the vault has stopped")]
pub struct Stopped;

impl Vault {
    /// Checks the store against the anchor and starts the writing thread.
    ///
    /// `on_failure` is called once, from that thread, if a commit failed: nothing is answered from then on.
    pub fn start(
        mut parts: Parts,
        on_failure: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, AnchorError> {
        let (head, revisions) = parts.digester.check(&mut *parts.store, &mut *parts.anchor)?;
        if let Some(place) = &parts.place
            && !revisions.keys().all(|account| place.cell.contains(account))
        {
            return Err(AnchorError::OtherCell);
        }
        let shared = Arc::new(Shared {
            signer: RwLock::new(Arc::new(Signer::new(&*parts.keys.identity, (parts.clock)()))),
            keys: parts.keys,
            policy: parts.policy,
            insecure_dev: parts.insecure_dev,
            place: parts.place,
            anchor_name: parts.anchor.name(),
            store_name: parts.store.name(),
            clock: parts.clock,
            seq: AtomicU64::new(head.seq),
            evaluations: AtomicU64::new(0),
        });
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let mut writer = Writer {
            shared: shared.clone(),
            store: parts.store,
            anchor: parts.anchor,
            digester: parts.digester,
            head,
            revisions,
        };
        let writer = std::thread::Builder::new()
            .name("vault-writer".to_owned())
            .spawn(move || {
                if let Err(error) = writer.run(&queue) {
                    on_failure(store::chain(&error));
                }
            })
            .map_err(AnchorError::Io)?;
        Ok(Self { shared, jobs: Some(jobs), writer: Some(writer) })
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
    pub fn renew_certificate(&self) {
        let signer = Signer::new(&*self.shared.keys.identity, (self.shared.clock)());
        *self.shared.signer.write().expect("no one panics while holding it") = Arc::new(signer);
    }

    /// The signed answer to `request`. Waits for the commit that it needs.
    pub async fn answer(&self, request: Vec<u8>) -> Result<Vec<u8>, Stopped> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let immediate = self.submit(&request, Box::new(move |reply| drop(sender.send(reply))))?;
        let answer = match immediate {
            Some(answer) => answer,
            None => self.shared.carry_out(receiver.await.map_err(|_| Stopped)?.ok_or(Stopped)?),
        };
        Ok(self.shared.sign(&request, answer))
    }

    /// As [`Self::answer`], for callers without a runtime.
    pub fn answer_blocking(&self, request: &[u8]) -> Result<Vec<u8>, Stopped> {
        let (sender, receiver) = sync_channel(1);
        let immediate = self.submit(request, Box::new(move |reply| drop(sender.send(reply))))?;
        let answer = match immediate {
            Some(answer) => answer,
            None => self.shared.carry_out(receiver.recv().map_err(|_| Stopped)?.ok_or(Stopped)?),
        };
        Ok(self.shared.sign(request, answer))
    }

    /// What `info` says.
    pub fn info(&self) -> VaultInfo {
        self.shared.info()
    }

    /// Which accounts it serves, for people; `None`: all.
    pub fn cell(&self) -> Option<String> {
        self.shared.place.as_ref().map(Place::describe)
    }

    /// Where the keys are.
    pub fn hsm(&self) -> &'static str {
        self.shared.keys.name
    }

    /// `Some` when the answer needs no record; else `done` is called with the reply.
    fn submit(&self, request: &[u8], done: Done) -> Result<Option<Answer>, Stopped> {
        let Some(envelope) = Envelope::decode(request) else {
            return Ok(Some(Answer::Refused { why: Refusal::Malformed }));
        };
        if let Request::Info(_) = envelope.request {
            return Ok(Some(Answer::Info(Box::new(self.shared.info()))));
        }
        let there = self.shared.place.as_ref().zip(envelope.request.account());
        if let Some(elsewhere) = there.and_then(|(place, account)| place.elsewhere(&account)) {
            return Ok(Some(elsewhere));
        }
        match self.jobs.as_ref().ok_or(Stopped)?.try_send(Job { envelope, done }) {
            Ok(()) => Ok(None),
            Err(TrySendError::Full(_)) => Ok(Some(Answer::Busy {})),
            Err(TrySendError::Disconnected(_)) => Err(Stopped),
        }
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(writer) = self.writer.take() {
            // a panic there was already reported on standard error
            drop(writer.join());
        }
    }
}

impl Shared {
    fn info(&self) -> VaultInfo {
        VaultInfo {
            suites: self.keys.oprf.suites().iter().map(|suite| *suite as u8).collect(),
            attempts_max: self.policy.attempts_max,
            delays_s: self.policy.delays_s.clone(),
            lifetime_failures_max: self.policy.lifetime_failures_max,
            anchor: self.anchor_name.to_owned(),
            store: self.store_name.to_owned(),
            insecure_dev: self.insecure_dev,
            seq: self.seq.load(Ordering::Acquire),
            software: concat!("chatkeep-vault ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    fn open(&self, account: &[u8; 16], row: &Row) -> Result<Record, WriterError> {
        self.keys
            .sealer
            .open(row.key_id, &aad(account, row.revision), &row.sealed)
            .and_then(|bytes| Record::decode(&bytes))
            .ok_or(WriterError::Sealed)
    }

    fn carry_out(&self, reply: Reply) -> Answer {
        match reply {
            Reply::Answer(answer) => answer,
            Reply::Evaluate(evaluation) => {
                self.evaluations.fetch_add(1, Ordering::Relaxed);
                evaluation.carry_out(&*self.keys.oprf).unwrap_or(Answer::Busy {})
            }
        }
    }

    fn sign(&self, request: &[u8], answer: Answer) -> Vec<u8> {
        let signer = self.signer.read().expect("no one panics while holding it").clone();
        let body = Body { version: VERSION, hsm: self.keys.name.to_owned(), time_s: (self.clock)(), answer };
        answer::sign(&signer.key, &signer.certificate, &self.keys.identity.public(), request, &body)
    }
}

impl Signer {
    fn new(identity: &dyn IdentityKey, now_s: u64) -> Self {
        let key = SigningKey::generate(&mut OsRng);
        let certificate = Certificate {
            operational: key.verifying_key().to_bytes(),
            not_before_s: now_s,
            not_after_s: now_s + CERTIFICATE_LIFETIME_S,
        };
        let signature = identity.sign(&certificate.message());
        Self { key, certificate: certificate.encode(&signature) }
    }
}

/// Why the writing thread ended.
#[derive(Debug, thiserror::Error)]
enum WriterError {
    #[error("the database: {0}")]
    Store(#[from] StoreError),
    #[error("the anchor: {0}")]
    Anchor(#[from] AnchorError),
    #[error("a record cannot be opened")]
    Sealed,
    #[error("somebody put an older record back while this vault was running")]
    PutBack,
}

struct Writer {
    shared: Arc<Shared>,
    store: Box<dyn Store>,
    anchor: Box<dyn Anchor>,
    digester: Digester,
    head: Head,
    revisions: Revisions,
}

type Batch = HashMap<[u8; 16], Touched>;

/// One account within a batch: as it is stored, and as the batch will leave it.
struct Touched {
    stored: Option<Row>,
    record: Option<Record>,
    changed: bool,
}

impl Writer {
    fn run(&mut self, queue: &Receiver<Job>) -> Result<(), WriterError> {
        while let Ok(first) = queue.recv() {
            let mut jobs = vec![first];
            jobs.extend(queue.try_iter().take(BATCH_MAX - 1));
            let mut replies = Vec::with_capacity(jobs.len());
            let mut touched = self.load(&jobs)?;
            for job in jobs {
                let reply = self.decide(&mut touched, &job.envelope);
                replies.push((job.done, reply));
            }
            // an error drops the waiting `done`s, and whoever waits learns that the vault has stopped
            self.commit(touched)?;
            for (done, reply) in replies {
                done(Some(reply));
            }
        }
        Ok(())
    }

    /// The accounts that `jobs` are about, as they are stored.
    fn load(&mut self, jobs: &[Job]) -> Result<Batch, WriterError> {
        let accounts: BTreeSet<[u8; 16]> =
            jobs.iter().filter_map(|job| job.envelope.request.account()).collect();
        let accounts: Vec<[u8; 16]> = accounts.into_iter().collect();
        let rows = self.store.load(&accounts)?;
        let mut batch = Batch::with_capacity(accounts.len());
        for (account, stored) in accounts.into_iter().zip(rows) {
            if stored.as_ref().map(|row| row.revision) != self.revisions.get(&account).copied() {
                return Err(WriterError::PutBack);
            }
            let record = stored.as_ref().map(|row| self.shared.open(&account, row)).transpose()?;
            batch.insert(account, Touched { stored, record, changed: false });
        }
        Ok(batch)
    }

    fn decide(&self, batch: &mut Batch, envelope: &Envelope) -> Reply {
        let entry = envelope.request.account().and_then(|account| batch.get_mut(&account));
        let Some(entry) = entry else {
            return Reply::Answer(Answer::Refused { why: Refusal::Malformed });
        };
        let context = Context {
            identity: &self.shared.keys.identity.public(),
            policy: &self.shared.policy,
            now_s: (self.shared.clock)(),
            seq: self.head.seq + 1,
            evaluator: &*self.shared.keys.oprf,
        };
        let step = step(entry.record.as_ref(), envelope, &context, &mut OsRng);
        if let Some(record) = step.record {
            entry.record = Some(record);
            entry.changed = true;
        }
        step.reply
    }

    fn commit(&mut self, touched: Batch) -> Result<(), WriterError> {
        let mut root = self.head.root;
        let mut writes = Vec::new();
        for (account, entry) in touched {
            let (true, Some(record)) = (entry.changed, &entry.record) else { continue };
            let revision = entry.stored.as_ref().map_or(0, |row| row.revision) + 1;
            let sealer = &*self.shared.keys.sealer;
            let sealed = sealer.seal(&aad(&account, revision), &*record.encode(), &mut OsRng);
            let row = Row { revision, key_id: sealer.key_id(), sealed };
            root = self.digester.replace(&root, &account, entry.stored.as_ref(), Some(&row));
            writes.push(Write { account, row });
        }
        if writes.is_empty() {
            return Ok(());
        }
        let head = self.digester.head(self.head.seq + 1, root, self.head.root);
        self.store.commit_batch(&head, &writes)?;
        self.revisions.extend(writes.iter().map(|write| (write.account, write.row.revision)));
        let previous = Anchored { seq: self.head.seq, root: self.head.root };
        self.anchor.advance_from(&previous, &Anchored { seq: head.seq, root: head.root })?;
        self.shared.seq.store(head.seq, Ordering::Release);
        self.head = head;
        Ok(())
    }
}

fn aad(account: &[u8; 16], revision: u64) -> Vec<u8> {
    [b"chatkeep vault record v1", &account[..], &revision.to_be_bytes()].concat()
}
