//! The backup key as a person writes it down: 16 groups of 4 hex digits and a check group.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::backup_key::BackupKey;

/// Groups of the key itself; the check group is one more.
pub const GROUPS: usize = 16;
const DIGITS: usize = GROUPS * 4;
/// 20 bytes: with the key, one block of SHA-256, so that looking for a typo is quick.
const CHECK_DOMAIN: &[u8] = b"chatkeep/1 key check";

/// What is wrong with digits that were typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigitsError {
    /// A character is no hex digit.
    #[error("group {group} has `{character}`, which is not one of 0-9 and a-f")]
    NotHex {
        /// From 1; 17 is the check group.
        group: usize,
        /// The character.
        character: char,
    },
    /// The groups are there, but one is not four digits long.
    #[error("group {group} has {digits} digits instead of 4")]
    GroupLength {
        /// From 1; 17 is the check group.
        group: usize,
        /// Its length.
        digits: usize,
    },
    /// There are too few or too many digits, and no telling where.
    #[error("there are {digits} digits instead of 64, or 68 with the check group")]
    Length {
        /// How many there are.
        digits: usize,
    },
    /// All digits are there, but the check group says that one of them is wrong.
    #[error("the check group does not match: a digit is wrong")]
    CheckGroup,
}

fn check_group(key: &[u8; 32]) -> [u8; 2] {
    let hash = Sha256::new().chain_update(CHECK_DOMAIN).chain_update(key).finalize();
    [hash[0], hash[1]]
}

/// `separator` is asked for what stands after each group, counted from 1.
pub(crate) fn write(key: &BackupKey, separator: impl Fn(usize) -> char) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(DIGITS + 4 + GROUPS));
    let check = check_group(key.expose());
    for (index, byte) in key.expose().iter().chain(&check).enumerate() {
        if index > 0 && index % 2 == 0 {
            text.push(separator(index / 2));
        }
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
    text
}

pub(crate) fn parse(text: &str) -> Result<BackupKey, DigitsError> {
    let (key, check) = split(text)?;
    match check {
        Some(check) if check != check_group(key.expose()) => Err(DigitsError::CheckGroup),
        _ => Ok(key),
    }
}

fn is_separator(character: char) -> bool {
    // every dash that a word processor makes of one, and the minus sign
    character.is_whitespace() || matches!(character, '-' | '_' | '\u{2010}'..='\u{2015}' | '\u{2212}')
}

/// The key and the check group as typed, which need not match.
fn split(text: &str) -> Result<(BackupKey, Option<[u8; 2]>), DigitsError> {
    let total = text.chars().filter(|character| !is_separator(*character)).count();
    let groups = || text.split(is_separator).filter(|group| !group.is_empty());
    if total != DIGITS && total != DIGITS + 4 {
        let grouped = matches!(groups().count(), GROUPS | 17);
        let odd = groups().map(|group| group.chars().count()).enumerate().find(|(_, digits)| *digits != 4);
        return Err(match odd {
            Some((index, digits)) if grouped => DigitsError::GroupLength { group: index + 1, digits },
            _ => DigitsError::Length { digits: total },
        });
    }
    let mut bytes = Zeroizing::new([0u8; 34]);
    for (at, character) in text.chars().filter(|character| !is_separator(*character)).enumerate() {
        let nibble = character.to_digit(16).ok_or(DigitsError::NotHex { group: at / 4 + 1, character })?;
        bytes[at / 2] = bytes[at / 2] << 4 | nibble as u8;
    }
    let key = BackupKey::from_bytes(*bytes.first_chunk().expect("34 bytes begin with 32"));
    Ok((key, (total > DIGITS).then_some([bytes[32], bytes[33]])))
}

