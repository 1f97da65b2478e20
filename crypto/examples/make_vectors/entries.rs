//! The vectors of entries.

use chatkeep_format::limits::{MAX_DATABASES, MAX_FOLDERS, MAX_LEVEL, MAX_PACKS, MAX_PINS, MAX_SEALED_LEN};
use chatkeep_format::{
    DatabaseKind, DatabaseRecord, DatabaseState, Entry, FileOp, FileSet, FolderRecord, PackRef, PageSet,
};
use serde_json::{Value, json};

use crate::archive::raw_set;
use crate::sets::file;
use crate::support::json::entry_json;
use crate::{ARCHIVE, PAGE};

/// Where fields of an entry begin.
const SEQ: usize = 40;
const PARENT: usize = 48;
const BASE: usize = 56;
const LEVEL: usize = 64;
const PREV: usize = 65;
const PARENT_DIGEST: usize = 97;
const SOURCE_NAME: usize = 169;
/// Behind the source name and the application id of [`entry`].
const PINS: usize = SOURCE_NAME + 2 + 10 + 2 + 18;

/// A database with inline pages that are filled with one byte each.
pub(crate) fn record(name: &str, pages: &[(u32, u8)], page_count: u32) -> DatabaseRecord {
    let mut inline = PageSet::builder(PAGE as u32);
    for (pgno, fill) in pages {
        inline.push(*pgno, &[*fill; PAGE], None);
    }
    DatabaseRecord {
        name: name.to_owned(),
        state: DatabaseState::Present,
        kind: DatabaseKind::Plain,
        is_base: true,
        page_size: PAGE as u32,
        page_count,
        user_version: 11,
        application_id: 12,
        state_digest: [13; 16],
        changed_pages: pages.len() as u64,
        packs: Vec::new(),
        inline: inline.finish(),
    }
}

pub(crate) fn gone(name: &str) -> DatabaseRecord {
    let state_digest = [0; 16];
    let (state, is_base, page_size) = (DatabaseState::Gone, false, 0);
    DatabaseRecord { state, is_base, page_size, state_digest, ..record(name, &[], 0) }
}

pub(crate) fn folder(name: &str, inline: FileSet) -> FolderRecord {
    let sizes = inline.iter().filter_map(|(_, op)| match op {
        FileOp::File(file) => Some(file.len),
        FileOp::Gone => None,
    });
    let sizes: Vec<_> = sizes.collect();
    let (files, bytes) = (sizes.len() as u64, sizes.iter().sum());
    FolderRecord { name: name.to_owned(), is_base: true, files, bytes, unread: 0, packs: Vec::new(), inline }
}

/// A base without anything in it.
pub(crate) fn entry(seq: u64, prev: [u8; 32]) -> Entry {
    Entry {
        archive: ARCHIVE,
        writer_id: [1; 16],
        writer_epoch: 2,
        seq,
        parent_seq: 0,
        base_seq: seq,
        level: 8,
        prev,
        parent_digest: [0; 32],
        taken_at_us: 1_760_000_000_000_000 + seq as i64,
        source_name: "Fennel ❦".to_owned(),
        app_id: "org.example.Fennel".to_owned(),
        digest_key: [9; 32],
        pins: Vec::new(),
        databases: Vec::new(),
        folders: Vec::new(),
    }
}

/// What entry 9 builds on is entry 4; it has everything an entry can have.
fn full() -> Entry {
    let mut a = record("a.db", &[(1, 5), (2, 0)], 3);
    a.is_base = false;
    a.packs = vec![PackRef { name: [6; 16], sealed_len: 9000, items: 1 }];
    a.inline = raw_set(&[(1, 0, &[]), (2, 4, &[]), (3, 6, b"a patch")], b"bases");
    let mut b = gone("b.db");
    b.kind = DatabaseKind::Opaque;
    let files = [(b"x/y".to_vec(), file(0o600, 1, &[9])), (b"z".to_vec(), FileOp::Gone)];
    let mut media = folder("media", FileSet::new(files.into()).unwrap());
    media.packs = vec![PackRef { name: [7; 16], sealed_len: 4208, items: 3 }];
    (media.is_base, media.files, media.bytes, media.unread) = (false, 300, 1 << 40, 2);
    Entry {
        parent_seq: 4,
        base_seq: 2,
        level: 1,
        parent_digest: [5; 32],
        pins: vec![2, 9],
        databases: vec![a, b],
        folders: vec![media, folder("stickers", FileSet::default())],
        ..entry(9, [4; 32])
    }
}

