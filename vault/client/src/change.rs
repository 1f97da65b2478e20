//! A new password, or a new key, for a slot that exists.

use chatkeep_vault_protocol::slot::Slot;
use chatkeep_vault_protocol::{KdfFloor, KdfParams, SlotError, SlotSecret, VaultPin, ppss};
use rand_core::CryptoRngCore;

use crate::exchange::open_slot;
use crate::register::{Accounts, Plan, commit, make};
use crate::{Transport, VaultError};

/// A slot with the new password that opens already, beside the old one.
#[derive(Debug)]
pub struct PendingChange {
    /// To be stored beside the old slot, before [`commit_change`].
    pub slot: Vec<u8>,
    /// To be kept beside the old secret.
    pub secret: SlotSecret,
}

/// First half of a change of password: afterwards both slots open, under one count of attempts.
///
/// The caller stores the new slot beside the old one, calls [`commit_change`], then deletes the old slot. A crash
/// anywhere leaves a slot that opens, with any number of vaults, and however late the commit comes.
#[expect(clippy::too_many_arguments, reason = "all are inputs of one slot, none belong together")]
pub async fn begin_change(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    old_slot: &[u8],
    old_secret: &SlotSecret,
    new_password: &[u8],
    kdf: KdfParams,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<PendingChange, VaultError> {
    // the old password is not stretched here, so its parameters do not matter
    let (old, vaults) = open_slot(old_slot, context, pins, KdfFloor::AllowWeakKdf)?;
    let key = ppss::unwrap(&old, old_secret)?;
    let plan = Plan {
        vaults: &vaults,
        threshold: old.header.threshold,
        context,
        locator: old.header.locator,
        kdf,
        accounts: Accounts::Old(&old, old_secret),
    };
    let (slot, secret) = make(transport, plan, new_password, &key, rng).await?;
    Ok(PendingChange { slot: slot.encode(), secret })
}

/// Second half: the vaults erase what the old slot needs. May be repeated until it succeeds.
pub async fn commit_change(
    transport: &dyn Transport,
    pins: &[VaultPin],
    context: &[u8; 16],
    slot: &[u8],
    secret: &SlotSecret,
    rng: &mut (impl CryptoRngCore + Send),
) -> Result<(), VaultError> {
    let (slot, vaults) = open_slot(slot, context, pins, KdfFloor::AllowWeakKdf)?;
    ppss::check_secret(&slot, secret)?;
    commit(transport, &vaults, &slot, secret, rng).await
}

/// Wraps another key for the same password; no vault takes part.
pub fn rewrap(
    slot: &[u8],
    secret: &SlotSecret,
    context: &[u8; 16],
    new_key: &[u8; 32],
    rng: &mut impl CryptoRngCore,
) -> Result<Vec<u8>, VaultError> {
    let slot = Slot::decode(slot, KdfFloor::AllowWeakKdf)?;
    if slot.header.context != *context {
        return Err(VaultError::BadSlot(SlotError::OtherContext));
    }
    Ok(ppss::rewrap(&slot, secret, new_key, rng)?.encode())
}
