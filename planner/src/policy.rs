//! How long to wait for what: the user's choice, with the defaults of the design.

use crate::event::SourceId;

/// The longest wait a store can ask for, in milliseconds: an hour. A store that says "next year" by mistake must not
/// end the backups unnoticed; asking it once an hour harms nobody.
pub const RETRY_AFTER_MAX_MS: u64 = 3_600_000;

/// When changes are captured and objects uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapturePolicy {
    /// Changes are captured when nothing new came for this long, in milliseconds.
    pub quiet_ms: u64,
    /// At the latest they are captured this long after the first of them, in milliseconds.
    pub wait_max_ms: u64,
    /// And at once when there are this many bytes to capture.
    pub pending_bytes_max: u64,
    /// How long to wait after failures, of captures and of uploads.
    pub retry: Backoff,
    /// How many uploads run at once, over all sources of one store. 0 counts as 1.
    pub uploads_at_once: usize,
}

impl Default for CapturePolicy {
    fn default() -> Self {
        Self {
            quiet_ms: 2_000,
            wait_max_ms: 10_000,
            pending_bytes_max: 8 << 20,
            retry: Backoff::default(),
            uploads_at_once: 2,
        }
    }
}

/// Waits that double from one failure to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait, in milliseconds. 0 counts as 1.
    pub first_ms: u64,
    /// The longest wait, in milliseconds.
    pub max_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first_ms: 1_000, max_ms: 300_000 }
    }
}

impl Backoff {
    /// How long to wait after `failures` failures in a row (counted from 1), in milliseconds.
    ///
    /// Up to a quarter less than the doubled wait, never more: sources whose common store went away then do not come
    /// back in step. Which part of the quarter follows from source and number alone, so that a run can be repeated.
    pub fn delay_ms(&self, source: SourceId, failures: u32) -> u64 {
        let doublings = failures.saturating_sub(1).min(63);
        let doubled = self.first_ms.max(1).saturating_mul(1 << doublings);
        let whole = doubled.min(self.max_ms).max(1);
        let off = scatter(u64::from(source.0) << 32 | u64::from(failures)) % (whole / 4 + 1);
        whole - off
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): neighbouring inputs, unrelated outputs.
pub(crate) fn scatter(input: u64) -> u64 {
    let mut mixed = input.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_never_longer() {
        let backoff = Backoff { first_ms: 1_000, max_ms: 300_000 };
        for source in (0..50).map(SourceId) {
            for failures in 1..100 {
                let whole = (1_000_u64 << (failures - 1).min(20)).min(300_000);
                let delay = backoff.delay_ms(source, failures);
                assert!((whole - whole / 4..=whole).contains(&delay), "{delay} after {failures} failures");
            }
        }
    }

    #[test]
    fn sources_do_not_retry_in_step() {
        let backoff = Backoff::default();
        let delays: BTreeSet<u64> = (0..100).map(|source| backoff.delay_ms(SourceId(source), 6)).collect();
        assert!(delays.len() > 90, "{} different waits of 100", delays.len());
    }

    #[test]
    fn no_setting_makes_a_wait_of_nothing_or_a_panic() {
        for (first_ms, max_ms) in [(0, 0), (u64::MAX, u64::MAX), (5, 1), (0, u64::MAX)] {
            for failures in [0, 1, 64, u32::MAX] {
                assert!(Backoff { first_ms, max_ms }.delay_ms(SourceId(u32::MAX), failures) > 0);
            }
        }
    }
}
