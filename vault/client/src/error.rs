//! What can go wrong, sorted by what the caller does next.

use chatkeep_vault_protocol::answer::DestroyReason;
use chatkeep_vault_protocol::{AnswerError, SlotError};

use crate::transport::TransportError;

/// Why an operation with vaults did not succeed.
///
/// All but the two about transport and trust were said by a vault over its signature, or concluded here from the slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The password is wrong: ask again. Concluded here; no vault knows it.
    #[error("wrong password, {left} of {max} attempts left")]
    WrongPassword {
        /// Attempts that an attacker, and the user, still have.
        left: u16,
        /// Attempts after a right password.
        max: u16,
    },
    /// The password is empty, too long or not UTF-8: ask again. Nothing was sent.
    #[error("the password is not usable text")]
    PasswordNotText,
    /// Too many failed attempts in a row: wait. Nothing was charged.
    #[error("the vault wants {retry_after_s} s to pass before the next attempt")]
    Throttled {
        /// Seconds to wait.
        retry_after_s: u64,
    },
    /// The owner froze the account: wait, or unlock with another device. Nothing was charged.
    #[error("the account is frozen")]
    Frozen {
        /// Until when, in seconds since 1970.
        until_s: u64,
    },
    /// The vault cannot answer now: retry later.
    #[error("vault `{vault}` is busy")]
    Busy {
        /// Its name.
        vault: String,
    },
    /// The vault cannot be reached: retry later.
    #[error("vault `{vault}` cannot be reached: {what}")]
    Unreachable {
        /// Its name.
        vault: String,
        /// How it failed.
        what: String,
    },
    /// Somebody else answered in the vault's place: stop, tell the user. Nothing it said was believed.
    #[error("vault `{vault}` did not prove its identity: {what}")]
    Untrusted {
        /// Its name.
        vault: String,
        /// Which check failed.
        what: String,
    },
    /// The slot names a vault that is not pinned: ask the user to confirm its fingerprint.
    #[error("vault `{vault}` ({identity}) is not among the known vaults")]
    NotPinned {
        /// Its name, as the slot says.
        vault: String,
        /// Its fingerprint, as the slot says.
        identity: String,
    },
    /// The account was erased: this slot opens nothing any more.
    #[error("the vault erased its part of the key ({reason:?})")]
    Destroyed {
        /// Why.
        reason: DestroyReason,
        /// The vault's commit that erased it.
        seq: u64,
    },
    /// The password was changed since: fetch the newer slot.
    #[error("the keyslot is older than the last change of password")]
    Superseded,
    /// The vault never had this account, or forgot an unfinished registration.
    #[error("the vault does not know the account")]
    Unknown,
    /// The vault does not make accounts for everybody: ask its operator for an invitation.
    #[error("vault `{vault}` makes accounts only for those whom its operator admits ({kind})")]
    AdmissionRequired {
        /// Its name.
        vault: String,
        /// What it wants: `invite`, or something that this program does not know.
        kind: String,
    },
    /// The invitation does not let anybody in: ask for another one.
    #[error("vault `{vault}` does not take the invitation: {what}")]
    AdmissionRefused {
        /// Its name.
        vault: String,
        /// Why not.
        what: &'static str,
    },
    /// The vault refuses: the secret or the change does not fit its record.
    #[error("vault `{vault}` refused: {what}")]
    Refused {
        /// Its name.
        vault: String,
        /// Which check failed.
        what: String,
    },
    /// The slot cannot be used: fetch another copy.
    #[error("the keyslot cannot be used")]
    BadSlot(#[source] SlotError),
    /// Slot or vault are newer than this program: update it.
    #[error("version {version} is newer than this program")]
    NewerFormat {
        /// The version found.
        version: u8,
    },
    /// A signed answer that does not fit the question: a bug on one side.
    #[error("vault `{vault}` answered something unexpected: {what}")]
    Protocol {
        /// Its name.
        vault: String,
        /// What came.
        what: String,
    },
}

impl VaultError {
    pub(crate) fn transport(vault: &str, error: TransportError) -> Self {
        let vault = vault.to_owned();
        match error {
            TransportError::Unreachable { what } => Self::Unreachable { vault, what },
            TransportError::Untrusted { what } => Self::Untrusted { vault, what },
            TransportError::Rejected { what } => Self::Protocol { vault, what },
        }
    }

    pub(crate) fn answer(vault: &str, error: AnswerError) -> Self {
        let vault = vault.to_owned();
        match error {
            AnswerError::Untrusted { what } => Self::Untrusted { vault, what: what.to_owned() },
            AnswerError::NewerFormat { version } => Self::NewerFormat { version },
            other => Self::Protocol { vault, what: other.to_string() },
        }
    }

    /// Which of several different failures to tell, the most useful first.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Throttled { .. } => 0,
            Self::Frozen { .. } => 1,
            Self::Busy { .. } => 2,
            Self::Unreachable { .. } => 3,
            Self::Untrusted { .. } => 4,
            Self::NewerFormat { .. } => 5,
            _ => 6,
        }
    }

    /// Whether waiting cannot help. Believed only when enough vaults say the same.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Destroyed { .. } | Self::Superseded | Self::Unknown)
    }
}

impl From<SlotError> for VaultError {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::NewerFormat { version } => Self::NewerFormat { version },
            SlotError::PasswordNotText => Self::PasswordNotText,
            other => Self::BadSlot(other),
        }
    }
}
