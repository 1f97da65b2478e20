//! A small archive whose every point restores: two databases, two folders, a rotation, entries that were forgotten.

use std::collections::BTreeMap;
use std::path::Path;

use chatkeep_format::{
    ChunkRef, DatabaseRecord, Entry, FileOp, FileSet, FolderRecord, PageOp, PageSet, apply_patch,
};
use serde_json::{Value, json};

use crate::archive::{ArchiveWriter, file, patch_of, set, state_digest};
use crate::entries::{entry, folder, gone, record};
use crate::{ARCHIVE, PAGE};

/// What is in files, by path: mode, time, content.
type Files = BTreeMap<Vec<u8>, (u32, i64, Vec<u8>)>;

struct Story {
    archive: ArchiveWriter,
    /// What messages.db is.
    image: Vec<u8>,
    /// What the folder `media` is.
    media: Files,
    /// Pieces of files that packs have.
    pieces: BTreeMap<&'static str, (Vec<u8>, ChunkRef)>,
    digests: BTreeMap<u64, [u8; 32]>,
    expected: Vec<Value>,
}

/// Writes it, and returns what it restores to.
pub(crate) fn write(out: &Path) -> Value {
    let mut archive = ArchiveWriter::new(out, "chatkeep vectors: store");
    let first_key = archive.keyring(1);
    let image = archive.rng.bytes(40 * PAGE);
    let mut story = Story {
        archive,
        image,
        media: Files::new(),
        pieces: BTreeMap::new(),
        digests: BTreeMap::new(),
        expected: Vec::new(),
    };
    story.image[10 * PAGE..12 * PAGE].fill(0);
    story.first();
    story.archive.roots.add_epoch(&mut story.archive.rng);
    let key = story.archive.keyring(2);
    story.second_and_third();
    story.fourth();
    story.seventh();
    story.eighth_to_tenth();
    json!({"archive": ARCHIVE.to_string(), "digits": key.to_digits().as_str(),
           "digits_before_rotation": first_key.to_digits().as_str(), "restores": story.expected})
}

impl Story {
    /// A base: 40 pages in two packs, of which pages 5 and 20 were written again meanwhile; 20 also inline. Files in a
    /// list and inline; one has its pieces in two packs, two share one.
    fn first(&mut self) {
        let mut messages = record("messages.db", &[], 40);
        for (from, to) in [(1u32, 25u32), (5, 40)] {
            let mut pages = PageSet::builder(PAGE as u32);
            for pgno in (from..=to).filter(|pgno| from == 1 || *pgno == 5 || *pgno > 25) {
                let stale = from == 1 && [5, 20].contains(&pgno);
                pages.push(pgno, if stale { &[0xee; PAGE] } else { self.page(pgno) });
            }
            messages.packs.push(self.archive.pages(&pages.finish()));
        }
        let mut inline = PageSet::builder(PAGE as u32);
        inline.push(20, self.page(20));
        messages.inline = inline.finish();

        self.blob(&[("left", 300), ("right", 50)]);
        self.blob(&[("other", 70)]);
        let list = [
            self.new_file(
                b"2024/05/photo.jpg",
                0o640,
                1_700_000_000_123_456_789,
                &["left", "right", "other"],
            ),
            self.new_file(b"2024/note", 0o600, -1_500_000_000, &["other"]),
            self.new_file(b"empty", 0o400, 0, &[]),
            (b"stale".to_vec(), file(0o600, 1, &[self.pieces["left"].1])),
        ];
        let inline = [
            self.new_file(b"name that is no text \xff", 0o777, 1, &["other", "other"]),
            (b"stale".to_vec(), FileOp::Gone),
        ];
        let list = FileSet::new(list.into()).unwrap();
        let packs = vec![self.archive.list(&list)];
        let media = FolderRecord { is_base: true, packs, unread: 1, ..media_with(inline.into()) };

        let entry = entry(1, [0; 32]);
        self.finish(entry, vec![messages, record("notes.db", &[(1, 1), (2, 2)], 2)], vec![media]);
        self.expect(1, "notes.db", &[[1; PAGE], [2; PAGE]].concat());
    }

    /// Page 3 changes, page 4 as a patch; the database shrinks, then grows; notes.db goes; a point is pinned.
    fn second_and_third(&mut self) {
        self.image.truncate(30 * PAGE);
        let messages = self.changed(&[(3, 2)], &[(4, 100, b"second")]);
        let changed =
            [self.new_file(b"2024/note", 0o600, 5, &["other", "left"]), self.gone_file(b"2024/05/photo.jpg")];
        let media = media_with(changed.into());
        self.finish(self.follow(2, 1), vec![messages, unchanged_notes()], vec![media]);
        self.expect(2, "notes.db", &[[1; PAGE], [2; PAGE]].concat());

        self.image.resize(31 * PAGE, 0x33);
        let messages = self.changed(&[(3, 3), (31, 0x33)], &[(4, 300, b"third"), (12, 1, b"no zeros")]);
        let media = media_with(vec![]);
        let entry = Entry { pins: vec![2], ..self.follow(3, 2) };
        self.finish(entry, vec![messages, gone("notes.db")], vec![media]);
        self.expected.push(json!({"seq": 3, "database": "notes.db", "gone": true}));
    }

