//! Where files are cut.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use chatkeep_attachments::{CHUNK_LEN_MAX, ChunkId};
use common::{Cut, Tree, noise, read, settle};

fn cut(content: &[u8]) -> Cut {
    let tree = Tree::new();
    tree.write("file", content);
    settle();
    let cut = read(&tree.folder(), &tree.find("file")).unwrap();
    assert_eq!(cut.content, content);
    cut
}

fn ids(cut: &Cut) -> BTreeSet<ChunkId> {
    cut.chunks.iter().map(|chunk| chunk.0).collect()
}

/// Lengths agree with a reading of the paper in another language. If this fails after an update of the library, all large
/// files would be stored anew.
#[test]
fn the_same_bytes_are_cut_where_they_always_were() {
    let cut = cut(&noise("vector", 12 << 20));
    let lengths: Vec<u64> = cut.chunks.iter().map(|chunk| chunk.1).collect();
    let expected = [
        302_794, 333_961, 1_594_330, 1_654_369, 599_452, 4_118_832, 532_026, 1_401_209, 296_869, 1_259_753,
        489_317,
    ];
    assert_eq!(lengths, expected);
    let ids: Vec<u8> = cut.chunks.iter().flat_map(|chunk| chunk.0).collect();
    assert_eq!(blake3::hash(&ids).to_hex()[..32], *"123c478220ff64dc4819294f876e29d4");
}

#[test]
fn an_insertion_changes_the_chunks_around_it_only() {
    let mut content = noise("insertion", 20 << 20);
    let before = cut(&content);
    content.splice((10 << 20)..(10 << 20), *b"a few bytes more");
    let after = cut(&content);
    let new = ids(&after).difference(&ids(&before)).count();
    assert!(before.chunks.len() >= 10, "{}", before.chunks.len());
    assert!((1..=2).contains(&new), "{new} new of {}", after.chunks.len());
}

#[test]
fn an_appended_log_keeps_its_chunks() {
    let mut content = noise("log", 9 << 20);
    let before = cut(&content);
    content.extend(noise("more", 3 << 20));
    assert_eq!(cut(&content).chunks[..before.chunks.len() - 1], before.chunks[..before.chunks.len() - 1]);
}

#[test]
fn chunks_have_bounds() {
    for content in [vec![0; 18 << 20], noise("bounds", 18 << 20)] {
        let cut = cut(&content);
        let (last, rest) = cut.chunks.split_last().unwrap();
        assert!((1..=CHUNK_LEN_MAX as u64).contains(&last.1));
        assert!(rest.iter().all(|chunk| (256 << 10..=CHUNK_LEN_MAX as u64).contains(&chunk.1)));
    }
}

/// Cuts do not depend on how much of the file is in memory.
#[test]
fn a_file_is_cut_as_if_it_were_in_memory_as_a_whole() {
    let content = noise("whole", 25 << 20);
    let whole = fastcdc::v2020::FastCDC::new(&content, 256 << 10, 1 << 20, 4 << 20);
    let expected: Vec<u64> = whole.map(|chunk| chunk.length as u64).collect();
    let lengths: Vec<u64> = cut(&content).chunks.iter().map(|chunk| chunk.1).collect();
    assert_eq!(lengths, expected);
}
