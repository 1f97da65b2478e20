//! What tests and the maker of vectors share: a known random source, damage, and sealing by hand.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod json;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use chatkeep_crypto::{DamagedPart, OpenError};
use chatkeep_format::{ArchiveId, CHUNK_LEN, Header, ObjectName, checksum, padded_len, sealed_len};
use hkdf::Hkdf;
use rand_core::{CryptoRng, RngCore, impls};
use sha2::Sha256;

/// BLAKE3 in counter mode: the same bytes in every run. For tests only.
pub(crate) struct KnownRng(blake3::OutputReader);

impl KnownRng {
    pub(crate) fn new(seed: &str) -> Self {
        Self(blake3::Hasher::new().update(seed.as_bytes()).finalize_xof())
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill_bytes(&mut bytes);
        bytes
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        self.bytes(N).try_into().unwrap()
    }
}

impl RngCore for KnownRng {
    fn next_u32(&mut self) -> u32 {
        impls::next_u32_via_fill(self)
    }
    fn next_u64(&mut self) -> u64 {
        impls::next_u64_via_fill(self)
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        self.0.fill(dest);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for KnownRng {}

/// The error as vectors write it.
pub(crate) fn error_name(error: &OpenError) -> String {
    match error {
        OpenError::WrongKey => "WrongKey".to_owned(),
        OpenError::NewerFormat { version } => format!("NewerFormat {version}"),
        OpenError::UnknownKeyEpoch { epoch } => format!("UnknownKeyEpoch {epoch}"),
        OpenError::Truncated { .. } => "Truncated".to_owned(),
        OpenError::Damaged { what: DamagedPart::Trailing } => "Damaged trailing".to_owned(),
        OpenError::Damaged { what } => format!("Damaged {what}"),
        OpenError::NotThisObject => "NotThisObject".to_owned(),
        OpenError::NotOurs => "NotOurs".to_owned(),
        other => panic!("vectors have no word for {other:?}"),
    }
}

/// A stream as the format wants it, around any frame and any claim about its plaintext.
pub(crate) fn stream(frame: &[u8], plain_len: u64) -> Vec<u8> {
    let mut stream = [&(frame.len() as u64).to_le_bytes()[..], &plain_len.to_le_bytes(), frame].concat();
    stream.resize(padded_len(stream.len() as u64) as usize, 0);
    stream
}

/// Seals any stream, written from docs/format.md with nothing of the crate: what it opens is not merely what it wrote.
pub(crate) fn seal_by_hand(
    root: &[u8; 32],
    epoch: u32,
    salt: [u8; 32],
    archive: &ArchiveId,
    name: ObjectName,
    stream: &[u8],
) -> Vec<u8> {
    let mut info = b"chatkeep/1 object".to_vec();
    info.push(name.kind() as u8);
    info.extend_from_slice(&archive.0);
    match name {
        ObjectName::Keyring(number) | ObjectName::Entry(number) => {
            info.extend_from_slice(&number.to_le_bytes());
        }
        ObjectName::Pack(name) => info.extend_from_slice(&name),
    }
    let mut derived = [0; 64];
    Hkdf::<Sha256>::new(Some(&salt), root).expand(&info, &mut derived).unwrap();
    let header = Header {
        kind: name.kind(),
        key_epoch: epoch,
        sealed_len: sealed_len(stream.len() as u64),
        salt,
        commitment: derived[32..].try_into().unwrap(),
    }
    .encode();
    let cipher = Aes256Gcm::new_from_slice(&derived[..32]).unwrap();
    let chunks = stream.chunks(CHUNK_LEN);
    let count = chunks.len();
    let mut out = header.to_vec();
    for (index, chunk) in chunks.enumerate() {
        let mut nonce = [0u8; 12];
        nonce[7..11].copy_from_slice(&(index as u32).to_be_bytes());
        nonce[11] = u8::from(index + 1 == count);
        let payload = Payload { msg: chunk, aad: &header };
        out.extend(cipher.encrypt(&Nonce::from(nonce), payload).unwrap());
    }
    out
}

/// Makes the header's checksum right again.
pub(crate) fn mend_header(object: &mut [u8]) {
    let sum = checksum(&object[..88]);
    object[88..96].copy_from_slice(&sum);
}

/// Makes the checksum at the end of a keyring right again.
pub(crate) fn mend_end(object: &mut [u8]) {
    let end = object.len() - 8;
    let sum = checksum(&object[..end]);
    object[end..].copy_from_slice(&sum);
}
