//! The keys of one archive as this device holds them, and what can be done with them: open, make, change, rotate.
//!
//! Every change follows one order: keep the successor on the device, publish the keyring, forget the predecessor.
//! Whatever crashes in between, the device opens the newest keyring; [`open_on_device`] finishes what was begun.

use std::sync::Arc;

use bytes::Bytes;
use chatkeep_crypto::{BackupKey, DataRoots, write_keyring};
use chatkeep_format::{ArchiveId, Keyring, Keyslot, ObjectName, limits};
use chatkeep_ipc::Error;
use chatkeep_vault_client::{
    KdfFloor, KdfParams, Registered, SlotSecret, Transport, VaultError, VaultPin, begin_change,
    commit_change, rewrap,
};
use chatkeep_vault_protocol::slot::Slot;
use rand_core::OsRng;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::archive::{Archive, ArchiveError};
use crate::catalogue::Catalogue;
use crate::fault::{Fault, Result};
use crate::keys::{DeviceKeys, KeyStore, SlotBytes};

/// How many keyrings are tried, newest first: a hostile store may list any number.
const KEYRINGS_MAX: usize = 64;

/// What opens and seals the objects of one archive.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The backup key.
    pub key: BackupKey,
    /// What it wraps.
    pub roots: Arc<DataRoots>,
    /// Counter of the keyring they come from.
    pub counter: u64,
    /// Its keyslots.
    pub slots: Vec<Keyslot>,
    /// The secret behind the password keyslot.
    pub secret: Option<SlotSecret>,
}

impl Keys {
    /// `password` or `key`, as on D-Bus.
    pub fn mode(&self) -> &'static str {
        mode_of(&self.slots)
    }

    /// Eight digits that name the key: from a hash of it, so no part of it.
    pub fn key_id(&self) -> String {
        hex::encode(&blake3::derive_key("chatkeep/1 key id", self.key.expose())[..4])
    }

    /// The newest password keyslot.
    pub fn password_slot(&self) -> Option<&[u8]> {
        password_slots(&self.slots).next()
    }
}

/// `password` when a password opens the keyring, else `key`.
pub fn mode_of(slots: &[Keyslot]) -> &'static str {
    if password_slots(slots).next().is_some() { "password" } else { "key" }
}

/// The password keyslots, newest first.
pub fn password_slots(slots: &[Keyslot]) -> impl Iterator<Item = &[u8]> {
    slots.iter().rev().filter_map(|slot| match slot {
        Keyslot::Password(body) => Some(body.as_slice()),
        _ => None,
    })
}

/// The pinned vault that guards this keyslot.
pub fn pin_of<'a>(pins: &'a [VaultPin], slot: &[u8]) -> Option<&'a VaultPin> {
    let slot = Slot::decode(slot, KdfFloor::AllowWeakKdf).ok()?;
    pins.iter().find(|pin| slot.header.vaults.iter().any(|vault| vault.identity == pin.identity))
}

/// Everything a change of keys needs from outside.
pub struct Ring<'a> {
    /// The archive.
    pub archive: &'a Archive,
    /// The device's copy.
    pub key_store: &'a dyn KeyStore,
    /// Remembers the newest keyring.
    pub catalogue: &'a Catalogue,
    /// The way to the vaults.
    pub transport: &'a dyn Transport,
    /// The vaults the user pinned.
    pub pins: &'a [VaultPin],
}

/// A keyring that opened.
pub struct Found {
    /// The highest counter that was listed: the next keyring gets a number after it.
    pub highest: u64,
    /// It.
    pub keyring: Keyring,
    /// What it wraps.
    pub roots: DataRoots,
    /// No newer one was in the way.
    clean: bool,
}

/// The keyrings of an archive, newest first; what cannot be read is there as the reason.
pub type Candidates = Vec<(u64, Result<(Keyring, Bytes), ArchiveError>)>;

