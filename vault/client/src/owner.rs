//! What only the owner may do, without the password: look, freeze, erase. And what everybody may ask.

use chatkeep_vault_protocol::answer::{Answer, Counters, VaultInfo};
use chatkeep_vault_protocol::cbor::Fixed;
use chatkeep_vault_protocol::message::{
    Envelope, Freeze, Info, Operation, Request, Signed, owner_message, sign,
};
use chatkeep_vault_protocol::slot::Slot;
use chatkeep_vault_protocol::{KdfFloor, SlotSecret, VaultPin, ppss};
use rand_core::CryptoRngCore;

use crate::exchange::{Answered, ask, ask_all, attackers_bound, dominant, envelopes, open_slot, unexpected};
use crate::{Transport, VaultError};

/// What one vault says of the account.
#[derive(Debug)]
pub struct VaultReport {
    /// Its name.
    pub name: String,
    /// Where it keeps its keys (`soft` …), when it answered.
    pub hsm: Option<String>,
    /// Its counters, or why there are none.
    pub counters: Result<Counters, VaultError>,
}

/// What all vaults together mean.
#[derive(Debug)]
pub struct StatusReport {
    /// Attempts that an attacker still has.
    pub attempts_left: u16,
    /// Attempts after a right password.
    pub attempts_max: u16,
    /// Failed attempts since the last change of password; the most any vault counted. More than
    /// last time, and not by the user: somebody else has the slot.
    pub failed_since_change: u32,
    /// Vault by vault.
    pub vaults: Vec<VaultReport>,
}

