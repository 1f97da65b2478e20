//! The archives in tests/vectors, restored by the service's own code: what must restore does, to the byte, and what must
//! not fails with the error that docs/format.md names.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use chatkeep_crypto::BackupKey;
use chatkeep_format::{ArchiveId, ObjectName};
use chatkeep_sqlite::Existing;
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{PutCondition, Store, StoreKey};
use chatkeepd::archive::Archive;
use chatkeepd::damage::DamageKind;
use chatkeepd::fault::Fault;
use chatkeepd::restore::{Destination, Source};
use serde_json::Value;

struct Vectors {
    archive: Archive,
    roots: Arc<chatkeep_crypto::DataRoots>,
    restores: Vec<Value>,
}

/// A file that was restored.
#[derive(Debug, PartialEq, Eq)]
struct Restored {
    mode: u64,
    mtime_ns: i64,
    hash: String,
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

impl Vectors {
    async fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors").join(name);
        let about = std::fs::read(folder.join("expected.json")).unwrap();
        let about: Value = serde_json::from_slice(&about).unwrap();
        let id: ArchiveId = about["archive"].as_str().unwrap().parse().unwrap();
        let store = MemoryStore::new();
        let mut paths = Vec::new();
        files_below(&folder.join(id.to_string()), &mut paths);
        let mut newest = 0;
        for path in paths {
            let key = path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
            if let Some((_, ObjectName::Keyring(counter))) = ObjectName::parse(&key) {
                newest = newest.max(counter);
            }
            let (key, body) = (StoreKey::try_from(key).unwrap(), std::fs::read(&path).unwrap());
            store.put(&key, Bytes::from(body), PutCondition::CreateIfAbsent).await.unwrap();
        }
        let archive = Archive { store: Arc::new(store), id };
        let key = BackupKey::parse_digits(about["digits"].as_str().unwrap()).unwrap();
        let (keyring, _) = archive.keyring(newest).await.unwrap();
        let roots = Arc::new(archive.open_keyring(&keyring, &key).unwrap());
        Self { archive, roots, restores: about["restores"].as_array().unwrap().clone() }
    }

    /// The files of a point, by their path below the folder.
    async fn restore(&self, seq: u64) -> Result<BTreeMap<Vec<u8>, Restored>, Fault> {
        let target = tempfile::tempdir().unwrap();
        let source = Source {
            archive: self.archive.clone(),
            roots: self.roots.clone(),
            cancelled: Arc::new(AtomicBool::new(false)),
            progress: Box::new(|_, _| {}),
        };
        let destination = Destination {
            folder: OwnedFd::from(std::fs::File::open(target.path()).unwrap()),
            file_name: None,
            in_place: false,
            existing: Existing::Refuse,
            label: String::new(),
        };
        let runtime = tokio::runtime::Handle::current();
        let restore = move || source.restore(seq, destination, &runtime);
        let restored = tokio::task::spawn_blocking(restore).await.unwrap();
        let mut files = Vec::new();
        files_below(target.path(), &mut files);
        restored.inspect_err(|_| {
            let left: Vec<_> =
                files.iter().filter(|file| file.to_string_lossy().contains(".chatkeep")).collect();
            assert!(left.is_empty(), "{left:?}");
        })?;
        let relative =
            |path: &Path| path.strip_prefix(target.path()).unwrap().as_os_str().as_bytes().to_vec();
        let restored = |path: &Path| {
            let metadata = path.metadata().unwrap();
            let mtime_ns = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
            let hash = hex::encode(blake3::hash(&std::fs::read(path).unwrap()).as_bytes());
            Restored { mode: u64::from(metadata.mode() & 0o777), mtime_ns, hash }
        };
        Ok(files.iter().map(|path| (relative(path), restored(path))).collect())
    }
}

/// The name that docs/format.md gives this kind of error.
fn error_name(fault: &Fault) -> &'static str {
    match fault.damage() {
        [damage] => match damage.kind {
            DamageKind::Missing => "Missing",
            DamageKind::Chain => "Damaged chain",
            DamageKind::Content if damage.what.contains("folder") => "Damaged folder",
            DamageKind::Content => "Damaged database",
            DamageKind::Malformed => "Malformed",
            DamageKind::Swapped => "NotThisObject",
            DamageKind::Damaged | DamageKind::Newer => "no error of a restore",
        },
        _ => "not about an object",
    }
}

/// The files that a case says are in its folder.
fn files_of(case: &Value, folder: &str) -> BTreeMap<Vec<u8>, Restored> {
    let file = |file: &Value| {
        let path = hex::decode(file[0].as_str().unwrap()).unwrap();
        let restored = Restored {
            mode: file[1].as_u64().unwrap(),
            mtime_ns: file[2].as_i64().unwrap(),
            hash: file[3].as_str().unwrap().to_owned(),
        };
        ([folder.as_bytes(), b"/", &path].concat(), restored)
    };
    case["files"].as_array().unwrap().iter().map(file).collect()
}

/// Checks every case; returns how many there were.
async fn check(name: &str) -> usize {
    let vectors = Vectors::read(name).await;
    for case in &vectors.restores {
        let restored = vectors.restore(case["seq"].as_u64().unwrap()).await;
        let what = format!("{name} {case}");
        match (case["error"].as_str(), restored) {
            (Some(expected), Err(fault)) => assert_eq!(error_name(&fault), expected, "{what}: {fault:?}"),
            (None, Ok(mut files)) => {
                if let Some(folder) = case["folder"].as_str() {
                    files.retain(|path, _| path.starts_with(format!("{folder}/").as_bytes()));
                    assert_eq!(files, files_of(case, folder), "{what}");
                    continue;
                }
                let database = files.remove(case["database"].as_str().unwrap().as_bytes());
                let hash = if case["gone"] == true { None } else { case["blake3"].as_str() };
                assert_eq!(database.as_ref().map(|file| file.hash.as_str()), hash, "{what}");
            }
            (_, other) => panic!("{what}: {other:?}"),
        }
    }
    vectors.restores.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_restore_does_to_the_byte() {
    assert_eq!(check("store").await, 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_restore_fails_with_the_error_that_the_format_names() {
    assert_eq!(check("hostile").await, 47);
}
