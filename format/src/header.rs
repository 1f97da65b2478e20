//! The first 96 bytes of every object, in clear.

use crate::archive_name::ObjectKind;
use crate::error::{FormatError, malformed};
use crate::limits::{FORMAT_VERSION, MAX_KEYRING_LEN, MAX_SEALED_LEN};
use crate::wire::Reader;

/// The first bytes of every object.
pub const MAGIC: [u8; 8] = *b"chatkeep";
/// Length of the header.
pub const HEADER_LEN: usize = 96;
/// Length of [`checksum`].
pub const CHECKSUM_LEN: usize = 8;

/// What stands in clear before the chunks, and is the associated data of each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub kind: ObjectKind,
    /// Which data root sealed it; in a keyring, the newest it wraps.
    pub key_epoch: u32,
    /// Length of the whole object, header included. Tells a cut-off object from a damaged one.
    pub sealed_len: u64,
    /// Fresh for every attempt to write an object.
    pub salt: [u8; 32],
    /// Commits to key, archive and name; in a keyring, the key check value.
    pub commitment: [u8; 32],
}

impl Header {
    /// The header's only encoding.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8] = FORMAT_VERSION;
        out[9] = self.kind as u8;
        out[12..16].copy_from_slice(&self.key_epoch.to_le_bytes());
        out[16..24].copy_from_slice(&self.sealed_len.to_le_bytes());
        out[24..56].copy_from_slice(&self.salt);
        out[56..88].copy_from_slice(&self.commitment);
        let sum = checksum(&out[..88]);
        out[88..].copy_from_slice(&sum);
        out
    }

    /// Reads the header of an object, given at least its first [`HEADER_LEN`] bytes.
    ///
    /// The checksum comes before the version, so that one flipped bit is damage and never "newer format": header
    /// length and checksum stay as they are in every version with this magic.
    pub fn decode(object: &[u8]) -> Result<Self, FormatError> {
        let magic = &object[..object.len().min(MAGIC.len())];
        if *magic != MAGIC[..magic.len()] {
            return Err(FormatError::NotOurs);
        }
        let header = object
            .first_chunk::<HEADER_LEN>()
            .ok_or(FormatError::Truncated { expected: HEADER_LEN as u64, actual: object.len() as u64 })?;
        if checksum(&header[..88]) != header[88..] {
            return Err(malformed("header"));
        }
        let mut reader = Reader::new(&header[8..88]);
        match reader.u8("header")? {
            0 => return Err(malformed("header")),
            FORMAT_VERSION => {}
            version => return Err(FormatError::NewerFormat { version }),
        }
        let kind = ObjectKind::from_byte(reader.u8("header")?).ok_or(malformed("header"))?;
        if reader.u16("header")? != 0 {
            return Err(malformed("header"));
        }
        let header = Self {
            kind,
            key_epoch: reader.u32("header")?,
            sealed_len: reader.u64("header")?,
            salt: reader.array("header")?,
            commitment: reader.array("header")?,
        };
        let limit = if kind == ObjectKind::Keyring { MAX_KEYRING_LEN } else { MAX_SEALED_LEN };
        if !(HEADER_LEN as u64..=limit as u64).contains(&header.sealed_len) {
            return Err(malformed("header"));
        }
        Ok(header)
    }

    /// Reads the header of a whole object and checks that the object is as long as it should be.
    pub fn decode_whole(object: &[u8]) -> Result<Self, FormatError> {
        let header = Self::decode(object)?;
        let actual = object.len() as u64;
        match actual.cmp(&header.sealed_len) {
            std::cmp::Ordering::Less => Err(FormatError::Truncated { expected: header.sealed_len, actual }),
            std::cmp::Ordering::Equal => Ok(header),
            std::cmp::Ordering::Greater => Err(FormatError::Trailing { expected: header.sealed_len, actual }),
        }
    }
}

/// Unkeyed checksum against accidents: the first 8 bytes of BLAKE3.
pub fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = blake3::hash(bytes);
    *hash.as_bytes().first_chunk().expect("a hash is longer than a checksum")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn header() -> Header {
        Header { kind: ObjectKind::Entry, key_epoch: 7, sealed_len: 5000, salt: [1; 32], commitment: [2; 32] }
    }

    /// Changes bytes and mends the checksum, as someone who means it would.
    fn forged(at: usize, value: u8) -> [u8; HEADER_LEN] {
        let mut bytes = header().encode();
        bytes[at] = value;
        let sum = checksum(&bytes[..88]);
        bytes[88..].copy_from_slice(&sum);
        bytes
    }

    #[test]
    fn a_header_reads_back() {
        assert_eq!(Header::decode(&header().encode()).unwrap(), header());
    }

    #[test]
    fn every_flipped_bit_is_foreign_or_damage_never_a_newer_format() {
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = header().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 64 { FormatError::NotOurs } else { malformed("header") };
            assert_eq!(Header::decode(&bytes).unwrap_err(), expected, "bit {bit}");
        }
    }

    #[test]
    fn every_cut_is_truncation() {
        for len in 0..HEADER_LEN {
            let error = Header::decode(&header().encode()[..len]).unwrap_err();
            assert_eq!(error, FormatError::Truncated { expected: 96, actual: len as u64 });
        }
    }

    #[test]
    fn intact_but_impossible_headers_are_refused() {
        assert_eq!(Header::decode(&forged(8, 2)).unwrap_err(), FormatError::NewerFormat { version: 2 });
        for (at, value) in [(8, 0), (9, 0), (9, 4), (10, 1), (11, 1), (23, 1)] {
            assert_eq!(Header::decode(&forged(at, value)).unwrap_err(), malformed("header"), "{at}");
        }
    }
}
