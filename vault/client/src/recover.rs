//! The key comes back from a slot, a password and enough vaults.

use chatkeep_vault_protocol::answer::{Answer, Charged};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::message::{Guess, Prove, Request, prove_message, sign};
use chatkeep_vault_protocol::ppss::{self, Question};
use chatkeep_vault_protocol::slot::Slot;
use chatkeep_vault_protocol::{KdfFloor, SlotError, SlotSecret, VaultPin};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::exchange::{ask_all, ask_enough, attackers_bound, dominant, envelopes, open_slot, unexpected};
use crate::register::stretch;
use crate::{Transport, VaultError};

/// What a right password gives.
pub struct Recovered {
    /// The backup key.
    pub key: Zeroizing<[u8; 32]>,
    /// To be kept on this device, beside the key.
    pub secret: SlotSecret,
    /// Attempts from now on, after the proofs.
    pub attempts_left: u16,
    /// Failed attempts since the last change of password, of anybody; the most any vault counted.
    pub failed_since_change: u32,
    /// Vaults at which the count was not reset, and why. Not an error of the recovery.
    pub unproved: Vec<(String, VaultError)>,
    /// Vaults that took no part, and why. The others were enough.
    pub absent: Vec<(String, VaultError)>,
    /// The last attempt was the right one: too few vaults are left to open this slot again. Register anew.
    pub must_register_again: bool,
}

impl std::fmt::Debug for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovered")
            .field("key", &"(redacted)")
            .field("attempts_left", &self.attempts_left)
            .field("failed_since_change", &self.failed_since_change)
            .field("unproved", &self.unproved)
            .field("absent", &self.absent)
            .field("must_register_again", &self.must_register_again)
            .finish_non_exhaustive()
    }
}

/// Asks all vaults for their part and opens the slot with the first `t` that fit.
///
/// Costs one attempt, given back when the password was right. `floor` is [`KdfFloor::Production`] but in tests.
pub async fn recover(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    slot: &[u8],
    password: &[u8],
    floor: KdfFloor,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<Recovered, VaultError> {
    let (slot, vaults) = open_slot(slot, context, pins, floor)?;
    let header = &slot.header;
    let (t, n) = (header.threshold, vaults.len());
    let pwk = stretch(password, &header.salt, header.kdf).await?;
    let questions: Vec<Question> = (0..n).map(|index| Question::new(header, index, &pwk, rng)).collect();
    let guesses = vaults.iter().zip(&questions).map(|(vault, question)| {
        Request::Guess(Guess {
            account: Fixed(header.account(&vault.identity)),
            epoch: Fixed(header.epoch),
            blinded: Blob(question.element().to_vec()),
        })
    });
    let guesses = envelopes(guesses, rng);

    let (mut masks, mut attempts, mut absent) = (Vec::new(), Vec::new(), Vec::new());
    let answers = ask_enough(transport, &vaults, &guesses, usize::from(t)).await;
    for ((vault, question), answered) in vaults.iter().zip(&questions).zip(answers) {
        let charged = match answered.map(|answered| answered.answer) {
            Ok(Answer::Charged(charged)) => charged,
            Ok(_) => {
                absent.push((vault.name.clone(), unexpected(vault)));
                continue;
            }
            Err(error) => {
                absent.push((vault.name.clone(), error));
                continue;
            }
        };
        match question.answered(header, &charged.evaluated.0) {
            Ok(mask) => masks.push(mask),
            Err(_) => absent.push((vault.name.clone(), unexpected(vault))),
        }
        attempts.push(Attempt { vault, blinded: question.element(), charged });
    }
    if masks.len() < usize::from(t) {
        let errors: Vec<VaultError> = absent.into_iter().map(|(_, error)| error).collect();
        return Err(dominant(&errors, t, n));
    }
    match ppss::open(&slot, &masks) {
        Ok((secret, key)) => {
            let recovered = prove(transport, &slot, secret, key, &attempts, rng).await?;
            Ok(Recovered { absent, ..recovered })
        }
        Err(SlotError::DoesNotOpen) => Err(VaultError::WrongPassword {
            left: attackers_bound(attempts.iter().map(Attempt::left).collect(), t),
            max: attackers_bound(attempts.iter().map(|a| a.charged.max).collect(), t),
        }),
        Err(error) => Err(error.into()),
    }
}

struct Attempt<'a> {
    vault: &'a VaultPin,
    blinded: &'a [u8],
    charged: Charged,
}

impl Attempt<'_> {
    /// Attempts left after this one. A vault that says more than that contradicts itself: it charged this one.
    fn left(&self) -> u16 {
        self.charged.left.min(self.charged.max.saturating_sub(1))
    }
}

async fn prove(
    transport: &dyn Transport,
    slot: &Slot,
    secret: SlotSecret,
    key: Zeroizing<[u8; 32]>,
    attempts: &[Attempt<'_>],
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<Recovered, VaultError> {
    let header = &slot.header;
    let proofs = attempts.iter().map(|Attempt { vault, blinded, charged }| {
        let identity = &vault.identity;
        let account = header.account(identity);
        let (evaluated, challenge) = (&charged.evaluated.0, &charged.challenge.0);
        let message = prove_message(identity, &account, &header.epoch, blinded, evaluated, challenge);
        Request::Prove(Prove {
            account: Fixed(account),
            epoch: Fixed(header.epoch),
            blinded: Blob(blinded.to_vec()),
            signature: sign(&secret.auth_key(identity, &header.epoch), &message),
        })
    });
    let proofs = envelopes(proofs, rng);
    let vaults: Vec<VaultPin> = attempts.iter().map(|attempt| attempt.vault.clone()).collect();

    let (mut left, mut unproved, mut failed) = (Vec::new(), Vec::new(), 0);
    let mut dead = 0;
    for (attempt, answered) in attempts.iter().zip(ask_all(transport, &vaults, &proofs).await) {
        let mut counted = attempt.charged.failed_since_change;
        let error = match answered.map(|answered| answered.answer) {
            Ok(Answer::Reset { left: now }) => {
                left.push(now.min(attempt.charged.max));
                failed = failed.max(counted.saturating_sub(1));
                continue;
            }
            Ok(_) => unexpected(attempt.vault),
            Err(error) => error,
        };
        if matches!(error, VaultError::Destroyed { .. }) || attempt.charged.left == 0 {
            dead += 1;
            counted = counted.saturating_sub(1);
        } else {
            left.push(attempt.left());
        }
        failed = failed.max(counted);
        unproved.push((attempt.vault.name.clone(), error));
    }
    let must_register_again = header.vaults.len() - dead < usize::from(header.threshold);
    let attempts_left = attackers_bound(left, header.threshold);
    Ok(Recovered {
        key,
        secret,
        attempts_left,
        failed_since_change: failed,
        unproved,
        absent: Vec::new(),
        must_register_again,
    })
}
