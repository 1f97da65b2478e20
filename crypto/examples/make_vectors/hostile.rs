//! An archive whose every entry can be read, and whose points do not restore: what only a restore can find.

use std::path::Path;

use chatkeep_format::{ChunkRef, DatabaseRecord, Entry, FileSet, FolderRecord, PackRef, PageSet};
use serde_json::{Value, json};

use crate::archive::{ArchiveWriter, file, patch_of, raw_set, set, state_digest};
use crate::entries::{entry, folder, gone, record};
use crate::{ARCHIVE, PAGE};

/// The good entries: a base, one on it, another base, one without anything in it and one with `a.db` gone, on entry 1.
const BASE: u64 = 1;
const NEXT: u64 = 2;
const OTHER_BASE: u64 = 4;
const EMPTY: u64 = 5;
const GONE: u64 = 6;
/// No such entry.
const FORGOTTEN: u64 = 3;
/// No such pack.
const NOWHERE: [u8; 16] = [0x40; 16];

struct Cases {
    archive: ArchiveWriter,
    digests: [[u8; 32]; 7],
    /// The two chunks of the only blob pack.
    chunks: Vec<ChunkRef>,
    seq: u64,
    expected: Vec<Value>,
}

/// Writes it, and returns the error of each restore.
pub(crate) fn write(out: &Path) -> Value {
    let mut archive = ArchiveWriter::new(out, "chatkeep vectors: hostile");
    let key = archive.keyring(1);
    let chunks = archive.blob(&[b"first chunk", b"and the second"]);
    let mut cases = Cases { archive, digests: [[4; 32]; 7], chunks, seq: 9, expected: Vec::new() };
    cases.good_entries();
    cases.chains();
    cases.databases();
    cases.packs();
    cases.folders();
    json!({"archive": ARCHIVE.to_string(), "digits": key.to_digits().as_str(), "restores": cases.expected})
}

/// `a.db` at the good entries: four pages.
fn image() -> Vec<u8> {
    (1..=4).flat_map(|fill| [fill; PAGE]).collect()
}

/// An increment of `a.db` that changes nothing.
fn same() -> DatabaseRecord {
    let state_digest = state_digest(&image(), PAGE);
    DatabaseRecord { is_base: false, state_digest, ..record("a.db", &[], 4) }
}

impl Cases {
    fn good_entries(&mut self) {
        let whole = [(1, 1), (2, 2), (3, 3), (4, 4)];
        let database = DatabaseRecord { is_base: true, inline: record("", &whole, 4).inline, ..same() };
        let base = Entry { databases: vec![database], folders: vec![self.media()], ..entry(BASE, [0; 32]) };
        self.digests[BASE as usize] = self.archive.entry(&base);
        let media = FolderRecord { inline: FileSet::default(), is_base: false, ..self.media() };
        let next = Entry { databases: vec![same()], folders: vec![media], ..self.on(NEXT, BASE) };
        self.digests[NEXT as usize] = self.archive.entry(&next);
        let other = Entry { databases: base.databases.clone(), ..entry(OTHER_BASE, [4; 32]) };
        self.digests[OTHER_BASE as usize] = self.archive.entry(&other);
        self.digests[EMPTY as usize] = self.archive.entry(&self.on(EMPTY, BASE));
        let without = Entry { databases: vec![gone("a.db")], ..self.on(GONE, BASE) };
        self.digests[GONE as usize] = self.archive.entry(&without);
        let blake3 = blake3::hash(&image()).to_hex();
        for seq in [BASE, NEXT, OTHER_BASE] {
            self.expected.push(json!({"seq": seq, "database": "a.db", "blake3": blake3.as_str()}));
        }
        self.expected.push(json!({"seq": GONE, "database": "a.db", "gone": true}));
    }

    /// The folder of the good entries: two files.
    fn media(&self) -> FolderRecord {
        let one = file(0o600, 1, &self.chunks[..1]);
        folder("media", set(vec![(b"one", one), (b"two/both", file(0o644, 2, &self.chunks))]))
    }

    fn on(&self, seq: u64, parent_seq: u64) -> Entry {
        let parent_digest = self.digests[parent_seq as usize];
        let prev = if parent_seq + 1 == seq { parent_digest } else { [4; 32] };
        Entry { parent_seq, base_seq: BASE, parent_digest, level: 0, ..entry(seq, prev) }
    }

