//! What jobs do. Each runs in a task of its own, tells its progress, and ends with an [`Outcome`] for the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use chatkeep_crypto::{BackupKey, first_difference, locate_typo};
use chatkeep_format::{ArchiveId, Keyslot, ObjectName};
use chatkeep_ipc::{Error, JobId, RemoteArchive, Secret, Server, VerifyDepth};
use chatkeep_sqlite::Existing;
use chatkeep_store::{PutCondition, Store, StoreKey};
use chatkeep_vault_client::{
    KdfFloor, KdfParams, Registered, SlotSecret, Transport, VaultError, VaultPin, recover, register, status,
};
use rand_core::{OsRng, RngCore};
use tokio::runtime::Handle;

use crate::archive::{Archive, ArchiveError, list_archives};
use crate::catalogue::Catalogue;
use crate::event::{Opened, Outcome, VaultSeen, Work};
use crate::fault::{Fault, Result};
use crate::keyring::{Keys, Ring, mode_of, password_slots, pin_of};
use crate::keys::KeyStore;
use crate::paths::Paths;
use crate::restore::{Destination, Source};

/// Shorter passwords are refused. The vault stops guessing after ten; eight characters stop the lucky ones.
const PASSWORD_CHARS_MIN: usize = 8;

/// What jobs work with. Cheap to clone.
#[derive(Clone)]
pub struct Tools {
    /// Where things lie.
    pub paths: Arc<Paths>,
    /// The device's keys.
    pub key_store: Arc<dyn KeyStore>,
    /// The cache.
    pub catalogue: Catalogue,
    /// The way to the vaults.
    pub transport: Arc<dyn Transport>,
    /// Where progress is shown.
    pub server: Server,
}

/// One job at work.
pub struct Job {
    /// What it works with.
    pub tools: Tools,
    /// Its name.
    pub id: JobId,
    /// Set to stop it.
    pub cancelled: Arc<AtomicBool>,
    /// What a vault said.
    pub vault: Option<VaultSeen>,
    /// The keys as a change that failed left them.
    pub keys: Option<Box<Keys>>,
}

impl Job {
    /// Does the work. A change of keys that failed half way is looked at again: what holds now is what the device and
    /// the store say.
    pub async fn run(&mut self, work: Work) -> Result<Outcome> {
        let changes = match &work {
            Work::ChangePassword { opened, pins, .. } | Work::Rotate { opened, pins, .. } => {
                Some((opened.archive.clone(), pins.clone()))
            }
            _ => None,
        };
        let result = self.carry_out(work).await;
        if let (Err(_), Some((archive, pins))) = (&result, changes) {
            let found = self.ring(&archive, &pins).open_on_device().await;
            self.keys = found.ok().flatten().map(Box::new);
        }
        result
    }

    async fn carry_out(&mut self, work: Work) -> Result<Outcome> {
        match work {
            Work::Restore { opened, seq, folder, file_name, overwrite } => {
                self.restore(&opened, seq, folder, file_name, overwrite).await
            }
            Work::Verify { opened, depth } => self.verify(&opened, depth).await,
            Work::EnablePassword { archive, pin, password } => {
                self.enable_password(&archive, pin, &password).await
            }
            Work::EnableKey { archive, key } => {
                self.phase("writing the keyring");
                let keys = self.ring(&archive, &[]).create(key, vec![Keyslot::Raw], None).await?;
                drop(keys);
                Ok(Outcome::Enabled { archive: archive.id, vault: String::new() })
            }
            Work::ChangePassword { opened, pins, current, new } => {
                self.change_password(&opened, &pins, &current, &new).await
            }
            Work::Rotate { opened, pins, key } => {
                self.phase("writing the keyring");
                let vault = vault_name(&pins, opened.keys.password_slot());
                let keys = self.ring(&opened.archive, &pins).rotate(key).await?;
                let keys = Box::new(keys);
                let warning = "what was stored before is still sealed under the old data key; somebody who knows the \
                               old key and has a copy of the store can read it";
                Ok(Outcome::Rekeyed { keys, vault, rotated: true, warning: Some(warning.to_owned()) })
            }
            Work::Unlock { archive, pins, secret } => self.unlock(&archive, &pins, &secret).await,
            Work::Check { opened, pins, secret, ask_vault } => {
                self.check(&opened, &pins, &secret, ask_vault).await
            }
            Work::ShowKey { opened, pins, proof, key_out } => {
                self.check(&opened, &pins, &proof, true).await?;
                key_out.write(&opened.keys.key.to_digits())?;
                Ok(Outcome::Checked)
            }
            Work::Adopt { archive, registration, restore } => {
                let ring = self.ring(&archive, &[]);
                let (candidates, _) = ring.candidates().await?;
                let readable = candidates.into_iter().find_map(|(_, keyring)| keyring.ok());
                let (keyring, _) =
                    readable.ok_or_else(|| Error::Corrupt("no keyring of it can be read".to_owned()))?;
                Ok(Outcome::Adopted { registration, restore, mode: mode_of(&keyring.slots).to_owned() })
            }
            Work::StoreTest { name, store } => store_test(name, &*store).await,
            Work::StoreUsage { name, store } => {
                let usage = store.usage().await?;
                Ok(Outcome::StoreSeen { name, usage: Some(usage) })
            }
            Work::VaultRefresh { pin, opened } => self.vault_refresh(&pin, &opened).await,
        }
    }

