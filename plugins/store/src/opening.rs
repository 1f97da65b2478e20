//! What a store is opened with: its URL, its options, and secrets that never show.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Result, StoreError};

/// Everything a store needs to know. Nothing of it is read from the environment or from files of other programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opening {
    /// The URL the user wrote; its scheme picked the kind of store.
    pub url: String,
    /// Settings of that kind of store. Values are text, also numbers and switches.
    pub options: BTreeMap<String, String>,
    /// What must not be shown to anybody.
    pub secrets: Secrets,
    /// Nothing is to be written: puts and deletes may be refused.
    pub read_only: bool,
}

/// Secrets by name. Zeroized when dropped, `(redacted)` where it is printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(BTreeMap<String, Zeroizing<String>>);

impl Secrets {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a secret, or replaces it.
    pub fn set(&mut self, name: &str, value: Zeroizing<String>) {
        self.0.insert(name.to_owned(), value);
    }

    /// The secret of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.as_str())
    }

    /// The secret of this name; without it the store cannot be opened.
    pub fn need(&self, name: &str) -> Result<&str> {
        self.get(name)
            .ok_or_else(|| StoreError::Invalid { reason: format!("the secret `{name}` is missing") })
    }

    /// The names, sorted. These are no secret.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.0.keys().map(|name| (name, "(redacted)"));
        f.debug_map().entries(hidden).finish()
    }
}

impl Opening {
    /// With this URL and nothing else.
    pub fn of_url(url: &str) -> Self {
        Self { url: url.to_owned(), ..Self::default() }
    }

    /// The option of this name.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// The option of this name, parsed; `otherwise` when it is not set.
    pub fn option_or<T: std::str::FromStr>(&self, name: &str, otherwise: T) -> Result<T> {
        let Some(text) = self.option(name) else { return Ok(otherwise) };
        let reason = || format!("`{text}` is no value for the option `{name}`");
        text.parse().map_err(|_| StoreError::Invalid { reason: reason() })
    }

    /// Refuses options and secrets that the store does not have: a misspelt one must not be ignored.
    pub fn expect_only(&self, options: &[&str], secrets: &[&str]) -> Result<()> {
        let strange =
            |what: &str, name: &str| StoreError::Invalid { reason: format!("there is no {what} `{name}`") };
        if let Some(name) = self.options.keys().find(|name| !options.contains(&name.as_str())) {
            return Err(strange("option", name));
        }
        match self.secrets.names().find(|name| !secrets.contains(name)) {
            Some(name) => Err(strange("secret", name)),
            None => Ok(()),
        }
    }
}

/// Undoes percent-encoding, to bytes: what a server encodes, or a path is, need not be UTF-8. `None`: a `%` without two digits.
pub fn undo_percent_encoding(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let [high, low, after @ ..] = after else { return None };
            let digit = |byte: &u8| char::from(*byte).to_digit(16);
            bytes.push((digit(high)? * 16 + digit(low)?) as u8);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn opening() -> Opening {
        let mut opening = Opening::of_url("s3://bucket/folder");
        opening.options.insert("region".to_owned(), "garage".to_owned());
        opening.secrets.set("token", Zeroizing::new("hunter2".to_owned()));
        opening
    }

    #[test]
    fn a_secret_does_not_show_where_an_opening_is_printed() {
        let shown = format!("{:?}", opening());
        assert!(
            shown.contains("token") && shown.contains("(redacted)") && !shown.contains("hunter2"),
            "{shown}"
        );
    }

    #[test]
    fn a_misspelt_option_or_secret_is_refused_by_name() {
        opening().expect_only(&["region"], &["token"]).unwrap();
        let error = opening().expect_only(&[], &["token"]).unwrap_err();
        assert_eq!(error.to_string(), "there is no option `region`");
        let error = opening().expect_only(&["region"], &["key"]).unwrap_err();
        assert_eq!(error.to_string(), "there is no secret `token`");
    }

    #[test]
    fn a_percent_sign_needs_two_digits() {
        assert_eq!(undo_percent_encoding("a%20b%FF").as_deref(), Some(&b"a b\xff"[..]));
        for wrong in ["%", "%2", "%2g", "a%"] {
            assert_eq!(undo_percent_encoding(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_option_that_cannot_be_read_is_an_error_and_not_the_default() {
        let mut opening = opening();
        assert_eq!(opening.option_or("parallel", 4_u16).unwrap(), 4);
        opening.options.insert("parallel".to_owned(), "many".to_owned());
        opening.option_or("parallel", 4_u16).unwrap_err();
    }
}