    /// On entry 1: what entries 2 and 3 changed, and more. Pages in a pack, one of them again inline; a list.
    fn fourth(&mut self) {
        self.image[4 * PAGE + 7] = 0x77;
        self.image[5 * PAGE..6 * PAGE].fill(0x66);
        let mut packed = PageSet::builder(PAGE as u32);
        packed.push(3, self.page(3));
        packed.push_patch(5, &patch_of(7, &[0x77]));
        packed.push(6, &[0xee; PAGE]);
        packed.push(31, self.page(31));
        packed.push(35, &[0xee; PAGE]);
        let packed = self.archive.pages(&packed.finish());
        let mut inline = PageSet::builder(PAGE as u32);
        inline.push(4, self.page(4));
        inline.push(6, self.page(6));
        inline.push(12, self.page(12));
        let inline = inline.finish();
        let messages =
            DatabaseRecord { packs: vec![packed], inline, changed_pages: 6, ..self.changed(&[], &[]) };

        let list = [
            self.new_file(b"2024/note", 0o600, 5, &["other", "left"]),
            (b"2024/05/photo.jpg".to_vec(), FileOp::Gone),
            self.gone_file(b"empty"),
            self.new_file(b"empty/not any more", 0o644, 7, &["right"]),
        ];
        let list = FileSet::new(list.into()).unwrap();
        let media = FolderRecord { packs: vec![self.archive.list(&list)], ..media_with(vec![]) };
        let entry = Entry { level: 1, pins: vec![2], ..self.follow(4, 1) };
        self.finish(entry, vec![messages, gone("notes.db")], vec![media]);
        self.expected.push(json!({"seq": 4, "database": "notes.db", "gone": true}));
    }

    /// On entry 4; entries 5 and 6 are no more. Patches of patched pages; notes.db is back; a new folder.
    fn seventh(&mut self) {
        let messages = self.changed(&[], &[(5, 9, b"seventh"), (4, 301, b"H"), (11, 5, &[1; 100])]);
        let mut notes = record("notes.db", &[(1, 7)], 1);
        (notes.is_base, notes.state_digest) = (false, state_digest(&[7; PAGE], PAGE));
        let piece = self.pieces["right"].clone();
        let mut stickers = folder("stickers", set(vec![(b"one", file(0o600, 9, &[piece.1]))]));
        stickers.is_base = false;
        let media = media_with(vec![]);
        let entry = Entry { pins: vec![2, 4], ..self.follow(7, 4) };
        self.finish(entry, vec![messages, notes], vec![media, stickers]);
        self.expect(7, "notes.db", &[7; PAGE]);
        let one = json!([[hex::encode("one"), 0o600, 9, blake3::hash(&piece.0).to_hex().as_str()]]);
        self.expected.push(json!({"seq": 7, "folder": "stickers", "files": one}));
    }

    /// A new base, smaller, with an empty database; then one that fills it with larger pages; then one in which it is
    /// a base with smaller pages.
    fn eighth_to_tenth(&mut self) {
        self.image.truncate(2 * PAGE);
        let mut pages = PageSet::builder(PAGE as u32);
        (1..=2).for_each(|pgno| pages.push(pgno, self.page(pgno)));
        let inline = pages.finish();
        let messages = DatabaseRecord { is_base: true, inline, changed_pages: 2, ..self.changed(&[], &[]) };
        let note = self.new_file(b"2024/note", 0o600, 5, &["other"]);
        self.media.retain(|path, _| *path == note.0);
        let media = media_with(vec![note]);
        let entry = Entry { pins: vec![4], ..entry(8, [4; 32]) };
        self.finish(
            entry,
            vec![messages, DatabaseRecord { page_size: 0, ..record("notes.db", &[], 0) }],
            vec![FolderRecord { is_base: true, ..media }],
        );
        self.expect(8, "notes.db", &[]);

        let large = [0x99; 1024];
        let mut pages = PageSet::builder(1024);
        pages.push(1, &large);
        pages.push_zero(2);
        let notes = DatabaseRecord {
            is_base: false,
            page_size: 1024,
            inline: pages.finish(),
            state_digest: state_digest(&[large, [0; 1024]].concat(), 1024),
            ..record("notes.db", &[], 2)
        };
        let messages = self.changed(&[], &[(1, 1, b"ninth")]);
        let media = FolderRecord { is_base: true, ..media_with(vec![]) };
        self.media.clear();
        self.finish(self.follow(9, 8), vec![messages, notes], vec![media]);
        self.expect(9, "notes.db", &[large, [0; 1024]].concat());

        let messages = self.changed(&[], &[]);
        let notes = record("notes.db", &[(1, 1)], 1);
        let media = media_with(vec![]);
        self.finish(self.follow(10, 9), vec![messages, notes], vec![media]);
        self.expect(10, "notes.db", &[1; PAGE]);
    }

