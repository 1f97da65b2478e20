//! One look at all vaults of one keyslot: counters compared with what was done here, freezes renewed.

use std::time::Duration;

use chatkeep_vault_client::{Counters, KdfFloor, SlotSecret, VaultError, VaultPin, freeze, look as ask};
use chatkeep_vault_protocol::answer::{self, Answer};
use chatkeep_vault_protocol::cbor::{Blob, Fixed};
use chatkeep_vault_protocol::limits::FREEZE_MAX_S;
use chatkeep_vault_protocol::message::{Envelope, Prove, Request};
use chatkeep_vault_protocol::slot::Slot;
use rand_core::OsRng;
use tracing::{debug, warn};

use super::{AccountId, Book, Counted, Freeze, VaultSeen, Verdict};
use crate::archive::Archive;
use crate::fault::Result;
use crate::keyring::Keys;
use crate::witness::Compared;

/// A lock is renewed when it has a day less than it could have: not with every look, because it costs each vault a commit.
const RENEW_S: u64 = 24 * 3600;

/// A store that does not answer for so long (a mount that hangs) holds up no look.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is looked at, and how.
pub struct LookOrder {
    /// The archive, to which the keyslot is bound.
    pub archive: Archive,
    /// Its keyslot, and the secret behind it.
    pub keys: Keys,
    /// The vaults that this device trusts.
    pub pins: Vec<VaultPin>,
    /// Keep the vaults frozen for so long from now on, in seconds.
    pub lock_s: Option<u64>,
    /// See [`super::CONFIRM_US`].
    pub confirm_us: u64,
    /// Ask for the newest entry that the vaults know, too.
    pub check_store: bool,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Vault by vault, in the order of the keyslot.
    pub vaults: Vec<VaultSeen>,
    /// Something is not certain yet: look again soon.
    pub again: bool,
    /// Some vault answered.
    pub reached: bool,
    /// The store, compared with what the vaults know.
    pub store: Compared,
}

/// Looks once. `None` without a password keyslot whose secret is on this device. Costs no attempt.
pub async fn look(book: &Book, order: &LookOrder) -> Option<Look> {
    let slot_bytes = order.keys.password_slot()?;
    let secret = order.keys.secret.as_ref()?;
    let slot = Slot::decode(slot_bytes, KdfFloor::AllowWeakKdf).ok()?;
    let stamp = book.stamp();
    let reports = match ask(book, &order.pins, &order.archive.id.0, slot_bytes, secret, &mut OsRng).await {
        Ok(reports) => reports,
        Err(error) => {
            let names = slot.header.vaults.iter().map(|vault| vault.name.clone());
            let vaults = names.map(|name| VaultSeen::of(name, Some(&error))).collect();
            return Some(Look { vaults, ..Look::default() });
        }
    };
    let mut found = Look::default();
    let mut freeze_until_s = None;
    for (vault, report) in slot.header.vaults.iter().zip(reports) {
        let id = AccountId::new(&vault.identity, &slot.header.account(&vault.identity), &slot.header.epoch);
        let mut seen = VaultSeen::of(report.name, report.counters.as_ref().err());
        match report.counters {
            Ok(counters) => {
                found.reached = true;
                let vault = order.pins.iter().find(|pin| pin.identity == vault.identity).unwrap_or(vault);
                let account = (&id, vault, &slot);
                found.again |= compare(book, account, counters, (stamp, order.confirm_us), &mut seen).await;
                freeze_until_s = freeze_until_s.max(freeze_due(book, &id, &counters, order.lock_s));
            }
            Err(error) => final_word(book, &id, &error, &mut seen),
        }
        found.vaults.push(seen);
    }
    if let Some(until_s) = freeze_until_s.filter(|_| !book.is_lifted()) {
        renew(book, order, (slot_bytes, secret), until_s, &mut found).await;
    }
    if order.check_store && found.reached {
        let compared = crate::witness::check(book, &order.pins, &order.archive, &order.keys);
        match tokio::time::timeout(COMPARE_TIMEOUT, compared).await {
            Ok(Ok(compared)) => found.store = compared,
            Ok(Err(fault)) => {
                debug!(error = %fault.error.text(), "the store is compared with the vaults later");
            }
            Err(_) => debug!("the store does not answer; it is compared with the vaults later"),
        }
    }
    Some(found)
}

/// Takes the counters into the book, and tells what they mean. Whether it is to be looked again.
async fn compare(
    book: &Book,
    (id, vault, slot): (&AccountId, &VaultPin, &Slot),
    counters: Counters,
    (stamp, confirm_us): (u64, u64),
    seen: &mut VaultSeen,
) -> bool {
    let failed = counters.failed_since_change;
    let mut account = book.account(id).unwrap_or_default();
    let mut again = false;
    // While a change is pending, two registrations share one count.
    let others = if counters.change_pending { book.charged_under_others(id) } else { 0 };
    let failed = failed.saturating_sub(others);
    // A question of ours may be on its way.
    if book.is_busy(id) && account.uncertain().next().is_some() {
        again = true;
    } else {
        let mut probed = Vec::new();
        if account.needs_probe(failed) {
            for attempt in account.uncertain() {
                match probe(book, vault, slot, &attempt.element).await {
                    Some(answer) => probed.push((attempt.element.clone(), answer)),
                    None => again = true,
                }
            }
        }
        let now_us = crate::clock::now_us();
        let judged = book.change_if(id, stamp, |account| {
            for (element, answer) in &probed {
                account.probed(element, answer);
            }
            // What became of one is not known: the count is not to be explained by guessing.
            (!again).then(|| account.judge(failed, now_us, confirm_us))
        });
        match judged {
            Ok(Some(Some(Verdict::Elsewhere(new)))) => seen.new_elsewhere = new,
            Ok(Some(Some(Verdict::Quiet))) => {}
            Ok(_) => again = true,
            Err(error) => warn!(%error, "what a vault counted cannot be written down"),
        }
        account = book.account(id).unwrap_or(account);
        again |= account.suspicion.is_some();
    }
    seen.counted = Some(Counted {
        failed: failed + others,
        here: account.charged().min(failed) + others,
        elsewhere: account.elsewhere,
        unacknowledged: account.unacknowledged(),
        seen_us: account.seen_us,
    });
    seen.count(&counters);
    again
}

