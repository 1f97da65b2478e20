//! Folders of attachments in an entry: which files there are, and where what is in them lies.
//!
//! What is in the files is in *blob packs*: a pack whose plaintext is chunks one after another. A file names its chunks
//! in order, each with the pack, the place in the pack's plaintext, and the keyed hash that proves it.

use crate::entry::is_file_name;
use crate::error::{FormatError, malformed};
use crate::limits::{MAX_FILE_CHUNKS, MAX_FILES, MAX_NAME_LEN, MAX_PATH_LEN, MAX_PLAINTEXT_LEN};
use crate::pack::{PackRef, decode_packs, encode_packs, packs_fit};
use crate::wire::{Reader, put_text};

const FLAG_BASE: u8 = 1;
const OP_GONE: u8 = 0;
const OP_FILE: u8 = 1;
/// The least that a file takes: the length of its path, a path of one byte, the operation.
const FILE_LEN_MIN: usize = 4;
const CHUNK_REF_LEN: usize = 40;
/// The bits of a mode that are kept: permissions, without setuid, setgid and sticky.
const MODE_MASK: u32 = 0o777;

/// One folder of attachments in an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderRecord {
    /// What it is called, a file name: a restore creates a folder of this name.
    pub name: String,
    /// Whether every file is listed; else those that changed since the parent.
    pub is_base: bool,
    /// Files in the folder at this point.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Files that were there and could not be read, or changed while they were read: this point has an older state of
    /// them, or none.
    pub unread: u32,
    /// Where longer lists of files are (each pack holds one file set), in the order they were made.
    pub packs: Vec<PackRef>,
    /// Files listed in the entry itself. They override packs, and a later pack overrides an earlier one.
    pub inline: FileSet,
}

/// Files by ascending path (bytewise), each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSet {
    files: Vec<(Vec<u8>, FileOp)>,
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileOp {
    /// It does not exist any more.
    Gone,
    /// It is this.
    File(FileRecord),
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// Permission bits, at most `0o777`.
    pub mode: u32,
    /// When it was last modified, in ns since 1970.
    pub mtime_ns: i64,
    /// Its length: the sum of its chunks.
    pub len: u64,
    /// What is in it, in order.
    pub chunks: Vec<ChunkRef>,
}

/// A piece of a file in a blob pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// The first 16 bytes of its BLAKE3 keyed hash (docs/format.md, "File set").
    pub id: [u8; 16],
    /// The pack that holds it.
    pub pack: [u8; 16],
    /// Where it begins in the pack's plaintext.
    pub offset: u32,
    /// Its length in bytes, never 0.
    pub len: u32,
}

impl FileSet {
    /// A set of files in any order; of several with one path the last counts. Fails if one breaks a rule, or if they are
    /// too many for one plaintext.
    pub fn new(files: Vec<(Vec<u8>, FileOp)>) -> Result<Self, FormatError> {
        let mut files = files;
        files.reverse(); // a stable sort then puts the last of equals first, where dedup keeps it
        files.sort_by(|a, b| a.0.cmp(&b.0));
        files.dedup_by(|a, b| a.0 == b.0);
        let set = Self { files };
        let valid = set.files.iter().all(|(path, op)| is_path(path) && op.is_valid());
        if !valid || set.len() > MAX_FILES || set.byte_len() > MAX_PLAINTEXT_LEN {
            return Err(FormatError::Unencodable { what: "files" });
        }
        Ok(set)
    }

    /// How many files it names.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The files, by ascending path.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &FileOp)> {
        self.files.iter().map(|(path, op)| (path.as_slice(), op))
    }

    /// The packs that hold what is in the files; some more than once.
    pub fn packs(&self) -> impl Iterator<Item = [u8; 16]> {
        let files = self.files.iter().filter_map(|(_, op)| match op {
            FileOp::File(file) => Some(&file.chunks),
            FileOp::Gone => None,
        });
        files.flatten().map(|chunk| chunk.pack)
    }

    /// Length of the encoding.
    pub fn byte_len(&self) -> usize {
        4 + self.files.iter().map(|(path, op)| Self::byte_len_of(path, op)).sum::<usize>()
    }

    /// What one file adds to the length of the encoding.
    pub fn byte_len_of(path: &[u8], op: &FileOp) -> usize {
        let file = match op {
            FileOp::File(file) => 24 + file.chunks.len() * CHUNK_REF_LEN,
            FileOp::Gone => 0,
        };
        3 + path.len() + file
    }

    /// The set's only encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.byte_len());
        out.extend_from_slice(&(self.files.len() as u32).to_le_bytes());
        for (path, op) in &self.files {
            out.extend_from_slice(&(path.len() as u16).to_le_bytes());
            out.extend_from_slice(path);
            let FileOp::File(file) = op else {
                out.push(OP_GONE);
                continue;
            };
            out.push(OP_FILE);
            out.extend_from_slice(&file.mode.to_le_bytes());
            out.extend_from_slice(&file.mtime_ns.to_le_bytes());
            out.extend_from_slice(&file.len.to_le_bytes());
            out.extend_from_slice(&(file.chunks.len() as u32).to_le_bytes());
            for chunk in &file.chunks {
                out.extend_from_slice(&chunk.id);
                out.extend_from_slice(&chunk.pack);
                out.extend_from_slice(&chunk.offset.to_le_bytes());
                out.extend_from_slice(&chunk.len.to_le_bytes());
            }
        }
        out
    }

    /// Reads a set that is all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let count = reader.u32_up_to(MAX_FILES, "files")?;
        if count > reader.remaining() / FILE_LEN_MIN {
            return Err(malformed("files"));
        }
        let mut files: Vec<(Vec<u8>, FileOp)> = Vec::with_capacity(count);
        for _ in 0..count {
            let len = reader.u16_up_to(MAX_PATH_LEN, "path")?;
            let path = reader.bytes(len, "path")?.to_vec();
            if !is_path(&path) || files.last().is_some_and(|(before, _)| *before >= path) {
                return Err(malformed("path"));
            }
            let op = match reader.u8("file operation")? {
                OP_GONE => FileOp::Gone,
                OP_FILE => FileOp::File(FileRecord::decode(&mut reader)?),
                _ => return Err(malformed("file operation")),
            };
            if !op.is_valid() {
                return Err(malformed("file"));
            }
            files.push((path, op));
        }
        reader.finish("bytes after the files")?;
        Ok(Self { files })
    }
}

