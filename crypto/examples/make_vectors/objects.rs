//! The vectors of sealed objects: a keyring, entries and packs, and everything that can be wrong with them.

use chatkeep_crypto::{BackupKey, DataRoots, seal, write_keyring};
use chatkeep_format::limits::{MAX_KEY_EPOCHS, MAX_KEYSLOTS, MAX_PLAINTEXT_LEN};
use chatkeep_format::{ArchiveId, CHUNK_LEN, HEADER_LEN, Keyslot, ObjectName, TAG_LEN};
use serde_json::{Value, json};

use crate::ARCHIVE;
use crate::support::{KnownRng, seal_by_hand, stream};

/// A case is the object, changed by `edits` from left to right, under the name, archive and key given.
fn case(name: &str, edits: &Value, expected: &str) -> Value {
    json!({"name": name, "edits": edits, "error": expected})
}

pub(crate) fn keyring() -> Value {
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

pub(crate) fn objects() -> Value {
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
