//! What is known of the files of attachments of one archive: what they were when they were read, and where what is in
//! them lies. A cache in sled.
//!
//! It stands at one entry of the log, and says of each file which entry changed it last, so that the record of any later
//! entry can be made from it. It never runs ahead of the log; where it fell behind, or was lost, it is brought up to date
//! from the records of the log ([`rebuild`]).
//!
//! ```text
//! tree "files-<archive>"
//!   a                            the entry it stands at
//!   d ‖ folder                   totals of a folder
//!   f ‖ length of folder ‖ folder ‖ path      a file, or when it went
//!   c ‖ id of a chunk            key of a file that has it
//! ```
//!
//! A chunk is known if the file that its key names has it *now*: what no file of the newest entry has may be deleted
//! from the store at any time, and is stored again.

mod rebuild;

use std::collections::BTreeSet;

use chatkeep_attachments::{Found, RelPath};
use chatkeep_format::{ArchiveId, ChunkRef, FileOp, FileRecord, FileSet};
use serde::{Deserialize, Serialize};
use sled::{Batch, IVec};

pub use rebuild::bring_up_to_date;

/// Which entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its number; 0 before the first.
    pub seq: u64,
    /// Its digest.
    pub digest: [u8; 32],
}

/// A folder, as the entry has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// The entry that lists all its files; what goes further back than this lists them all again.
    pub since: u64,
    /// The newest entry that changed something.
    pub changed: u64,
    /// Files that a restore gives.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// The file system it was on.
    pub device: u64,
}

/// A file that an entry has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownFile {
    /// The entry that changed it last.
    pub seq: u64,
    /// What the file system said when it was read. Without a time of change it was not read by this device: it has to be
    /// read again some time.
    pub found: Found,
    /// What the entry says.
    pub record: FileRecord,
}

/// What became of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// A file.
    File(KnownFile),
    /// It went with this entry.
    Gone(u64),
}

/// The cache of one archive. Cheap to clone; one thread writes.
#[derive(Debug, Clone)]
pub struct KnownFiles {
    tree: sled::Tree,
}

/// Changes that become true together.
#[derive(Default)]
pub struct Changes {
    batch: Batch,
}

const STANDING: &[u8] = b"a";

impl KnownFiles {
    /// Opens it in the cache.
    pub fn open(db: &sled::Db, archive: &ArchiveId) -> anyhow::Result<Self> {
        Ok(Self { tree: db.open_tree(format!("files-{archive}"))? })
    }

    /// The entry it stands at; nothing when nothing is known.
    pub fn place(&self) -> Option<Place> {
        let value = self.tree.get(STANDING).ok()??;
        serde_json::from_slice(&value).ok()
    }

    /// The totals of a folder; nothing for one that no entry has.
    pub fn totals(&self, folder: &str) -> Option<Totals> {
        let value = self.tree.get(folder_key(folder)).ok()??;
        serde_json::from_slice(&value).ok()
    }

    /// Folders that are known.
    pub fn folders(&self) -> Vec<String> {
        let keys = self.tree.scan_prefix(b"d").keys().flatten();
        keys.filter_map(|key| String::from_utf8(key[1..].to_vec()).ok()).collect()
    }

    /// One path.
    pub fn get(&self, folder: &str, path: &[u8]) -> Option<Known> {
        self.read(&file_key(folder, path))
    }

    fn read(&self, key: &[u8]) -> Option<Known> {
        decode(&self.tree.get(key).ok()??)
    }

    /// Paths of a folder, ascending: those behind `after`, and up to `until`, if they are given.
    pub fn range(
        &self,
        folder: &str,
        after: Option<&[u8]>,
        until: Option<&[u8]>,
    ) -> impl Iterator<Item = (Vec<u8>, Known)> + use<> {
        use std::ops::Bound;
        let prefix = file_key(folder, b"");
        let start =
            after.map_or(Bound::Included(prefix.clone()), |after| Bound::Excluded(file_key(folder, after)));
        // No path has a byte of 255 times this long, so nothing of the folder is behind it.
        let last = [&prefix[..], &[0xff; RelPath::LEN_MAX + 1]].concat();
        let end = Bound::Included(until.map_or(last, |until| file_key(folder, until)));
        let len = prefix.len();
        self.tree
            .range::<Vec<u8>, _>((start, end))
            .flatten()
            .filter_map(move |(key, value)| Some((key[len..].to_vec(), decode(&value)?)))
    }

    /// Where a chunk lies, if a file of the newest entry has it.
    pub fn chunk(&self, id: &[u8; 16]) -> Option<ChunkRef> {
        let holder = self.tree.get(chunk_key(id)).ok()??;
        let Known::File(file) = self.read(&holder)? else { return None };
        file.record.chunks.into_iter().find(|chunk| chunk.id == *id)
    }

    /// Makes changes, all or none. Durable only after [`KnownFiles::flush`].
    pub fn apply(&self, changes: Changes) -> anyhow::Result<()> {
        Ok(self.tree.apply_batch(changes.batch)?)
    }

    /// Waits until all is on the disk.
    pub fn flush(&self) -> anyhow::Result<()> {
        self.tree.flush()?;
        Ok(())
    }

