//! The service over a small world: events in, commands out, on a clock of the test.

use std::path::Path;
use std::sync::Arc;

use chatkeep_ipc::{Server, Settings};
use chatkeep_planner::{Millis, SourceId};
use chatkeep_store_host::Spawn;
use chatkeepd::config::Config;
use chatkeepd::courier::Courier;
use chatkeepd::event::{Command, Event};
use chatkeepd::guard::Book;
use chatkeepd::jobs::Tools;
use chatkeepd::keys::KeyFiles;
use chatkeepd::paths::Paths;
use chatkeepd::registry::{Registration, Registry};
use chatkeepd::service::Service;
use chatkeepd::stores::Opener;

use super::{Running, World};

/// A service that has begun, and to which `source` was opened. `settings` come first in its configuration, `tables` last.
pub(crate) fn opened(
    world: &World,
    running: Running,
    source: SourceId,
    settings: &str,
    tables: &str,
) -> Service {
    opened_with_commands(world, running, source, settings, tables).0
}

/// The same, with what it wants to be done then.
pub(crate) fn opened_with_commands(
    world: &World,
    running: Running,
    source: SourceId,
    settings: &str,
    tables: &str,
) -> (Service, Vec<Command>) {
    let path = |name: &str| world.folder.path().join(name);
    for name in ["data", "elsewhere"] {
        std::fs::create_dir_all(path(name)).unwrap();
    }
    let mut registry = Registry::default();
    let registration = Registration {
        display_name: "chat".to_owned(),
        app_id: String::new(),
        path: path("chat.db"),
        more_databases: Vec::new(),
        attachments: Vec::new(),
        store: "disk".to_owned(),
        copies: Vec::new(),
        archive: Some(world.archive().id),
        vault: if tables.is_empty() { String::new() } else { "home".to_owned() },
    };
    registry.database.insert("chat".to_owned(), registration);
    registry.save(&path("data/registrations.toml")).unwrap();
    // a folder has no locks
    let url = if tables.starts_with("retain") {
        "memory:".to_owned()
    } else {
        format!("file://{}", path("elsewhere").display())
    };
    let text = format!("{settings}\n[[store]]\nname = 'disk'\nurl = '{url}'\n{tables}");
    let (calls, _) = tokio::sync::mpsc::channel(1);
    let paths =
        Paths { config: path("config.toml"), data: path("data"), state: path("state"), runtime: path("run") };
    let key_store = Arc::new(KeyFiles::new(path("data")));
    let opener = Opener::with_launcher(&paths, key_store.clone(), Arc::new(Spawn::new()));
    let tools = Tools {
        catalogue: running.catalogue.clone(),
        opener: Arc::new(opener),
        key_store,
        book: Book::new(Arc::new(Courier::new(path("courier.sock"))), running.catalogue.clone()),
        notify: false,
        server: Server::new(calls, Settings::default()),
        paths: Arc::new(paths),
    };
    let config = Config::parse(&text, Path::new("config.toml")).unwrap();
    let mut service = Service::new(tools, config, path("config.toml")).unwrap();
    service.begin(Millis(0));
    let event = Event::Opened { source, result: Ok(Some(Box::new(running.opened))) };
    let commands = service.handle(event, Millis(1));
    (service, commands)
}
