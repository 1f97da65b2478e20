//! What people type: passwords, and the 64 digits.

use chatkeep_crypto::{BackupKey, first_difference, locate_typo};
use chatkeep_ipc::{Error, Secret};

use crate::fault::{Fault, Result};

/// Shorter passwords are refused. The vault stops guessing after ten; eight characters stop the lucky ones.
const PASSWORD_CHARS_MIN: usize = 8;

/// Whether this may become a password.
pub fn check_password(password: &Secret) -> Result<()> {
    let text =
        password.as_str().ok_or_else(|| Error::InvalidSecret("the password is not UTF-8".to_owned()))?;
    if text.chars().count() < PASSWORD_CHARS_MIN {
        return Err(
            Error::InvalidSecret(format!("a password has at least {PASSWORD_CHARS_MIN} characters")).into()
        );
    }
    if looks_like_digits(password) {
        let text = "64 digits are a key; a password that looks like one could not be told from it";
        return Err(Error::InvalidSecret(text.to_owned()).into());
    }
    Ok(())
}

/// Whether this was meant as the 64 digits: nearly as many hexadecimal digits, and hardly anything else but separators.
pub fn looks_like_digits(secret: &Secret) -> bool {
    let Some(text) = secret.as_str() else { return false };
    let significant = text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '-' | '_'));
    let (mut digits, mut others) = (0, 0);
    for c in significant {
        if c.is_ascii_hexdigit() { digits += 1 } else { others += 1 }
    }
    digits >= 56 && others <= 4
}

/// Whether these are the digits of this key.
pub fn is_key(secret: &Secret, key: &BackupKey) -> bool {
    let typed = secret.as_str().and_then(|text| BackupKey::parse_digits(text).ok());
    typed.is_some_and(|typed| typed == *key)
}

/// Compares digits typed back with the right ones; says in which group they differ.
pub fn compare_digits(text: &str, key: &BackupKey) -> Result<()> {
    let differs = |group| Error::WrongSecret(format!("group {group} differs"));
    match BackupKey::parse_digits(text) {
        Ok(typed) => first_difference(&typed, key).map_or(Ok(()), |group| Err(differs(group).into())),
        Err(error) => Err(locate_typo(text, |typed| typed == key)
            .map_or_else(|| error.into(), |group| differs(group).into())),
    }
}

/// Where digits were mistyped, when exactly one group was.
pub fn typo(text: &str, opens: impl Fn(&BackupKey) -> bool) -> Option<Fault> {
    let group = locate_typo(text, opens)?;
    Some(Error::WrongSecret(format!("group {group} is mistyped; the others are right")).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rand_core::OsRng;
    use zeroize::Zeroizing;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn digits_are_told_from_passwords() {
        let key = BackupKey::generate(&mut OsRng);
        assert!(looks_like_digits(&secret(&key.to_digits())));
        assert!(looks_like_digits(&secret(&key.to_digit_lines())));
        assert!(!looks_like_digits(&secret("correct horse battery staple")));
        assert!(!looks_like_digits(&secret("deadbeefdeadbeef")));
    }

    #[test]
    fn a_wrong_group_is_named() {
        let key = BackupKey::from_bytes([0x11; 32]);
        let mut digits = key.to_digits().to_string();
        compare_digits(&digits, &key).unwrap();
        digits.replace_range(0..1, "2");
        let fault = compare_digits(&digits, &key).unwrap_err();
        assert_eq!(fault.error, Error::WrongSecret("group 1 differs".to_owned()));
    }

    #[test]
    fn passwords_that_cannot_be_are_refused() {
        assert!(check_password(&secret("short")).is_err());
        assert!(check_password(&secret(&BackupKey::generate(&mut OsRng).to_digits())).is_err());
        assert!(check_password(&secret("zwölf Boxkämpfer")).is_ok());
    }
}
