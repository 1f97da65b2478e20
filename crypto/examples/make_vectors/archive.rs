//! Writes an archive as a store on disk, object by object.

use std::fs;
use std::path::{Path, PathBuf};

use chatkeep_crypto::{BackupKey, DataRoots, pack_name, seal, write_keyring};
use chatkeep_format::{
    ChunkRef, Entry, FileOp, FileRecord, FileSet, Keyslot, ObjectName, PackRef, PageSet, checksum,
    entry_digest,
};

use crate::support::KnownRng;
use crate::{ARCHIVE, PAGE};

/// Key of the digests in every entry.
pub(crate) const DIGEST_KEY: [u8; 32] = [9; 32];

pub(crate) struct ArchiveWriter {
    folder: PathBuf,
    pub(crate) rng: KnownRng,
    pub(crate) roots: DataRoots,
}

impl ArchiveWriter {
    /// Begins in an empty folder.
    pub(crate) fn new(folder: &Path, seed: &str) -> Self {
        let _ = fs::remove_dir_all(folder);
        let mut rng = KnownRng::new(seed);
        Self { folder: folder.to_owned(), roots: DataRoots::new(&mut rng), rng }
    }

    fn put(&self, name: ObjectName, bytes: &[u8]) {
        let path = self.folder.join(name.store_key(&ARCHIVE));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// The next keyring, under a new key.
    pub(crate) fn keyring(&mut self, counter: u64) -> BackupKey {
        let key = BackupKey::generate(&mut self.rng);
        let slots = vec![Keyslot::Raw];
        let bytes = write_keyring(&ARCHIVE, counter, &key, &self.roots, slots, &mut self.rng);
        self.put(ObjectName::Keyring(counter), &bytes);
        key
    }

    fn seal(&mut self, name: ObjectName, plaintext: &[u8]) -> Vec<u8> {
        let sealed = seal(&ARCHIVE, name, &self.roots, plaintext, 3, &mut self.rng);
        self.put(name, &sealed);
        sealed
    }

    fn pack(&mut self, plaintext: &[u8], items: usize) -> PackRef {
        let name = pack_name(&self.roots, plaintext);
        let sealed_len = self.seal(ObjectName::Pack(name), plaintext).len() as u64;
        PackRef { name, sealed_len, items: items as u32 }
    }

    pub(crate) fn pages(&mut self, pages: &PageSet) -> PackRef {
        self.pack(&pages.encode(), pages.len())
    }

    pub(crate) fn list(&mut self, files: &FileSet) -> PackRef {
        self.pack(&files.encode(), files.len())
    }

    /// A blob pack of these chunks.
    pub(crate) fn blob(&mut self, chunks: &[&[u8]]) -> Vec<ChunkRef> {
        let pack = self.pack(&chunks.concat(), chunks.len()).name;
        let mut offset = 0;
        let mut place = |chunk: &&[u8]| {
            let len = chunk.len() as u32;
            offset += len;
            ChunkRef { id: chunk_id(chunk), pack, offset: offset - len, len }
        };
        chunks.iter().map(&mut place).collect()
    }

    /// The entry under its own number. Returns its digest.
    pub(crate) fn entry(&mut self, entry: &Entry) -> [u8; 32] {
        self.entry_as(entry.seq, entry)
    }

    pub(crate) fn entry_as(&mut self, seq: u64, entry: &Entry) -> [u8; 32] {
        entry_digest(&self.seal(ObjectName::Entry(seq), &entry.encode().unwrap()))
    }
}

fn chunk_id(chunk: &[u8]) -> [u8; 16] {
    blake3::keyed_hash(&DIGEST_KEY, chunk).as_bytes()[..16].try_into().unwrap()
}

pub(crate) fn state_digest(image: &[u8], page_size: usize) -> [u8; 16] {
    let mut digest = [0; 16];
    for (index, page) in image.chunks(page_size).enumerate() {
        let mut hasher = blake3::Hasher::new_keyed(&DIGEST_KEY);
        hasher.update(page).update(&(index as u32 + 1).to_le_bytes());
        digest.iter_mut().zip(hasher.finalize().as_bytes()).for_each(|(all, byte)| *all ^= byte);
    }
    digest
}

/// A file made of these chunks.
pub(crate) fn file(mode: u32, mtime_ns: i64, chunks: &[ChunkRef]) -> FileOp {
    let len = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
    FileOp::File(FileRecord { mode, mtime_ns, len, chunks: chunks.to_vec() })
}

pub(crate) fn set(files: Vec<(&[u8], FileOp)>) -> FileSet {
    FileSet::new(files.into_iter().map(|(path, op)| (path.to_vec(), op)).collect()).unwrap()
}

/// A set written page by page: number, operation, image or patch. The numbers are below 128, patches are shorter.
pub(crate) fn raw_set(pages: &[(u8, u8, &[u8])], bases: &[u8]) -> PageSet {
    let (mut index, mut before) = (Vec::new(), 0);
    for (pgno, operation, content) in pages {
        index.extend([pgno - before, *operation]);
        index.extend((operation & 3 == 2).then_some(content.len() as u8));
        before = *pgno;
    }
    let mut set = [PAGE as u32, pages.len() as u32, index.len() as u32].map(u32::to_le_bytes).concat();
    set.extend(index);
    set.extend((!bases.is_empty()).then(|| checksum(bases)).into_iter().flatten());
    for kind in [1, 2] {
        let of_kind = pages.iter().filter(|(_, operation, _)| operation & 3 == kind);
        set.extend(of_kind.flat_map(|(_, _, content)| *content));
    }
    PageSet::decode(set).unwrap()
}

/// The patch, byte by byte, that leaves a page as it is but for `bytes` at `at`: a copy, literals, a copy.
pub(crate) fn patch_of(at: usize, bytes: &[u8]) -> Vec<u8> {
    assert!((1..128).contains(&bytes.len()) && at > 0 && at + bytes.len() < PAGE);
    let copy = |len: usize| match len * 2 {
        short @ 0..128 => vec![short as u8],
        long => vec![(long & 0x7f) as u8 | 0x80, (long >> 7) as u8],
    };
    let behind = copy(PAGE - at - bytes.len());
    [&[0][..], &copy(at), &[bytes.len() as u8], bytes, &behind].concat()
}