    fn ring<'a>(&'a self, archive: &'a Archive, pins: &'a [VaultPin]) -> Ring<'a> {
        Ring {
            archive,
            key_store: &*self.tools.key_store,
            catalogue: &self.tools.catalogue,
            transport: &*self.tools.transport,
            pins,
        }
    }

    fn phase(&self, phase: &str) {
        self.tools.server.update_job(&self.id, |job| {
            phase.clone_into(&mut job.phase);
            "running".clone_into(&mut job.state);
        });
    }

    fn source(&self, opened: &Opened) -> Source {
        let (server, id, started) = (self.tools.server.clone(), self.id.clone(), std::time::Instant::now());
        Source {
            archive: opened.archive.clone(),
            roots: opened.keys.roots.clone(),
            cancelled: self.cancelled.clone(),
            progress: Box::new(move |done, total| {
                server.update_job(&id, |job| {
                    job.bytes_done = done;
                    job.bytes_total = total;
                    job.progress = if total == 0 { 1.0 } else { done as f64 / total as f64 };
                    job.rate = (done as f64 / started.elapsed().as_secs_f64().max(0.001)) as u64;
                });
            }),
        }
    }

    async fn restore(
        &self,
        opened: &Opened,
        seq: u64,
        folder: OwnedFd,
        file_name: String,
        overwrite: bool,
    ) -> Result<Outcome> {
        self.phase("restoring");
        let source = self.source(opened);
        let destination = Destination {
            folder,
            file_name: Some(file_name),
            existing: if overwrite { Existing::KeepBeside } else { Existing::Refuse },
            label: format!("restore-{}", crate::clock::now_us() / 1_000_000),
        };
        let runtime = Handle::current();
        let report = blocking(move || source.restore(seq, destination, &runtime)).await?;
        tracing::info!(seq, pages = report.pages, objects = report.objects, "restored and proved");
        Ok(Outcome::Restored { seq, warning: report.warning() })
    }

    async fn verify(&self, opened: &Opened, depth: VerifyDepth) -> Result<Outcome> {
        let archive = &opened.archive;
        let mut points = self.tools.catalogue.points(&archive.id);
        points.sort_by_key(|point| std::cmp::Reverse(point.seq));
        let Some(newest) = points.first().cloned() else {
            let warning = "there is no recovery point yet".to_owned();
            return Ok(Outcome::Nothing { warning: Some(warning) });
        };
        if depth == VerifyDepth::Restore {
            return self.drill(opened, newest.seq).await;
        }
        self.phase("reading the log");
        let listing = archive.list().await?;
        let oldest = points.iter().map(|point| point.base_seq).min().unwrap_or(1);
        let mut packs = BTreeSet::new();
        let mut newer_prev = None;
        for seq in (oldest..=newest.seq).rev() {
            self.check_cancelled()?;
            let (entry, digest, _) = archive.entry(seq, &opened.keys.roots).await?;
            if newer_prev.is_some_and(|prev| prev != digest) {
                return Err(
                    ArchiveError::Swapped { key: ObjectName::Entry(seq).store_key(&archive.id) }.into()
                );
            }
            newer_prev = Some(entry.prev);
            packs.extend(entry.databases.iter().flat_map(|database| &database.packs).map(|pack| pack.name));
        }
        if let Some(missing) = packs.iter().find(|pack| !listing.packs.contains_key(*pack)) {
            return Err(
                ArchiveError::Missing { key: ObjectName::Pack(*missing).store_key(&archive.id) }.into()
            );
        }
        if depth == VerifyDepth::Chunks {
            self.phase("reading the packs");
            let total = packs.len();
            for (done, pack) in packs.into_iter().enumerate() {
                self.check_cancelled()?;
                archive.pack(pack, &opened.keys.roots).await?;
                self.tools.server.update_job(&self.id, |job| job.progress = (done + 1) as f64 / total as f64);
            }
        }
        Ok(Outcome::Verified { depth, points: points.iter().map(|point| point.seq).collect() })
    }

    /// A restore in full into a folder of our own, thrown away afterwards.
    async fn drill(&self, opened: &Opened, seq: u64) -> Result<Outcome> {
        self.phase("rehearsing a restore");
        let scratch = self.tools.paths.drills().join(self.id.to_string());
        crate::paths::private_dir(&scratch).map_err(Fault::internal)?;
        let folder = OwnedFd::from(std::fs::File::open(&scratch)?);
        let destination = Destination {
            folder,
            file_name: Some(format!("{}.db", opened.archive.id)),
            existing: Existing::Refuse,
            label: String::new(),
        };
        let source = self.source(opened);
        let runtime = Handle::current();
        let report = blocking(move || source.restore(seq, destination, &runtime)).await;
        let swept = std::fs::remove_dir_all(&scratch);
        report?;
        swept?;
        Ok(Outcome::Verified { depth: VerifyDepth::Restore, points: vec![seq] })
    }

    async fn enable_password(
        &mut self,
        archive: &Archive,
        pin: VaultPin,
        password: &Secret,
    ) -> Result<Outcome> {
        check_password(password)?;
        let key = BackupKey::generate(&mut OsRng);
        let pins = [pin];
        let made = self.register(archive, &pins, password, &key).await?;
        self.phase("writing the keyring");
        self.ring(archive, &pins).create(key, vec![Keyslot::Password(made.slot)], Some(made.secret)).await?;
        Ok(Outcome::Enabled { archive: archive.id, vault: pins[0].name.clone() })
    }

    /// A new account at the vault with this password, for `key`.
    async fn register(
        &mut self,
        archive: &Archive,
        pins: &[VaultPin],
        password: &Secret,
        key: &BackupKey,
    ) -> Result<Registered> {
        let pin = &pins[..1];
        let (context, password) = (&archive.id.0, password.as_bytes());
        self.phase("registering with the vault");
        let kdf = KdfParams::DEFAULT;
        let transport = self.tools.transport.clone();
        let made = register(&*transport, pin, 1, context, password, key.expose(), kdf, &mut OsRng).await;
        let made = self.saw(&pin[0], made)?;
        // Nothing is enabled before the password has opened it once, all the way through the vault.
        self.phase("proving the password");
        let floor = KdfFloor::Production;
        let back = recover(&*transport, pin, context, &made.slot, password, floor, &mut OsRng).await;
        let back = self.saw_recovery(&pin[0], back)?;
        if *back.key != *key.expose() {
            return Err(Fault::internal("the vault gave back another key"));
        }
        Ok(made)
    }

    /// A new password where the vault destroyed the old one's part of the key.
    async fn replace_password(
        &mut self,
        opened: &Opened,
        pins: &[VaultPin],
        new: &Secret,
    ) -> Result<Outcome> {
        let made = self.register(&opened.archive, pins, new, &opened.keys.key).await?;
        self.phase("writing the keyring");
        let keys = self.ring(&opened.archive, pins).replace_password(made).await?;
        let warning = "the vault had destroyed its part of the key; the new password was registered anew";
        Ok(Outcome::Rekeyed {
            keys: Box::new(keys),
            vault: pins[0].name.clone(),
            rotated: false,
            warning: Some(warning.to_owned()),
        })
    }

    async fn change_password(
        &mut self,
        opened: &Opened,
        pins: &[VaultPin],
        current: &Secret,
        new: &Secret,
    ) -> Result<Outcome> {
        check_password(new)?;
        let keys = &opened.keys;
        let slot = keys.password_slot().ok_or_else(|| {
            Error::NotEnabled("this database is opened with 64 digits, not with a password".to_owned())
        })?;
        let vault = vault_name(pins, Some(slot));
        let secret = if is_key(current, &keys.key) {
            keys.secret.clone().ok_or_else(|| {
                Error::KeyUnavailable("this device never saw the password; unlock with it first".to_owned())
            })?
        } else {
            self.phase("proving the current password");
            match self.recover_slot(&opened.archive, pins, slot, current).await {
                Ok((_, secret, _)) => secret,
                // Nobody can prove the old password any more. Who has the key on this device can give it a new one.
                Err(Fault { error: Error::VaultDestroyed(_), .. }) => {
                    return self.replace_password(opened, pins, new).await;
                }
                Err(fault) => return Err(fault),
            }
        };
        self.phase("registering the new password");
        let changed = self.ring(&opened.archive, pins).change_password(&secret, new.as_bytes()).await;
        let keys = match changed {
            Err(Fault { error: Error::VaultDestroyed(_), .. }) => {
                return self.replace_password(opened, pins, new).await;
            }
            other => other?,
        };
        Ok(Outcome::Rekeyed { keys: Box::new(keys), vault, rotated: false, warning: None })
    }

    async fn unlock(&mut self, archive: &Archive, pins: &[VaultPin], secret: &Secret) -> Result<Outcome> {
        self.phase("reading the keyring");
        let (candidates, _) = self.ring(archive, pins).candidates().await?;
        if looks_like_digits(secret) {
            let text = secret.as_str().expect("digits are text");
            let intact = || candidates.iter().filter_map(|(_, keyring)| keyring.as_ref().ok()).take(1);
            let opens =
                |key: &BackupKey| intact().any(|(ring, _)| chatkeep_crypto::open_keyring(ring, key).is_ok());
            let key = match BackupKey::parse_digits(text) {
                Ok(key) => key,
                Err(error) => return Err(typo(text, opens).unwrap_or_else(|| error.into())),
            };
            let found = self.ring(archive, pins).open_newest(&candidates, &key, None);
            let found = found.map_err(|fault| match &fault.error {
                Error::WrongSecret(_) => typo(text, opens).unwrap_or(fault),
                _ => fault,
            })?;
            let keys = Box::new(self.ring(archive, pins).adopt(key, None, found).await?);
            return Ok(Outcome::Rekeyed { keys, vault: String::new(), rotated: false, warning: None });
        }
        let newest = candidates.iter().find_map(|(_, keyring)| keyring.as_ref().ok());
        let Some((newest, _)) = newest else {
            let reason = candidates.into_iter().find_map(|(_, keyring)| keyring.err());
            return Err(reason.map_or_else(|| Fault::internal("there is no keyring"), Fault::from));
        };
        let slots: Vec<Vec<u8>> = password_slots(&newest.slots).map(<[u8]>::to_vec).collect();
        if slots.is_empty() {
            let text = "this archive is opened with 64 digits; these are not 64 digits";
            return Err(Error::InvalidSecret(text.to_owned()).into());
        }
        let mut last = None;
        for slot in slots {
            self.phase("asking the vault");
            let vault = vault_name(pins, Some(&slot));
            match self.recover_slot(archive, pins, &slot, secret).await {
                Ok((key, secret, warning)) => {
                    let found = self.ring(archive, pins).open_newest(&candidates, &key, None)?;
                    let keys = Box::new(self.ring(archive, pins).adopt(key, Some(secret), found).await?);
                    return Ok(Outcome::Rekeyed { keys, vault, rotated: false, warning });
                }
                // A change of password was cut off between its two halves: one of the slots opens.
                Err(fault @ Fault { error: Error::NotFound(_) | Error::WrongSecret(_), .. }) => {
                    last = Some(fault);
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(last.unwrap_or_else(|| Fault::internal("no keyslot was tried")))
    }

    async fn check(
        &mut self,
        opened: &Opened,
        pins: &[VaultPin],
        secret: &Secret,
        ask_vault: bool,
    ) -> Result<Outcome> {
        let key = &opened.keys.key;
        if looks_like_digits(secret) {
            let text = secret.as_str().expect("digits are text");
            compare_digits(text, key)?;
            return Ok(Outcome::Checked);
        }
        let Some(slot) = opened.keys.password_slot() else {
            let text = "this database is opened with 64 digits; these are not 64 digits";
            return Err(Error::InvalidSecret(text.to_owned()).into());
        };
        if !ask_vault {
            let text = "only the vault can tell whether a password is right, and a wrong one costs an attempt there; \
                        ask for it (`--vault`)";
            return Err(Error::Unsupported(text.to_owned()).into());
        }
        self.phase("asking the vault");
        let (found, ..) = self.recover_slot(&opened.archive, pins, slot, secret).await?;
        if found == *key {
            Ok(Outcome::Checked)
        } else {
            Err(Fault::internal("the vault gave back another key"))
        }
    }

    /// Opens one password keyslot. Costs an attempt, given back when the password was right.
    async fn recover_slot(
        &mut self,
        archive: &Archive,
        pins: &[VaultPin],
        slot: &[u8],
        password: &Secret,
    ) -> Result<(BackupKey, SlotSecret, Option<String>)> {
        let pin = pin_of(pins, slot).cloned().ok_or_else(|| {
            Error::VaultUntrusted("the vault that guards this archive is not configured; add it".to_owned())
        })?;
        let floor = KdfFloor::Production;
        let context = &archive.id.0;
        let back =
            recover(&*self.tools.transport, pins, context, slot, password.as_bytes(), floor, &mut OsRng)
                .await;
        let back = self.saw_recovery(&pin, back)?;
        let mut warnings = Vec::new();
        if back.must_register_again {
            warnings.push(
                "that was the last attempt: the vault has destroyed its part. Set a new password now"
                    .to_owned(),
            );
        }
        if back.failed_since_change > 0 {
            warnings.push(format!(
                "{} wrong passwords were tried since the last change",
                back.failed_since_change
            ));
        }
        let warning = (!warnings.is_empty()).then(|| warnings.join("; "));
        Ok((BackupKey::from_bytes(*back.key), back.secret, warning))
    }

    fn saw_recovery(
        &mut self,
        pin: &VaultPin,
        result: Result<chatkeep_vault_client::Recovered, VaultError>,
    ) -> Result<chatkeep_vault_client::Recovered> {
        let back = self.saw(pin, result)?;
        if let Some(seen) = &mut self.vault {
            seen.attempts_left = Some(u32::from(back.attempts_left));
            seen.attempts_max = seen.attempts_max.max(seen.attempts_left);
        }
        Ok(back)
    }

    /// Notes for the loop what an answer says of the vault.
    fn saw<T>(&mut self, pin: &VaultPin, result: Result<T, VaultError>) -> Result<T> {
        self.vault = Some(seen(pin, result.as_ref().err()));
        Ok(result?)
    }

    async fn vault_refresh(&mut self, pin: &VaultPin, opened: &[Arc<Opened>]) -> Result<Outcome> {
        let mut worst: Option<VaultSeen> = None;
        for opened in opened {
            if let Some(found) =
                vault_status(&*self.tools.transport, pin, opened.archive.id, &opened.keys).await
            {
                let fewer = |old: &VaultSeen| found.attempts_left < old.attempts_left || found.state != "ok";
                if worst.as_ref().is_none_or(fewer) {
                    worst = Some(found);
                }
            }
        }
        if worst.is_none() {
            let answer = chatkeep_vault_client::info(&*self.tools.transport, pin, &mut OsRng).await;
            worst = Some(seen(pin, answer.as_ref().err()));
            self.vault = worst;
            answer?;
            return Ok(Outcome::Nothing { warning: None });
        }
        self.vault = worst;
        Ok(Outcome::Nothing { warning: None })
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Fault::cancelled()) } else { Ok(()) }
    }
}

