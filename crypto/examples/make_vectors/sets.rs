//! The vectors of page sets and file sets.

use chatkeep_format::limits::{MAX_BASES_LEN, MAX_FILE_CHUNKS, MAX_FILES, MAX_PAGES, MAX_PLAINTEXT_LEN};
use chatkeep_format::{ChunkRef, FileOp, FileRecord, FileSet, PageSet, apply_patch};
use serde_json::{Value, json};

use crate::PAGE;
use crate::support::json::{checksum_json, files_json, pages_json};

fn malformed(name: &str, bytes: &[u8]) -> Value {
    json!({"name": name, "bytes": hex::encode(bytes), "error": "Malformed"})
}

fn raw_pages(page_size: u32, count: u32, index: &[u8], images: &[u8]) -> Vec<u8> {
    let head = [page_size.to_le_bytes(), count.to_le_bytes(), (index.len() as u32).to_le_bytes()].concat();
    [&head, index, images].concat()
}

pub(crate) fn pages() -> Value {
    let image = [7; PAGE];
    let valid = |name: &str, bytes: Vec<u8>, pages: Value| {
        let set = PageSet::decode(bytes.clone()).expect(name);
        assert_eq!(pages, pages_json(&set), "{name}");
        json!({"name": name, "bytes": hex::encode(bytes), "pages": pages, "bases_checksum": checksum_json(&set)})
    };
    let full = hex::encode(image);
    let zeros = |count: usize| {
        let head = [512, count as u32, count as u32 * 2].map(u32::to_le_bytes).concat();
        json!([[hex::encode(head), 1], ["0100", count]])
    };
    let good = raw_pages(512, 2, &[3, 1, 0xc8, 1, 0], &image);
    let patched = [&b"checksum"[..], &image, b"first", b"later"].concat();
    let patched = raw_pages(512, 4, &[3, 6, 5, 1, 1, 1, 4, 5, 2, 5], &patched);
    let (first, later) = (hex::encode("first"), hex::encode("later"));
    let one = |index: &[u8], images: &[u8]| raw_pages(512, 1, index, images);
    let based = |rest: &[u8]| [b"checksum", rest].concat();
    // of the largest pages, so that there are few
    let bases = |count: usize| {
        let head = [65_536, count as u32, count as u32 * 2].map(u32::to_le_bytes).concat();
        json!([[hex::encode(head), 1], ["0104", count], [hex::encode("checksum"), 1]])
    };
    let most = MAX_BASES_LEN / 65_536;
    let most_pages: Value = (1..=most).map(|pgno| json!([pgno, true, "zero"])).collect();
    json!({"what": "pages", "cases": [
        valid("empty", raw_pages(0, 0, &[], &[]), json!([])),
        valid("one image, one of zeros", good.clone(), json!([[3, false, "image", full], [203, false, "zero"]])),
        valid("highest page number", one(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0], &[]), json!([[u32::MAX, false, "zero"]])),
        valid("patches after the images", patched.clone(), json!([
            [3, true, "patch", first], [4, false, "image", full], [5, true, "zero"], [10, false, "patch", later]])),
        valid("shortest patch", one(&[1, 6, 1], &based(&[9])), json!([[1, true, "patch", "09"]])),
        valid("patch as long as a page", one(&[1, 6, 0x80, 4], &based(&image)), json!([[1, true, "patch", full]])),
        valid("bases and no patches", raw_pages(512, 2, &[1, 4, 1, 5], &based(&image)),
            json!([[1, true, "zero"], [2, true, "image", full]])),
        valid("a base of another page than the patch", raw_pages(512, 2, &[1, 2, 1, 1, 5], &based(&[&image[..], &[9]].concat())),
            json!([[1, false, "patch", "09"], [2, true, "image", full]])),
        {"name": "as many bases as there may be", "bytes": bases(most), "pages": most_pages,
         "bases_checksum": hex::encode("checksum")},
        {"name": "more bases than the limit", "bytes": bases(most + 1), "error": "Malformed"},
        {"name": "as many bases as pages", "bytes": bases(MAX_PAGES), "error": "Malformed"},
        malformed("empty, with a page size", &raw_pages(512, 0, &[], &[])),
        malformed("pages without a page size", &raw_pages(0, 1, &[1, 0], &[])),
        malformed("page size 513", &raw_pages(513, 1, &[1, 0], &[])),
        malformed("page size 256", &raw_pages(256, 1, &[1, 0], &[])),
        malformed("page size 131072", &raw_pages(131_072, 1, &[1, 0], &[])),
        malformed("page 0", &one(&[0, 0], &[])),
        malformed("page twice", &raw_pages(512, 2, &[1, 0, 0, 0], &[])),
        malformed("varint longer than needed", &one(&[0x81, 0, 0], &[])),
        malformed("varint of 33 bits", &one(&[0xff, 0xff, 0xff, 0xff, 0x1f, 0], &[])),
        malformed("page numbers past 32 bits", &raw_pages(512, 2, &[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 1, 0], &[])),
        malformed("operation 3, with an image", &one(&[1, 3], &image)),
        malformed("operation 3, with nothing", &one(&[1, 3], &[])),
        malformed("operation 7", &one(&[1, 7], &based(&[]))),
        malformed("operation 8", &one(&[1, 8], &[])),
        malformed("operation 8 and 4", &one(&[1, 12], &based(&[]))),
        malformed("patch without bases", &one(&[1, 2, 3], b"one")),
        malformed("patch without bases, with a checksum", &one(&[1, 2, 3], &based(b"one"))),
        malformed("checksum without bases", &one(&[1, 0], &based(&[]))),
        malformed("checksum cut", &one(&[1, 4], b"checksu")),
        malformed("image cut", &one(&[1, 1], &image[1..])),
        malformed("byte after the images", &one(&[1, 1], &[7; PAGE + 1])),
        malformed("patch without a length", &one(&[1, 6], &based(&[]))),
        malformed("patch of no bytes", &one(&[1, 6, 0], &based(&[]))),
        malformed("patch longer than the page", &one(&[1, 6, 0x81, 4], &based(&[7; PAGE + 1]))),
        malformed("length of a patch longer than needed", &one(&[1, 6, 0x85, 0], &based(&[7; 5]))),
        malformed("length of a patch of 33 bits", &one(&[1, 6, 0x81, 0x80, 0x80, 0x80, 0x10], &based(&[7]))),
        malformed("patch cut", &patched[..patched.len() - 1]),
        malformed("byte after the patches", &[&patched[..], &[0]].concat()),
        malformed("byte after the index", &one(&[1, 0, 0], &[])),
        malformed("more pages than the index has", &raw_pages(512, 2, &[1, 0], &[])),
        {"name": "more pages than the limit", "bytes": zeros(MAX_PAGES + 1), "error": "Malformed"},
        malformed("all the pages there are", &raw_pages(512, u32::MAX, &[1, 0], &[])),
        malformed("index longer than all", &[512u32.to_le_bytes(), 1u32.to_le_bytes(), [0xff; 4]].concat()),
        malformed("cut in the fixed part", &good[..11]),
        malformed("nothing", &[]),
    ]})
}

