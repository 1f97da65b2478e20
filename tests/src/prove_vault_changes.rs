//! A change of password that is cut off at every message, whichever vaults had it, with the answers lost or not, one
//! vault away afterwards or none, at once or a day later: the old password opens, or the new one does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use chatkeep_vault_client::{
    DirectTransport, KdfParams, PendingChange, Registered, Transport, TransportError, VaultPin, begin_change,
    commit_change,
};
use chatkeep_vault_protocol::limits::PENDING_LIFETIME_S;
use chatkeep_vault_protocol::message::{Envelope, Request};
use chatkeep_vault_rig::local::{CONTEXT, KEY, Local, PASSWORD, enroll, pins, transport, unlock};
use rand_core::OsRng;

use crate::prove_vault::Figures;

/// Threshold and number of vaults; of 3-of-4 and 2-of-2, neither half has enough by itself.
const SIZES: [(u8, usize); 4] = [(2, 2), (2, 3), (1, 1), (3, 4)];
/// The quick form has the first.
const QUICK: usize = 1;
const NEW: &[u8] = b"the new password";

/// Messages of a change, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Begin,
    Finish,
    Commit,
}

/// Where it is cut off.
#[derive(Debug, Clone)]
struct Cut {
    phase: Phase,
    /// Vaults that the messages of this phase reach; later ones reach none.
    reached: BTreeSet<[u8; 32]>,
    /// The device is gone before they answer.
    answers_lost: bool,
}

struct CutOff {
    inner: DirectTransport,
    cut: Cut,
}

#[async_trait]
impl Transport for CutOff {
    async fn call(&self, vault: &VaultPin, request: Vec<u8>) -> Result<Vec<u8>, TransportError> {
        let gone = || TransportError::Unreachable { what: "the device is gone".to_owned() };
        let phase = match Envelope::decode(&request).map(|envelope| envelope.request) {
            Some(Request::Begin(_)) => Phase::Begin,
            Some(Request::Finish(_)) => Phase::Finish,
            Some(Request::Commit(_)) => Phase::Commit,
            _ => return self.inner.call(vault, request).await,
        };
        if phase > self.cut.phase || (phase == self.cut.phase && !self.cut.reached.contains(&vault.identity))
        {
            return Err(gone());
        }
        let answer = self.inner.call(vault, request).await;
        if phase == self.cut.phase && self.cut.answers_lost { Err(gone()) } else { answer }
    }
}

pub(crate) fn changes(figures: &mut Figures, quick: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for (threshold, count) in SIZES.into_iter().take(if quick { QUICK } else { SIZES.len() }) {
        let vaults: Vec<Arc<Local>> = (0..count).map(|n| Local::new(&format!("v{n}"))).collect();
        for phase in [Phase::Begin, Phase::Finish, Phase::Commit] {
            for subset in 0..1 << count {
                // of messages that reach nobody there are no answers to lose
                for answers_lost in if subset == 0 { &[false][..] } else { &[false, true] } {
                    let chosen = vaults.iter().enumerate().filter(|(n, _)| subset & (1 << n) != 0);
                    let reached = chosen.map(|(_, vault)| vault.pin.identity).collect();
                    let cut = Cut { phase, reached, answers_lost: *answers_lost };
                    for a_day_later in [false, true] {
                        let case = runtime.block_on(change(figures, threshold, &vaults, &cut, a_day_later));
                        if let Err(error) = case {
                            let day = if a_day_later { ", a day later" } else { "" };
                            figures.failures.add(format!("{threshold} of {count}, {cut:?}{day}: {error:#}"));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

async fn change(
    figures: &mut Figures,
    threshold: u8,
    vaults: &[Arc<Local>],
    cut: &Cut,
    a_day_later: bool,
) -> Result<()> {
    let pins = pins(vaults);
    // certificates of a vault that is behind are valid; those of one that is ahead are not
    let behind_s = if a_day_later { PENDING_LIFETIME_S + 60 } else { 0 };
    set_behind(vaults, behind_s)?;
    let honest = transport(vaults);
    let old = enroll(&honest, &pins, threshold).await;
    let cut_off = CutOff { inner: transport(vaults), cut: cut.clone() };
    let new = begin(&cut_off, &pins, &old).await;
    if let Some(new) = &new {
        let committed = commit_change(&cut_off, &pins, &CONTEXT, &new.slot, &new.secret, &mut OsRng).await;
        let whole = cut.phase == Phase::Commit && cut.reached.len() == vaults.len() && !cut.answers_lost;
        ensure!(committed.is_ok() == whole, "a commit that was cut off is told as {committed:?}");
    }
    figures.changes += 1;
    set_behind(vaults, 0)?;

    // what the store has: the old slot, and the new one if it was made; away is as many vaults as may be
    let may_be_away = vaults.len() - usize::from(threshold);
    for away in 0..if may_be_away == 0 { 1 } else { vaults.len() } {
        let there: Vec<Arc<Local>> = vaults
            .iter()
            .enumerate()
            .filter(|(n, _)| may_be_away == 0 || *n != away)
            .map(|(_, v)| v.clone())
            .collect();
        let there = transport(&there);
        if !opens(&there, &pins, &old, new.as_ref()).await? {
            figures.slots_unopenable += 1;
            ensure!(false, "neither slot opens, vault {away} is away");
        }
    }
    // a device that is still there goes on, and then the new password alone opens
    if let Some(new) = new {
        commit_change(&honest, &pins, &CONTEXT, &new.slot, &new.secret, &mut OsRng).await?;
        let key = unlock(&honest, &pins, &new.slot, NEW).await?.key;
        ensure!(*key == KEY, "another key came out");
        ensure!(unlock(&honest, &pins, &old.slot, PASSWORD).await.is_err(), "the old password still opens");
    }
    Ok(())
}

async fn begin(transport: &CutOff, pins: &[VaultPin], old: &Registered) -> Option<PendingChange> {
    let kdf = KdfParams::TESTING;
    begin_change(transport, pins, &CONTEXT, &old.slot, &old.secret, NEW, kdf, &mut OsRng).await.ok()
}

async fn opens(
    there: &DirectTransport,
    pins: &[VaultPin],
    old: &Registered,
    new: Option<&PendingChange>,
) -> Result<bool> {
    let slots = [Some((&old.slot, PASSWORD)), new.map(|new| (&new.slot, NEW))];
    for (slot, password) in slots.into_iter().flatten() {
        if let Ok(recovered) = unlock(there, pins, slot, password).await {
            ensure!(*recovered.key == KEY, "another key came out");
            return Ok(true);
        }
    }
    Ok(false)
}

/// Starts the vaults anew with their clocks behind.
fn set_behind(vaults: &[Arc<Local>], seconds: u64) -> Result<()> {
    for vault in vaults {
        if vault.behind_s.swap(seconds, Ordering::Relaxed) != seconds {
            vault.stop();
            vault.start()?;
        }
    }
    Ok(())
}
