//! Invitations to vaults that do not make accounts for everybody: files of the user's, read when an account is made.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use chatkeep_ipc::Error;
use chatkeep_vault_client::{Invite, Invites, VaultPin};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::fault::Result;

/// Longer than any invitation.
const FILE_LEN_MAX: u64 = 4096;

/// The invitations that the configuration in `path` names for `pins`. Read anew, so that a user who got one need not
/// restart anything.
pub fn for_pins(path: &Path, pins: &[VaultPin]) -> Result<Invites> {
    let config = Config::load(path).map_err(|error| Error::Configured(error.to_string()))?;
    let mut invites = Invites::new();
    for pin in pins {
        let vault = config.vault.iter().find(|vault| vault.name == pin.name);
        let Some(file) = vault.and_then(|vault| vault.invite_file.as_deref()) else { continue };
        let unusable =
            |what: String| Error::Configured(format!("vault `{}`: `invite_file`: {what}", pin.name));
        invites.insert(pin.identity, read(file).map_err(unusable)?);
    }
    Ok(invites)
}

/// Refuses a file that others can read: whoever has the invitation can use it first.
fn read(path: &Path) -> std::result::Result<Invite, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mode = file.metadata().map_err(|error| error.to_string())?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("others can read it (mode {mode:o}): `chmod 600 {}`", path.display()));
    }
    let mut text = Zeroizing::new(String::with_capacity(FILE_LEN_MAX as usize));
    file.take(FILE_LEN_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
    text.parse().map_err(|error: chatkeep_vault_client::NoInvite| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A configuration with one vault and its file, read for that vault.
    fn check(content: &str, mode: u32) -> std::result::Result<usize, String> {
        let dir = tempfile::tempdir().unwrap();
        let (config, file) = (dir.path().join("config.toml"), dir.path().join("invite"));
        std::fs::write(&file, content).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let vault = format!(
            "[[vault]]\nname = \"home\"\nurl = \"https://v\"\nidentity = \"{}\"\ninvite_file = \"{}\"\n",
            "11".repeat(32),
            file.display()
        );
        std::fs::write(&config, vault).unwrap();
        let pin = VaultPin { name: "home".to_owned(), url: "https://v".to_owned(), identity: [0x11; 32] };
        let other = VaultPin { name: "other".to_owned(), ..pin.clone() };
        for_pins(&config, &[pin, other]).map(|invites| invites.len()).map_err(|fault| fault.error.to_string())
    }

    #[test]
    fn a_vault_gets_its_own_invitation() {
        assert_eq!(check("invite-00ff\n", 0o600), Ok(1));
    }

    #[test]
    fn a_file_that_others_read_or_that_holds_something_else_is_refused() {
        assert!(check("invite-00ff\n", 0o644).unwrap_err().contains("others can read it"));
        assert!(check("hunter2\n", 0o600).unwrap_err().contains("no invitation"));
    }
}