/// A file in one chunk for each length, one after another in pack `03…`.
pub(crate) fn file(mode: u32, mtime_ns: i64, lengths: &[u32]) -> FileOp {
    let mut offset = 0;
    let mut chunk = |len: &u32| {
        offset += len;
        ChunkRef { id: [8; 16], pack: [3; 16], offset: offset - len, len: *len }
    };
    let chunks: Vec<_> = lengths.iter().map(&mut chunk).collect();
    let len = lengths.iter().map(|len| u64::from(*len)).sum();
    FileOp::File(FileRecord { mode, mtime_ns, len, chunks })
}

pub(crate) fn files() -> Value {
    let valid = |name: &str, files: Vec<(Vec<u8>, FileOp)>| {
        let set = FileSet::new(files).unwrap();
        json!({"name": name, "bytes": hex::encode(set.encode()), "files": files_json(&set)})
    };
    let gone = |paths: &[&[u8]]| {
        let file = |path: &&[u8]| [&(path.len() as u16).to_le_bytes()[..], path, &[0]].concat();
        [&(paths.len() as u32).to_le_bytes()[..], &paths.iter().flat_map(file).collect::<Vec<_>>()].concat()
    };
    let mut cases = vec![
        valid("empty", vec![]),
        valid(
            "files of two chunks, of none, and gone",
            vec![
                (b"2024/photo.jpg".to_vec(), file(0o640, 1_700_000_000_123_456_789, &[100, 7])),
                (b"empty".to_vec(), file(0, -5, &[])),
                (b"old \xff name".to_vec(), FileOp::Gone),
            ],
        ),
        valid(
            "longest segment, bytes above 127, sorted as bytes",
            vec![
                (b"a b".to_vec(), FileOp::Gone),
                (b"a/b".to_vec(), FileOp::Gone),
                (b"a0".to_vec(), file(0o777, i64::MIN, &[MAX_PLAINTEXT_LEN as u32])),
                (vec![b'b'; 255], FileOp::Gone),
                ("❦/..❦/...".as_bytes().to_vec(), FileOp::Gone),
            ],
        ),
        valid("longest path", vec![([&b"d/".repeat(1920)[..], &[b'f'; 256 - 1]].concat(), FileOp::Gone)]),
    ];
    for (name, path) in [
        ("empty path", &b""[..]),
        ("path from the root", b"/etc/passwd"),
        ("path that ends with a slash", b"a/"),
        ("path with nothing between slashes", b"a//b"),
        ("path .", b"."),
        ("path ..", b".."),
        ("path that leads out", b"a/../../b"),
        ("path that begins with ..", b"../b"),
        ("path that ends with ..", b"a/.."),
        ("path with a dot between", b"a/./b"),
        ("path with NUL", b"a\0b"),
        ("segment longer than the limit", &[b'b'; 256]),
        ("path longer than the limit", &[&b"d/".repeat(1921)[..], &[b'f'; 255]].concat()),
    ] {
        cases.push(malformed(name, &gone(&[path])));
    }
    cases.push(malformed("paths out of order", &gone(&[b"b", b"a"])));
    cases.push(malformed("a path twice", &gone(&[b"a", b"a"])));
    cases.push(malformed("paths sorted by segment, not by byte", &gone(&[b"a/b", b"a b"])));
    cases.extend(broken_files());
    json!({"what": "files", "cases": cases})
}

