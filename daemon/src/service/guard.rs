//! When the vaults are looked at, and what the user is told of it. Whatever a look finds or fails to find, no setting and no
//! key is changed by it.

use std::collections::BTreeMap;

use chatkeep_format::ArchiveId;
use chatkeep_ipc::NewJob;
use chatkeep_planner::{Millis, SourceId};
use rand_core::{OsRng, RngCore as _};

use super::Service;
use crate::desktop::{Button, Notice};
use crate::event::Command;
use crate::guard::{CONFIRM_US, Look, LookOrder, VaultSeen};
use crate::source::Phase;
use crate::witness::Compared;

/// The first look comes so long after an archive was opened, at the latest, in milliseconds: a login has enough to do.
const FIRST_AFTER_MS: u64 = 60_000;
/// The first wait after a look that reached no vault, in milliseconds; each is twice as long, up to that between two looks.
const AGAIN_MS: u64 = 120_000;
/// Between two comparisons of the store with what the vaults know, in milliseconds: a day. It costs them no commit.
const COMPARE_MS: u64 = 24 * 3_600_000;
/// How long a freeze from a notification lasts, in µs: 7 days, enough to come home and change the password.
const PRESSED_US: u64 = 7 * 86_400 * 1_000_000;

/// When which source is looked at.
#[derive(Default)]
pub(super) struct Guard {
    watches: BTreeMap<SourceId, Watch>,
}

#[derive(Default)]
struct Watch {
    due: Millis,
    /// The store is compared with the vaults with the first look after this.
    compare: Millis,
    looking: bool,
    failures: u32,
}

impl Service {
    /// An archive was opened.
    pub(super) fn guard_begins(&mut self, number: SourceId) {
        let Some(every_ms) = self.config.vaults.look_every.every_ms() else { return };
        let due = Millis(self.now.0 + about(every_ms.min(FIRST_AFTER_MS)));
        let watch = self.guard.watches.entry(number).or_default();
        (watch.due, watch.compare) = (due, Millis(0));
    }

    /// Something happened at its vaults: what they count now is looked at.
    pub(super) fn look_soon(&mut self, number: Option<SourceId>) {
        if let Some(watch) = number.and_then(|number| self.guard.watches.get_mut(&number)) {
            watch.due = self.now;
        }
    }

    /// See [`CONFIRM_US`]; no longer than it takes until the next look.
    pub(super) fn confirm_us(&self) -> u64 {
        let every_ms = self.config.vaults.look_every.every_ms();
        every_ms.map_or(CONFIRM_US, |ms| ms.saturating_mul(1000).min(CONFIRM_US))
    }

    pub(super) fn next_look(&self) -> Option<Millis> {
        self.config.vaults.look_every.every_ms()?;
        let waiting = self.guard.watches.iter().filter(|(number, watch)| {
            !watch.looking && self.sources.get(number).is_some_and(|source| source.opened.is_some())
        });
        waiting.map(|(_, watch)| watch.due).min()
    }

    /// Begins the looks that are due. A pause of backups is none of the guard.
    pub(super) fn watch_vaults(&mut self) {
        let Some(every_ms) = self.config.vaults.look_every.every_ms() else { return };
        self.guard.watches.retain(|number, _| self.sources.contains_key(number));
        let (now, confirm_us) = (self.now, self.confirm_us());
        let lock_s = self.config.vaults.guard_lock.every_ms().map(|ms| ms / 1000);
        for (number, watch) in &mut self.guard.watches {
            if watch.looking || watch.due > now {
                continue;
            }
            watch.due = Millis(now.0 + about(every_ms));
            let source = &self.sources[number];
            let open = matches!(source.phase, Phase::Open | Phase::Blocked) && source.key_job.is_none();
            let Some(opened) = source.opened.as_ref().filter(|_| open) else { continue };
            if opened.keys.password_slot().is_none() || opened.keys.secret.is_none() {
                continue;
            }
            watch.looking = true;
            let (archive, keys) = (opened.archive.clone(), opened.keys.clone());
            let check_store = watch.compare <= now;
            let order = LookOrder { archive, keys, pins: self.pins.clone(), lock_s, confirm_us, check_store };
            self.out.push(Command::Guard { source: *number, order: Box::new(order) });
        }
    }

    /// A look ended.
    pub(super) fn guarded(&mut self, number: SourceId, look: Option<Look>) {
        let every_ms = self.config.vaults.look_every.every_ms().unwrap_or(u64::MAX);
        let confirm_ms = self.confirm_us() / 1000;
        let now = self.now;
        let Some(watch) = self.guard.watches.get_mut(&number) else { return };
        watch.looking = false;
        let Some(look) = look else { return };
        if look.reached {
            watch.failures = 0;
        } else {
            let wait_ms = AGAIN_MS.checked_shl(watch.failures).unwrap_or(u64::MAX).min(every_ms);
            watch.failures = (watch.failures + 1).min(16);
            watch.due = Millis(now.0.saturating_add(about(wait_ms)));
        }
        if look.again {
            watch.due = watch.due.min(Millis(now.0 + confirm_ms + 1));
        }
        if look.store != Compared::Not {
            watch.compare = Millis(now.0 + about(COMPARE_MS));
        }
        self.compared(number, look.store);
        for seen in &look.vaults {
            self.saw_vault(Some(number), seen);
        }
    }

