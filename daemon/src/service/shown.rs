//! What clients see of the state.

use chatkeep_ipc::{ManagerState, StoreState, VaultState};
use chatkeep_planner::SourceId;

use super::Service;
use crate::event::VaultSeen;
use crate::fault::Fault;

impl Service {
    /// Shows a database as it is now.
    pub(super) fn show(&self, number: SourceId) {
        let Some(source) = self.sources.get(&number) else { return };
        let now_us = crate::clock::now_us();
        let next = self.scheduler.state(number).and_then(|view| view.next_attempt);
        let next_run = next.map_or(0, |at| now_us + at.0.saturating_sub(self.now.0) * 1000);
        let state = source.database_state(self.pause.is_some(), next_run, now_us);
        self.tools.server.upsert_database(&source.id, state, source.encryption_state());
    }

    pub(super) fn show_manager(&self) {
        self.tools.server.set_manager(ManagerState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            paused: self.pause.is_some(),
            key_storage: self.tools.key_store.kind().to_owned(),
            ..ManagerState::default()
        });
    }

    pub(super) fn show_stores(&self) {
        for store in &self.config.store {
            let kind = store.url.split(':').next().unwrap_or_default().to_owned();
            let state = StoreState {
                kind,
                url: store.url.clone(),
                state: "unknown".to_owned(),
                ..StoreState::default()
            };
            self.tools.server.upsert_store(&store.name, state);
        }
    }

    /// Shows what a store just did.
    pub(super) fn saw_store(
        &mut self,
        name: &str,
        fault: Option<&Fault>,
        usage: Option<chatkeep_store::Usage>,
    ) {
        let Some(config) = self.config.store.iter().find(|store| store.name == name) else { return };
        let state = match fault.map(|fault| fault.error.short_name()) {
            None => "ok",
            Some(name) => match name.as_str() {
                "StoreUnreachable" => "unreachable",
                "StoreAuth" => "auth",
                "StoreFull" => "full",
                // Not about the store.
                "WriterFenced" | "WrongSecret" | "Cancelled" => return,
                _ => "error",
            },
        };
        let was_silent = if fault.is_some() {
            self.silent_stores.insert(name.to_owned());
            false
        } else {
            self.silent_stores.remove(name)
        };
        let usage = usage.unwrap_or_default();
        let shown = StoreState {
            kind: config.url.split(':').next().unwrap_or_default().to_owned(),
            url: config.url.clone(),
            state: state.to_owned(),
            bytes_used: usage.used.unwrap_or(0),
            bytes_quota: usage.total.unwrap_or(0),
            last_error: fault.map(Fault::pair).unwrap_or_default(),
            capabilities: Vec::new(),
        };
        self.tools.server.upsert_store(name, shown);
        if was_silent {
            let back: Vec<SourceId> = self
                .sources
                .iter()
                .filter(|(_, source)| source.registration.store == name)
                .map(|(number, _)| *number)
                .collect();
            for source in back {
                self.plan(chatkeep_planner::Event::StoreReachable { source });
            }
        }
    }

    pub(super) fn show_vaults(&mut self) {
        for pin in &self.pins {
            let state = VaultState {
                url: pin.url.clone(),
                state: "unregistered".to_owned(),
                fingerprint: pin.identity().to_string(),
                ..VaultState::default()
            };
            let state = self.vaults.entry(pin.name.clone()).or_insert(state);
            self.tools.server.upsert_vault(&pin.name, state.clone());
        }
    }

    /// Shows what a vault just said.
    pub(super) fn saw_vault(&mut self, seen: &VaultSeen) {
        let Some(state) = self.vaults.get_mut(&seen.name) else { return };
        let was_destroyed = state.state == "destroyed";
        seen.state.clone_into(&mut state.state);
        if let Some(left) = seen.attempts_left {
            state.attempts_left = left;
        }
        if let Some(max) = seen.attempts_max {
            state.attempts_max = max;
        }
        state.retry_after = seen.retry_after;
        if !matches!(seen.state, "unreachable" | "untrusted") {
            state.last_contact = crate::clock::now_us();
        }
        self.tools.server.upsert_vault(&seen.name, state.clone());
        if seen.failed {
            self.tools.server.vault_attempt_failed(&seen.name, state.attempts_left, seen.retry_after);
        }
        if seen.state == "destroyed" && !was_destroyed {
            self.tools.server.vault_destroyed(&seen.name);
        }
    }
}
