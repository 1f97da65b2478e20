//! Jobs about vaults that need no password: look, freeze, lift a freeze.

use std::sync::Arc;

use chatkeep_ipc::Error;
use chatkeep_vault_client::{VaultError, VaultPin, freeze, look as ask, thaw};
use rand_core::OsRng;

use super::Job;
use crate::event::{Opened, Outcome};
use crate::fault::{Fault, Result};
use crate::guard::{Lifting, LookOrder, VaultSeen, look, wish_for_freeze};

/// A freeze that was lifted for a moment.
pub(super) struct Lifted {
    until_s: u64,
    _no_look_freezes: Lifting,
}

impl Job {
    pub(super) async fn vault_refresh(
        &mut self,
        pin: &VaultPin,
        pins: &[VaultPin],
        opened: &[Arc<Opened>],
        confirm_us: u64,
    ) -> Result<Outcome> {
        let looks = self.look_at(pins, opened, confirm_us).await;
        if looks.is_empty() {
            let answer = chatkeep_vault_client::info(&self.tools.book, pin, &mut OsRng).await;
            self.vault = Some(VaultSeen::of(pin.name.clone(), answer.as_ref().err()));
            answer?;
        }
        Ok(Outcome::Looked { looks, warning: None })
    }

    async fn look_at(
        &self,
        pins: &[VaultPin],
        opened: &[Arc<Opened>],
        confirm_us: u64,
    ) -> Vec<(chatkeep_format::ArchiveId, crate::guard::Look)> {
        let mut looks = Vec::new();
        for opened in opened {
            let order = LookOrder {
                archive: opened.archive.clone(),
                keys: opened.keys.clone(),
                pins: pins.to_vec(),
                lock_s: None,
                confirm_us,
                check_store: true,
            };
            looks.extend(look(&self.tools.book, &order).await.map(|look| (order.archive.id, look)));
        }
        looks
    }

    /// Freezes all vaults of the keyslots until `until_s`, or lifts their freezes.
    pub(super) async fn freeze(
        &mut self,
        pins: &[VaultPin],
        opened: &[Arc<Opened>],
        until_s: Option<u64>,
        (caution, confirm_us): (Option<String>, u64),
    ) -> Result<Outcome> {
        let mut failure = None;
        let mut frozen = 0;
        for opened in opened {
            if opened.keys.password_slot().is_none() || opened.keys.secret.is_none() {
                continue;
            }
            // What does not arrive now is done by a later look: a vault that is away stays open no longer than it is away.
            wish_for_freeze(&self.tools.book, &opened.keys, until_s)?;
            let done = match until_s {
                Some(until_s) => self.freeze_one(pins, opened, until_s).await,
                None => self.thaw_one(pins, opened).await.map(drop),
            };
            match done {
                Ok(()) => frozen += 1,
                Err(fault) => failure = Some(fault),
            }
        }
        let looks = self.look_at(pins, opened, confirm_us).await;
        match failure {
            Some(fault) if frozen == 0 => Err(fault),
            None if frozen == 0 => {
                let text = "no archive here is guarded by this vault with a password this device has seen";
                Err(Error::NotEnabled(text.to_owned()).into())
            }
            failure => {
                let warning = failure.map(|fault| fault.error.text()).or(caution);
                Ok(Outcome::Looked { looks, warning })
            }
        }
    }

    async fn freeze_one(&self, pins: &[VaultPin], opened: &Opened, until_s: u64) -> Result<()> {
        let (Some(slot), Some(secret)) = (opened.keys.password_slot(), &opened.keys.secret) else {
            return Ok(());
        };
        let context = &opened.archive.id.0;
        Ok(freeze(&self.tools.book, pins, context, slot, secret, until_s, &mut OsRng).await?)
    }

    /// Lifts the freezes; until when the latest of them was.
    async fn thaw_one(&self, pins: &[VaultPin], opened: &Opened) -> Result<Option<u64>> {
        let (Some(slot), Some(secret)) = (opened.keys.password_slot(), &opened.keys.secret) else {
            return Ok(None);
        };
        let (context, transport) = (&opened.archive.id.0, &self.tools.book);
        let reports = ask(transport, pins, context, slot, secret, &mut OsRng).await?;
        let now_s = crate::clock::now_us() / 1_000_000;
        let mut failure = None;
        let mut frozen = Vec::new();
        for report in reports {
            match report.counters {
                Ok(counters) if counters.frozen_until_s > now_s => {
                    frozen.push((report.name, counters.frozen_until_s));
                }
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        let Some(until_s) = frozen.iter().map(|(_, until_s)| *until_s).max() else {
            // One that is away may be frozen, which the caller may want to know.
            return failure.map_or(Ok(None), |error| Err(error.into()));
        };
        thaw(transport, pins, context, slot, secret, &frozen, &mut OsRng).await?;
        Ok(Some(until_s))
    }

    /// Lifts a freeze for an attempt of the owner's own, on a device that may do so. [`Job::freeze_again`] has to follow; if
    /// it does not, because of a crash, the next look freezes again.
    pub(super) async fn lift_freeze(&self, pins: &[VaultPin], opened: &Opened) -> Option<Lifted> {
        let (slot, secret) = (opened.keys.password_slot()?, opened.keys.secret.as_ref()?);
        let no_look_freezes = self.tools.book.lifting();
        let (context, transport) = (&opened.archive.id.0, &self.tools.book);
        let reports = ask(transport, pins, context, slot, secret, &mut OsRng).await.ok()?;
        let now_s = crate::clock::now_us() / 1_000_000;
        let ends = reports.into_iter().filter_map(|report| report.counters.ok());
        let until_s =
            ends.map(|counters| counters.frozen_until_s).max().filter(|until_s| *until_s > now_s)?;
        wish_for_freeze(&self.tools.book, &opened.keys, Some(until_s)).ok()?;
        let lifted = self.thaw_one(pins, opened).await;
        lifted.is_ok().then_some(Lifted { until_s, _no_look_freezes: no_look_freezes })
    }

    /// Ends what [`Job::lift_freeze`] began.
    pub(super) async fn freeze_again(&self, pins: &[VaultPin], opened: &Opened, lifted: Option<Lifted>) {
        let Some(lifted) = lifted else { return };
        if let Err(fault) = self.freeze_one(pins, opened, lifted.until_s).await {
            tracing::warn!(error = %fault.error.text(), "the vaults are frozen again with the next look");
        }
    }
}

/// Says until when, and what to do about it.
pub(super) fn explain_frozen(error: VaultError) -> Fault {
    let VaultError::Frozen { until_s } = &error else { return error.into() };
    let until = crate::clock::date_time(*until_s);
    let text = format!(
        "frozen until {until} UTC by a device of the owner: no password is tried until then, not even the right one. \
         Lift it there with `chatkeep vault unfreeze`, or use the 64 digits"
    );
    let at = until_s.saturating_mul(1_000_000);
    Fault::from(Error::VaultBackoff(text)).with("retry-after", at)
}
