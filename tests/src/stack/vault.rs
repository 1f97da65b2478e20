//! A Backup Key Vault, served by the real program; it can be killed and comes back at the same address.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::process::Process;
use super::{programs, wait};

/// A vault with its data.
pub struct Vault {
    /// Where it serves.
    pub url: String,
    /// What clients pin, 64 hex digits.
    pub identity: String,
    folder: PathBuf,
    process: Option<Process>,
}

impl Vault {
    /// Makes the keys in `folder` and serves at a free port.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_at(folder, "127.0.0.1:0")
    }

    /// As [`Vault::start`], at this address.
    pub fn start_at(folder: &Path, listen: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let program = programs::ours("chatkeep-vault")?;
        let made = Command::new(&program)
            .args(["init", "--insecure-dev", "--data"])
            .arg(folder.join("data"))
            .output()
            .context("chatkeep-vault init")?;
        if !made.status.success() {
            bail!("chatkeep-vault init failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        let folder = folder.to_owned();
        let mut vault = Self { url: String::new(), identity: String::new(), folder, process: None };
        vault.serve(listen)?;
        Ok(vault)
    }

    fn serve(&mut self, listen: &str) -> Result<()> {
        let mut command = programs::leashed(&programs::ours("chatkeep-vault")?);
        command.args(["serve", "--insecure-dev", "--listen", listen, "--data"]).arg(self.data());
        let (process, line) =
            Process::start_and_read_line("chatkeep-vault", command.env("RUST_LOG", "info"), &self.log())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["listening", "on", url, "identity", identity] = words[..] else {
            bail!("the vault printed `{line}`");
        };
        (self.url, self.identity) = (url.to_owned(), identity.to_owned());
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM, to a good end.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.terminate(wait::PATIENCE),
            None => Ok(()),
        }
    }

    /// Serves again, at the same address. It is running already: nothing happens.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        let address = self.address().to_owned();
        self.serve(&address)
    }

    /// Where it serves, without the scheme.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("https://").unwrap_or(&self.url)
    }

    /// What a machine's configuration says of it.
    pub fn section(&self, name: &str) -> String {
        format!("[[vault]]\nname = \"{name}\"\nurl = \"{}\"\nidentity = \"{}\"\n", self.url, self.identity)
    }

    /// Everything the vault keeps.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What it said.
    pub fn log(&self) -> PathBuf {
        self.folder.join("vault.log")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_killed_vault_comes_back_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let mut vault = Vault::start(folder.path()).unwrap();
        let (url, identity) = (vault.url.clone(), vault.identity.clone());
        assert!(std::net::TcpStream::connect(url.strip_prefix("https://").unwrap()).is_ok());
        vault.kill();
        assert!(std::net::TcpStream::connect(url.strip_prefix("https://").unwrap()).is_err());
        vault.restart().unwrap();
        assert_eq!((&vault.url, &vault.identity), (&url, &identity));
        vault.stop().unwrap();
    }
}