fn malformed(name: &str, bytes: &[u8]) -> Value {
    json!({"name": name, "bytes": hex::encode(bytes), "error": "Malformed"})
}

pub(crate) fn entries() -> Value {
    let valid = |name: &str, entry: &Entry| {
        let bytes = hex::encode(entry.encode().unwrap());
        json!({"name": name, "bytes": bytes, "fields": entry_json(entry)})
    };
    let first = Entry { databases: vec![record("a.db", &[(1, 1)], 1)], ..entry(1, [0; 32]) };
    let next = Entry { parent_seq: 1, base_seq: 1, level: 0, parent_digest: [4; 32], ..entry(2, [4; 32]) };
    let base = Entry { pins: vec![1, 3], databases: vec![gone("a.db")], ..entry(5, [4; 32]) };
    let highest = Entry { level: MAX_LEVEL, ..entry(9_999_999_999_999_999, [4; 32]) };
    let mut cases = vec![
        valid("everything an entry can have", &full()),
        valid("the first", &first),
        valid("the second, without databases", &next),
        valid("a base behind others, with a database that is gone", &base),
        valid("highest seq and level", &highest),
    ];
    cases.extend(broken_positions(&first, &next, &base));
    cases.extend(broken_databases());
    cases.extend(broken_folders());
    cases.extend(broken_counts());
    json!({"what": "entries", "cases": cases})
}

fn put(entry: &Entry, edits: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = entry.encode().unwrap();
    for (at, value) in edits {
        bytes[*at..*at + value.len()].copy_from_slice(value);
    }
    bytes
}

/// [`full`] with another name in place of that at `at`.
fn renamed(name: &str, at: usize, text: &[u8]) -> Value {
    let bytes = full().encode().unwrap();
    let behind = at + 2 + usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let text = [&(text.len() as u16).to_le_bytes(), text].concat();
    malformed(name, &[&bytes[..at], &text, &bytes[behind..]].concat())
}

fn broken_positions(first: &Entry, next: &Entry, base: &Entry) -> Vec<Value> {
    let full = full();
    let on = |name: &str, entry: &Entry, edits: &[(usize, &[u8])]| malformed(name, &put(entry, edits));
    let past_the_end = 10_000_000_000_000_000u64.to_le_bytes();
    vec![
        on("seq 0", first, &[(SEQ, &[0]), (BASE, &[0])]),
        on("seq past the highest", base, &[(SEQ, &past_the_end), (BASE, &past_the_end)]),
        on("parent is the entry itself", &full, &[(PARENT, &[9])]),
        on("parent is newer", &full, &[(PARENT, &[10])]),
        on("no base", &full, &[(BASE, &[0])]),
        on("base newer than the parent", &full, &[(BASE, &[5])]),
        on("base is the entry itself, in spite of a parent", &full, &[(BASE, &[9])]),
        on("a base that names another as its base", base, &[(BASE, &[4])]),
        on("level past the limit", &full, &[(LEVEL, &[MAX_LEVEL + 1])]),
        on("no digest of the entry before", &full, &[(PREV, &[0; 32])]),
        on("first entry with a digest of the one before", first, &[(PREV, &[1])]),
        on("no digest of the parent", &full, &[(PARENT_DIGEST, &[0; 32])]),
        on("a base with a digest of a parent", base, &[(PARENT_DIGEST, &[1])]),
        on("two digests of one entry", next, &[(PARENT_DIGEST, &[5])]),
        on("parent 0 without base flags", &full, &[(PARENT, &[0]), (BASE, &[9]), (PARENT_DIGEST, &[0; 32])]),
        on("pinned point 0", &full, &[(PINS + 2, &[0])]),
        on("pinned point twice", &full, &[(PINS + 2, &[9])]),
        on("pinned points out of order", &full, &[(PINS + 10, &[1])]),
        on("pinned point that is newer", &full, &[(PINS + 10, &[10])]),
        on("source name longer than the limit", &full, &[(SOURCE_NAME, &[1, 4])]),
        on("source name not UTF-8", &full, &[(SOURCE_NAME + 2, &[0xff])]),
    ]
}

