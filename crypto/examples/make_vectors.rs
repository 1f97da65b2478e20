//! Writes the test vectors of docs/format.md: `cargo run -p chatkeep-crypto --example make_vectors -- tests/vectors`.
//!
//! The same bytes in every run, as long as zstd compresses as it does now. Vectors that are published stay: run it
//! only to add some, and look at the difference.
#![allow(clippy::unwrap_used, reason = "a tool for this repository: it stops where it fails")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;

use chatkeep_crypto::{BackupKey, DataRoots, pack_name, seal, write_keyring};
use chatkeep_format::limits::{MAX_KEY_EPOCHS, MAX_KEYSLOTS, MAX_PAGES, MAX_PLAINTEXT_LEN};
use chatkeep_format::{
    ArchiveId, CHUNK_LEN, DatabaseKind, DatabaseRecord, DatabaseState, Entry, HEADER_LEN, Keyslot,
    ObjectName, PackRef, PageSet, TAG_LEN, apply_patch, entry_digest, padme,
};
use serde_json::{Value, json};
use support::{KnownRng, seal_by_hand, stream};

const ARCHIVE: ArchiveId = ArchiveId([0xc4; 16]);
const PAGE: usize = 512;

fn main() {
    let out = std::env::args().nth(1).expect("the folder of the vectors is the argument");
    let out = Path::new(&out);
    let folder = out.join("format");
    fs::create_dir_all(&folder).unwrap();
    for (file, content) in [
        ("digits.json", digits()),
        ("padme.json", padme_values()),
        ("pages.json", pages()),
        ("patch.json", patches()),
        ("entries.json", entries()),
        ("keyring.json", keyring()),
        ("objects.json", objects()),
    ] {
        fs::write(folder.join(file), format!("{}\n", serde_json::to_string_pretty(&content).unwrap()))
            .unwrap();
    }
    store(&out.join("store"));
}

fn digits() -> Value {
    let key = BackupKey::from_bytes(std::array::from_fn(|i| i as u8 + 1));
    let digits = key.to_digits().to_string();
    let case = |name: &str, digits: &str, error: Option<&str>| match error {
        None => json!({"name": name, "digits": digits, "key": hex::encode(key.expose())}),
        Some(error) => json!({"name": name, "digits": digits, "error": error}),
    };
    json!({"what": "digits", "cases": [
        case("as written", &digits, None),
        case("in lines", &key.to_digit_lines(), None),
        case("upper case without dashes", &digits.replace('-', "").to_uppercase(), None),
        case("without check group", &digits[..79], None),
        case("one digit wrong", &digits.replacen("0102", "0103", 1), Some("CheckGroup")),
        case("check group wrong", &format!("{}0000", &digits[..80]), Some("CheckGroup")),
        case("no hex digit", &digits.replacen("0304", "o304", 1), Some("NotHex 2")),
        case("short group", &digits.replacen("0506", "056", 1), Some("GroupLength 3")),
        case("too short", "0102-0304", Some("Length")),
        case("empty", "", Some("Length")),
    ]})
}

fn padme_values() -> Value {
    let values: Vec<_> = [0, 1, 2, 3, 8, 9, 15, 100, 1000, 4097, 65_537, 1_000_000, 8_388_609, 67_108_864]
        .map(|len| json!([len, padme(len)]))
        .to_vec();
    json!({"what": "padme", "cases": values})
}

fn raw_pages(page_size: u32, count: u32, index: &[u8], images: &[u8]) -> String {
    let head = [page_size.to_le_bytes(), count.to_le_bytes(), (index.len() as u32).to_le_bytes()].concat();
    hex::encode([&head, index, images].concat())
}

