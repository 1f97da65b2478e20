//! Databases that the configuration names are registered like those of apps; and which of their stores is the main one.
//!
//! The first store of a source has its log. Another one takes its place when it has every point that this device knows,
//! so that no history is lost by an edit of a file; until then it is a copy that gets everything.

use chatkeep_format::ArchiveId;
use chatkeep_planner::SourceId;
use tracing::{info, warn};

use super::Service;
use crate::catalogue::CopyId;
use crate::config;
use crate::registry::Registration;

/// The stores of a source as they are to be.
struct Stores {
    main: String,
    copies: Vec<String>,
    /// The store that is to be the main one, and why it is not yet.
    waits: Option<(String, String)>,
}

impl Service {
    /// Takes over the databases of the configuration; those that are here already are changed.
    pub(super) fn add_configured(&mut self) {
        let mut registry = self.registry.clone();
        let mut errors = Vec::new();
        self.exchanges.clear();
        for source in self.config.source.clone() {
            let wanted = source.stores(&self.config.store);
            let entry = registry.database.entry(source.name.clone()).or_insert_with(|| Registration {
                display_name: source.name.clone(),
                app_id: String::new(),
                path: source.path.clone(),
                more_databases: Vec::new(),
                attachments: Vec::new(),
                store: wanted.first().cloned().unwrap_or_default(),
                copies: Vec::new(),
                archive: None,
                vault: String::new(),
            });
            entry.path.clone_from(&source.path);
            (entry.more_databases, entry.attachments) =
                (source.databases.clone(), source.attachments.clone());
            let stores = self.stores_of(entry, &wanted);
            if let (Some((store, why)), Some(archive)) = (stores.waits, entry.archive) {
                errors.push(format!("source `{}`: {why}", source.name));
                self.exchanges.insert(archive, store);
            }
            if let Some(archive) = entry.archive.filter(|_| entry.store != stores.main) {
                let copy = CopyId::new(&archive, &stores.main);
                if let Err(error) = self.tools.catalogue.becomes_main(&archive, &copy, &entry.store) {
                    warn!(%error, "the cache cannot be written");
                    continue;
                }
            }
            (entry.store, entry.copies) = (stores.main, stores.copies);
        }
        // A source that is not in the configuration any more has one store again.
        for (name, known) in &mut registry.database {
            if !self.config.source.iter().any(|source| source.name == *name) {
                known.copies.clear();
            }
        }
        if registry != self.registry
            && let Err(fault) = self.change_registry(|known| *known = registry)
        {
            warn!(error = %fault.error.text(), "the registrations could not be saved");
        }
        self.tools.server.update_manager(|manager| manager.config_errors = errors);
    }

    fn stores_of(&self, known: &Registration, wanted: &[String]) -> Stores {
        let without = |main: &str| wanted.iter().filter(|store| *store != main).cloned().collect();
        let (Some(first), Some(archive)) = (wanted.first(), known.archive) else {
            let main = wanted.first().cloned().unwrap_or_default();
            return Stores { copies: without(&main), main, waits: None };
        };
        if *first == known.store {
            return Stores { main: first.clone(), copies: without(first), waits: None };
        }
        match self.what_lacks(&archive, first, wanted.contains(&known.store)) {
            None => {
                info!(store = first, "the main store is exchanged: this one has everything");
                Stores { main: first.clone(), copies: without(first), waits: None }
            }
            Some(lacks) => {
                let main = known.store.clone();
                let why = format!(
                    "the store `{first}` is behind: {lacks}; until it has everything, `{main}` stays the main store"
                );
                Stores { copies: without(&main), main, waits: Some((first.clone(), why)) }
            }
        }
    }

    /// What a copy lacks to be the main store; nothing when it can be. It has to have every point if the main store stays a
    /// copy, for that will be what the main store is. One that is given up cannot be waited for: it may be gone.
    fn what_lacks(&self, archive: &ArchiveId, store: &str, everything: bool) -> Option<String> {
        let facts = self.tools.catalogue.copy_facts(&CopyId::new(archive, store));
        let head = self.tools.catalogue.head(archive).ok().flatten().map_or(0, |head| head.seq);
        match facts.newest_seq {
            _ if facts.listed_us == 0 => Some("nothing is known of what is there".to_owned()),
            newest if newest < head => {
                Some(format!("its newest point is {newest}, and {head} is the newest"))
            }
            _ if facts.lacking > 0 && everything => {
                Some(format!("it lacks {} recovery points", facts.lacking))
            }
            _ => None,
        }
    }

    /// A copy was brought up to date: if it is to be the main store, and has everything now, it is.
    pub(super) fn exchange_stores(&mut self, number: SourceId) {
        let archive = self.sources.get(&number).and_then(|source| source.registration.archive);
        let Some((archive, store)) = archive.and_then(|id| Some((id, self.exchanges.get(&id)?.clone())))
        else {
            return;
        };
        let Some(source) = self.sources.get(&number) else { return };
        let (id, before) = (source.id.clone(), source.registration.store.clone());
        let configured = self.config.source.iter().find(|configured| configured.name == id);
        let everything = configured.is_some_and(|it| it.stores(&self.config.store).contains(&before));
        if self.what_lacks(&archive, &store, everything).is_some() {
            return;
        }
        self.add_configured();
        let Some(registration) = self.registry.database.get(&id).cloned() else { return };
        self.update(number, |source| source.registration = registration);
        self.restart(number);
    }
}

impl config::Source {
    /// Its stores, the main one first.
    pub fn stores(&self, all: &[config::Store]) -> Vec<String> {
        let named = self.store.iter().chain(&self.stores).cloned().collect::<Vec<_>>();
        if named.is_empty() {
            all.first().map(|store| store.name.clone()).into_iter().collect()
        } else {
            named
        }
    }
}
