//! Databases without a log, and databases that come, go, and are something else.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use chatkeep_sqlite::{
    CaptureError, Existing, GapReason, Kind, LiveDatabase, Mode, PageSink, RestoreWriter, lock_byte_page,
};
use common::{App, World};

#[test]
fn app_process() {
    common::app_process();
}

fn rollback(world: &World) -> App {
    let mut app = App::open(&world.db());
    app.run("PRAGMA journal_mode = DELETE; PRAGMA synchronous = OFF;");
    app.run("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, body BLOB);");
    app
}

#[test]
fn a_database_with_a_rollback_journal_is_read_when_it_was_written() {
    let mut world = World::new();
    let mut app = rollback(&world);
    app.insert(40);
    assert!(world.capture().is_base);
    for _ in 0..3 {
        app.insert(1);
        let look = world.live().look().unwrap();
        assert_eq!((look.mode, look.gap), (Mode::AtRest, Some(GapReason::WrittenDirectly)));
        let capture = world.capture();
        assert!(!capture.is_base && capture.changed_pages < 6);
        world.assert_stored_is_the_file();
    }
    assert!(!world.live().look().unwrap().changed);
}

#[test]
fn when_the_next_read_of_the_whole_file_is_due_waiting_ends() {
    let mut world = World::new();
    let mut app = rollback(&world);
    app.insert(2000);
    world.capture();
    app.insert(1);
    let mut looks = 0;
    while !world.live().look().unwrap().changed {
        world.live().wait(Duration::from_hours(1)).unwrap();
        looks += 1;
    }
    assert!(looks < 20, "it waits, it does not spin");
    assert!(world.capture().changed_pages > 0);
}

#[test]
fn a_transaction_being_prepared_does_not_disturb() {
    let mut world = World::new();
    let mut app = rollback(&world);
    app.insert(5);
    let before = std::fs::read(world.db()).unwrap();
    app.run("BEGIN IMMEDIATE; INSERT INTO t(body) VALUES (randomblob(10));");
    assert!(world.names().contains(&"chat.db-journal".to_owned()));
    world.capture();
    assert!(world.stored_bytes() == before);
    app.run("COMMIT;");
}

#[test]
fn while_the_file_is_being_written_or_waits_to_be_rolled_back_nothing_is_captured() {
    let mut world = World::new();
    let mut app = rollback(&world);
    app.insert(50);
    world.capture();
    app.run("PRAGMA cache_size = 5; BEGIN; UPDATE t SET body = randomblob(1500);");
    assert!(matches!(world.try_capture(), Err(CaptureError::NotQuiet { .. })));
    app.kill();
    let torn = std::fs::read(world.db()).unwrap();
    assert!(matches!(world.try_capture(), Err(CaptureError::NotQuiet { .. })));
    assert!(torn == std::fs::read(world.db()).unwrap(), "we only read");
    // The app rolls it back, as it would have without us.
    let mut app = App::open(&world.db());
    app.run("SELECT count(*) FROM t;");
    assert!(world.capture().unchanged);
    world.assert_stored_is_the_file();
}

/// As if some time had passed since the app was killed.
fn make_old(world: &World) {
    let long_ago = std::time::SystemTime::now() - Duration::from_mins(1);
    for name in world.names() {
        let path = world.db().with_file_name(name);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
}

fn contents(world: &World) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| (name.clone(), std::fs::read(world.db().with_file_name(name)).unwrap());
    world.names().into_iter().map(read).collect()
}

#[test]
fn a_journal_whose_app_never_comes_back_is_rolled_back_in_memory() {
    let changes = [
        "UPDATE t SET body = randomblob(1500);",
        "INSERT INTO t(body) SELECT randomblob(1500) FROM t;",
        "DELETE FROM t WHERE id > 20; PRAGMA incremental_vacuum; UPDATE t SET body = randomblob(3000);",
    ];
    for (synchronous, change) in ["OFF", "FULL"].into_iter().flat_map(|s| changes.map(|change| (s, change))) {
        let mut world = World::new();
        let mut app = App::open(&world.db());
        app.run("PRAGMA auto_vacuum = INCREMENTAL; VACUUM;");
        app.close();
        let mut app = rollback(&world);
        app.insert(200);
        app.run(&format!("PRAGMA synchronous = {synchronous}; PRAGMA cache_size = 5; BEGIN; {change}"));
        app.kill();
        make_old(&world);
        let left = contents(&world);
        assert_eq!(left[1].0, "chat.db-journal");
        let capture = world.capture();
        assert!(capture.is_base);
        assert!(!world.live().look().unwrap().changed);
        assert!(contents(&world) == left, "we only read");

        let copy = world.folder.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        for (name, bytes) in &left {
            std::fs::write(copy.join(name), bytes).unwrap();
        }
        let mut app = App::open(&copy.join("chat.db"));
        app.run("SELECT count(*) FROM t;");
        app.close();
        let recovered = std::fs::read(copy.join("chat.db")).unwrap();
        assert!(recovered != left[0].1, "there was something to be rolled back");
        assert!(world.stored_bytes() == recovered, "{synchronous} {change}");
        // The app comes back after all.
        let mut app = App::open(&world.db());
        app.run("SELECT count(*) FROM t;");
        assert!(world.live().look().unwrap().gap.is_some());
        assert!(world.capture().unchanged);
        world.assert_stored_is_the_file();
    }
}

