//! Names of files below a folder, parsed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Where a file is below the folder of attachments: segments separated by `/`, and nothing that leads elsewhere.
///
/// Bytes, not text: a name on Linux is whatever a program wrote, and a backup that drops or alters a name loses a
/// file. Sorted as bytes. Its `Debug` shows the name: it belongs into tests, not into logs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Box<[u8]>);

/// Why bytes are no [`RelPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Nothing, or nothing between two slashes, at the start or at the end.
    #[error("a segment of the path is empty")]
    Empty,
    /// `.` or `..`.
    #[error("a segment of the path is no name")]
    Dots,
    /// A byte that no name on Linux has.
    #[error("the path has a byte of zero")]
    Zero,
    /// More than [`RelPath::LEN_MAX`] bytes.
    #[error("the path is too long")]
    TooLong,
    /// More than [`RelPath::SEGMENTS_MAX`] segments.
    #[error("the path is too deep")]
    TooDeep,
}

impl RelPath {
    /// In bytes; `PATH_MAX` of Linux.
    pub const LEN_MAX: usize = 4096;
    /// Folders and the file. Apps use up to about five; past this, something is wrong (a loop of mounts).
    pub const SEGMENTS_MAX: usize = 64;

    /// Checks a path that came from anywhere.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.len() > Self::LEN_MAX {
            return Err(PathError::TooLong);
        }
        if bytes.contains(&0) {
            return Err(PathError::Zero);
        }
        let mut segments = 0;
        for segment in bytes.split(|&byte| byte == b'/') {
            match segment {
                b"" => return Err(PathError::Empty),
                b"." | b".." => return Err(PathError::Dots),
                _ => segments += 1,
            }
        }
        if segments > Self::SEGMENTS_MAX {
            return Err(PathError::TooDeep);
        }
        Ok(Self(bytes.into()))
    }

    /// The path as it is to be stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For showing it to a person. Not for opening it: use [`Folder`](crate::Folder).
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The path of the folder (empty: the folder of attachments itself), and the name in it.
    pub(crate) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[], &self.0),
        }
    }

    /// Whether this is `folder` or lies below it.
    pub(crate) fn is_within(&self, folder: &RelPath) -> bool {
        self.0.strip_prefix(&*folder.0).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    }
}

impl std::fmt::Debug for RelPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Result<(), PathError>) {
        assert_eq!(RelPath::parse(bytes).map(|_| ()), expected, "{}", bytes.escape_ascii());
    }

    #[test]
    fn names_of_all_kinds_are_kept() {
        for name in
            [&b"a"[..], b"a/b/c.jpg", b"...", b"..a/b..", b".hidden", b"\xff\xfe\n/ ", "ä/ö".as_bytes()]
        {
            check(name, Ok(()));
            assert_eq!(RelPath::parse(name).unwrap().as_bytes(), name);
        }
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for bytes in [&b""[..], b"/", b"/a", b"a/", b"a//b"] {
            check(bytes, Err(PathError::Empty));
        }
        for bytes in [&b"."[..], b"..", b"a/..", b"../a", b"a/../b", b"a/./b"] {
            check(bytes, Err(PathError::Dots));
        }
        check(b"a\0b", Err(PathError::Zero));
    }

    #[test]
    fn lengths_end_where_they_say() {
        check(&[b'a'; RelPath::LEN_MAX], Ok(()));
        check(&[b'a'; RelPath::LEN_MAX + 1], Err(PathError::TooLong));
        check(["a"; RelPath::SEGMENTS_MAX].join("/").as_bytes(), Ok(()));
        check(["a"; RelPath::SEGMENTS_MAX + 1].join("/").as_bytes(), Err(PathError::TooDeep));
    }

    #[test]
    fn a_folder_holds_itself_and_what_is_below_but_not_its_namesakes() {
        let path = |text: &str| RelPath::parse(text.as_bytes()).unwrap();
        assert!(path("a/b").is_within(&path("a/b")));
        assert!(path("a/b/c").is_within(&path("a")));
        assert!(!path("ab").is_within(&path("a")));
        assert!(!path("a").is_within(&path("a/b")));
    }

    proptest! {
        /// The standard library agrees: exactly the parsed paths are made of normal segments and nothing else.
        #[test]
        fn a_parsed_path_has_only_normal_segments(bytes in prop::collection::vec(
            prop::sample::select(b"a./\0\xff".to_vec()), 0..12,
        )) {
            use std::path::Component;
            let path = Path::new(OsStr::from_bytes(&bytes));
            let normal: Option<Vec<&[u8]>> = path
                .components()
                .map(|it| if let Component::Normal(name) = it { Some(name.as_bytes()) } else { None })
                .collect();
            let sound = normal.is_some_and(|names| !names.is_empty() && names.join(&b'/') == bytes)
                && !bytes.contains(&0);
            prop_assert_eq!(RelPath::parse(&bytes).is_ok(), sound);
        }

        #[test]
        fn a_split_path_joins_again(bytes in "[a-c/]{1,9}") {
            if let Ok(path) = RelPath::parse(bytes.as_bytes()) {
                let (folder, name) = path.split();
                let joined = if folder.is_empty() { name.to_vec() } else { [folder, name].join(&b'/') };
                prop_assert_eq!(joined, path.as_bytes());
            }
        }
    }
}
