//! Captures as page sets, from the pages that a database gives to the file that a restore writes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use chatkeep_crypto::{DataRoots, open};
use chatkeep_format::{ArchiveId, DatabaseRecord, Entry, ObjectName, PageOp, PageSet};
use chatkeep_sqlite::{Capture, Existing, Kind, PageSink, page_digest};
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{PutCondition, Store, StoreKey};
use chatkeepd::archive::Archive;
use chatkeepd::catalogue::{Head, Point};
use chatkeepd::fault::Fault;
use chatkeepd::restore::{Destination, Source};
use chatkeepd::sealing::Collector;
use chatkeepd::spool::Spool;
use chatkeepd::writer::{Draft, Part, Writer};
use rand_core::OsRng;

const ARCHIVE: ArchiveId = ArchiveId([9; 16]);
const DIGEST_KEY: [u8; 32] = [5; 32];
const PAGE: usize = 4096;
/// What a pack, and a set of patches, is made of.
const PACK_PAGES: u32 = 1024;
const PATCHED_PAGES: u32 = 2048;

/// Bytes without repetitions, the same for the same seed.
fn noise(seed: u32) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

async fn put(store: &MemoryStore, key: String, body: Vec<u8>) {
    let key = StoreKey::try_from(key).unwrap();
    store.put(&key, body.into(), PutCondition::CreateIfAbsent).await.unwrap();
}

async fn restore_to(
    store: &Arc<MemoryStore>,
    id: ArchiveId,
    roots: &Arc<DataRoots>,
    seq: u64,
    folder: &Path,
) -> Result<(), Fault> {
    let source = Source {
        archive: Archive { store: store.clone(), id },
        roots: roots.clone(),
        cancelled: Arc::new(AtomicBool::new(false)),
        progress: Box::new(|_, _| {}),
    };
    let destination = Destination {
        folder: std::fs::File::open(folder).unwrap().into(),
        file_name: None,
        in_place: false,
        existing: Existing::Refuse,
        label: String::new(),
    };
    let runtime = tokio::runtime::Handle::current();
    let restore = move || source.restore(seq, destination, &runtime).map(|_| ());
    tokio::task::spawn_blocking(restore).await.unwrap()
}

/// A database that no app writes: its pages are what a test says.
struct World {
    folder: tempfile::TempDir,
    store: Arc<MemoryStore>,
    writer: Writer,
    head: Head,
    chain: Vec<Point>,
    pages: Vec<Vec<u8>>,
}

impl World {
    /// Entry 1 is a base of so many pages of noise.
    async fn new(pages: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let writer = Writer {
            archive: ARCHIVE,
            roots: Arc::new(DataRoots::new(&mut OsRng)),
            spool: Spool::open(folder.path(), &ARCHIVE).unwrap(),
            source_name: "chat".to_owned(),
            app_id: String::new(),
            level: 1,
        };
        let head = Head {
            seq: 0,
            digest: [0; 32],
            base_seq: 0,
            pins: Vec::new(),
            digest_key: DIGEST_KEY,
            writer_id: [1; 16],
            writer_epoch: 1,
        };
        let store = Arc::new(MemoryStore::new());
        let pages = (1..=pages).map(noise).collect();
        let mut world = Self { folder, store, writer, head, chain: Vec::new(), pages };
        world
            .capture(|pages, collector| {
                pages.iter().zip(1..).try_for_each(|(image, pgno)| collector.page(pgno, image, None))
            })
            .await;
        world
    }

    fn page(&self, pgno: u32) -> &Vec<u8> {
        &self.pages[pgno as usize - 1]
    }