fn find_a(entry: &Entry) -> usize {
    entry.encode().unwrap().windows(4).position(|window| window == b"a.db").unwrap()
}

fn broken_databases() -> Vec<Value> {
    let full = full();
    let bytes = full.encode().unwrap();
    let find = |needle: &[u8]| bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    let on = |name: &str, edits: &[(usize, &[u8])]| malformed(name, &put(&full, edits));
    let (a, b) = (find(b"a.db"), find(b"b.db"));
    // behind the name: 4 state, 5 kind, 6 flags, 7 page size, 11 page count, 23 digest, 39 changed pages, 47 packs:
    // 51 name, 67 length, 75 pages, then 79 the length of the inline pages and 83 the inline pages
    let too_long = (MAX_SEALED_LEN as u64 + 1).to_le_bytes();
    let mut whole = full.clone();
    whole.databases[0].inline = record("", &[(1, 5)], 0).inline;
    (whole.databases[0].is_base, whole.parent_seq, whole.base_seq) = (true, 0, 9);
    whole.parent_digest = [0; 32];
    whole.folders.clear();
    let flags_at = find_a(&whole) + 6;
    let mut packed = full.clone();
    packed.databases[0].inline = PageSet::default();
    let packed_at = find_a(&packed);
    let mut bare = packed.clone();
    bare.databases[0].packs.clear();
    let bare_at = find_a(&bare);
    let packs = |count: usize| {
        let (head, count_bytes) = (&bytes[..a + 47], (count as u32).to_le_bytes());
        let (pack, tail) = (&bytes[a + 51..a + 79], &bytes[a + 79..]);
        json!([
            [hex::encode(head), 1],
            [hex::encode(count_bytes), 1],
            [hex::encode(pack), count],
            [hex::encode(tail), 1]
        ])
    };
    vec![
        on("database name with a slash", &[(a, b"/")]),
        on("database name with NUL", &[(a, &[0])]),
        renamed("database name .", a - 2, b"."),
        renamed("database without a name", a - 2, b""),
        renamed("database name longer than the limit", a - 2, &[b'a'; 256]),
        on("databases out of order", &[(a, b"c")]),
        on("databases twice", &[(b, b"a")]),
        on("state 3", &[(a + 4, &[3])]),
        on("state 0", &[(a + 4, &[0])]),
        on("kind 0", &[(a + 5, &[0])]),
        on("kind 3", &[(a + 5, &[3])]),
        on("database flag 2", &[(a + 6, &[2])]),
        on("a patch in spite of the base flag", &[(a + 6, &[1])]),
        malformed("a database without the base flag in a base", &put(&whole, &[(flags_at, &[0])])),
        on("gone with pages", &[(a + 4, &[2])]),
        on("gone with a page count", &[(b + 7, &[0, 2]), (b + 11, &[1])]),
        on("page size of the inline pages differs", &[(a + 8, &[4])]),
        malformed("page size 768", &put(&packed, &[(packed_at + 7, &[0, 3])])),
        malformed("no page size", &put(&packed, &[(packed_at + 7, &[0, 0])])),
        malformed("no page size for a page count", &put(&bare, &[(bare_at + 7, &[0, 0])])),
        on("more packs than there are bytes", &[(a + 47, &[0xff, 0xff, 0])]),
        on("all the packs there are", &[(a + 47, &[0xff; 4])]),
        json!({"name": "more packs than the limit", "bytes": packs(MAX_PACKS + 1), "error": "Malformed"}),
        on("pack longer than the limit", &[(a + 67, &too_long)]),
        on("pack of no pages", &[(a + 75, &[0])]),
        on("inline pages longer than all", &[(a + 79, &[0xff; 4])]),
        on("inline pages shorter than they are", &[(a + 79, &[1])]),
        on("page operation 3", &[(a + 96, &[3])]),
    ]
}