fn broken_files() -> Vec<Value> {
    let good = FileSet::new(vec![(b"a".to_vec(), file(0o600, 1, &[9, 5]))]).unwrap().encode();
    let put = |name: &str, at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        malformed(name, &bytes)
    };
    let mut of_other = good.clone();
    (of_other[20], of_other[108]) = (9, 0);
    let chunks = |count: usize| {
        let len = (count as u64 * 9).to_le_bytes();
        let head = [&good[..20], &len, &(count as u32).to_le_bytes()].concat();
        json!([[hex::encode(head), 1], [hex::encode(&good[32..72]), count]])
    };
    // 0 number of files, 4 path, 7 operation, 8 mode, 12 time, 20 length, 28 number of chunks, 32 and 72 chunks
    vec![
        put("operation 2, with a file behind", 7, &[2]),
        malformed("operation 2, with nothing behind", &[&1u32.to_le_bytes()[..], &[1, 0, b'a', 2]].concat()),
        put("gone, with a file behind", 7, &[0]),
        put("setuid", 8, &0o4755u32.to_le_bytes()),
        put("a mode with more than permissions", 8, &0o100_600u32.to_le_bytes()),
        put("length less than the chunks", 20, &[13]),
        put("length more than the chunks", 20, &[15]),
        put("length with a high bit", 27, &[0x80]),
        put("chunk of no bytes", 68, &[0]),
        malformed("chunk of no bytes, in a file of the other's length", &of_other),
        put("chunk past the longest plaintext", 64, &(MAX_PLAINTEXT_LEN as u32 - 8).to_le_bytes()),
        put("chunk past 32 bits", 64, &[0xff; 4]),
        put("more chunks than there are", 28, &[3]),
        {
            let (bytes, limit) = (chunks(MAX_FILE_CHUNKS + 1), "more chunks than the limit");
            json!({"name": limit, "bytes": bytes, "error": "Malformed"})
        },
        put("all the chunks there are", 28, &[0xff; 4]),
        put("fewer chunks than there are", 28, &[1]),
        put("more files than there are", 0, &[2]),
        put("more files than the limit", 0, &(MAX_FILES as u32 + 1).to_le_bytes()),
        put("all the files there are", 0, &[0xff; 4]),
        put("fewer files than there are", 0, &[0]),
        put("path longer than all", 4, &[0xff, 0x0f]),
        malformed("cut", &good[..good.len() - 1]),
        malformed("byte after the end", &[&good[..], &[0]].concat()),
        malformed("cut in the number of files", &good[..3]),
        malformed("nothing", &[]),
    ]
}