/// Asks every vault for its counters, whatever the others say. An error only if the slot cannot be used here.
pub async fn look(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    slot: &[u8],
    secret: &SlotSecret,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<Vec<VaultReport>, VaultError> {
    let (slot, vaults) = open_owned(slot, context, pins, secret)?;
    let answers = ask_owner(transport, &vaults, &slot, secret, Question::Status, rng).await;
    let report = |(vault, answered): (&VaultPin, Result<Answered, VaultError>)| {
        let hsm = answered.as_ref().ok().map(|answered| answered.hsm.clone());
        let counters = match answered.map(|answered| answered.answer) {
            Ok(Answer::Status(counters)) => Ok(counters),
            Ok(_) => Err(unexpected(vault)),
            Err(error) => Err(error),
        };
        VaultReport { name: vault.name.clone(), hsm, counters }
    };
    Ok(vaults.iter().zip(answers).map(report).collect())
}

/// Asks for the counters. An error when fewer than `t` vaults give them.
pub async fn status(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    slot: &[u8],
    secret: &SlotSecret,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<StatusReport, VaultError> {
    let reports = look(transport, pins, context, slot, secret, rng).await?;
    let t = Slot::decode(slot, KdfFloor::AllowWeakKdf)?.header.threshold;
    let good: Vec<Counters> = reports.iter().filter_map(|r| r.counters.as_ref().ok().copied()).collect();
    if good.len() < usize::from(t) {
        let errors: Vec<VaultError> =
            reports.into_iter().filter_map(|report| report.counters.err()).collect();
        let n = good.len() + errors.len();
        return Err(dominant(&errors, t, n));
    }
    Ok(StatusReport {
        attempts_left: attackers_bound(good.iter().map(|c| c.left).collect(), t),
        attempts_max: attackers_bound(good.iter().map(|c| c.max).collect(), t),
        failed_since_change: good.iter().map(|c| c.failed_since_change).max().unwrap_or(0),
        vaults: reports,
    })
}

/// Lets the vaults refuse all guesses until `until_s` (seconds since 1970, at most 30 days ahead). It ends by itself
/// or by [`thaw`]. Fails unless so many vaults froze that the others are too few.
pub async fn freeze(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    slot: &[u8],
    secret: &SlotSecret,
    until_s: u64,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<(), VaultError> {
    let (slot, vaults) = open_owned(slot, context, pins, secret)?;
    let answers = ask_owner(transport, &vaults, &slot, secret, Question::Freeze { until_s }, rng).await;
    most(answers, &slot, |error| matches!(error, VaultError::Frozen { .. }))
}

/// Lifts the freezes of the vaults. `until_s` are their ends as [`look`] told them, by the vault's name; vaults that are not
/// among them are not asked. Fails if one of them stays frozen: fewer than all may not be enough to unlock with.
pub async fn thaw(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    slot: &[u8],
    secret: &SlotSecret,
    until_s: &[(String, u64)],
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<(), VaultError> {
    let (slot, vaults) = open_owned(slot, context, pins, secret)?;
    let mut first = Ok(());
    for (name, until_s) in until_s {
        let vault = vaults.iter().filter(|vault| vault.name == *name);
        let vault: Vec<VaultPin> = vault.cloned().collect();
        let question = Question::Thaw { until_s: *until_s };
        let answers = ask_owner(transport, &vault, &slot, secret, question, rng).await;
        let thawed =
            |answer: &Result<Answered, VaultError>| matches!(answer, Err(VaultError::Frozen { until_s: 0 }));
        for (vault, answer) in vault.iter().zip(answers).filter(|(_, answer)| !thawed(answer)) {
            first = first.and(match answer {
                Ok(_) => Err(unexpected(vault)),
                Err(error) => Err(error),
            });
        }
    }
    first
}

/// Lets the vaults erase the account for ever. Fails unless so many did that the others are too few; may be repeated.
pub async fn destroy(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    slot: &[u8],
    secret: &SlotSecret,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<(), VaultError> {
    let (slot, vaults) = open_owned(slot, context, pins, secret)?;
    let answers = ask_owner(transport, &vaults, &slot, secret, Question::Destroy, rng).await;
    most(answers, &slot, |error| matches!(error, VaultError::Destroyed { .. }))
}

/// Asks one vault who it is and what its policy says. Needs no account; proves the pin.
pub async fn info(
    transport: &dyn Transport,
    vault: &VaultPin,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<(VaultInfo, String), VaultError> {
    let answered = ask(transport, vault, &Envelope::new(Request::Info(Info {}), rng)).await?;
    match answered.answer {
        Answer::Info(info) => Ok((*info, answered.hsm)),
        _ => Err(unexpected(vault)),
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Question {
    Status,
    Head,
    Freeze { until_s: u64 },
    Thaw { until_s: u64 },
    Destroy,
}

pub(crate) fn open_owned(
    slot: &[u8],
    context: &[u8; 16],
    pins: &[VaultPin],
    secret: &SlotSecret,
) -> Result<(Slot, Vec<VaultPin>), VaultError> {
    let (slot, vaults) = open_slot(slot, context, pins, KdfFloor::AllowWeakKdf)?;
    ppss::check_secret(&slot, secret)?;
    Ok((slot, vaults))
}

pub(crate) async fn ask_owner(
    transport: &dyn Transport,
    vaults: &[VaultPin],
    slot: &Slot,
    secret: &SlotSecret,
    question: Question,
    rng: &mut (impl CryptoRngCore + Send),
) -> Vec<Result<Answered, VaultError>> {
    let epoch = slot.header.epoch;
    let envelopes: Vec<Envelope> = envelopes(vaults.iter().map(|_| Request::Info(Info {})), rng)
        .into_iter()
        .zip(vaults)
        .map(|(mut envelope, vault)| {
            let account = slot.header.account(&vault.identity);
            let nonce = &envelope.nonce.0;
            let operation = match question {
                Question::Status => Operation::Status { nonce },
                Question::Head => Operation::Head { nonce },
                Question::Destroy => Operation::Destroy { nonce },
                Question::Freeze { until_s } => Operation::Freeze { until_s },
                Question::Thaw { until_s } => Operation::Thaw { until_s },
            };
            let message = owner_message(operation, &vault.identity, &account, &epoch);
            let signature = sign(&secret.auth_key(&vault.identity, &epoch), &message);
            let (account, epoch) = (Fixed(account), Fixed(epoch));
            envelope.request = match question {
                Question::Status => Request::Status(Signed { account, epoch, signature }),
                Question::Head => Request::Head(Signed { account, epoch, signature }),
                Question::Destroy => Request::Destroy(Signed { account, epoch, signature }),
                Question::Freeze { until_s } => {
                    Request::Freeze(Freeze { account, epoch, until_s, signature })
                }
                Question::Thaw { until_s } => Request::Thaw(Freeze { account, epoch, until_s, signature }),
            };
            envelope
        })
        .collect();
    ask_all(transport, vaults, &envelopes).await
}

/// `Frozen` and `Destroyed` arrive as errors, because for every other question they are.
fn most(
    answers: Vec<Result<Answered, VaultError>>,
    slot: &Slot,
    done: impl Fn(&VaultError) -> bool,
) -> Result<(), VaultError> {
    let (t, n) = (slot.header.threshold, answers.len());
    let errors: Vec<VaultError> = answers.into_iter().filter_map(Result::err).collect();
    let (done, failed): (Vec<_>, Vec<_>) = errors.into_iter().partition(done);
    if done.len() > n - usize::from(t) { Ok(()) } else { Err(dominant(&failed, t, n)) }
}
