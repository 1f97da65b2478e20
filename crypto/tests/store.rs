//! The archives in tests/vectors: every object opens and decodes. The second decoder restores them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use chatkeep_crypto::{BackupKey, DataRoots, OpenError, open, open_keyring, read_keyring};
use chatkeep_format::{ArchiveId, Entry, FileSet, ObjectName, PageSet, entry_digest};
use serde_json::Value;

struct Store {
    objects: BTreeMap<String, Vec<u8>>,
    archive: ArchiveId,
    roots: DataRoots,
    about: Value,
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

impl Store {
    fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors").join(name);
        let about: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let archive: ArchiveId = about["archive"].as_str().unwrap().parse().unwrap();
        let mut paths = Vec::new();
        files_below(&folder.join(archive.to_string()), &mut paths);
        let key_of = |path: &Path| path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
        let objects: BTreeMap<_, _> =
            paths.iter().map(|path| (key_of(path), fs::read(path).unwrap())).collect();
        let key = BackupKey::parse_digits(about["digits"].as_str().unwrap()).unwrap();
        let keyrings = objects.keys().filter_map(|key| match ObjectName::parse(key).unwrap().1 {
            ObjectName::Keyring(counter) => Some(counter),
            _ => None,
        });
        let newest = keyrings.max().unwrap();
        let keyring = &objects[&ObjectName::Keyring(newest).store_key(&archive)];
        let roots = open_keyring(&read_keyring(keyring, &archive, newest).unwrap(), &key).unwrap();
        Self { objects, archive, roots, about }
    }

    fn open(&self, name: ObjectName) -> Result<Vec<u8>, OpenError> {
        open(&self.archive, name, &self.roots, &self.objects[&name.store_key(&self.archive)])
    }

    fn entries(&self) -> BTreeMap<u64, Entry> {
        let names = self.objects.keys().map(|key| ObjectName::parse(key).unwrap().1);
        let entry = |name| match name {
            ObjectName::Entry(seq) => Some((seq, Entry::decode(&self.open(name).unwrap()).unwrap())),
            _ => None,
        };
        names.filter_map(entry).collect()
    }

    fn digest(&self, seq: u64) -> [u8; 32] {
        entry_digest(&self.objects[&ObjectName::Entry(seq).store_key(&self.archive)])
    }
}

#[test]
fn every_point_of_the_small_archive_has_its_parents_and_packs() {
    let store = Store::read("store");
    let entries = store.entries();
    let mut named = BTreeSet::new();
    for (seq, entry) in &entries {
        assert_eq!((entry.archive, entry.seq), (store.archive, *seq));
        match entries.get(&entry.parent_seq) {
            Some(parent) => {
                assert_eq!(entry.parent_digest, store.digest(parent.seq), "{seq}");
                assert_eq!(entry.base_seq, parent.base_seq, "{seq}");
            }
            None => assert_eq!((entry.parent_seq, entry.base_seq), (0, *seq)),
        }
        named.extend(entry.pack_names());
        for database in &entry.databases {
            for pack in &database.packs {
                let pages = PageSet::decode(store.open(ObjectName::Pack(pack.name)).unwrap()).unwrap();
                assert_eq!((pages.page_size(), pages.len()), (database.page_size, pack.items as usize));
            }
        }
        for pack in entry.folders.iter().flat_map(|folder| &folder.packs) {
            let files = FileSet::decode(&store.open(ObjectName::Pack(pack.name)).unwrap()).unwrap();
            assert_eq!(files.len(), pack.items as usize);
            named.extend(files.packs());
        }
    }
    let packs = store.objects.keys().filter(|key| key.contains("/pack/"));
    assert_eq!(packs.map(|key| ObjectName::parse(key).unwrap().1).collect::<Vec<_>>(), {
        named.into_iter().map(ObjectName::Pack).collect::<Vec<_>>()
    });
    // the story that the second decoder restores: entries skipped, and entries that are gone
    assert!(!entries.contains_key(&5) && !entries.contains_key(&6));
    assert_eq!([2, 3, 4, 7].map(|seq| entries[&seq].parent_seq), [1, 2, 1, 4]);
    let restores = store.about["restores"].as_array().unwrap();
    assert!(restores.iter().all(|restore| restore["error"].is_null()));
}

#[test]
fn every_entry_of_the_hostile_archive_can_be_read() {
    let store = Store::read("hostile");
    let entries = store.entries();
    let restores = store.about["restores"].as_array().unwrap();
    let mut failing = 0;
    for restore in restores {
        let entry = &entries[&restore["seq"].as_u64().unwrap()];
        let is_its_own = (entry.archive, entry.seq) == (store.archive, restore["seq"].as_u64().unwrap());
        assert_eq!(is_its_own, restore["error"] != "NotThisObject", "{}", restore["name"]);
        failing += usize::from(!restore["error"].is_null());
    }
    assert!(failing > 30, "{failing}");
}
