//! Chatkeep as its users have it: real programs, real sockets, real files, in one folder that goes away.
//!
//! In reading order: [`programs`] finds the built programs; [`process`] starts, kills and ends them; [`bus`] is a
//! private session bus with a monitor, [`vault`] a served vault, [`machine`] one user's machine with the service on
//! it; [`command`] drives the `chatkeep` command, [`desktop`] is who shows its notifications; [`notes`] and [`writer`] are the apps that write; [`scan`] looks for
//! what must not be readable; [`tables`] compares databases; [`trace`] says which sockets a program asks for; [`wait`] and [`random`] are small helpers.

pub mod bus;
pub mod command;
pub mod desktop;
pub mod machine;
pub mod notes;
pub mod process;
pub mod programs;
pub mod random;
pub mod scan;
pub mod tables;
pub mod trace;
pub mod vault;
pub mod wait;
pub mod writer;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

pub use machine::{Machine, Settings};
pub use vault::Vault;

/// A folder for everything, and the vault and the store that all machines share.
pub struct Stack {
    /// The vault.
    pub vault: Vault,
    folder: tempfile::TempDir,
}

impl Stack {
    /// A new folder with an empty store and a vault that serves. With `CHATKEEP_KEEP` set it is left there at the end.
    pub fn start() -> Result<Self> {
        programs::require_all()?;
        // paths of unix sockets are limited to 107 bytes, so the folder does not follow a long TMPDIR
        let mut folder =
            tempfile::Builder::new().prefix("ck").tempdir_in("/tmp").context("no folder in /tmp")?;
        if std::env::var_os("CHATKEEP_KEEP").is_some() {
            folder.disable_cleanup(true);
            eprintln!("kept: {}", folder.path().display());
        }
        let vault = Vault::start(&folder.path().join("vault"))?;
        std::fs::create_dir(folder.path().join("store"))?;
        Ok(Self { vault, folder })
    }

    /// Everything is below it.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// The folder that is the store.
    pub fn store(&self) -> PathBuf {
        self.root().join("store")
    }

    /// A machine of its own, with an empty home, configured for the store and the vault; not started.
    pub fn machine(&self, name: &str, settings: &Settings) -> Result<Machine> {
        Machine::new(&self.root().join(name), &self.store(), &self.vault, settings)
    }

    /// Leaves the folder where it is, for whoever wants to look into it.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}
