//! Vaults as clients see them: what each said of every archive that it guards, in one object.

use std::collections::BTreeMap;
use std::sync::Arc;

use chatkeep_ipc::{Error, JobId, NewJob, VaultState};
use chatkeep_planner::SourceId;
use chatkeep_vault_client::VaultPin;
use chatkeep_vault_protocol::limits::FREEZE_MAX_S;

use super::Service;
use crate::event::{Opened, Work};
use crate::guard::{VaultSeen, acknowledge};

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
    fn shown(&self, pin: &VaultPin) -> VaultState {
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
        self.tools.server.upsert_vault(&pin.name, said.shown(pin));
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
        self.tell_user(&name, seen, remind);
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
        let work = Work::Freeze { pins, opened, until_s, confirm_us };
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
