//! The vault's keys in a TPM, opened, and what is done with them. One thread owns it.

use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::{EncodedPoint, NonZeroScalar, ProjectivePoint, PublicKey};
use rand_core::OsRng;
use sha2::{Digest as _, Sha256};
use tss_esapi::Error;
use tss_esapi::handles::{KeyHandle, NvIndexHandle};
use tss_esapi::interface_types::resource_handles::NvAuth;
use tss_esapi::structures::{EccParameter, EccPoint, MaxNvBuffer};
use zeroize::Zeroizing;

use super::chip::{Chip, ChipError};
use super::make::AuthValues;
use super::objects::{self, HOST_LEN, INDICES, ROOT, SEAL_LEN};
use super::slots;
use crate::hsm::device_anchor::{ANCHOR_LEN, AnchorCell};
use crate::hsm::{DeviceError, HsmError, SealKey};

const READ_ANCHOR: &str = "read the anchor";
const WRITE_ANCHOR: &str = "write the anchor";

/// An open connection, and where the keys are.
pub(super) struct Tpm {
    chip: Chip,
    root: KeyHandle,
    seal: [(NvIndexHandle, Option<SealKey>); 2],
    anchor: NvIndexHandle,
}

/// What has to be in the host's memory while the vault runs.
pub(super) struct HostSecrets {
    /// Identity and digest key are derived from it.
    pub(super) host: Zeroizing<[u8; 32]>,
    /// The seal keys, oldest first; at least one.
    pub(super) seal: Vec<(SealKey, Zeroizing<[u8; 32]>)>,
}

impl Tpm {
    /// Finds the keys, reads what has to be in memory, and tests the rest. `is_ours` is asked about the root's Name before
    /// anything needs the auth value.
    pub(super) fn open(
        mut chip: Chip,
        auth: &AuthValues,
        is_ours: impl FnOnce(&[u8]) -> Result<(), HsmError>,
    ) -> Result<(Self, HostSecrets), HsmError> {
        complete(&mut chip)?;
        let (root, point, name) = objects::root(&mut chip)?;
        is_ours(&name)?;
        let handles = INDICES.map(|(number, len)| objects::index(&mut chip, number, len));
        let [host, seal_0, seal_1, anchor] = handles;
        let (host, seal, anchor) = (host?, [seal_0?, seal_1?], anchor?);
        objects::authorise(&mut chip, root.into(), &auth.root)?;
        for index in [host, seal[0], seal[1], anchor] {
            objects::authorise(&mut chip, index.into(), &auth.index)?;
        }

        let secret =
            objects::read(&mut chip, "read the secret for the host", host, HOST_LEN).map_err(of_vault)?;
        let (secret, bound_to) = secret.split_first_chunk::<32>().ok_or(DeviceError::Wrong)?;
        if bound_to != Sha256::digest(&name).as_slice() {
            return Err(HsmError::Token(format!(
                "the key 0x{ROOT:08x} is not the one that this vault was made with: every right password would give a wrong \
                 result"
            )));
        }
        let mut secrets = HostSecrets { host: Zeroizing::new(*secret), seal: Vec::new() };
        let mut slots = [(seal[0], None), (seal[1], None)];
        for (index, key) in &mut slots {
            let slot = objects::read(&mut chip, "read a seal key", *index, SEAL_LEN).map_err(of_vault)?;
            let decoded = slots::decode(&slot);
            *key = decoded.as_ref().map(|(key, _)| *key);
            secrets.seal.extend(decoded);
        }
        secrets.seal.sort_by_key(|(key, _)| key.id);
        if secrets.seal.is_empty() {
            return Err(HsmError::Token("the TPM has no seal key".to_owned()));
        }
        let mut tpm = Self { chip, root, seal: slots, anchor };
        objects::read(&mut tpm.chip, READ_ANCHOR, anchor, ANCHOR_LEN).map_err(of_vault)?;
        tpm.test_root(&to_projective(&point)?).map_err(HsmError::from)?;
        Ok((tpm, secrets))
    }

    /// K·B; `None` of a B that is not on the curve.
    pub(super) fn multiply(&mut self, element: &[u8]) -> Result<Vec<u8>, DeviceError> {
        let point = PublicKey::from_sec1_bytes(element).map_err(|_| DeviceError::Wrong)?;
        let point = to_tpm(&point.to_projective()).map_err(|_| DeviceError::Wrong)?;
        let root = self.root;
        let product =
            self.chip.call_with_password("multiply", |context| context.ecdh_z_gen(root, point.clone()))?;
        Ok(compressed(&to_projective(&product)?))
    }

    /// Makes the next seal key in the free place.
    pub(super) fn make_seal_key(
        &mut self,
        now_s: u64,
    ) -> Result<(SealKey, Zeroizing<[u8; 32]>), DeviceError> {
        let newest = self.seal.iter().filter_map(|(_, key)| *key).map(|key| key.id).max().unwrap_or(0);
        let free = self.seal.iter_mut().find(|(_, key)| key.is_none());
        let (index, place) = free.ok_or(DeviceError::Failed {
            doing: "make a seal key",
            said: "both places for seal keys are taken: an exchange is not finished".to_owned(),
        })?;
        let key = SealKey { id: newest + 1, made_at_s: now_s };
        let slot = slots::draw(key, &mut OsRng);
        objects::write(&mut self.chip, "write a seal key", *index, &*slot)?;
        *place = Some(key);
        slots::decode(&*slot).ok_or(DeviceError::Wrong)
    }