#[test]
fn a_journal_that_is_removed_leaves_another_state() {
    let mut world = World::new();
    let mut app = rollback(&world);
    app.insert(50);
    app.run("PRAGMA cache_size = 5; BEGIN; UPDATE t SET body = randomblob(1500);");
    app.kill();
    make_old(&world);
    world.capture();
    std::fs::remove_file(world.db().with_file_name("chat.db-journal")).unwrap();
    assert_eq!(world.live().look().unwrap().gap, Some(GapReason::WrittenDirectly));
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn the_journal_mode_may_change_both_ways() {
    let mut world = World::new();
    let mut app = rollback(&world);
    app.insert(5);
    world.capture();
    app.run("PRAGMA journal_mode = WAL;");
    app.insert(5);
    world.capture();
    app.insert(5);
    assert_eq!(world.capture().gap, None);
    assert_eq!(world.live().look().unwrap().mode, Mode::Following);
    app.run("PRAGMA journal_mode = DELETE;");
    app.insert(5);
    world.capture();
    world.assert_stored_is_the_file();
    assert_eq!(world.live().look().unwrap().mode, Mode::AtRest);
}

#[test]
fn a_deleted_database_is_captured_to_its_end_and_one_that_appears_again_from_its_beginning() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(5);
    world.capture();
    app.insert(5);
    for name in world.names() {
        std::fs::remove_file(world.db().with_file_name(name)).unwrap();
    }
    let look = world.live().look().unwrap();
    assert_eq!((look.mode, look.changed), (Mode::Gone, true));
    let last = world.capture();
    assert!(!last.gone && last.changed_pages > 0);
    assert!(world.live().look().unwrap().changed);
    let gone = world.capture();
    assert_eq!((gone.gone, gone.page_count, gone.unchanged), (true, 0, false));
    assert!(matches!(world.live().look(), Err(CaptureError::Missing)));
    assert!(matches!(world.try_capture(), Err(CaptureError::Missing)));
    drop(app);
    let mut app = App::wal(&world.db());
    app.insert(2);
    assert!(world.live().look().unwrap().changed);
    let capture = world.capture();
    assert!(capture.is_base && !capture.gone);
    app.close();
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn a_file_renamed_over_the_database_is_compared_with_it() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(50);
    app.close();
    world.capture();
    let other = world.folder.path().join("other.db");
    std::fs::copy(world.db(), &other).unwrap();
    let mut app = App::open(&other);
    app.run("PRAGMA user_version = 3;");
    app.close();
    std::fs::rename(&other, world.db()).unwrap();
    assert_eq!(world.live().look().unwrap().gap, Some(GapReason::Replaced));
    let capture = world.capture();
    assert_eq!((capture.user_version, capture.is_base), (3, false));
    world.assert_stored_is_the_file();
}

#[test]
fn a_folder_made_anew_under_the_same_name_is_watched() {
    for moved_away in [true, false] {
        let mut world = World::new();
        // The folder's parent moves: the folder itself sees nothing of it.
        let db = world.folder.path().join("parent/folder/chat.db");
        let parent = world.folder.path().join("parent");
        std::fs::create_dir_all(db.parent().unwrap()).unwrap();
        std::fs::rename(world.folder.path().join("app"), world.folder.path().join("unused")).unwrap();
        std::os::unix::fs::symlink(db.parent().unwrap(), world.folder.path().join("app")).unwrap();
        let mut app = rollback(&world);
        app.insert(5);
        world.capture();
        app.close();
        if moved_away {
            std::fs::rename(&parent, world.folder.path().join("away")).unwrap();
        } else {
            std::fs::remove_dir_all(&parent).unwrap();
            assert_eq!(world.live().look().unwrap().mode, Mode::Gone);
        }
        std::fs::create_dir_all(db.parent().unwrap()).unwrap();
        let mut app = rollback(&world);
        app.insert(9);
        assert_eq!(world.live().look().unwrap().gap, Some(GapReason::Replaced));
        world.capture();
        world.assert_stored_is_the_file();
        // The scan and its looks used up what had been noticed: only a live watch tells of the next write.
        assert!(!world.live().look().unwrap().changed);
        world.live().wait(Duration::ZERO).unwrap();
        app.insert(1);
        assert!(world.live().wait(Duration::from_secs(20)).unwrap());
        assert!(world.live().look().unwrap().gap.is_some());
    }
}