fn broken_folders() -> Vec<Value> {
    let full = full();
    let bytes = full.encode().unwrap();
    let find = |needle: &[u8]| bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    let on = |name: &str, edits: &[(usize, &[u8])]| malformed(name, &put(&full, edits));
    let (media, stickers, path) = (find(b"media"), find(b"stickers"), find(b"x/y"));
    // behind the name: 5 flags, 6 files, 14 bytes, 22 unread, 26 packs: 30 name, 46 length, 54 files, then 58 the
    // length of the inline files and 62 the inline files
    let too_long = (MAX_SEALED_LEN as u64 + 1).to_le_bytes();
    let mut whole = full.clone();
    whole.databases.clear();
    (whole.folders[0].is_base, whole.parent_seq, whole.base_seq) = (true, 0, 9);
    whole.parent_digest = [0; 32];
    let flags_at = whole.encode().unwrap().windows(5).position(|window| window == b"media").unwrap() + 5;
    vec![
        on("folder name with a slash", &[(media, b"/")]),
        on("folder name with NUL", &[(media, &[0])]),
        renamed("folder name ..", media - 2, b".."),
        renamed("folder without a name", media - 2, b""),
        renamed("folder name longer than the limit", media - 2, &[b'a'; 256]),
        on("folders out of order", &[(media, b"z")]),
        malformed("folders twice", &[&bytes[..stickers - 2], &bytes[media - 2..stickers - 2]].concat()),
        on("folder flag 2", &[(media + 5, &[2])]),
        malformed("a folder without the base flag in a base", &put(&whole, &[(flags_at, &[0])])),
        on("more lists than there are bytes", &[(media + 26, &[0xff, 0xff, 0])]),
        on("all the lists there are", &[(media + 26, &[0xff; 4])]),
        on("list longer than the limit", &[(media + 46, &too_long)]),
        on("list of no files", &[(media + 54, &[0])]),
        on("inline files longer than all", &[(media + 58, &[0xff; 4])]),
        on("inline files shorter than they are", &[(media + 58, &[1])]),
        on("a path that leads out", &[(path, b"../")]),
        on("a path in two pieces", &[(path, b"x\0y")]),
    ]
}

/// Lists that would be right if they were not too long.
fn broken_counts() -> Vec<Value> {
    let mut empty = entry(2000, [4; 32]).encode().unwrap();
    empty.truncate(PINS);
    let list = |count: usize, item: &dyn Fn(usize) -> Vec<u8>| {
        [(count as u16).to_le_bytes().to_vec(), (0..count).flat_map(item).collect()].concat()
    };
    let pin = |at: usize| (at as u64 + 1).to_le_bytes().to_vec();
    let name = |at: usize| [&[3, 0][..], format!("{at:03}").as_bytes()].concat();
    let database =
        |at: usize| [&name(at)[..], &[2, 1, 1], &[0; 40], &[0; 4], &[12, 0, 0, 0], &[0; 12]].concat();
    let folder = |at: usize| [&name(at)[..], &[1], &[0; 20], &[0; 4], &[4, 0, 0, 0], &[0; 4]].concat();
    let with = |pins: usize, databases: usize, folders: usize| {
        let (pins, databases) = (list(pins, &pin), list(databases, &database));
        [&empty[..], &pins, &databases, &list(folders, &folder)].concat()
    };
    assert!(Entry::decode(&with(MAX_PINS, MAX_DATABASES, MAX_FOLDERS)).is_ok());
    let bytes = full().encode().unwrap();
    vec![
        malformed("more pinned points than the limit", &with(MAX_PINS + 1, 0, 0)),
        malformed("more databases than the limit", &with(0, MAX_DATABASES + 1, 0)),
        malformed("more folders than the limit", &with(0, 0, MAX_FOLDERS + 1)),
        malformed("cut in the pinned points", &with(3, 0, 0)[..PINS + 20]),
        malformed("byte after the end", &[&bytes[..], &[0]].concat()),
        malformed("cut", &bytes[..bytes.len() - 1]),
        malformed("cut before the folders", &with(2, 1, 0)[..with(2, 1, 0).len() - 2]),
        malformed("nothing", &[]),
    ]
}