/// Asks the vault how many attempts are left. Costs none.
pub async fn vault_status(
    transport: &dyn Transport,
    pin: &VaultPin,
    id: ArchiveId,
    keys: &Keys,
) -> Option<VaultSeen> {
    let (slot, secret) = (keys.password_slot()?, keys.secret.as_ref()?);
    let pins = std::slice::from_ref(pin_of(std::slice::from_ref(pin), slot)?);
    let answer = status(transport, pins, &id.0, slot, secret, &mut OsRng).await;
    let mut found = seen(pin, answer.as_ref().err());
    if let Ok(report) = answer {
        found.attempts_left = Some(u32::from(report.attempts_left));
        found.attempts_max = Some(u32::from(report.attempts_max));
    }
    Some(found)
}

fn seen(pin: &VaultPin, error: Option<&VaultError>) -> VaultSeen {
    let mut seen = VaultSeen { name: pin.name.clone(), state: "ok", ..VaultSeen::default() };
    match error {
        Some(VaultError::WrongPassword { left, max }) => {
            seen.attempts_left = Some(u32::from(*left));
            seen.attempts_max = Some(u32::from(*max));
            seen.failed = true;
        }
        Some(VaultError::Throttled { retry_after_s }) => {
            seen.state = "backoff";
            seen.retry_after = crate::clock::now_us().saturating_add(retry_after_s.saturating_mul(1_000_000));
        }
        Some(VaultError::Frozen { until_s }) => {
            seen.state = "backoff";
            seen.retry_after = until_s.saturating_mul(1_000_000);
        }
        Some(VaultError::Destroyed { .. }) => {
            seen.state = "destroyed";
            seen.attempts_left = Some(0);
        }
        Some(VaultError::Busy { .. } | VaultError::Unreachable { .. }) => seen.state = "unreachable",
        Some(VaultError::Untrusted { .. } | VaultError::NotPinned { .. }) => seen.state = "untrusted",
        _ => {}
    }
    seen
}

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

