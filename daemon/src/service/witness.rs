//! When vaults are told the newest entry: after it is in the store, and rarely, because it costs each of them a commit. A
//! backup never waits for it, and its failure is nobody's concern but the next try's.

use std::collections::BTreeMap;

use chatkeep_planner::{Millis, SourceId};

use super::Service;
use super::upkeep::is_due;
use crate::event::Command;
use crate::source::Phase;

/// The first wait after a try that failed, in milliseconds; each is twice as long, up to a day.
const AGAIN_MS: u64 = 10 * 60_000;
const AGAIN_MAX_MS: u64 = 24 * 3_600_000;

/// Tries under way, and those that failed.
#[derive(Default)]
pub(super) struct Witness {
    tries: BTreeMap<SourceId, Try>,
}

#[derive(Default)]
struct Try {
    under_way: bool,
    again: Millis,
    failures: u32,
}

impl Service {
    /// Tells the vaults what is due.
    pub(super) fn tell_vaults(&mut self) {
        let due: Vec<SourceId> =
            self.sources.keys().copied().filter(|number| self.is_to_tell(*number)).collect();
        for number in due {
            self.tell_vaults_of(number, false);
        }
    }

    /// Tells them what they do not know, before the service leaves; it does not wait long for that.
    pub(super) fn tell_vaults_at_last(&mut self) {
        if self.config.vaults.remember_every.every_ms().is_none() {
            return;
        }
        for number in self.sources.keys().copied().collect::<Vec<_>>() {
            self.tell_vaults_of(number, true);
        }
    }

    fn is_to_tell(&self, number: SourceId) -> bool {
        let Some(source) = self.sources.get(&number) else { return false };
        let may =
            self.witness.tries.get(&number).is_none_or(|last| !last.under_way && last.again <= self.now);
        may && is_due(self.config.vaults.remember_every, source.facts.witnessed_us, crate::clock::now_us())
    }

    fn tell_vaults_of(&mut self, number: SourceId, at_last: bool) {
        let Some(source) = self.sources.get(&number) else { return };
        let (Some(opened), Some(log)) = (&source.opened, &source.log) else { return };
        // What is not known to be ours is not told; nor what another password guards just now.
        let ours = source.phase == Phase::Open && log.confirmed && source.key_job.is_none();
        let newer = log.stored.seq > source.facts.witnessed_seq;
        if !ours || !newer || opened.keys.password_slot().is_none() || opened.keys.secret.is_none() {
            return;
        }
        self.witness.tries.entry(number).or_default().under_way = true;
        self.out.push(Command::Remember {
            source: number,
            archive: opened.archive.clone(),
            keys: Box::new(opened.keys.clone()),
            pins: self.pins.clone(),
            head: (log.stored.seq, log.stored.digest),
            at_last,
        });
    }

    /// A try ended.
    pub(super) fn remembered(&mut self, number: SourceId, done: bool) {
        let known = self.witness.tries.entry(number).or_default();
        known.under_way = false;
        if done {
            known.failures = 0;
        } else {
            let wait_ms = AGAIN_MS.checked_shl(known.failures).unwrap_or(AGAIN_MAX_MS).min(AGAIN_MAX_MS);
            known.failures = (known.failures + 1).min(16);
            known.again = Millis(self.now.0 + wait_ms);
        }
        let archive = self.sources.get(&number).and_then(|source| source.registration.archive);
        if let Some(archive) = archive {
            let facts = self.tools.catalogue.facts(&archive);
            self.update(number, |source| source.facts = facts);
        }
    }
}