impl FileOp {
    fn is_valid(&self) -> bool {
        let Self::File(file) = self else { return true };
        let whole = |chunk: &ChunkRef| {
            chunk.len > 0 && u64::from(chunk.offset) + u64::from(chunk.len) <= MAX_PLAINTEXT_LEN as u64
        };
        file.mode & !MODE_MASK == 0
            && file.chunks.len() <= MAX_FILE_CHUNKS
            && file.chunks.iter().all(whole)
            && file.chunks.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>() == file.len
    }
}

impl FileRecord {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (mode, mtime_ns) = (reader.u32("file")?, reader.u64("file")?.cast_signed());
        let len = reader.u64("file")?;
        let count = reader.u32_up_to(MAX_FILE_CHUNKS, "chunks")?;
        if count > reader.remaining() / CHUNK_REF_LEN {
            return Err(malformed("chunks"));
        }
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            chunks.push(ChunkRef {
                id: reader.array("chunks")?,
                pack: reader.array("chunks")?,
                offset: reader.u32("chunks")?,
                len: reader.u32("chunks")?,
            });
        }
        Ok(Self { mode, mtime_ns, len, chunks })
    }
}

impl FolderRecord {
    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        let unencodable = |what| FormatError::Unencodable { what };
        if !is_file_name(&self.name) {
            return Err(unencodable("folder name"));
        }
        if !packs_fit(&self.packs) {
            return Err(unencodable("packs"));
        }
        put_text(out, &self.name, MAX_NAME_LEN, "folder name")?;
        out.push(if self.is_base { FLAG_BASE } else { 0 });
        out.extend_from_slice(&self.files.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.unread.to_le_bytes());
        encode_packs(&self.packs, out);
        let set = self.inline.encode();
        out.extend_from_slice(&(set.len() as u32).to_le_bytes());
        out.extend_from_slice(&set);
        Ok(())
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let name = reader.text(MAX_NAME_LEN, "folder name")?.to_owned();
        if !is_file_name(&name) {
            return Err(malformed("folder name"));
        }
        let is_base = match reader.u8("folder flags")? {
            0 => false,
            FLAG_BASE => true,
            _ => return Err(malformed("folder flags")),
        };
        let (files, bytes, unread) = (reader.u64("folder")?, reader.u64("folder")?, reader.u32("folder")?);
        let packs = decode_packs(reader)?;
        let len = reader.u32_up_to(MAX_PLAINTEXT_LEN, "files")?;
        let inline = FileSet::decode(reader.bytes(len, "files")?)?;
        Ok(Self { name, is_base, files, bytes, unread, packs, inline })
    }
}

/// A path below the folder: a restore creates it, so it must not lead anywhere else.
fn is_path(path: &[u8]) -> bool {
    let name = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && part.len() <= MAX_NAME_LEN;
    path.len() <= MAX_PATH_LEN && !path.contains(&0) && path.split(|byte| *byte == b'/').all(name)
}

#[cfg(test)]
pub(crate) mod fixtures {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    pub(crate) fn files() -> FileSet {
        let chunk = ChunkRef { id: [8; 16], pack: [3; 16], offset: 7, len: 100 };
        let file = |chunks: Vec<ChunkRef>| {
            let len = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
            FileOp::File(FileRecord { mode: 0o640, mtime_ns: -5, len, chunks })
        };
        let files = [
            (b"2024/photo.jpg".to_vec(), file(vec![chunk, ChunkRef { offset: 0, len: 7, ..chunk }])),
            (b"empty".to_vec(), file(Vec::new())),
            (b"old \xff name".to_vec(), FileOp::Gone),
        ];
        FileSet::new(files.into()).unwrap()
    }

