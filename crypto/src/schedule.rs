//! Every key derivation, with its exact info string.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit, Nonce, Tag};
use chatkeep_format::{ArchiveId, ObjectName, TAG_LEN};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

const KEYRING_CHECK: &[u8] = b"chatkeep/1 keyring check";
const KEYRING_MAC: &[u8] = b"chatkeep/1 keyring mac";
const KEYRING_WRAP: &[u8] = b"chatkeep/1 keyring wrap";
const NAMES: &[u8] = b"chatkeep/1 names";
const DRILL: &[u8] = b"chatkeep/1 drill";
const OBJECT: &[u8] = b"chatkeep/1 object";

fn derive<const N: usize>(key: &[u8; 32], salt: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    Hkdf::<Sha256>::new(Some(salt), key)
        .expand_multi_info(info, &mut *out)
        .expect("32 and 64 bytes are within what HKDF-SHA256 gives");
    out
}

/// Tells whether a key is the right one. Bound to the salt alone, so that nothing but key and keyring matter.
pub(crate) fn key_check(key: &[u8; 32], salt: &[u8; 32]) -> [u8; 32] {
    *derive(key, salt, &[KEYRING_CHECK])
}

/// Key of the keyring's MAC.
pub(crate) fn keyring_mac_key(key: &[u8; 32], salt: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    derive(key, salt, &[KEYRING_MAC])
}

/// Key that wraps the data root of one key epoch in one keyring.
pub(crate) fn wrap_key(key: &[u8; 32], salt: &[u8; 32], archive: &ArchiveId, epoch: u32) -> Cipher {
    let key = derive::<32>(key, salt, &[KEYRING_WRAP, &archive.0, &epoch.to_le_bytes()]);
    Cipher::new(&key)
}

/// Key of the hash that names packs.
pub(crate) fn names_key(root: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    derive(root, &[], &[NAMES])
}

/// Key of the MAC of what a rehearsal of a restore found.
pub(crate) fn drill_key(root: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    derive(root, &[], &[DRILL])
}

/// Key and commitment of one object.
pub(crate) fn object_key(
    root: &[u8; 32],
    salt: &[u8; 32],
    archive: &ArchiveId,
    name: ObjectName,
) -> (Cipher, [u8; 32]) {
    let kind = [name.kind() as u8];
    let both = derive::<64>(root, salt, &[OBJECT, &kind, &archive.0, &name.to_bytes()]);
    let (key, commitment) = both.split_first_chunk::<32>().expect("64 bytes were derived");
    (Cipher::new(key), *commitment.first_chunk().expect("64 bytes were derived"))
}

/// AES-256-GCM under a key that seals one object only, so that counting nonces never repeat.
pub(crate) struct Cipher(Aes256Gcm);

impl Cipher {
    fn new(key: &[u8; 32]) -> Self {
        Self(Aes256Gcm::new(key.into()))
    }

    /// Seals chunk `index` of `plaintext` into `out`, which is [`TAG_LEN`] bytes longer.
    pub(crate) fn seal_chunk(&self, index: u64, last: bool, aad: &[u8], plaintext: &[u8], out: &mut [u8]) {
        let (body, tag_out) = out.split_at_mut(plaintext.len());
        let buffer = InOutBuf::new(plaintext, body).expect("both are as long as the plaintext");
        let tag = self
            .0
            .encrypt_inout_detached(&nonce(index, last), aad, buffer)
            .expect("a chunk is far below what GCM can seal");
        tag_out.copy_from_slice(&tag);
    }

    /// Opens chunk `index` into `out`, which is [`TAG_LEN`] bytes shorter. False if it is not authentic.
    #[must_use]
    pub(crate) fn open_chunk(
        &self,
        index: u64,
        last: bool,
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> bool {
        let Some((body, tag)) = sealed.split_last_chunk::<TAG_LEN>() else { return false };
        let Ok(buffer) = InOutBuf::new(body, out) else { return false };
        let tag: &Tag<Aes256Gcm> = tag.into();
        self.0.decrypt_inout_detached(&nonce(index, last), aad, buffer, tag).is_ok()
    }
}

/// 11 bytes of big-endian index and the last flag, as in age.
fn nonce(index: u64, last: bool) -> Nonce<Aes256Gcm> {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&index.to_be_bytes());
    nonce[11] = u8::from(last);
    nonce.into()
}
