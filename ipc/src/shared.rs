//! The state behind every connection. Interface objects read it; mirrors tell each connection what changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, oneshot, watch};
use zbus::zvariant::OwnedObjectPath;

use crate::names;
use crate::{
    Call, Calls, DatabaseState, Details, EncryptionState, Error, JobId, JobState, ManagerState, Reply,
    StoreState, VaultState,
};

/// How long a finished job stays visible, so that its caller can look at the outcome at leisure.
const JOB_KEPT_FOR: Duration = Duration::from_mins(5);
/// The newest finished jobs stay longer: until there are more than this.
const JOBS_KEPT: usize = 32;
/// More finished jobs than this are never kept, however new.
const JOBS_KEPT_MAX: usize = 256;
/// How long a caller waits for room in the daemon's queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long for the answer. Client libraries give up after 25 seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Signals waiting for one slow connection before it misses some.
const EVENTS_WAITING: usize = 256;

/// What is signalled beside changed properties.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    JobEnded { id: JobId, state: Box<JobState> },
    AttemptFailed { vault: String, left: u32, retry_after: u64 },
    AttemptElsewhere { vault: String, count: u32, left: u32 },
    VaultSuperseded { vault: String },
    VaultDestroyed { vault: String },
}

/// An object below the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Object {
    Root,
    Database(String),
    Store(String),
    Vault(String),
    Job(JobId),
}

impl Object {
    pub(crate) fn path(&self) -> OwnedObjectPath {
        match self {
            Self::Root => OwnedObjectPath::try_from(names::ROOT).expect("a constant path"),
            Self::Database(id) => names::database_path(id),
            Self::Store(id) => names::store_path(id),
            Self::Vault(id) => names::vault_path(id),
            Self::Job(id) => id.path(),
        }
    }
}

struct JobRecord {
    state: JobState,
    ended: Option<Instant>,
}

#[derive(Default)]
pub(crate) struct Tree {
    pub(crate) manager: ManagerState,
    pub(crate) databases: BTreeMap<String, (DatabaseState, EncryptionState)>,
    pub(crate) stores: BTreeMap<String, StoreState>,
    pub(crate) vaults: BTreeMap<String, VaultState>,
    jobs: HashMap<JobId, JobRecord>,
    /// Who chose which token, and the job that came of it.
    tokens: HashMap<JobId, (String, JobId)>,
}

pub(crate) struct Shared {
    calls: Calls,
    pub(crate) allowed_apps: BTreeSet<String>,
    tree: Mutex<Tree>,
    version: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
    next_job: AtomicU64,
}

impl Shared {
    pub(crate) fn new(calls: Calls, allowed_apps: BTreeSet<String>) -> Self {
        Self {
            calls,
            allowed_apps,
            tree: Mutex::default(),
            version: watch::Sender::new(0),
            events: broadcast::Sender::new(EVENTS_WAITING),
            next_job: AtomicU64::new(1),
        }
    }

    pub(crate) fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes the state and tells every connection.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Tree)) {
        change(&mut self.tree());
        self.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn watch(&self) -> (watch::Receiver<u64>, broadcast::Receiver<Event>) {
        (self.version.subscribe(), self.events.subscribe())
    }

    pub(crate) fn signal(&self, event: Event) {
        // no connection, no receiver: nobody to tell
        let _ = self.events.send(event);
    }

    pub(crate) fn new_job_id(&self) -> JobId {
        JobId::numbered(self.next_job.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends a call to the daemon and waits for its answer.
    pub(crate) async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Call) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.calls.send_timeout(make(reply), QUEUE_TIMEOUT).await.map_err(|error| match error {
            tokio::sync::mpsc::error::SendTimeoutError::Timeout(_) => {
                Error::Busy("the service has too much to do; try again".into())
            }
            tokio::sync::mpsc::error::SendTimeoutError::Closed(_) => {
                Error::Internal("the service is shutting down".into())
            }
        })?;
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::Internal("the service gave no answer".into())),
            Err(_) => Err(Error::Busy("the service has not answered within 20 seconds".into())),
        }
    }

    /// All objects that are to be visible, after forgetting old jobs.
    pub(crate) fn objects(&self) -> BTreeSet<Object> {
        let mut tree = self.tree();
        tree.forget_jobs(Instant::now());
        let mut objects = BTreeSet::from([Object::Root]);
        objects.extend(tree.databases.keys().cloned().map(Object::Database));
        objects.extend(tree.stores.keys().cloned().map(Object::Store));
        objects.extend(tree.vaults.keys().cloned().map(Object::Vault));
        objects.extend(tree.jobs.keys().cloned().map(Object::Job));
        objects
    }
}

impl Tree {
    pub(crate) fn job(&self, id: &JobId) -> Option<&JobState> {
        self.jobs.get(id).map(|record| &record.state)
    }

