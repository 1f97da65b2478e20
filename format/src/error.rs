//! What can be wrong with bytes that claim to be ours.

/// Why bytes are not an object of this format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes do not begin like one of our objects. Leave them alone.
    #[error("not a chatkeep object")]
    NotOurs,
    /// Intact, but written by a newer release. Update and try again.
    #[error("written in format version {version}, newer than this program reads")]
    NewerFormat {
        /// The version the object names.
        version: u8,
    },
    /// The object ends early. Fetch it again, or from another store.
    #[error("object is cut off: {actual} bytes of {expected}")]
    Truncated {
        /// Length that the object should have, or the least it could have when even that is cut off.
        expected: u64,
        /// Length of what is there.
        actual: u64,
    },
    /// There are bytes after the object's end. Fetch it again, or from another store.
    #[error("object is too long: {actual} bytes instead of {expected}")]
    Trailing {
        /// Length that the object should have.
        expected: u64,
        /// Length of what is there.
        actual: u64,
    },
    /// The bytes cannot come from an encoder of this format. Fetch the object again, or from another store.
    #[error("malformed {what}")]
    Malformed {
        /// The field or part at fault.
        what: &'static str,
    },
    /// A value to be written is past a limit or against a rule of the format. The caller must cut or mend it.
    #[error("{what} cannot be written in this format")]
    Unencodable {
        /// The field at fault.
        what: &'static str,
    },
}

/// Shorthand of the decoders.
pub(crate) fn malformed(what: &'static str) -> FormatError {
    FormatError::Malformed { what }
}
