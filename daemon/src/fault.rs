//! From the errors of the parts to the errors a caller sees: each says which of the promised kinds it is.

use std::io;

use chatkeep_crypto::DigitsError;
use chatkeep_ipc::{Details, Error};
use chatkeep_planner::Retry;
use chatkeep_sqlite::{CaptureError, RestoreError};
use chatkeep_store::{NextStep, StoreError};
use chatkeep_vault_client::VaultError;
use zbus::zvariant::{OwnedValue, Value};

use crate::archive::ArchiveError;
use crate::damage::{Damage, DamageKind, DamageReport};
use crate::keys::KeyStoreError;

/// Why something did not succeed: a name to branch on, words for people, and details by name.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What the caller sees.
    pub error: Error,
    /// Boxed, to keep results small.
    extra: Box<Extra>,
}

#[derive(Debug, Clone)]
struct Extra {
    /// `attempts-left` and its like (docs/dbus.md, "Results").
    details: Vec<(&'static str, u64)>,
    /// When trying again makes sense.
    retry: Retry,
    /// Objects in the store that are not what was written.
    damage: Vec<Damage>,
    /// Vaults that the user has to confirm: name, address, fingerprint.
    unknown_vaults: Vec<(String, String, String)>,
}

impl Default for Extra {
    fn default() -> Self {
        Self { details: Vec::new(), retry: Retry::Never, damage: Vec::new(), unknown_vaults: Vec::new() }
    }
}

/// What parts of the daemon return.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    /// A fault with a time to try again.
    pub fn new(error: Error, retry: Retry) -> Self {
        Self { error, extra: Box::new(Extra { retry, ..Extra::default() }) }
    }

    /// When trying again makes sense.
    pub fn retry(&self) -> Retry {
        self.extra.retry
    }

    /// A mistake of ours.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        Self::from(Error::Internal(what.to_string()))
    }

    /// What the daemon was asked to stop.
    pub fn cancelled() -> Self {
        Self::from(Error::Cancelled("it was cancelled".to_owned()))
    }

    /// What is damaged; the first of it is the error.
    pub fn of_damage(damage: Vec<Damage>) -> Self {
        let Some(first) = damage.first() else { return Self::internal("damage without an object") };
        let text = first.what.clone();
        let error = match first.kind {
            DamageKind::Missing => Error::ObjectMissing(text),
            DamageKind::Newer => Error::NewerFormat(text),
            _ => Error::Corrupt(text),
        };
        Self::from(error).with_damage(damage)
    }

    /// Adds a number to the result of the job.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: u64) -> Self {
        self.extra.details.push((name, value));
        self
    }

    /// Says which objects in the store are the reason.
    #[must_use]
    pub fn with_damage(mut self, damage: Vec<Damage>) -> Self {
        self.extra.damage = damage;
        self
    }

    /// Says which vaults the user has to confirm.
    #[must_use]
    pub fn with_unknown_vaults(mut self, vaults: Vec<(String, String, String)>) -> Self {
        self.extra.unknown_vaults = vaults;
        self
    }

    /// Objects in the store that are not what was written, when they are the reason.
    pub fn damage(&self) -> &[Damage] {
        &self.extra.damage
    }

    /// The details as they go over D-Bus: `attempts-left` is 32 bits wide, times and sizes are 64.
    pub fn wire_details(&self) -> Details {
        let wire = |name: &str, value: u64| match name {
            "attempts-left" => Value::from(u32::try_from(value).unwrap_or(u32::MAX)),
            _ => Value::from(value),
        };
        let owned = |(name, value): &(&'static str, u64)| {
            Some(((*name).to_owned(), OwnedValue::try_from(wire(name, *value)).ok()?))
        };
        let mut details: Details = self.extra.details.iter().filter_map(owned).collect();
        if !self.extra.damage.is_empty() {
            let report = DamageReport::of(self.extra.damage.clone());
            let damage = OwnedValue::try_from(Value::from(report.wire()));
            details.extend(damage.ok().map(|damage| ("damage".to_owned(), damage)));
        }
        if !self.extra.unknown_vaults.is_empty() {
            let vaults = OwnedValue::try_from(Value::from(self.extra.unknown_vaults.clone()));
            details.extend(vaults.ok().map(|vaults| ("unknown-vaults".to_owned(), vaults)));
        }
        details
    }

    /// Short name and text, as properties show it.
    pub fn pair(&self) -> (String, String) {
        (self.error.short_name(), self.error.text())
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::new(error, Retry::Never)
    }
}

