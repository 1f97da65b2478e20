//! One archive read from several stores: the main store first, then copies. Whatever a store lacks, hides or has damaged
//! comes from the next one that has it intact.
//!
//! It is a store itself, for reading: whoever restores from it does not know how many there are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chatkeep_crypto::DataRoots;
use chatkeep_format::{ArchiveId, ObjectName, entry_digest, limits};
use chatkeep_store::{
    Capabilities, CreateGuarantee, ObjectMeta, PutCondition, PutReceipt, Store, StoreError, StoreKey, Usage,
    Visibility, clamp_range,
};

use crate::archive::{Archive, ArchiveError};
use crate::catalogue::Catalogue;
use crate::damage::Damage;

/// A store that could not be reached is not asked again for so long, as long as another one answers.
const AWAY_FOR: Duration = Duration::from_secs(30);
/// A store that does not answer for so long is away.
const READ_TIMEOUT: Duration = Duration::from_mins(5);

/// The stores of one archive, in the order in which they are asked.
pub struct Fallback {
    stores: Vec<(String, Archive)>,
    roots: Arc<DataRoots>,
    catalogue: Catalogue,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Objects that came from a store other than the first.
    served: BTreeMap<String, u32>,
    /// What was wrong with the first, the first time.
    fault: Option<String>,
    /// Objects of the first that are not what was written.
    damages: Vec<Damage>,
    /// When stores could not be reached.
    away: BTreeMap<String, Instant>,
}

impl Fallback {
    /// Of stores with their names, the main one first.
    pub fn new(stores: Vec<(String, Archive)>, roots: Arc<DataRoots>, catalogue: Catalogue) -> Self {
        Self { stores, roots, catalogue, seen: Mutex::new(Seen::default()) }
    }

    /// Reads an object from the first store that has it intact. If none has, the error is the one of the first store that
    /// answered at all.
    pub async fn object(&self, name: ObjectName) -> Result<Bytes, ArchiveError> {
        let mut first_error: Option<ArchiveError> = None;
        let away: Vec<bool> = self.stores.iter().map(|(store, _)| self.is_away(store)).collect();
        // Those that were away a moment ago come last.
        let order = (0..self.stores.len()).filter(|at| !away[*at]);
        for at in order.chain((0..self.stores.len()).filter(|at| away[*at])) {
            let (store, archive) = &self.stores[at];
            match self.read(archive, name).await {
                Ok(sealed) => {
                    let mut seen = self.seen();
                    seen.away.remove(store);
                    if at > 0 {
                        *seen.served.entry(store.clone()).or_default() += 1;
                    }
                    return Ok(sealed);
                }
                Err(error) => {
                    self.note(at, &error);
                    let store_failed = matches!(error, ArchiveError::Store(_));
                    if first_error.is_none()
                        || !store_failed && matches!(first_error, Some(ArchiveError::Store(_)))
                    {
                        first_error = Some(error);
                    }
                }
            }
        }
        Err(first_error.unwrap_or_else(|| self.missing(name)))
    }

    /// What the user should know of where the objects came from.
    pub fn warning(&self) -> Option<String> {
        let seen = self.seen();
        let served: Vec<String> =
            seen.served.iter().map(|(store, count)| format!("{count} from `{store}`")).collect();
        if served.is_empty() {
            return None;
        }
        let why = seen.fault.as_deref().unwrap_or("it did not have them");
        let main = self.stores.first().map_or("", |(store, _)| store);
        Some(format!(
            "objects came from copies, {}, because of the store `{main}`: {why}",
            served.join(" and ")
        ))
    }

    /// What is wrong with objects in the first store.
    pub fn damages(&self) -> Vec<Damage> {
        let mut damages = self.seen().damages.clone();
        damages.sort_by(|a, b| a.object.cmp(&b.object));
        damages.dedup_by(|a, b| a.object == b.object);
        damages
    }

    async fn read(&self, archive: &Archive, name: ObjectName) -> Result<Bytes, ArchiveError> {
        let read = tokio::time::timeout(READ_TIMEOUT, archive.get(name)).await;
        let sealed =
            read.unwrap_or_else(|_| Err(StoreError::Offline("it does not answer at all".into()).into()))?;
        self.check(archive, name, &sealed)?;
        Ok(sealed)
    }

