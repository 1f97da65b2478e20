//! Which objects in the TPM are the vault's, what they may be used for, and how they are made.
//!
//! They are found by fixed handles: one vault in one TPM. The root is persistent: a key that had to be loaded for every
//! process would be shuffled in and out by the kernel's resource manager with every command. None of them counts wrong auth values
//! (`noDA`): that count is shared by everything in the TPM, so anybody could lock the vault out, and the vault others.

use tss_esapi::Error;
use tss_esapi::attributes::{
    NvIndexAttributes, NvIndexAttributesBuilder, ObjectAttributes, ObjectAttributesBuilder,
};
use tss_esapi::handles::{
    KeyHandle, NvIndexHandle, NvIndexTpmHandle, ObjectHandle, PersistentTpmHandle, TpmHandle,
};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::structures::{
    Auth, EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, MaxNvBuffer, NvPublic,
    NvPublicBuilder, Public, PublicBuilder, PublicEccParametersBuilder, SymmetricDefinitionObject,
};
use zeroize::Zeroizing;

use super::chip::{Chip, ChipError};
use crate::hsm::HsmError;
use crate::hsm::device_anchor::ANCHOR_LEN;

/// K: a P-256 key for `TPM2_ECDH_ZGen`, persistent. In the owner's range, past the handles that the TCG reserves.
pub(super) const ROOT: u32 = 0x8102_c4e0;
/// What the host needs: the secret that identity and digest key are derived from, and the digest of the root's Name.
pub(super) const HOST: u32 = 0x0180_c4e0;
/// Two places for seal keys: a new one is written before the old one is overwritten.
pub(super) const SEAL: [u32; 2] = [0x0180_c4e1, 0x0180_c4e2];
/// Seq and root.
pub(super) const ANCHOR: u32 = 0x0180_c4e3;

/// Secret, digest.
pub(super) const HOST_LEN: usize = 32 + 32;
/// Number, made at, key; all zeros: no key.
pub(super) const SEAL_LEN: usize = 4 + 8 + 32;

/// All NV indices, and how many bytes each has.
pub(super) const INDICES: [(u32, usize); 4] =
    [(HOST, HOST_LEN), (SEAL[0], SEAL_LEN), (SEAL[1], SEAL_LEN), (ANCHOR, ANCHOR_LEN)];

/// Those of our handles that are in use.
pub(super) fn found(chip: &mut Chip) -> Result<Vec<u32>, ChipError> {
    let mut found = chip.handles(ROOT, 1)?;
    found.extend(chip.handles(HOST, INDICES.len() as u32)?);
    Ok(found)
}

/// K, as it is made. It can be used by whoever knows its auth value, and for nothing but multiplying; it has never been
/// outside of the TPM, and cannot leave.
pub(super) fn root_template() -> Result<Public, Error> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(root_attributes()?)
        .with_ecc_parameters(
            PublicEccParametersBuilder::new()
                .with_ecc_scheme(EccScheme::EcDh(HashScheme::new(HashingAlgorithm::Sha256)))
                .with_curve(EccCurve::NistP256)
                .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
                .with_is_decryption_key(true)
                .build()?,
        )
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

fn root_attributes() -> Result<ObjectAttributes, Error> {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_decrypt(true)
        .build()
}

/// The key under which K is made, and with which the secrets of `init` travel. Derived from the owner's seed anew when it is
/// needed. K itself is no such key: who knows the owner's authorisation could derive it again, with an auth value of his own.
pub(super) fn parent_template() -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    );
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters.build()?)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// The root's public point and Name, if it is a key that was made in this TPM and cannot leave it.
pub(super) fn root(chip: &mut Chip) -> Result<(KeyHandle, EccPoint, Vec<u8>), HsmError> {
    let handle = PersistentTpmHandle::new(ROOT).expect("it is in the range");
    let key = chip.call("find the root key", |context| {
        context.tr_from_tpm_public(TpmHandle::Persistent(handle)).map(KeyHandle::from)
    })?;
    let (public, name, _) = chip.call("describe the root key", |context| context.read_public(key))?;
    match public {
        Public::Ecc { object_attributes, parameters, unique, .. }
            if root_attributes().is_ok_and(|wanted| wanted == object_attributes)
                && parameters.ecc_curve() == EccCurve::NistP256 =>
        {
            Ok((key, unique, name.value().to_vec()))
        }
        _ => Err(HsmError::Token(format!(
            "the key 0x{ROOT:08x} was not made in this TPM for a vault, or can be taken out of it"
        ))),
    }
}