impl From<ArchiveError> for Fault {
    fn from(error: ArchiveError) -> Self {
        let text = error.to_string();
        let damage = error.damage();
        match error {
            ArchiveError::Store(error) => error.into(),
            ArchiveError::WrongKey => Error::WrongSecret(text).into(),
            ArchiveError::WriterFenced { .. } => Error::WriterFenced(text).into(),
            ArchiveError::RolledBack { .. } => Error::RollbackDetected(text).into(),
            ArchiveError::Missing { .. }
            | ArchiveError::Damaged { .. }
            | ArchiveError::NewerFormat { .. }
            | ArchiveError::Swapped { .. }
            | ArchiveError::Malformed { .. }
            | ArchiveError::Chain { .. }
            | ArchiveError::Content { .. } => Self::of_damage(damage.into_iter().collect()),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        let text = with_causes(&error);
        let retry = match error.next_step() {
            NextStep::RetryLater | NextStep::SendAgain | NextStep::ListAgain | NextStep::SlowDown(None) => {
                Retry::Backoff
            }
            NextStep::SlowDown(Some(after)) => Retry::After { ms: after.as_millis() as u64 },
            // Full and read-only stores are waited for like absent ones: somebody may make room, and then it goes on at once.
            NextStep::WaitUntilReachable | NextStep::StopUploading | NextStep::StopWriting => {
                Retry::WhenReachable
            }
            _ => Retry::Never,
        };
        let error = match error {
            StoreError::Quota(_) => Error::StoreFull(text),
            StoreError::Auth(_) | StoreError::Permission(_) => Error::StoreAuth(text),
            StoreError::NotFound { .. } => Error::ObjectMissing(text),
            StoreError::UntrustedListing(_) => Error::Corrupt(text),
            // A setting that cannot work: the text says which.
            StoreError::Invalid { .. } => Error::InvalidArgument(text),
            StoreError::Unsupported { .. } => Error::Unsupported(text),
            StoreError::TooLarge { .. } => Error::Internal(text),
            _ => Error::StoreUnreachable(text),
        };
        Self::new(error, retry)
    }
}

impl From<KeyStoreError> for Fault {
    fn from(error: KeyStoreError) -> Self {
        let text = with_causes(&error);
        match error {
            KeyStoreError::Locked => Self::new(Error::KeyringLocked(text), Retry::Backoff),
            KeyStoreError::Unavailable(_) => Self::new(Error::KeyUnavailable(text), Retry::Backoff),
            KeyStoreError::Damaged => Error::KeyUnavailable(format!("{text}; unlock again")).into(),
            KeyStoreError::Io(error) => error.into(),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        let text = error.to_string();
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace(text),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::AccessDenied(text),
            io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => Error::InvalidArgument(text),
            _ => Error::Internal(text),
        };
        Self::new(kind, Retry::Backoff)
    }
}

impl From<CaptureError> for Fault {
    fn from(error: CaptureError) -> Self {
        let text = with_causes(&error);
        match error {
            CaptureError::Missing => Self::new(Error::DatabaseMissing(text), Retry::WhenReachable),
            CaptureError::NotQuiet { .. } => Self::new(Error::DatabaseBusy(text), Retry::Backoff),
            CaptureError::Cancelled => Self::cancelled(),
            CaptureError::NotADatabase { .. } | CaptureError::Unsupported { .. } => {
                Self::new(Error::Unsupported(text), Retry::Backoff)
            }
            CaptureError::Io { source, .. } => {
                Self::new(with_text(&Self::from(source).error, &text), Retry::Backoff)
            }
            _ => Self::new(Error::Internal(text), Retry::Backoff),
        }
    }
}

impl From<RestoreError> for Fault {
    fn from(error: RestoreError) -> Self {
        let text = with_causes(&error);
        match error {
            RestoreError::InUse { .. } => Error::DatabaseInUse(text).into(),
            RestoreError::Exists => Error::InvalidArgument(format!("{text}; nothing was written")).into(),
            RestoreError::DigestMismatch | RestoreError::MissingPages { .. } => Error::Corrupt(text).into(),
            RestoreError::Io { source, .. } => with_text(&Self::from(source).error, &text).into(),
            _ => Self::internal(text),
        }
    }
}

impl From<chatkeep_attachments::RestoreError> for Fault {
    fn from(error: chatkeep_attachments::RestoreError) -> Self {
        use chatkeep_attachments::RestoreError;
        let text = with_causes(&error);
        match error {
            RestoreError::Busy => Error::Busy(text).into(),
            RestoreError::Exists | RestoreError::InTheWay => Error::InvalidArgument(text).into(),
            RestoreError::Length | RestoreError::Reserved => Error::Corrupt(text).into(),
            RestoreError::Io { source, .. } => with_text(&Self::from(source).error, &text).into(),
            _ => Self::internal(text),
        }
    }
}

impl From<DigitsError> for Fault {
    fn from(error: DigitsError) -> Self {
        Error::InvalidSecret(error.to_string()).into()
    }
}

impl From<VaultError> for Fault {
    fn from(error: VaultError) -> Self {
        let text = with_causes(&error);
        match error {
            VaultError::WrongPassword { left, .. } => {
                Self::from(Error::WrongSecret(text)).with("attempts-left", u64::from(left))
            }
            VaultError::PasswordNotText => Error::InvalidSecret(text).into(),
            VaultError::Throttled { retry_after_s } => {
                let at = crate::clock::now_us().saturating_add(retry_after_s.saturating_mul(1_000_000));
                Self::from(Error::VaultBackoff(text)).with("retry-after", at)
            }
            VaultError::Frozen { until_s } => {
                Self::from(Error::VaultBackoff(text)).with("retry-after", until_s.saturating_mul(1_000_000))
            }
            VaultError::Busy { .. } | VaultError::Unreachable { .. } => {
                Self::new(Error::VaultUnreachable(text), Retry::Backoff)
            }
            VaultError::Untrusted { .. } | VaultError::NotPinned { .. } => Error::VaultUntrusted(text).into(),
            VaultError::AdmissionRequired { .. } | VaultError::AdmissionRefused { .. } => {
                Error::AccessDenied(text).into()
            }
            VaultError::Destroyed { .. } => Self::from(Error::VaultDestroyed(text)).with("attempts-left", 0),
            VaultError::NewerFormat { .. } => Error::NewerFormat(text).into(),
            VaultError::BadSlot(_) => Error::Corrupt(text).into(),
            VaultError::Superseded | VaultError::Unknown => Error::NotFound(text).into(),
            _ => Self::internal(text),
        }
    }
}

/// The same kind of error, in other words.
fn with_text(error: &Error, text: &str) -> Error {
    Error::from_name(&error.short_name(), text)
}

/// An error and what caused it, in one line.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn name(fault: impl Into<Fault>) -> String {
        fault.into().error.short_name()
    }

    #[test]
    fn every_promised_kind_has_a_name_of_its_own() {
        let key = || "a/log/1".to_owned();
        assert_eq!(name(ArchiveError::WrongKey), "WrongSecret");
        assert_eq!(name(ArchiveError::Damaged { key: key(), what: "chunk 3".into() }), "Corrupt");
        assert_eq!(name(ArchiveError::Missing { key: key() }), "ObjectMissing");
        assert_eq!(name(ArchiveError::NewerFormat { key: key(), version: 9 }), "NewerFormat");
        assert_eq!(name(StoreError::Offline("not mounted".into())), "StoreUnreachable");
        let reason = chatkeep_vault_client::DestroyReason::Exhausted;
        assert_eq!(name(VaultError::Destroyed { reason, seq: 1 }), "VaultDestroyed");
        assert_eq!(name(ArchiveError::WriterFenced { key: key() }), "WriterFenced");
    }

    #[test]
    fn the_cause_is_told() {
        let fault = Fault::from(StoreError::Offline("the drive is not mounted".into()));
        assert_eq!(fault.error.text(), "the store cannot be reached: the drive is not mounted");
        assert_eq!(fault.retry(), Retry::WhenReachable);
    }

    #[test]
    fn attempts_left_are_details() {
        let fault = Fault::from(VaultError::WrongPassword { left: 3, max: 10 });
        assert_eq!(u32::try_from(fault.wire_details()["attempts-left"].try_clone().unwrap()).unwrap(), 3);
    }
}
