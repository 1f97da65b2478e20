//! A PKCS#11 token of SoftHSM2 in a folder of its own.
//!
//! Its library reads `SOFTHSM2_CONF` from the environment, so whatever uses it runs in another process: the program
//! itself, or this test binary once more.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The library of Debian's package.
pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// Label of the token.
pub const TOKEN: &str = "vault";
/// Its PIN.
pub const PIN: &str = "1234-5678";

const CONF: &str = "SOFTHSM2_CONF";
const DIR_OF_PARENT: &str = "CHATKEEP_TEST_TOKEN";

/// An initialised token with a PIN file; gone when dropped, unless it belongs to a parent process.
pub struct SoftToken {
    dir: PathBuf,
    _owned: Option<TempDir>,
}

impl SoftToken {
    /// Makes one.
    pub fn new() -> Self {
        let owned = tempfile::tempdir().unwrap();
        let token = Self { dir: owned.path().to_owned(), _owned: Some(owned) };
        std::fs::create_dir(token.dir.join("tokens")).unwrap();
        token.forbid("");
        std::fs::write(token.pin_file(), format!("{PIN}\n")).unwrap();
        std::fs::set_permissions(token.pin_file(), std::fs::Permissions::from_mode(0o600)).unwrap();
        let made = token
            .command("softhsm2-util")
            .args(["--init-token", "--free", "--label", TOKEN, "--so-pin", "so-pin-4711", "--pin", PIN])
            .output()
            .unwrap_or_else(|error| panic!("softhsm2-util: {error} (Debian package: softhsm2)"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        assert!(Path::new(MODULE).exists(), "{MODULE} is missing (Debian package: softhsm2)");
        token
    }

    /// As it is now, with all its objects, in a folder of its own: what a maker's tool does to a token that may be cloned.
    #[must_use]
    pub fn cloned(&self) -> Self {
        let clone = Self::new();
        let tokens = |token: &Self| token.dir.join("tokens");
        std::fs::remove_dir_all(tokens(&clone)).unwrap();
        let copied = Command::new("cp").arg("-r").args([tokens(self), tokens(&clone)]).status().unwrap();
        assert!(copied.success());
        clone
    }

    /// The token knows this mechanism no longer; all others again.
    pub fn forbid(&self, mechanism: &str) {
        // version 2.6.1 does not see the first name of a list that begins with `-`; nobody needs this one
        let mechanisms = if mechanism.is_empty() { "ALL" } else { &format!("-CKM_SHA_1,{mechanism}") };
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.mechanisms = {mechanisms}\n",
            self.dir.join("tokens").display()
        );
        std::fs::write(self.dir.join("softhsm2.conf"), conf).unwrap();
    }

    /// What `pin_file` names.
    pub fn pin_file(&self) -> PathBuf {
        self.dir.join("pin")
    }

    /// A process that finds this token.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env(CONF, self.dir.join("softhsm2.conf"));
        command
    }

    /// Settings for a vault with its keys here; `more` goes before the tables.
    pub fn settings(&self, data: &Path, more: &str) -> String {
        format!(
            "data = \"{}\"\nlisten = \"127.0.0.1:0\"\ninsecure_dev = true\n{more}\n[hsm]\nkind = \"pkcs11\"\n\
             module = \"{MODULE}\"\ntoken = \"{TOKEN}\"\npin_file = \"{}\"\nseal_key_lifetime = \"0s\"\n",
            data.display(),
            self.pin_file().display()
        )
    }

    /// The parent's token, if this process was started by [`Self::in_child`].
    pub fn of_parent() -> Option<Self> {
        let dir = std::env::var_os(DIR_OF_PARENT)?;
        Some(Self { dir: dir.into(), _owned: None })
    }

    /// Runs one test of this binary in another process, where [`Self::of_parent`] is this token; gives its output.
    pub fn in_child(&self, test: &str, variables: &[(&str, &str)]) -> std::process::Output {
        self.command(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(DIR_OF_PARENT, &self.dir)
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }

    /// As [`Self::in_child`], for a test that must pass.
    pub fn pass_in_child(&self, test: &str) {
        let ran = self.in_child(test, &[]);
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    }
}
