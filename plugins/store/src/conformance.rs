//! What every store must pass, whoever wrote it. The suite talks to the store through its public door only and
//! removes what it made; `chatkeep store check` and the tests of each store run the same.

mod content;
mod listings;
mod races;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::contract::{PutCondition, Store};
use crate::error::{ErrorKind, StoreError};
use crate::key::{InvalidKey, StoreKey};

/// How thorough a run is.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Rounds of each race.
    pub rounds: u32,
    /// How many race at once.
    pub racers: u32,
    /// How many objects the longest listing has. More than 1000 needs a second page on most services.
    pub listing_len: u32,
    /// Length of the largest object, in bytes.
    pub object_len: usize,
}

impl Extent {
    /// As the design asks: 16-way races over 30 rounds, 1001 objects, 64 MiB.
    pub const FULL: Self = Self { rounds: 30, racers: 16, listing_len: 1001, object_len: 64 << 20 };
    /// Seconds rather than minutes on a slow store; races and a second page are still tried.
    pub const QUICK: Self = Self { rounds: 3, racers: 16, listing_len: 40, object_len: 2 << 20 };
}

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// What must hold, as a sentence.
    pub name: &'static str,
    /// Whether it does.
    pub outcome: Outcome,
}

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// The store says that it cannot do this.
    Skipped(String),
    /// It does not hold.
    Failed(String),
}

impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Passed => write!(f, "ok      {}", self.name),
            Outcome::Skipped(why) => write!(f, "skipped {} ({why})", self.name),
            Outcome::Failed(why) => write!(f, "FAILED  {}: {why}", self.name),
        }
    }
}

/// Runs every case, each below its own folder of `root` (one key segment that nothing else uses).
///
/// Must run on a Tokio runtime; races are real only on one with several threads.
pub async fn run(store: Arc<dyn Store>, root: &str, extent: Extent) -> Vec<CaseResult> {
    let suite = Suite { store, root: root.to_owned(), extent };
    let mut results = content::run(&suite).await;
    results.extend(races::run(&suite).await);
    results.extend(listings::run(&suite).await);
    let left = suite.clean_up().await;
    results.push(case("nothing of the suite is left behind", left));
    results
}

/// For tests: panics unless every case passed or was skipped, and names those that failed.
#[track_caller]
pub fn assert_all_passed(results: &[CaseResult]) {
    let failed: Vec<String> =
        results.iter().filter(|r| matches!(r.outcome, Outcome::Failed(_))).map(ToString::to_string).collect();
    assert!(!results.is_empty() && failed.is_empty(), "{}", failed.join("\n"));
}

/// As [`assert_all_passed`], and exactly the cases with these names were skipped: what a store can do, it is asked for.
#[track_caller]
pub fn assert_skipped_only(results: &[CaseResult], names: &[&str]) {
    assert_all_passed(results);
    let skipped: Vec<&str> = results
        .iter()
        .filter(|result| matches!(result.outcome, Outcome::Skipped(_)))
        .map(|result| result.name)
        .collect();
    assert_eq!(skipped, names);
}

/// The case of stores that lock objects against deletion.
pub const LOCKED: &str = "a locked object stays until its time";

/// What a case needs.
struct Suite {
    store: Arc<dyn Store>,
    root: String,
    extent: Extent,
}

/// Why a case did not pass.
enum Doubt {
    Cannot(String),
    Broken(String),
}

type CaseOutcome = Result<(), Doubt>;

impl From<StoreError> for Doubt {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::Broken(format!("{error}{cause} ({})", error.kind()))
    }
}

impl From<InvalidKey> for Doubt {
    fn from(error: InvalidKey) -> Self {
        Self::Broken(format!("the suite itself is called with a root that is no key segment: {error}"))
    }
}

fn case(name: &'static str, outcome: CaseOutcome) -> CaseResult {
    let outcome = match outcome {
        Ok(()) => Outcome::Passed,
        Err(Doubt::Cannot(why)) => Outcome::Skipped(why),
        Err(Doubt::Broken(why)) => Outcome::Failed(why),
    };
    CaseResult { name, outcome }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> CaseOutcome {
    if holds { Ok(()) } else { Err(Doubt::Broken(otherwise())) }
}

/// Requires a call to fail with this kind.
fn ensure_kind<T>(answer: Result<T, StoreError>, kind: ErrorKind, call: &str) -> CaseOutcome {
    match answer {
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => {
            Err(Doubt::Broken(format!("{call} is answered with `{}` instead of `{kind}`", error.kind())))
        }
        Ok(_) => Err(Doubt::Broken(format!("{call} succeeds; it must answer `{kind}`"))),
    }
}

impl Suite {
    fn key(&self, below: &str) -> Result<StoreKey, InvalidKey> {
        StoreKey::try_from(format!("{}/{below}", self.root))
    }

    async fn create(&self, below: &str, body: impl Into<Bytes> + Send) -> Result<StoreKey, Doubt> {
        let key = self.key(below)?;
        let body = body.into();
        let len = body.len() as u64;
        let receipt = self.store.put(&key, body, self.plain_put()).await?;
        ensure(receipt.len == len, || format!("{len} bytes were put and {} acknowledged", receipt.len))?;
        Ok(key)
    }

    /// How to store an object that is not there yet.
    fn plain_put(&self) -> PutCondition {
        match self.store.capabilities().create {
            crate::CreateGuarantee::None => PutCondition::Overwrite,
            _ => PutCondition::CreateIfAbsent,
        }
    }

    /// The names below a folder of the suite, without what all of them start with.
    async fn names(&self, folder: &str) -> Result<Vec<String>, Doubt> {
        let prefix = format!("{}/{folder}", self.root);
        let found = self.store.list(&prefix).await?;
        let sorted = found.windows(2).all(|pair| pair[0].key < pair[1].key);
        ensure(sorted, || format!("the listing of {prefix} is not sorted, or names an object twice"))?;
        found
            .into_iter()
            .map(|object| match object.key.as_str().strip_prefix(&format!("{prefix}/")) {
                Some(name) => Ok(name.to_owned()),
                None => Err(Doubt::Broken(format!("the listing of {prefix} names {}", object.key))),
            })
            .collect()
    }

    async fn clean_up(&self) -> CaseOutcome {
        for object in self.store.list(&self.root).await? {
            self.store.delete(&object.key).await?;
        }
        let left = self.store.list(&self.root).await?.len();
        ensure(left == 0, || format!("{left} objects are still listed after they were deleted"))
    }
}
