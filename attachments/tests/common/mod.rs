//! A folder with files in it, and bytes to fill them with.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chatkeep_attachments::{ChunkId, Folder, Found, Read, ReadError, RelPath, Walked};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tempfile::TempDir;

pub(crate) const KEY: [u8; 32] = [7; 32];

pub(crate) struct Tree {
    folder: TempDir,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn with(files: &[&str]) -> Self {
        let tree = Self::new();
        for name in files {
            tree.write(name, name.as_bytes());
        }
        tree
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn at(&self, path: impl AsRef<[u8]>) -> PathBuf {
        self.root().join(OsStr::from_bytes(path.as_ref()))
    }

    pub(crate) fn write(&self, path: impl AsRef<[u8]>, content: &[u8]) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn folder(&self) -> Folder {
        Folder::open(self.root()).unwrap()
    }

    pub(crate) fn walk(&self) -> (Vec<Found>, Walked) {
        walk(&self.folder())
    }

    pub(crate) fn find(&self, path: &str) -> Found {
        self.walk().0.into_iter().find(|found| found.path == rel(path)).unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.walk().0.iter().map(|found| found.path.as_path().to_str().unwrap().to_owned()).collect()
    }
}

pub(crate) fn walk(folder: &Folder) -> (Vec<Found>, Walked) {
    let mut found = Vec::new();
    let walked = folder.walk(&mut |it| found.push(it)).unwrap();
    (found, walked)
}

pub(crate) fn rel(path: impl AsRef<[u8]>) -> RelPath {
    RelPath::parse(path.as_ref()).unwrap()
}

/// Lets the clock of files tick: what changed before this is old enough to be read.
pub(crate) fn settle() {
    std::thread::sleep(Duration::from_millis(50));
}

/// All of a file, cut.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) content: Vec<u8>,
    pub(crate) chunks: Vec<(ChunkId, u64)>,
}

pub(crate) fn read(folder: &Folder, found: &Found) -> Result<Cut, ReadError> {
    let mut cut = Cut::default();
    let read = folder.read(found, &KEY, &mut |chunk| {
        cut.content.extend_from_slice(chunk.bytes);
        cut.chunks.push((chunk.id, chunk.bytes.len() as u64));
        Ok(())
    })?;
    assert_eq!(read, Read { len: cut.content.len() as u64, chunks: cut.chunks.len() as u64 });
    Ok(cut)
}

/// Bytes that look random and are always the same.
pub(crate) fn noise(name: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Does something without root's right to read everything.
pub(crate) fn without_privileges<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // of this thread only
            let mut sets = capabilities(None).unwrap();
            sets.effective = CapabilitySet::empty();
            set_capabilities(None, sets).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}