/// Asks for a proof of an attempt with a signature that fits nothing. The answer tells whether it was the last one that was
/// charged, and whether it was proved; it charges nothing and gives nothing away.
async fn probe(book: &Book, vault: &VaultPin, slot: &Slot, element: &[u8]) -> Option<Answer> {
    let request = Request::Prove(Prove {
        account: Fixed(slot.header.account(&vault.identity)),
        epoch: Fixed(slot.header.epoch),
        blinded: Blob(element.to_vec()),
        signature: Fixed([0; 64]),
    });
    let request = Envelope::new(request, &mut OsRng).encode();
    let bytes = book.unwatched().call(vault, request.clone()).await.ok()?;
    let now_s = crate::clock::now_us() / 1_000_000;
    let answer = answer::verify(&bytes, &vault.identity, &request, now_s).ok()?.answer;
    (!matches!(answer, Answer::Busy {} | Answer::Elsewhere { .. })).then_some(answer)
}

/// Until when the vault is to be frozen, if it is not so already.
fn freeze_due(book: &Book, id: &AccountId, counters: &Counters, lock_s: Option<u64>) -> Option<u64> {
    if book.is_lifted() {
        return None;
    }
    let now_s = crate::clock::now_us() / 1_000_000;
    let due = book.change(id, |account| {
        if let Some(lock_s) = lock_s {
            let until_s = now_s + lock_s.min(FREEZE_MAX_S);
            if counters.frozen_until_s.saturating_add(RENEW_S.min(lock_s / 4)) < until_s {
                account.freeze = Some(Freeze { until_s, held: false });
            }
        }
        account.freeze_due(counters.frozen_until_s, now_s)
    });
    due.unwrap_or_else(|error| {
        warn!(%error, "a freeze cannot be written down");
        None
    })
}

async fn renew(
    book: &Book,
    order: &LookOrder,
    (slot, secret): (&[u8], &SlotSecret),
    until_s: u64,
    found: &mut Look,
) {
    let frozen = freeze(book, &order.pins, &order.archive.id.0, slot, secret, until_s, &mut OsRng).await;
    match frozen {
        // The next look sees it, and by how much.
        Ok(()) => {
            for seen in found.vaults.iter_mut().filter(|seen| seen.counted.is_some()) {
                seen.frozen_until = seen.frozen_until.max(until_s.saturating_mul(1_000_000));
                seen.state = "frozen";
            }
        }
        Err(error) => warn!(%error, "the vaults could not be frozen; it is tried again with the next look"),
    }
}

/// The account is gone, or lives under another password: told once.
fn final_word(book: &Book, id: &AccountId, error: &VaultError, seen: &mut VaultSeen) {
    if !matches!(error, VaultError::Destroyed { .. } | VaultError::Superseded | VaultError::Unknown) {
        return;
    }
    let told = book.change(id, |account| {
        let new = account.told != seen.state;
        seen.state.clone_into(&mut account.told);
        new
    });
    seen.news = told.unwrap_or(false);
}

/// Wishes, durably, that the vaults of a keyslot are frozen until then, or no longer (`None`); the next look sees to it.
pub fn wish_for_freeze(book: &Book, keys: &Keys, until_s: Option<u64>) -> Result<()> {
    let slot = keys.password_slot().and_then(|slot| Slot::decode(slot, KdfFloor::AllowWeakKdf).ok());
    let Some(slot) = slot else { return Ok(()) };
    for vault in &slot.header.vaults {
        let id = AccountId::new(&vault.identity, &slot.header.account(&vault.identity), &slot.header.epoch);
        let freeze = until_s.map(|until_s| Freeze { until_s, held: false });
        book.change(&id, |account| account.freeze = freeze).map_err(crate::fault::Fault::internal)?;
    }
    Ok(())
}

/// The user knows of all attempts that were noticed so far.
pub fn acknowledge(book: &Book, keys: &Keys) -> Result<()> {
    let slot = keys.password_slot().and_then(|slot| Slot::decode(slot, KdfFloor::AllowWeakKdf).ok());
    let Some(slot) = slot else { return Ok(()) };
    for vault in &slot.header.vaults {
        let id = AccountId::new(&vault.identity, &slot.header.account(&vault.identity), &slot.header.epoch);
        book.change(&id, |account| account.acknowledged = account.elsewhere)
            .map_err(crate::fault::Fault::internal)?;
    }
    Ok(())
}
