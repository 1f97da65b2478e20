//! Jobs about keys: everything that asks a vault, or changes a keyring.

use std::time::Duration;

use chatkeep_crypto::BackupKey;
use chatkeep_format::Keyslot;
use chatkeep_ipc::{Error, Secret};
use chatkeep_vault_client::{
    KdfFloor, KdfParams, Registered, SlotSecret, VaultError, VaultPin, recover, register, status,
};
use rand_core::OsRng;

use super::Job;
use super::vaults::explain_frozen;
use crate::archive::Archive;
use crate::event::{Opened, Outcome};
use crate::fault::{Fault, Result};
use crate::guard::VaultSeen;
use crate::keyring::{Keys, password_slots, pin_of};
use crate::secrets::{check_password, compare_digits, is_key, looks_like_digits, typo};
use crate::witness::Compared;

/// How long an unlocking waits for that: 15 seconds.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(15);

impl Job {
    pub(super) async fn enable_password(
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

    /// A key that is wrapped for a password which the vault destroyed is wrapped for nobody.
    pub(super) async fn not_destroyed(&self, opened: &Opened, pins: &[VaultPin]) -> Result<()> {
        let (Some(slot), Some(secret)) = (opened.keys.password_slot(), opened.keys.secret.as_ref()) else {
            return Ok(());
        };
        let context = &opened.archive.id.0;
        let seen = status(&self.tools.book, pins, context, slot, secret, &mut OsRng).await;
        if let Err(VaultError::Destroyed { .. }) = seen {
            let text = "the password opens nothing any more; set a new one first (`change-password`)";
            return Err(Error::VaultDestroyed(text.to_owned()).into());
        }
        Ok(())
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
        let transport = self.tools.book.clone();
        let made = register(&transport, pin, 1, context, password, key.expose(), kdf, &mut OsRng).await;
        let made = self.saw(&pin[0], made)?;
        // Nothing is enabled before the password has opened it once, all the way through the vault.
        self.phase("proving the password");
        let floor = KdfFloor::Production;
        let back = recover(&transport, pin, context, &made.slot, password, floor, &mut OsRng).await;
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
        let warning = "the new password was registered anew at the vault; what it had of the old one opens nothing here";
        Ok(Outcome::Rekeyed {
            keys: Box::new(keys),
            vault: pins[0].name.clone(),
            rotated: false,
            store: Compared::Not,
            warning: Some(warning.to_owned()),
        })
    }

    pub(super) async fn change_password(
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
            // A device that was unlocked with the digits never saw the password: the new one is registered anew.
            match keys.secret.clone() {
                Some(secret) => secret,
                None => return self.replace_password(opened, pins, new).await,
            }
        } else {
            self.phase("proving the current password");
            match self.recover_owned(opened, pins, slot, current).await {
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
        Ok(Outcome::Rekeyed {
            keys: Box::new(keys),
            vault,
            rotated: false,
            store: Compared::Not,
            warning: None,
        })
    }

    pub(super) async fn unlock(
        &mut self,
        archive: &Archive,
        pins: &[VaultPin],
        secret: &Secret,
    ) -> Result<Outcome> {
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
            return Ok(Outcome::Rekeyed {
                keys,
                vault: String::new(),
                rotated: false,
                store: Compared::Not,
                warning: None,
            });
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
                    let store = self.compare_store(archive, pins, &keys).await;
                    let older = if let Compared::Older(text) = &store { Some(text.clone()) } else { None };
                    let all: Vec<String> = warning.into_iter().chain(older).collect();
                    let warning = (!all.is_empty()).then(|| all.join("; "));
                    return Ok(Outcome::Rekeyed { keys, vault, rotated: false, store, warning });
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

    /// What is to be said of the store, on a device that sees it for the first time. The key is here already: what does not
    /// answer in time is asked later.
    async fn compare_store(&self, archive: &Archive, pins: &[VaultPin], keys: &Keys) -> Compared {
        self.phase("comparing the store with what the vault knows");
        let compared = crate::witness::check(&self.tools.book, pins, archive, keys);
        match tokio::time::timeout(COMPARE_TIMEOUT, compared).await {
            Ok(Ok(compared)) => compared,
            Ok(Err(fault)) => {
                tracing::info!(error = %fault.error.text(), "the store is compared with the vaults later");
                Compared::Not
            }
            Err(_) => Compared::Not,
        }
    }

    pub(super) async fn check(
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
        let (found, ..) = self.recover_owned(opened, pins, slot, secret).await?;
        if found == *key {
            Ok(Outcome::Checked)
        } else {
            Err(Fault::internal("the vault gave back another key"))
        }
    }

    /// As [`Job::recover_slot`], on a device that may lift a freeze for it.
    async fn recover_owned(
        &mut self,
        opened: &Opened,
        pins: &[VaultPin],
        slot: &[u8],
        password: &Secret,
    ) -> Result<(BackupKey, SlotSecret, Option<String>)> {
        let lifted = self.lift_freeze(pins, opened).await;
        let found = self.recover_slot(&opened.archive, pins, slot, password).await;
        self.freeze_again(pins, opened, lifted).await;
        found
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
            recover(&self.tools.book, pins, context, slot, password.as_bytes(), floor, &mut OsRng).await;
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
        self.vault = Some(VaultSeen::of(pin.name.clone(), result.as_ref().err()));
        result.map_err(explain_frozen)
    }
}

/// The name of the vault that guards a slot.
pub(super) fn vault_name(pins: &[VaultPin], slot: Option<&[u8]>) -> String {
    let pin = slot.and_then(|slot| pin_of(pins, slot));
    pin.map(|pin| pin.name.clone()).unwrap_or_default()
}