/// Patches over the bases of three pages.
pub(crate) fn patches() -> Value {
    let mut bases = [0; 3 * PAGE];
    blake3::Hasher::new().update(b"bases").finalize_xof().fill(&mut bases);
    let mut cases = good_patches(&bases);
    cases.extend(broken_patches());
    json!({"what": "patches", "page_size": PAGE, "bases": hex::encode(bases), "cases": cases})
}

/// So many literals, from 128 on, and the number before them.
fn literals(count: usize) -> Vec<u8> {
    [&[0x80 | (count & 0x7f) as u8, (count >> 7) as u8][..], &vec![9; count]].concat()
}

fn good_patches(bases: &[u8]) -> Vec<Value> {
    let valid = |name: &str, place: usize, patch: &[u8], page: &[&[u8]]| {
        let mut image = vec![0; PAGE];
        apply_patch(bases, place, patch, &mut image).expect(name);
        assert_eq!(image, page.concat(), "{name}");
        json!({"name": name, "place": place, "patch": hex::encode(patch), "page": hex::encode(image)})
    };
    let (first, own, last) = (&bases[..512], &bases[512..1024], &bases[1024..]);
    // the example of docs/format.md
    let documented = hex::decode("0014076c69746572616c8d060d00b30128").unwrap();
    let documented = [&documented[..], &[16], &[b'x'; 16]].concat();
    let longest = [&literals(509)[..], &[6]].concat();
    let halves = [0, 0x81, 4, 0x80, 4, 0, 0x81, 4, 0xff, 7];
    vec![
        valid("the page as it was", 0, &[0, 0x80, 8], &[first]),
        valid("the last page as it was", 1024, &[0, 0x80, 8], &[last]),
        valid(
            "the example in the document",
            512,
            &documented,
            &[&own[..10], b"literal", &own[10..400], &own[420..509], &[b'x'; 16]],
        ),
        valid("as long as the page", 512, &longest, &[&[9; 509], &own[509..]]),
        valid(
            "literals at the end",
            512,
            &[&[0, 0x80, 4], &literals(256)[..]].concat(),
            &[&own[..256], &[9; 256]],
        ),
        valid(
            "literals at the start",
            512,
            &[&literals(256)[..], &[0x80, 4]].concat(),
            &[&[9; 256], &own[256..]],
        ),
        valid("halves changed over", 512, &halves, &[&own[256..], &own[..256]]),
        valid(
            "the distance stays",
            512,
            &[0, 0x81, 4, 2, 0, 0xfe, 3, 1, 9],
            &[&own[1..257], &own[257..], &[9]],
        ),
        valid("a change of distance that is none", 512, &[0, 0x81, 8, 0], &[own]),
        valid("copies of one byte", 512, &[&[0, 2].repeat(100)[..], &[0, 0xb8, 6]].concat(), &[own]),
        valid("the page before", 512, &[0, 0x81, 8, 0xff, 7], &[first]),
        valid("the page behind", 512, &[0, 0x81, 8, 0x80, 8], &[last]),
        valid(
            "from the first byte of the bases to the last",
            0,
            &[1, 9, 0xfd, 7, 1, 0, 3, 0x82, 16],
            &[&[9], &first[..510], &last[511..]],
        ),
        valid(
            "copies across the bases of two pages",
            0,
            &[0, 0x81, 8, 0x80, 4],
            &[&first[256..], &own[..256]],
        ),
        valid("a page without base behind all", 1536, &[0, 0x81, 8, 0xff, 7], &[last]),
        valid(
            "to the first page and to the last",
            1024,
            &[0, 0x81, 4, 0xff, 0x0f, 0, 0x81, 4, 0x80, 0x10],
            &[&first[..256], &last[256..]],
        ),
    ]
}