    fn page(&self, pgno: u32) -> &[u8] {
        &self.image[(pgno as usize - 1) * PAGE..pgno as usize * PAGE]
    }

    fn blob(&mut self, pieces: &[(&'static str, usize)]) {
        let contents: Vec<_> = pieces.iter().map(|(_, len)| self.archive.rng.bytes(*len)).collect();
        let chunks = self.archive.blob(&contents.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for ((name, _), piece) in pieces.iter().zip(contents.into_iter().zip(chunks)) {
            self.pieces.insert(name, piece);
        }
    }

    fn new_file(&mut self, path: &[u8], mode: u32, mtime_ns: i64, pieces: &[&str]) -> (Vec<u8>, FileOp) {
        let pieces: Vec<_> = pieces.iter().map(|name| self.pieces[name].clone()).collect();
        let content: Vec<_> = pieces.iter().flat_map(|(content, _)| content.clone()).collect();
        let chunks: Vec<_> = pieces.iter().map(|(_, chunk)| *chunk).collect();
        self.media.insert(path.to_vec(), (mode, mtime_ns, content));
        (path.to_vec(), file(mode, mtime_ns, &chunks))
    }

    fn gone_file(&mut self, path: &[u8]) -> (Vec<u8>, FileOp) {
        self.media.remove(path).unwrap();
        (path.to_vec(), FileOp::Gone)
    }

    /// An increment of messages.db: pages that are filled with a byte, and pages with some bytes replaced.
    fn changed(&mut self, full: &[(u32, u8)], patches: &[(u32, usize, &[u8])]) -> DatabaseRecord {
        let count = (self.image.len() / PAGE) as u32;
        let mut inline = PageSet::builder(PAGE as u32);
        for (pgno, fill) in full {
            inline.push(*pgno, &[*fill; PAGE]);
        }
        for (pgno, at, bytes) in patches {
            inline.push_patch(*pgno, &patch_of(*at, bytes));
        }
        let inline = inline.finish();
        for (pgno, op) in inline.iter() {
            let page = &mut self.image[(pgno as usize - 1) * PAGE..pgno as usize * PAGE];
            match op {
                PageOp::Full(image) => page.copy_from_slice(image),
                PageOp::Patch(patch) => {
                    let before = page.to_vec();
                    apply_patch(&before, 0, patch, page).unwrap();
                }
                PageOp::Zero => page.fill(0),
            }
        }
        let changed_pages = inline.len() as u64;
        DatabaseRecord { is_base: false, inline, changed_pages, ..record("messages.db", &[], count) }
    }

    fn follow(&self, seq: u64, parent_seq: u64) -> Entry {
        let prev = self.digests.get(&(seq - 1)).copied().unwrap_or([4; 32]);
        let parent_digest = self.digests[&parent_seq];
        let base_seq = if parent_seq >= 8 { 8 } else { 1 };
        Entry { parent_seq, base_seq, parent_digest, level: 0, ..entry(seq, prev) }
    }

    fn expect(&mut self, seq: u64, database: &str, image: &[u8]) {
        let blake3 = blake3::hash(image).to_hex();
        self.expected.push(json!({"seq": seq, "database": database, "blake3": blake3.as_str()}));
    }

    /// Writes an entry, with digests and sums that are those of `image` and `media`.
    fn finish(&mut self, entry: Entry, databases: Vec<DatabaseRecord>, folders: Vec<FolderRecord>) {
        let seq = entry.seq;
        let mut entry = Entry { databases, folders, ..entry };
        entry.databases[0].state_digest = state_digest(&self.image, PAGE);
        if entry.databases[1].state_digest == [13; 16] {
            let pages: Vec<_> = (0..entry.databases[1].page_count as u8).map(|at| [at + 1; PAGE]).collect();
            entry.databases[1].state_digest = state_digest(&pages.concat(), PAGE);
        }
        let contents = self.media.values();
        entry.folders[0].files = contents.len() as u64;
        entry.folders[0].bytes = contents.map(|(_, _, content)| content.len() as u64).sum();
        let digest = self.archive.entry(&entry);
        self.digests.insert(seq, digest);
        self.expect(seq, "messages.db", &self.image.clone());
        let files = self.media.iter().map(|(path, (mode, mtime_ns, content))| {
            json!([hex::encode(path), mode, mtime_ns, blake3::hash(content).to_hex().as_str()])
        });
        let files: Value = files.collect();
        self.expected.push(json!({"seq": seq, "folder": "media", "files": files}));
    }
}

/// notes.db as it was at the parent: two pages, none of which changed.
fn unchanged_notes() -> DatabaseRecord {
    DatabaseRecord { is_base: false, ..record("notes.db", &[], 2) }
}

/// An increment of the folder `media`. [`Story::finish`] counts what is in it.
fn media_with(inline: Vec<(Vec<u8>, FileOp)>) -> FolderRecord {
    FolderRecord { is_base: false, ..folder("media", FileSet::new(inline).unwrap()) }
}
