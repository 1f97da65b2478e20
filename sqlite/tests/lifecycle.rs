//! Databases that come, go, move, and are something else.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use chatkeep_sqlite::{
    Build, CaptureError, Collection, Existing, GapReason, Kind, LiveDatabase, Mode, PageSink, RestoreWriter,
    lock_byte_page,
};
use common::{App, World};

#[test]
fn app_process() {
    common::app_process();
}

#[test]
fn the_journal_mode_may_change_both_ways() {
    let mut world = World::new();
    let mut app = App::rollback(&world.db());
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
        let mut app = App::rollback(&world.db());
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
        let mut app = App::rollback(&world.db());
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
    let mut app = App::rollback(&world.db());
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

    fn page(&mut self, pgno: u32, _image: &[u8], _base: Option<&[u8]>) -> std::io::Result<()> {
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
    let capture = world.live().capture(Build::on(0), &mut counter, &|| false).unwrap();
    assert_eq!((capture.page_size, capture.page_count, capture.changed_pages), (page, count, count - 1));
    assert_eq!((counter.pages, counter.lock_byte_page), (count - 1, false));
    world.live().commit(1, &[]).unwrap();
    // Nor is it in a base that is cut later, or collected.
    let mut counter = Counter::default();
    let base = world.live().capture(Build::on(0), &mut counter, &|| false).unwrap();
    assert!(base.is_base && base.gap.is_none() && base.state_digest == capture.state_digest);
    assert_eq!((counter.pages, counter.lock_byte_page, base.pages), (count - 1, false, count - 1));
    world.live().abort();
    let (mut counter, mut collection) = (Counter::default(), Collection::new(0));
    while !world.live().collect(&mut collection, 64 << 20, &mut counter).unwrap() {}
    assert_eq!((counter.pages, counter.lock_byte_page), (count - 1, false));

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
    let result = world.live().capture(Build::on(0), &mut store, &|| true);
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
