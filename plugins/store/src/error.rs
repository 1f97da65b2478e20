//! What can go wrong, sorted by what the caller does next.

use std::fmt;
use std::time::Duration;

use crate::key::{InvalidKey, StoreKey};

/// What a store answers.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The cause below a [`StoreError`], for logs.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No object has this key. Final; often an expected answer.
    #[error("object `{key}` does not exist")]
    NotFound {
        /// The key that was asked for.
        key: StoreKey,
    },
    /// An object has this key already, perhaps from our own attempt whose answer got lost. The caller compares.
    #[error("object `{key}` exists already")]
    AlreadyExists {
        /// The key that was to be created.
        key: StoreKey,
    },
    /// The service failed in a way that passes. The call may or may not have happened.
    #[error("the store failed for the moment")]
    Transient(#[source] Cause),
    /// The store cannot be reached: no network, drive not plugged in. Not a failure of the store.
    #[error("the store cannot be reached")]
    Offline(#[source] Cause),
    /// Too many requests.
    #[error("the store asks for fewer requests")]
    Throttled {
        /// How long it wants to be left alone, if it said so.
        retry_after: Option<Duration>,
    },
    /// The credentials are not accepted (any more).
    #[error("the store wants a new sign-in")]
    Auth(#[source] Cause),
    /// The credentials are good, but not for this. Expected when deleting with append-only credentials.
    #[error("the store does not permit this")]
    Permission(#[source] Cause),
    /// No room is left. Reads and deletes still work.
    #[error("the store is full")]
    Quota(#[source] Cause),
    /// The object is larger than the store takes.
    #[error("an object of {len} bytes is too large for the store")]
    TooLarge {
        /// Length of the object, in bytes.
        len: u64,
        /// The most the store takes, in bytes, if it said so.
        len_max: Option<u64>,
    },
    /// The bytes changed on their way to the store, and the store noticed.
    #[error("object `{key}` was damaged on its way")]
    Corrupt {
        /// The object.
        key: StoreKey,
    },
    /// An object lock holds this object; it cannot be deleted or overwritten yet.
    #[error("object `{key}` is locked against deletion")]
    Retained {
        /// The object.
        key: StoreKey,
    },
    /// The listing broke off, or contradicts itself. What it named so far says nothing about what is missing.
    #[error("the listing is not complete: {reason}")]
    IncompleteListing {
        /// How it was noticed.
        reason: String,
    },
    /// The listing names something that was not asked for or that cannot be a key.
    #[error("the listing cannot be trusted")]
    UntrustedListing(#[source] InvalidKey),
    /// The store cannot do this. A missing capability; asking again does not help.
    #[error("the store cannot {what}")]
    Unsupported {
        /// What was asked, as in "the store cannot …".
        what: &'static str,
    },
    /// The request makes no sense. An error of ours, or a configuration that cannot work.
    #[error("{reason}")]
    Invalid {
        /// What does not make sense.
        reason: String,
    },
}

/// The kind of a [`StoreError`], without its details. The text form is the one of plugin protocol 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is documented at the variant of StoreError with its name")]
pub enum ErrorKind {
    NotFound,
    AlreadyExists,
    Transient,
    Offline,
    Throttled,
    Auth,
    Permission,
    Quota,
    TooLarge,
    Corrupt,
    Retained,
    IncompleteListing,
    UntrustedListing,
    Unsupported,
    Invalid,
}

/// What the caller does after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NextStep {
    /// It is an answer: work with it.
    TakeAsAnswer,
    /// Read the object back: equal bytes are our own earlier attempt, anything else is another writer.
    CompareContent,
    /// Again, with back-off.
    RetryLater,
    /// Again once the network or the drive is back; nothing counts as failed until then.
    WaitUntilReachable,
    /// Again after this time at the earliest (back-off if `None`), with fewer requests at once.
    SlowDown(Option<Duration>),
    /// Stop, and have the user sign in again.
    SignIn,
    /// Stop writing and tell the user. Reading may work.
    StopWriting,
    /// Stop uploading and tell the user. Reading and deleting work.
    StopUploading,
    /// Make smaller objects.
    MakeSmaller,
    /// Send the same bytes once more.
    SendAgain,
    /// Leave this object alone, go on with the others.
    Skip,
    /// Do not conclude anything, above all do not delete anything; list again later.
    ListAgain,
    /// Neither time nor the user at the store helps: a missing capability, a wrong setting or a bug.
    Report,
}

impl StoreError {
    /// Which of the kinds it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::Transient(_) => ErrorKind::Transient,
            Self::Offline(_) => ErrorKind::Offline,
            Self::Throttled { .. } => ErrorKind::Throttled,
            Self::Auth(_) => ErrorKind::Auth,
            Self::Permission(_) => ErrorKind::Permission,
            Self::Quota(_) => ErrorKind::Quota,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Retained { .. } => ErrorKind::Retained,
            Self::IncompleteListing { .. } => ErrorKind::IncompleteListing,
            Self::UntrustedListing(_) => ErrorKind::UntrustedListing,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Invalid { .. } => ErrorKind::Invalid,
        }
    }

    /// What the caller does about it.
    pub fn next_step(&self) -> NextStep {
        match self {
            Self::NotFound { .. } => NextStep::TakeAsAnswer,
            Self::AlreadyExists { .. } => NextStep::CompareContent,
            Self::Transient(_) => NextStep::RetryLater,
            Self::Offline(_) => NextStep::WaitUntilReachable,
            Self::Throttled { retry_after } => NextStep::SlowDown(*retry_after),
            Self::Auth(_) => NextStep::SignIn,
            Self::Permission(_) => NextStep::StopWriting,
            Self::Quota(_) => NextStep::StopUploading,
            Self::TooLarge { .. } => NextStep::MakeSmaller,
            Self::Corrupt { .. } => NextStep::SendAgain,
            Self::Retained { .. } => NextStep::Skip,
            Self::IncompleteListing { .. } | Self::UntrustedListing(_) => NextStep::ListAgain,
            Self::Unsupported { .. } | Self::Invalid { .. } => NextStep::Report,
        }
    }

    /// Whether asking again later, without the user, can help.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self.next_step(),
            NextStep::RetryLater
                | NextStep::WaitUntilReachable
                | NextStep::SlowDown(_)
                | NextStep::SendAgain
                | NextStep::ListAgain
        )
    }
}

