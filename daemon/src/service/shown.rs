//! What clients see of the state.

use chatkeep_ipc::{ManagerState, StoreState};
use chatkeep_planner::SourceId;

use super::Service;
use crate::fault::Fault;

impl Service {
    /// Shows a database as it is now.
    pub(super) fn show(&self, number: SourceId) {
        let Some(source) = self.sources.get(&number) else { return };
        let now_us = crate::clock::now_us();
        let next = self.scheduler.state(number).and_then(|view| view.next_attempt);
        let next_run = next.map_or(0, |at| now_us + at.0.saturating_sub(self.now.0) * 1000);
        let state = source.database_state(self.pause.is_some(), next_run, now_us);
        let mut encryption = source.encryption_state();
        (encryption.vaults, encryption.threshold) = self.vaults_of(source);
        self.tools.server.upsert_database(&source.id, state, encryption);
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
            self.copies_reachable(name);
        }
    }
}
