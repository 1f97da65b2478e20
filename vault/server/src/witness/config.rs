//! `[[witness]]` and `[[witness_for]]`: which vaults remember this one, and which ones it remembers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chatkeep_vault_protocol::Identity;
use chatkeep_vault_protocol::cell::CellId;
use serde::Deserialize;

use crate::config::{AnchorKind, Config};
use crate::hsm::IdentityKey;
use crate::vault::Clock;
use crate::witness::link::TlsLink;
use crate::witness::peers::Peer;
use crate::witness::{Witness, WitnessAnchor};

/// At start, witnesses get so long before the vault says which of them are away.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// `[[witness]]`: a vault that remembers this one's state.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessConfig {
    /// Its fingerprint.
    pub identity: Pinned,
    /// Where it answers: `https://…`.
    pub address: String,
}

/// `[[witness_for]]`: a vault whose state this one remembers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessForConfig {
    /// Its fingerprint.
    pub identity: Pinned,
}

/// A fingerprint in a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pinned(pub Identity);

impl TryFrom<String> for Pinned {
    type Error = chatkeep_vault_protocol::pin::NotAFingerprint;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// `[[witness]]` and its quorum, for the state of `cell` or of a vault that is whole; `None` if there are none.
pub fn witness_anchor(
    config: &Config,
    cell: Option<CellId>,
    keys: &Arc<dyn IdentityKey>,
    clock: &Clock,
) -> anyhow::Result<Option<WitnessAnchor>> {
    let quorum = config.anchor.quorum;
    let wanted = config.anchor_kinds().contains(&AnchorKind::Witness);
    if !wanted && (quorum.is_some() || !config.witnesses.is_empty()) {
        bail!("there are witnesses or a quorum, but no \"witness\" in [anchor] kinds");
    }
    if !wanted {
        return Ok(None);
    }
    let quorum = quorum.context("[anchor] kinds has \"witness\", but there is no quorum")?;
    let own = keys.public();
    let mut peers: Vec<Peer> = Vec::with_capacity(config.witnesses.len());
    for WitnessConfig { identity, address } in &config.witnesses {
        let identity = identity.0.0;
        if identity == own {
            bail!("this vault cannot be its own witness");
        }
        if peers.iter().any(|peer| peer.identity == identity) {
            bail!("the witness {} is there twice", Identity(identity));
        }
        let link = TlsLink::new(address, identity).with_context(|| format!("the witness `{address}`"))?;
        peers.push(Peer { name: address.clone(), identity, link: Box::new(link) });
    }
    let clock = clock.clone();
    Ok(Some(WitnessAnchor::new(peers, quorum, keys.clone(), cell, clock, START_PATIENCE)?))
}

/// The witness for `[[witness_for]]`; `None` if there is nobody to witness.
pub fn witness(
    config: &Config,
    on_failure: impl FnOnce(String) + Send + 'static,
) -> anyhow::Result<Option<Witness>> {
    if config.witness_for.is_empty() {
        return Ok(None);
    }
    let vaults: Vec<_> = config.witness_for.iter().map(|vault| vault.identity.0.0).collect();
    Ok(Some(Witness::open(&config.data, &vaults, on_failure)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::setup;

    /// What becomes of a configuration: the anchor's name, or why there is none.
    fn check(settings: &str) -> Result<&'static str, String> {
        let dir = tempfile::tempdir().unwrap();
        let own = setup::init(&Config::development(dir.path())).unwrap();
        let settings = settings
            .replace("ONE", &"11".repeat(32))
            .replace("TWO", &"22".repeat(32))
            .replace("OWN", &Identity(own).to_string());
        let base = format!("data = \"{}\"\nlisten = \"127.0.0.1:0\"\n", dir.path().display());
        let text = format!("{base}insecure_dev = true\n{settings}");
        let config: Config = toml::from_str(&text).map_err(|error| error.to_string())?;
        setup::open(&config).map(|(parts, _lock)| parts.anchor.name()).map_err(|error| format!("{error:#}"))
    }

    const ONE: &str = "[[witness]]\nidentity = \"ONE\"\naddress = \"https://one\"\n";
    const TWO: &str = "[[witness]]\nidentity = \"TWO\"\naddress = \"https://two\"\n";

    #[test]
    fn kinds_name_the_anchors_and_a_file_is_the_default() {
        assert_eq!(check("").unwrap(), "file");
        let both = format!("[anchor]\nkinds = [\"file\", \"witness\"]\nquorum = 2\n{ONE}{TWO}");
        assert_eq!(check(&both).unwrap(), "file+witness");
        let witness = format!("[anchor]\nkinds = [\"witness\"]\nquorum = 1\n{ONE}");
        assert_eq!(check(&witness).unwrap(), "witness");
    }

    #[test]
    fn what_the_example_leaves_out_is_right_when_it_is_put_in() {
        let example = include_str!("../../config.example.toml");
        let setting = |line: &str| line.starts_with('[') || line.split(' ').nth(1) == Some("=");
        let put_in = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if setting(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        };
        let config: Config = toml::from_str(&example.lines().map(put_in).collect::<String>()).unwrap();
        assert_eq!((config.witnesses.len(), config.witness_for.len(), config.anchor.quorum), (1, 1, Some(2)));
    }

    #[test]
    fn settings_that_would_not_protect_are_errors() {
        let with =
            |anchor: &str, witnesses: &str| check(&format!("[anchor]\n{anchor}\n{witnesses}")).unwrap_err();
        let kinds = "kinds = [\"file\", \"witness\"]";
        for (quorum, witnesses) in [(0, ONE), (2, ONE), (0, "")] {
            let error = with(&format!("{kinds}\nquorum = {quorum}"), witnesses);
            assert!(error.contains("more than half"), "{error}");
        }
        let half = with(&format!("{kinds}\nquorum = 1"), &format!("{ONE}{TWO}"));
        assert!(half.contains("more than half"), "{half}");
        assert!(with(kinds, ONE).contains("no quorum"));
        assert!(with("", ONE).contains("no \"witness\""));
        assert!(with("kinds = []", "").contains("no anchor"));
        let twice = with(&format!("{kinds}\nquorum = 2"), &format!("{ONE}{ONE}"));
        assert!(twice.contains("twice"), "{twice}");
        let own = ONE.replace("ONE", "OWN");
        assert!(with(&format!("{kinds}\nquorum = 1"), &own).contains("own witness"));
        let plain = ONE.replace("https", "http");
        assert!(with(&format!("{kinds}\nquorum = 1"), &plain).contains("https"));
        assert!(check("[[witness_for]]\nidentity = \"11\"\n").unwrap_err().contains("64 hex"));
    }
}
