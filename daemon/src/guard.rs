//! Who tries the password: what a vault counted, less what this device did itself.
//!
//! A vault counts attempts, and takes one back when it is proved; it does not say whose they were. So every attempt of this
//! device is written down *before* it is sent ([`Book`]), and what became of it when its answer comes. [`look()`] compares
//! the vault's count with it. What is more was tried by somebody else, or by the same user elsewhere, with a wrong password:
//! a right one is proved and leaves nothing. Everything here decides; [`look()`] and [`Book`] ask.

mod look;
mod seen;
mod watched;

use serde::{Deserialize, Serialize};

use chatkeep_vault_protocol::answer::{Answer, Refusal};

pub use look::{Look, LookOrder, acknowledge, look, wish_for_freeze};
pub use seen::{Counted, VaultSeen};
pub use watched::{AccountId, Book, Lifting};

/// An attempt that another device makes just now, and proves in a moment, is not to be taken for a failed one: what is more
/// than it should be has to be so for as long as an answer may take, three times, µs (2 minutes).
pub const CONFIRM_US: u64 = 120_000_000;
/// Attempts without an answer that are remembered. There is one more with each try while a vault is away.
const OPEN_MAX: usize = 64;

/// What this device knows of one account at one vault, under one registration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// It is known what the count was when this device began to watch.
    pub begun: bool,
    /// Attempts of this device that were charged and never proved.
    pub here: u32,
    /// Attempts of this device whose end is open.
    pub open: Vec<Attempt>,
    /// Failed attempts that were not made here.
    pub elsewhere: u32,
    /// How many of them the user knows of.
    pub acknowledged: u32,
    /// When the newest of them was noticed, µs since 1970.
    pub seen_us: u64,
    /// More of them, not certain yet.
    pub suspicion: Option<Suspicion>,
    /// All failed attempts, as the vault said last.
    pub failed: u32,
    /// The final word of the vault that the user was told.
    pub told: String,
    /// A freeze that this device asked for.
    pub freeze: Option<Freeze>,
}

/// One attempt of this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its blinded element, which names it.
    pub element: Vec<u8>,
    /// How far it came.
    pub stage: Stage,
}

/// How far an attempt came, as far as this device knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It was sent, or is about to be.
    Sent,
    /// The vault charged it.
    Charged,
    /// Its proof was sent, or is about to be.
    Proving,
}

/// A count that is higher than it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// Attempts elsewhere, if it stays so.
    pub count: u32,
    /// Since when, µs since 1970.
    pub since_us: u64,
}

/// A freeze that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// Until when, seconds since 1970.
    pub until_s: u64,
    /// The vault had it: if it is gone, another device of the owner lifted it. Otherwise it is asked for again.
    pub held: bool,
}

/// What a count means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing new.
    Quiet,
    /// Perhaps: look again after [`CONFIRM_US`].
    Suspicious,
    /// So many attempts that nobody was told of yet.
    Elsewhere(u32),
}

impl Account {
    /// An account that was just registered, by this device.
    pub fn new() -> Self {
        Self { begun: true, ..Self::default() }
    }

    /// An attempt is about to be sent. The same one, sent again, is one.
    pub fn sends(&mut self, element: &[u8]) {
        if self.open.iter().any(|attempt| attempt.element == element) {
            return;
        }
        if self.open.len() >= OPEN_MAX {
            // The oldest cannot be proved any more.
            let oldest = self.open.remove(0);
            self.here += u32::from(oldest.stage == Stage::Charged);
        }
        self.open.push(Attempt { element: element.to_vec(), stage: Stage::Sent });
    }

    /// The proof of an attempt is about to be sent.
    pub fn proves(&mut self, element: &[u8]) {
        if let Some(attempt) = self.find(element) {
            attempt.stage = Stage::Proving;
        }
    }

    /// What the vault answered to the attempt.
    pub fn answered(&mut self, element: &[u8], answer: &Answer) {
        match answer {
            Answer::Charged(charged) => {
                if let Some(attempt) = self.find(element) {
                    attempt.stage = Stage::Charged;
                }
                if !self.begun {
                    // Those before are told to whoever unlocks here.
                    self.begun = true;
                    self.elsewhere = charged.failed_since_change.saturating_sub(self.charged());
                    self.acknowledged = self.elsewhere;
                }
            }
            // The device of the vault may have failed after the charge.
            Answer::Busy {} => {}
            _ => self.forget(element),
        }
    }

    /// What the vault answered to the proof.
    pub fn proof_answered(&mut self, element: &[u8], answer: &Answer) {
        match answer {
            Answer::Reset { .. } => self.forget(element),
            Answer::Refused { .. } => {
                if let Some(attempt) = self.find(element) {
                    attempt.stage = Stage::Charged;
                }
            }
            _ => {}
        }
    }

    /// Attempts whose charge or proof is not known to have arrived.
    pub fn uncertain(&self) -> impl Iterator<Item = &Attempt> {
        self.open.iter().filter(|attempt| attempt.stage != Stage::Charged)
    }

