//! The keyring: keyslots and wrapped data roots, in clear; what a restore on a new machine reads first.

use crate::archive_name::{ArchiveId, ObjectKind};
use crate::error::{FormatError, malformed};
use crate::header::{CHECKSUM_LEN, HEADER_LEN, Header, checksum};
use crate::limits::{MAX_COUNTER, MAX_KEY_EPOCHS, MAX_KEYRING_LEN, MAX_KEYSLOT_LEN, MAX_KEYSLOTS};
use crate::wire::Reader;

/// Length of a wrapped data root: 32 bytes and a tag.
pub const WRAPPED_LEN: usize = 48;
const MAC_LEN: usize = 32;
const SLOT_RAW: u8 = 1;
const SLOT_PASSWORD: u8 = 2;

/// One way to come by the backup key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keyslot {
    /// The user keeps the 64 digits.
    Raw,
    /// The backup key under a password, through the vault; the body is the vault's slot.
    Password(Vec<u8>),
    /// A kind of a later release: kept as it is, never dropped.
    Unknown {
        /// Its number.
        kind: u8,
        /// Its bytes.
        body: Vec<u8>,
    },
}

impl Keyslot {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Self::Raw => (SLOT_RAW, &[]),
            Self::Password(body) => (SLOT_PASSWORD, body),
            Self::Unknown { kind, body } => (*kind, body),
        }
    }

    fn from_parts(kind: u8, body: &[u8]) -> Result<Self, FormatError> {
        match kind {
            0 => Err(malformed("keyslot")),
            SLOT_RAW if body.is_empty() => Ok(Self::Raw),
            SLOT_RAW => Err(malformed("keyslot")),
            SLOT_PASSWORD => Ok(Self::Password(body.to_vec())),
            kind => Ok(Self::Unknown { kind, body: body.to_vec() }),
        }
    }
}

/// The data root of one key epoch, wrapped under the backup key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedEpoch {
    /// Counts rotations, from 0.
    pub key_epoch: u32,
    /// AES-256-GCM ciphertext and tag.
    pub wrapped: [u8; WRAPPED_LEN],
}

/// The keyring object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyring {
    /// The archive it belongs to.
    pub archive: ArchiveId,
    /// Counts the keyrings of the archive; part of the object's name. The highest that authenticates counts.
    pub counter: u64,
    /// Fresh for every keyring written; the salt of all that is derived from the backup key.
    pub salt: [u8; 32],
    /// Tells a wrong key from damage.
    pub key_check: [u8; 32],
    /// The ways to the backup key.
    pub slots: Vec<Keyslot>,
    /// Data roots by strictly ascending epoch, at least one.
    pub epochs: Vec<WrappedEpoch>,
    /// Over every byte before it, under the backup key.
    pub mac: [u8; MAC_LEN],
}

impl Keyring {
    /// The bytes the MAC covers: everything before it. Fails if a limit is passed or the epochs are not ascending.
    pub fn encode_before_mac(&self) -> Result<Vec<u8>, FormatError> {
        let refuse = |what| Err(FormatError::Unencodable { what });
        let ascending = self.epochs.windows(2).all(|pair| pair[0].key_epoch < pair[1].key_epoch);
        if self.epochs.len() > MAX_KEY_EPOCHS || !ascending {
            return refuse("key epochs");
        }
        let Some(newest) = self.epochs.last() else { return refuse("key epochs") };
        if self.slots.len() > MAX_KEYSLOTS {
            return refuse("keyslots");
        }
        if self.counter > MAX_COUNTER {
            return refuse("keyring counter");
        }
        let mut body = Vec::new();
        body.extend_from_slice(&self.archive.0);
        body.extend_from_slice(&self.counter.to_le_bytes());
        body.push(self.slots.len() as u8);
        for slot in &self.slots {
            let (kind, bytes) = slot.parts();
            let canonical = Keyslot::from_parts(kind, bytes).is_ok_and(|parsed| parsed == *slot);
            if bytes.len() > MAX_KEYSLOT_LEN || !canonical {
                return refuse("keyslot");
            }
            body.push(kind);
            body.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
            body.extend_from_slice(bytes);
        }
        body.extend_from_slice(&(self.epochs.len() as u16).to_le_bytes());
        for epoch in &self.epochs {
            body.extend_from_slice(&epoch.key_epoch.to_le_bytes());
            body.extend_from_slice(&epoch.wrapped);
        }
        let header = Header {
            kind: ObjectKind::Keyring,
            key_epoch: newest.key_epoch,
            sealed_len: (HEADER_LEN + body.len() + MAC_LEN + CHECKSUM_LEN) as u64,
            salt: self.salt,
            commitment: self.key_check,
        };
        Ok([&header.encode()[..], &body].concat())
    }

