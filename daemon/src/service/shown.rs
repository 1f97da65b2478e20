//! What clients see of the state.

use std::collections::BTreeSet;

use chatkeep_ipc::{Error, ManagerState, StoreState};
use chatkeep_planner::{PauseReason, SourceId};
use chatkeep_store::protocol::Caps;

use super::Service;
use crate::desktop::Notice;
use crate::event::Command;
use crate::fault::Fault;
use crate::source::Source;

impl Service {
    /// Shows a database as it is now.
    pub(super) fn show(&self, number: SourceId) {
        let Some(source) = self.sources.get(&number) else { return };
        let now_us = crate::clock::now_us();
        let next = self.scheduler.state(number).and_then(|view| view.next_attempt);
        let next_run = next.map_or(0, |at| now_us + at.0.saturating_sub(self.now.0) * 1000);
        let held = !source.uploads.is_empty() && self.pause_of(&source.registration.store).is_some();
        let state = source.database_state(self.pause.is_some() || held, next_run, now_us);
        let mut encryption = source.encryption_state();
        (encryption.vaults, encryption.threshold) = self.vaults_of(source);
        self.tools.server.upsert_database(&source.id, state, encryption);
    }

    pub(super) fn show_manager(&self) {
        self.tools.server.set_manager(ManagerState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            paused: self.pause.is_some(),
            pause_reasons: self.pause_reasons(),
            key_storage: self.tools.key_store.kind().to_owned(),
            ..ManagerState::default()
        });
    }

    /// Why some store is not sent to, each reason once.
    fn pause_reasons(&self) -> Vec<String> {
        let reasons: BTreeSet<PauseReason> =
            self.managed.values().filter_map(|store| store.gate().reason()).collect();
        reasons.into_iter().map(|reason| reason.as_str().to_owned()).collect()
    }

    pub(super) fn show_stores(&mut self) {
        for store in self.config.store.clone() {
            let state = StoreState { state: "unknown".to_owned(), ..self.store_state(&store) };
            self.tools.server.upsert_store(&store.name, state);
            let why = self.managed.get(&store.name).and_then(|managed| managed.why_unusable());
            if let Some(why) = why.map(str::to_owned) {
                self.saw_store(&store.name, Some(&Error::InvalidArgument(why).into()), None);
            }
        }
    }

    /// Shows a store anew, with what it last said.
    pub(super) fn show_store(&self, name: &str) {
        let Some(config) = self.config.store.iter().find(|store| store.name == name) else { return };
        let mut state = self.store_state(config);
        if let Some(seen) = self.seen_stores.get(name) {
            state.state.clone_from(&seen.state);
            (state.bytes_used, state.bytes_quota) = (seen.bytes_used, seen.bytes_quota);
            state.last_error.clone_from(&seen.last_error);
        }
        if let Some(fault) = self.managed.get(name).and_then(|store| store.lock_fault()) {
            "error".clone_into(&mut state.state);
            let text = format!("objects are not locked against deletion, though `retain` says so: {fault}");
            state.last_error = (Error::Unsupported(String::new()).short_name(), text);
        }
        if state.pause_reason.is_empty() && state.state.is_empty() {
            "unknown".clone_into(&mut state.state);
        } else if !state.pause_reason.is_empty() {
            "paused".clone_into(&mut state.state);
        }
        self.tools.server.upsert_store(name, state);
    }

    /// What is known of a store without asking it.
    fn store_state(&self, config: &crate::config::Store) -> StoreState {
        let spent = self.spent(&config.name);
        let has = |source: &&Source| {
            let registration = &source.registration;
            registration.store == config.name || registration.copies.contains(&config.name)
        };
        let kept = self.sources.values().filter(has);
        let kept = kept.map(|source| source.points.bytes()).sum();
        let cost = config.price_list().map(|prices| prices.cost(&spent, kept));
        StoreState {
            kind: config.scheme().to_owned(),
            url: config.url.clone(),
            pause_reason: self.pause_of(&config.name).map_or("", PauseReason::as_str).to_owned(),
            month_requests: spent.requests(),
            month_bytes: spent.bytes(),
            month_cost: cost.map_or(-1, |cost| i64::try_from(cost).unwrap_or(i64::MAX)),
            capabilities: self.capabilities_of(&config.name),
            ..StoreState::default()
        }
    }

    /// The words of plugin protocol 1 for what a store says it can do.
    fn capabilities_of(&self, name: &str) -> Vec<String> {
        let Some(store) = self.stores.get(name) else { return Vec::new() };
        let can = store.capabilities();
        let caps = Caps::from(can);
        let mut words: Vec<String> = [
            ("create", caps.create),
            ("read-after-write", caps.read_after_write),
            ("list-after-write", caps.list_after_write),
            ("delete", caps.delete),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", value?)))
        .collect();
        let switches = [("range", can.range), ("usage", can.usage), ("retain", can.retain)];
        let walls = self.managed.get(name).and_then(|managed| managed.plugin()?.walls());
        words.extend(walls.map(|walls| format!("walls={walls}")));
        words.extend(switches.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()));
        words
    }

    /// Shows what a store just did.
    pub(super) fn saw_store(
        &mut self,
        name: &str,
        fault: Option<&Fault>,
        usage: Option<chatkeep_store::Usage>,
    ) {
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
        let seen = self.seen_stores.entry(name.to_owned()).or_default();
        let news = seen.state != state;
        state.clone_into(&mut seen.state);
        seen.last_error = fault.map(Fault::pair).unwrap_or_default();
        if let Some(usage) = usage {
            (seen.bytes_used, seen.bytes_quota) = (usage.used.unwrap_or(0), usage.total.unwrap_or(0));
        }
        if let Some(fault) = fault.filter(|_| news) {
            self.tell_of_store(name, state, &fault.error.text());
        }
        self.show_store(name);
        if was_silent {
            self.store_is_back(name);
        }
    }

    /// Tells the user what only the user can mend. Once: until it was all right again in between.
    fn tell_of_store(&mut self, name: &str, state: &str, text: &str) {
        let (summary, remedy) = match state {
            "auth" => (
                format!("The store {name} wants you to sign in again"),
                "Nothing is backed up to it until then.",
            ),
            "full" => {
                (format!("The store {name} is full"), "Nothing more is backed up to it until there is room.")
            }
            "error" => (format!("The store {name} cannot be used"), "Nothing is backed up to it until then."),
            _ => return,
        };
        let notice = Notice {
            about: format!("store {name}"),
            vault: String::new(),
            summary,
            body: format!("{text}\n{remedy}"),
            buttons: Vec::new(),
        };
        self.out.push(Command::Notify(Box::new(notice)));
    }
}
