//! The configuration file. Unknown keys are errors; there are no secrets in it, only names of files that have them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use crate::admission::AdmissionConfig;
use crate::cells::CellConfig;
use crate::core::Policy;
use crate::store::StoreConfig;
use crate::witness::config::{WitnessConfig, WitnessForConfig};

/// `config.toml`; see `config.example.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the database is, and keys in software and their anchor; made by `chatkeep-vault init`.
    pub data: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Serve although the keys are in software.
    #[serde(default)]
    pub insecure_dev: bool,
    /// Connections at the same time.
    #[serde(default = "default_connections_max")]
    pub connections_max: usize,
    /// Where Prometheus may ask.
    #[serde(default)]
    pub metrics: Option<Loopback>,
    /// Where the keys are.
    #[serde(default)]
    pub hsm: HsmConfig,
    /// Bounds on guessing.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// What binds the state against old copies.
    #[serde(default)]
    pub anchor: AnchorConfig,
    /// Vaults that remember this one's state.
    #[serde(default, rename = "witness")]
    pub witnesses: Vec<WitnessConfig>,
    /// Vaults whose state this one remembers.
    #[serde(default)]
    pub witness_for: Vec<WitnessForConfig>,
    /// Where records are kept.
    #[serde(default)]
    pub store: StoreConfig,
    /// Which accounts are served, if not all.
    #[serde(default)]
    pub cell: Option<CellConfig>,
    /// For whom accounts are made.
    #[serde(default)]
    pub admission: AdmissionConfig,
}

/// An address of this machine that other machines do not reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SocketAddr")]
pub struct Loopback(pub SocketAddr);

impl TryFrom<SocketAddr> for Loopback {
    type Error = BadSetting;

    fn try_from(address: SocketAddr) -> Result<Self, BadSetting> {
        if address.ip().is_loopback() {
            return Ok(Self(address));
        }
        let what =
            format!("{address} can be reached by other machines: write \"127.0.0.1:PORT\" or \"[::1]:PORT\"");
        Err(BadSetting(what))
    }
}

/// `[hsm]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum HsmConfig {
    /// Keys in a file in the data directory: for development.
    Soft {},
    /// Keys on a PKCS#11 token.
    Pkcs11(Pkcs11Config),
    /// Keys in a TPM 2.0.
    Tpm2(Tpm2Config),
}

impl HsmConfig {
    /// Age at which a running vault exchanges the key that seals records; `None`: never by itself.
    pub fn seal_key_lifetime_s(&self) -> Option<u64> {
        let lifetime = match self {
            Self::Soft {} => return None,
            Self::Pkcs11(settings) => settings.seal_key_lifetime,
            Self::Tpm2(settings) => settings.seal_key_lifetime,
        };
        Some(lifetime.seconds).filter(|seconds| *seconds > 0)
    }
}

impl Default for HsmConfig {
    fn default() -> Self {
        Self::Soft {}
    }
}

/// `[hsm]` with `kind = "pkcs11"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pkcs11Config {
    /// The library of the device.
    pub module: PathBuf,
    /// Label of the token.
    pub token: String,
    /// The file with the PIN, readable by its owner only.
    pub pin_file: PathBuf,
    /// Age at which the running vault exchanges the key that seals records; `"0s"`: never by itself.
    #[serde(default = "default_seal_key_lifetime")]
    pub seal_key_lifetime: Duration,
}

