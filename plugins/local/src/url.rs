//! `file:` URLs (RFC 8089), as people write them into a configuration.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use chatkeep_store::opening::undo_percent_encoding;
use chatkeep_store::{Result, StoreError};

/// The path of `file:///…` or `file://localhost/…`.
pub(crate) fn path_of(url: &str) -> Result<PathBuf> {
    let scheme_len = "file:".len();
    let rest = url
        .get(..scheme_len)
        .filter(|scheme| scheme.eq_ignore_ascii_case("file:"))
        .map(|_| &url[scheme_len..]);
    let rest = rest.ok_or_else(|| invalid(url, "it does not start with `file:`"))?;
    let rest = rest.strip_prefix("//").ok_or_else(|| invalid(url, RELATIVE))?;
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(invalid(url, RELATIVE));
    }
    if path.contains(['?', '#']) {
        return Err(invalid(url, "`?` and `#` in a path are written %3F and %23"));
    }
    let path =
        undo_percent_encoding(path).ok_or_else(|| invalid(url, "it has a % without two hex digits"))?;
    if path.iter().any(u8::is_ascii_control) {
        return Err(invalid(url, "it has a control character"));
    }
    if path.iter().all(|byte| *byte == b'/') {
        return Err(invalid(url, "it names no folder"));
    }
    Ok(PathBuf::from(OsString::from_vec(path)))
}

const RELATIVE: &str = "it has no absolute path, as `file:///home/me/backups` has";

fn invalid(url: &str, reason: &str) -> StoreError {
    StoreError::Invalid { reason: format!("`{}` is no URL of a folder: {reason}", url.escape_debug()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[track_caller]
    fn check(url: &str, path: &[u8]) {
        assert_eq!(path_of(url).unwrap().as_os_str().as_bytes(), path, "{url}");
    }

    #[track_caller]
    fn refuse(url: &str, reason: &str) {
        let error = path_of(url).unwrap_err();
        assert!(matches!(error, StoreError::Invalid { .. }));
        assert!(error.to_string().contains(reason), "{url}: {error}");
    }

    #[test]
    fn a_url_names_an_absolute_path() {
        check("file:///var/backups", b"/var/backups");
        check("file://localhost/var/backups", b"/var/backups");
        check("FILE:///x", b"/x");
        check("file:///localhost/x", b"/localhost/x");
    }

    #[test]
    fn percent_encoding_is_undone_once() {
        check("file:///a%20b/c%2525", b"/a b/c%25");
        check("file:///%C3%A4/%ff", b"/\xc3\xa4/\xff");
        check("file:///with space/ä", "/with space/ä".as_bytes());
        check("file:///a%3Fb%23c+d", b"/a?b#c+d");
    }

    #[test]
    fn a_relative_path_is_refused() {
        for url in
            ["file:backups", "file:./backups", "file://backups", "file://~/backups", "file:", "file://"]
        {
            refuse(url, "no absolute path");
        }
    }

    #[test]
    fn another_machine_is_refused() {
        refuse("file://nas/backups", "no absolute path");
        refuse("file://localhost.example/backups", "no absolute path");
    }

    #[test]
    fn what_cannot_be_a_folder_is_refused() {
        refuse("s3://bucket", "does not start with");
        refuse("", "does not start with");
        refuse("fileä", "does not start with");
        refuse("file:///", "no folder");
        refuse("file:///a?b", "%3F");
        refuse("file:///a#b", "%23");
        for url in ["file:///a%", "file:///a%2", "file:///a%zz", "file:///%+1"] {
            refuse(url, "two hex digits");
        }
        refuse("file:///a%00b", "control character");
        refuse("file:///a\u{1b}b", "control character");
    }
}
