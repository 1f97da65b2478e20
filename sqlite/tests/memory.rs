//! What a large database takes of memory. Alone in its process, because it measures the process.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::FileExt;

use chatkeep_sqlite::{Build, LiveConfig, LiveDatabase, PageSink};

struct Nowhere;

impl PageSink for Nowhere {
    fn begin(&mut self, _page_size: u32, _is_base: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn page(&mut self, _pgno: u32, _image: &[u8], _base: Option<&[u8]>) -> std::io::Result<()> {
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Peak of resident memory in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Two million pages, as many as 8 GB have of the usual size.
#[test]
fn two_million_pages_take_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.db");
    let file = std::fs::File::create(&path).unwrap();
    let (page_size, pages) = (512, 2 << 20);
    file.write_all_at(b"SQLite format 3\0\x02\0", 0).unwrap();
    file.set_len(page_size * pages).unwrap();
    let config =
        LiveConfig { path, digest_key: [1; 32], state_dir: folder.path().join("s"), name: "t".to_owned() };
    let mut live = LiveDatabase::open(config).unwrap();
    let before = peak();
    let first = live.capture(Build::on(0), &mut Nowhere, &|| false).unwrap();
    assert_eq!((first.is_base, u64::from(first.pages)), (true, pages));
    live.commit(1, &[]).unwrap();
    // Once more, with a table to compare with.
    file.write_all_at(b"changed", 512 * 1000).unwrap();
    let second = live.capture(Build::on(1), &mut Nowhere, &|| false).unwrap();
    assert_eq!((second.pages, second.changed_pages), (1, 1));
    live.commit(2, &[]).unwrap();
    let taken = peak() - before;
    assert!(taken < 24, "{taken} MiB");
}
