//! Which stores may be sent to now: the line, the battery and the budget of the month, looked at after every event.

use std::collections::BTreeMap;
use std::sync::Arc;

use chatkeep_planner::{
    Conditions, Event as Happened, Gate, Millis, Month, PauseReason, SourceId, Spent, gate,
};
use tracing::info;

use super::Service;
use crate::stores::Managed;

/// What was spent is written down this often, in milliseconds; a crash forgets so much of it.
const NOTE_EVERY_MS: u64 = 60_000;

/// What is known of the machine and of what was spent.
#[derive(Default)]
pub(super) struct Line {
    conditions: Conditions,
    stores: BTreeMap<String, Spending>,
    note_at: Millis,
}

/// Of one store.
#[derive(Default)]
struct Spending {
    month: u32,
    spent: Spent,
    changed: bool,
    /// Why objects are not locked, as it is shown.
    lock_fault: Option<String>,
    /// What the planner was told last.
    wait_ms: u64,
}

impl Service {
    /// The machine said something of itself.
    pub(super) fn conditions(&mut self, conditions: Conditions) {
        self.line.conditions = conditions;
        self.regulate();
    }

    /// Counts what was asked of every store, opens and closes their gates, and spares those that are to be spared.
    pub(super) fn regulate(&mut self) {
        let month = Month::of(crate::clock::now_us() / 1000);
        for (name, store) in self.managed.clone() {
            self.count(&name, &store, month);
            let Some(config) = self.config.store.iter().find(|config| config.name == name) else { continue };
            let (budget, policy) = (config.budget(), config.pause_policy());
            let spending = &self.line.stores[&name];
            let left = budget.is_left(&spending.spent);
            let wait_ms = budget.wait_ms(&spending.spent, month);
            let new = gate(self.line.conditions, policy, left, self.is_asked_for(&name));
            let old = store.gate();
            if new != old {
                info!(store = name, reason = new.reason().map(PauseReason::as_str), "what may be sent");
                store.set_gate(new);
                self.show_store(&name);
                self.show_manager();
                let opens = matches!((old, new), (Gate::Closed(_), _) | (_, Gate::Open));
                if opens {
                    self.store_is_back(&name);
                }
            }
            self.spare(&name, wait_ms);
            let lock_fault = store.lock_fault();
            let spending = self.line.stores.entry(name.clone()).or_default();
            if spending.lock_fault != lock_fault {
                spending.lock_fault = lock_fault;
                self.show_store(&name);
            }
        }
        if self.now >= self.line.note_at {
            self.line.note_at = Millis(self.now.0 + NOTE_EVERY_MS);
            self.note_spending();
        }
    }

    /// Why nothing is sent to a store, if that is so.
    pub(super) fn pause_of(&self, store: &str) -> Option<PauseReason> {
        self.managed.get(store)?.gate().reason()
    }

    /// The planner knows nothing of it any more: a source was added.
    pub(super) fn spare_anew(&mut self) {
        for spending in self.line.stores.values_mut() {
            spending.wait_ms = 0;
        }
    }

    /// What was asked of a store this month.
    pub(super) fn spent(&self, store: &str) -> Spent {
        self.line.stores.get(store).map(|spending| spending.spent).unwrap_or_default()
    }

    /// Writes down and shows what was spent, where it changed.
    pub(super) fn note_spending(&mut self) {
        let mut changed = Vec::new();
        for (name, spending) in &mut self.line.stores {
            if std::mem::take(&mut spending.changed) {
                self.tools.catalogue.put_spent(name, spending.month, spending.spent);
                changed.push(name.clone());
            }
        }
        for name in &changed {
            self.show_store(name);
        }
    }

    fn count(&mut self, name: &str, store: &Arc<Managed>, month: Month) {
        if !self.line.stores.contains_key(name) {
            let noted = self.tools.catalogue.spent(name).filter(|(number, _)| *number == month.number);
            let spent = noted.map(|(_, spent)| spent).unwrap_or_default();
            let known = Spending { month: month.number, spent, ..Spending::default() };
            self.line.stores.insert(name.to_owned(), known);
        }
        let Some(spending) = self.line.stores.get_mut(name) else { return };
        // Also when a clock goes back over the end of a month: then it is counted anew, which sends more and loses nothing.
        if spending.month != month.number {
            (spending.month, spending.spent) = (month.number, Spent::default());
        }
        let more = store.take_spent();
        if more != Spent::default() {
            spending.spent.add(more);
            spending.changed = true;
        }
    }

    /// Somebody waits for a backup that goes to it.
    fn is_asked_for(&self, store: &str) -> bool {
        self.sources.values().any(|source| source.registration.store == store && !source.waiters.is_empty())
    }

    fn sources_of(&self, store: &str) -> Vec<SourceId> {
        let of_store = self.sources.iter().filter(|(_, source)| source.registration.store == store);
        of_store.map(|(number, _)| *number).collect()
    }

    /// What waited for the store goes on.
    pub(super) fn store_is_back(&mut self, store: &str) {
        for source in self.sources_of(store) {
            self.plan(Happened::StoreReachable { source });
        }
        self.copies_reachable(store);
    }

    /// Lets captures that go to a store wait, so that its budget lasts.
    fn spare(&mut self, store: &str, wait_ms: u64) {
        let Some(spending) = self.line.stores.get_mut(store) else { return };
        let before = std::mem::replace(&mut spending.wait_ms, wait_ms);
        // While nothing is spent the wait only becomes shorter, as the planner knows.
        if wait_ms > before || wait_ms == 0 && before > 0 {
            for source in self.sources_of(store) {
                self.plan(Happened::Spare { source, wait_ms });
            }
        }
    }
}
