//! Plugins of the home directory run only after somebody said so, and only as long as they stay the same.
//!
//! Whoever can write to the home directory can write the list, too: it stops an accident and a program that only drops
//! files, not an attacker who is the user. Such a plugin still gets nothing but ciphertext and the secrets of its store.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use chatkeep_store::{Result, StoreError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Manifest, Origin, invalid};

/// The plugins that the user trusts, in a file.
#[derive(Debug, Clone)]
pub struct TrustList {
    file: PathBuf,
}

/// What was looked at when trust was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Trusted {
    manifest: PathBuf,
    manifest_sha256: String,
    program: PathBuf,
    program_sha256: String,
}

impl TrustList {
    /// The list in this file, which need not exist.
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned() }
    }

    /// Trusts a plugin as it is now. Those of the system need no trust.
    pub fn trust(&self, manifest: &Manifest) -> Result<()> {
        let Some(now) = look(manifest)? else { return Ok(()) };
        let mut list = self.read()?;
        list.retain(|trusted| trusted.manifest != now.manifest);
        list.push(now);
        self.write(&list)
    }

    /// Trusts a plugin no more. Says whether it was trusted.
    pub fn distrust(&self, manifest: &Manifest) -> Result<bool> {
        let mut list = self.read()?;
        let before = list.len();
        list.retain(|trusted| Some(trusted.manifest.as_path()) != manifest.path());
        if list.len() < before {
            self.write(&list)?;
        }
        Ok(list.len() < before)
    }

    /// Refuses a plugin of the home directory that is not trusted as it is now, and says what to do.
    pub fn check(&self, manifest: &Manifest) -> Result<()> {
        let Some(now) = look(manifest)? else { return Ok(()) };
        let name = &manifest.name;
        let how = format!(
            "look at {} and {}, then run: chatkeep store trust {name}",
            now.manifest.display(),
            now.program.display()
        );
        match self.read()?.iter().find(|trusted| trusted.manifest == now.manifest) {
            Some(trusted) if *trusted == now => Ok(()),
            Some(_) => {
                Err(invalid(format!("the store plugin `{name}` is not the one that was trusted; {how}")))
            }
            None => Err(invalid(format!("the store plugin `{name}` is not trusted; {how}"))),
        }
    }

    fn read(&self) -> Result<Vec<Trusted>> {
        match std::fs::read(&self.file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                invalid(format!("{} is no list of trusted plugins: {error}", self.file.display()))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(self.unusable(&error)),
        }
    }

    fn write(&self, list: &[Trusted]) -> Result<()> {
        let text = serde_json::to_vec_pretty(list).expect("paths that came from text can be written");
        let next = self.file.with_extension("next");
        let written = || {
            if let Some(folder) = self.file.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut file = File::create(&next)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&next, &self.file)
        };
        written().map_err(|error| self.unusable(&error))
    }

    fn unusable(&self, error: &io::Error) -> StoreError {
        invalid(format!("the list of trusted plugins {} cannot be used: {error}", self.file.display()))
    }
}

/// Looks at a plugin as it is now; `None` for one that needs no trust.
fn look(manifest: &Manifest) -> Result<Option<Trusted>> {
    let Origin::Home(path) = &manifest.origin else { return Ok(None) };
    let program = manifest.program()?;
    let hash = hash_of(&program).map_err(|error| invalid(format!("{}: {error}", program.display())))?;
    Ok(Some(Trusted {
        manifest: path.clone(),
        manifest_sha256: hex::encode(Sha256::digest(&manifest.text)),
        program,
        program_sha256: hash,
    }))
}

fn hash_of(path: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut block) = (File::open(path)?, Sha256::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hex::encode(hash.finalize())),
            len => hash.update(&block[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::manifest::find::{Manifests, Places};

    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            let home = Self(tempfile::tempdir().unwrap());
            home.write_program("#!/bin/sh\n");
            home.write_manifest("");
            home
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write_program(&self, text: &str) {
            std::fs::write(self.path("program"), text).unwrap();
            std::fs::set_permissions(self.path("program"), std::fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn write_manifest(&self, more: &str) {
            let text = format!("schemes = [\"mine\"]\nexec = \"{}\"\n{more}", self.path("program").display());
            std::fs::write(self.path("mine.toml"), text).unwrap();
        }

        fn manifest(&self, is_home: bool) -> Manifest {
            let folder = self.0.path().to_owned();
            let places = if is_home {
                Places { system: Vec::new(), home: Some(folder) }
            } else {
                Places { system: vec![folder], home: None }
            };
            Manifests::load(&places).named("mine").unwrap().clone()
        }

        fn list(&self) -> TrustList {
            TrustList::new(&self.path("state/trusted-stores.json"))
        }

        fn check(&self) -> Result<(), String> {
            self.list().check(&self.manifest(true)).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn a_plugin_of_the_home_directory_needs_trust_and_says_how_it_is_given() {
        let home = Home::new();
        let error = home.check().unwrap_err();
        assert!(error.contains("is not trusted") && error.ends_with("chatkeep store trust mine"), "{error}");
        home.list().trust(&home.manifest(true)).unwrap();
        home.check().unwrap();
        assert!(home.list().distrust(&home.manifest(true)).unwrap());
        home.check().unwrap_err();
        assert!(!home.list().distrust(&home.manifest(true)).unwrap());
    }

    #[test]
    fn trust_ends_with_any_change_of_the_program_or_of_the_manifest() {
        let home = Home::new();
        home.list().trust(&home.manifest(true)).unwrap();
        home.write_program("#!/bin/sh\n# more\n");
        let error = home.check().unwrap_err();
        assert!(error.contains("not the one that was trusted"), "{error}");
        home.list().trust(&home.manifest(true)).unwrap();
        home.check().unwrap();
        home.write_manifest("sandbox = { network = true }\n");
        home.check().unwrap_err();
        home.write_manifest("");
        home.check().unwrap();
    }

    #[test]
    fn a_plugin_of_the_system_needs_no_trust() {
        let home = Home::new();
        home.list().check(&home.manifest(false)).unwrap();
    }

    #[test]
    fn a_list_that_cannot_be_read_is_an_error_and_not_an_empty_one() {
        let home = Home::new();
        home.list().trust(&home.manifest(true)).unwrap();
        std::fs::write(home.path("state/trusted-stores.json"), "[{").unwrap();
        assert!(home.check().unwrap_err().contains("no list of trusted plugins"));
    }
}
