//! Objects go into a store, whatever the store is worth: one that knows no condition, one that shows what was put only a
//! moment later, one that acknowledges less than it was given. Such stores cost calls and time; nothing in them is
//! believed to be there before it was seen.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use chatkeep_crypto::DataRoots;
use chatkeep_format::ObjectName;
use chatkeep_store::{CreateGuarantee, PutCondition, PutReceipt, StoreError, StoreKey, Visibility};

use super::{Archive, ArchiveError};

/// How often it is looked whether a store shows what was put, and the pauses in between: twice as long each time, up to
/// the longest; a minute in all.
const LOOKS: u32 = 12;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How an object came to be in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It is there, with these bytes.
    Ours,
    /// Something has its name, and the store does not permit to read what.
    Unread,
}

impl Archive {
    /// Writes an object that must not exist. One that is there already with the same bytes is ours, from before a crash.
    pub async fn put_new(&self, name: ObjectName, sealed: Bytes) -> Result<(), ArchiveError> {
        match self.place(name, sealed).await? {
            Placed::Ours => Ok(()),
            Placed::Unread => Err(self.fenced(name)),
        }
    }

    /// As [`put_new`](Self::put_new), for who may have to live with a store that cannot be read.
    pub async fn place(&self, name: ObjectName, sealed: Bytes) -> Result<Placed, ArchiveError> {
        match self.create(name, &sealed, None).await {
            Ok(()) => return Ok(Placed::Ours),
            Err(StoreError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let stored = match self.get(name).await {
            Ok(stored) => stored,
            Err(ArchiveError::Store(StoreError::Permission(_))) => return Ok(Placed::Unread),
            // It is there, only not to be seen.
            Err(ArchiveError::Missing { .. }) => return Err(unseen().into()),
            Err(error) => return Err(error),
        };
        if stored == sealed {
            return Ok(Placed::Ours);
        }
        if !sealed.starts_with(&stored) {
            return Err(self.fenced(name));
        }
        // Cut off, so it was never acknowledged as whole, and nobody else has these bytes.
        tracing::warn!(object = %self.key(name), "an object that the store cut off is put again");
        self.store.delete(&self.key(name)).await?;
        self.create(name, &sealed, None).await?;
        Ok(Placed::Ours)
    }

    /// Puts a pack. Packs are named after their content: one that is there already must open to the same content.
    ///
    /// One that is there and damaged is taken away first: the same content is in hand, and whoever gives it keeps it until
    /// it is in the store. Nothing else is ever replaced. `file` has the same bytes, synced and never written again.
    pub async fn put_pack(
        &self,
        id: [u8; 16],
        sealed: Bytes,
        file: &Path,
        roots: &DataRoots,
    ) -> Result<(), ArchiveError> {
        let (name, file) = (ObjectName::Pack(id), Some(file));
        match self.create(name, &sealed, file).await {
            Ok(()) => return Ok(()),
            Err(StoreError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let stored = match self.get(name).await {
            Ok(stored) if stored == sealed => return Ok(()),
            // Nobody else has the keys that make its name.
            Err(ArchiveError::Store(StoreError::Permission(_))) => return Ok(()),
            Ok(stored) => self.open(name, roots, &stored).map(drop),
            Err(error) => Err(error),
        };
        match stored {
            Err(ArchiveError::Damaged { .. } | ArchiveError::Swapped { .. }) => {
                // Only what opens is a replacement.
                self.open(name, roots, &sealed)?;
                self.replace(name, &sealed, file).await
            }
            stored => stored,
        }
    }

    /// Puts an object of another store of the same archive, intact. What stands in its place and does not open gives way;
    /// an entry that opens and is another one does not.
    pub async fn put_copy(
        &self,
        name: ObjectName,
        sealed: Bytes,
        roots: &DataRoots,
    ) -> Result<(), ArchiveError> {
        match self.place(name, sealed.clone()).await {
            // Whose it is nobody can tell; that it is the same is likely, and nothing hangs on it.
            Ok(_) => return Ok(()),
            Err(ArchiveError::WriterFenced { .. }) => {}
            Err(error) => return Err(error),
        }
        let stored = self.get(name).await?;
        let opens = match name {
            ObjectName::Entry(seq) => self.open_entry(seq, roots, &stored).map(|_| false),
            // Sealed anew, with the same content.
            ObjectName::Pack(_) => self.open(name, roots, &stored).map(|_| true),
            ObjectName::Keyring(counter) => chatkeep_crypto::read_keyring(&stored, &self.id, counter)
                .map(|_| false)
                .map_err(|error| self.explain(name, error)),
        };
        match opens {
            Ok(true) => Ok(()),
            Err(ArchiveError::Damaged { .. } | ArchiveError::Swapped { .. }) => {
                self.replace(name, &sealed, None).await
            }
            Ok(false) => Err(self.fenced(name)),
            Err(error) => Err(error),
        }
    }

    async fn replace(
        &self,
        name: ObjectName,
        sealed: &Bytes,
        file: Option<&Path>,
    ) -> Result<(), ArchiveError> {
        let key = self.key(name);
        tracing::warn!(object = %key, "a damaged object is replaced by the same content");
        self.store.delete(&key).await?;
        Ok(self.create(name, sealed, file).await?)
    }

    /// Creates an object, and does not return before it is there to be seen.
    async fn create(&self, name: ObjectName, sealed: &Bytes, file: Option<&Path>) -> Result<(), StoreError> {
        let (key, can) = (self.key(name), self.store.capabilities());
        let receipt = match (can.create, file) {
            (CreateGuarantee::None, _) => self.create_unconditionally(&key, sealed).await?,
            (_, Some(file)) => self.store.put_file(&key, sealed.clone(), file).await?,
            (_, None) => self.store.put(&key, sealed.clone(), PutCondition::CreateIfAbsent).await?,
        };
        if receipt.len != sealed.len() as u64 {
            return Err(StoreError::Corrupt { key });
        }
        if can.read_after_write == Visibility::Eventual {
            self.wait_for(&key, receipt.len).await?;
        }
        // Two of which each thought to be the first: what stands there now is what counts. A pack is what its name says.
        if can.create != CreateGuarantee::Atomic && !matches!(name, ObjectName::Pack(_)) {
            match self.store.get(&key, None).await {
                Ok(stored) if stored != *sealed => return Err(StoreError::AlreadyExists { key }),
                Ok(_) | Err(StoreError::Permission(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// For a store that knows no condition: looks first. Two that look at the same moment can both write.
    async fn create_unconditionally(&self, key: &StoreKey, sealed: &Bytes) -> Result<PutReceipt, StoreError> {
        match self.store.head(key).await {
            Ok(_) => Err(StoreError::AlreadyExists { key: key.clone() }),
            Err(StoreError::NotFound { .. }) => {
                self.store.put(key, sealed.clone(), PutCondition::Overwrite).await
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the store shows an object with its whole length.
    async fn wait_for(&self, key: &StoreKey, len: u64) -> Result<(), StoreError> {
        for look in 0..LOOKS {
            match self.store.head(key).await {
                Ok(found) if found.len == len => return Ok(()),
                // Something older may still be shown.
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(StoreError::Permission(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
            tokio::time::sleep((FIRST_PAUSE * 2_u32.pow(look)).min(LONGEST_PAUSE)).await;
        }
        Err(unseen())
    }

    fn fenced(&self, name: ObjectName) -> ArchiveError {
        ArchiveError::WriterFenced { key: name.store_key(&self.id) }
    }
}

fn unseen() -> StoreError {
    StoreError::Transient("what was put is not to be seen yet".into())
}
