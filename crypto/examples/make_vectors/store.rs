//! A small archive whose every point restores: two databases, two folders, a rotation, entries that were forgotten.

use std::collections::BTreeMap;
use std::path::Path;

use chatkeep_format::{
    ChunkRef, DatabaseRecord, Entry, FileOp, FileSet, FolderRecord, PageOp, PageSet, apply_patch,
};
use serde_json::{Value, json};

use crate::archive::{ArchiveWriter, file, patch_of, raw_set, set, state_digest};
use crate::entries::{entry, folder, gone, record};
use crate::{ARCHIVE, PAGE};

/// What is in files, by path: mode, time, content.
type Files = BTreeMap<Vec<u8>, (u32, i64, Vec<u8>)>;

struct Story {
    archive: ArchiveWriter,
    /// What messages.db is.
    image: Vec<u8>,
    /// What it was at entry 1.
    first_image: Vec<u8>,
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
        first_image: Vec::new(),
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
                pages.push(pgno, if stale { &[0xee; PAGE] } else { self.page(pgno) }, None);
            }
            messages.packs.push(self.archive.pages(&pages.finish()));
        }
        let mut inline = PageSet::builder(PAGE as u32);
        inline.push(20, self.page(20), None);
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

    /// Page 3 changes, page 4 as a patch; the database shrinks, and page 7 gets what page 35 was. Then it grows by a page
    /// with what page 3 was; notes.db goes; a point is pinned.
    fn second_and_third(&mut self) {
        self.first_image = self.image.clone();
        // 14 literals, then 498 bytes of the base behind its own
        let from_35 = [&[14][..], &[b'7'; 14], &[0xe5, 7, 0x80, 8]].concat();
        let messages = self.changed(
            &[(3, 1, &[2; PAGE]), (4, 6, &patch_of(100, b"second")), (7, 6, &from_35), (35, 4, &[])],
            30,
        );
        assert_eq!(self.page(7)[14..], self.first_image[34 * PAGE + 14..35 * PAGE]);
        let changed =
            [self.new_file(b"2024/note", 0o600, 5, &["other", "left"]), self.gone_file(b"2024/05/photo.jpg")];
        let media = media_with(changed.into());
        self.finish(self.follow(2, 1), vec![messages, unchanged_notes()], vec![media]);
        self.expect(2, "notes.db", &[[1; PAGE], [2; PAGE]].concat());

        // its place is behind three bases, the first of which is page 3's
        let from_3 = [&[1, 0x33][..], &[0xff, 7, 0xff, 0x17]].concat();
        let messages = self.changed(
            &[
                (3, 5, &[3; PAGE]),
                (4, 6, &patch_of(300, b"third")),
                (12, 6, &patch_of(1, b"no zeros")),
                (31, 2, &from_3),
            ],
            31,
        );
        assert_eq!(self.page(31), [&[0x33][..], &[2; 511]].concat());
        let media = media_with(vec![]);
        let entry = Entry { pins: vec![2], ..self.follow(3, 2) };
        self.finish(entry, vec![messages, gone("notes.db")], vec![media]);
        self.expected.push(json!({"seq": 3, "database": "notes.db", "gone": true}));
    }

    /// On entry 1: what entries 2 and 3 changed, and more. Pages in a pack, two of them again inline, one as a patch of what the
    /// pack has; a list.
    fn fourth(&mut self) {
        let now = std::mem::replace(&mut self.image, self.first_image.clone());
        let page = |pgno: usize| &now[(pgno - 1) * PAGE..pgno * PAGE];
        let packed = self.apply(
            &[
                (3, 1, page(3)),
                (4, 1, &[0xee; PAGE]),
                (5, 6, &patch_of(7, &[0x77])),
                (6, 1, &[0xee; PAGE]),
                (31, 1, page(31)),
                (35, 1, &[0xee; PAGE]),
            ],
            40,
        );
        let packed = self.archive.pages(&packed);
        let inline = self
            .apply(&[(4, 1, page(4)), (6, 6, &patch_of(9, b"six")), (7, 1, page(7)), (12, 1, page(12))], 31);
        let messages =
            DatabaseRecord { packs: vec![packed], inline, changed_pages: 7, ..self.changed(&[], 31) };

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
        let messages = self.changed(
            &[
                (4, 6, &patch_of(301, b"H")),
                (5, 6, &patch_of(9, b"seventh")),
                (6, 4, &[]),
                (11, 6, &patch_of(5, &[1; 100])),
            ],
            31,
        );
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
        (1..=2).for_each(|pgno| pages.push(pgno, self.page(pgno), None));
        let inline = pages.finish();
        let messages = DatabaseRecord { is_base: true, inline, changed_pages: 2, ..self.changed(&[], 2) };
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
        pages.push(1, &large, None);
        pages.push(2, &[0; 1024], None);
        let notes = DatabaseRecord {
            is_base: false,
            page_size: 1024,
            inline: pages.finish(),
            state_digest: state_digest(&[large, [0; 1024]].concat(), 1024),
            ..record("notes.db", &[], 2)
        };
        let messages = self.changed(&[(1, 6, &patch_of(1, b"ninth"))], 2);
        let media = FolderRecord { is_base: true, ..media_with(vec![]) };
        self.media.clear();
        self.finish(self.follow(9, 8), vec![messages, notes], vec![media]);
        self.expect(9, "notes.db", &[large, [0; 1024]].concat());

        let messages = self.changed(&[], 2);
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

    /// An increment of messages.db, which has `count` pages then.
    fn changed(&mut self, pages: &[(u8, u8, &[u8])], count: u32) -> DatabaseRecord {
        let inline = self.apply(pages, count);
        let changed_pages = inline.len() as u64;
        DatabaseRecord { is_base: false, inline, changed_pages, ..record("messages.db", &[], count) }
    }

    /// A page set, applied to `image`, which has `count` pages then. Its bases are what the pages are now.
    fn apply(&mut self, pages: &[(u8, u8, &[u8])], count: u32) -> PageSet {
        let based = pages.iter().filter(|(_, operation, _)| operation & 4 != 0);
        let bases: Vec<u8> =
            based.flat_map(|(pgno, ..)| self.page(u32::from(*pgno)).iter().copied()).collect();
        let set = if pages.is_empty() { PageSet::default() } else { raw_set(pages, &bases) };
        self.image.resize(40 * PAGE, 0);
        for (pgno, op) in set.iter() {
            let page = &mut self.image[(pgno as usize - 1) * PAGE..pgno as usize * PAGE];
            match op {
                PageOp::Full(image) => page.copy_from_slice(image),
                PageOp::Patch { place, patch } => apply_patch(&bases, place, patch, page).unwrap(),
                PageOp::Zero => page.fill(0),
            }
        }
        self.image.truncate(count as usize * PAGE);
        set
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
