//! What a vault said of one account, in the words that are shown.

use chatkeep_vault_client::{Counters, VaultError};

/// What a vault said of an account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VaultSeen {
    /// Its name.
    pub name: String,
    /// `ok unreachable backoff frozen destroyed superseded unregistered untrusted`; empty if this says nothing of it.
    pub state: &'static str,
    /// Attempts left, if it said so.
    pub attempts_left: Option<u32>,
    /// What that number was at first.
    pub attempts_max: Option<u32>,
    /// When the next attempt is possible, µs since 1970; 0 for now.
    pub retry_after: u64,
    /// Until when it is frozen, µs since 1970; 0 for not at all.
    pub frozen_until: u64,
    /// A wrong password of this device was just counted, and so many attempts are left.
    pub failed: Option<u32>,
    /// Whose attempts failed, if it was asked.
    pub counted: Option<Counted>,
    /// Attempts that were not made here and that nobody was told of yet.
    pub new_elsewhere: u32,
    /// The state is a final word that the user was not told yet.
    pub news: bool,
}

/// Failed attempts since the last change of password.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// All.
    pub failed: u32,
    /// Made on this device.
    pub here: u32,
    /// Made elsewhere, as far as that is certain.
    pub elsewhere: u32,
    /// Of these, those that nobody acknowledged.
    pub unacknowledged: u32,
    /// When the newest of them was noticed, µs since 1970.
    pub seen_us: u64,
}

impl VaultSeen {
    /// What it means that a vault, or all of a keyslot, gave this error, or none.
    pub fn of(name: String, error: Option<&VaultError>) -> Self {
        let mut seen = Self { name, state: "ok", ..Self::default() };
        match error {
            Some(VaultError::WrongPassword { left, max }) => {
                seen.attempts_left = Some(u32::from(*left));
                seen.attempts_max = Some(u32::from(*max));
                seen.failed = seen.attempts_left;
            }
            Some(VaultError::Throttled { retry_after_s }) => {
                seen.state = "backoff";
                let wait_us = retry_after_s.saturating_mul(1_000_000);
                seen.retry_after = crate::clock::now_us().saturating_add(wait_us);
            }
            Some(VaultError::Frozen { until_s }) => {
                seen.state = "frozen";
                seen.frozen_until = until_s.saturating_mul(1_000_000);
                seen.retry_after = seen.frozen_until;
            }
            Some(VaultError::Destroyed { .. }) => {
                seen.state = "destroyed";
                seen.attempts_left = Some(0);
            }
            Some(VaultError::Superseded) => seen.state = "superseded",
            Some(VaultError::Unknown) => seen.state = "unregistered",
            Some(VaultError::Untrusted { .. } | VaultError::NotPinned { .. }) => seen.state = "untrusted",
            Some(VaultError::Busy { .. } | VaultError::Unreachable { .. } | VaultError::Protocol { .. }) => {
                seen.state = "unreachable";
            }
            _ => {}
        }
        seen
    }

    /// Takes over what the vault counted.
    pub fn count(&mut self, counters: &Counters) {
        let us = |seconds: u64| seconds.saturating_mul(1_000_000);
        let now_us = crate::clock::now_us();
        self.attempts_left = Some(u32::from(counters.left));
        self.attempts_max = Some(u32::from(counters.max));
        if us(counters.not_before_s) > now_us {
            self.state = "backoff";
            self.retry_after = us(counters.not_before_s);
        }
        if us(counters.frozen_until_s) > now_us {
            self.state = "frozen";
            self.frozen_until = us(counters.frozen_until_s);
            self.retry_after = self.retry_after.max(self.frozen_until);
        }
    }
}
