//! What a client pins of a vault: the identity key. Everything else is proved by it.

use std::fmt;
use std::str::FromStr;

/// A vault's identity: its Ed25519 public key. Shown as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(pub [u8; 32]);

/// The text is not 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a vault's fingerprint is 64 hexadecimal digits")]
pub struct NotAFingerprint;

/// One vault as the user, or the program they trust, chose it.
///
/// `Display` and `FromStr` are the fingerprint of its identity, for reading aloud and typing in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultPin {
    /// What the user calls it; at most 64 bytes.
    pub name: String,
    /// Where it answers; `https://…`, at most 256 bytes.
    pub url: String,
    /// Ed25519 public key.
    pub identity: [u8; 32],
}

impl VaultPin {
    /// The identity as a type of its own.
    pub fn identity(&self) -> Identity {
        Identity(self.identity)
    }
}

impl fmt::Display for VaultPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity().fmt(f)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Identity {
    type Err = NotAFingerprint;

    /// Spaces, dashes and colons between digits are ignored, so grouped forms can be typed.
    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '-' | ':')).collect();
        let bytes = hex::decode(digits).map_err(|_| NotAFingerprint)?;
        Ok(Self(bytes.try_into().map_err(|_| NotAFingerprint)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_fingerprint_reads_back_also_in_groups() {
        let identity = Identity([0xa7; 32]);
        assert_eq!(identity.to_string().parse(), Ok(identity));
        assert_eq!("a7a7 ".repeat(16).parse(), Ok(identity));
        assert_eq!("a7".repeat(31).parse::<Identity>(), Err(NotAFingerprint));
        assert_eq!("zz".repeat(32).parse::<Identity>(), Err(NotAFingerprint));
    }
}
