//! The archives in tests/vectors, restored by the service's own code: what must restore does, to the byte, and what must
//! not fails with the error that docs/format.md names.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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

    /// The files of a point, by their path.
    async fn restore(&self, seq: u64) -> Result<BTreeMap<PathBuf, Found>, Fault> {
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
        let relative = |path: &Path| path.strip_prefix(target.path()).unwrap().to_owned();
        Ok(files.iter().map(|path| (relative(path), Found::at(path))).collect())
    }
}

/// A restored file.
#[derive(Debug, PartialEq)]
struct Found {
    hash: String,
    mode: u64,
    mtime_ns: i64,
}

impl Found {
    fn at(path: &Path) -> Self {
        let metadata = std::fs::metadata(path).unwrap();
        let mode = metadata.mode() & 0o777;
        // Nobody but root could read what its owner may not.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let hash = hex::encode(blake3::hash(&std::fs::read(path).unwrap()).as_bytes());
        Self { hash, mode: mode.into(), mtime_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec() }
    }
}

/// The files of a folder, as they are and as they should be.
fn compare_folder(
    folder: &str,
    restored: &BTreeMap<PathBuf, Found>,
    expected: &serde_json::Value,
    what: &str,
) {
    let below = restored.iter().filter_map(|(path, found)| Some((path.strip_prefix(folder).ok()?, found)));
    let found: BTreeMap<_, _> =
        below.map(|(path, found)| (path.as_os_str().as_bytes().to_vec(), found)).collect();
    let expected = expected.as_array().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for file in expected {
        let (path, hash) = (hex::decode(file[0].as_str().unwrap()).unwrap(), file[3].as_str().unwrap());
        let wanted = Found {
            hash: hash.to_owned(),
            mode: file[1].as_u64().unwrap(),
            mtime_ns: file[2].as_i64().unwrap(),
        };
        assert_eq!(found.get(&path), Some(&&wanted), "{what}");
    }
}

/// The name that docs/format.md gives this kind of error.
fn error_name(fault: &Fault) -> &'static str {
    match fault.damage() {
        [damage] => match damage.kind {
            DamageKind::Missing => "Missing",
            DamageKind::Chain => "Damaged chain",
            DamageKind::Content => "Damaged database",
            DamageKind::Malformed => "Malformed",
            DamageKind::Swapped => "NotThisObject",
            DamageKind::Damaged | DamageKind::Newer => "no error of a restore",
        },
        _ => "not about an object",
    }
}

/// Checks every case; returns how many there were about databases and about folders.
async fn check(name: &str) -> (usize, usize) {
    let vectors = Vectors::read(name).await;
    let mut checked = (0, 0);
    for case in &vectors.restores {
        let (database, folder) = (case["database"].as_str(), case["folder"].as_str());
        *if database.is_some() { &mut checked.0 } else { &mut checked.1 } += 1;
        let restored = vectors.restore(case["seq"].as_u64().unwrap()).await;
        let what = format!("{name} {case}");
        match (case["error"].as_str(), restored) {
            (Some(expected), Err(fault)) => {
                // Of what does not fit together the format tells databases and folders apart.
                let name = match error_name(&fault) {
                    "Damaged database" if folder.is_some() => "Damaged folder",
                    name => name,
                };
                assert_eq!(name, expected, "{what}: {fault:?}");
            }
            (None, Ok(files)) => match (database, folder) {
                (Some(database), _) if case["gone"] == true => {
                    assert_eq!(files.get(Path::new(database)), None, "{what}");
                }
                (Some(database), _) => {
                    assert_eq!(files[Path::new(database)].hash, case["blake3"].as_str().unwrap(), "{what}");
                }
                (None, folder) => compare_folder(folder.unwrap(), &files, &case["files"], &what),
            },
            (_, other) => panic!("{what}: {other:?}"),
        }
    }
    checked
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_restore_does_to_the_byte() {
    assert_eq!(check("store").await, (16, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_restore_fails_with_the_error_that_the_format_names() {
    assert_eq!(check("hostile").await, (32, 15));
}
