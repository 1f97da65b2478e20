//! Which databases apps and people registered: `registrations.toml` in the data folder, written by the service alone.
//!
//! Small, and the one thing beside the keys that cannot be made anew from the store, so it is written like a
//! document (new file, synced, renamed) and not kept in the cache.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use chatkeep_format::ArchiveId;
use serde::{Deserialize, Serialize};

/// One watched database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// As shown to people.
    pub display_name: String,
    /// The app it belongs to, if the caller said.
    #[serde(default)]
    pub app_id: String,
    /// The database file.
    pub path: PathBuf,
    /// Further databases of the same app: all go into one entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_databases: Vec<PathBuf>,
    /// Folders of attachments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<PathBuf>,
    /// Name of the store.
    pub store: String,
    /// Names of further stores, each with a copy of the archive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<String>,
    /// Archive in the store; none until encryption was turned on.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "archive_text")]
    pub archive: Option<ArchiveId>,
    /// Name of the vault that guards the password, if one does.
    #[serde(default)]
    pub vault: String,
}

impl Registration {
    /// All databases, the first one first.
    pub fn databases(&self) -> Vec<PathBuf> {
        std::iter::once(&self.path).chain(&self.more_databases).cloned().collect()
    }
}

/// Everything registered, by database id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// By id.
    #[serde(default)]
    pub database: BTreeMap<String, Registration>,
    /// Vaults that the user confirmed when an archive named them, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vault: BTreeMap<String, ConfirmedVault>,
}

/// A vault that is not in the configuration: its fingerprint was shown, and the user said yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmedVault {
    /// Where it answers.
    pub url: String,
    /// 64 hex digits.
    pub identity: String,
}

impl Registry {
    /// Reads the file; none is an empty registry. A damaged one is an error: nothing is forgotten by accident.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(toml::from_str(&text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces the file, durably.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let temporary = path.with_extension("toml.new");
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(b"# Written by chatkeepd. Use `chatkeep register` and `chatkeep unregister`.\n\n")?;
        file.write_all(toml::to_string(self)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(path.parent().expect("the file lies in a folder"))?.sync_all()?;
        Ok(())
    }

    /// A new id made from `name`: letters, digits and `_`, unique.
    pub fn new_id(&self, name: &str) -> String {
        let mut id: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(48).collect();
        if id.is_empty() {
            "database".clone_into(&mut id);
        }
        let taken = |id: &str| self.database.contains_key(id);
        if !taken(&id) {
            return id;
        }
        (2..u32::MAX)
            .map(|n| format!("{id}_{n}"))
            .find(|id| !taken(id))
            .expect("there are more numbers than databases")
    }
}

mod archive_text {
    use chatkeep_format::ArchiveId;
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(id: &Option<ArchiveId>, serializer: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => serializer.collect_str(id),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ArchiveId>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn registrations_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registrations.toml");
        let mut registry = Registry::load(&path).unwrap();
        for archive in [None, Some(ArchiveId([3; 16]))] {
            let id = registry.new_id("My chats");
            let registration = Registration {
                display_name: "My chats".to_owned(),
                app_id: String::new(),
                path: "/home/a/b.db".into(),
                more_databases: vec!["/home/a/c.db".into()],
                attachments: vec!["/home/a/media".into()],
                store: "nas".to_owned(),
                copies: vec!["cloud".to_owned()],
                archive,
                vault: String::new(),
            };
            registry.database.insert(id, registration);
        }
        registry.save(&path).unwrap();
        assert_eq!(Registry::load(&path).unwrap(), registry);
        assert_eq!(registry.database.keys().collect::<Vec<_>>(), ["My_chats", "My_chats_2"]);
    }
}
