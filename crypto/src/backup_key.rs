//! The backup key: what a user must not lose.

use std::fmt;

use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::digits;

/// 32 random bytes from which everything opens. Shown as 64 hex digits and a check group.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct BackupKey([u8; 32]);

impl BackupKey {
    /// A fresh key.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        let mut key = Self([0; 32]);
        rng.fill_bytes(&mut key.0);
        key
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key itself: for a keyslot or a key store, never for a log.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// 16 groups of 4 hex digits and the check group, joined by dashes: 84 characters on one line.
    pub fn to_digits(&self) -> Zeroizing<String> {
        digits::write(self, |_| '-')
    }

    /// The same in lines of four groups, as it is shown and written down; the check group stands on the fifth.
    pub fn to_digit_lines(&self) -> Zeroizing<String> {
        digits::write(self, |group| if group % 4 == 0 { '\n' } else { ' ' })
    }

    /// Reads 64 or 68 digits. White space and dashes are ignored; without a check group nothing is checked.
    pub fn parse_digits(text: &str) -> Result<Self, digits::DigitsError> {
        digits::parse(text)
    }
}

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupKey(redacted)")
    }
}

impl ConstantTimeEq for BackupKey {
    fn ct_eq(&self, other: &Self) -> subtle::Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for BackupKey {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for BackupKey {}

/// The first group, from 1, in which a key typed back differs from the right one. Always looks at every group.
pub fn first_difference(typed: &BackupKey, right: &BackupKey) -> Option<usize> {
    let differs: Vec<bool> =
        typed.0.chunks_exact(2).zip(right.0.chunks_exact(2)).map(|(a, b)| a.ct_ne(b).into()).collect();
    differs.iter().position(|differs| *differs).map(|index| index + 1)
}