    /// Vaults were looked at by a job.
    pub(super) fn looked(&mut self, looks: Vec<(ArchiveId, Look)>) {
        for (archive, look) in looks {
            let of = self.sources.iter().find(|(_, source)| source.registration.archive == Some(archive));
            let number = of.map(|(number, _)| *number);
            if look.again {
                let soon = Millis(self.now.0 + self.confirm_us() / 1000 + 1);
                if let Some(watch) = number.and_then(|number| self.guard.watches.get_mut(&number)) {
                    watch.due = watch.due.min(soon);
                }
            }
            for seen in &look.vaults {
                self.saw_vault(number, seen);
            }
            if let Some(number) = number {
                self.compared(number, look.store);
            }
        }
    }

    /// The store was compared with what the vaults know.
    pub(super) fn compared(&mut self, number: SourceId, store: Compared) {
        let older = match store {
            Compared::Not => return,
            Compared::Whole => None,
            Compared::Older(text) => Some(text),
        };
        let Some(source) = self.sources.get_mut(&number).filter(|source| source.older != older) else {
            return;
        };
        if let Some(text) = &older {
            tracing::warn!(database = %source.id, text, "the store shows less than a vault knows");
        }
        self.update(number, |source| source.older = older);
    }

    /// Tells the user, wherever that is, what he must act on.
    /// With `remind`, also of what nobody acknowledged before the service was started.
    pub(super) fn tell_user(
        &mut self,
        source: Option<SourceId>,
        vault: &str,
        seen: &VaultSeen,
        remind: bool,
    ) {
        // One attempt at a password shows at several vaults, one after the other: it is told once.
        let source = source.and_then(|number| self.sources.get(&number));
        let about = source.map_or_else(|| vault.to_owned(), |source| source.id.clone());
        let left = seen.attempts_left.unwrap_or(0);
        let unacknowledged = seen.counted.map_or(0, |counted| counted.unacknowledged);
        if seen.new_elsewhere > 0 {
            tracing::warn!(
                vault,
                new = seen.new_elsewhere,
                left,
                "attempts that were not made on this device"
            );
            self.tools.server.vault_attempt_elsewhere(vault, seen.new_elsewhere, left);
        }
        if seen.new_elsewhere > 0 || remind {
            let tried = match unacknowledged {
                1 => "a wrong password that was not tried on this device".to_owned(),
                n => format!("{n} wrong passwords that were not tried on this device"),
            };
            let body = format!(
                "The vault {vault} counted {tried}. {left} attempts are left. If it was not you elsewhere, somebody has \
                 a copy of your keyslot: freeze the vault, then change the password."
            );
            self.notify((&about, vault), "Somebody tries the password of your backups", body, &Button::ALL);
        }
        if seen.news && seen.state == "destroyed" {
            let body = format!(
                "After the last attempt the vault {vault} erased its part of the key. Set a new password \
                 (chatkeep encryption change-password), while this device has the key."
            );
            self.notify((&about, vault), "The password of your backups opens nothing any more", body, &[]);
        }
        if seen.news && seen.state == "superseded" {
            let body = format!(
                "The vault {vault} knows another password of your backups. If it was not you who changed it on another \
                 device, look there. Unlock here with the new one."
            );
            self.notify(
                (&about, vault),
                "The password of your backups was changed on another device",
                body,
                &[],
            );
        }
    }

    fn notify(&mut self, (about, vault): (&str, &str), summary: &str, body: String, buttons: &[Button]) {
        let (about, vault) = (about.to_owned(), vault.to_owned());
        let (summary, buttons) = (summary.to_owned(), buttons.to_vec());
        self.out.push(Command::Notify(Box::new(Notice { about, vault, summary, body, buttons })));
    }

    /// Somebody pressed a button of a notification.
    pub(super) fn pressed(&mut self, vault: &str, button: Button) {
        let job = || NewJob { id: self.tools.server.new_job_id(), started_by: "notification".to_owned() };
        let done = match button {
            Button::Freeze => {
                let (job, until_us) = (job(), crate::clock::now_us() + PRESSED_US);
                self.vault_freeze(vault, Some(until_us), job).map(drop)
            }
            Button::Acknowledge => self.vault_acknowledge(vault),
        };
        if let Err(error) = done {
            tracing::warn!(vault, error = %error.text(), "what a notification asked for cannot be done");
        }
    }
}

/// Give or take a fifth: the vault's clients do not all come at once.
fn about(ms: u64) -> u64 {
    let fifth = ms / 5;
    ms - fifth + OsRng.next_u64() % (2 * fifth + 1)
}
