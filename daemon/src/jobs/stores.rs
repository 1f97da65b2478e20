//! What is asked of a store itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chatkeep_format::ArchiveId;
use chatkeep_ipc::{Error, RemoteArchive};
use chatkeep_store::{PutCondition, Store, StoreKey};
use rand_core::{OsRng, RngCore};

use crate::archive::{Archive, list_archives};
use crate::event::Outcome;
use crate::fault::Result;
use crate::keyring::mode_of;

/// What a store holds, for somebody who starts on a new machine.
pub async fn list_remote(
    store: &Arc<dyn Store>,
    known: &BTreeMap<ArchiveId, String>,
) -> Result<Vec<RemoteArchive>> {
    let mut found = Vec::new();
    for (id, listing) in list_archives(&**store).await? {
        let archive = Archive { store: store.clone(), id };
        let mut mode = String::new();
        for counter in listing.keyrings.keys().rev().take(4) {
            if let Ok((keyring, _)) = archive.keyring(*counter).await {
                mode_of(&keyring.slots).clone_into(&mut mode);
                break;
            }
        }
        let name = known.get(&id).cloned().unwrap_or_default();
        found.push(RemoteArchive { id: id.to_string(), name, mode, newest: 0, size: listing.bytes() });
    }
    Ok(found)
}

/// Writes, reads and deletes a probe.
pub(super) async fn store_test(name: String, store: &dyn Store) -> Result<Outcome> {
    let mut random = [0; 16];
    OsRng.fill_bytes(&mut random);
    let key = StoreKey::try_from(format!("probe/{}", hex::encode(random))).expect("a valid key");
    let body = Bytes::copy_from_slice(&random);
    store.put(&key, body.clone(), PutCondition::CreateIfAbsent).await?;
    let back = store.get(&key, None).await?;
    store.delete(&key).await?;
    if back != body {
        return Err(Error::Corrupt("the store gave back other bytes than it was given".to_owned()).into());
    }
    Ok(Outcome::StoreSeen { name, usage: store.usage().await.ok() })
}