async fn store_test(name: String, store: &dyn Store) -> Result<Outcome> {
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

fn check_password(password: &Secret) -> Result<()> {
    let text =
        password.as_str().ok_or_else(|| Error::InvalidSecret("the password is not UTF-8".to_owned()))?;
    if text.chars().count() < PASSWORD_CHARS_MIN {
        return Err(
            Error::InvalidSecret(format!("a password has at least {PASSWORD_CHARS_MIN} characters")).into()
        );
    }
    if looks_like_digits(password) {
        let text = "64 digits are a key; a password that looks like one could not be told from it";
        return Err(Error::InvalidSecret(text.to_owned()).into());
    }
    Ok(())
}

/// Whether this was meant as the 64 digits: 60 or more hexadecimal digits and nothing but digits and separators.
pub fn looks_like_digits(secret: &Secret) -> bool {
    let Some(text) = secret.as_str() else { return false };
    let significant = text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '-' | '_'));
    let (mut digits, mut others) = (0, 0);
    for c in significant {
        if c.is_ascii_hexdigit() { digits += 1 } else { others += 1 }
    }
    digits >= 56 && others <= 4
}

fn is_key(secret: &Secret, key: &BackupKey) -> bool {
    let typed = secret.as_str().and_then(|text| BackupKey::parse_digits(text).ok());
    typed.is_some_and(|typed| typed == *key)
}