fn broken_patches() -> Vec<Value> {
    let malformed = |name: &str, place: usize, patch: &[u8]| json!({"name": name, "place": place, "patch": hex::encode(patch), "error": "Malformed"});
    vec![
        malformed("no bytes", 0, &[]),
        malformed("no copy", 0, &[0]),
        malformed("the page does not get full", 0, &[0, 0xfe, 7]),
        malformed("longer than the page", 0, &[&[0, 2].repeat(256)[..], &[0, 0x80, 4]].concat()),
        malformed("as many literals as the page has bytes", 0, &literals(PAGE)),
        malformed("literals and a copy past the page", 0, &[1, 9, 0x80, 8]),
        malformed("literals past the page", 0, &[&[0, 0x80, 4][..], &literals(300)].concat()),
        malformed("literals past the patch", 0, &[0x80, 4, 9]),
        malformed("copy past the page", 0, &[0, 0x82, 8]),
        malformed("copy past the page from before in the bases", 512, &[0, 0x80, 4, 0, 0xd9, 4, 0xc7, 1]),
        malformed("copy past the bases", 1024, &[0, 0xff, 7, 4, 2, 9, 9]),
        malformed("copy that lies behind the bases", 1024, &[0, 0x81, 4, 0x80, 8]),
        malformed("copy of a base that is not there", 1536, &[0, 0x80, 8]),
        malformed("copy from before the bases", 0, &[0, 0x81, 8, 1]),
        malformed("copy that lies before the bases", 0, &[0, 11, 19, 0, 0xf7, 7, 20]),
        malformed("place past the bases", 1537, &[0, 0x81, 8, 0x81, 8]),
        malformed("copy of no bytes", 0, &[0, 0, 0, 0x80, 8]),
        malformed("copy of no bytes from elsewhere", 0, &[0, 1, 2, 0, 0x80, 8]),
        malformed("no copy behind the literals", 0, &literals(500)),
        malformed("no distance behind the copy", 0, &[0, 0x81, 8]),
        malformed("largest distance", 0, &[0, 0x81, 8, 0xfe, 0xff, 0xff, 0xff, 0x0f]),
        malformed("change of the distance past 32 bits", 0, &[0, 0x81, 8, 0xff, 0xff, 0xff, 0xff, 0x1f]),
        malformed("largest copy", 0, &[0, 0xfe, 0xff, 0xff, 0xff, 0x0f]),
        malformed("most literals", 0, &[0xff, 0xff, 0xff, 0xff, 0x0f, 9]),
        malformed("varint longer than needed", 0, &[0x80, 0, 0x80, 8]),
        malformed("varint of 33 bits", 0, &[0, 0x80, 0x80, 0x80, 0x80, 0x10]),
        malformed("byte behind the full page", 0, &[0, 0x80, 8, 0]),
    ]
}
