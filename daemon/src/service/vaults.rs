//! Vaults as clients see them: what each said of every archive that it guards, in one object.

use std::collections::BTreeMap;
use std::sync::Arc;

use chatkeep_ipc::{Error, JobId, NewJob, VaultState};
use chatkeep_planner::SourceId;
use chatkeep_vault_client::VaultPin;
use chatkeep_vault_protocol::KdfFloor;
use chatkeep_vault_protocol::limits::FREEZE_MAX_S;
use chatkeep_vault_protocol::slot::Slot;

use super::Service;
use super::overlap::{Known, overlaps};
use crate::config;
use crate::event::{Opened, Work};
use crate::guard::{VaultSeen, acknowledge};
use crate::registry::ConfirmedVault;
use crate::source::Source;

/// What the vaults said last.
#[derive(Default)]
pub(super) struct Vaults {
    said: BTreeMap<String, Said>,
}

/// What one vault said.
#[derive(Default)]
struct Said {
    /// Of the archive of each source.
    of: BTreeMap<SourceId, VaultSeen>,
    /// Without an archive: whether it is there.
    state: &'static str,
    last_contact: u64,
    /// The user was told of attempts that nobody acknowledged, since the service started.
    reminded: bool,
}

impl Vaults {
    pub(super) fn forget(&mut self, name: &str) {
        self.said.remove(name);
    }
}

impl Said {
    fn hear(&mut self, source: Option<SourceId>, seen: &VaultSeen) {
        if !matches!(seen.state, "unreachable" | "untrusted" | "") {
            self.last_contact = crate::clock::now_us();
        }
        let Some(source) = source else {
            self.state = seen.state;
            return;
        };
        let known = self.of.entry(source).or_default();
        let before = std::mem::replace(known, seen.clone());
        // What it does not say now, it said before.
        if known.state.is_empty() {
            known.state = before.state;
        }
        known.attempts_left = known.attempts_left.or(before.attempts_left);
        known.attempts_max = known.attempts_max.or(before.attempts_max);
        known.counted = known.counted.or(before.counted);
        if matches!(known.state, "unreachable" | "untrusted") {
            known.frozen_until = before.frozen_until;
        }
    }

    /// What matters most, of all archives.
    fn shown(&self, pin: &VaultPin, config: Option<&config::Vault>, warnings: Vec<String>) -> VaultState {
        const WORST: [&str; 7] =
            ["destroyed", "superseded", "untrusted", "unreachable", "frozen", "backoff", "ok"];
        let said = |word: &&&str| self.of.values().any(|seen| seen.state == **word);
        let state = WORST.iter().find(said).copied().unwrap_or(self.state);
        let state = if state.is_empty() { "unregistered" } else { state };
        let counted = || self.of.values().filter_map(|seen| seen.counted);
        let fewest = self.of.values().filter(|seen| seen.attempts_left.is_some());
        let fewest = fewest.min_by_key(|seen| seen.attempts_left);
        VaultState {
            url: pin.url.clone(),
            state: state.to_owned(),
            attempts_left: fewest.and_then(|seen| seen.attempts_left).unwrap_or(0),
            attempts_max: fewest.and_then(|seen| seen.attempts_max.max(seen.attempts_left)).unwrap_or(0),
            retry_after: self.of.values().map(|seen| seen.retry_after).max().unwrap_or(0),
            last_contact: self.last_contact,
            fingerprint: pin.identity().to_string(),
            frozen_until: self.of.values().map(|seen| seen.frozen_until).max().unwrap_or(0),
            failed_attempts: counted().map(|counted| counted.failed).sum(),
            failed_here: counted().map(|counted| counted.here).sum(),
            failed_elsewhere: counted().map(|counted| counted.elsewhere).sum(),
            unacknowledged: counted().map(|counted| counted.unacknowledged).sum(),
            elsewhere_seen: counted().map(|counted| counted.seen_us).max().unwrap_or(0),
            operator: config.map(|vault| vault.operator.clone()).unwrap_or_default(),
            jurisdiction: config.map(|vault| vault.jurisdiction.clone()).unwrap_or_default(),
            warnings,
        }
    }
}

