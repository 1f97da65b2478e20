//! In place of `tpm2`, in a program without it.

use std::path::Path;

use rand_core::CryptoRngCore;

use super::{Device, HsmError};
use crate::config::Tpm2Config;

/// Refuses.
pub fn create(
    _settings: &Tpm2Config,
    _dir: &Path,
    _now_s: u64,
    _rng: &mut dyn CryptoRngCore,
) -> Result<Device, HsmError> {
    Err(absent())
}

/// Refuses.
pub fn open(_settings: &Tpm2Config, _dir: &Path) -> Result<Device, HsmError> {
    Err(absent())
}

fn absent() -> HsmError {
    HsmError::Token(
        "this program was built without support for TPMs; build it with `cargo build --release -p chatkeep-vault-server \
         --features tpm2`, which needs Debian's libtss2-dev"
            .to_owned(),
    )
}