/// Which group was mistyped, from 1, when exactly one was, or when two neighbours changed places (the first of them).
///
/// Tries every key that differs from the typed one so and satisfies its check group, and asks `is_right` about those
/// (about 16 of a million; all of them when no check group was typed). 17 means that only the check group is wrong.
/// `None` when the text has no 64 digits, is right as it is, or has more than one group wrong.
pub fn locate_typo(text: &str, is_right: impl Fn(&BackupKey) -> bool) -> Option<usize> {
    let (typed, check) = split(text).ok()?;
    let fits = |key: &[u8; 32]| check.is_none_or(|check| check == check_group(key));
    let right = |key: &[u8; 32]| fits(key) && is_right(&BackupKey::from_bytes(*key));
    if is_right(&typed) {
        return if fits(typed.expose()) { None } else { Some(GROUPS + 1) };
    }
    let mut key = Zeroizing::new(*typed.expose());
    for at in (0..30).step_by(2) {
        swap_groups(&mut key, at);
        if right(&key) {
            return Some(at / 2 + 1);
        }
        swap_groups(&mut key, at);
    }
    for at in (0..32).step_by(2) {
        let as_typed = [key[at], key[at + 1]];
        for group in 0..=u16::MAX {
            key[at..at + 2].copy_from_slice(&group.to_be_bytes());
            if right(&key) {
                return Some(at / 2 + 1);
            }
        }
        key[at..at + 2].copy_from_slice(&as_typed);
    }
    None
}

fn swap_groups(key: &mut [u8; 32], at: usize) {
    key.swap(at, at + 2);
    key.swap(at + 1, at + 3);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::first_difference;

    fn key() -> BackupKey {
        BackupKey::from_bytes(std::array::from_fn(|i| (i * 7 + 1) as u8))
    }

    /// The digits with one group replaced.
    fn with_group(group: usize, text: &str) -> String {
        let digits = key().to_digits();
        let mut groups: Vec<&str> = digits.split('-').collect();
        groups[group - 1] = text;
        groups.join("-")
    }

    fn refused(text: &str) -> DigitsError {
        BackupKey::parse_digits(text).unwrap_err()
    }

    #[test]
    fn digits_read_back_however_they_are_set() {
        let digits = key().to_digits();
        assert_eq!(digits.len(), 84);
        assert!(digits.starts_with("0108-0f16-"));
        for text in [
            digits.to_string(),
            digits.replace('-', ""),
            digits.to_uppercase(),
            digits.replace('-', "\u{2013}"),
            format!("  {}\r\n", key().to_digit_lines().as_str()),
            digits[..79].to_owned(),
        ] {
            assert_eq!(BackupKey::parse_digits(&text).unwrap(), key(), "{text}");
        }
        assert_eq!(key().to_digit_lines().lines().count(), 5);
    }

    #[test]
    fn the_error_names_the_group() {
        assert_eq!(refused(&with_group(3, "12g4")), DigitsError::NotHex { group: 3, character: 'g' });
        assert_eq!(refused(&with_group(3, "12é4")), DigitsError::NotHex { group: 3, character: 'é' });
        assert_eq!(refused(&with_group(5, "123")), DigitsError::GroupLength { group: 5, digits: 3 });
        assert_eq!(refused(&with_group(17, "12345")), DigitsError::GroupLength { group: 17, digits: 5 });
        assert_eq!(refused("0123 4567"), DigitsError::Length { digits: 8 });
        assert_eq!(refused(""), DigitsError::Length { digits: 0 });
        assert_eq!(refused(&with_group(16, "0000")), DigitsError::CheckGroup);
    }

    #[test]
    fn one_mistyped_group_is_found() {
        let is_right = |candidate: &BackupKey| *candidate == key();
        for group in [1, 9, 16] {
            assert_eq!(locate_typo(&with_group(group, "beef"), is_right), Some(group));
        }
        assert_eq!(locate_typo(&with_group(17, "beef"), is_right), Some(17));
        assert_eq!(locate_typo(&key().to_digits(), is_right), None);
        let digits = key().to_digits();
        let mut groups: Vec<&str> = digits.split('-').collect();
        groups.swap(6, 7);
        assert_eq!(locate_typo(&groups.join("-"), is_right), Some(7));
    }

    #[test]
    fn two_mistyped_groups_are_not_guessed_at() {
        let text = with_group(2, "beef").replacen("0108", "beef", 1);
        assert_eq!(locate_typo(&text, |candidate| *candidate == key()), None);
    }

    #[test]
    fn the_first_difference_is_counted_from_one() {
        assert_eq!(first_difference(&key(), &key()), None);
        let mut other = *key().expose();
        other[31] ^= 1;
        assert_eq!(first_difference(&BackupKey::from_bytes(other), &key()), Some(16));
        other[2] ^= 1;
        assert_eq!(first_difference(&BackupKey::from_bytes(other), &key()), Some(2));
    }

    #[test]
    fn a_key_never_prints() {
        assert_eq!(format!("{:?}", key()), "BackupKey(redacted)");
    }
}