#[test]
fn a_link_that_leads_elsewhere_now_is_followed_there() {
    let mut world = World::new();
    let (one, two) = (world.folder.path().join("one"), world.folder.path().join("two"));
    for folder in [&one, &two] {
        std::fs::create_dir(folder).unwrap();
    }
    let link = world.folder.path().join("app");
    std::fs::remove_dir(&link).unwrap();
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let mut app = App::wal(&world.db());
    app.insert(5);
    world.capture();
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&two, &link).unwrap();
    let mut other = App::wal(&two.join("chat.db"));
    other.run("PRAGMA user_version = 6;");
    app.insert(1);
    assert_eq!(world.live().look().unwrap().gap, Some(GapReason::Replaced));
    assert_eq!(world.capture().user_version, 6);
    other.run("PRAGMA user_version = 7;");
    let look = world.live().look().unwrap();
    assert_eq!((look.gap, look.commits), (None, 1));
    assert_eq!(world.capture().user_version, 7);
    other.close();
    world.assert_stored_is_the_file();
}

#[test]
fn a_link_that_appears_in_the_path_is_not_followed() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(5);
    app.close();
    world.capture();
    let elsewhere = world.folder.path().join("elsewhere.db");
    std::fs::rename(world.db(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, world.db()).unwrap();
    assert!(matches!(world.live().look(), Err(CaptureError::Unsupported { .. })));
    assert!(matches!(world.try_capture(), Err(CaptureError::Unsupported { .. })));
    // Opened again it is what the caller wants.
    world.restart();
    world.capture();
    world.assert_stored_is_the_file();
}

#[test]
fn another_page_size_is_a_new_base() {
    let mut world = World::new();
    let mut app = rollback(&world);
    app.insert(5);
    world.capture();
    app.run("PRAGMA page_size = 8192; VACUUM;");
    let capture = world.capture();
    assert_eq!((capture.page_size, capture.is_base), (8192, true));
    world.assert_stored_is_the_file();
}

#[test]
fn what_is_no_database_is_called_so() {
    let mut world = World::new();
    for content in [&b"Dear diary, ".repeat(512)[..], b"short"] {
        std::fs::write(world.db(), content).unwrap();
        assert!(matches!(world.try_capture(), Err(CaptureError::NotADatabase { .. })));
        world.restart();
    }
    std::fs::remove_file(world.db()).unwrap();
    assert!(matches!(world.open().map(|_: LiveDatabase| ()), Err(CaptureError::Missing)));
}

