//! A restore proves what it wrote, and touches nothing before that.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};

use chatkeep_sqlite::{
    Digest, Existing, Integrity, Kind, RestoreError, RestoreWriter, Restored, page_digest,
};
use common::{App, KEY};

#[test]
fn app_process() {
    common::app_process();
}

/// A database at rest, as pages.
struct Source {
    page_size: u32,
    bytes: Vec<u8>,
}

impl Source {
    fn new(sql: &str) -> Source {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch(sql).unwrap();
        connection.close().unwrap();
        let bytes = std::fs::read(path).unwrap();
        let page_size = u32::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        Source { page_size, bytes }
    }

    fn chat() -> Source {
        Source::new(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB); CREATE INDEX i ON t(body);
             INSERT INTO t(body) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50)
             SELECT randomblob(900) FROM n;
             CREATE TABLE later(id INTEGER PRIMARY KEY, body BLOB); INSERT INTO later VALUES (1, zeroblob(20000));",
        )
    }

    fn pages(&self) -> impl DoubleEndedIterator<Item = (u32, &[u8])> {
        self.bytes.chunks_exact(self.page_size as usize).enumerate().map(|(i, image)| (i as u32 + 1, image))
    }

    fn count(&self) -> u32 {
        self.pages().count() as u32
    }

    fn digest(&self) -> Digest {
        let mut state = [0_u8; 16];
        for (pgno, image) in self.pages() {
            state.iter_mut().zip(page_digest(&KEY, pgno, image)).for_each(|(a, b)| *a ^= b);
        }
        state
    }

    fn begin(&self, folder: &Path) -> Result<RestoreWriter, RestoreError> {
        let directory = File::open(folder).unwrap().into();
        RestoreWriter::create(directory, "chat.db", self.page_size, self.count(), KEY)
    }

    fn write(&self, folder: &Path) -> RestoreWriter {
        let mut writer = self.begin(folder).unwrap();
        for (pgno, image) in self.pages() {
            assert!(!writer.is_complete());
            writer.write_page(pgno, image).unwrap();
        }
        assert!(writer.is_complete());
        writer
    }

    fn restore(&self, folder: &Path, existing: Existing) -> Result<Restored, RestoreError> {
        self.write(folder).finish(self.digest(), Kind::Plain, existing, "2026-11-24")
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn db(&self) -> PathBuf {
        self.path().join("chat.db")
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn the_same_bytes_are_restored_and_checked() {
    let (source, folder) = (Source::chat(), Folder::new());
    let restored = source.restore(folder.path(), Existing::Refuse).unwrap();
    assert_eq!((restored.integrity, restored.kept_beside), (Integrity::Ok, None));
    assert_eq!((restored.path_name.as_str(), restored.bytes), ("chat.db", source.bytes.len() as u64));
    assert!(std::fs::read(folder.db()).unwrap() == source.bytes);
    assert_eq!(folder.names(), ["chat.db"]);
}

#[test]
fn the_last_image_of_a_page_wins_and_pages_beyond_the_end_are_dropped() {
    let (source, folder) = (Source::chat(), Folder::new());
    let mut writer = source.begin(folder.path()).unwrap();
    for (pgno, image) in source.pages().rev() {
        writer.write_page(pgno, &vec![pgno as u8; image.len()]).unwrap();
        writer.write_page(pgno, image).unwrap();
    }
    assert!(source.pages().any(|(_, image)| image.iter().all(|byte| *byte == 0)), "zeros replace, too");
    assert!(writer.is_complete());
    writer.write_page(source.count() + 100, &vec![1; source.page_size as usize]).unwrap();
    assert_eq!(writer.missing(), 0);
    writer.finish(source.digest(), Kind::Plain, Existing::Refuse, "x").unwrap();
    assert!(std::fs::read(folder.db()).unwrap() == source.bytes);
}

#[test]
fn what_was_written_can_be_read_also_beyond_the_end() {
    let (source, folder) = (Source::chat(), Folder::new());
    let mut writer = source.begin(folder.path()).unwrap();
    let page_len = source.page_size as usize;
    for pgno in [1, source.count(), source.count() + 1, source.count() + 1000] {
        let mut read = vec![5; page_len];
        assert!(!writer.read_page(pgno, &mut read).unwrap(), "nothing was written");
        for image in [vec![9; page_len], vec![8; page_len], vec![0; page_len]] {
            writer.write_page(pgno, &image).unwrap();
            assert!(writer.read_page(pgno, &mut read).unwrap());
            assert!(read == image);
        }
    }
    let (mut hole, mut read) = (vec![0; page_len], vec![5; page_len]);
    writer.write_page(source.count() + 2000, &hole).unwrap();
    assert!(writer.read_page(source.count() + 2000, &mut read).unwrap());
    assert!(read == hole);
    hole.pop();
    assert!(matches!(writer.read_page(1, &mut hole), Err(RestoreError::Invalid { .. })));
    assert!(matches!(writer.read_page(0, &mut read), Err(RestoreError::Invalid { .. })));
    assert!(writer.missing() > 0, "pages beyond the end do not count");
}

/// Nothing is left of a restore that failed.
fn check_refusal(finish: impl FnOnce(&Source, &Path) -> Result<Restored, RestoreError>) -> RestoreError {
    let (source, folder) = (Source::chat(), Folder::new());
    let error = finish(&source, folder.path()).unwrap_err();
    assert_eq!(folder.names(), Vec::<String>::new());
    error
}

#[test]
fn missing_pages_are_refused() {
    let error = check_refusal(|source, folder| {
        let mut writer = source.begin(folder).unwrap();
        for (pgno, image) in source.pages().skip(2) {
            writer.write_page(pgno, image).unwrap();
        }
        assert_eq!(writer.missing(), 2);
        writer.finish(source.digest(), Kind::Plain, Existing::Refuse, "x")
    });
    assert!(matches!(error, RestoreError::MissingPages { count: 2 }), "{error:?}");
}

#[test]
fn pages_of_another_state_are_refused() {
    let error = check_refusal(|source, folder| {
        let mut expected = source.digest();
        expected[3] ^= 1;
        source.write(folder).finish(expected, Kind::Opaque, Existing::Refuse, "x")
    });
    assert!(matches!(error, RestoreError::DigestMismatch), "{error:?}");
}

#[test]
fn a_state_that_sqlite_finds_damaged_is_restored_as_it_was_and_called_so() {
    // A page of the table, and the schema itself.
    for at in [3 * 4096 + 8, 100] {
        let (mut damaged, folder) = (Source::chat(), Folder::new());
        damaged.bytes[at..at + 100].fill(0xa5);
        let restored = damaged.restore(folder.path(), Existing::Refuse).unwrap();
        assert!(matches!(restored.integrity, Integrity::Complaints(_)), "{:?}", restored.integrity);
        assert!(std::fs::read(folder.db()).unwrap() == damaged.bytes);
    }
}

#[test]
fn what_a_restore_that_was_cut_short_left_behind_is_removed_and_nothing_else() {
    let (source, folder) = (Source::chat(), Folder::new());
    let other = source.begin(folder.path()).unwrap();
    let in_use = folder.names();
    let strangers =
        [".chat.db.chatkeep-0123", ".chat.db.chatkeep-0123456789abcdeg", "chat.db.chatkeep-0123456789abcdef"];
    for name in strangers.iter().chain(&[".chat.db.chatkeep-0123456789abcdef"]) {
        std::fs::write(folder.path().join(name), b"x").unwrap();
    }
    source.restore(folder.path(), Existing::Refuse).unwrap();
    let mut expected = in_use;
    expected.extend(strangers.map(str::to_owned));
    expected.push("chat.db".to_owned());
    expected.sort();
    assert_eq!(folder.names(), expected);
    drop(other);
}

#[test]
fn an_image_of_the_wrong_length_and_an_impossible_name_are_refused() {
    let (source, folder) = (Source::chat(), Folder::new());
    let mut writer = source.begin(folder.path()).unwrap();
    assert!(matches!(writer.write_page(1, &[0; 7]), Err(RestoreError::Invalid { .. })));
    assert!(matches!(
        writer.write_page(0, &vec![0; source.page_size as usize]),
        Err(RestoreError::Invalid { .. })
    ));
    let directory = File::open(folder.path()).unwrap().into();
    let result = RestoreWriter::create(directory, "chat.db", 4096, u32::MAX, KEY).map(|_| ());
    assert!(matches!(result, Err(RestoreError::Invalid { .. })));
    for name in ["", ".", "..", "a/b", "a\0b"] {
        let directory = File::open(folder.path()).unwrap().into();
        let result = RestoreWriter::create(directory, name, 4096, 1, KEY).map(|_| ());
        assert!(matches!(result, Err(RestoreError::Invalid { .. })), "{name:?}");
    }
}

#[test]
fn an_encrypted_state_is_proven_by_its_digest_alone() {
    let folder = Folder::new();
    let bytes = (0..8192_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let source = Source { page_size: 1024, bytes };
    let restored =
        source.write(folder.path()).finish(source.digest(), Kind::Opaque, Existing::Refuse, "x").unwrap();
    assert_eq!(restored.integrity, Integrity::Opaque);
    assert!(std::fs::read(folder.db()).unwrap() == source.bytes);
}

#[test]
fn a_collation_that_only_the_app_has_leaves_the_check_inconclusive() {
    let folder = Folder::new();
    let mut source = Source::new(
        "CREATE TABLE t(body TEXT COLLATE NOCASE); CREATE INDEX i ON t(body); INSERT INTO t VALUES ('a'), ('B');",
    );
    let at = source.bytes.windows(6).position(|window| window == b"NOCASE").unwrap();
    source.bytes[at..at + 6].copy_from_slice(b"THEAPP");
    let restored = source.restore(folder.path(), Existing::Refuse).unwrap();
    assert!(matches!(restored.integrity, Integrity::Inconclusive(_)), "{:?}", restored.integrity);
}

#[test]
fn an_existing_file_is_left_alone_or_kept_beside_with_its_log() {
    let (source, folder) = (Source::chat(), Folder::new());
    std::fs::write(folder.db(), b"old").unwrap();
    std::fs::write(folder.path().join("chat.db-wal"), b"old log").unwrap();
    assert!(matches!(source.restore(folder.path(), Existing::Refuse), Err(RestoreError::Exists)));
    assert_eq!(folder.names(), ["chat.db", "chat.db-wal"]);

    let restored = source.restore(folder.path(), Existing::KeepBeside).unwrap();
    assert_eq!(restored.kept_beside.as_deref(), Some("chat.db.before-2026-11-24"));
    assert_eq!(folder.names(), ["chat.db", "chat.db.before-2026-11-24", "chat.db.before-2026-11-24-wal"]);
    assert_eq!(std::fs::read(folder.path().join("chat.db.before-2026-11-24-wal")).unwrap(), b"old log");
    assert!(std::fs::read(folder.db()).unwrap() == source.bytes);

    let again = source.restore(folder.path(), Existing::KeepBeside).unwrap();
    assert_eq!(again.kept_beside.as_deref(), Some("chat.db.before-2026-11-24-2"));
}

#[test]
fn a_log_left_over_from_a_deleted_database_is_not_replayed_into_the_restored_one() {
    let (source, folder) = (Source::chat(), Folder::new());
    for suffix in ["-wal", "-shm", "-journal"] {
        std::fs::write(folder.path().join(format!("chat.db{suffix}")), b"left over").unwrap();
    }
    let restored = source.restore(folder.path(), Existing::Refuse).unwrap();
    assert_eq!(restored.kept_beside, None);
    let kept = ["-journal", "-shm", "-wal"].map(|suffix| format!("chat.db.before-2026-11-24{suffix}"));
    assert_eq!(folder.names(), [&["chat.db".to_owned()][..], &kept].concat());
    assert_eq!(std::fs::read(folder.path().join(&kept[2])).unwrap(), b"left over");
}

#[test]
fn while_an_app_has_it_open_nothing_is_restored() {
    let (source, folder) = (Source::chat(), Folder::new());
    let app = App::wal(&folder.db());
    assert!(matches!(source.begin(folder.path()).map(|_| ()), Err(RestoreError::InUse { .. })));
    app.close();
    let names = folder.names();
    // Opened while the pages were being fetched.
    let writer = source.write(folder.path());
    let app = App::wal(&folder.db());
    let result = writer.finish(source.digest(), Kind::Plain, Existing::KeepBeside, "x");
    assert!(matches!(result, Err(RestoreError::InUse { .. })), "{result:?}");
    app.close();
    assert_eq!(folder.names(), names);
    source.restore(folder.path(), Existing::KeepBeside).unwrap();
}

#[test]
fn a_restored_file_has_the_mode_of_the_one_it_replaces_and_else_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let (source, folder) = (Source::chat(), Folder::new());
    let mode = || std::fs::metadata(folder.db()).unwrap().permissions().mode() & 0o777;
    source.restore(folder.path(), Existing::Refuse).unwrap();
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(folder.db(), std::fs::Permissions::from_mode(0o640)).unwrap();
    source.restore(folder.path(), Existing::KeepBeside).unwrap();
    assert_eq!(mode(), 0o640);
}