    /// Whether the count is more than what this device knows to have done: then it has to know what became of the rest.
    pub fn needs_probe(&self, failed: u32) -> bool {
        failed > self.charged().saturating_add(self.elsewhere) && self.uncertain().next().is_some()
    }

    /// What became of an uncertain attempt: the answer to a proof of it with a signature that fits nothing.
    pub fn probed(&mut self, element: &[u8], answer: &Answer) {
        match answer {
            // It is the last attempt that was charged, and nobody proved it.
            Answer::Refused { why: Refusal::Signature } => {
                self.forget(element);
                self.here += 1;
            }
            // It was proved; or it never arrived; or somebody tried after it, and that one is worth an alarm in any case.
            _ => self.forget(element),
        }
    }

    /// What the vault's count means. No question of this device is on its way, and none is uncertain unless the count
    /// can be explained without it.
    pub fn judge(&mut self, failed: u32, now_us: u64, confirm_us: u64) -> Verdict {
        self.begun = true;
        self.failed = failed;
        // What is uncertain did not arrive, or was proved. What was charged may still be proved.
        self.open.retain(|attempt| attempt.stage == Stage::Charged);
        while self.charged() > failed && self.here > 0 {
            self.here -= 1;
        }
        while self.charged() > failed {
            self.open.remove(0);
        }
        let elsewhere = failed - self.charged();
        if elsewhere <= self.elsewhere {
            // A late proof of another device takes one back.
            self.elsewhere = elsewhere;
            self.acknowledged = self.acknowledged.min(elsewhere);
            self.suspicion = None;
            return Verdict::Quiet;
        }
        let Some(suspicion) = self.suspicion.filter(|suspicion| suspicion.since_us <= now_us) else {
            self.suspicion = Some(Suspicion { count: elsewhere, since_us: now_us });
            return Verdict::Suspicious;
        };
        let certain = suspicion.count.min(elsewhere);
        if now_us - suspicion.since_us < confirm_us || certain <= self.elsewhere {
            return Verdict::Suspicious;
        }
        let new = certain - self.elsewhere;
        self.elsewhere = certain;
        self.seen_us = suspicion.since_us;
        let more = Suspicion { count: elsewhere, since_us: now_us };
        self.suspicion = (elsewhere > certain).then_some(more);
        Verdict::Elsewhere(new)
    }

    /// Attempts elsewhere that nobody acknowledged.
    pub fn unacknowledged(&self) -> u32 {
        self.elsewhere.saturating_sub(self.acknowledged)
    }

    /// Attempts made here that count at the vault.
    pub fn charged(&self) -> u32 {
        let charged = self.open.iter().filter(|attempt| attempt.stage == Stage::Charged).count();
        self.here.saturating_add(u32::try_from(charged).unwrap_or(u32::MAX))
    }

    /// What is to be asked of the vault, given until when it is frozen (both in seconds since 1970).
    pub fn freeze_due(&mut self, frozen_until_s: u64, now_s: u64) -> Option<u64> {
        let wanted = self.freeze.as_mut()?;
        if wanted.until_s <= now_s || (wanted.held && frozen_until_s < wanted.until_s) {
            self.freeze = None;
            return None;
        }
        wanted.held = frozen_until_s >= wanted.until_s;
        (!wanted.held).then_some(wanted.until_s)
    }

    fn find(&mut self, element: &[u8]) -> Option<&mut Attempt> {
        self.open.iter_mut().find(|attempt| attempt.element == element)
    }

    fn forget(&mut self, element: &[u8]) {
        self.open.retain(|attempt| attempt.element != element);
    }
}

#[cfg(test)]
mod tests {
    use chatkeep_vault_protocol::answer::Charged;
    use chatkeep_vault_protocol::cbor::{Blob, Fixed};

    use super::*;

    const MINUTE_US: u64 = 60_000_000;

    fn charged(failed_since_change: u32) -> Answer {
        let challenge = Fixed([0; 32]);
        Answer::Charged(Charged {
            evaluated: Blob::default(),
            left: 5,
            max: 10,
            failed_since_change,
            challenge,
        })
    }

    /// Looks every three minutes, as often as the counts say; the verdicts.
    fn verdicts(account: &mut Account, counts: &[u32]) -> Vec<Verdict> {
        let look = |(minute, count): (u64, &u32)| account.judge(*count, minute * 3 * MINUTE_US, CONFIRM_US);
        (1..).zip(counts).map(look).collect()
    }

    #[test]
    fn an_attempt_of_somebody_else_is_told_once_it_stays() {
        let mut account = Account::new();
        let told = verdicts(&mut account, &[0, 1, 1, 1]);
        assert_eq!(told, [Verdict::Quiet, Verdict::Suspicious, Verdict::Elsewhere(1), Verdict::Quiet]);
        assert_eq!((account.unacknowledged(), account.seen_us), (1, 6 * MINUTE_US));
    }