impl Service {
    pub(super) fn show_vaults(&self) {
        self.pins.iter().for_each(|pin| self.show_vault(pin));
    }

    fn show_vault(&self, pin: &VaultPin) {
        let silent = Said::default();
        let said = self.vaults.said.get(&pin.name).unwrap_or(&silent);
        let config = self.config.vault.iter().find(|vault| vault.name == pin.name);
        let warnings = self.warnings_about(&pin.name);
        self.tools.server.upsert_vault(&pin.name, said.shown(pin, config, warnings));
    }

    /// Shows what a vault just said of the archive of a source, or of none.
    pub(super) fn saw_vault(&mut self, source: Option<SourceId>, seen: &VaultSeen) {
        let Some(pin) = self.pins.iter().find(|pin| pin.name == seen.name) else { return };
        let name = pin.name.clone();
        let known = self.sources.keys().copied().collect::<std::collections::BTreeSet<_>>();
        let said = self.vaults.said.entry(name.clone()).or_default();
        said.of.retain(|source, _| known.contains(source));
        let before = source.and_then(|source| said.of.get(&source)).map_or("", |seen| seen.state);
        said.hear(source, seen);
        if let Some(left) = seen.failed {
            self.tools.server.vault_attempt_failed(&name, left, seen.retry_after);
        }
        if seen.state == "destroyed" && before != "destroyed" {
            self.tools.server.vault_destroyed(&name);
        }
        if seen.state == "superseded" && before != "superseded" {
            self.tools.server.vault_superseded(&name);
        }
        let unacknowledged = seen.counted.is_some_and(|counted| counted.unacknowledged > 0);
        let remind = unacknowledged && !said.reminded;
        said.reminded = unacknowledged || (said.reminded && seen.counted.is_none());
        self.show_vault(pin);
        self.tell_user(source, &name, seen, remind);
    }

    /// The vaults that a new password is entrusted to, and how many of them have to answer.
    pub(super) fn chosen_vaults(&self, name: Option<&str>) -> Result<(Vec<VaultPin>, u8), Error> {
        match (name, self.config.vaults.threshold) {
            (None, Some(threshold)) => {
                let configured =
                    |pin: &&VaultPin| self.config.vault.iter().any(|vault| vault.name == pin.name);
                Ok((self.pins.iter().filter(configured).cloned().collect(), threshold))
            }
            _ => Ok((vec![self.pin(name)?], 1)),
        }
    }

    /// What several vaults have in common.
    pub(super) fn caution_about(&self, pins: &[VaultPin]) -> Option<String> {
        let found = self.overlaps_of(pins);
        let text = || format!("{}: who can open or lose one can open or lose the other", found.join("; "));
        (!found.is_empty()).then(text)
    }

    fn overlaps_of(&self, pins: &[VaultPin]) -> Vec<String> {
        let known: Vec<Known<'_>> = pins
            .iter()
            .map(|pin| {
                let config = self.config.vault.iter().find(|vault| vault.name == pin.name);
                let operator = config.map_or("", |vault| vault.operator.as_str());
                Known { name: &pin.name, url: &pin.url, operator }
            })
            .collect();
        overlaps(&known)
    }

