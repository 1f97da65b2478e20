//! Every file in tests/vectors/format: what must decode does, and what must not gives the error written beside it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use chatkeep_crypto::{BackupKey, DigitsError, OpenError, open, open_keyring, read_keyring};
use chatkeep_format::{
    ArchiveId, CHUNK_LEN, Entry, FileSet, FormatError, HEADER_LEN, ObjectName, PageSet, PatchMaker, TAG_LEN,
    apply_patch, padme,
};
use serde_json::Value;
use support::json::{checksum_json, entry_json, files_json, pages_json};
use support::{error_name, mend_end, mend_header};

#[test]
fn every_vector_gives_what_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/format");
    let mut seen = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let what = file["what"].as_str().unwrap();
        let check: fn(&Value, &Value) -> String = match what {
            "digits" => digits,
            "padme" => padme_value,
            "pages" => pages,
            "patches" => patch,
            "files" => files,
            "entries" => entry,
            "keyring" => keyring,
            "objects" => object,
            other => panic!("nothing checks {other}"),
        };
        let cases = file["cases"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let expected = case.get("error").map_or("opens", |error| error.as_str().unwrap());
            assert_eq!(check(&file, case), expected, "{}: {}", path.display(), case["name"]);
        }
        seen.insert(what.to_owned());
    }
    assert_eq!(seen.len(), 8, "{seen:?}");
}

/// Hexadecimal digits; or `[[digits, how often], …]` for what is long and all alike.
fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Array(parts) => {
            parts.iter().flat_map(|part| bytes(&part[0]).repeat(number(&part[1]))).collect()
        }
        digits => hex::decode(digits.as_str().unwrap()).unwrap(),
    }
}

fn key(value: &Value) -> BackupKey {
    BackupKey::from_bytes(bytes(value).try_into().unwrap())
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn opens() -> String {
    "opens".to_owned()
}

fn digits(_: &Value, case: &Value) -> String {
    match BackupKey::parse_digits(case["digits"].as_str().unwrap()) {
        Ok(read) => {
            assert_eq!(read, key(&case["key"]));
            opens()
        }
        Err(DigitsError::NotHex { group, .. }) => format!("NotHex {group}"),
        Err(DigitsError::GroupLength { group, .. }) => format!("GroupLength {group}"),
        Err(DigitsError::Length { .. }) => "Length".to_owned(),
        Err(DigitsError::CheckGroup) => "CheckGroup".to_owned(),
        Err(other) => panic!("vectors have no word for {other}"),
    }
}

fn padme_value(_: &Value, case: &Value) -> String {
    assert_eq!(padme(case[0].as_u64().unwrap()), case[1].as_u64().unwrap());
    opens()
}

fn malformed(error: &FormatError) -> String {
    assert!(matches!(error, FormatError::Malformed { .. }), "{error}");
    "Malformed".to_owned()
}

fn pages(_: &Value, case: &Value) -> String {
    let set = match PageSet::decode(bytes(&case["bytes"])) {
        Ok(set) => set,
        Err(error) => return malformed(&error),
    };
    assert_eq!(pages_json(&set), case["pages"]);
    assert_eq!(checksum_json(&set), case["bases_checksum"]);
    assert_eq!(set.encode(), bytes(&case["bytes"]));
    opens()
}

fn files(_: &Value, case: &Value) -> String {
    let set = match FileSet::decode(&bytes(&case["bytes"])) {
        Ok(set) => set,
        Err(error) => return malformed(&error),
    };
    assert_eq!(files_json(&set), case["files"]);
    assert_eq!(set.encode(), bytes(&case["bytes"]));
    opens()
}

fn patch(file: &Value, case: &Value) -> String {
    let (bases, place) = (bytes(&file["bases"]), number(&case["place"]));
    let mut image = vec![0; number(&file["page_size"])];
    if let Err(error) = apply_patch(&bases, place, &bytes(&case["patch"]), &mut image) {
        return malformed(&error);
    }
    assert_eq!(image, bytes(&case["page"]));
    let mut again = Vec::new();
    if PatchMaker::new(&bases).make_patch(place, &image, &mut again) {
        let mut image_again = vec![0; image.len()];
        apply_patch(&bases, place, &again, &mut image_again).unwrap();
        assert_eq!(image_again, image);
    }
    opens()
}

fn entry(_: &Value, case: &Value) -> String {
    let entry = match Entry::decode(&bytes(&case["bytes"])) {
        Ok(entry) => entry,
        Err(error) => return malformed(&error),
    };
    assert_eq!(entry_json(&entry), case["fields"]);
    assert_eq!(entry.encode().unwrap(), bytes(&case["bytes"]));
    opens()
}

fn result_name<T>(result: Result<T, OpenError>, check: impl FnOnce(T)) -> String {
    match result {
        Ok(value) => {
            check(value);
            opens()
        }
        Err(error) => error_name(&error),
    }
}

fn keyring(file: &Value, case: &Value) -> String {
    let field = |name: &str| case.get(name).unwrap_or(&file[name]).clone();
    let object = edited(bytes(&file["object"]), &case["edits"]);
    let archive: ArchiveId = field("archive").as_str().unwrap().parse().unwrap();
    let counter = field("counter").as_u64().unwrap();
    let result = read_keyring(&object, &archive, counter)
        .and_then(|keyring| open_keyring(&keyring, &key(&field("key"))));
    result_name(result, |roots| assert_eq!(roots.epochs().len(), case["roots"].as_object().unwrap().len()))
}

fn object(file: &Value, case: &Value) -> String {
    let archive: ArchiveId = file["archive"].as_str().unwrap().parse().unwrap();
    let keyring = read_keyring(&bytes(&file["keyring"]), &archive, 1).unwrap();
    let roots = open_keyring(&keyring, &key(&file["key"])).unwrap();
    let object = &file["objects"][case["object"].as_str().unwrap()];
    let sealed = edited(bytes(&object["sealed"]), &case["edits"]);
    let store_key = case.get("as").unwrap_or(&object["store_key"]);
    let (archive, name) = ObjectName::parse(store_key.as_str().unwrap()).unwrap();
    result_name(open(&archive, name, &roots, &sealed), |plaintext| {
        assert_eq!(plaintext.len(), number(&case["len"]));
        assert_eq!(blake3::hash(&plaintext).to_hex().as_str(), case["blake3"]);
    })
}

fn edited(mut object: Vec<u8>, edits: &Value) -> Vec<u8> {
    for edit in edits.as_array().unwrap() {
        let (operation, argument) = edit.as_object().unwrap().iter().next().unwrap();
        match operation.as_str() {
            "flip" => object[number(&argument[0])] ^= 1 << number(&argument[1]),
            "truncate" => object.truncate(number(argument)),
            "append" => object.extend(bytes(argument)),
            "replace" => object = bytes(argument),
            "put" => {
                let at = number(&argument[0]);
                let put = bytes(&argument[1]);
                object[at..at + put.len()].copy_from_slice(&put);
            }
            "swap_chunks" => {
                let start = |index: &Value| HEADER_LEN + number(index) * (CHUNK_LEN + TAG_LEN);
                let (first, second) = (start(&argument[0]), start(&argument[1]));
                for offset in 0..CHUNK_LEN + TAG_LEN {
                    object.swap(first + offset, second + offset);
                }
            }
            "mend_header" => mend_header(&mut object),
            "mend_end" => mend_end(&mut object),
            other => panic!("no such edit: {other}"),
        }
    }
    object
}
