//! `rclone:REMOTE:PATH`, and the options that go with it.

use std::fmt::Write as _;

use chatkeep_store::{Opening, Result, StoreError};

/// A remote of rclone's configuration, and a folder in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Name of the section in rclone.conf.
    pub(crate) name: String,
    /// The folder, as rclone wants it; empty for the root.
    pub(crate) path: String,
    /// Options for this remote only, over those of the configuration.
    flags: Vec<(String, String)>,
}

impl Remote {
    /// Reads the URL and the option `flags`.
    pub(crate) fn of(opening: &Opening) -> Result<Self> {
        let (name, path) = parts_of(&opening.url)?;
        let flags = flags_of(opening.option("flags").unwrap_or_default())?;
        Ok(Self { name: name.to_owned(), path: path.trim_end_matches('/').to_owned(), flags })
    }

    /// As rclone reads it, a "connection string": `NAME,key="value":PATH`.
    pub(crate) fn spec(&self) -> String {
        let mut spec = self.name.clone();
        for (key, value) in &self.flags {
            // a quote in a quoted value is doubled
            let _ = write!(spec, ",{key}=\"{}\"", value.replace('"', "\"\""));
        }
        format!("{spec}:{}", self.path)
    }
}

fn parts_of(url: &str) -> Result<(&str, &str)> {
    let after_scheme = url
        .get(.."rclone:".len())
        .filter(|scheme| scheme.eq_ignore_ascii_case("rclone:"))
        .map(|scheme| &url[scheme.len()..])
        .ok_or_else(|| invalid(url, "it does not start with `rclone:`"))?;
    let (name, path) = match after_scheme.strip_prefix("//") {
        Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
        None => after_scheme.split_once(':').ok_or_else(|| invalid(url, "it is not `rclone:REMOTE:PATH`"))?,
    };
    // what rclone itself would take for options, another folder of this machine, or an option of a command
    let plain = |c: char| c.is_alphanumeric() || "_.+@ -".contains(c);
    if name.is_empty() || name.starts_with(['-', ' ']) || name.ends_with(' ') || !name.chars().all(plain) {
        return Err(invalid(
            url,
            "REMOTE is the name of a remote that `rclone config` made, without options",
        ));
    }
    if path.chars().any(char::is_control) {
        return Err(invalid(url, "it has a control character"));
    }
    // in the address of an object, rclone finds the end of the remote by this character
    if path.contains(']') {
        return Err(invalid(url, "rclone cannot serve a folder with `]` in its name"));
    }
    if path.split('/').any(|segment| segment == "..") {
        return Err(invalid(url, "it has `..` in it"));
    }
    Ok((name, path))
}

/// `key=value,key=value`. A value with a comma is not possible, and none of the options that matter here has one.
fn flags_of(text: &str) -> Result<Vec<(String, String)>> {
    let refuse = |flag: &str, reason: &str| {
        Err(StoreError::Invalid {
            reason: format!("`{}` in the option `flags`: {reason}", flag.escape_debug()),
        })
    };
    let mut flags = Vec::new();
    for flag in text.split(',').map(str::trim).filter(|flag| !flag.is_empty()) {
        let Some((key, value)) = flag.split_once('=') else { return refuse(flag, "it is not `name=value`") };
        // also keeps out `global.` and `override.`, with which one could make rclone pretend only
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            return refuse(key, "an option of a remote has a name of a-z, 0-9 and _");
        }
        if value.contains(']') || value.chars().any(char::is_control) {
            return refuse(key, "its value has a character that rclone cannot take here");
        }
        flags.push((key.to_owned(), value.to_owned()));
    }
    Ok(flags)
}

fn invalid(url: &str, reason: &str) -> StoreError {
    StoreError::Invalid { reason: format!("`{}` is no URL of an rclone store: {reason}", url.escape_debug()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn remote(url: &str, flags: &str) -> Result<Remote> {
        let mut opening = Opening::of_url(url);
        opening.options.insert("flags".to_owned(), flags.to_owned());
        Remote::of(&opening)
    }

    #[track_caller]
    fn check(url: &str, flags: &str, spec: &str) {
        assert_eq!(remote(url, flags).unwrap().spec(), spec, "{url}");
    }

    #[track_caller]
    fn refuse(url: &str, flags: &str, reason: &str) {
        let error = remote(url, flags).unwrap_err();
        assert!(matches!(error, StoreError::Invalid { .. }) && error.to_string().contains(reason), "{error}");
    }

    #[test]
    fn both_ways_of_writing_name_the_same_folder() {
        check("rclone:drive:backups/laptop", "", "drive:backups/laptop");
        check("rclone://drive/backups/laptop", "", "drive:backups/laptop");
        check("rclone:drive:", "", "drive:");
        check("rclone://drive", "", "drive:");
        check("rclone:nas:/srv/backups/", "", "nas:/srv/backups");
        check("rclone:My Drive:a b", "", "My Drive:a b");
    }

    #[test]
    fn flags_belong_to_this_remote_only() {
        check(
            "rclone:d:x",
            "chunk_size=16M, root_folder_id=1a:\"b",
            "d,chunk_size=\"16M\",root_folder_id=\"1a:\"\"b\":x",
        );
    }

    #[test]
    fn a_flag_that_would_change_rclone_itself_is_refused() {
        refuse("rclone:d:x", "global.dry_run=true", "a-z");
        refuse("rclone:d:x", "override.dry_run=true", "a-z");
        refuse("rclone:d:x", "--dry-run=1", "a-z");
        refuse("rclone:d:x", "fast", "name=value");
    }

    #[test]
    fn what_names_no_remote_of_the_configuration_is_refused() {
        refuse("s3://x", "", "does not start");
        refuse("rclone:/srv/backups", "", "REMOTE:PATH");
        refuse("rclone:", "", "REMOTE:PATH");
        for url in
            ["rclone::local:/srv", "rclone:d,token=1:x", "rclone:-v:x", "rclone:///srv", "rclone:a/b:x"]
        {
            refuse(url, "", "name of a remote");
        }
        refuse("rclone:d:a]b", "", "`]`");
        refuse("rclone:d:a/../b", "", "`..`");
        refuse("rclone:d:a\u{1b}b", "", "control");
    }
}