    /// Forgets everything: the next record lists all files, and all are stored again.
    pub fn clear(&self) -> anyhow::Result<()> {
        // First, so that what is cleared half way is not believed.
        self.tree.remove(STANDING)?;
        self.tree.clear()?;
        self.flush()
    }

    /// Forgets a folder.
    pub fn forget_folder(&self, folder: &str) -> anyhow::Result<()> {
        let mut changes = Changes::default();
        for key in self.tree.scan_prefix(file_key(folder, b"")).keys() {
            changes.batch.remove(key?);
        }
        changes.batch.remove(folder_key(folder));
        self.apply(changes)
    }

    /// Forgets the files that have something in these packs. Returns how many there were.
    pub fn forget_packs(&self, packs: &BTreeSet<[u8; 16]>) -> anyhow::Result<u64> {
        let mut forgotten = 0;
        let mut changes = Changes::default();
        for folder in self.folders() {
            let Some(mut totals) = self.totals(&folder) else { continue };
            for (path, known) in self.range(&folder, None, None) {
                if let Known::File(file) = known
                    && file.record.chunks.iter().any(|chunk| packs.contains(&chunk.pack))
                {
                    changes.remove(&folder, &path);
                    totals.files -= 1;
                    totals.bytes -= file.record.len;
                    forgotten += 1;
                }
            }
            changes.totals(&folder, &totals);
        }
        self.apply(changes)?;
        self.flush()?;
        Ok(forgotten)
    }

    /// Takes a file that is gone out of what chunks are known by.
    pub fn forget_chunks(&self, changes: &mut Changes, folder: &str, path: &[u8], record: &FileRecord) {
        let key = file_key(folder, path);
        for chunk in &record.chunks {
            let holder = self.tree.get(chunk_key(&chunk.id)).ok().flatten();
            if holder.is_some_and(|holder: IVec| holder == key) {
                changes.batch.remove(chunk_key(&chunk.id));
            }
        }
    }
}

impl Changes {
    /// It stands at this entry now.
    pub fn stands_at(&mut self, place: Place) {
        self.batch.insert(STANDING, serde_json::to_vec(&place).expect("numbers can be written"));
    }

    /// Totals of a folder.
    pub fn totals(&mut self, folder: &str, totals: &Totals) {
        self.batch.insert(folder_key(folder), serde_json::to_vec(totals).expect("numbers can be written"));
    }

    /// What became of a path.
    pub fn put(&mut self, folder: &str, path: &[u8], known: &Known) {
        let key = file_key(folder, path);
        if let Known::File(file) = known {
            for chunk in &file.record.chunks {
                self.batch.insert(chunk_key(&chunk.id), key.clone());
            }
        }
        self.batch.insert(key, encode(path, known));
    }

    /// A path that nobody has to be told about.
    pub fn remove(&mut self, folder: &str, path: &[u8]) {
        self.batch.remove(file_key(folder, path));
    }
}

fn folder_key(folder: &str) -> Vec<u8> {
    [b"d", folder.as_bytes()].concat()
}

fn file_key(folder: &str, path: &[u8]) -> Vec<u8> {
    // A name of a folder has at most 255 bytes.
    [b"f", &[folder.len() as u8], folder.as_bytes(), path].concat()
}

fn chunk_key(id: &[u8; 16]) -> Vec<u8> {
    [b"c", &id[..]].concat()
}

const GONE: u8 = 0;
const FILE: u8 = 1;

/// `operation ‖ seq`, of a file also `time of change ‖ inode ‖ mode ‖ a file set of this file`.
fn encode(path: &[u8], known: &Known) -> Vec<u8> {
    match known {
        Known::Gone(seq) => [&[GONE][..], &seq.to_le_bytes()].concat(),
        Known::File(file) => {
            let set = FileSet::new(vec![(path.to_vec(), FileOp::File(file.record.clone()))])
                .expect("a file of an entry keeps the rules");
            [
                &[FILE][..],
                &file.seq.to_le_bytes(),
                &file.found.ctime_ns.to_le_bytes(),
                &file.found.inode.to_le_bytes(),
                &file.found.mode.to_le_bytes(),
                &set.encode(),
            ]
            .concat()
        }
    }
}

fn decode(value: &[u8]) -> Option<Known> {
    let (operation, rest) = value.split_first()?;
    let (seq, rest) = rest.split_first_chunk()?;
    let seq = u64::from_le_bytes(*seq);
    if *operation == GONE {
        return Some(Known::Gone(seq));
    }
    let (ctime, rest) = rest.split_first_chunk()?;
    let (inode, rest) = rest.split_first_chunk()?;
    let (mode, rest) = rest.split_first_chunk()?;
    let set = FileSet::decode(rest).ok()?;
    let (path, FileOp::File(record)) = set.iter().next()? else { return None };
    let found = Found {
        path: RelPath::parse(path).ok()?,
        len: record.len,
        mtime_ns: record.mtime_ns,
        ctime_ns: i64::from_le_bytes(*ctime),
        inode: u64::from_le_bytes(*inode),
        mode: u32::from_le_bytes(*mode),
    };
    Some(Known::File(KnownFile { seq, found, record: record.clone() }))
}