    /// An entry of what `give` gives, which has to make the database what `pages` is. Returns its record.
    async fn capture(
        &mut self,
        give: impl FnOnce(&[Vec<u8>], &mut Collector<'_, '_, '_>) -> io::Result<()>,
    ) -> DatabaseRecord {
        let is_base = self.chain.is_empty();
        let page_count = self.pages.len() as u32;
        let mut state_digest = [0; 16];
        for (image, pgno) in self.pages.iter().zip(1..) {
            let digest = page_digest(&DIGEST_KEY, pgno, image);
            state_digest.iter_mut().zip(digest).for_each(|(all, byte)| *all ^= byte);
        }
        let done_bytes = AtomicU64::new(0);
        let (inline, packs) = self.writer.sealing(self.head.seq + 1, 0, |sealing| {
            let mut collector = sealing.collector(&done_bytes, true);
            collector.begin(PAGE as u32, is_base).unwrap();
            give(&self.pages, &mut collector).unwrap();
            collector.finish(page_count).unwrap()
        });
        let mut packs = packs.unwrap();
        let capture = Capture {
            is_base,
            parent: self.head.seq,
            kind: Kind::Opaque,
            page_size: PAGE as u32,
            page_count,
            user_version: 0,
            application_id: 0,
            state_digest,
            pages: 0,
            changed_pages: 0,
            bases: 0,
            unchanged: false,
            gap: None,
            bytes_read: 0,
            gone: false,
        };
        let part = Part { name: "a.db".to_owned(), capture, packs: packs.parts.remove(0), inline };
        let draft = Draft {
            before: &self.head,
            parent: self.chain.first(),
            level: if is_base { 8 } else { 0 },
            parts: vec![part],
            unchanged: Vec::new(),
            folders: Vec::new(),
            listed_packs: Vec::new(),
            objects: packs.objects,
            taken_at_us: 1,
        };
        let written = self.writer.publish(draft).unwrap();
        for object in &written.objects {
            let body = std::fs::read(&object.path).unwrap();
            put(&self.store, object.name.store_key(&ARCHIVE), body).await;
        }
        self.head = written.head;
        self.chain.insert(0, written.point);
        let entry = self.open(ObjectName::Entry(self.head.seq)).await;
        Entry::decode(&entry).unwrap().databases.remove(0)
    }

    async fn open(&self, name: ObjectName) -> Vec<u8> {
        let key = StoreKey::try_from(name.store_key(&ARCHIVE)).unwrap();
        let sealed = self.store.get(&key, None).await.unwrap();
        open(&ARCHIVE, name, &self.writer.roots, &sealed).unwrap()
    }

    /// The page sets of a record, in their order.
    async fn sets(&self, record: &DatabaseRecord) -> Vec<PageSet> {
        let mut sets = Vec::new();
        for pack in &record.packs {
            sets.push(PageSet::decode(self.open(ObjectName::Pack(pack.name)).await).unwrap());
        }
        sets.push(record.inline.clone());
        sets.retain(|set| !set.is_empty());
        sets
    }

    /// The newest entry restores to what the pages are.
    async fn assert_restores(&self) {
        let target = tempfile::tempdir_in(self.folder.path()).unwrap();
        self.restore(target.path()).await.unwrap();
        assert!(std::fs::read(target.path().join("a.db")).unwrap() == self.pages.concat());
    }

    async fn restore(&self, folder: &Path) -> Result<(), Fault> {
        restore_to(&self.store, ARCHIVE, &self.writer.roots, self.head.seq, folder).await
    }
}

fn patches(set: &PageSet) -> usize {
    set.iter().filter(|(_, op)| matches!(op, PageOp::Patch { .. })).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_increment_is_few_sets_of_patches() {
    let mut world = World::new(2600).await;
    let before = world.pages.clone();
    for (image, pgno) in world.pages.iter_mut().zip(0_u32..).take(2500) {
        image[pgno as usize % PAGE] ^= 1;
    }
    let record = world
        .capture(|pages, collector| {
            for pgno in 1..=2500 {
                let image = &pages[pgno as usize - 1];
                // Written again later: what is sent first is not what it is in the end.
                let image = if pgno == 7 { &before[99] } else { image };
                collector.page(pgno, image, Some(&before[pgno as usize - 1]))?;
            }
            collector.page(7, &pages[6], Some(&before[6]))
        })
        .await;
    let sets = world.sets(&record).await;
    assert_eq!(sets.iter().map(PageSet::len).collect::<Vec<_>>(), [PATCHED_PAGES as usize, 453]);
    assert_eq!(sets.iter().map(patches).collect::<Vec<_>>(), [PATCHED_PAGES as usize, 452]);
    assert!(matches!(sets[1].get(7), Some(PageOp::Full(_))), "a restore has another page 7 by then");
    assert!(sets.iter().all(|set| set.byte_len() < set.len() * 20));
    world.assert_restores().await;
}

/// Page 7 gets what page 45 was; then the database shrinks, and page 45 is in no later entry.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_may_be_made_of_a_page_that_is_no_more() {
    let mut world = World::new(50).await;
    let before = world.pages.clone();
    world.pages[6] = [&before[44][100..], &noise(1000)[..100]].concat();
    world.pages[44] = noise(1001);
    let record = world
        .capture(|pages, collector| {
            collector.page(45, &pages[44], Some(&before[44]))?;
            collector.page(7, &pages[6], Some(&before[6]))
        })
        .await;
    assert_eq!(patches(&record.inline), 1);
    world.assert_restores().await;
    let before = world.pages.clone();
    world.pages.truncate(30);
    world.pages[0][5] ^= 1;
    let record = world
        .capture(|pages, collector| {
            collector.page(1, &pages[0], Some(&before[0]))?;
            collector.page(45, &before[3], Some(&before[44])) // the app was not done yet
        })
        .await;
    assert_eq!(record.inline.bases().collect::<Vec<_>>(), [1]);
    world.assert_restores().await;
}

/// Like the first pages of an encrypted database, the others have nothing in common with what they were.
#[tokio::test(flavor = "multi_thread")]
async fn sets_of_what_seems_encrypted_are_whole_and_no_larger_than_packs() {
    let count = PATCHED_PAGES + 2 * PACK_PAGES;
    let mut world = World::new(count).await;
    let before = std::mem::replace(&mut world.pages, (1..=count).map(|pgno| noise(pgno + count)).collect());
    let record = world
        .capture(|pages, collector| {
            let pages = pages.iter().zip(&before).zip(1..);
            pages.into_iter().try_for_each(|((image, base), pgno)| collector.page(pgno, image, Some(base)))
        })
        .await;
    let lens = record.packs.iter().map(|pack| pack.items).collect::<Vec<_>>();
    assert_eq!(lens, [PATCHED_PAGES, PACK_PAGES, PACK_PAGES]);
    assert!(world.sets(&record).await.iter().all(|set| !set.has_bases()));
    world.assert_restores().await;
}

/// Every other page has nothing in common with what it was: too much for two threads to seal, and one to gather more.
#[tokio::test(flavor = "multi_thread")]
async fn sets_whose_patches_save_little_get_smaller() {
    let count = PATCHED_PAGES + PACK_PAGES + 100;
    let mut world = World::new(count).await;
    let before = world.pages.clone();
    for (image, pgno) in world.pages.iter_mut().zip(0_u32..) {
        if pgno.is_multiple_of(2) {
            *image = noise(pgno + count);
        } else {
            image[9] ^= 1;
        }
    }
    let record = world
        .capture(|pages, collector| {
            let pages = pages.iter().zip(&before).zip(1..);
            pages.into_iter().try_for_each(|((image, base), pgno)| collector.page(pgno, image, Some(base)))
        })
        .await;
    let sets = world.sets(&record).await;
    let lens = sets.iter().map(|set| set.len() as u32).collect::<Vec<_>>();
    assert_eq!(lens, [PATCHED_PAGES, PACK_PAGES, 100]);
    assert!(sets.iter().all(|set| patches(set) == set.len() / 2));
    world.assert_restores().await;
}

/// New pages beside a few that changed are not gathered for longer than others.
#[tokio::test(flavor = "multi_thread")]
async fn pages_without_images_before_make_packs_as_in_a_base() {
    let mut world = World::new(10).await;
    let before = world.pages.clone();
    world.pages.extend((0..PACK_PAGES).map(|pgno| noise(pgno + 5000)));
    world.pages.iter_mut().take(10).for_each(|image| image[9] ^= 1);
    let record = world
        .capture(|pages, collector| {
            let bases = before.iter().map(|base| Some(base.as_slice())).chain(std::iter::repeat(None));
            let pages = pages.iter().zip(bases).zip(1..);
            pages.into_iter().try_for_each(|((image, base), pgno)| collector.page(pgno, image, base))
        })
        .await;
    assert_eq!(record.packs.iter().map(|pack| pack.items).collect::<Vec<_>>(), [PACK_PAGES + 10]);
    world.assert_restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_base_is_named() {
    for (pgno, expected) in [(3, "pages other than those"), (11, "page 11, which no entry before has")] {
        let mut world = World::new(10).await;
        let base = noise(2000);
        if pgno == 11 {
            world.pages.push(base.clone());
        } else {
            world.pages[pgno as usize - 1] = base.clone();
        }
        world.pages[pgno as usize - 1][1] ^= 1;
        let image = world.page(pgno).clone();
        world.capture(|_, collector| collector.page(pgno, &image, Some(&base))).await;
        let target = tempfile::tempdir().unwrap();
        let fault = world.restore(target.path()).await.unwrap_err();
        let text = format!("{} {}", fault.error, fault.error.text());
        let entry = ObjectName::Entry(2).store_key(&ARCHIVE);
        for part in [expected, "a.db", &entry] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 0);
    }
}
