//! One archive in a store, seen by somebody who has its keys: list, read, check, put.
//!
//! What a store says is never believed: names are parsed, lengths are bounded, every object is opened under the
//! name it was asked for, and an entry must follow the digest of the one before it.

mod put;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chatkeep_crypto::{BackupKey, DataRoots, OpenError};
use chatkeep_format::{ArchiveId, Entry, FileSet, Keyring, ObjectName, PageSet, entry_digest, limits};
use chatkeep_store::{Store, StoreError, StoreKey};

use crate::damage::{Damage, DamageKind};

pub use put::Placed;

/// Why an archive cannot be read or continued. Each says which of the promised kinds it is.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store could not be asked.
    #[error("the store cannot be used: {0}")]
    Store(StoreError),
    /// The key does not open this archive.
    #[error("the key does not open this archive")]
    WrongKey,
    /// An object that must be there is not.
    #[error("missing object: {key}")]
    Missing {
        /// Its key in the store.
        key: String,
    },
    /// An object is there and is not what was written.
    #[error("damaged data: {key} ({what})")]
    Damaged {
        /// Its key in the store.
        key: String,
        /// Which part, and how it shows.
        what: String,
    },
    /// Written by a later version.
    #[error("newer format: {key} has version {version}")]
    NewerFormat {
        /// Its key in the store.
        key: String,
        /// The version it names.
        version: u8,
    },
    /// It is authentic, and against the rules of the format.
    #[error("damaged data: {key} is malformed ({what})")]
    Malformed {
        /// Its key in the store.
        key: String,
        /// Which rule it breaks.
        what: String,
    },
    /// An intact entry is not the one that a newer entry builds on.
    #[error("damaged data: {key} is not part of this chain ({what})")]
    Chain {
        /// Its key in the store.
        key: String,
        /// What does not fit.
        what: &'static str,
    },
    /// Every object is intact, and together they are not what was captured.
    #[error("damaged data: the objects of {key} do not add up ({what})")]
    Content {
        /// The key of the point's entry.
        key: String,
        /// What is missing or differs.
        what: String,
    },
    /// An intact object of another archive, name or writer stands where this one belongs.
    #[error("damaged data: {key} is intact, but belongs somewhere else (swapped)")]
    Swapped {
        /// Its key in the store.
        key: String,
    },
    /// Someone else continues this archive.
    #[error("another installation continues this archive: it wrote {key}, which this one did not")]
    WriterFenced {
        /// The entry that is not ours.
        key: String,
    },
    /// The store shows less than it once did.
    #[error("the store shows an older archive: entry {expected} was there and {found} is the newest now")]
    RolledBack {
        /// Newest entry ever seen by this device.
        expected: u64,
        /// Newest entry listed now.
        found: u64,
    },
}

impl ArchiveError {
    /// Which object is damaged and how; nothing when the error is not about one.
    pub fn damage(&self) -> Option<Damage> {
        let (object, kind) = match self {
            Self::Missing { key } => (key, DamageKind::Missing),
            Self::Damaged { key, .. } => (key, DamageKind::Damaged),
            Self::NewerFormat { key, .. } => (key, DamageKind::Newer),
            Self::Swapped { key } => (key, DamageKind::Swapped),
            Self::Malformed { key, .. } => (key, DamageKind::Malformed),
            Self::Chain { key, .. } => (key, DamageKind::Chain),
            Self::Content { key, .. } => (key, DamageKind::Content),
            Self::Store(_) | Self::WrongKey | Self::WriterFenced { .. } | Self::RolledBack { .. } => {
                return None;
            }
        };
        let (object, what) = (object.clone(), self.to_string());
        Some(Damage { object, kind, what, holds: String::new(), points: Vec::new() })
    }
}

impl From<StoreError> for ArchiveError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { key } => Self::Missing { key: key.to_string() },
            other => Self::Store(other),
        }
    }
}

/// What a listing of one archive shows. Names and lengths only: a store may invent or hide both.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Counter of each keyring, with its length.
    pub keyrings: BTreeMap<u64, u64>,
    /// Sequence number of each entry, with its length.
    pub entries: BTreeMap<u64, u64>,
    /// Length of each pack.
    pub packs: BTreeMap<[u8; 16], u64>,
}

impl Listing {
    /// All objects together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.keyrings.values().chain(self.entries.values()).chain(self.packs.values()).sum()
    }
}

/// Where the objects of one archive lie. Cheap to clone.
#[derive(Clone)]
pub struct Archive {
    /// The store that holds it.
    pub store: Arc<dyn Store>,
    /// Which one.
    pub id: ArchiveId,
}

/// Every archive of a store, whoever they belong to.
pub async fn list_archives(store: &dyn Store) -> Result<BTreeMap<ArchiveId, Listing>, ArchiveError> {
    let mut archives: BTreeMap<ArchiveId, Listing> = BTreeMap::new();
    for object in store.list("").await? {
        if let Some((archive, name)) = ObjectName::parse(object.key.as_str()) {
            archives.entry(archive).or_default().add(name, object.len);
        }
    }
    Ok(archives)
}

impl Listing {
    fn add(&mut self, name: ObjectName, len: u64) {
        match name {
            ObjectName::Keyring(counter) => self.keyrings.insert(counter, len),
            ObjectName::Entry(seq) => self.entries.insert(seq, len),
            ObjectName::Pack(id) => self.packs.insert(id, len),
        };
    }
}

impl Archive {
    /// Lists this archive.
    pub async fn list(&self) -> Result<Listing, ArchiveError> {
        let mut listing = Listing::default();
        for object in self.store.list(&format!("{}/", self.id)).await? {
            match ObjectName::parse(object.key.as_str()) {
                Some((archive, name)) if archive == self.id => listing.add(name, object.len),
                _ => {}
            }
        }
        Ok(listing)
    }