fn pages() -> Value {
    let image = [7; PAGE];
    let valid =
        |name: &str, bytes: String, pages: Value| json!({"name": name, "bytes": bytes, "pages": pages});
    let invalid = |name: &str, bytes: String| json!({"name": name, "bytes": bytes, "error": "Malformed"});
    let full = hex::encode(image);
    let good = raw_pages(512, 2, &[3, 1, 0xc8, 1, 0], &image);
    json!({"what": "pages", "cases": [
        valid("empty", raw_pages(0, 0, &[], &[]), json!([])),
        valid("one image, one of zeros", good.clone(), json!([[3, full], [203, "zero"]])),
        valid("highest page number", raw_pages(512, 1, &[0xff, 0xff, 0xff, 0xff, 0x0f, 0], &[]), json!([[u32::MAX, "zero"]])),
        invalid("empty, with a page size", raw_pages(512, 0, &[], &[])),
        invalid("page size 513", raw_pages(513, 1, &[1, 0], &[])),
        invalid("page size 131072", raw_pages(131_072, 1, &[1, 0], &[])),
        invalid("page 0", raw_pages(512, 1, &[0, 0], &[])),
        invalid("page twice", raw_pages(512, 2, &[1, 0, 0, 0], &[])),
        invalid("varint longer than needed", raw_pages(512, 1, &[0x81, 0, 0], &[])),
        invalid("varint of 33 bits", raw_pages(512, 1, &[0xff, 0xff, 0xff, 0xff, 0x1f, 0], &[])),
        invalid("page numbers past 32 bits", raw_pages(512, 2, &[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 1, 0], &[])),
        invalid("operation 2", raw_pages(512, 1, &[1, 2], &image)),
        invalid("image cut", raw_pages(512, 1, &[1, 1], &image[1..])),
        invalid("byte after the images", raw_pages(512, 1, &[1, 1], &[7; PAGE + 1])),
        invalid("byte after the index", raw_pages(512, 1, &[1, 0, 0], &[])),
        invalid("more pages than the index has", raw_pages(512, 2, &[1, 0], &[])),
        invalid("more pages than the limit", raw_pages(512, MAX_PAGES as u32 + 1, &[1, 0], &[])),
        invalid("all the pages there are", raw_pages(512, u32::MAX, &[1, 0], &[])),
        invalid("cut in the fixed part", good[..22].to_owned()),
        invalid("nothing", String::new()),
    ]})
}