impl Ring<'_> {
    fn id(&self) -> &ArchiveId {
        &self.archive.id
    }

    /// Reads the keyrings, newest first. The one in the cache counts also when the store cannot be reached.
    pub async fn candidates(&self) -> Result<(Candidates, bool)> {
        let cached = self.catalogue.keyring(self.id());
        let from_cache = |counter: u64, bytes: Vec<u8>| {
            let keyring = chatkeep_crypto::read_keyring(&bytes, self.id(), counter).ok()?;
            Some((counter, Ok((keyring, Bytes::from(bytes)))))
        };
        let listing = match self.archive.list().await {
            Ok(listing) => listing,
            Err(error) => {
                let known = cached.and_then(|(counter, bytes)| from_cache(counter, bytes));
                return known.map(|known| (vec![known], false)).ok_or_else(|| error.into());
            }
        };
        let mut found: Candidates = Vec::new();
        for counter in listing.keyrings.keys().rev().take(KEYRINGS_MAX) {
            found.push((*counter, self.archive.keyring(*counter).await));
        }
        if let Some((counter, bytes)) = cached {
            let intact = found.iter().any(|(c, keyring)| *c == counter && keyring.is_ok());
            if !intact && let Some(known) = from_cache(counter, bytes) {
                found.retain(|(c, _)| *c != counter);
                found.push(known);
                found.sort_by_key(|(counter, _)| std::cmp::Reverse(*counter));
            }
        }
        if found.is_empty() {
            let key = ObjectName::Keyring(1).store_key(self.id());
            return Err(ArchiveError::Missing { key }.into());
        }
        Ok((found, true))
    }

    /// Opens the newest keyring that `key` opens. Says of a key that opens only an older one that it was replaced, unless
    /// that older one is `known`, the newest that this device ever opened: then the newer one is not ours.
    pub fn open_newest(&self, candidates: &Candidates, key: &BackupKey, known: Option<u64>) -> Result<Found> {
        let highest = candidates.first().map_or(0, |(counter, _)| *counter);
        let mut newer_intact = false;
        let mut unreadable: Option<Fault> = None;
        for (counter, candidate) in candidates {
            match candidate {
                Ok((keyring, _)) => match self.archive.open_keyring(keyring, key) {
                    Ok(_) if newer_intact && known != Some(*counter) => {
                        let text =
                            "this key was replaced by a newer one, which opens everything; use that one";
                        return Err(Error::WrongSecret(text.to_owned()).into());
                    }
                    Ok(roots) => {
                        if newer_intact || unreadable.is_some() {
                            warn!(counter, "a newer keyring cannot be opened, an older one is used");
                        }
                        let clean = !newer_intact && unreadable.is_none();
                        return Ok(Found { highest, keyring: keyring.clone(), roots, clean });
                    }
                    Err(ArchiveError::WrongKey) => newer_intact = true,
                    Err(error) => unreadable = unreadable.or(Some(error.into())),
                },
                Err(error) => unreadable = unreadable.or_else(|| Some(explain(error))),
            }
        }
        // With a keyring that could not be read nobody knows whether the key is wrong.
        Err(unreadable.unwrap_or_else(|| ArchiveError::WrongKey.into()))
    }

    /// The keys of this device for this archive; `None` when it has none (locked). Finishes what was interrupted.
    pub async fn open_on_device(&self) -> Result<Option<Keys>> {
        let mut device = self.key_store.load(self.id()).await?;
        if device.is_empty() {
            return Ok(None);
        }
        let known = self.catalogue.keyring(self.id()).map(|(counter, _)| counter);
        let (candidates, listed) = self.candidates().await?;
        let mut opened = None;
        let mut fault = None;
        for (is_next, key) in [(true, device.next_key.clone()), (false, device.key.clone())] {
            let Some(key) = key else { continue };
            match self.open_newest(&candidates, &key, known) {
                Ok(found) => {
                    opened = Some((is_next, key, found));
                    break;
                }
                Err(error) => fault = Some(error),
            }
        }
        let Some((is_next, key, found)) = opened else {
            return Err(fault.unwrap_or_else(|| ArchiveError::WrongKey.into()));
        };
        if is_next {
            info!("a rotation that was interrupted had reached the store");
            device = DeviceKeys { key: Some(key.clone()), next_key: None, ..device };
            self.key_store.save(self.id(), &device).await?;
        }
        self.remember(&found.keyring)?;
        let secret = device.slot_secret.as_ref().map(secret_of);
        let mut keys = Keys {
            key,
            roots: Arc::new(found.roots),
            counter: found.highest,
            slots: found.keyring.slots,
            secret,
        };
        // On the evidence of a listing that may lack something nothing is given up.
        if listed
            && found.clean
            && device.next_slot_secret.is_some()
            && let Err(fault) = self.finish_change(&mut keys, &mut device).await
        {
            warn!(error = %fault.error.text(), "a change of password waits to be finished");
        }
        Ok(Some(keys))
    }

    /// Makes sure that the store has the newest keyring: without it, a new machine opens nothing. One that is gone is put
    /// back, one that is damaged gets a successor.
    pub async fn mend(&self, keys: &mut Keys) -> Result<()> {
        let Some((counter, bytes)) = self.catalogue.keyring(self.id()) else { return Ok(()) };
        match self.archive.keyring(counter).await {
            Ok(_) | Err(ArchiveError::Store(_)) => Ok(()),
            Err(ArchiveError::Missing { key }) => {
                warn!(key, "the keyring was missing in the store, it is put back");
                Ok(self.archive.put_new(ObjectName::Keyring(counter), Bytes::from(bytes)).await?)
            }
            Err(error) => {
                warn!(%error, "the keyring is damaged in the store, a new one is written");
                self.publish(keys.counter + 1, &keys.key, &keys.roots, keys.slots.clone()).await?;
                keys.counter += 1;
                Ok(())
            }
        }
    }

    /// What a change of keys begins with: the keys as they are now, and nothing half done from before.
    async fn open_for_change(&self) -> Result<Keys> {
        let locked = || Fault::from(Error::KeyUnavailable("it was locked meanwhile".to_owned()));
        let keys = self.open_on_device().await?.ok_or_else(locked)?;
        let (candidates, listed) = self.candidates().await?;
        let newest =
            candidates.first().is_some_and(|(counter, keyring)| *counter == keys.counter && keyring.is_ok());
        let mut device = self.key_store.load(self.id()).await?;
        if device.next_slot_secret.is_some() {
            let text = "an earlier change of the password is not finished; it ends when the vault answers";
            return Err(Fault::new(
                Error::VaultUnreachable(text.to_owned()),
                chatkeep_planner::Retry::Backoff,
            ));
        }
        if device.next_key.is_some() {
            if !(listed && newest) {
                let text = "an earlier rotation is not finished, and its keyring cannot be read";
                return Err(Error::Corrupt(text.to_owned()).into());
            }
            // Its keyring never reached the store: the number is free.
            device.next_key = None;
            self.key_store.save(self.id(), &device).await?;
        }
        Ok(keys)
    }

    /// Makes the first keyring of a new archive.
    pub async fn create(
        &self,
        key: BackupKey,
        slots: Vec<Keyslot>,
        secret: Option<SlotSecret>,
    ) -> Result<Keys> {
        let device = DeviceKeys {
            key: Some(key.clone()),
            slot_secret: secret.as_ref().map(bytes_of),
            ..DeviceKeys::default()
        };
        self.key_store.save(self.id(), &device).await?;
        let roots = DataRoots::new(&mut OsRng);
        self.publish(1, &key, &roots, slots.clone()).await?;
        Ok(Keys { key, roots: Arc::new(roots), counter: 1, slots, secret })
    }

    /// Changes the password: the archive has both keyslots, then the vault forgets the old one, then the archive does.
    pub async fn change_password(&self, old_secret: &SlotSecret, new_password: &[u8]) -> Result<Keys> {
        let keys = &self.open_for_change().await?;
        let old = keys.password_slot().ok_or_else(not_password_mode)?;
        let context = &self.id().0;
        let kdf = KdfParams::DEFAULT;
        let pending =
            begin_change(self.transport, self.pins, context, old, old_secret, new_password, kdf, &mut OsRng)
                .await?;
        let mut device = DeviceKeys {
            key: Some(keys.key.clone()),
            slot_secret: Some(bytes_of(old_secret)),
            next_slot_secret: Some(bytes_of(&pending.secret)),
            ..DeviceKeys::default()
        };
        self.key_store.save(self.id(), &device).await?;
        let mut slots = keys.slots.clone();
        slots.push(Keyslot::Password(pending.slot));
        self.publish(keys.counter + 1, &keys.key, &keys.roots, slots.clone()).await?;
        let mut keys = Keys { counter: keys.counter + 1, slots, ..keys.clone() };
        self.finish_change(&mut keys, &mut device).await?;
        Ok(keys)
    }

    /// Puts a slot that was just registered in the place of one that opens nothing any more.
    pub async fn replace_password(&self, made: Registered) -> Result<Keys> {
        let keys = &self.open_for_change().await?;
        let mut device = DeviceKeys {
            key: Some(keys.key.clone()),
            slot_secret: keys.secret.as_ref().map(bytes_of),
            next_slot_secret: Some(bytes_of(&made.secret)),
            ..DeviceKeys::default()
        };
        self.key_store.save(self.id(), &device).await?;
        let others = keys.slots.iter().filter(|slot| !matches!(slot, Keyslot::Password(_)));
        let slots: Vec<Keyslot> = others.cloned().chain([Keyslot::Password(made.slot)]).collect();
        self.publish(keys.counter + 1, &keys.key, &keys.roots, slots.clone()).await?;
        let mut keys = Keys { counter: keys.counter + 1, slots, ..keys.clone() };
        self.finish_change(&mut keys, &mut device).await?;
        Ok(keys)
    }

    /// Finishes a change of password from wherever it stopped.
    async fn finish_change(&self, keys: &mut Keys, device: &mut DeviceKeys) -> Result<()> {
        let Some(next) = device.next_slot_secret.as_ref().map(secret_of) else { return Ok(()) };
        let context = &self.id().0;
        let fits = |slot: &[u8]| rewrap(slot, &next, context, keys.key.expose(), &mut OsRng).is_ok();
        let new = password_slots(&keys.slots).find(|slot| fits(slot)).map(<[u8]>::to_vec);
        let count = password_slots(&keys.slots).count();
        let kept = match new {
            // It was never published: the old password stays.
            None => None,
            Some(new) if count == 1 => Some(new),
            Some(new) => {
                match commit_change(self.transport, self.pins, context, &new, &next, &mut OsRng).await {
                    Ok(()) => Some(new),
                    // The vault forgot a change that was not committed within a day: the old password stays.
                    // It destroyed the account: both slots are dead, and nothing is left to finish.
                    Err(VaultError::Unknown | VaultError::Superseded | VaultError::Destroyed { .. }) => None,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let slots = keys.slots.iter().filter(|slot| match (slot, &kept) {
            (Keyslot::Password(body), Some(kept)) => body == kept,
            (Keyslot::Password(body), None) => !fits(body),
            _ => true,
        });
        let slots: Vec<Keyslot> = slots.cloned().collect();
        if slots.len() != keys.slots.len() {
            self.publish(keys.counter + 1, &keys.key, &keys.roots, slots.clone()).await?;
            keys.counter += 1;
            keys.slots = slots;
        }
        if kept.is_some() {
            device.slot_secret = Some(bytes_of(&next));
            keys.secret = Some(next);
        }
        device.next_slot_secret = None;
        self.key_store.save(self.id(), device).await?;
        Ok(())
    }

    /// Rotates: a new backup key, a new data root for what is sealed from now on. A password stays as it is.
    pub async fn rotate(&self, new_key: BackupKey) -> Result<Keys> {
        let keys = &self.open_for_change().await?;
        let rewrapped = |slot: &Keyslot| match slot {
            Keyslot::Raw => Ok(Keyslot::Raw),
            Keyslot::Password(body) => {
                let secret = keys.secret.as_ref().ok_or_else(|| {
                    Error::KeyUnavailable(
                        "this device never saw the password; unlock with it first".to_owned(),
                    )
                })?;
                Ok(Keyslot::Password(rewrap(body, secret, &self.id().0, new_key.expose(), &mut OsRng)?))
            }
            Keyslot::Unknown { .. } => {
                let text = "a newer version added a way to unlock, which this one cannot carry over";
                Err(Fault::from(Error::NewerFormat(text.to_owned())))
            }
        };
        let slots = keys.slots.iter().map(rewrapped).collect::<Result<Vec<_>>>()?;
        let mut roots = (*keys.roots).clone();
        roots.add_epoch(&mut OsRng);
        let mut device = DeviceKeys {
            key: Some(keys.key.clone()),
            slot_secret: keys.secret.as_ref().map(bytes_of),
            next_key: Some(new_key.clone()),
            next_slot_secret: None,
        };
        self.key_store.save(self.id(), &device).await?;
        let counter = keys.counter + 1;
        self.publish(counter, &new_key, &roots, slots.clone()).await?;
        device = DeviceKeys { key: Some(new_key.clone()), next_key: None, ..device };
        self.key_store.save(self.id(), &device).await?;
        Ok(Keys { key: new_key, roots: Arc::new(roots), counter, slots, secret: keys.secret.clone() })
    }

    /// Keeps a key on this device that the user just proved to know.
    pub async fn adopt(&self, key: BackupKey, secret: Option<SlotSecret>, found: Found) -> Result<Keys> {
        let before = self.key_store.load(self.id()).await.unwrap_or_default();
        let slot_secret = secret.as_ref().map(bytes_of).or(before.slot_secret);
        let secret = slot_secret.as_ref().map(secret_of);
        let device = DeviceKeys { key: Some(key.clone()), slot_secret, ..before };
        self.key_store.save(self.id(), &device).await?;
        self.remember(&found.keyring)?;
        let (counter, slots) = (found.highest, found.keyring.slots);
        Ok(Keys { key, roots: Arc::new(found.roots), counter, slots, secret })
    }

    async fn publish(
        &self,
        counter: u64,
        key: &BackupKey,
        roots: &DataRoots,
        slots: Vec<Keyslot>,
    ) -> Result<()> {
        if counter > limits::MAX_COUNTER {
            let text = "the store lists a keyring with the highest number there is, which nobody wrote";
            return Err(Error::Corrupt(text.to_owned()).into());
        }
        let bytes = write_keyring(self.id(), counter, key, roots, slots, &mut OsRng);
        self.archive.put_new(ObjectName::Keyring(counter), Bytes::from(bytes.clone())).await?;
        self.catalogue.put_keyring(self.id(), counter, &bytes).map_err(Fault::internal)
    }

    fn remember(&self, keyring: &Keyring) -> Result<()> {
        let known = self.catalogue.keyring(self.id()).map_or(0, |(counter, _)| counter);
        if known == keyring.counter {
            return Ok(());
        }
        let bytes = keyring.encode().map_err(Fault::internal)?;
        self.catalogue.put_keyring(self.id(), keyring.counter, &bytes).map_err(Fault::internal)
    }
}

fn not_password_mode() -> Fault {
    Error::NotEnabled("this archive is opened with 64 digits, not with a password".to_owned()).into()
}

fn explain(error: &ArchiveError) -> Fault {
    let text = error.to_string();
    match error {
        ArchiveError::NewerFormat { .. } => Error::NewerFormat(text).into(),
        ArchiveError::Missing { .. } => Error::ObjectMissing(text).into(),
        ArchiveError::Store(_) => Fault::new(Error::StoreUnreachable(text), chatkeep_planner::Retry::Backoff),
        _ => Error::Corrupt(text).into(),
    }
}

fn bytes_of(secret: &SlotSecret) -> SlotBytes {
    SlotBytes(Zeroizing::new(*secret.as_bytes()))
}

fn secret_of(bytes: &SlotBytes) -> SlotSecret {
    SlotSecret::from_bytes(*bytes.0)
}
