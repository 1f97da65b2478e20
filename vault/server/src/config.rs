//! The configuration file. Unknown keys are errors; there are no secrets in it.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::cells::CellConfig;
use crate::core::Policy;
use crate::store::StoreConfig;

/// `config.toml`; see `config.example.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where keys, database and anchor are; made by `chatkeep-vault init`.
    pub data: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Serve although the keys are in software.
    #[serde(default)]
    pub insecure_dev: bool,
    /// Connections at the same time.
    #[serde(default = "default_connections_max")]
    pub connections_max: usize,
    /// Bounds on guessing.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// Where records are kept.
    #[serde(default)]
    pub store: StoreConfig,
    /// Which accounts are served, if not all.
    #[serde(default)]
    pub cell: Option<CellConfig>,
}

/// `[policy]`; what is absent is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// Most attempts between two right passwords, 1 to 100.
    pub attempts_max: Option<u16>,
    /// Waiting after the first, second … failed attempt: `"30s"`, `"5m"`, `"1h"`, `"0s"`.
    pub delays: Option<Vec<Duration>>,
    /// Failed attempts since the last change after which an account is erased, 1 to 10000.
    pub lifetime_failures_max: Option<u32>,
}

/// A duration as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Duration {
    /// In seconds.
    pub seconds: u64,
}

/// Connections at the same time, unless configured.
pub fn default_connections_max() -> usize {
    512
}

/// A setting cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadSetting(String);

impl TryFrom<String> for Duration {
    type Error = BadSetting;

    fn try_from(text: String) -> Result<Self, BadSetting> {
        let bad = || BadSetting(format!("`{text}` is no duration: write \"30s\", \"5m\", \"1h\" or \"2d\""));
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[number.len()..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        let seconds = number.checked_mul(unit).filter(|s| *s <= 30 * 24 * 3600).ok_or_else(bad)?;
        Ok(Self { seconds })
    }
}

impl PolicyConfig {
    /// The policy; a development vault has no delays unless they are configured.
    pub fn policy(&self, insecure_dev: bool) -> Result<Policy, BadSetting> {
        let mut policy = if insecure_dev { Policy::without_delays() } else { Policy::default() };
        if let Some(attempts) = self.attempts_max {
            if !(1..=100).contains(&attempts) {
                return Err(BadSetting("attempts_max must be 1 to 100".to_owned()));
            }
            policy.attempts_max = attempts;
        }
        if let Some(failures) = self.lifetime_failures_max {
            if !(1..=10_000).contains(&failures) {
                return Err(BadSetting("lifetime_failures_max must be 1 to 10000".to_owned()));
            }
            policy.lifetime_failures_max = failures;
        }
        if let Some(delays) = &self.delays {
            policy.delays_s = delays.iter().map(|delay| delay.seconds).collect();
        }
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_example_is_the_default_policy() {
        let config: Config = toml::from_str(include_str!("../config.example.toml")).unwrap();
        assert_eq!(config.policy.policy(false).unwrap(), Policy::default());
        assert_eq!(config.connections_max, default_connections_max());
        assert!(!config.insecure_dev);
        assert_eq!((config.store, config.cell), (StoreConfig::default(), None));
    }

    #[test]
    fn unknown_keys_and_bad_numbers_are_errors() {
        let base = "data = \"/v\"\nlisten = \"127.0.0.1:0\"\n";
        assert!(toml::from_str::<Config>(base).is_ok());
        for bad in [
            "typo = 1",
            "[policy]\nattempts = 3",
            "[policy]\ndelays = [\"1\"]",
            "[policy]\ndelays = [\"99d\"]",
        ] {
            assert!(toml::from_str::<Config>(&format!("{base}{bad}\n")).is_err(), "{bad}");
        }
        let zero = PolicyConfig { attempts_max: Some(0), ..PolicyConfig::default() };
        assert!(zero.policy(true).is_err());
    }

    #[test]
    fn development_waits_for_nobody() {
        assert!(PolicyConfig::default().policy(true).unwrap().delays_s.is_empty());
    }
}