    /// What this vault has in common with others that guard the same archive, or that a new password would go to.
    fn warnings_about(&self, name: &str) -> Vec<String> {
        let opened = self.sources.values().filter_map(|source| source.opened.as_ref());
        let slots = opened.filter_map(|opened| opened.keys.password_slot());
        let of_slot = |slot: &[u8]| -> Vec<VaultPin> {
            let guards = |pin: &&VaultPin| crate::keyring::pin_of(std::slice::from_ref(*pin), slot).is_some();
            self.pins.iter().filter(guards).cloned().collect()
        };
        let mut groups: Vec<Vec<VaultPin>> = slots.map(of_slot).collect();
        groups.extend(self.config.vaults.threshold.and_then(|_| Some(self.chosen_vaults(None).ok()?.0)));
        let groups = groups.into_iter().filter(|group| group.iter().any(|pin| pin.name == name));
        let mut found: Vec<String> = groups.flat_map(|group| self.overlaps_of(&group)).collect();
        let this = format!(" {name} ");
        found.retain(|text| text.contains(&this));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The vaults of its keyslot by name, and how many of them have to answer: as far as that is known here.
    pub(super) fn vaults_of(&self, source: &Source) -> (Vec<String>, u32) {
        let slot = source
            .opened
            .as_ref()
            .and_then(|opened| Slot::decode(opened.keys.password_slot()?, KdfFloor::AllowWeakKdf).ok());
        let Some(slot) = slot else {
            let known = &source.registration.vault;
            return ((!known.is_empty()).then(|| known.clone()).into_iter().collect(), 0);
        };
        let named = |vault: &VaultPin| {
            let pin = self.pins.iter().find(|pin| pin.identity == vault.identity);
            pin.map(|pin| pin.name.clone())
        };
        (slot.header.vaults.iter().filter_map(named).collect(), u32::from(slot.header.threshold))
    }

    /// Remembers vaults that the user confirmed for an archive that they just opened.
    pub(super) fn confirm_vaults(&mut self, confirmed: Vec<VaultPin>) -> crate::fault::Result<()> {
        if confirmed.is_empty() {
            return Ok(());
        }
        self.change_registry(|registry| {
            for pin in &confirmed {
                let vault = ConfirmedVault { url: pin.url.clone(), identity: pin.identity().to_string() };
                registry.vault.insert(pin.name.clone(), vault);
            }
        })?;
        self.pins.extend(confirmed);
        self.show_vaults();
        Ok(())
    }

    /// What is open here and guarded by this vault.
    fn guarded_by(&self, name: &str) -> Vec<Arc<Opened>> {
        let pins: Vec<VaultPin> = self.pins.iter().filter(|pin| pin.name == name).cloned().collect();
        let opened = self.sources.values().filter_map(|source| source.opened.clone());
        let guards = |opened: &Arc<Opened>| {
            let slot = opened.keys.password_slot();
            slot.is_some_and(|slot| crate::keyring::pin_of(&pins, slot).is_some())
        };
        opened.filter(guards).collect()
    }

    pub(super) fn vault_refresh(&mut self, name: &str, job: NewJob) -> Result<JobId, Error> {
        let pin = self.pin(Some(name))?;
        let (pins, opened, confirm_us) = (self.pins.clone(), self.guarded_by(name), self.confirm_us());
        let work = Work::VaultRefresh { pin, pins, opened, confirm_us };
        Ok(self.run(job, "vault-refresh", None, false, work))
    }

    /// Freezes all vaults of what this one guards: one frozen vault of several stops nobody.
    pub(super) fn vault_freeze(
        &mut self,
        name: &str,
        until_us: Option<u64>,
        job: NewJob,
    ) -> Result<JobId, Error> {
        self.pin(Some(name))?;
        let now_s = crate::clock::now_us() / 1_000_000;
        let until_s = until_us.map(|until_us| until_us / 1_000_000);
        if until_s.is_some_and(|until_s| until_s <= now_s || until_s > now_s + FREEZE_MAX_S) {
            let days = FREEZE_MAX_S / 86_400;
            let text = format!("a freeze ends at a time to come, at most {days} days from now");
            return Err(Error::InvalidArgument(text));
        }
        let (pins, opened, confirm_us) = (self.pins.clone(), self.guarded_by(name), self.confirm_us());
        let operation = if until_s.is_some() { "freeze" } else { "unfreeze" };
        let locked = until_s.is_none() && self.config.vaults.guard_lock.every_ms().is_some();
        let text = "`vaults.guard_lock` is on: the next look freezes the vaults again";
        let caution = locked.then(|| text.to_owned());
        let work = Work::Freeze { pins, opened, until_s, caution, confirm_us };
        Ok(self.run(job, operation, None, false, work))
    }

    pub(super) fn vault_acknowledge(&mut self, name: &str) -> Result<(), Error> {
        self.pin(Some(name))?;
        for opened in self.guarded_by(name) {
            acknowledge(&self.tools.book, &opened.keys).map_err(|fault| fault.error)?;
        }
        for said in self.vaults.said.values_mut() {
            for counted in said.of.values_mut().filter_map(|seen| seen.counted.as_mut()) {
                counted.unacknowledged = 0;
            }
        }
        self.show_vaults();
        Ok(())
    }
}