    /// The whole object.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let mut out = self.encode_before_mac()?;
        out.extend_from_slice(&self.mac);
        let sum = checksum(&out);
        out.extend_from_slice(&sum);
        Ok(out)
    }

    /// Reads a keyring and checks its checksum; its MAC needs the key. Another kind of object is malformed "kind".
    pub fn decode(object: &[u8]) -> Result<Self, FormatError> {
        let header = Header::decode_whole(object)?;
        if header.kind != ObjectKind::Keyring {
            return Err(malformed("kind"));
        }
        debug_assert!(object.len() <= MAX_KEYRING_LEN, "the header's length was checked");
        let (covered, sum) = object.split_last_chunk::<CHECKSUM_LEN>().ok_or(malformed("keyring"))?;
        if covered.len() < HEADER_LEN || checksum(covered) != *sum {
            return Err(malformed("keyring"));
        }
        let mut reader = Reader::new(&covered[HEADER_LEN..]);
        let archive = ArchiveId(reader.array("keyring")?);
        let counter = reader.u64("keyring")?;
        if counter > MAX_COUNTER {
            return Err(malformed("keyring"));
        }
        let slot_count = usize::from(reader.u8("keyslots")?);
        if slot_count > MAX_KEYSLOTS {
            return Err(malformed("keyslots"));
        }
        let mut slots = Vec::with_capacity(slot_count);
        for _ in 0..slot_count {
            let kind = reader.u8("keyslot")?;
            let len = reader.u16_up_to(MAX_KEYSLOT_LEN, "keyslot")?;
            slots.push(Keyslot::from_parts(kind, reader.bytes(len, "keyslot")?)?);
        }
        let epoch_count = reader.u16_up_to(MAX_KEY_EPOCHS, "key epochs")?;
        let mut epochs: Vec<WrappedEpoch> = Vec::with_capacity(epoch_count);
        for _ in 0..epoch_count {
            let key_epoch = reader.u32("key epochs")?;
            if epochs.last().is_some_and(|before| before.key_epoch >= key_epoch) {
                return Err(malformed("key epochs"));
            }
            epochs.push(WrappedEpoch { key_epoch, wrapped: reader.array("key epochs")? });
        }
        if epochs.last().map(|newest| newest.key_epoch) != Some(header.key_epoch) {
            return Err(malformed("key epochs"));
        }
        let mac = reader.array("keyring")?;
        reader.finish("keyring")?;
        Ok(Self { archive, counter, salt: header.salt, key_check: header.commitment, slots, epochs, mac })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn keyring() -> Keyring {
        Keyring {
            archive: ArchiveId([1; 16]),
            counter: 3,
            salt: [2; 32],
            key_check: [3; 32],
            slots: vec![
                Keyslot::Raw,
                Keyslot::Password(vec![4; 100]),
                Keyslot::Unknown { kind: 200, body: vec![] },
            ],
            epochs: vec![
                WrappedEpoch { key_epoch: 0, wrapped: [5; WRAPPED_LEN] },
                WrappedEpoch { key_epoch: 4, wrapped: [6; WRAPPED_LEN] },
            ],
            mac: [7; 32],
        }
    }

    #[test]
    fn a_keyring_reads_back() {
        assert_eq!(Keyring::decode(&keyring().encode().unwrap()).unwrap(), keyring());
    }

    #[test]
    fn cut_extended_and_flipped_keyrings_are_told_apart() {
        let bytes = keyring().encode().unwrap();
        for len in 0..bytes.len() {
            let error = Keyring::decode(&bytes[..len]).unwrap_err();
            assert!(matches!(error, FormatError::Truncated { .. }), "{len}: {error}");
        }
        for bit in 64..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = Keyring::decode(&flipped).unwrap_err();
            assert!(matches!(error, FormatError::Malformed { .. }), "bit {bit}: {error}");
        }
        let extended = [&bytes[..], &[0]].concat();
        assert!(matches!(Keyring::decode(&extended), Err(FormatError::Trailing { .. })));
    }

    /// With its checksum mended, a changed byte gives an error or another keyring with this very encoding.
    #[test]
    fn forged_structure_never_panics() {
        let bytes = keyring().encode().unwrap();
        let end = bytes.len() - CHECKSUM_LEN;
        for at in HEADER_LEN..end {
            for value in [0, 1, 0x7f, 0xff] {
                let mut forged = bytes.clone();
                forged[at] = value;
                let sum = checksum(&forged[..end]);
                forged[end..].copy_from_slice(&sum);
                if let Ok(read) = Keyring::decode(&forged) {
                    assert_eq!(read.encode().unwrap(), forged);
                }
            }
        }
    }

    #[test]
    fn what_the_format_cannot_say_is_not_written() {
        let check = |change: fn(&mut Keyring), what| {
            let mut keyring = keyring();
            change(&mut keyring);
            assert_eq!(keyring.encode().unwrap_err(), FormatError::Unencodable { what });
        };
        check(|k| k.epochs.clear(), "key epochs");
        check(|k| k.epochs.reverse(), "key epochs");
        check(|k| k.slots = vec![Keyslot::Raw; 33], "keyslots");
        check(|k| k.slots = vec![Keyslot::Password(vec![0; MAX_KEYSLOT_LEN + 1])], "keyslot");
        check(|k| k.slots = vec![Keyslot::Unknown { kind: 1, body: vec![] }], "keyslot");
        check(|k| k.counter = MAX_COUNTER + 1, "keyring counter");
    }
}