/// `[hsm]` with `kind = "tpm2"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tpm2Config {
    /// The way to the TPM, as tpm2-tss writes it: `device:/dev/tpmrm0`, `tabrmd:…`, `swtpm:host=…,port=…`.
    #[serde(default = "default_tcti")]
    pub tcti: String,
    /// The file with the secret that lets the TPM use its keys, readable by its owner only.
    pub auth_file: PathBuf,
    /// The file with the authorisation of the TPM's owner, if that is set; for `init` only.
    pub owner_auth_file: Option<PathBuf>,
    /// `init` sets that authorisation to a random value that nobody learns.
    #[serde(default)]
    pub discard_owner_auth: bool,
    /// From one write of the anchor to the next, at least; 5 s at most, because clients wait.
    #[serde(default = "default_anchor_pause")]
    pub anchor_pause: Duration,
    /// Age at which the running vault exchanges the key that seals records; `"0s"`: never by itself.
    #[serde(default = "default_seal_key_lifetime")]
    pub seal_key_lifetime: Duration,
}

/// At most 86 400 writes a day, of the 100 000 to some millions that a TPM's memory stands: whoever makes accounts without end
/// wears it out in days, not in hours.
fn default_anchor_pause() -> Duration {
    Duration { seconds: 1 }
}

/// The kernel's resource manager: others can use the TPM at the same time.
fn default_tcti() -> String {
    "device:/dev/tpmrm0".to_owned()
}

/// A day: what was erased can be opened with a copy of the disk and the token for so long, and no longer.
fn default_seal_key_lifetime() -> Duration {
    Duration { seconds: 24 * 3600 }
}

/// `[anchor]`: what must agree with the database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorConfig {
    /// All of these; by default the device that has the keys, or a file.
    pub kinds: Option<Vec<AnchorKind>>,
    /// So many witnesses must have signed before an answer leaves: more than half of them.
    pub quorum: Option<usize>,
}

/// One kind of anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnchorKind {
    /// A file in the data directory: notices a database that was put back alone, and goes back with the disk.
    File,
    /// The token that has the keys.
    Pkcs11,
    /// The TPM that has the keys.
    Tpm2,
    /// Other vaults: notice a whole disk that was put back.
    Witness,
}

impl Config {
    /// Keys in software in `data`, on any port of this machine: for development.
    pub fn development(data: &Path) -> Self {
        Self {
            data: data.to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            insecure_dev: true,
            connections_max: default_connections_max(),
            metrics: None,
            hsm: HsmConfig::default(),
            policy: PolicyConfig::default(),
            anchor: AnchorConfig::default(),
            witnesses: Vec::new(),
            witness_for: Vec::new(),
            store: StoreConfig::default(),
            cell: None,
            admission: AdmissionConfig::default(),
        }
    }

    /// Reads the file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("the configuration `{}`", path.display());
        let text = std::fs::read_to_string(path).with_context(context)?;
        toml::from_str(&text).with_context(context)
    }

    /// The anchors, which must all agree.
    pub fn anchor_kinds(&self) -> Vec<AnchorKind> {
        self.anchor.kinds.clone().unwrap_or_else(|| match self.hsm {
            HsmConfig::Soft {} => vec![AnchorKind::File],
            HsmConfig::Pkcs11(_) => vec![AnchorKind::Pkcs11],
            HsmConfig::Tpm2(_) => vec![AnchorKind::Tpm2],
        })
    }
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
        text.parse()
    }
}

impl std::str::FromStr for Duration {
    type Err = BadSetting;

    fn from_str(text: &str) -> Result<Self, BadSetting> {
        let bad = || {
            BadSetting(format!(
                "`{text}` is no duration: write \"30s\", \"5m\", \"1h\" or \"2d\", 30 days at most"
            ))
        };
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
        let HsmConfig::Pkcs11(token) = config.hsm else { panic!("the example has a token") };
        assert_eq!(token.seal_key_lifetime, default_seal_key_lifetime());
        assert_eq!((config.store, config.cell), (StoreConfig::default(), None));
    }

