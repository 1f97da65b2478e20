//! Secrets that come from files: only the owner may read them.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use super::HsmError;

/// No token takes a longer PIN.
const PIN_LEN_MAX: u64 = 255;

/// Refuses a file that others than its owner could read.
///
/// systemd's credentials are `root:root` with an access list for the service, which shows as mode 0440: the group root
/// may read them, and that is root.
pub(super) fn check_private(path: &Path, file: &File) -> Result<(), HsmError> {
    let metadata = file.metadata()?;
    let mode = metadata.mode() & 0o777;
    let of_root = metadata.uid() == 0 && metadata.gid() == 0;
    let allowed = if of_root { 0o740 } else { 0o700 };
    if mode & !allowed == 0 {
        Ok(())
    } else {
        Err(HsmError::TooOpen { path: path.display().to_string(), mode })
    }
}

/// The PIN or auth value in `path`, without the line end.
pub(super) fn read_pin(path: &Path) -> Result<Zeroizing<String>, HsmError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        HsmError::Token(format!("the secret in `{}`: {error}", path.display()))
    };
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    check_private(path, &file)?;
    // room for all of it from the start: a vector that grows leaves copies behind
    let mut text = Zeroizing::new(String::with_capacity(PIN_LEN_MAX as usize + 2));
    file.take(PIN_LEN_MAX + 1).read_to_string(&mut text).map_err(|error| unreadable(&error))?;
    let pin = text.trim_end_matches(['\n', '\r']);
    if pin.is_empty() || pin.len() as u64 > PIN_LEN_MAX {
        return Err(unreadable(&"it is empty or too long"));
    }
    Ok(Zeroizing::new(pin.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn pin(content: &str, mode: u32) -> Result<Zeroizing<String>, HsmError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        read_pin(&path)
    }

    #[test]
    fn a_pin_is_read_without_its_line_end() {
        assert_eq!(*pin("1234\n", 0o600).unwrap(), "1234");
        assert_eq!(*pin(" 12 34 ", 0o400).unwrap(), " 12 34 ");
    }

    #[test]
    fn a_pin_that_others_can_read_is_refused() {
        for mode in [0o604, 0o620, 0o444, 0o602] {
            assert!(matches!(pin("1234", mode), Err(HsmError::TooOpen { .. })), "{mode:o}");
        }
    }

    #[test]
    fn no_pin_is_no_pin() {
        for content in ["", "\n", &"1".repeat(256)] {
            assert!(matches!(pin(content, 0o600), Err(HsmError::Token(_))));
        }
    }
}