    /// Sets a job's state. A job that has ended stays as it ended.
    pub(crate) fn set_job(&mut self, id: &JobId, state: JobState) {
        match self.jobs.get_mut(id) {
            Some(record) if record.ended.is_some() => {}
            Some(record) => record.state = state,
            None => {
                self.jobs.insert(id.clone(), JobRecord { state, ended: None });
            }
        }
    }

    /// Ends a job; nothing if there is none or it has ended.
    pub(crate) fn end_job(&mut self, id: &JobId, end: impl FnOnce(&mut JobState)) -> Option<JobState> {
        let record = self.jobs.get_mut(id).filter(|record| record.ended.is_none())?;
        end(&mut record.state);
        record.ended = Some(Instant::now());
        Some(record.state.clone())
    }

    /// The job that `owner` started with `token` before, if it did.
    pub(crate) fn job_of_token(&self, owner: &str, token: &JobId) -> Result<Option<JobId>, Error> {
        match self.tokens.get(token) {
            Some((by, job)) if by == owner => Ok(Some(job.clone())),
            Some(_) => Err(Error::InvalidArgument("the job-token is in use".into())),
            None if self.jobs.contains_key(token) => {
                Err(Error::InvalidArgument("the job-token is in use".into()))
            }
            None => Ok(None),
        }
    }

    pub(crate) fn remember_token(&mut self, owner: String, token: JobId, job: JobId) {
        self.tokens.insert(token, (owner, job));
    }

    fn forget_jobs(&mut self, now: Instant) {
        let mut ended: Vec<(Instant, JobId)> =
            self.jobs.iter().filter_map(|(id, record)| Some((record.ended?, id.clone()))).collect();
        if ended.len() <= JOBS_KEPT {
            return;
        }
        ended.sort_unstable_by(|a, b| b.cmp(a));
        for (rank, (at, id)) in ended.into_iter().enumerate().skip(JOBS_KEPT) {
            if rank >= JOBS_KEPT_MAX || now.duration_since(at) > JOB_KEPT_FOR {
                self.jobs.remove(&id);
            }
        }
        let jobs = &self.jobs;
        self.tokens.retain(|_, (_, job)| jobs.contains_key(job));
    }
}

/// What of a finished job is signalled beside its state.
pub(crate) fn ending(state: &JobState) -> (&str, &str, &str, &Details) {
    (&state.state, &state.error.0, &state.error.1, &state.result)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn tree_with_finished_jobs(count: u64) -> Tree {
        let mut tree = Tree::default();
        for number in 0..count {
            let id = JobId::numbered(number);
            tree.set_job(&id, JobState::default());
            tree.end_job(&id, |job| job.state = "done".into()).unwrap();
        }
        tree
    }

    #[test]
    fn the_last_32_jobs_stay_however_old() {
        let mut tree = tree_with_finished_jobs(40);
        tree.forget_jobs(Instant::now() + Duration::from_hours(1));
        assert_eq!(tree.jobs.len(), 32);
        assert!(tree.job(&JobId::numbered(39)).is_some());
        assert!(tree.job(&JobId::numbered(0)).is_none());
    }

    #[test]
    fn within_five_minutes_all_stay_up_to_a_limit() {
        let mut tree = tree_with_finished_jobs(40);
        tree.forget_jobs(Instant::now() + Duration::from_secs(299));
        assert_eq!(tree.jobs.len(), 40);
        let mut tree = tree_with_finished_jobs(300);
        tree.forget_jobs(Instant::now());
        assert_eq!(tree.jobs.len(), 256);
    }

    #[test]
    fn a_running_job_is_never_forgotten() {
        let mut tree = tree_with_finished_jobs(40);
        let running = JobId::numbered(1000);
        tree.set_job(&running, JobState::default());
        tree.forget_jobs(Instant::now() + Duration::from_hours(1));
        assert!(tree.job(&running).is_some());
    }

    #[test]
    fn an_ended_job_does_not_change_any_more() {
        let mut tree = tree_with_finished_jobs(1);
        let id = JobId::numbered(0);
        tree.set_job(&id, JobState::default());
        assert_eq!(tree.job(&id).unwrap().state, "done");
        assert!(tree.end_job(&id, |job| job.state = "failed".into()).is_none());
    }

    #[test]
    fn a_token_belongs_to_who_chose_it() {
        let mut tree = tree_with_finished_jobs(1);
        let token: JobId = "token_abc".parse().unwrap();
        tree.remember_token(":1.5".into(), token.clone(), JobId::numbered(0));
        assert_eq!(tree.job_of_token(":1.5", &token), Ok(Some(JobId::numbered(0))));
        assert!(tree.job_of_token(":1.6", &token).is_err());
    }
}
