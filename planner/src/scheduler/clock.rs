//! A clock that cannot go backwards, made from one that might.

use crate::event::Millis;

/// Milliseconds that passed while anybody told us, counted from the first event. Never overflows: a step is below 2⁶⁴.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Moment(u128);

impl Moment {
    pub(super) fn after_ms(self, ms: u64) -> Self {
        Self(self.0 + u128::from(ms))
    }
}

/// Adds up the steps forward and ignores those back. Taking the highest time ever told would be simpler, but after one
/// wrong reading far ahead every deadline would be far ahead, and nothing would be captured.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    told: Millis,
    now: Moment,
}

impl Clock {
    pub(super) fn advance(&mut self, told: Millis) -> Moment {
        self.now = self.now.after_ms(told.0.saturating_sub(self.told.0));
        self.told = told;
        self.now
    }

    pub(super) fn now(&self) -> Moment {
        self.now
    }

    /// The reading of the outside clock at which `moment` will have come; the present one for what has come already.
    pub(super) fn outside(&self, moment: Moment) -> Millis {
        let ahead = u64::try_from(moment.0.saturating_sub(self.now.0)).unwrap_or(u64::MAX);
        Millis(self.told.0.saturating_add(ahead))
    }
}