    /// An entry on `parent_seq`; the restore of `a.db`, or of `media` if it has no databases, gives `error`.
    fn case(&mut self, name: &str, error: &str, parent_seq: u64, change: impl FnOnce(&mut Entry)) {
        self.seq += 1;
        let mut entry = self.on(self.seq, parent_seq);
        change(&mut entry);
        let what = if entry.databases.is_empty() { ("folder", "media") } else { ("database", "a.db") };
        self.archive.entry_as(self.seq, &entry);
        self.expected.push(json!({"name": name, "seq": self.seq, what.0: what.1, "error": error}));
    }

    /// Changes the increment of `a.db` on entry 2.
    fn database(&mut self, name: &str, error: &str, change: impl FnOnce(&mut DatabaseRecord)) {
        let mut database = same();
        change(&mut database);
        self.case(name, error, NEXT, |entry| entry.databases = vec![database]);
    }

    fn chains(&mut self) {
        let same = || vec![same()];
        self.case("digest of the parent differs", "Damaged chain", NEXT, |entry| {
            (entry.databases, entry.parent_digest) = (same(), [7; 32]);
        });
        self.case("parent is not there", "Missing", FORGOTTEN, |entry| entry.databases = same());
        self.case("another base than the parent names", "Damaged chain", NEXT, |entry| {
            (entry.databases, entry.base_seq) = (same(), NEXT);
        });
        self.case("the chain ends at another base", "Damaged chain", OTHER_BASE, |entry| {
            entry.databases = same();
        });
        self.case("another digest key than the parent has", "Damaged chain", NEXT, |entry| {
            (entry.databases, entry.digest_key) = (same(), [8; 32]);
        });
        self.case("an entry with the number of another", "NotThisObject", NEXT, |entry| {
            (entry.databases, entry.seq) = (same(), entry.seq - 1);
        });
        self.case("an entry of another archive", "NotThisObject", NEXT, |entry| {
            entry.databases = same();
            entry.archive.0[0] ^= 1;
        });
    }

    fn databases(&mut self) {
        self.database("a page that nothing gives", "Damaged database", |database| database.page_count = 5);
        self.database("another state digest", "Damaged database", |database| database.state_digest[0] ^= 1);
        self.database("another page than the state digest says", "Damaged database", |database| {
            database.inline = record("", &[(2, 9)], 0).inline;
        });
        let one = patch_of(1, b"x");
        self.database("a base that nobody gave", "Damaged database", |database| {
            database.page_count = 5;
            database.inline = raw_set(&[(5, 6, &one)], &[0; PAGE]);
        });
        self.database("a base that nobody gave, of a page that is whole", "Damaged database", |database| {
            (database.page_count, database.state_digest) =
                (5, state_digest(&[&image(), &[9; PAGE][..]].concat(), PAGE));
            database.inline = raw_set(&[(5, 5, &[9; PAGE])], &[0; PAGE]);
        });
        self.database("a base that nobody gave, of a page beyond the end", "Damaged database", |database| {
            database.inline = raw_set(&[(9, 4, &[])], &[0; PAGE]);
        });
        self.database("other bases than those that are there", "Damaged database", |database| {
            database.inline = raw_set(&[(2, 5, &[2; PAGE]), (3, 5, &[3; PAGE])], &[3; 2 * PAGE]);
        });
        self.database("a patch that copies past the bases", "Malformed", |database| {
            database.inline = raw_set(&[(2, 6, &[0, 0x81, 8, 2])], &[2; PAGE]);
        });
        self.database("a patch that copies past the page", "Malformed", |database| {
            database.inline = raw_set(&[(2, 6, &[0, 0x82, 8])], &[2; PAGE]);
        });
        self.database("a malformed patch of other bases", "Damaged database", |database| {
            database.inline = raw_set(&[(2, 6, &[0, 0x82, 8])], &[9; PAGE]);
        });
        self.database("an increment with another page size", "Malformed", |database| {
            let mut pages = PageSet::builder(1024);
            pages.push(1, &[1; 1024], None);
            (database.page_size, database.inline) = (1024, pages.finish());
        });
        // The pages of entry 1 must not be taken.
        self.case("an increment on a database that was gone", "Damaged database", GONE, |entry| {
            entry.databases = vec![same()];
        });
        self.case("an increment on an entry without the database", "Damaged database", EMPTY, |entry| {
            entry.databases = vec![same()];
        });
    }

