//! Jobs about keys: everything that asks a vault, or changes a keyring.

use std::time::Duration;

use chatkeep_crypto::BackupKey;
use chatkeep_format::Keyslot;
use chatkeep_ipc::{Error, Secret};
use chatkeep_vault_client::{
    Identity, KdfFloor, KdfParams, Recovered, Registered, SlotSecret, VaultError, VaultPin, recover,
    register_invited, status,
};
use chatkeep_vault_protocol::slot::Slot;
use rand_core::OsRng;

use super::Job;
use super::vaults::explain_frozen;
use crate::archive::Archive;
use crate::event::{Opened, Outcome};
use crate::fault::{Fault, Result};
use crate::guard::VaultSeen;
use crate::invites;
use crate::keyring::{Keys, password_slots, pin_of};
use crate::secrets::{check_password, compare_digits, is_key, looks_like_digits, typo};
use crate::stores::free_name;
use crate::witness::Compared;

/// How long an unlocking waits for that: 15 seconds.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(15);

impl Job {
    pub(super) async fn enable_password(
        &mut self,
        archive: &Archive,
        (pins, threshold): (&[VaultPin], u8),
        caution: Option<String>,
        password: &Secret,
    ) -> Result<Outcome> {
        check_password(password)?;
        let key = BackupKey::generate(&mut OsRng);
        let made = self.register(archive, (pins, threshold), password, &key).await?;
        self.phase("writing the keyring");
        self.ring(archive, pins).create(key, vec![Keyslot::Password(made.slot)], Some(made.secret)).await?;
        let vault = pins.first().map(|pin| pin.name.clone()).unwrap_or_default();
        Ok(Outcome::Enabled { archive: archive.id, vault, warning: caution })
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

    /// New accounts at the vaults with this password, for `key`.
    async fn register(
        &mut self,
        archive: &Archive,
        (pins, threshold): (&[VaultPin], u8),
        password: &Secret,
        key: &BackupKey,
    ) -> Result<Registered> {
        let (context, password) = (&archive.id.0, password.as_bytes());
        self.phase(if pins.len() > 1 { "registering with the vaults" } else { "registering with the vault" });
        let kdf = KdfParams::DEFAULT;
        let transport = self.tools.book.clone();
        let (invites, key_bytes) = (invites::for_pins(&self.tools.paths.config, pins)?, key.expose());
        let made = register_invited(
            &transport, pins, &invites, threshold, context, password, key_bytes, kdf, &mut OsRng,
        )
        .await;
        let made = self.saw(pins, made)?;
        // Nothing is enabled before the password has opened it once, all the way through the vaults.
        self.phase("proving the password");
        let floor = KdfFloor::Production;
        let back = recover(&transport, pins, context, &made.slot, password, floor, &mut OsRng).await;
        let back = self.saw_recovery(pins, back)?;
        if *back.key != *key.expose() {
            return Err(Fault::internal("the vault gave back another key"));
        }
        Ok(made)
    }

    /// A new password where the vaults destroyed the old one's part of the key: at the same vaults.
    async fn replace_password(
        &mut self,
        opened: &Opened,
        pins: &[VaultPin],
        new: &Secret,
    ) -> Result<Outcome> {
        let slot = opened.keys.password_slot().and_then(|slot| decode(slot).ok());
        let slot = slot.ok_or_else(|| Fault::internal("there is no keyslot to replace"))?;
        let vaults = trusted(&slot, pins, &[])?.0;
        let threshold = slot.header.threshold;
        let made = self.register(&opened.archive, (&vaults, threshold), new, &opened.keys.key).await?;
        self.phase("writing the keyring");
        let keys = self.ring(&opened.archive, pins).replace_password(made).await?;
        let warning = "the new password was registered anew at the vault; what it had of the old one opens nothing here";
        Ok(Outcome::Rekeyed {
            keys: Box::new(keys),
            vault: vaults[0].name.clone(),
            rotated: false,
            store: Compared::Not,
            confirmed: Vec::new(),
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
            confirmed: Vec::new(),
            warning: None,
        })
    }

    pub(super) async fn unlock(
        &mut self,
        archive: &Archive,
        pins: &[VaultPin],
        secret: &Secret,
        trust: &[Identity],
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
                confirmed: Vec::new(),
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
            let (pins, confirmed) = with_trusted(&slot, pins, trust)?;
            self.phase(if pins.len() > 1 { "asking the vaults" } else { "asking the vault" });
            let vault = vault_name(&pins, Some(&slot));
            match self.recover_slot(archive, &pins, &slot, secret).await {
                Ok((key, secret, warning)) => {
                    let found = self.ring(archive, &pins).open_newest(&candidates, &key, None)?;
                    let keys = Box::new(self.ring(archive, &pins).adopt(key, Some(secret), found).await?);
                    let store = self.compare_store(archive, &pins, &keys).await;
                    let older = if let Compared::Older(text) = &store { Some(text.clone()) } else { None };
                    let all: Vec<String> = warning.into_iter().chain(older).collect();
                    let warning = (!all.is_empty()).then(|| all.join("; "));
                    return Ok(Outcome::Rekeyed { keys, vault, rotated: false, store, confirmed, warning });
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
        let vaults = trusted(&decode(slot)?, pins, &[])?.0;
        let floor = KdfFloor::Production;
        let context = &archive.id.0;
        let back =
            recover(&self.tools.book, pins, context, slot, password.as_bytes(), floor, &mut OsRng).await;
        let back = self.saw_recovery(&vaults, back)?;
        let warning = warnings(&back, vaults.len());
        Ok((BackupKey::from_bytes(*back.key), back.secret, warning))
    }

    fn saw_recovery(
        &mut self,
        vaults: &[VaultPin],
        result: Result<Recovered, VaultError>,
    ) -> Result<Recovered> {
        let back = self.saw(vaults, result)?;
        if let Some(seen) = self.vault.as_mut().filter(|_| vaults.len() == 1) {
            seen.attempts_left = Some(u32::from(back.attempts_left));
            seen.attempts_max = seen.attempts_max.max(seen.attempts_left);
        }
        Ok(back)
    }

    /// Notes for the loop what an answer says of the vault. What several said together is said of none of them: a look that
    /// follows tells each one's own.
    fn saw<T>(&mut self, vaults: &[VaultPin], result: Result<T, VaultError>) -> Result<T> {
        let name = vaults.first().map(|pin| pin.name.clone()).unwrap_or_default();
        let seen = VaultSeen::of(name.clone(), result.as_ref().err());
        self.vault = Some(match vaults {
            [_] => seen,
            _ => VaultSeen { name, failed: seen.failed, ..VaultSeen::default() },
        });
        result.map_err(explain_frozen)
    }
}

/// What the user is to know of a recovery that succeeded.
fn warnings(back: &Recovered, n: usize) -> Option<String> {
    let mut warnings = Vec::new();
    if back.must_register_again {
        let text = "that was the last attempt: the vault has destroyed its part. Set a new password now";
        warnings.push(text.to_owned());
    }
    if back.failed_since_change > 0 {
        let failed = back.failed_since_change;
        warnings.push(format!("{failed} wrong passwords were tried since the last change"));
    }
    if !back.absent.is_empty() {
        let reasons: Vec<String> = back
            .absent
            .iter()
            .map(|(name, error)| format!("{name} ({})", Fault::from(error.clone()).error.text()))
            .collect();
        warnings.push(format!(
            "{} of {n} vaults took no part: {}. The others were enough; without these, fewer may fail the next time",
            reasons.len(),
            reasons.join(", ")
        ));
    }
    let lying = back.unproved.iter().filter(|(_, error)| matches!(error, VaultError::Refused { .. }));
    for (name, _) in lying {
        warnings.push(format!(
            "the vault {name} refused a right proof: it lies, or was put back to an old state"
        ));
    }
    (!warnings.is_empty()).then(|| warnings.join("; "))
}

fn decode(slot: &[u8]) -> Result<Slot> {
    Ok(Slot::decode(slot, KdfFloor::AllowWeakKdf).map_err(VaultError::from)?)
}

/// The vaults of a slot as this device knows them, and those among them that only `trust` names. A slot that names others is
/// refused, before anybody is asked anything.
fn trusted(slot: &Slot, pins: &[VaultPin], trust: &[Identity]) -> Result<(Vec<VaultPin>, Vec<VaultPin>)> {
    let (mut vaults, mut confirmed, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let mut named = pins.to_vec();
    for vault in &slot.header.vaults {
        if let Some(pin) = pins.iter().find(|pin| pin.identity == vault.identity) {
            vaults.push(pin.clone());
        } else if trust.contains(&vault.identity()) {
            let pin = VaultPin { name: free_name(&named, &vault.name), ..vault.clone() };
            named.push(pin.clone());
            confirmed.push(pin.clone());
            vaults.push(pin);
        } else {
            unknown.push((vault.name.clone(), vault.url.clone(), vault.identity().to_string()));
        }
    }
    if unknown.is_empty() {
        return Ok((vaults, confirmed));
    }
    let list = unknown.iter().map(|(name, url, print)| format!("{name} at {url}, fingerprint {print}"));
    let list: Vec<String> = list.collect();
    let text = format!(
        "it is guarded by vaults that are not configured here: {}. Whoever can write to the store could have put them \
         there: compare each fingerprint with what its operator says, then add a [[vault]], or confirm it (`--trust-vault`)",
        list.join("; ")
    );
    Err(Fault::from(Error::VaultUntrusted(text)).with_unknown_vaults(unknown))
}

/// The pins together with those vaults of the slot that the user confirmed; and these.
fn with_trusted(
    slot: &[u8],
    pins: &[VaultPin],
    trust: &[Identity],
) -> Result<(Vec<VaultPin>, Vec<VaultPin>)> {
    let (_, confirmed) = trusted(&decode(slot)?, pins, trust)?;
    Ok((pins.iter().chain(&confirmed).cloned().collect(), confirmed))
}

/// The name of the vault that guards a slot.
pub(super) fn vault_name(pins: &[VaultPin], slot: Option<&[u8]>) -> String {
    let pin = slot.and_then(|slot| pin_of(pins, slot));
    pin.map(|pin| pin.name.clone()).unwrap_or_default()
}
