//! One question to one vault or to all at once, signatures checked, signed refusals turned into errors.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chatkeep_vault_protocol::answer::{self, AdmissionFault, Answer, Body};
use chatkeep_vault_protocol::limits::{CELL_ADDRESSES_MAX, URL_LEN_MAX};
use chatkeep_vault_protocol::message::{Envelope, Request};
use chatkeep_vault_protocol::slot::Slot;
use chatkeep_vault_protocol::{KdfFloor, SlotError, VaultPin};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use rand_core::CryptoRngCore;

use crate::{Transport, TransportError, VaultError};

/// A lost answer is asked for again with the same bytes, which costs no second attempt.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);
/// After this long a lost answer is not asked for again: somebody is waiting.
const PATIENCE: Duration = Duration::from_secs(20);
/// A vault that is not needed gets so long, because an attempt it charged and could not be proved stays charged.
const LATE: Duration = Duration::from_secs(5);

/// A checked answer and how the vault keeps its keys.
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    pub(crate) hsm: String,
}

/// Asks every vault its own request at the same time; answers in the order of the vaults.
pub(crate) async fn ask_all(
    transport: &dyn Transport,
    vaults: &[VaultPin],
    envelopes: &[Envelope],
) -> Vec<Result<Answered, VaultError>> {
    join_all(vaults.iter().zip(envelopes).map(|(vault, envelope)| ask(transport, vault, envelope))).await
}

/// As [`ask_all`], but once `enough` vaults helped, the others have only [`LATE`] left to answer.
pub(crate) async fn ask_enough(
    transport: &dyn Transport,
    vaults: &[VaultPin],
    envelopes: &[Envelope],
    enough: usize,
) -> Vec<Result<Answered, VaultError>> {
    let late = |vault: &VaultPin| {
        let (vault, what) = (vault.name.clone(), "others were faster by far".to_owned());
        Err(VaultError::Unreachable { vault, what })
    };
    let mut answers: Vec<Result<Answered, VaultError>> = vaults.iter().map(late).collect();
    let mut waiting: FuturesUnordered<_> = vaults
        .iter()
        .zip(envelopes)
        .enumerate()
        .map(|(index, (vault, envelope))| async move { (index, ask(transport, vault, envelope).await) })
        .collect();
    let mut helped = 0;
    let mut deadline = None;
    loop {
        let next = match deadline {
            None => waiting.next().await,
            Some(deadline) => tokio::time::timeout_at(deadline, waiting.next()).await.ok().flatten(),
        };
        let Some((index, answer)) = next else { return answers };
        helped += usize::from(answer.is_ok());
        answers[index] = answer;
        if helped >= enough && deadline.is_none() {
            deadline = Some(tokio::time::Instant::now() + LATE);
        }
    }
}

/// Puts one request per vault into envelopes.
pub(crate) fn envelopes(
    requests: impl IntoIterator<Item = Request>,
    rng: &mut impl CryptoRngCore,
) -> Vec<Envelope> {
    requests.into_iter().map(|request| Envelope::new(request, rng)).collect()
}

/// Asks one vault, and again where it says that the account is.
pub(crate) async fn ask(
    transport: &dyn Transport,
    vault: &VaultPin,
    envelope: &Envelope,
) -> Result<Answered, VaultError> {
    let request = envelope.encode();
    let mut body = ask_there(transport, vault, &request).await?;
    if let Answer::Elsewhere { urls, .. } = &body.answer {
        body = ask_elsewhere(transport, vault, urls, &request).await?;
    }
    let answer = refusal(vault, body.answer)?;
    Ok(Answered { answer, hsm: body.hsm })
}

/// Asks another cell of the same vault. It proves the same identity, so the address needs no trust.
async fn ask_elsewhere(
    transport: &dyn Transport,
    vault: &VaultPin,
    urls: &[String],
    request: &[u8],
) -> Result<Body, VaultError> {
    let protocol = |what: &str| VaultError::Protocol { vault: vault.name.clone(), what: what.to_owned() };
    let mut last = protocol("an account that is nowhere");
    let usable = |url: &&String| url.starts_with("https://") && url.len() <= URL_LEN_MAX;
    for url in urls.iter().filter(usable).take(CELL_ADDRESSES_MAX) {
        let there = VaultPin { url: url.clone(), ..vault.clone() };
        match ask_there(transport, &there, request).await {
            Ok(Body { answer: Answer::Elsewhere { .. }, .. }) => {
                return Err(protocol("cells that send each other the account"));
            }
            // a standby does not listen until it is the active one
            Err(error @ VaultError::Unreachable { .. }) => last = error,
            other => return other,
        }
    }
    Err(last)
}

async fn ask_there(transport: &dyn Transport, vault: &VaultPin, request: &[u8]) -> Result<Body, VaultError> {
    let mut tries = 1;
    let started = Instant::now();
    let bytes = loop {
        match transport.call(vault, request.to_vec()).await {
            Ok(bytes) => break bytes,
            Err(TransportError::Unreachable { .. }) if tries < TRIES && started.elapsed() < PATIENCE => {
                tries += 1;
            }
            Err(error) => return Err(VaultError::transport(&vault.name, error)),
        }
        tokio::time::sleep(PAUSE).await;
    };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    answer::verify(&bytes, &vault.identity, request, now_s)
        .map_err(|error| VaultError::answer(&vault.name, error))
}

