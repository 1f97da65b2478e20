//! The way to the vaults, with a book kept of every attempt that goes over it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chatkeep_vault_client::{Transport, TransportError, VaultPin};
use chatkeep_vault_protocol::answer::{self, Answer};
use chatkeep_vault_protocol::message::{Envelope, Request};

use super::Account;
use crate::catalogue::Catalogue;

/// So long after its last message an attempt may still be under way: three tries of an answer, 40 s each.
const UNDER_WAY: Duration = Duration::from_mins(3);

/// An account at a vault under one registration: identity, account, epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(pub [u8; 64]);

impl AccountId {
    /// The name under which it is remembered.
    pub fn new(identity: &[u8; 32], account: &[u8; 16], epoch: &[u8; 16]) -> Self {
        let mut id = [0; 64];
        id[..32].copy_from_slice(identity);
        id[32..48].copy_from_slice(account);
        id[48..].copy_from_slice(epoch);
        Self(id)
    }

    /// What the names of all its registrations begin with.
    pub fn of_all_registrations(&self) -> &[u8] {
        &self.0[..48]
    }
}

/// The way to the vaults, which keeps an [`Account`] of what goes over it. Cheap to clone.
#[derive(Clone)]
pub struct Book {
    inner: Arc<dyn Transport>,
    catalogue: Catalogue,
    memory: Arc<Mutex<HashMap<AccountId, Instant>>>,
    changes: Arc<AtomicU64>,
    lifted: Arc<AtomicU64>,
}

/// While it lives, no look freezes anything: a freeze was lifted for an attempt of the owner's own.
#[must_use = "it ends when this is dropped"]
pub struct Lifting(Arc<AtomicU64>);

impl Drop for Lifting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Book {
    /// Sends over `inner`, and keeps its accounts in the catalogue.
    pub fn new(inner: Arc<dyn Transport>, catalogue: Catalogue) -> Self {
        Self { inner, catalogue, memory: Arc::default(), changes: Arc::default(), lifted: Arc::default() }
    }

    /// Begins to lift a freeze for a moment.
    pub fn lifting(&self) -> Lifting {
        self.lifted.fetch_add(1, Ordering::SeqCst);
        Lifting(self.lifted.clone())
    }

    /// Whether a freeze is lifted for a moment.
    pub fn is_lifted(&self) -> bool {
        self.lifted.load(Ordering::SeqCst) > 0
    }

    /// The way that notes nothing: to find out what became of an attempt.
    pub fn unwatched(&self) -> &dyn Transport {
        &*self.inner
    }

    /// What is known of an account.
    pub fn account(&self, id: &AccountId) -> Option<Account> {
        self.catalogue.account(id)
    }

    /// Changes it, durably or not at all.
    pub fn change<T>(&self, id: &AccountId, change: impl FnOnce(&mut Account) -> T) -> anyhow::Result<T> {
        let _one_at_a_time = self.memory();
        self.write(id, change)
    }

    /// As [`Book::change`], if nothing was noted about any attempt since `stamp`: an answer from before knows nothing of it.
    pub fn change_if<T>(
        &self,
        id: &AccountId,
        stamp: u64,
        change: impl FnOnce(&mut Account) -> T,
    ) -> anyhow::Result<Option<T>> {
        let _one_at_a_time = self.memory();
        if self.changes.load(Ordering::SeqCst) != stamp {
            return Ok(None);
        }
        self.write(id, change).map(Some)
    }

    /// What has to be the same for [`Book::change_if`].
    pub fn stamp(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// An attempt of this process may be under way.
    pub fn is_busy(&self, id: &AccountId) -> bool {
        self.memory().get(id).is_some_and(|at| at.elapsed() < UNDER_WAY)
    }

    /// Attempts of this device at the same account, under other registrations than this.
    pub fn charged_under_others(&self, id: &AccountId) -> u32 {
        let others = self.catalogue.accounts_beside(id);
        others.iter().fold(0, |sum, account| sum.saturating_add(account.charged()))
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<AccountId, Instant>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(&self, id: &AccountId, change: impl FnOnce(&mut Account) -> T) -> anyhow::Result<T> {
        let known = self.catalogue.account(id);
        let mut account = known.clone().unwrap_or_default();
        let result = change(&mut account);
        if known.as_ref() != Some(&account) {
            self.catalogue.put_account(id, &account)?;
        }
        Ok(result)
    }

    /// Notes something about an attempt.
    fn note(&self, id: &AccountId, change: impl FnOnce(&mut Account)) -> anyhow::Result<()> {
        let mut memory = self.memory();
        memory.insert(id.clone(), Instant::now());
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.write(id, change)
    }

    /// A registration became the active one: all counts begin anew, unless it was so already.
    fn registered(&self, id: &AccountId) -> anyhow::Result<()> {
        let _one_at_a_time = self.memory();
        if self.catalogue.account(id).is_none() {
            self.catalogue.put_account(id, &Account::new())?;
        }
        self.catalogue.keep_account(id)
    }
}

#[async_trait]
impl Transport for Book {
    async fn call(&self, vault: &VaultPin, request: Vec<u8>) -> Result<Vec<u8>, TransportError> {
        let asked = Envelope::decode(&request).map(|envelope| envelope.request);
        let id = |account: &[u8; 16], epoch: &[u8; 16]| AccountId::new(&vault.identity, account, epoch);
        let before = match &asked {
            Some(Request::Guess(guess)) => {
                let id = id(&guess.account.0, &guess.epoch.0);
                self.note(&id, |account| account.sends(&guess.blinded.0))
            }
            Some(Request::Prove(proof)) => {
                let id = id(&proof.account.0, &proof.epoch.0);
                self.note(&id, |account| account.proves(&proof.blinded.0))
            }
            _ => Ok(()),
        };
        // What cannot be written down is not sent: it would look like somebody else's.
        before.map_err(|error| TransportError::Unreachable {
            what: format!("the attempt cannot be written down: {error}"),
        })?;
        let answered = self.inner.call(vault, request.clone()).await?;
        let now_s = crate::clock::now_us() / 1_000_000;
        // What is not signed is not believed; whoever asked finds that out, too.
        let Ok(body) = answer::verify(&answered, &vault.identity, &request, now_s) else {
            return Ok(answered);
        };
        let after = match (&asked, &body.answer) {
            // Another cell is asked next.
            (_, Answer::Elsewhere { .. }) => Ok(()),
            (Some(Request::Guess(guess)), answer) => {
                let id = id(&guess.account.0, &guess.epoch.0);
                self.note(&id, |account| account.answered(&guess.blinded.0, answer))
            }
            (Some(Request::Prove(proof)), answer) => {
                let id = id(&proof.account.0, &proof.epoch.0);
                self.note(&id, |account| account.proof_answered(&proof.blinded.0, answer))
            }
            (Some(Request::Commit(commit)), Answer::Active { .. }) => {
                self.registered(&id(&commit.account.0, &commit.epoch.0))
            }
            _ => Ok(()),
        };
        if let Err(error) = after {
            // The vault has answered: what became of the attempt is found out by the next look.
            tracing::warn!(%error, "what a vault answered cannot be written down");
        }
        Ok(answered)
    }
}
