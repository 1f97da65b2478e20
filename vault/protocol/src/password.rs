//! From what the user types to `pwk`: normalisation and Argon2id with bounds.

use unicode_normalization::UnicodeNormalization as _;
use zeroize::Zeroizing;

use crate::SlotError;
use crate::limits::PASSWORD_LEN_MAX;

/// Cost of stretching the password (RFC 9106, Argon2id version 0x13). Written into the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfParams {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// The least cost that a slot may ask for. A slot comes from a store that may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KdfFloor {
    /// 64 MiB and three passes.
    #[default]
    Production,
    /// Anything: for tests and development, so that a test run takes no minutes.
    AllowWeakKdf,
}

impl KdfParams {
    /// 256 MiB, three passes: about 0.7 s on one core of 2024.
    pub const DEFAULT: Self = Self { memory_kib: 256 * 1024, passes: 3, lanes: 1 };
    /// The least that is accepted from a slot: 64 MiB, three passes.
    pub const FLOOR: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 1 };
    /// The most that is accepted: beyond it a slot is an attack on this machine's memory.
    pub const CEILING: Self = Self { memory_kib: 1024 * 1024, passes: 16, lanes: 8 };
    /// Next to nothing, for tests; opens only with [`KdfFloor::AllowWeakKdf`].
    pub const TESTING: Self = Self { memory_kib: 64, passes: 1, lanes: 1 };

    /// Whether a slot may ask for this.
    pub fn check(&self, floor: KdfFloor) -> Result<(), SlotError> {
        let least = match floor {
            KdfFloor::Production => Self::FLOOR,
            KdfFloor::AllowWeakKdf => Self { memory_kib: 8, passes: 1, lanes: 1 },
        };
        if self.memory_kib < least.memory_kib || self.passes < least.passes || self.lanes < 1 {
            return Err(SlotError::Malformed { what: "the password stretching is too weak" });
        }
        let most = Self::CEILING;
        if self.memory_kib > most.memory_kib || self.passes > most.passes || self.lanes > most.lanes {
            return Err(SlotError::Malformed { what: "the password stretching is too costly" });
        }
        if self.memory_kib < 8 * self.lanes {
            return Err(SlotError::Malformed { what: "the password stretching is impossible" });
        }
        Ok(())
    }
}

impl Default for KdfParams {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Stretches a password into `pwk`. Takes the time and the memory that `params` say.
///
/// Password rule 1: UTF-8, 1 to 1024 bytes, normalised with NFKC (UAX #15), nothing trimmed or folded. The same
/// password typed on another system, composed differently, gives the same key. NFKC is stable for assigned characters.
pub fn stretch(
    password: &[u8],
    salt: &[u8; 32],
    params: KdfParams,
) -> Result<Zeroizing<[u8; 32]>, SlotError> {
    let normalised = normalise(password)?;
    let argon = argon2::Params::new(params.memory_kib, params.passes, params.lanes, Some(32))
        .map_err(|_| SlotError::Malformed { what: "the password stretching is impossible" })?;
    let mut pwk = Zeroizing::new([0; 32]);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, argon)
        .hash_password_into(normalised.as_bytes(), salt, &mut *pwk)
        .map_err(|_| SlotError::Malformed { what: "the password stretching is impossible" })?;
    Ok(pwk)
}

fn normalise(password: &[u8]) -> Result<Zeroizing<String>, SlotError> {
    if password.is_empty() || password.len() > PASSWORD_LEN_MAX {
        return Err(SlotError::PasswordNotText);
    }
    let text = std::str::from_utf8(password).map_err(|_| SlotError::PasswordNotText)?;
    // one character becomes at most 18 (U+FDFA); reserving avoids copies that nobody wipes
    let mut normalised = Zeroizing::new(String::with_capacity(text.len() * 18));
    normalised.extend(text.nfkc());
    Ok(normalised)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check(a: &str, b: &str, same: bool) {
        let [a, b] = [a, b].map(|p| stretch(p.as_bytes(), &[1; 32], KdfParams::TESTING).unwrap());
        assert_eq!(a == b, same);
    }

    #[test]
    fn composition_does_not_matter_but_case_and_spaces_do() {
        check("caf\u{e9}", "cafe\u{301}", true);
        check("\u{ff21}bc", "Abc", true);
        check("Abc", "abc", false);
        check("abc ", "abc", false);
    }

    #[test]
    fn weak_costly_and_impossible_parameters_are_refused() {
        let ok = |p: KdfParams, floor| p.check(floor).is_ok();
        assert!(ok(KdfParams::DEFAULT, KdfFloor::Production) && ok(KdfParams::FLOOR, KdfFloor::Production));
        assert!(!ok(KdfParams::TESTING, KdfFloor::Production));
        assert!(ok(KdfParams::TESTING, KdfFloor::AllowWeakKdf));
        for bomb in [
            KdfParams { memory_kib: u32::MAX, ..KdfParams::DEFAULT },
            KdfParams { passes: 17, ..KdfParams::DEFAULT },
            KdfParams { lanes: 9, ..KdfParams::DEFAULT },
            KdfParams { lanes: 0, ..KdfParams::DEFAULT },
        ] {
            assert!(!ok(bomb, KdfFloor::AllowWeakKdf));
        }
    }

    #[test]
    fn a_password_is_text() {
        for bad in [&b""[..], &[0xff, 0xfe], &[b'a'; 1025]] {
            assert_eq!(stretch(bad, &[1; 32], KdfParams::TESTING), Err(SlotError::PasswordNotText));
        }
    }
}
