//! One look at everything the service shows: a single call, then plain structs.

use std::collections::HashMap;

use chatkeep_ipc::names::ROOT;
use chatkeep_ipc::proxy;
use zbus::Connection;
use zbus::zvariant::{OwnedObjectPath, OwnedValue};

use crate::explain::{Failure, Result};

/// Properties of one interface of one object.
pub(crate) struct Object {
    pub(crate) path: OwnedObjectPath,
    properties: HashMap<String, OwnedValue>,
}

impl Object {
    /// A property, or the type's default if the service does not have it.
    pub(crate) fn get<T>(&self, name: &str) -> T
    where
        T: TryFrom<OwnedValue> + Default,
    {
        let value = self.properties.get(name).and_then(|value| value.try_clone().ok());
        value.and_then(|value| T::try_from(value).ok()).unwrap_or_default()
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.get(name)
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.get(name)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name)
    }

    /// Short error name and text; empty when there is none.
    pub(crate) fn error(&self, name: &str) -> (String, String) {
        let value = self.properties.get(name).and_then(|value| value.try_clone().ok());
        value.and_then(|value| <(String, String)>::try_from(value).ok()).unwrap_or_default()
    }

    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        let value = self.properties.get(name).and_then(|value| value.try_clone().ok());
        value.and_then(|value| Vec::<String>::try_from(value).ok()).unwrap_or_default()
    }

    /// Details by name.
    pub(crate) fn map(&self, name: &str) -> HashMap<String, OwnedValue> {
        let value = self.properties.get(name).and_then(|value| value.try_clone().ok());
        value.and_then(|value| HashMap::try_from(value).ok()).unwrap_or_default()
    }

    /// Another object's path.
    pub(crate) fn path_in(&self, name: &str) -> Option<OwnedObjectPath> {
        let value = self.properties.get(name)?.try_clone().ok()?;
        OwnedObjectPath::try_from(value).ok().filter(|path| path.as_str() != "/")
    }
}

/// A database with its encryption.
pub(crate) struct Database {
    pub(crate) state: Object,
    pub(crate) encryption: Object,
}

impl Database {
    pub(crate) fn id(&self) -> String {
        self.state.text("Id")
    }
}

/// Everything.
pub(crate) struct View {
    pub(crate) manager: Object,
    pub(crate) databases: Vec<Database>,
    pub(crate) stores: Vec<Object>,
    pub(crate) vaults: Vec<Object>,
}

impl View {
    pub(crate) async fn read(connection: &Connection) -> Result<Self> {
        let mut objects =
            proxy::object_manager(connection).await?.get_managed_objects().await.map_err(|error| {
                Failure::from(zbus::Error::from(error)) // what a bus without the service says
            })?;
        // the root does not list itself
        let properties = zbus::fdo::PropertiesProxy::builder(connection)
            .destination(chatkeep_ipc::names::BUS_NAME)?
            .path(ROOT)?
            .build()
            .await?;
        let name = interface("Manager");
        let name = zbus::names::InterfaceName::try_from(name.as_str()).map_err(zbus::Error::from)?;
        let manager =
            properties.get_all(name).await.map_err(|error| Failure::from(zbus::Error::from(error)))?;
        let root = OwnedObjectPath::try_from(ROOT).expect("a constant path");
        let mut paths: Vec<OwnedObjectPath> = objects.keys().cloned().collect();
        paths.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        let mut view = Self {
            manager: Object { path: root, properties: manager },
            databases: Vec::new(),
            stores: Vec::new(),
            vaults: Vec::new(),
        };
        for path in paths {
            let Some(mut interfaces) = objects.remove(&path) else { continue };
            let mut take = |name: &str| {
                let name = interface(name);
                let key = interfaces.keys().find(|key| key.as_str() == name)?.clone();
                Some(Object { path: path.clone(), properties: interfaces.remove(&key)? })
            };
            if let (Some(state), Some(encryption)) = (take("Database"), take("Encryption")) {
                view.databases.push(Database { state, encryption });
            } else if let Some(store) = take("Store") {
                view.stores.push(store);
            } else if let Some(vault) = take("Vault") {
                view.vaults.push(vault);
            }
        }
        Ok(view)
    }

    /// The database with this identifier, or with this display name if only one has it.
    pub(crate) fn database(&self, name: &str) -> Result<&Database> {
        if let Some(database) = self.databases.iter().find(|database| database.id() == name) {
            return Ok(database);
        }
        let mut named = self.databases.iter().filter(|database| database.state.text("DisplayName") == name);
        match (named.next(), named.next()) {
            (Some(database), None) => Ok(database),
            (Some(_), Some(_)) => Err(Failure::said(
                &format!("more than one database is called {name}"),
                "use its identifier from `chatkeep status`",
            )),
            _ => Err(Failure::said(
                &format!("there is no database {name}"),
                "`chatkeep status` lists them; `chatkeep register FILE` adds one",
            )),
        }
    }

    pub(crate) fn store(&self, id: &str) -> Result<&Object> {
        let found = self.stores.iter().find(|store| store.text("Id") == id);
        found.ok_or_else(|| {
            Failure::said(&format!("there is no store {id}"), "stores are set up in the configuration file")
        })
    }

    /// The vault that holds a database's key, if any does.
    pub(crate) fn vault_of(&self, database: &Database) -> Option<&Object> {
        let path = database.encryption.path_in("Vault")?;
        self.vaults.iter().find(|vault| vault.path == path)
    }
}

fn interface(name: &str) -> String {
    format!("{}.{name}", chatkeep_ipc::names::BUS_NAME)
}
