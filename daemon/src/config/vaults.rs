//! `[vaults]` and `[[vault]]`: to whom a password is entrusted, and how they are watched.

use std::path::PathBuf;

use chatkeep_vault_protocol::limits::{FREEZE_MAX_S, VAULTS_MAX};
use serde::Deserialize;

use super::{Period, Span};

/// The shortest lock, in milliseconds: an hour. A shorter one would end between two looks.
const LOCK_MIN_MS: u64 = 3_600_000;

/// `[vaults]`
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Vaults {
    /// A new password is entrusted to all vaults, so many of which have to answer; without it, to one.
    pub threshold: Option<u8>,
    /// How often every vault is asked whether somebody tried the password.
    pub look_every: Period,
    /// The vaults are kept frozen for so long from the last look of this device on.
    pub guard_lock: Period,
    /// How often the vaults are told the newest entry, at most.
    pub remember_every: Period,
}

/// `[[vault]]`
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    /// Its name on D-Bus and in logs.
    pub name: String,
    /// `https://` address.
    pub url: String,
    /// The vault's identity key as printed by `chatkeep-vault fingerprint`: it is pinned.
    pub identity: String,
    /// Who runs it: two vaults of one operator are as one.
    #[serde(default)]
    pub operator: String,
    /// Whose courts can order the operator about.
    #[serde(default)]
    pub jurisdiction: String,
    /// A file with an invitation, if the vault wants one to make an account.
    pub invite_file: Option<PathBuf>,
}

impl Default for Vaults {
    fn default() -> Self {
        let hour = Period(Some(Span(3_600_000)));
        Self { threshold: None, look_every: hour, guard_lock: Period(None), remember_every: Period::days(1) }
    }
}

impl Vaults {
    /// The rules of the protocol, told before anybody is asked for a password. There are `n` vaults.
    pub(super) fn check(&self, n: usize) -> Result<(), String> {
        let lock_ms = self.guard_lock.every_ms();
        if lock_ms.is_some_and(|ms| !(LOCK_MIN_MS..=FREEZE_MAX_S * 1000).contains(&ms)) {
            return Err(
                "`vaults.guard_lock` must be \"1h\" to \"30d\": no vault stays frozen longer".to_owned()
            );
        }
        if lock_ms.is_some() && self.look_every.every_ms().is_none() {
            return Err("`vaults.guard_lock` needs `vaults.look_every`".to_owned());
        }
        let Some(t) = self.threshold.map(usize::from) else { return Ok(()) };
        if t == 0 || t > n {
            return Err(format!("`vaults.threshold` is {t}, and there are {n} vaults"));
        }
        if 2 * t <= n {
            return Err(format!(
                "`vaults.threshold` is {t} of {n}: it must be more than half, or two groups of vaults could each be guessed at"
            ));
        }
        if n > VAULTS_MAX {
            return Err(format!("a password can be entrusted to at most {VAULTS_MAX} vaults"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use crate::config::{Config, ConfigError};

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("config.toml"))
    }

    #[test]
    fn more_than_half_of_the_vaults_have_to_answer() {
        let vaults = |n: usize, t: u8| {
            let vault =
                |i| format!("[[vault]]\nname='v{i}'\nurl='https://{i}.example'\nidentity='{i:064}'\n");
            let all: String = (0..n).map(vault).collect();
            parse(&format!("{all}[vaults]\nthreshold={t}\n"))
        };
        for (n, t) in [(1, 1), (2, 2), (3, 2), (3, 3), (5, 3), (15, 8)] {
            assert!(vaults(n, t).is_ok(), "{t} of {n}");
        }
        for (n, t) in [(0, 1), (1, 0), (1, 2), (2, 1), (3, 1), (4, 2), (16, 9)] {
            assert!(vaults(n, t).is_err(), "{t} of {n}");
        }
        assert!(vaults(3, 1).unwrap_err().to_string().contains("more than half"));
    }

    #[test]
    fn a_lock_lasts_an_hour_to_thirty_days_and_needs_looks() {
        assert!(parse("[vaults]\nguard_lock='30d'\n").is_ok());
        for bad in ["guard_lock='31d'", "guard_lock='1m'", "guard_lock='7d'\nlook_every='never'"] {
            assert!(parse(&format!("[vaults]\n{bad}\n")).is_err(), "{bad}");
        }
    }
}
