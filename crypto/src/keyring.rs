//! Writing and opening keyrings.

use std::collections::BTreeMap;

use chatkeep_format::{
    ArchiveId, FormatError, Header, Keyring, Keyslot, ObjectKind, WRAPPED_LEN, WrappedEpoch,
};
use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::backup_key::BackupKey;
use crate::error::{DamagedPart, OpenError};
use crate::roots::DataRoots;
use crate::schedule;

const DAMAGED: OpenError = OpenError::Damaged { what: DamagedPart::Keyring };

/// Writes a keyring that wraps every root under `key`.
///
/// Panics if `counter`, slots or epochs are past the limits of the format: slots come from a keyring that was read or
/// from the vault's client, both of which keep them.
pub fn write_keyring(
    archive: &ArchiveId,
    counter: u64,
    key: &BackupKey,
    roots: &DataRoots,
    slots: Vec<Keyslot>,
    rng: &mut impl CryptoRngCore,
) -> Vec<u8> {
    let mut salt = [0; 32];
    rng.fill_bytes(&mut salt);
    let wrap = |key_epoch| {
        let root = roots.root(key_epoch).expect("the roots listed this epoch");
        let mut wrapped = [0; WRAPPED_LEN];
        // one message under a key of its own: epoch and archive are in its derivation, the rest is under the MAC
        schedule::wrap_key(key.expose(), &salt, archive, key_epoch).seal_chunk(
            0,
            true,
            &[],
            root,
            &mut wrapped,
        );
        WrappedEpoch { key_epoch, wrapped }
    };
    let mut keyring = Keyring {
        archive: *archive,
        counter,
        salt,
        key_check: schedule::key_check(key.expose(), &salt),
        slots,
        epochs: roots.epochs().map(wrap).collect(),
        mac: [0; 32],
    };
    keyring.mac = *mac(&keyring, key).expect("within the limits of the format").as_bytes();
    keyring.encode().expect("within the limits of the format")
}

/// Reads a keyring: its structure and checksum, and that it is the one that was asked for. Needs no key.
pub fn read_keyring(bytes: &[u8], archive: &ArchiveId, counter: u64) -> Result<Keyring, OpenError> {
    let header = Header::decode_whole(bytes).map_err(|e| OpenError::from_format(&e, DamagedPart::Header))?;
    if header.kind != ObjectKind::Keyring {
        return Err(OpenError::NotThisObject);
    }
    let keyring = Keyring::decode(bytes).map_err(|e| OpenError::from_format(&e, DamagedPart::Keyring))?;
    if keyring.archive != *archive || keyring.counter != counter {
        return Err(OpenError::NotThisObject);
    }
    Ok(keyring)
}

/// Opens a keyring that [was read](read_keyring): [`OpenError::WrongKey`] or [`OpenError::Damaged`] when it does not.
///
/// The key is wrong only if the check value says so. With the right key, whatever fails afterwards was changed.
pub fn open_keyring(keyring: &Keyring, key: &BackupKey) -> Result<DataRoots, OpenError> {
    let check = schedule::key_check(key.expose(), &keyring.salt);
    if !bool::from(check.ct_eq(&keyring.key_check)) {
        return Err(OpenError::WrongKey);
    }
    let expected = mac(keyring, key).map_err(|_| DAMAGED)?;
    if !bool::from(expected.as_bytes().ct_eq(&keyring.mac)) {
        return Err(DAMAGED);
    }
    let mut by_epoch = BTreeMap::new();
    for WrappedEpoch { key_epoch, wrapped } in &keyring.epochs {
        let cipher = schedule::wrap_key(key.expose(), &keyring.salt, &keyring.archive, *key_epoch);
        let mut root = Zeroizing::new([0; 32]);
        if !cipher.open_chunk(0, true, &[], wrapped, &mut *root) {
            return Err(DAMAGED);
        }
        by_epoch.insert(*key_epoch, root);
    }
    DataRoots::from_epochs(by_epoch).ok_or(DAMAGED)
}

/// Over every byte before the MAC. The encoding is the only one, so that of what was read is what was written.
fn mac(keyring: &Keyring, key: &BackupKey) -> Result<blake3::Hash, FormatError> {
    let mac_key = schedule::keyring_mac_key(key.expose(), &keyring.salt);
    Ok(blake3::keyed_hash(&mac_key, &keyring.encode_before_mac()?))
}
