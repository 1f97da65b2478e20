//! The one thread that decides and writes: a batch of whatever waits, its commit, the anchor, then the answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use chatkeep_vault_protocol::answer::{AdmissionFault, Answer, Refusal};
use chatkeep_vault_protocol::message::{Envelope, Request};
use rand_core::CryptoRngCore;

use super::{Call, Job, SealError, Shared, open_record, seal_record};
use crate::admission::{INVITE, Known};
use crate::anchor::{Anchor, AnchorError, Anchored, Digester, Tags};
use crate::cells::Cell;
use crate::core::{Context, Record, Reply, makes_account, redeem, step};
use crate::hsm::DeviceError;
use crate::reseal::Resealed;
use crate::store::{Head, Row, Store, StoreError, Write};

/// Requests in one commit.
const BATCH_MAX: usize = 512;

/// Why the writing thread ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriterError {
    #[error("the database: {0}")]
    Store(#[from] StoreError),
    #[error("the anchor: {0}")]
    Anchor(#[from] AnchorError),
    #[error("the keys: {0}")]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Sealed(#[from] SealError),
    #[error("somebody put another record in place of one while this vault was running")]
    PutBack,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) store: Box<dyn Store>,
    pub(super) anchor: Box<dyn Anchor>,
    pub(super) digester: Digester,
    pub(super) rng: Box<dyn CryptoRngCore + Send>,
    pub(super) head: Head,
    pub(super) tags: Tags,
    pub(super) sealed_by: BTreeMap<u32, u64>,
}

type Batch = HashMap<[u8; 16], Touched>;

/// One account within a batch: as it is stored, and as the batch will leave it.
struct Touched {
    stored: Option<Row>,
    record: Option<Record>,
    changed: bool,
}

impl Touched {
    fn write(&mut self, record: Record) {
        self.record = Some(record);
        self.changed = true;
    }
}

impl Writer {
    pub(super) fn run(&mut self, queue: &Receiver<Job>) -> Result<(), WriterError> {
        while let Ok(first) = queue.recv() {
            std::thread::sleep(self.anchor.rest());
            let mut calls = Vec::new();
            let mut reseals = Vec::new();
            for job in std::iter::once(first).chain(queue.try_iter().take(BATCH_MAX - 1)) {
                match job {
                    Job::Call(call) => calls.push(call),
                    Job::Reseal { after, limit, done } => reseals.push((after, limit, done)),
                }
            }
            self.answer(calls)?;
            for (after, limit, done) in reseals {
                let resealed = self.reseal(after, limit)?;
                // whoever asked may have gone
                done.send(resealed).ok();
            }
        }
        Ok(())
    }

    fn answer(&mut self, calls: Vec<Call>) -> Result<(), WriterError> {
        let mut calls = calls;
        calls.retain(|call| !call.given_up.load(Ordering::Acquire));
        if !calls.is_empty() {
            self.shared.metrics.batch.observe(calls.len() as f64);
        }
        let mut replies = Vec::with_capacity(calls.len());
        let asked = calls.iter().map(|call| &call.envelope.request);
        let accounts = asked.clone().filter_map(Request::account);
        let invites = asked.filter_map(|request| Some(self.shown(request)?.0));
        let mut batch = self.load(accounts.chain(invites).collect())?;
        for Call { envelope, done, .. } in calls {
            let reply = self.decide(&mut batch, &envelope);
            replies.push((done, reply));
        }
        // an error drops the waiting `done`s, and whoever waits learns that the vault has stopped
        self.commit(batch)?;
        for (done, reply) in replies {
            done(Some(reply));
        }
        Ok(())
    }

    fn reseal(&mut self, after: Option<[u8; 16]>, limit: usize) -> Result<Resealed, WriterError> {
        let keys = self.shared.keys.sealer.keys()?;
        self.shared.note_seal_key(&keys);
        let newest = keys.last().ok_or(DeviceError::Wrong)?.id;
        let accounts = self.store.sealed_by_others(newest, after.as_ref(), limit)?;
        let last = accounts.last().copied();
        let mut batch = self.load(accounts.into_iter().collect())?;
        for touched in batch.values_mut() {
            touched.changed = true;
        }
        self.commit(batch)?;
        let left = self.sealed_by.iter().filter(|(key_id, _)| **key_id != newest).map(|(_, n)| n).sum();
        Ok(Resealed { last, left })
    }

    /// `accounts` as they are stored; an error if that is not what was stored last.
    fn load(&mut self, accounts: BTreeSet<[u8; 16]>) -> Result<Batch, WriterError> {
        let accounts: Vec<[u8; 16]> = accounts.into_iter().collect();
        let rows = self.store.load(&accounts)?;
        let mut batch = Batch::with_capacity(accounts.len());
        for (account, stored) in accounts.into_iter().zip(rows) {
            let tag = stored.as_ref().map(|row| self.digester.tag(&account, row));
            if tag.as_ref() != self.tags.get(&account) {
                return Err(WriterError::PutBack);
            }
            let open = |row| open_record(&self.shared.keys, &account, row);
            let record = stored.as_ref().map(open).transpose()?;
            batch.insert(account, Touched { stored, record, changed: false });
        }
        Ok(batch)
    }