impl From<InvalidKey> for StoreError {
    fn from(error: InvalidKey) -> Self {
        Self::Invalid { reason: error.to_string() }
    }
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 15] = [
        Self::NotFound,
        Self::AlreadyExists,
        Self::Transient,
        Self::Offline,
        Self::Throttled,
        Self::Auth,
        Self::Permission,
        Self::Quota,
        Self::TooLarge,
        Self::Corrupt,
        Self::Retained,
        Self::IncompleteListing,
        Self::UntrustedListing,
        Self::Unsupported,
        Self::Invalid,
    ];

    /// The name in plugin protocol 1 and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::AlreadyExists => "exists",
            Self::Transient => "transient",
            Self::Offline => "offline",
            Self::Throttled => "throttled",
            Self::Auth => "auth",
            Self::Permission => "permission",
            Self::Quota => "quota",
            Self::TooLarge => "too-large",
            Self::Corrupt => "corrupt",
            Self::Retained => "retained",
            Self::IncompleteListing => "incomplete-listing",
            Self::UntrustedListing => "untrusted-listing",
            Self::Unsupported => "unsupported",
            Self::Invalid => "invalid",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let names: BTreeSet<_> = ErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), ErrorKind::ALL.len());
    }

    #[test]
    fn what_only_the_user_can_mend_is_not_retried() {
        for error in [
            StoreError::Auth("expired".into()),
            StoreError::Permission("read-only".into()),
            StoreError::Quota("full".into()),
            StoreError::Unsupported { what: "say how full it is" },
        ] {
            assert!(!error.is_temporary(), "{error}");
        }
        assert!(StoreError::Offline("no route".into()).is_temporary());
        assert!(StoreError::Throttled { retry_after: None }.is_temporary());
    }

    #[test]
    fn a_doubtful_listing_leads_to_no_conclusion() {
        let incomplete = StoreError::IncompleteListing { reason: "no end line".into() };
        assert_eq!(incomplete.next_step(), NextStep::ListAgain);
    }
}
