//! Names of archives and objects, and the keys under which stores hold them.

use std::fmt;
use std::str::FromStr;

use crate::limits::MAX_COUNTER;

/// Names one archive: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveId(pub [u8; 16]);

impl fmt::Display for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArchiveId({self})")
    }
}

/// The text is not 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an archive id is 32 lower-case hex digits")]
pub struct InvalidArchiveId;

impl FromStr for ArchiveId {
    type Err = InvalidArchiveId;

    fn from_str(text: &str) -> Result<Self, InvalidArchiveId> {
        parse_hex(text).map(ArchiveId).ok_or(InvalidArchiveId)
    }
}

/// What an object is. The number is its byte in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// Keyslots and wrapped key epochs; in clear, authenticated under the backup key.
    Keyring = 1,
    /// Publishes one recovery point.
    Entry = 2,
    /// Bulk pages of one database.
    Pack = 3,
}

impl ObjectKind {
    /// The kind of this byte in a header.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Keyring),
            2 => Some(Self::Entry),
            3 => Some(Self::Pack),
            _ => None,
        }
    }
}

/// Which object of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// The keyring with this counter.
    Keyring(u64),
    /// The entry with this seq, from 1.
    Entry(u64),
    /// The pack with this name, a keyed hash of its plaintext.
    Pack([u8; 16]),
}

impl ObjectName {
    /// The kind of object this names.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Keyring(_) => ObjectKind::Keyring,
            Self::Entry(_) => ObjectKind::Entry,
            Self::Pack(_) => ObjectKind::Pack,
        }
    }

    /// The key under which a store holds the object. Numbers past [`MAX_COUNTER`] have no key that [`parse`](Self::parse) reads.
    pub fn store_key(&self, archive: &ArchiveId) -> String {
        match self {
            Self::Keyring(counter) => format!("{archive}/keyring/{counter:016}"),
            Self::Entry(seq) => format!("{archive}/log/{seq:016}"),
            Self::Pack(name) => {
                let name = ArchiveId(*name); // the same 32 digits
                format!("{archive}/pack/{:02x}/{name}", name.0[0])
            }
        }
    }

    /// Reads a store's key back. `None` for whatever is not exactly a key that [`store_key`](Self::store_key) makes.
    pub fn parse(store_key: &str) -> Option<(ArchiveId, Self)> {
        let (archive, rest) = store_key.split_once('/')?;
        let archive = archive.parse().ok()?;
        let (folder, rest) = rest.split_once('/')?;
        let name = match folder {
            "keyring" => Self::Keyring(parse_counter(rest)?),
            "log" => Self::Entry(parse_counter(rest).filter(|seq| *seq > 0)?),
            "pack" => {
                let (prefix, name) = rest.split_once('/')?;
                Self::Pack(parse_hex(name).filter(|_| name.get(..2) == Some(prefix))?)
            }
            _ => return None,
        };
        Some((archive, name))
    }

    /// The bytes that stand for the name where keys are derived: the number as u64 LE, or the pack's 16 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Keyring(number) | Self::Entry(number) => number.to_le_bytes().to_vec(),
            Self::Pack(name) => name.to_vec(),
        }
    }
}

fn parse_counter(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= MAX_COUNTER)
}

fn parse_hex(text: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCHIVE: ArchiveId = ArchiveId([0xab; 16]);
    const HEX: &str = "abababababababababababababababab";

    fn check(name: ObjectName, tail: &str) {
        let key = format!("{HEX}/{tail}");
        assert_eq!(name.store_key(&ARCHIVE), key);
        assert_eq!(ObjectName::parse(&key), Some((ARCHIVE, name)));
    }

    #[test]
    fn keys_read_back_as_the_names_they_were_made_of() {
        check(ObjectName::Keyring(0), "keyring/0000000000000000");
        check(ObjectName::Entry(12), "log/0000000000000012");
        check(ObjectName::Entry(MAX_COUNTER), "log/9999999999999999");
        check(ObjectName::Pack([0xcd; 16]), "pack/cd/cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd");
    }

    #[test]
    fn anything_else_in_a_store_is_not_a_name() {
        for tail in [
            "",
            "log",
            "log/",
            "log/12",
            "log/0000000000000000",
            "log/+000000000000012",
            "log/00000000000000012",
            "log/0000000000000012/",
            "Log/0000000000000012",
            "pack/ce/cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
            "pack/CD/CDcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
            "pack/cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
            "pack/é/écdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
        ] {
            assert_eq!(ObjectName::parse(&format!("{HEX}/{tail}")), None, "{tail}");
        }
        assert_eq!(ObjectName::parse("ABab/log/0000000000000012"), None);
    }
}