    /// Whether the store has this object, whatever is in it.
    pub async fn has(&self, name: ObjectName) -> Result<bool, ArchiveError> {
        match self.store.head(&self.key(name)).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads an object, at most as much of it as an object can be.
    pub async fn get(&self, name: ObjectName) -> Result<Bytes, ArchiveError> {
        let key = self.key(name);
        let len = self.store.head(&key).await?.len;
        if len > limits::MAX_SEALED_LEN as u64 {
            return Err(self.damaged(name, format!("{len} bytes are more than an object can have")));
        }
        Ok(self.store.get(&key, None).await?)
    }

    /// Deletes an object.
    pub async fn delete(&self, name: ObjectName) -> Result<(), StoreError> {
        self.store.delete(&self.key(name)).await
    }

    /// Reads and opens an entry. Returns it with the digest that the next one must name.
    pub async fn entry(&self, seq: u64, roots: &DataRoots) -> Result<(Entry, [u8; 32], u64), ArchiveError> {
        let name = ObjectName::Entry(seq);
        let sealed = self.get(name).await?;
        let entry = self.open_entry(seq, roots, &sealed)?;
        Ok((entry, entry_digest(&sealed), sealed.len() as u64))
    }

    /// Opens the bytes of entry `seq`.
    pub fn open_entry(&self, seq: u64, roots: &DataRoots, sealed: &[u8]) -> Result<Entry, ArchiveError> {
        let name = ObjectName::Entry(seq);
        let entry = Entry::decode(&self.open(name, roots, sealed)?)
            .map_err(|error| self.malformed(name, error.to_string()))?;
        if entry.archive == self.id && entry.seq == seq {
            Ok(entry)
        } else {
            Err(ArchiveError::Swapped { key: name.store_key(&self.id) })
        }
    }

    /// Reads and opens a pack.
    pub async fn pack(&self, id: [u8; 16], roots: &DataRoots) -> Result<PageSet, ArchiveError> {
        let body = self.pack_body(id, roots).await?;
        PageSet::decode(body).map_err(|error| self.malformed(ObjectName::Pack(id), error.to_string()))
    }

    /// Reads and opens a pack, whatever it holds.
    pub async fn pack_body(&self, id: [u8; 16], roots: &DataRoots) -> Result<Vec<u8>, ArchiveError> {
        let name = ObjectName::Pack(id);
        let sealed = self.get(name).await?;
        self.open(name, roots, &sealed)
    }

    /// Reads and opens a list of files.
    pub async fn file_set(&self, id: [u8; 16], roots: &DataRoots) -> Result<FileSet, ArchiveError> {
        let sealed = self.get(ObjectName::Pack(id)).await?;
        self.open_file_set(id, roots, &sealed)
    }

    /// Opens the bytes of a list of files.
    pub fn open_file_set(
        &self,
        id: [u8; 16],
        roots: &DataRoots,
        sealed: &[u8],
    ) -> Result<FileSet, ArchiveError> {
        let name = ObjectName::Pack(id);
        let body = self.open(name, roots, sealed)?;
        FileSet::decode(&body).map_err(|error| self.malformed(name, error.to_string()))
    }

    /// Reads a keyring; no key is needed to see its structure.
    pub async fn keyring(&self, counter: u64) -> Result<(Keyring, Bytes), ArchiveError> {
        let name = ObjectName::Keyring(counter);
        let bytes = self.get(name).await?;
        let keyring =
            chatkeep_crypto::read_keyring(&bytes, &self.id, counter).map_err(|e| self.explain(name, e))?;
        Ok((keyring, bytes))
    }

    /// Opens a keyring with a key.
    pub fn open_keyring(&self, keyring: &Keyring, key: &BackupKey) -> Result<DataRoots, ArchiveError> {
        let name = ObjectName::Keyring(keyring.counter);
        chatkeep_crypto::open_keyring(keyring, key).map_err(|e| self.explain(name, e))
    }

    /// Whether these bytes are the object of this name, without unpacking them.
    pub fn authenticate(
        &self,
        name: ObjectName,
        roots: &DataRoots,
        sealed: &[u8],
    ) -> Result<(), ArchiveError> {
        chatkeep_crypto::authenticate(&self.id, name, roots, sealed).map_err(|e| self.explain(name, e))
    }

    fn open(&self, name: ObjectName, roots: &DataRoots, sealed: &[u8]) -> Result<Vec<u8>, ArchiveError> {
        chatkeep_crypto::open(&self.id, name, roots, sealed).map_err(|e| self.explain(name, e))
    }

    fn key(&self, name: ObjectName) -> StoreKey {
        StoreKey::try_from(name.store_key(&self.id)).expect("names of the format are valid keys")
    }

    /// An object that is not what was written.
    pub fn damaged(&self, name: ObjectName, what: String) -> ArchiveError {
        ArchiveError::Damaged { key: name.store_key(&self.id), what }
    }

    /// An object that opens and is against the format.
    pub fn malformed(&self, name: ObjectName, what: String) -> ArchiveError {
        ArchiveError::Malformed { key: name.store_key(&self.id), what }
    }

    fn explain(&self, name: ObjectName, error: OpenError) -> ArchiveError {
        let key = name.store_key(&self.id);
        match error {
            OpenError::WrongKey => ArchiveError::WrongKey,
            OpenError::NewerFormat { version } => ArchiveError::NewerFormat { key, version },
            OpenError::NotThisObject => ArchiveError::Swapped { key },
            other => ArchiveError::Damaged { key, what: other.to_string() },
        }
    }
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Archive({})", self.id)
    }
}