#[test]
fn noise_is_kept_byte_by_byte_and_an_empty_file_has_no_pages() {
    let mut world = World::new();
    std::fs::write(world.db(), []).unwrap();
    assert_eq!(world.capture().page_count, 0);
    // As long as an encrypted database of 1 KiB pages.
    let noise: Vec<u8> = (0..7 * 1024_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(world.db(), noise).unwrap();
    assert_eq!(world.capture().kind, Kind::Opaque);
    world.assert_stored_is_the_file();
}

/// Counts pages, keeps none.
#[derive(Default)]
struct Counter {
    pages: u32,
    lock_byte_page: bool,
}

impl PageSink for Counter {
    fn begin(&mut self, _page_size: u32, _is_base: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn page(&mut self, pgno: u32, _image: &[u8]) -> std::io::Result<()> {
        self.pages += 1;
        self.lock_byte_page |= pgno == lock_byte_page(65536);
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        *self = Counter::default();
        Ok(())
    }
}

#[test]
fn beyond_one_gibibyte_the_page_of_the_locks_is_neither_kept_nor_compared() {
    let mut world = World::new();
    let page = 65536;
    let count = lock_byte_page(page) + 2;
    let file = std::fs::File::create(world.db()).unwrap();
    // Page size 65536 is written as 1.
    file.write_all_at(b"SQLite format 3\0\0\x01", 0).unwrap();
    file.set_len(u64::from(count) * u64::from(page)).unwrap();
    drop(file);
    let mut counter = Counter::default();
    let capture = world.live().capture(&mut counter, &|| false).unwrap();
    assert_eq!((capture.page_size, capture.page_count, capture.changed_pages), (page, count, count - 1));
    assert_eq!((counter.pages, counter.lock_byte_page), (count - 1, false));
    world.live().commit(1).unwrap();

    let directory = std::fs::File::open(world.folder.path()).unwrap().into();
    let mut writer = RestoreWriter::create(directory, "restored", page, count, common::KEY).unwrap();
    let mut image = vec![0; page as usize];
    for pgno in (2..=count).filter(|pgno| *pgno != lock_byte_page(page)) {
        writer.write_page(pgno, &image).unwrap();
    }
    std::fs::File::open(world.db()).unwrap().read_exact_at(&mut image, 0).unwrap();
    writer.write_page(1, &image).unwrap();
    assert!(writer.is_complete());
    writer.finish(capture.state_digest, Kind::Opaque, Existing::Refuse, "x").unwrap();
}

/// Writes into the database during the first attempt.
struct Meddler {
    db: std::fs::File,
    pages_of_attempts: Vec<u32>,
}

impl PageSink for Meddler {
    fn begin(&mut self, _page_size: u32, _is_base: bool) -> std::io::Result<()> {
        self.pages_of_attempts.push(0);
        Ok(())
    }

    fn page(&mut self, pgno: u32, _image: &[u8]) -> std::io::Result<()> {
        if self.pages_of_attempts.len() == 1 && pgno == 10 {
            self.db.write_all_at(b"x", 4096 * 300)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        *self.pages_of_attempts.last_mut().unwrap() += 1;
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_during_a_read_of_the_whole_file_ends_it_early() {
    let mut world = World::new();
    let mut app = rollback(&world);
    app.insert(2000);
    app.close();
    let db = std::fs::File::options().write(true).open(world.db()).unwrap();
    let mut meddler = Meddler { db, pages_of_attempts: Vec::new() };
    let capture = world.live().capture(&mut meddler, &|| false).unwrap();
    let (first, last) = (meddler.pages_of_attempts[0], *meddler.pages_of_attempts.last().unwrap());
    assert!(first < 100, "{first} pages were read in vain");
    assert_eq!(last, capture.page_count);
}

#[test]
fn a_log_that_speaks_of_more_pages_than_there_are_is_not_believed() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(5);
    app.kill();
    // A log of one commit whose size field says 16 TiB; checksums are easy to make.
    let wal = world.db().with_file_name("chat.db-wal");
    let log = std::fs::read(&wal).unwrap();
    let mut forged = log[..32 + 24 + 4096].to_vec();
    forged[36..40].copy_from_slice(&0xf000_0000_u32.to_be_bytes());
    let big_endian = forged[3] & 1 == 1;
    let word = |bytes: &[u8]| {
        let bytes = bytes.try_into().unwrap();
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    let stored = |at: usize| u32::from_be_bytes(forged[at..at + 4].try_into().unwrap());
    let (mut a, mut b) = (stored(24), stored(28));
    for range in [32..40, 56..forged.len()] {
        for pair in forged[range].chunks_exact(8) {
            a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
            b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
        }
    }
    forged[48..52].copy_from_slice(&a.to_be_bytes());
    forged[52..56].copy_from_slice(&b.to_be_bytes());
    std::fs::write(&wal, forged).unwrap();
    let result = world.try_capture();
    assert!(
        matches!(&result, Err(CaptureError::NotQuiet { reason }) if reason.contains("more pages")),
        "{result:?}"
    );
}

#[test]
fn a_capture_can_be_cancelled() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    app.insert(5);
    let mut store = common::Store::default();
    let result = world.live().capture(&mut store, &|| true);
    assert!(matches!(result, Err(CaptureError::Cancelled)));
    assert!(world.capture().is_base);
}

#[test]
fn a_live_database_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Clone + Send + Sync>() {}
    is_send::<LiveDatabase>();
    is_shared::<chatkeep_sqlite::Waker>();
}

#[test]
fn waiting_ends_with_an_event_or_a_wake() {
    let mut world = World::new();
    let mut app = App::wal(&world.db());
    world.capture();
    world.live().look().unwrap();
    app.insert(1);
    assert!(world.live().wait(Duration::from_mins(1)).unwrap());
    world.live().look().unwrap();
    let waker = world.live().waker();
    let waking = std::thread::spawn(move || waker.wake());
    assert!(world.live().wait(Duration::from_mins(1)).unwrap());
    waking.join().unwrap();
    let began = Instant::now();
    assert!(
        !world.live().wait(Duration::from_millis(5)).unwrap() && began.elapsed() >= Duration::from_millis(5)
    );
}