    fn check(&self, archive: &Archive, name: ObjectName, sealed: &Bytes) -> Result<(), ArchiveError> {
        if let ObjectName::Keyring(counter) = name {
            let read = chatkeep_crypto::read_keyring(sealed, &archive.id, counter);
            return read.map(drop).map_err(|error| archive.damaged(name, error.to_string()));
        }
        archive.authenticate(name, &self.roots, sealed)?;
        let ObjectName::Entry(seq) = name else { return Ok(()) };
        let id = &archive.id;
        let known = self.catalogue.point(id, seq).or_else(|| self.catalogue.point_elsewhere(id, seq));
        match known {
            Some(point) if point.digest != entry_digest(sealed) => Err(ArchiveError::Chain {
                key: name.store_key(id),
                what: "it is not the entry that was written",
            }),
            _ => Ok(()),
        }
    }

    fn note(&self, at: usize, error: &ArchiveError) {
        let mut seen = self.seen();
        if at == 0 {
            seen.fault.get_or_insert_with(|| error.to_string());
            seen.damages.extend(error.damage());
        }
        if matches!(error, ArchiveError::Store(StoreError::Offline(_))) {
            seen.away.insert(self.stores[at].0.clone(), Instant::now());
        }
    }

    fn is_away(&self, store: &str) -> bool {
        self.seen().away.get(store).is_some_and(|since| since.elapsed() < AWAY_FOR)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missing(&self, name: ObjectName) -> ArchiveError {
        let id = self.stores.first().map_or(ArchiveId([0; 16]), |(_, archive)| archive.id);
        ArchiveError::Missing { key: name.store_key(&id) }
    }
}

/// Back to what a store says.
fn as_store_error(key: &StoreKey, error: ArchiveError) -> StoreError {
    match error {
        ArchiveError::Store(error) => error,
        _ => StoreError::NotFound { key: key.clone() },
    }
}

#[async_trait]
impl Store for Fallback {
    async fn put(&self, _: &StoreKey, _: Bytes, _: PutCondition) -> Result<PutReceipt, StoreError> {
        Err(StoreError::Unsupported { what: "be written to: it is several, read as one" })
    }

    /// What no store has intact is given as the first one has it: whoever opens it says what is wrong.
    async fn get(&self, key: &StoreKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let Some((_, name)) = ObjectName::parse(key.as_str()) else {
            return Err(StoreError::NotFound { key: key.clone() });
        };
        let body = match self.object(name).await {
            Ok(body) => body,
            Err(error) if error.damage().is_some() => match self.stores.first() {
                Some((_, main)) => main.get(name).await.map_err(|error| as_store_error(key, error))?,
                None => return Err(as_store_error(key, error)),
            },
            Err(error) => return Err(as_store_error(key, error)),
        };
        match range {
            None => Ok(body),
            Some(range) => {
                let range = clamp_range(&range, body.len() as u64)?;
                Ok(body.slice(range.start as usize..range.end as usize))
            }
        }
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectMeta, StoreError> {
        let mut error = None;
        for (store, archive) in &self.stores {
            if self.is_away(store) && self.stores.len() > 1 {
                continue;
            }
            let asked = tokio::time::timeout(READ_TIMEOUT, archive.store.head(key)).await;
            match asked.unwrap_or_else(|_| Err(StoreError::Offline("it does not answer at all".into()))) {
                Ok(found) if found.len <= limits::MAX_SEALED_LEN as u64 => return Ok(found),
                // Nothing of ours: another store may have it.
                Ok(_) => error = error.or(Some(StoreError::NotFound { key: key.clone() })),
                Err(failed) => error = error.or(Some(failed)),
            }
        }
        // All of them were away a moment ago: reading tries them all the same.
        match error {
            Some(error) => Err(error),
            None => Ok(ObjectMeta { key: key.clone(), len: 0 }),
        }
    }

    async fn list(&self, _: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        Err(StoreError::Unsupported { what: "be listed: it is several, read as one" })
    }

    async fn delete(&self, _: &StoreKey) -> Result<(), StoreError> {
        Err(StoreError::Unsupported { what: "delete: it is several, read as one" })
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        Err(StoreError::Unsupported { what: "say how full it is: it is several, read as one" })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create: CreateGuarantee::None,
            read_after_write: Visibility::Strong,
            list_after_write: Visibility::Strong,
            range: false,
            delete_is_final: true,
            usage: false,
            retain: false,
            object_len_max: None,
            parallel: 4,
        }
    }
}