/// Compares digits typed back with the right ones; says in which group they differ.
pub fn compare_digits(text: &str, key: &BackupKey) -> Result<()> {
    let differs = |group| Error::WrongSecret(format!("group {group} differs"));
    match BackupKey::parse_digits(text) {
        Ok(typed) => first_difference(&typed, key).map_or(Ok(()), |group| Err(differs(group).into())),
        Err(error) => Err(locate_typo(text, |typed| typed == key)
            .map_or_else(|| error.into(), |group| differs(group).into())),
    }
}

/// Where digits were mistyped, when exactly one group was.
fn typo(text: &str, opens: impl Fn(&BackupKey) -> bool) -> Option<Fault> {
    let group = locate_typo(text, opens)?;
    Some(Error::WrongSecret(format!("group {group} is mistyped; the others are right")).into())
}

/// The name of the vault that guards a slot.
fn vault_name(pins: &[VaultPin], slot: Option<&[u8]>) -> String {
    let pin = slot.and_then(|slot| pin_of(pins, slot));
    pin.map(|pin| pin.name.clone()).unwrap_or_default()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Fault::internal)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use zeroize::Zeroizing;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn digits_are_told_from_passwords() {
        let key = BackupKey::generate(&mut OsRng);
        assert!(looks_like_digits(&secret(&key.to_digits())));
        assert!(looks_like_digits(&secret(&key.to_digit_lines())));
        assert!(!looks_like_digits(&secret("correct horse battery staple")));
        assert!(!looks_like_digits(&secret("deadbeefdeadbeef")));
    }

    #[test]
    fn a_wrong_group_is_named() {
        let key = BackupKey::from_bytes([0x11; 32]);
        let mut digits = key.to_digits().to_string();
        compare_digits(&digits, &key).unwrap();
        digits.replace_range(0..1, "2");
        let fault = compare_digits(&digits, &key).unwrap_err();
        assert_eq!(fault.error, Error::WrongSecret("group 1 differs".to_owned()));
    }

    #[test]
    fn passwords_that_cannot_be_are_refused() {
        assert!(check_password(&secret("short")).is_err());
        assert!(check_password(&secret(&BackupKey::generate(&mut OsRng).to_digits())).is_err());
        assert!(check_password(&secret("zwölf Boxkämpfer")).is_ok());
    }
}
