//! A small file in the data directory that says in which TPM the keys were made. There is nothing secret in it, and nothing depends
//! on it but how well it can be told why keys are not there.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::chip::Maker;
use crate::hsm::HsmError;

/// Its name in the data directory.
pub(super) const FILE: &str = "tpm2.toml";

/// See the module.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Manufacturer and model, as the TPM says.
    pub(super) maker: String,
    /// Which one it was; absent if it did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tpm: Option<String>,
    /// Name of the root key, in hex.
    pub(super) root: String,
}

impl Note {
    /// Replaces what was there: a TPM that has keys was refused before.
    pub(super) fn write(&self, dir: &Path) -> Result<(), HsmError> {
        let text = toml::to_string(self).expect("three strings are TOML");
        Ok(std::fs::write(dir.join(FILE), text)?)
    }

    /// `None` also if it cannot be read: then less can be said.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        toml::from_str(&std::fs::read_to_string(dir.join(FILE)).ok()?).ok()
    }
}

/// Why a TPM has no keys.
pub(super) fn why_absent(note: Option<&Note>, here: &Maker, fingerprint: Option<&str>) -> String {
    let Some(Note { maker, tpm, .. }) = note else {
        return format!("the TPM ({here}) has no keys of a vault: was `chatkeep-vault init` run with it?");
    };
    match (tpm.as_deref(), fingerprint) {
        (Some(then), Some(now)) if then == now => format!(
            "the TPM ({here}) has lost the vault's keys: it was cleared, or somebody removed them. They cannot be \
             brought back, and no account of this vault can be opened again"
        ),
        (Some(_), Some(_)) => format!(
            "this is another TPM ({here}) than the one with the vault's keys ({maker}): they cannot be moved, so bring \
             the disk back to its machine"
        ),
        _ => format!(
            "the TPM ({here}) has no keys of this vault, which were made in one by {maker}: it was cleared, or this is \
             another machine"
        ),
    }
}
