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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::config::Config;
    use crate::hsm::Part;

    #[test]
    fn a_program_without_it_says_how_it_is_built() {
        let settings =
            "data = \"/v\"\nlisten = \"127.0.0.1:0\"\n[hsm]\nkind = \"tpm2\"\nauth_file = \"/nowhere\"\n";
        let config: Config = toml::from_str(settings).unwrap();
        let refused = crate::hsm::open(&config.hsm, Path::new("/v"), Part::Whole).err().unwrap().to_string();
        assert!(refused.contains("--features tpm2") && refused.contains("libtss2-dev"), "{refused}");
    }
}