    /// Overwrites all seal keys but the newest.
    pub(super) fn destroy_old_seal_keys(&mut self) -> Result<(), DeviceError> {
        let newest = self.seal.iter().filter_map(|(_, key)| *key).map(|key| key.id).max();
        for (index, place) in &mut self.seal {
            if place.is_some_and(|key| Some(key.id) != newest) {
                objects::write(&mut self.chip, "destroy a seal key", *index, slots::EMPTY)?;
                *place = None;
            }
        }
        Ok(())
    }

    /// K·(b·G) must be b·(K·G), for a b that nobody could foresee.
    fn test_root(&mut self, public: &ProjectivePoint) -> Result<(), DeviceError> {
        let b = NonZeroScalar::random(&mut OsRng);
        let product = self.multiply(&compressed(&(ProjectivePoint::GENERATOR * *b)))?;
        if product == compressed(&(*public * *b)) { Ok(()) } else { Err(DeviceError::Wrong) }
    }
}

impl AnchorCell for Tpm {
    fn anchor(&mut self) -> Result<Vec<u8>, DeviceError> {
        Ok(objects::read(&mut self.chip, READ_ANCHOR, self.anchor, ANCHOR_LEN)?.to_vec())
    }

    fn set_anchor(&mut self, value: &[u8; ANCHOR_LEN]) -> Result<(), DeviceError> {
        Ok(objects::write(&mut self.chip, WRITE_ANCHOR, self.anchor, value)?)
    }

    /// In one session. Digests are no secret, but that the TPM answers and the vault asks must be sure.
    fn replace_anchor(
        &mut self,
        expected: &[u8; ANCHOR_LEN],
        next: &[u8; ANCHOR_LEN],
    ) -> Result<Option<Vec<u8>>, DeviceError> {
        let (index, auth) = (self.anchor, NvAuth::NvIndex(self.anchor));
        let replaced = self.chip.call_in_open_session(WRITE_ANCHOR, |context| {
            let found = context.nv_read(auth, index, ANCHOR_LEN as u16, 0)?;
            if found.value() != expected {
                return Ok(Some(found.value().to_vec()));
            }
            context.nv_write(auth, index, MaxNvBuffer::try_from(&next[..])?, 0).map(|()| None)
        });
        Ok(replaced?)
    }
}

/// Refuses a TPM that has some of our objects and not all.
fn complete(chip: &mut Chip) -> Result<(), HsmError> {
    let found = objects::found(chip)?;
    let all = INDICES.iter().map(|(index, _)| *index).chain([ROOT]);
    let missing: Vec<String> =
        all.filter(|handle| !found.contains(handle)).map(|handle| format!("0x{handle:08x}")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(HsmError::Token(format!(
        "the TPM has lost a part of the vault's keys ({}): somebody removed it",
        missing.join(", ")
    )))
}

/// Of the first commands that need the auth value.
fn of_vault(error: ChipError) -> HsmError {
    if error.is_wrong_auth() {
        return HsmError::Token(
            "what is in auth_file is not the auth value of the vault's keys: another file, or somebody undefined the \
             TPM's indices and defined them anew"
                .to_owned(),
        );
    }
    error.into()
}

fn compressed(point: &ProjectivePoint) -> Vec<u8> {
    point.to_affine().to_encoded_point(true).as_bytes().to_vec()
}

fn to_tpm(point: &ProjectivePoint) -> Result<EccPoint, Error> {
    let point = point.to_affine().to_encoded_point(false);
    let coordinate = |bytes: Option<&[u8]>| EccParameter::try_from(bytes.unwrap_or_default());
    Ok(EccPoint::new(coordinate(point.x().map(|x| &x[..]))?, coordinate(point.y().map(|y| &y[..]))?))
}

/// A point of the curve, or an error. Some TPMs leave out zeros in front of a coordinate.
fn to_projective(point: &EccPoint) -> Result<ProjectivePoint, DeviceError> {
    let [x, y] = [point.x(), point.y()].map(|coordinate| padded(coordinate.value()));
    let (x, y) = (x.ok_or(DeviceError::Wrong)?, y.ok_or(DeviceError::Wrong)?);
    let point = EncodedPoint::from_affine_coordinates(&x.into(), &y.into(), false);
    let point = PublicKey::from_sec1_bytes(point.as_bytes()).map_err(|_| DeviceError::Wrong)?;
    Ok(point.to_projective())
}

fn padded(bytes: &[u8]) -> Option<[u8; 32]> {
    let mut padded = [0; 32];
    padded[32_usize.checked_sub(bytes.len())?..].copy_from_slice(bytes);
    Some(padded)
}
