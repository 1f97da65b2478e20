//! One copy of an archive in a further store, as the loop sees it: its queue is what it lacks, and its troubles are its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chatkeep_ipc::CopyState;
use chatkeep_planner::{Backoff, Millis, Retry, SourceId};

use crate::catalogue::CopyFacts;
use crate::copies::Behind;
use crate::fault::Fault;

/// What the user has to mend at a store is tried again after so long, in milliseconds: nobody tells us when it was done.
const MENDABLE_MS: u64 = 3_600_000;

/// One copy.
#[derive(Debug)]
pub struct StoreCopy {
    /// Name of its store.
    pub store: String,
    /// The run at work: its flag to stop it.
    pub running: Option<Arc<AtomicBool>>,
    /// Something came meanwhile.
    pub again: bool,
    /// It was held against a listing since the start, and since the last failure.
    pub listed: bool,
    /// When it is tried again after a failure.
    pub retry: Option<Millis>,
    /// Runs that failed in a row.
    pub failures: u32,
    /// Why the last run failed.
    pub fault: Option<Fault>,
    /// Its store does not permit to be looked at.
    pub blind: bool,
    /// What the user should know although it did not.
    pub caution: Option<String>,
    /// Something that it lacks can be read nowhere now: why.
    pub unread: Option<String>,
    /// How far it is behind.
    pub behind: Behind,
    /// Its ages.
    pub facts: CopyFacts,
}

impl StoreCopy {
    /// One of which the catalogue remembers this.
    pub fn new(store: String, facts: CopyFacts) -> Self {
        Self {
            store,
            running: None,
            again: false,
            listed: false,
            retry: None,
            failures: 0,
            fault: None,
            blind: false,
            caution: None,
            unread: None,
            behind: Behind::default(),
            facts,
        }
    }

    /// It got what it was sent, the last time.
    pub fn is_alive(&self) -> bool {
        self.fault.is_none() && self.facts.uploaded_us > 0
    }

    /// Whether it may be tried now.
    pub fn may_begin(&self, now: Millis) -> bool {
        // Where only something could not be read, what is new goes up at once.
        self.running.is_none() && (self.fault.is_none() || self.retry.is_none_or(|at| at <= now))
    }

    /// Stops the run at work at its next object.
    pub fn stop(&self) {
        if let Some(cancelled) = &self.running {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// A run failed: when the next one begins. One store that is away holds up no other, so each waits for itself.
    pub fn failed(&mut self, fault: Fault, source: SourceId, now: Millis) {
        self.failures = self.failures.saturating_add(1);
        // Copies of one source do not come back in step, either.
        let scatter = self.store.bytes().fold(source.0, |sum, byte| sum.rotate_left(5) ^ u32::from(byte));
        let backoff = Backoff::default().delay_ms(SourceId(scatter), self.failures);
        let wait_ms = match fault.retry() {
            Retry::Backoff | Retry::WhenReachable => backoff,
            Retry::After { ms } => ms.clamp(1, MENDABLE_MS),
            Retry::Never => MENDABLE_MS,
        };
        self.retry = Some(Millis(now.0 + wait_ms));
        // Whatever comes back may be another store.
        self.listed = false;
        self.fault = Some(fault);
    }

    /// As it is shown.
    pub fn state(&self) -> CopyState {
        let state = match (&self.running, &self.fault) {
            (_, Some(_)) => "failed",
            (Some(_), None) => "copying",
            (None, None) if self.behind.entries > 0 || self.facts.uploaded_us == 0 => "behind",
            (None, None) => "current",
        };
        CopyState {
            store: self.store.clone(),
            main: false,
            state: state.to_owned(),
            last_upload: self.facts.uploaded_us,
            last_verified: self.facts.verified_us,
            last_error: self.fault.as_ref().map(Fault::pair).unwrap_or_default(),
            caution: self.caution.clone().or_else(|| self.unread.clone()).unwrap_or_default(),
            behind_points: u32::try_from(self.behind.entries).unwrap_or(u32::MAX),
            behind_bytes: self.behind.bytes,
            lacking_points: self.facts.lacking,
        }
    }
}
