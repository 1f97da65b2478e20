//! A device with keys, a vault that uses it, and the vault's disk: the real program, over real TLS, through the real courier
//! code.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each uses a part of this")]

use std::path::{Path, PathBuf};
use std::process::Output;

use chatkeep_vault_client::{CourierTransport, KdfParams, VaultError, register};
use chatkeep_vault_rig::KeyDevice;
use rand_core::OsRng;
use tempfile::TempDir;

use super::program::{PROGRAM, Program};
use super::{CONTEXT, KEY, PASSWORD, unlock};

/// See the module.
pub(crate) struct World<D> {
    pub(crate) device: D,
    pub(crate) dir: TempDir,
}

impl<D: KeyDevice> World<D> {
    /// A vault that was made, with more settings.
    pub(crate) fn on(device: D, more: &str) -> Self {
        let world = Self { device, dir: tempfile::tempdir().unwrap() };
        world.configure(more);
        world.made()
    }

    /// As [`Self::on`], with settings that were changed.
    pub(crate) fn configured(device: D, change: impl FnOnce(String) -> String) -> Self {
        Self::unmade(device, change).made()
    }

    /// No vault yet, but its settings.
    pub(crate) fn unmade(device: D, change: impl FnOnce(String) -> String) -> Self {
        let world = Self { device, dir: tempfile::tempdir().unwrap() };
        world.configure("");
        world.reconfigure(change);
        world
    }

    fn made(self) -> Self {
        let made = self.run("init");
        assert!(made.status.success(), "{}", said(&made));
        self
    }

    /// Writes the configuration anew.
    pub(crate) fn configure(&self, more: &str) {
        std::fs::write(self.config(), self.device.settings(&self.disk(), more)).unwrap();
    }

    /// Changes the configuration.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        let settings = std::fs::read_to_string(self.config()).unwrap();
        std::fs::write(self.config(), change(settings)).unwrap();
    }

    /// The vault's disk: all that it keeps but the token.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("vault.toml")
    }

    pub(crate) fn run(&self, command: &str) -> Output {
        self.device.command(PROGRAM).args([command, "--config"]).arg(self.config()).output().unwrap()
    }

    pub(crate) fn start(&self) -> Program {
        Program::start(self.device.command(PROGRAM).args(["serve", "--config"]).arg(self.config()))
    }

    pub(crate) fn serve(&self) -> Program {
        self.start().ready()
    }

    /// What it says instead of serving.
    pub(crate) fn refused(&self) -> String {
        self.start().refused()
    }

    pub(crate) fn status(&self) -> String {
        let shown = self.run("status");
        assert!(shown.status.success(), "{}", said(&shown));
        String::from_utf8(shown.stdout).unwrap()
    }

    pub(crate) fn copy_disk(&self, name: &str) -> PathBuf {
        let copy = self.dir.path().join(name);
        copy_folder(&self.disk(), &copy);
        copy
    }

    pub(crate) fn put_back(&self, copy: &Path) {
        std::fs::remove_dir_all(self.disk()).unwrap();
        copy_folder(copy, &self.disk());
    }
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

pub(crate) async fn enroll(transport: &CourierTransport, served: &Program) -> Vec<u8> {
    let kdf = KdfParams::TESTING;
    register(transport, &[served.pin()], 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng).await.unwrap().slot
}

/// One wrong guess; how many are left.
pub(crate) async fn guess_wrong(transport: &CourierTransport, served: &Program, slot: &[u8]) -> u16 {
    match unlock(transport, &[served.pin()], slot, b"wrong").await.unwrap_err() {
        VaultError::WrongPassword { left, max: 10 } => left,
        other => panic!("{other}"),
    }
}