    pub(crate) fn folder(name: &str) -> FolderRecord {
        FolderRecord {
            name: name.to_owned(),
            is_base: true,
            files: 2,
            bytes: 107,
            unread: 1,
            packs: vec![PackRef { name: [2; 16], sealed_len: 5000, items: 1 }],
            inline: files(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_set_reads_back_and_has_one_encoding() {
        let set = fixtures::files();
        let bytes = set.encode();
        assert_eq!(FileSet::decode(&bytes).unwrap(), set);
        assert_eq!(bytes.len(), set.byte_len());
        for at in 0..bytes.len() {
            assert!(FileSet::decode(&bytes[..at]).is_err(), "{at}");
            for value in [0, 1, 0x2f, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(read) = FileSet::decode(&changed) {
                    assert_eq!(read.encode(), changed, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_neither_written_nor_read() {
        for path in ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0b"] {
            let path = path.as_bytes().to_vec();
            assert!(FileSet::new(vec![(path.clone(), FileOp::Gone)]).is_err(), "{path:?}");
            let mut bytes = FileSet { files: vec![(path.clone(), FileOp::Gone)] }.encode();
            bytes.push(0); // room for a path even where there is none
            assert_eq!(FileSet::decode(&bytes).unwrap_err(), malformed("path"), "{path:?}");
        }
        let long = [b"a/".repeat(200), b"b".repeat(256)].concat();
        assert!(FileSet::new(vec![(long, FileOp::Gone)]).is_err());
        for (segments, fits) in [(2047, true), (2048, false)] {
            let path = [b"a/".repeat(segments), b"bb".to_vec()].concat();
            assert_eq!(FileSet::new(vec![(path, FileOp::Gone)]).is_ok(), fits, "{segments}");
        }
    }

    #[test]
    fn a_file_is_the_sum_of_its_chunks() {
        let check = |change: fn(&mut FileRecord)| {
            let mut file = FileRecord {
                mode: 0o600,
                mtime_ns: 0,
                len: 9,
                chunks: vec![ChunkRef { id: [1; 16], pack: [2; 16], offset: 0, len: 9 }],
            };
            change(&mut file);
            let files = vec![(b"a".to_vec(), FileOp::File(file))];
            let bytes = FileSet { files: files.clone() }.encode();
            assert!(FileSet::new(files).is_err());
            assert_eq!(FileSet::decode(&bytes).unwrap_err(), malformed("file"));
        };
        check(|file| file.len = 8);
        check(|file| file.mode = 0o4755);
        check(|file| file.chunks[0].len = 0);
        check(|file| file.chunks[0].offset = u32::MAX);
    }

    #[test]
    fn more_than_one_plaintext_holds_is_not_a_set() {
        let chunk = ChunkRef { id: [1; 16], pack: [2; 16], offset: 0, len: 1 };
        let file = |count: usize| {
            let chunks = vec![chunk; count];
            FileOp::File(FileRecord { mode: 0, mtime_ns: 0, len: count as u64, chunks })
        };
        let room = MAX_PLAINTEXT_LEN - 4 - 2 * (FILE_LEN_MIN + 24);
        let (half, rest) = (MAX_FILE_CHUNKS, room / CHUNK_REF_LEN - MAX_FILE_CHUNKS);
        let set = |rest| FileSet::new(vec![(b"a".to_vec(), file(half)), (b"b".to_vec(), file(rest))]);
        assert!(set(rest).is_ok());
        assert!(set(rest + 1).is_err());
        assert!(FileSet::new(vec![(b"a".to_vec(), file(half + 1))]).is_err());
    }

    /// Nothing is allocated for what is not there; a count past the limit is refused even where there is enough.
    #[test]
    fn counts_are_checked_before_they_are_believed() {
        let check = |count: u32, bytes: usize, what| {
            let bytes = [&count.to_le_bytes()[..], &vec![0; bytes]].concat();
            assert_eq!(FileSet::decode(&bytes).unwrap_err(), malformed(what), "{count}");
        };
        check(2, 7, "files");
        check(2, 8, "path");
        check(u32::MAX, 100, "files");
        check(MAX_FILES as u32, 4 * MAX_FILES - 1, "files");
        check(MAX_FILES as u32 + 1, 4 * MAX_FILES + 4, "files");
    }

    proptest! {
        /// Few small bytes: what a set is made of, so that many get far.
        #[test]
        fn any_bytes_give_an_answer(
            count in 0u32..4, rest in proptest::collection::vec(prop_oneof![4 => Just(0u8), 2 => 0u8..3, 1 => any::<u8>()], 0..150),
        ) {
            let bytes = [&count.to_le_bytes()[..], &rest].concat();
            if let Ok(set) = FileSet::decode(&bytes) {
                prop_assert_eq!(set.encode(), bytes);
            }
        }

        #[test]
        fn cut_or_flipped_sets_never_panic(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
            let mut bytes = fixtures::files().encode();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            let result = FileSet::decode(&bytes);
            prop_assert!(!cut || result.is_err());
            if let Ok(set) = result {
                prop_assert_eq!(set.encode(), bytes);
            }
        }
    }
}
