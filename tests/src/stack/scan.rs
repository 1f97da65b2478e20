//! Looks for what must not be readable: texts, passwords, digits and keys in files that others can see.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// What to look for, with a name for the report: the thing itself should not end in a log.
#[derive(Clone)]
pub struct Needle {
    /// What it is.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Something was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The needle's name.
    pub needle: String,
    /// The file that has it.
    pub file: PathBuf,
    /// Where in the file; a name of a file has it at 0.
    pub at: usize,
}

/// A text, as it is and as UTF-16, which some programs make of it.
pub fn text(name: &str, text: &str) -> Vec<Needle> {
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    vec![
        Needle { name: name.to_owned(), bytes: text.as_bytes().to_vec() },
        Needle { name: format!("{name} in UTF-16"), bytes: wide },
    ]
}

/// 64 digits, however they are written: as they were typed, bare, in capitals, and the bytes that they stand for.
pub fn digits(name: &str, digits: &str) -> Vec<Needle> {
    let bare: String =
        digits.chars().filter(char::is_ascii_hexdigit).take(64).collect::<String>().to_lowercase();
    let raw = (0..bare.len() / 2)
        .filter_map(|i| u8::from_str_radix(bare.get(2 * i..2 * i + 2)?, 16).ok())
        .collect();
    let needle = |kind: &str, bytes: Vec<u8>| Needle { name: format!("{name} {kind}"), bytes };
    vec![
        needle("as written", digits.trim().as_bytes().to_vec()),
        // 24 digits in a row are enough to recognise a part of a key
        needle("in hexadecimal", bare.as_bytes()[..24].to_vec()),
        needle("in capitals", bare.to_uppercase().as_bytes()[..24].to_vec()),
        needle("as bytes", raw),
    ]
}

/// Looks through files and whole folders: contents and names.
pub fn scan(places: &[PathBuf], needles: &[Needle]) -> Result<Vec<Hit>> {
    let mut hits = Vec::new();
    for place in places {
        walk(place, &mut |file| {
            let bytes = match std::fs::read(file) {
                Ok(bytes) => bytes,
                // a program that still runs may have replaced it
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error).with_context(|| file.display().to_string()),
            };
            let name = file.file_name().map(|name| name.as_encoded_bytes().to_vec()).unwrap_or_default();
            for needle in needles {
                let found = find(&bytes, &needle.bytes).or_else(|| find(&name, &needle.bytes).map(|_| 0));
                hits.extend(found.map(|at| Hit { needle: needle.name.clone(), file: file.to_owned(), at }));
            }
            Ok(())
        })?;
    }
    Ok(hits)
}

/// All files below a folder, or the one file that `place` is.
pub fn walk(place: &Path, visit: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    let Ok(about) = std::fs::symlink_metadata(place) else { return Ok(()) };
    if about.is_file() {
        return visit(place);
    }
    if about.is_dir() {
        let Ok(entries) = std::fs::read_dir(place) else { return Ok(()) };
        let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for entry in entries {
            walk(&entry, visit)?;
        }
    }
    Ok(())
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| *byte == first)?;
        if bytes[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn finds_texts_and_keys_in_every_shape_and_in_names() {
        let folder = tempfile::tempdir().unwrap();
        let key = "00112233445566778899aabbccddeeff".repeat(2);
        let raw: Vec<u8> = (0..2).flat_map(|_| (0..16).map(|i| i * 17)).collect();
        let needles = [text("message", "hello there"), digits("key", &key)].concat();
        let deep = folder.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("one"), b"..hhello there..").unwrap();
        std::fs::write(deep.join("hello there"), b"").unwrap();
        std::fs::write(
            deep.join("wide"),
            "x".encode_utf16()
                .chain("hello there".encode_utf16())
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<u8>>(),
        )
        .unwrap();
        std::fs::write(deep.join("raw"), [b"x", &raw[..]].concat()).unwrap();
        std::fs::write(deep.join("capital"), key.to_uppercase()).unwrap();
        std::fs::write(deep.join("clean"), b"hello  there").unwrap();
        let hits = scan(&[folder.path().to_owned()], &needles).unwrap();
        let found: Vec<&str> =
            hits.iter().map(|hit| hit.file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(found, ["capital", "hello there", "one", "raw", "wide"]);
    }
}