    /// The invitation that is shown, and where its uses are counted; `None` if there is none of this vault.
    fn shown(&self, request: &Request) -> Option<([u8; 16], Known)> {
        let (inviter, Request::Begin(begin)) = (self.shared.inviter.as_ref()?, request) else { return None };
        let invite = inviter.read(&begin.invite.as_ref()?.0)?;
        let cell = self.shared.place.as_ref().map_or(Cell::WHOLE, |place| place.cell);
        Some((inviter.place(&invite, &cell), invite))
    }

    /// Whether this may go on; with the invitation's record as it will be, if it makes an account and uses one.
    fn admit(&self, batch: &Batch, request: &Request) -> Result<Option<([u8; 16], Record)>, Answer> {
        let (Some(_), Request::Begin(begin)) = (&self.shared.inviter, request) else { return Ok(None) };
        let now_s = (self.shared.clock)();
        let record = |account| batch.get(account).and_then(|touched: &Touched| touched.record.as_ref());
        if !makes_account(record(&begin.account.0), begin, now_s) {
            return Ok(None);
        }
        if begin.invite.is_none() {
            return Err(Answer::AdmissionRequired { kind: INVITE.to_owned() });
        }
        let invalid = Answer::AdmissionRefused { why: AdmissionFault::Invalid };
        let (place, invite) = self.shown(request).ok_or(invalid)?;
        let used = redeem(record(&place), &invite.terms, now_s);
        Ok(Some((place, used.map_err(|why| Answer::AdmissionRefused { why })?)))
    }

    fn decide(&mut self, batch: &mut Batch, envelope: &Envelope) -> Reply {
        let admitted = match self.admit(batch, &envelope.request) {
            Ok(admitted) => admitted,
            Err(refused) => return Reply::Answer(refused),
        };
        let entry = envelope.request.account().and_then(|account| batch.get_mut(&account));
        let Some(entry) = entry else {
            return Reply::Answer(Answer::Refused { why: Refusal::Malformed });
        };
        let context = Context {
            identity: &self.shared.keys.identity.public(),
            policy: &self.shared.policy,
            now_s: (self.shared.clock)(),
            seq: self.head.seq + 1,
            evaluator: self.shared.keys.oprf.at_once(),
        };
        let step = step(entry.record.as_ref(), envelope, &context, &mut *self.rng);
        if let Some(record) = step.record {
            entry.write(record);
            // in the commit that makes the account, and only if it does
            if let Some((place, used)) = admitted
                && let Some(invite) = batch.get_mut(&place)
            {
                invite.write(used);
            }
        }
        step.reply
    }

    fn commit(&mut self, touched: Batch) -> Result<(), WriterError> {
        let mut root = self.head.root;
        let mut writes = Vec::new();
        let mut no_longer_sealed_by = Vec::new();
        for (account, entry) in touched {
            let (true, Some(record)) = (entry.changed, &entry.record) else { continue };
            let revision = entry.stored.as_ref().map_or(0, |row| row.revision) + 1;
            let row = seal_record(&self.shared.keys, &account, revision, record, &mut *self.rng)?;
            no_longer_sealed_by.extend(entry.stored.as_ref().map(|row| row.key_id));
            root = self.digester.replace(&root, &account, entry.stored.as_ref(), Some(&row));
            writes.push(Write { account, row });
        }
        if writes.is_empty() {
            return Ok(());
        }
        let head = self.digester.head(self.head.seq + 1, root, self.head.root);
        let metrics = &self.shared.metrics;
        metrics.commit_s.time(|| self.store.commit_batch(&head, &writes))?;
        let tagged = |write: &Write| (write.account, self.digester.tag(&write.account, &write.row));
        self.tags.extend(writes.iter().map(tagged));
        metrics.records.store(self.tags.len() as u64, Ordering::Relaxed);
        for write in &writes {
            *self.sealed_by.entry(write.row.key_id).or_default() += 1;
        }
        for key_id in no_longer_sealed_by {
            self.sealed_by.entry(key_id).and_modify(|records| *records -= 1);
        }
        self.shared.advancing_since.store(self.shared.milliseconds() + 1, Ordering::Release);
        let (from, to) = (Anchored::from(&self.head), Anchored::from(&head));
        metrics.anchor_s.time(|| self.anchor.advance_from(&from, &to))?;
        self.shared.advancing_since.store(0, Ordering::Release);
        self.shared.seq.store(head.seq, Ordering::Release);
        self.head = head;
        Ok(())
    }
}
