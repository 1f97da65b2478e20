//! Why an object does not open, sorted by what the caller does next.

use std::fmt;

use chatkeep_format::FormatError;

/// Why an object or keyring does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The key is not the one this keyring was written for. Ask again.
    #[error("wrong key")]
    WrongKey,
    /// Written by a newer release. Update and try again.
    #[error("written in format version {version}, newer than this program reads")]
    NewerFormat {
        /// The version the object names.
        version: u8,
    },
    /// Sealed in a key epoch that the keyring does not list. Look for a newer keyring.
    #[error("sealed in key epoch {epoch}, which the keyring does not list")]
    UnknownKeyEpoch {
        /// The epoch the object names.
        epoch: u32,
    },
    /// The object ends early. Fetch it again, or from another store.
    #[error("object is cut off: {actual} bytes of {expected}")]
    Truncated {
        /// Length it should have, or the least it could have.
        expected: u64,
        /// Length of what is there.
        actual: u64,
    },
    /// Bytes changed since it was written. Fetch it again, or from another store.
    #[error("object is damaged: {what}")]
    Damaged {
        /// Where.
        what: DamagedPart,
    },
    /// Its header is intact, but it was sealed as another object, kind or archive. The store mixed objects up.
    #[error("a different object is stored under this name")]
    NotThisObject,
    /// The bytes do not begin like one of our objects. Leave them alone.
    #[error("not a chatkeep object")]
    NotOurs,
}

/// Where an object is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DamagedPart {
    /// The header's checksum, or a value that no encoder writes.
    Header,
    /// There are bytes after the end.
    Trailing,
    /// This chunk, from 0.
    Chunk(u64),
    /// All chunks are authentic, but what they carry is not a body of this format.
    Body,
    /// The keyring's checksum, structure, MAC or a wrapped epoch.
    Keyring,
}

impl fmt::Display for DamagedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Trailing => f.write_str("bytes after the end"),
            Self::Chunk(index) => write!(f, "chunk {index}"),
            Self::Body => f.write_str("body"),
            Self::Keyring => f.write_str("keyring"),
        }
    }
}

impl OpenError {
    /// What a failure of the structure means for an object; `part` is what was being read.
    pub(crate) fn from_format(error: &FormatError, part: DamagedPart) -> Self {
        match *error {
            FormatError::NotOurs => Self::NotOurs,
            FormatError::NewerFormat { version } => Self::NewerFormat { version },
            FormatError::Truncated { expected, actual } => Self::Truncated { expected, actual },
            FormatError::Trailing { .. } => Self::Damaged { what: DamagedPart::Trailing },
            _ => Self::Damaged { what: part },
        }
    }

    pub(crate) fn damaged(what: DamagedPart) -> Self {
        Self::Damaged { what }
    }
}