/// Reads and writes need the auth value, and nothing else does: not even the owner may, though he can undefine it. Not
/// `orderly`: an orderly index is in memory that a loss of power takes back to its state at the last shutdown.
fn index_attributes() -> Result<NvIndexAttributes, Error> {
    NvIndexAttributesBuilder::new().with_auth_read(true).with_auth_write(true).with_no_da(true).build()
}

/// What an index of `len` bytes is defined as.
pub(super) fn index_template(index: u32, len: usize) -> Result<NvPublic, Error> {
    NvPublicBuilder::new()
        .with_nv_index(NvIndexTpmHandle::new(index)?)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(index_attributes()?)
        .with_data_area_size(len)
        .build()
}

/// One of our indices, if it is as we define them and was written.
pub(super) fn index(chip: &mut Chip, number: u32, len: usize) -> Result<NvIndexHandle, HsmError> {
    let handle = NvIndexTpmHandle::new(number).expect("it is in the range");
    let index = chip.call("find an index", |context| {
        context.tr_from_tpm_public(TpmHandle::NvIndex(handle)).map(NvIndexHandle::from)
    })?;
    let (public, _) = chip.call("describe an index", |context| context.nv_read_public(index))?;
    let attributes = public.attributes();
    let written = index_attributes()
        .and_then(|wanted| NvIndexAttributesBuilder::with_attributes(wanted).with_written(true).build());
    if written.is_ok_and(|wanted| wanted == attributes) && public.data_size() == len {
        return Ok(index);
    }
    let why = if attributes.written() { "is not as a vault defines it" } else { "was never written" };
    Err(HsmError::Token(format!("the index 0x{number:08x} {why}: somebody undefined it and defined it anew")))
}

/// Lets later commands use it.
pub(super) fn authorise(chip: &mut Chip, object: ObjectHandle, auth: &Auth) -> Result<(), ChipError> {
    chip.call("take an auth value", |context| context.tr_set_auth(object, auth.clone()))
}

/// All of an index.
pub(super) fn read(
    chip: &mut Chip,
    doing: &'static str,
    index: NvIndexHandle,
    len: usize,
) -> Result<Zeroizing<Vec<u8>>, ChipError> {
    let read =
        chip.call_in_session(doing, |context| context.nv_read(NvAuth::NvIndex(index), index, len as u16, 0))?;
    Ok(Zeroizing::new(read.value().to_vec()))
}

/// All of an index; either all of it is replaced, or nothing is.
pub(super) fn write(
    chip: &mut Chip,
    doing: &'static str,
    index: NvIndexHandle,
    bytes: &[u8],
) -> Result<(), ChipError> {
    chip.call_in_session(doing, |context| {
        let bytes = MaxNvBuffer::try_from(bytes)?;
        context.nv_write(NvAuth::NvIndex(index), index, bytes, 0)
    })
}

/// Takes back what a failed `init` left. The owner's authorisation must be set.
pub(super) fn remove_all(chip: &mut Chip) -> Result<(), ChipError> {
    for handle in found(chip)? {
        if handle == ROOT {
            let persistent = PersistentTpmHandle::new(ROOT).expect("it is in the range");
            chip.call_in_session("remove the root key", |context| {
                let key = context.execute_without_session(|context| {
                    context.tr_from_tpm_public(TpmHandle::Persistent(persistent))
                })?;
                context.evict_control(Provision::Owner, key, persistent.into()).map(drop)
            })?;
        } else {
            let number = NvIndexTpmHandle::new(handle).expect("the TPM listed it");
            chip.call_in_session("undefine an index", |context| {
                let index = context.execute_without_session(|context| {
                    context.tr_from_tpm_public(TpmHandle::NvIndex(number))
                })?;
                context.nv_undefine_space(Provision::Owner, index.into())
            })?;
        }
    }
    Ok(())
}
