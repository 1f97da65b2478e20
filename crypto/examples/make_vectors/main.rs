//! Writes the test vectors of docs/format.md: `cargo run -p chatkeep-crypto --example make_vectors -- tests/vectors`.
//!
//! The same bytes in every run, as long as zstd compresses as it does now. Vectors that are published stay: run it
//! only to add some, and look at the difference.
#![allow(clippy::unwrap_used, reason = "a tool for this repository: it stops where it fails")]

mod archive;
mod entries;
mod hostile;
mod objects;
mod sets;
mod store;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;

use chatkeep_crypto::BackupKey;
use chatkeep_format::{ArchiveId, padme};
use serde_json::{Value, json};

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
        ("pages.json", sets::pages()),
        ("files.json", sets::files()),
        ("patches.json", sets::patches()),
        ("entries.json", entries::entries()),
        ("keyring.json", objects::keyring()),
        ("objects.json", objects::objects()),
    ] {
        write_json(&folder.join(file), &content);
    }
    write_json(&out.join("store/expected.json"), &store::write(&out.join("store")));
    write_json(&out.join("hostile/expected.json"), &hostile::write(&out.join("hostile")));
}

fn write_json(path: &Path, content: &Value) {
    fs::write(path, format!("{}\n", serde_json::to_string_pretty(content).unwrap())).unwrap();
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