/// Signed answers that are no are errors; `Frozen` and `Destroyed` are so only where they were not asked for.
fn refusal(vault: &VaultPin, answer: Answer) -> Result<Answer, VaultError> {
    let name = || vault.name.clone();
    Err(match answer {
        Answer::Throttled { retry_after_s, .. } => VaultError::Throttled { retry_after_s },
        Answer::Frozen { until_s } => VaultError::Frozen { until_s },
        Answer::Destroyed { reason, seq } => VaultError::Destroyed { reason, seq },
        Answer::Superseded {} => VaultError::Superseded,
        Answer::Unknown {} => VaultError::Unknown,
        Answer::Busy {} => VaultError::Busy { vault: name() },
        Answer::AdmissionRequired { kind } => return Err(not_admitted(vault, &kind)),
        Answer::AdmissionRefused { why } => VaultError::AdmissionRefused {
            vault: name(),
            what: match why {
                AdmissionFault::Invalid => "it is for another vault, or was taken back",
                AdmissionFault::Expired => "its time is over",
                AdmissionFault::Spent => "it was used already",
            },
        },
        Answer::Exists {} => VaultError::Refused { vault: name(), what: "the account exists".to_owned() },
        Answer::Refused { why } => VaultError::Refused { vault: name(), what: format!("{why:?}") },
        yes => return Ok(yes),
    })
}

/// A vault that wants something of newcomers.
pub(crate) fn not_admitted(vault: &VaultPin, kind: &str) -> VaultError {
    VaultError::AdmissionRequired { vault: vault.name.clone(), kind: kind.to_owned() }
}

/// An answer of the wrong kind.
pub(crate) fn unexpected(vault: &VaultPin) -> VaultError {
    VaultError::Protocol { vault: vault.name.clone(), what: "an answer to another question".to_owned() }
}

/// What to tell when fewer than `t` of `n` vaults helped.
///
/// A final word counts only from so many vaults that the others are too few: one lying vault must not make a user
/// throw a backup away.
pub(crate) fn dominant(errors: &[VaultError], t: u8, n: usize) -> VaultError {
    let enough = n + 1 - usize::from(t);
    let said = |kind: &dyn Fn(&VaultError) -> bool| errors.iter().filter(|error| kind(error)).count();
    let is_destroyed = |error: &VaultError| matches!(error, VaultError::Destroyed { .. });
    let final_word = if said(&is_destroyed) >= enough {
        errors.iter().find(|error| is_destroyed(error))
    } else {
        errors.iter().find(|error| error.is_final() && said(&|other| other == *error) >= enough)
    };
    final_word
        .or_else(|| errors.iter().min_by_key(|error| error.rank()))
        .cloned()
        .unwrap_or(VaultError::Unknown)
}

/// The `t`-th largest of the vaults' counts: how many more guesses somebody gets who needs `t` vaults for each.
pub(crate) fn attackers_bound(mut left: Vec<u16>, t: u8) -> u16 {
    left.sort_unstable_by(|a, b| b.cmp(a));
    left.get(usize::from(t) - 1).copied().unwrap_or(0)
}

/// Reads a slot, checks that it is for this archive and that all its vaults are pinned; uses the pins' addresses.
pub(crate) fn open_slot(
    slot: &[u8],
    context: &[u8; 16],
    pins: &[VaultPin],
    floor: KdfFloor,
) -> Result<(Slot, Vec<VaultPin>), VaultError> {
    let slot = Slot::decode(slot, floor)?;
    if slot.header.context != *context {
        return Err(VaultError::BadSlot(SlotError::OtherContext));
    }
    let vaults = slot
        .header
        .vaults
        .iter()
        .map(|named| {
            pins.iter().find(|pin| pin.identity == named.identity).cloned().ok_or_else(|| {
                VaultError::NotPinned { vault: named.name.clone(), identity: named.to_string() }
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok((slot, vaults))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chatkeep_vault_protocol::answer::DestroyReason;

    fn gone() -> VaultError {
        VaultError::Destroyed { reason: DestroyReason::Exhausted, seq: 1 }
    }

    #[test]
    fn one_vault_cannot_declare_a_backup_dead() {
        let away = || VaultError::Unreachable { vault: "b".to_owned(), what: "x".to_owned() };
        assert_eq!(dominant(&[gone()], 1, 1), gone());
        assert_eq!(dominant(&[gone(), away()], 2, 3), away());
        assert_eq!(dominant(&[gone(), away(), gone()], 2, 3), gone());
        assert_eq!(dominant(&[VaultError::Unknown, gone(), away()], 2, 3), away());
    }

    #[test]
    fn the_count_told_is_the_attackers() {
        assert_eq!(attackers_bound(vec![3], 1), 3);
        assert_eq!(attackers_bound(vec![6, 0, 4], 2), 4);
        assert_eq!(attackers_bound(vec![6], 2), 0);
    }
}
