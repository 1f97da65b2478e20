//! Names of objects, valid by construction on every store we know, case-insensitive ones included.

use std::fmt;
use std::str::FromStr;

/// Longest key, in bytes. Some stores count the folder they live in against a limit of 255 or 1024.
pub const KEY_LEN_MAX: usize = 200;

/// Most segments of a key, which are directories on stores that have them.
pub const SEGMENTS_MAX: usize = 4;

/// The name of one object: 1 to 4 segments `[a-z0-9][a-z0-9._-]*` joined by `/`, at most 200 bytes.
///
/// No segment can be `..`, hidden or empty, so a key never leaves the folder it is joined to. No key may be
/// another one plus further segments: where keys are paths, one name cannot be a file and a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreKey(String);

/// Why a text is not a [`StoreKey`] or a [`ListPrefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is not a store key: {reason}")]
pub struct InvalidKey {
    /// The text, shortened and with control characters escaped: it may come from a hostile store.
    pub shown: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl StoreKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for StoreKey {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        match fault_of(&text) {
            None => Ok(Self(text)),
            Some(reason) => Err(InvalidKey { shown: shown(&text), reason }),
        }
    }
}

impl TryFrom<&str> for StoreKey {
    type Error = InvalidKey;

    fn try_from(text: &str) -> Result<Self, InvalidKey> {
        Self::try_from(text.to_owned())
    }
}

impl FromStr for StoreKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        Self::try_from(text)
    }
}

impl fmt::Display for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for StoreKey {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// What a listing is asked for: everything, or everything below some whole segments.
///
/// `a/log` and `a/log/` are the same prefix: both hold `a/log/1`, neither holds `a/logs/1` or `a/log` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPrefix(String);

impl ListPrefix {
    /// Reads a prefix; the empty text is everything.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let segments = text.strip_suffix('/').unwrap_or(text);
        if segments.is_empty() && !text.is_empty() {
            return Err(InvalidKey { shown: shown(text), reason: "it has an empty segment" });
        }
        match fault_of(segments) {
            Some(reason) if !segments.is_empty() => Err(InvalidKey { shown: shown(text), reason }),
            _ => Ok(Self(segments.to_owned())),
        }
    }

    /// The segments without a slash at the end; empty for everything.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `key` lies below this prefix.
    pub fn holds(&self, key: &StoreKey) -> bool {
        self.0.is_empty() || key.0.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn fault_of(text: &str) -> Option<&'static str> {
    if text.len() > KEY_LEN_MAX {
        return Some("it is longer than 200 bytes");
    }
    if text.split('/').count() > SEGMENTS_MAX {
        return Some("it has more than 4 segments");
    }
    text.split('/').find_map(|segment| match segment.as_bytes() {
        [] => Some("it has an empty segment"),
        [first, rest @ ..] => {
            let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            if !alphanumeric(first) {
                Some("a segment starts with something other than a-z or 0-9")
            } else if !rest.iter().all(|byte| alphanumeric(byte) || b"._-".contains(byte)) {
                Some("it has a character outside a-z 0-9 . _ -")
            } else {
                None
            }
        }
    })
}

/// A name that may be hostile, for a message: at most 60 characters, nothing a terminal would obey.
pub(crate) fn shown(text: &str) -> String {
    escaped(text, 60)
}

/// Words of a store that may be hostile, for a message: at most 300 characters, nothing a terminal would obey.
pub(crate) fn shown_long(text: &str) -> String {
    escaped(text, 300)
}

fn escaped(text: &str, chars_max: usize) -> String {
    let mut short: String = text.chars().take(chars_max).flat_map(char::escape_debug).collect();
    if text.chars().nth(chars_max).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn refuse(text: &str, reason: &str) {
        let error = StoreKey::try_from(text).expect_err(text);
        assert!(error.reason.contains(reason), "{text:?}: {error}");
    }

    #[test]
    fn keys_of_an_archive_are_valid() {
        for text in ["a", "0", "a/log/0000000000000001", "a/pack/0f/0f33", "a.b/c_d-e/1..2"] {
            assert_eq!(StoreKey::try_from(text).unwrap().as_str(), text);
        }
        assert!(StoreKey::try_from("a".repeat(KEY_LEN_MAX)).is_ok());
    }

    #[test]
    fn nothing_leaves_the_folder_it_is_joined_to() {
        refuse("", "empty segment");
        refuse("/a", "empty segment");
        refuse("a/", "empty segment");
        refuse("a//b", "empty segment");
        refuse("..", "starts with");
        refuse("a/../b", "starts with");
        refuse("a/.hidden", "starts with");
        refuse("-rf", "starts with");
        refuse("a\\b", "character");
        refuse("a b", "character");
        refuse("a\0", "character");
        refuse("aB", "character");
        refuse("a/é", "starts with");
        refuse("a/b/c/d/e", "4 segments");
        refuse(&"a".repeat(KEY_LEN_MAX + 1), "200 bytes");
    }

    #[test]
    fn a_message_about_a_key_carries_no_escape_sequence() {
        let error = StoreKey::try_from("a\u{1b}[2Jb").unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
        assert!(StoreKey::try_from("x".repeat(5000)).unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn a_prefix_ends_where_a_segment_ends() {
        let key = |text: &str| StoreKey::try_from(text).unwrap();
        for text in ["a/log", "a/log/"] {
            let prefix = ListPrefix::parse(text).unwrap();
            assert!(prefix.holds(&key("a/log/1")));
            assert!(!prefix.holds(&key("a/logs/1")));
            assert!(!prefix.holds(&key("a/log")));
        }
        assert!(ListPrefix::parse("").unwrap().holds(&key("a")));
        for text in ["/", "../", "a//", "A", "/a"] {
            assert!(ListPrefix::parse(text).is_err(), "{text}");
        }
    }
}
