//! What the operator of this vault decided; shown to everybody in `info`.

use chatkeep_vault_protocol::limits::{ATTEMPTS_DEFAULT, LIFETIME_FAILURES_MAX};

/// Bounds on guessing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Most attempts between two right passwords; a client may wish for fewer.
    pub attempts_max: u16,
    /// Seconds to wait after the first, second … failed attempt; the last number for all that follow. Empty: no waiting.
    pub delays_s: Vec<u64>,
    /// Failed attempts since the last change of password after which the account is erased.
    pub lifetime_failures_max: u32,
}

impl Default for Policy {
    /// Two typing errors cost nothing; a thief needs more than two days for ten guesses, and the owner has time to notice.
    fn default() -> Self {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        Self {
            attempts_max: ATTEMPTS_DEFAULT,
            delays_s: vec![0, 0, 0, MINUTE, 5 * MINUTE, HOUR, 6 * HOUR, 24 * HOUR, 24 * HOUR],
            lifetime_failures_max: LIFETIME_FAILURES_MAX,
        }
    }
}

impl Policy {
    /// The default without waiting: a development vault would make every test take days.
    pub fn without_delays() -> Self {
        Self { delays_s: Vec::new(), ..Self::default() }
    }

    /// Attempts granted to a client that wishes for `wished`.
    pub fn grant(&self, wished: u16) -> u16 {
        wished.clamp(1, self.attempts_max.max(1))
    }

    /// Seconds to wait after `failed_in_a_row` attempts without a proof.
    pub fn delay_s(&self, failed_in_a_row: u16) -> u64 {
        let index = usize::from(failed_in_a_row).saturating_sub(1).min(self.delays_s.len().saturating_sub(1));
        self.delays_s.get(index).copied().unwrap_or(0)
    }
}
