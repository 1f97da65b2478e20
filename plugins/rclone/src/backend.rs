//! What differs from service to service, by its name in rclone and by what rclone says of it.

use chatkeep_store::{Capabilities, CreateGuarantee, Result, StoreError, Visibility};
use serde::Deserialize;

/// Services that can be read and listed as soon as a put is acknowledged: file systems, and object stores that say so.
const STRONG: &[&str] = &[
    "local",
    "sftp",
    "ftp",
    "smb",
    "webdav",
    "memory",
    "s3",
    "b2",
    "googlecloudstorage",
    "azureblob",
    "oracleobjectstorage",
    "storj",
    "hdfs",
];

/// Services whose ranges are known to be honoured, by rclone's own tests of them. Elsewhere (a WebDAV server may ignore
/// a range, and rclone would then take the start of the object for the middle of it) the whole object is read and cut here.
const RANGES: &[&str] = &[
    "local",
    "sftp",
    "memory",
    "s3",
    "b2",
    "googlecloudstorage",
    "azureblob",
    "oracleobjectstorage",
    "swift",
    "drive",
    "onedrive",
    "dropbox",
    "box",
];

/// Services with an API that shows a file when all of it is there.
const WHOLE: &[&str] = &["drive", "onedrive", "dropbox", "box", "iclouddrive"];

/// Services where what was deleted lies about for some time. What is not known is taken for one of these.
const FINAL: &[&str] = &[
    "local",
    "sftp",
    "ftp",
    "smb",
    "memory",
    "s3",
    "googlecloudstorage",
    "azureblob",
    "oracleobjectstorage",
    "storj",
    "hdfs",
    "swift",
    // is asked not to use its trash
    "drive",
];

/// Parts of rclone that put something around another remote and pass on what it does.
const WRAPPERS: &[&str] = &["alias", "crypt", "hasher", "chunker", "compress"];

/// What rclone says of a remote (`operations/fsinfo`).
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Features {
    /// It says how full it is.
    pub(crate) about: bool,
    /// There are no folders, only names.
    pub(crate) bucket_based: bool,
    /// It can rename.
    #[serde(rename = "Move")]
    pub(crate) moves: bool,
    /// A file shows while it is being uploaded.
    pub(crate) partial_uploads: bool,
}

/// A section of rclone's configuration, as far as it is needed. The rest of it are secrets, and is not kept.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Section {
    /// Which backend of rclone it is; empty if there is no such section.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// What it is put around.
    pub(crate) remote: String,
}

impl Section {
    /// The remote that this one is put around.
    pub(crate) fn inner(&self) -> Inner<'_> {
        if !WRAPPERS.contains(&self.kind.as_str()) {
            return Inner::None;
        }
        if self.remote.starts_with('/') {
            return Inner::Local;
        }
        let end = self.remote.find([':', ',']).unwrap_or(self.remote.len());
        Inner::Remote(&self.remote[..end])
    }
}

/// See [`Section::inner`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Inner<'a> {
    None,
    Local,
    Remote(&'a str),
}

/// How to treat the service behind a remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backend {
    kind: String,
    /// An object goes up under a name of its own and is renamed when it is whole.
    pub(crate) renames: bool,
    /// Folders have to be made.
    pub(crate) folders: bool,
    /// A range can be asked for.
    pub(crate) ranges: bool,
    about: bool,
}

impl Backend {
    /// Of the innermost backend's name and what rclone says of the remote.
    pub(crate) fn new(kind: &str, features: Features) -> Result<Self> {
        let refuse = |reason: &str| {
            Err(StoreError::Invalid { reason: format!("an rclone remote of the type `{kind}` {reason}") })
        };
        if kind == "union" {
            return refuse(
                "cannot be a store: while a part of it does not answer it lists the others as if that were all",
            );
        }
        // rclone's word for "uploads are atomic" is the lack of `PartialUploads`, which many backends lack by neglect
        let whole = !features.partial_uploads && (features.bucket_based || WHOLE.contains(&kind));
        if features.partial_uploads && !features.moves {
            return refuse("cannot be a store: it shows halves of objects and cannot rename");
        }
        Ok(Self {
            kind: kind.to_owned(),
            renames: !whole && features.moves,
            folders: !features.bucket_based || features.partial_uploads,
            ranges: RANGES.contains(&kind),
            about: features.about,
        })
    }

    /// Whether what was put can be seen at once.
    pub(crate) fn is_strong(&self) -> bool {
        STRONG.contains(&self.kind.as_str())
    }

    pub(crate) fn capabilities(&self, parallel: u16) -> Capabilities {
        let visible = if self.is_strong() { Visibility::Strong } else { Visibility::Eventual };
        Capabilities {
            create: CreateGuarantee::Advisory,
            read_after_write: visible,
            list_after_write: visible,
            range: self.ranges,
            delete_is_final: FINAL.contains(&self.kind.as_str()),
            usage: self.about,
            retain: false,
            object_len_max: None,
            parallel,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// As rclone 1.75.2 answers for these.
    fn features(kind: &str) -> Features {
        let with = |bucket_based, moves, partial_uploads| Features {
            about: true,
            bucket_based,
            moves,
            partial_uploads,
        };
        match kind {
            "local" | "sftp" => with(false, true, true),
            "s3" => with(true, false, false),
            "smb" => with(true, true, true),
            _ => with(false, true, false),
        }
    }

    #[test]
    fn where_half_an_object_could_show_it_is_renamed_when_it_is_whole() {
        for (kind, renames) in
            [("local", true), ("sftp", true), ("webdav", true), ("smb", true), ("opendrive", true)]
        {
            assert_eq!(Backend::new(kind, features(kind)).unwrap().renames, renames, "{kind}");
        }
        for kind in ["s3", "drive", "onedrive", "dropbox", "iclouddrive"] {
            assert!(!Backend::new(kind, features(kind)).unwrap().renames, "{kind}");
        }
    }

    #[test]
    fn what_cannot_keep_the_contract_is_refused() {
        let error = Backend::new("union", features("union")).unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
        Backend::new("new", Features { partial_uploads: true, ..Features::default() }).unwrap_err();
    }

    #[test]
    fn the_unknown_is_trusted_with_nothing() {
        let can = Backend::new("new", features("new")).unwrap().capabilities(2);
        assert_eq!(
            (can.read_after_write, can.list_after_write),
            (Visibility::Eventual, Visibility::Eventual)
        );
        assert!(!can.range && !can.delete_is_final && can.create == CreateGuarantee::Advisory);
    }

    #[test]
    fn a_wrapper_is_what_it_is_put_around() {
        let section = |kind: &str, remote: &str| Section { kind: kind.to_owned(), remote: remote.to_owned() };
        assert_eq!(section("crypt", "drive:x").inner(), Inner::Remote("drive"));
        assert_eq!(section("alias", "d,chunk_size=1M:x").inner(), Inner::Remote("d"));
        assert_eq!(section("alias", "/mnt").inner(), Inner::Local);
        assert_eq!(section("drive", "ignored:").inner(), Inner::None);
    }
}
