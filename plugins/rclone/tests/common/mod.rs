//! A folder with a configuration of rclone, and stores on its remotes.

pub(crate) mod proxy;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chatkeep_store::{Opening, Result, Store, StoreError, StoreKey};
use chatkeep_store_rig::rclone;

/// Where a test has its configuration and its objects.
pub(crate) struct World {
    folder: tempfile::TempDir,
    config: String,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("objects")).unwrap();
        Self { folder, config: String::new() }
    }

    /// With a remote `disk` of the type `local`.
    pub(crate) fn with_disk() -> Self {
        let mut world = Self::new();
        world.remote("disk", &[("type", "local")]);
        world
    }

    /// Adds a remote to the configuration.
    pub(crate) fn remote(&mut self, name: &str, options: &[(&str, &str)]) {
        writeln!(self.config, "[{name}]").unwrap();
        for (key, value) in options {
            writeln!(self.config, "{key} = {value}").unwrap();
        }
        std::fs::write(self.config(), &self.config).unwrap();
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Where servers and the remote `disk` keep objects.
    pub(crate) fn objects(&self) -> PathBuf {
        self.path("objects")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("rclone.conf")
    }

    /// How to open a folder of a remote, with the pinned rclone.
    pub(crate) fn opening(&self, url: &str) -> Opening {
        let mut opening = Opening::of_url(url);
        let mut set = |name: &str, path: PathBuf| {
            opening.options.insert(name.to_owned(), path.to_str().unwrap().to_owned());
        };
        set("program", rclone::program());
        set("config", self.config());
        opening
    }

    /// How to open the remote `disk`.
    pub(crate) fn disk(&self) -> Opening {
        self.opening(&format!("rclone:disk:{}", self.objects().display()))
    }
}

pub(crate) async fn open(opening: &Opening) -> Arc<dyn Store> {
    chatkeep_store_rclone::open(opening).await.unwrap_or_else(|error| panic!("{}", told(&error)))
}

/// Why it cannot be opened.
pub(crate) async fn refused(opening: &Opening) -> StoreError {
    match chatkeep_store_rclone::open(opening).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

pub(crate) fn key(text: &str) -> StoreKey {
    StoreKey::try_from(text).unwrap()
}

/// An error with its causes.
pub(crate) fn told(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        write!(text, ": {error}").unwrap();
        cause = error.source();
    }
    text
}

pub(crate) fn names(listed: Result<Vec<chatkeep_store::ObjectMeta>>) -> Vec<String> {
    listed
        .unwrap_or_else(|e| panic!("{}", told(&e)))
        .into_iter()
        .map(|object| object.key.to_string())
        .collect()
}

/// Every file below a folder, by its path from there.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, top: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, top, found);
            } else {
                found.push(path.strip_prefix(top).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}
