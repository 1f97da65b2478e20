//! What the keys in a TPM do and do not do, with a TPM of its own (swtpm) for every test.
#![cfg(feature = "tpm2")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;

use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::hsm::{self, Device, DeviceError, HsmError};
use chatkeep_vault_server::setup;
use common::swtpm::Swtpm;
use tempfile::TempDir;

fn config(tpm: &Swtpm, dir: &TempDir, more: &str) -> Config {
    toml::from_str(&tpm.settings(dir.path(), more)).unwrap()
}

#[test]
fn smoke() {
    let (tpm, dir) = (Swtpm::new(), tempfile::tempdir().unwrap());
    let config = config(&tpm, &dir, "");
    setup::init(&config).unwrap();
    let device = hsm::open(&config.hsm, &config.data).unwrap();
    println!("{} {:?} {:?}", device.keys.name, device.weakness, device.cautions);
}