    /// It stands in the example beside the token, with three more spaces.
    #[test]
    fn the_example_of_a_tpm_has_the_defaults() {
        let example = include_str!("../config.example.toml");
        let lines = example.lines().filter_map(|line| line.strip_prefix("#   "));
        let table = lines.skip_while(|line| *line != "[hsm]").collect::<Vec<_>>().join("\n");
        let HsmConfig::Tpm2(example) = hsm(&table).unwrap() else { panic!("{table}") };
        let HsmConfig::Tpm2(default) = hsm(TPM2).unwrap() else { panic!() };
        let Tpm2Config { auth_file, owner_auth_file, .. } = example.clone();
        assert!(owner_auth_file.is_some());
        assert_eq!(example, Tpm2Config { auth_file, owner_auth_file, ..default });
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
    fn metrics_are_for_this_machine_only() {
        let metrics = |address: &str| {
            let text = format!("data = \"/v\"\nlisten = \"127.0.0.1:0\"\nmetrics = \"{address}\"\n");
            toml::from_str::<Config>(&text).map(|config| config.metrics.unwrap().0)
        };
        assert_eq!(metrics("127.0.0.1:9464").unwrap().port(), 9464);
        assert!(metrics("[::1]:9464").is_ok());
        for open in ["0.0.0.0:9464", "192.0.2.1:9464", "[::]:9464"] {
            assert!(metrics(open).unwrap_err().to_string().contains("other machines"), "{open}");
        }
    }

    const PKCS11: &str = "[hsm]\nkind = \"pkcs11\"\nmodule = \"/m.so\"\ntoken = \"t\"\npin_file = \"/pin\"\n";

    fn hsm(table: &str) -> Result<HsmConfig, toml::de::Error> {
        let base = "data = \"/v\"\nlisten = \"127.0.0.1:0\"\n";
        toml::from_str::<Config>(&format!("{base}{table}")).map(|config| config.hsm)
    }

    #[test]
    fn keys_are_in_software_unless_a_token_is_named() {
        assert_eq!(hsm("").unwrap(), HsmConfig::Soft {});
        assert_eq!(hsm("[hsm]\nkind = \"soft\"\n").unwrap(), HsmConfig::Soft {});
        let HsmConfig::Pkcs11(token) = hsm(PKCS11).unwrap() else { panic!() };
        assert_eq!((token.token.as_str(), token.seal_key_lifetime.seconds), ("t", 86_400));
    }

    const TPM2: &str = "[hsm]\nkind = \"tpm2\"\nauth_file = \"/auth\"\n";

    #[test]
    fn a_tpm_is_the_machines_own_unless_another_is_named() {
        let HsmConfig::Tpm2(tpm) = hsm(TPM2).unwrap() else { panic!() };
        assert_eq!((tpm.tcti.as_str(), tpm.anchor_pause.seconds), ("device:/dev/tpmrm0", 1));
        assert_eq!((tpm.owner_auth_file, tpm.discard_owner_auth), (None, false));
        assert_eq!(hsm(TPM2).unwrap().seal_key_lifetime_s(), Some(86_400));
        let never = hsm(&format!("{TPM2}seal_key_lifetime = \"0s\"\n")).unwrap();
        assert_eq!((never.seal_key_lifetime_s(), HsmConfig::Soft {}.seal_key_lifetime_s()), (None, None));
    }

    #[test]
    fn a_device_has_no_keys_that_it_does_not_know_and_none_too_few() {
        let bad = [
            "[hsm]\nkind = \"soft\"\nmodule = \"/m.so\"\n".to_owned(),
            "[hsm]\nkind = \"tpm\"\n".to_owned(),
            "[hsm]\n".to_owned(),
            format!("{PKCS11}pin = \"1234\"\n"),
            PKCS11.replace("pin_file", "pin"),
            TPM2.replace("auth_file", "pin_file"),
            format!("{TPM2}token = \"t\"\n"),
            PKCS11.replace("token = \"t\"", ""),
        ];
        for table in bad {
            assert!(hsm(&table).is_err(), "{table}");
        }
    }

    #[test]
    fn development_waits_for_nobody() {
        assert!(PolicyConfig::default().policy(true).unwrap().delays_s.is_empty());
    }
}
