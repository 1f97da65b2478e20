//! Making a vault's keys in a TPM: the only time that its owner's authorisation is needed.

use rand_core::CryptoRngCore;
use sha2::{Digest as _, Sha256};
use tss_esapi::handles::{AuthHandle, KeyHandle, NvIndexHandle, ObjectHandle, PersistentTpmHandle};
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth, Provision};
use tss_esapi::structures::{Auth, MaxNvBuffer};
use zeroize::Zeroizing;

use super::chip::{Chip, ChipError};
use super::objects::{self, ANCHOR, HOST, ROOT, SEAL};
use super::slots;
use crate::hsm::device_anchor::ANCHOR_LEN;
use crate::hsm::{HsmError, SealKey};

/// The auth values of what is the vault's.
pub(super) struct AuthValues {
    /// Of the root key. It is sent to the TPM as it is, because a guess must not cost three commands: who listens there learns
    /// what he needs to multiply while he has the TPM, and nothing that opens a record.
    pub(super) root: Auth,
    /// Of the NV indices. Sent never but at `init`, and then encrypted.
    pub(super) index: Auth,
}

/// Makes all of a vault's objects. Refuses a TPM that has any; leaves none when it fails.
pub(super) fn make_all(
    chip: &mut Chip,
    auth: &AuthValues,
    owner_auth: &Auth,
    now_s: u64,
    rng: &mut dyn CryptoRngCore,
) -> Result<(), HsmError> {
    let found = objects::found(chip)?;
    if !found.is_empty() {
        let found: Vec<String> = found.iter().map(|handle| format!("0x{handle:08x}")).collect();
        return Err(HsmError::Token(format!(
            "the TPM has keys of a vault already ({}); they are not overwritten. Who is sure that nobody needs them \
             removes them with tpm2_evictcontrol and tpm2_nvundefine",
            found.join(", ")
        )));
    }
    objects::authorise(chip, ObjectHandle::Owner, owner_auth)?;
    let made = fill(chip, auth, now_s, rng).map_err(|error| of_owner(error, owner_auth));
    if made.is_err() {
        // half a vault is none: everything at our handles was made just now
        drop(objects::remove_all(chip));
    }
    made
}

/// Sets the owner's authorisation to a value that is forgotten at once. `TPM2_Clear` alone takes it back, and
/// destroys the vault's keys with it.
pub(super) fn discard_owner_auth(chip: &mut Chip, rng: &mut dyn CryptoRngCore) -> Result<(), HsmError> {
    let mut value = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut value[..]);
    let parent = make_parent(chip)?;
    let changed = chip.call_in_salted_session("change its owner's authorisation", parent, |context| {
        context.hierarchy_change_auth(AuthHandle::Owner, Auth::try_from(&value[..])?)
    });
    chip.call("forget a key", |context| context.flush_context(parent.into()))?;
    Ok(changed?)
}

fn fill(
    chip: &mut Chip,
    auth: &AuthValues,
    now_s: u64,
    rng: &mut dyn CryptoRngCore,
) -> Result<(), ChipError> {
    let parent = make_parent(chip)?;
    let made = make_root(chip, parent, &auth.root).and_then(|name| {
        let mut host = Zeroizing::new(vec![0; 32]);
        rng.fill_bytes(&mut host);
        host.extend_from_slice(&Sha256::digest(&name));
        let seal_key = slots::draw(SealKey { id: 1, made_at_s: now_s }, rng);
        let contents: [(u32, &[u8]); 4] =
            [(HOST, &host), (SEAL[0], &*seal_key), (SEAL[1], slots::EMPTY), (ANCHOR, &[0; ANCHOR_LEN])];
        for (index, content) in contents {
            make_index(chip, parent, index, content, &auth.index)?;
        }
        Ok(())
    });
    chip.call("forget a key", |context| context.flush_context(parent.into()))?;
    made
}

fn make_parent(chip: &mut Chip) -> Result<KeyHandle, ChipError> {
    chip.call_in_session("make a storage key", |context| {
        let made =
            context.create_primary(Hierarchy::Owner, objects::parent_template()?, None, None, None, None)?;
        Ok(made.key_handle)
    })
}

/// Makes K persistent, and gives its Name.
fn make_root(chip: &mut Chip, parent: KeyHandle, auth: &Auth) -> Result<Vec<u8>, ChipError> {
    let made = chip.call_in_salted_session("make a P-256 key", parent, |context| {
        context.create(parent, objects::root_template()?, Some(auth.clone()), None, None, None)
    })?;
    let key = chip.call_in_session("load a key", |context| {
        context.load(parent, made.out_private.clone(), made.out_public.clone())
    })?;
    let persistent = PersistentTpmHandle::new(ROOT).expect("it is in the range");
    let kept = chip.call_in_session("keep a key", |context| {
        context.evict_control(Provision::Owner, key.into(), persistent.into())
    });
    let name = chip.call("describe a key", |context| context.read_public(key));
    chip.call("forget a key", |context| context.flush_context(key.into()))?;
    kept?;
    Ok(name?.1.value().to_vec())
}

fn make_index(
    chip: &mut Chip,
    parent: KeyHandle,
    index: u32,
    content: &[u8],
    auth: &Auth,
) -> Result<(), ChipError> {
    let handle: NvIndexHandle = chip.call_in_salted_session("define an index", parent, |context| {
        let template = objects::index_template(index, content.len())?;
        context.nv_define_space(Provision::Owner, Some(auth.clone()), template)
    })?;
    objects::authorise(chip, handle.into(), auth)?;
    chip.call_in_salted_session("write an index", parent, |context| {
        context.nv_write(NvAuth::NvIndex(handle), handle, MaxNvBuffer::try_from(content)?, 0)
    })
}

/// At `init`, the only auth value that can be wrong is the owner's.
fn of_owner(error: ChipError, owner_auth: &Auth) -> HsmError {
    if !error.is_wrong_auth() {
        return error.into();
    }
    HsmError::Token(if owner_auth.is_empty() {
        "the TPM has an owner who keeps his authorisation to himself: name the file that has it as owner_auth_file".to_owned()
    } else {
        "what is in owner_auth_file is not the authorisation of the TPM's owner".to_owned()
    })
}