    #[test]
    fn an_attempt_that_another_device_proves_a_moment_later_is_none() {
        let mut account = Account::new();
        assert_eq!(verdicts(&mut account, &[1, 0, 1, 0]).last(), Some(&Verdict::Quiet));
        assert_eq!(account.elsewhere, 0);
    }

    #[test]
    fn what_was_tried_here_is_not_told() {
        let mut account = Account::new();
        for (count, element) in [(1, b"a"), (2, b"b")] {
            account.sends(element);
            account.answered(element, &charged(count));
        }
        assert_eq!(verdicts(&mut account, &[2, 2]), [Verdict::Quiet, Verdict::Quiet]);
        assert_eq!((account.charged(), account.elsewhere), (2, 0));
        let told = verdicts(&mut account, &[3, 3]);
        assert_eq!(told, [Verdict::Suspicious, Verdict::Elsewhere(1)], "and what is more, is");
    }

    #[test]
    fn a_proved_attempt_leaves_nothing_and_hides_nothing() {
        let mut account = Account::new();
        account.sends(b"a");
        account.answered(b"a", &charged(1));
        account.proves(b"a");
        account.proof_answered(b"a", &Answer::Reset { left: 10 });
        assert_eq!(verdicts(&mut account, &[1, 1])[1], Verdict::Elsewhere(1));
    }

    /// The service was killed between the question and its answer. Four worlds, of which the vault tells which it is.
    #[test]
    fn an_attempt_without_an_answer_neither_raises_nor_hides_an_alarm() {
        let crashed = || {
            let mut account = Account::new();
            account.sends(b"a");
            account
        };
        let mut lost = crashed();
        assert!(!lost.needs_probe(0), "it was not charged: the count says so");
        assert_eq!(verdicts(&mut lost, &[0, 1, 1])[2], Verdict::Elsewhere(1), "and explains nothing later");

        let mut arrived = crashed();
        assert!(arrived.needs_probe(1));
        arrived.probed(b"a", &Answer::Refused { why: Refusal::Signature });
        assert_eq!(verdicts(&mut arrived, &[1, 1])[1], Verdict::Quiet);

        let mut somebody = crashed();
        somebody.probed(b"a", &Answer::Refused { why: Refusal::Challenge });
        assert_eq!(verdicts(&mut somebody, &[1, 1])[1], Verdict::Elsewhere(1), "it was not ours");

        let mut proved = crashed();
        proved.answered(b"a", &charged(1));
        proved.proves(b"a");
        assert!(proved.needs_probe(1), "somebody else's, if the proof arrived");
        proved.probed(b"a", &Answer::Reset { left: 10 });
        assert_eq!(verdicts(&mut proved, &[1, 1])[1], Verdict::Elsewhere(1));
    }

    #[test]
    fn a_refusal_and_a_repetition_charge_nothing() {
        let mut account = Account::new();
        account.sends(b"a");
        account.sends(b"a");
        account.answered(b"a", &Answer::Throttled { retry_after_s: 60, left: 3 });
        assert_eq!((account.charged(), account.open.len()), (0, 0));
        account.sends(b"b");
        account.answered(b"b", &Answer::Busy {});
        assert_eq!(account.uncertain().count(), 1, "it may have been charged");
    }

    #[test]
    fn a_device_that_unlocks_later_is_told_by_the_unlocking_and_not_again() {
        let mut account = Account::default();
        account.sends(b"a");
        account.answered(b"a", &charged(4));
        assert_eq!((account.elsewhere, account.unacknowledged()), (3, 0));
        account.proves(b"a");
        account.proof_answered(b"a", &Answer::Reset { left: 10 });
        assert_eq!(verdicts(&mut account, &[3, 3])[1], Verdict::Quiet);
    }

    #[test]
    fn a_device_that_forgot_everything_tells_what_it_finds() {
        let mut account = Account::default();
        assert_eq!(verdicts(&mut account, &[2, 2])[1], Verdict::Elsewhere(2));
    }

    #[test]
    fn more_during_a_suspicion_has_to_stay_as_well() {
        let mut account = Account::new();
        let told = verdicts(&mut account, &[1, 2, 1]);
        assert_eq!(told, [Verdict::Suspicious, Verdict::Elsewhere(1), Verdict::Quiet]);
    }

    #[test]
    fn a_freeze_is_asked_for_until_it_holds_and_not_again_when_it_was_lifted() {
        let mut account = Account { freeze: Some(Freeze { until_s: 100, held: false }), ..Account::new() };
        assert_eq!(account.freeze_due(0, 10), Some(100), "the vault was away");
        assert_eq!(account.freeze_due(100, 20), None);
        assert_eq!(account.freeze_due(0, 30), None, "another device lifted it");
        assert_eq!(account.freeze_due(0, 40), None);
        account.freeze = Some(Freeze { until_s: 100, held: false });
        assert_eq!(account.freeze_due(0, 100), None, "it is over");
    }
}