fn record(name: &str, pages: &[(u32, u8)], page_count: u32) -> DatabaseRecord {
    let mut inline = PageSet::builder(PAGE as u32);
    for (pgno, fill) in pages {
        inline.push(*pgno, &[*fill; PAGE]);
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

fn entry(seq: u64, prev: [u8; 32], databases: Vec<DatabaseRecord>) -> Entry {
    Entry {
        archive: ARCHIVE,
        writer_id: [1; 16],
        writer_epoch: 2,
        seq,
        base_seq: 1,
        prev,
        taken_at_us: 1_760_000_000_000_000 + seq as i64,
        source_name: "Fennel ❦".to_owned(),
        app_id: "org.example.Fennel".to_owned(),
        digest_key: [9; 32],
        databases,
    }
}

/// Patches over the bases of three pages.
fn patches() -> Value {
    let mut bases = [0; 3 * PAGE];
    blake3::Hasher::new().update(b"bases").finalize_xof().fill(&mut bases);
    let valid = |name: &str, place: usize, patch: &[u8]| {
        let mut image = [0; PAGE];
        apply_patch(&bases, place, patch, &mut image).expect(name);
        json!({"name": name, "place": place, "patch": hex::encode(patch), "image": hex::encode(image)})
    };
    let invalid = |name: &str, place: usize, patch: &[u8]| json!({"name": name, "place": place, "patch": hex::encode(patch), "error": "Malformed"});
    let longest = [&[0xfd, 3][..], &[7; 509], &[6]].concat();
    let tail = [&[16][..], &[7; 16]].concat();
    let example = [&[0, 20, 7][..], b"literal", &[0x8d, 6, 13, 0, 0xb3, 1, 40], &tail].concat();
    let two_pages = [&[0, 0x81, 4, 0xff, 0x0f][..], &[0, 0x81, 4, 0x80, 0x10]].concat();
    json!({"what": "patch", "page_size": PAGE, "bases": hex::encode(bases), "cases": [
        valid("nothing changed", 0, &[0, 0x80, 8]),
        valid("nothing changed in the last page", 1024, &[0, 0x80, 8]),
        valid("the example of the document", 512, &example),
        valid("as long as the page", 512, &longest),
        valid("ten bytes changed", 512, &[10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0xec, 7]),
        valid("the page before", 512, &[0, 0x81, 8, 0xff, 7]),
        valid("the page behind", 512, &[0, 0x81, 8, 0x80, 8]),
        valid("from the first byte of the bases to the last", 0, &[1, 9, 0xfd, 7, 1, 0, 3, 0x82, 16]),
        valid("copies across the bases of two pages", 0, &[0, 0x81, 8, 0x80, 4]),
        valid("a page without base behind all", 1536, &[0, 0x81, 8, 0xff, 7]),
        valid("there and back", 1024, &two_pages),
        invalid("nothing", 0, &[]),
        invalid("no copy", 0, &[0]),
        invalid("literals cut", 0, &[2, 9]),
        invalid("page not full", 0, &[0, 0xfe, 7]),
        invalid("copy of no bytes", 0, &[0, 0, 0, 0x80, 8]),
        invalid("copy past the page", 0, &[0, 0x82, 8]),
        invalid("literals past the page", 0, &[0, 0xfe, 7, 2, 9, 9]),
        invalid("copy from before the bases", 0, &[0, 0x81, 8, 1]),
        invalid("copy from behind the bases", 1024, &[0, 0x81, 8, 2]),
        invalid("copy of a base that is not there", 1536, &[0, 0x80, 8]),
        invalid("place past the bases", 1537, &[0, 0x81, 8, 0x81, 8]),
        invalid("change of the distance cut", 0, &[0, 0x81, 8]),
        invalid("change of the distance past 32 bits", 0, &[0, 0x81, 8, 0xff, 0xff, 0xff, 0xff, 0x1f]),
        invalid("varint longer than needed", 0, &[0x80, 0, 0x80, 8]),
        invalid("byte after the end", 0, &[0, 0x80, 8, 0]),
        invalid("longer than the page", 512, &[&longest[..510], &[0, 2, 0, 4]].concat()),
    ]})
}

fn entries() -> Value {
    let mut with_pack = record("a.db", &[(1, 5), (2, 0)], 3);
    with_pack.packs = vec![PackRef { name: [6; 16], sealed_len: 9000, pages: 1 }];
    let mut gone = record("b.db", &[], 0);
    (gone.state, gone.kind, gone.is_base, gone.page_size) =
        (DatabaseState::Gone, DatabaseKind::Opaque, false, 0);
    let entry = entry(2, [4; 32], vec![with_pack, gone]);
    let bytes = entry.encode().unwrap();
    let find = |needle: &[u8]| bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    let invalid = |name: &str, at: usize, value: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        json!({"name": name, "bytes": hex::encode(bytes), "error": "Malformed"})
    };
    let (name_a, name_b) = (find(b"a.db"), find(b"b.db"));
    json!({"what": "entries", "cases": [
        {"name": "two databases", "bytes": hex::encode(&bytes), "fields": {
            "archive": ARCHIVE.to_string(), "writer_epoch": 2, "seq": 2, "base_seq": 1, "prev": hex::encode(entry.prev),
            "taken_at_us": entry.taken_at_us, "source_name": entry.source_name, "app_id": entry.app_id,
            "databases": [
                {"name": "a.db", "state": "present", "kind": "plain", "is_base": true, "page_size": 512, "page_count": 3,
                 "packs": [[hex::encode([6; 16]), 9000, 1]], "inline": 2},
                {"name": "b.db", "state": "gone", "kind": "opaque", "is_base": false, "page_size": 0, "page_count": 0,
                 "packs": [], "inline": 0},
            ]}},
        invalid("seq 0", 40, &[0]),
        invalid("base above seq", 48, &[3]),
        invalid("base 0", 48, &[0]),
        invalid("no previous digest", 56, &[0; 32]),
        invalid("first entry with a previous digest", 40, &[1]),
        invalid("source name longer than the limit", 128, &[1, 4]),
        invalid("source name not UTF-8", 130, &[0xff]),
        invalid("database name with a slash", name_a, b"/"),
        invalid("database name with NUL", name_a, &[0]),
        invalid("databases out of order", name_a, b"c"),
        invalid("databases twice", name_b, b"a"),
        invalid("state 3", name_a + 4, &[3]),
        invalid("kind 0", name_a + 5, &[0]),
        invalid("flag 2", name_a + 6, &[2]),
        invalid("gone with pages", name_a + 4, &[2]),
        invalid("page size of the inline pages differs", name_a + 8, &[4]),
        invalid("no page size", name_a + 7, &[0, 0]),
        invalid("more packs than there are bytes", name_a + 47, &[0xff, 0xff, 0]),
        invalid("more packs than the limit", name_a + 47, &[0xff; 4]),
        {"name": "byte after the end", "bytes": hex::encode([&bytes[..], &[0]].concat()), "error": "Malformed"},
        {"name": "cut", "bytes": hex::encode(&bytes[..bytes.len() - 1]), "error": "Malformed"},
        {"name": "nothing", "bytes": "", "error": "Malformed"},
    ]})
}

/// A case is the object, changed by `edits` from left to right, under the name, archive and key given.
fn case(name: &str, edits: &Value, expected: &str) -> Value {
    json!({"name": name, "edits": edits, "error": expected})
}

fn keyring() -> Value {
    let mut rng = KnownRng::new("chatkeep vectors: keyring");
    let key = BackupKey::generate(&mut rng);
    let wrong = BackupKey::generate(&mut rng);
    let roots_at = rng.array::<32>();
    let mut roots = DataRoots::new(&mut Fixed(roots_at));
    roots.add_epoch(&mut Fixed([0x77; 32]));
    let slots = vec![
        Keyslot::Raw,
        Keyslot::Password(rng.bytes(40)),
        Keyslot::Unknown { kind: 200, body: rng.bytes(3) },
    ];
    let bytes = write_keyring(&ARCHIVE, 3, &key, &roots, slots, &mut rng);
    let len = bytes.len();
    let mut cases = vec![
        json!({"name": "as written", "edits": [], "roots": {"0": hex::encode(roots_at), "1": hex::encode([0x77; 32])}}),
        json!({"name": "wrong key", "edits": [], "key": hex::encode(wrong.expose()), "error": "WrongKey"}),
        json!({"name": "wrong archive", "edits": [], "archive": hex::encode([1; 16]), "error": "NotThisObject"}),
        json!({"name": "wrong counter", "edits": [], "counter": 4, "error": "NotThisObject"}),
        case("foreign magic", &json!([{"flip": [0, 5]}]), "NotOurs"),
        case("nothing", &json!([{"truncate": 0}]), "Truncated"),
        case(
            "newer version",
            &json!([{"put": [8, "02"]}, {"mend_header": true}, {"mend_end": true}]),
            "NewerFormat 2",
        ),
        case("appended byte", &json!([{"append": "00"}]), "Damaged trailing"),
        case(
            "bytes past the limit",
            &json!([{"put": [16, "0100100000000000"]}, {"mend_header": true}]),
            "Damaged header",
        ),
    ];
    for (name, at, expected) in [
        ("version", 8, "Damaged header"),
        ("kind", 9, "Damaged header"),
        ("key epoch", 12, "Damaged header"),
        ("length", 16, "Damaged header"),
        ("salt", 30, "Damaged header"),
        ("check value", 60, "Damaged header"),
        ("header checksum", 90, "Damaged header"),
        ("archive", 96, "Damaged keyring"),
        ("counter", 112, "Damaged keyring"),
        ("number of slots", 120, "Damaged keyring"),
        ("slot", 128, "Damaged keyring"),
        ("wrapped root", len - 60, "Damaged keyring"),
        ("MAC", len - 20, "Damaged keyring"),
        ("checksum", len - 1, "Damaged keyring"),
    ] {
        cases.push(case(&format!("flipped bit in {name}"), &json!([{"flip": [at, 3]}]), expected));
    }
    for (name, at) in [("check value", 60), ("salt", 30)] {
        let edits = json!([{"flip": [at, 3]}, {"mend_header": true}, {"mend_end": true}]);
        cases.push(case(&format!("{name} replaced, checksums mended"), &edits, "WrongKey"));
    }
    for (name, at) in [("slot", 128), ("wrapped root", len - 60), ("MAC", len - 20)] {
        let edits = json!([{"flip": [at, 3]}, {"mend_end": true}]);
        cases.push(case(&format!("{name} replaced, checksum mended"), &edits, "Damaged keyring"));
    }
    let too_many = format!("{:02x}", MAX_KEYSLOTS + 1);
    cases.push(case(
        "more slots than the limit",
        &json!([{"put": [120, too_many]}, {"mend_end": true}]),
        "Damaged keyring",
    ));
    let epochs_at = len - 8 - 32 - 2 * 52 - 2;
    let too_many = hex::encode((MAX_KEY_EPOCHS as u16 + 1).to_le_bytes());
    cases.push(case(
        "more epochs than the limit",
        &json!([{"put": [epochs_at, too_many]}, {"mend_end": true}]),
        "Damaged keyring",
    ));
    cases.push(case(
        "epochs out of order",
        &json!([{"put": [epochs_at + 2, "01"]}, {"mend_end": true}]),
        "Damaged keyring",
    ));
    for at in [7, 8, 95, 96, 112, 120, 121, len - 40, len - 8, len - 1] {
        cases.push(case(&format!("cut to {at} bytes"), &json!([{"truncate": at}]), "Truncated"));
    }
    json!({"what": "keyring", "archive": ARCHIVE.to_string(), "counter": 3, "key": hex::encode(key.expose()),
           "digits": key.to_digits().as_str(), "object": hex::encode(&bytes), "cases": cases})
}

/// Gives the same 32 bytes again and again: roots that a vector can name.
struct Fixed([u8; 32]);

impl rand_core::RngCore for Fixed {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }
    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        dest.copy_from_slice(&self.0[..dest.len()]);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl rand_core::CryptoRng for Fixed {}

fn objects() -> Value {
    let mut rng = KnownRng::new("chatkeep vectors: objects");
    let key = BackupKey::generate(&mut rng);
    let root = rng.array::<32>();
    let roots = DataRoots::new(&mut Fixed(root));
    let keyring = write_keyring(&ARCHIVE, 1, &key, &roots, vec![Keyslot::Raw], &mut rng);
    let sealed_chunk = CHUNK_LEN + TAG_LEN;

    let name = ObjectName::Entry(7);
    let large = rng.bytes(2 * CHUNK_LEN + 1000);
    let large_sealed = seal(&ARCHIVE, ObjectName::Pack([0x5a; 16]), &roots, &large, 3, &mut rng);
    let mut objects = serde_json::Map::new();
    let mut add = |label: &str, name: ObjectName, sealed: &[u8]| {
        let key = name.store_key(&ARCHIVE);
        objects.insert(label.to_owned(), json!({"store_key": key, "sealed": hex::encode(sealed)}));
    };
    add("three chunks", ObjectName::Pack([0x5a; 16]), &large_sealed);
    add("small", name, &seal(&ARCHIVE, name, &roots, b"small", 3, &mut rng));
    add("empty", name, &seal(&ARCHIVE, name, &roots, b"", 3, &mut rng));
    let mut newer = roots.clone();
    newer.add_epoch(&mut rng);
    add("epoch 1", name, &seal(&ARCHIVE, name, &newer, b"later", 3, &mut rng));

    let frame = zstd::bulk::compress(b"plaintext", 3).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; MAX_PLAINTEXT_LEN + 1], 3).unwrap();
    let mut dirty = stream(&frame, 9);
    *dirty.last_mut().unwrap() = 1;
    let mut long_frame = stream(&frame, 9);
    long_frame[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let bodies = [
        ("bomb that claims little", stream(&bomb, 9)),
        ("bomb that says so", stream(&bomb, MAX_PLAINTEXT_LEN as u64 + 1)),
        ("plaintext longer than claimed", stream(&frame, 8)),
        ("plaintext shorter than claimed", stream(&frame, 10)),
        ("two frames", stream(&[&frame[..], &frame].concat(), 18)),
        ("skippable frame", stream(&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], 0)),
        ("a frame after the one that counts", stream(&[&frame[..], &frame].concat(), 9)),
        ("no frame", stream(&[], 0)),
        ("padding that is not zero", dirty),
        ("padding longer than needed", [stream(&frame, 9), vec![0; 256]].concat()),
        ("frame longer than the stream", long_frame),
    ];
    for (label, body) in &bodies {
        add(label, name, &seal_by_hand(&root, 0, rng.array(), &ARCHIVE, name, body));
    }

    let opens = |object: &str, plaintext: &[u8]| {
        json!({"name": format!("{object}, as written"), "object": object, "edits": [],
               "len": plaintext.len(), "blake3": blake3::hash(plaintext).to_hex().as_str()})
    };
    let on = |object: &str, name: &str, edits: Value, expected: &str| json!({"name": name, "object": object, "edits": edits, "error": expected});
    let mut cases = vec![opens("three chunks", &large), opens("small", b"small"), opens("empty", b"")];
    cases.push(on("epoch 1", "key epoch not in the keyring", json!([]), "UnknownKeyEpoch 1"));
    for (label, _) in &bodies {
        cases.push(on(label, label, json!([]), "Damaged body"));
    }
    let named = |what: &str, store_key: String| json!({"name": what, "object": "small", "edits": [], "as": store_key, "error": "NotThisObject"});
    cases.push(named("another entry's name", ObjectName::Entry(8).store_key(&ARCHIVE)));
    cases.push(named("a pack's name", ObjectName::Pack([1; 16]).store_key(&ARCHIVE)));
    cases.push(named("another archive", name.store_key(&ArchiveId([1; 16]))));
    for (object, regions) in [
        ("small", vec![("chunk 0", HEADER_LEN), ("tag of chunk 0", HEADER_LEN + 4096)]),
        (
            "three chunks",
            vec![
                ("chunk 0", HEADER_LEN),
                ("tag of chunk 0", HEADER_LEN + CHUNK_LEN),
                ("chunk 1", HEADER_LEN + sealed_chunk),
                ("tag of chunk 1", HEADER_LEN + sealed_chunk + CHUNK_LEN + 15),
                ("chunk 2", HEADER_LEN + 2 * sealed_chunk),
                ("tag of chunk 2", large_sealed.len() - 1),
            ],
        ),
    ] {
        for (region, at) in regions {
            let chunk = &region[region.len() - 1..];
            let name = format!("{object}: flipped bit in {region}");
            cases.push(on(object, &name, json!([{"flip": [at, 6]}]), &format!("Damaged chunk {chunk}")));
        }
        for (field, at) in [
            ("version", 8),
            ("kind", 9),
            ("zeros", 10),
            ("key epoch", 12),
            ("length", 16),
            ("salt", 24),
            ("commitment", 87),
            ("checksum", 95),
        ] {
            let name = format!("{object}: flipped bit in {field}");
            cases.push(on(object, &name, json!([{"flip": [at, 0]}]), "Damaged header"));
        }
        cases.push(on(object, &format!("{object}: foreign magic"), json!([{"flip": [7, 0]}]), "NotOurs"));
        cases.push(on(
            object,
            &format!("{object}: appended byte"),
            json!([{"append": "00"}]),
            "Damaged trailing",
        ));
        cases.push(on(
            object,
            &format!("{object}: newer version"),
            json!([{"put": [8, "02"]}, {"mend_header": true}]),
            "NewerFormat 2",
        ));
        cases.push(on(
            object,
            &format!("{object}: length past the limit"),
            json!([{"put": [16, "0100800400000000"]}, {"mend_header": true}]),
            "Damaged header",
        ));
        cases.push(on(
            object,
            &format!("{object}: replaced salt"),
            json!([{"flip": [24, 0]}, {"mend_header": true}]),
            "NotThisObject",
        ));
        cases.push(on(
            object,
            &format!("{object}: zeros that are not"),
            json!([{"put": [10, "01"]}, {"mend_header": true}]),
            "Damaged header",
        ));
    }
    for at in [
        0,
        7,
        8,
        95,
        96,
        HEADER_LEN + sealed_chunk - 1,
        HEADER_LEN + sealed_chunk,
        HEADER_LEN + sealed_chunk + 1,
        HEADER_LEN + 2 * sealed_chunk,
        large_sealed.len() - 1,
    ] {
        cases.push(on("three chunks", &format!("cut to {at} bytes"), json!([{"truncate": at}]), "Truncated"));
    }
    for (len, expected) in [
        (HEADER_LEN, "Damaged header"),
        (HEADER_LEN + sealed_chunk + 1, "Damaged header"),
        (HEADER_LEN + sealed_chunk, "Damaged chunk 0"),
    ] {
        let len_hex = hex::encode((len as u64).to_le_bytes());
        let edits = json!([{"truncate": len}, {"put": [16, len_hex]}, {"mend_header": true}]);
        cases.push(on(
            "three chunks",
            &format!("cut to {len} bytes, length and checksum mended"),
            edits,
            expected,
        ));
    }
    cases.push(on(
        "three chunks",
        "chunks 0 and 1 swapped",
        json!([{"swap_chunks": [0, 1]}]),
        "Damaged chunk 0",
    ));
    cases.push(on(
        "small",
        "a keyring in its place",
        json!([{"replace": hex::encode(&keyring)}]),
        "NotThisObject",
    ));
    json!({"what": "objects", "archive": ARCHIVE.to_string(), "keyring_counter": 1, "key": hex::encode(key.expose()),
           "keyring": hex::encode(&keyring), "objects": objects, "cases": cases})
}