    fn packs(&mut self) {
        let other_size = {
            let mut pages = PageSet::builder(1024);
            pages.push(1, &[1; 1024], None);
            self.archive.pages(&pages.finish())
        };
        let patches = self.archive.pages(&raw_set(&[(2, 6, &patch_of(1, &[2]))], &[2; PAGE]));
        let bases = self.archive.pages(&raw_set(&[(2, 5, &[2; PAGE])], &[2; PAGE]));
        let list = self.archive.list(&self.media().inline);
        let blob = PackRef { name: self.chunks[0].pack, ..list };
        for (name, error, pack) in [
            ("a pack of pages that is not there", "Missing", PackRef { name: NOWHERE, ..list }),
            ("a pack of pages of another size", "Malformed", other_size),
            ("a list of files in place of pages", "Malformed", list),
            ("a blob in place of pages", "Malformed", blob),
        ] {
            self.database(name, error, |database| database.packs = vec![pack]);
        }
        for (name, pack) in [("a patch in a pack of a base", patches), ("a base in a pack of a base", bases)]
        {
            self.database(name, "Malformed", |database| {
                database.inline = record("", &[(1, 1), (2, 2), (3, 3), (4, 4)], 0).inline;
                (database.is_base, database.packs) = (true, vec![pack]);
            });
        }
        let lock_page = (1 << 30) / PAGE as u32 + 1;
        let locked = self.archive.pages(&record("", &[(lock_page, 7)], 0).inline);
        self.database("a base that is the lock-byte page", "Damaged database", |database| {
            let mut inline = PageSet::builder(PAGE as u32);
            inline.push(lock_page, &[7; PAGE], Some(&[7; PAGE]));
            (database.packs, database.inline) = (vec![locked], inline.finish());
        });
        // The pack has replaced page 2 when the inline pages are read.
        let replaced = self.archive.pages(&record("", &[(2, 9)], 0).inline);
        self.database("a base as it was at the parent, not before the set", "Damaged database", |database| {
            database.packs = vec![replaced];
            database.inline = raw_set(&[(2, 6, &patch_of(1, &[2]))], &[2; PAGE]);
        });
        for (name, error, pack) in [
            ("a list of files that is not there", "Missing", PackRef { name: NOWHERE, ..list }),
            ("pages in place of a list of files", "Malformed", patches),
            ("a blob in place of a list of files", "Malformed", blob),
        ] {
            let media = FolderRecord { packs: vec![pack], ..self.media() };
            self.case(name, error, NEXT, |entry| entry.folders = vec![media]);
        }
    }

    /// A folder with one file, of one chunk.
    fn chunk(&mut self, name: &str, error: &str, change: impl FnOnce(&mut ChunkRef)) {
        let mut chunk = self.chunks[0];
        change(&mut chunk);
        let media = folder("media", set(vec![(b"one", file(0o600, 1, &[chunk]))]));
        self.case(name, error, NEXT, |entry| entry.folders = vec![media]);
    }

    fn folders(&mut self) {
        let whole = self.chunks.iter().map(|chunk| chunk.len).sum::<u32>();
        self.chunk("a chunk in a pack that is not there", "Missing", |chunk| chunk.pack = NOWHERE);
        self.chunk("a chunk that ends behind its pack", "Damaged folder", |chunk| chunk.len = whole + 1);
        let last = self.chunks[1];
        self.chunk("a chunk that has its id as far as its pack goes", "Damaged folder", |chunk| {
            *chunk = ChunkRef { len: last.len + 1, ..last };
        });
        self.chunk("a chunk that begins behind its pack", "Damaged folder", |chunk| chunk.offset = whole);
        self.chunk("a chunk with the id of another", "Damaged folder", |chunk| chunk.offset += 1);
        self.chunk("a chunk that is shorter than its id says", "Damaged folder", |chunk| chunk.len -= 1);
        self.chunk("another id than the chunk has", "Damaged folder", |chunk| chunk.id[15] ^= 1);
        let same = FolderRecord { is_base: false, inline: FileSet::default(), ..self.media() };
        let one = file(0o600, 1, &self.chunks[..1]);
        let (files, bytes) = (same.files, same.bytes);
        let len = u64::from(self.chunks[0].len);
        for (name, folder) in [
            ("fewer files than there are", FolderRecord { files: files - 1, ..same.clone() }),
            ("more bytes than there are", FolderRecord { bytes: bytes + 1, ..same.clone() }),
            (
                "a file below a file",
                FolderRecord {
                    files: files + 1,
                    bytes: bytes + len,
                    inline: set(vec![(b"one/more", one.clone())]),
                    ..same.clone()
                },
            ),
            (
                "a file in place of a folder",
                FolderRecord {
                    files: files + 1,
                    bytes: bytes + len,
                    inline: set(vec![(b"two", one)]),
                    ..same.clone()
                },
            ),
        ] {
            self.case(name, "Damaged folder", NEXT, |entry| entry.folders = vec![folder]);
        }
        // The files of entry 1 must not be taken.
        self.case("an increment on an entry without the folder", "Damaged folder", EMPTY, |entry| {
            entry.folders = vec![same];
        });
    }
}
