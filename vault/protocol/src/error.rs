//! What can be wrong with a slot or an answer, sorted by what the caller does next.

/// Why a slot cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// Written by a newer program: update this one.
    #[error("the keyslot has version {version}, newer than this program")]
    NewerFormat {
        /// The version found.
        version: u8,
    },
    /// Not a slot, or a damaged or forged one: fetch another copy.
    #[error("the keyslot is not usable: {what}")]
    Malformed {
        /// Which rule it breaks.
        what: &'static str,
    },
    /// The slot is intact, but was made for another archive.
    #[error("the keyslot belongs to another archive")]
    OtherContext,
    /// The password is not text: ask again.
    #[error("the password is not valid UTF-8, is empty, or is too long")]
    PasswordNotText,
    /// No combination of the answers opens the slot: the password is wrong (or too many vaults lie).
    #[error("the password does not open the keyslot")]
    DoesNotOpen,
}

/// Why an answer of a vault is not believed, or not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// Nobody who holds the pinned identity said this.
    #[error("the answer is not signed by the pinned vault: {what}")]
    Untrusted {
        /// Which check failed.
        what: &'static str,
    },
    /// Signed, but not understood by this program.
    #[error("the vault's answer is not understood: {what}")]
    Malformed {
        /// What was expected.
        what: &'static str,
    },
    /// Signed, in a version this program does not know.
    #[error("the vault speaks version {version}, newer than this program")]
    NewerFormat {
        /// The version found.
        version: u8,
    },
}
