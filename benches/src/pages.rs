//! The least that a capture of changed pages can cost: reading them, and compressing them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::cpu::cpu_seconds;

const PAGE: usize = 4096;
/// Pages that are compressed together, as in an archive.
const GROUP: usize = 64;
/// The service's default.
const LEVEL: i32 = 1;

/// Compares two checkpointed databases, and takes the CPU time of reading and compressing what differs in `after`.
pub(crate) fn reference(before: &Path, after: &Path, repeats: usize) -> Result<Value> {
    let changed = changed(&std::fs::read(before)?, &std::fs::read(after)?);
    ensure!(repeats > 0, "no repeats, no median");
    let mut times = Vec::new();
    let mut compressed = 0;
    for _ in 0..repeats {
        let started = cpu_seconds();
        compressed = read_and_compress(after, &changed)?;
        times.push(cpu_seconds() - started);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(json!({
        "pages": changed.len(), "bytes": changed.len() * PAGE, "compressed": compressed, "cpu_s": times[times.len() / 2],
    }))
}

/// Numbers of the pages of `after` that are new or different, from 0.
fn changed(before: &[u8], after: &[u8]) -> Vec<u64> {
    let mut old = before.chunks(PAGE);
    let pages = after.chunks(PAGE).enumerate();
    pages.filter(|(_, page)| old.next() != Some(*page)).map(|(number, _)| number as u64).collect()
}

fn read_and_compress(file: &Path, pages: &[u64]) -> Result<usize> {
    let file = File::open(file)?;
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    let mut bytes = 0;
    for group in pages.chunks(GROUP) {
        let mut plain = vec![0; group.len() * PAGE];
        for (number, page) in group.iter().zip(plain.chunks_mut(PAGE)) {
            file.read_exact_at(page, number * PAGE as u64)?;
        }
        bytes += compressor.compress(&plain)?.len();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_pages_and_different_pages_have_changed() {
        let page = |byte| vec![byte; PAGE];
        let before = [page(1), page(2), page(3)].concat();
        let after = [page(1), page(9), page(3), page(4)].concat();
        assert_eq!(changed(&before, &after), [1, 3]);
        assert!(changed(&before, &before).is_empty());
    }
}