fn state_digest(digest_key: &[u8; 32], image: &[u8]) -> [u8; 16] {
    let mut digest = [0; 16];
    for (index, page) in image.chunks(PAGE).enumerate() {
        let mut hasher = blake3::Hasher::new_keyed(digest_key);
        hasher.update(&(index as u32 + 1).to_le_bytes()).update(page);
        digest.iter_mut().zip(hasher.finalize().as_bytes()).for_each(|(all, byte)| *all ^= byte);
    }
    digest
}

/// A small archive as a store on disk: two databases, a rotation, a shrunken database, one that went.
fn store(folder: &Path) {
    let mut rng = KnownRng::new("chatkeep vectors: store");
    let (first_key, key) = (BackupKey::generate(&mut rng), BackupKey::generate(&mut rng));
    let mut roots = DataRoots::new(&mut rng);
    let _ = fs::remove_dir_all(folder);
    let put = |name: ObjectName, bytes: &[u8]| {
        let path = folder.join(name.store_key(&ARCHIVE));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put(
        ObjectName::Keyring(1),
        &write_keyring(&ARCHIVE, 1, &first_key, &roots, vec![Keyslot::Raw], &mut rng),
    );

    // entry 1: 40 pages in two packs, of which pages 5 and 20 were written again meanwhile; 20 also inline
    let mut image = rng.bytes(40 * PAGE);
    image[10 * PAGE..12 * PAGE].fill(0);
    let mut first = record("messages.db", &[], 40);
    let mut inline = PageSet::builder(PAGE as u32);
    inline.push(20, &image[19 * PAGE..20 * PAGE]);
    first.inline = inline.finish();
    for (from, to) in [(1u32, 25u32), (5, 40)] {
        let mut set = PageSet::builder(PAGE as u32);
        for pgno in (from..=to).filter(|pgno| from == 1 || *pgno == 5 || *pgno > 25) {
            let at = (pgno as usize - 1) * PAGE;
            let stale = from == 1 && [5, 20].contains(&pgno);
            set.push(pgno, if stale { &[0xee; PAGE] } else { &image[at..at + PAGE] });
        }
        let set = set.finish();
        let plaintext = set.encode();
        let name = pack_name(&roots, &plaintext);
        let sealed = seal(&ARCHIVE, ObjectName::Pack(name), &roots, &plaintext, 3, &mut rng);
        put(ObjectName::Pack(name), &sealed);
        first.packs.push(PackRef { name, sealed_len: sealed.len() as u64, pages: set.len() as u32 });
    }
    let digest_key = [9; 32];
    first.state_digest = state_digest(&digest_key, &image);
    first.changed_pages = 40;
    let mut notes = record("notes.db", &[(1, 1), (2, 2)], 2);
    notes.state_digest = state_digest(&digest_key, &[[1; PAGE], [2; PAGE]].concat());
    let mut expected = vec![
        json!({"seq": 1, "database": "messages.db", "blake3": blake3::hash(&image).to_hex().as_str(), "pages": 40}),
        json!({"seq": 1, "database": "notes.db", "blake3": blake3::hash(&[[1; PAGE], [2; PAGE]].concat()).to_hex().as_str(), "pages": 2}),
    ];
    let sealed = seal(
        &ARCHIVE,
        ObjectName::Entry(1),
        &roots,
        &entry(1, [0; 32], vec![first, notes]).encode().unwrap(),
        3,
        &mut rng,
    );
    put(ObjectName::Entry(1), &sealed);
    let mut prev = entry_digest(&sealed);

    // rotation, then entry 2: page 3 changed, the database shrank to 30 pages; entry 3: grew to 31, the other went
    roots.add_epoch(&mut rng);
    put(ObjectName::Keyring(2), &write_keyring(&ARCHIVE, 2, &key, &roots, vec![Keyslot::Raw], &mut rng));
    for (seq, pages) in [(2u64, 30usize), (3, 31)] {
        image.resize(pages * PAGE, 0x33);
        image[2 * PAGE..3 * PAGE].fill(seq as u8);
        let mut changes = vec![(3, seq as u8)];
        if seq == 3 {
            changes.push((31, 0x33));
        }
        let mut messages = record("messages.db", &changes, pages as u32);
        messages.is_base = false;
        messages.state_digest = state_digest(&digest_key, &image);
        expected.push(json!({"seq": seq, "database": "messages.db", "blake3": blake3::hash(&image).to_hex().as_str(), "pages": pages}));
        let mut databases = vec![messages];
        if seq == 3 {
            let mut gone = record("notes.db", &[], 0);
            (gone.state, gone.is_base, gone.page_size, gone.state_digest) =
                (DatabaseState::Gone, false, 0, [0; 16]);
            databases.push(gone);
            expected.push(json!({"seq": 3, "database": "notes.db", "gone": true}));
        }
        let sealed = seal(
            &ARCHIVE,
            ObjectName::Entry(seq),
            &roots,
            &entry(seq, prev, databases).encode().unwrap(),
            3,
            &mut rng,
        );
        put(ObjectName::Entry(seq), &sealed);
        prev = entry_digest(&sealed);
    }
    let about = json!({"archive": ARCHIVE.to_string(), "digits": key.to_digits().as_str(),
                       "digits_before_rotation": first_key.to_digits().as_str(), "restores": expected});
    fs::write(folder.join("expected.json"), format!("{}\n", serde_json::to_string_pretty(&about).unwrap()))
        .unwrap();
}
