//! An archive of four pages, written entry by entry as a test says, and a store that can fail: what takes a year with a
//! real database takes a second here. Everything but the capture itself is the daemon's own.

#![allow(clippy::unwrap_used, dead_code, reason = "tests; not every test file uses everything")]

pub(crate) mod service;
mod weak;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chatkeep_crypto::{BackupKey, DataRoots, pack_name, seal};
use chatkeep_format::{ArchiveId, FolderRecord, Keyslot, ObjectName, PackRef, PageSet, PageSetBuilder};
use chatkeep_planner::{EntryPlan, Level, RetentionPolicy, SourceId, UploadId};
use chatkeep_sqlite::{Capture, Existing, Kind, page_digest};
use chatkeep_store::chaos::ChaosStore;
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{Store, StoreKey};
use chatkeepd::archive::Archive;
use chatkeepd::catalogue::{Catalogue, restorable};
use chatkeepd::event::{Opened, UploadOrder};
use chatkeepd::fault::Fault;
use chatkeepd::jobs::prune::{PruneReport, Pruning};
use chatkeepd::keyring::Keys;
use chatkeepd::restore::{Destination, Source};
use chatkeepd::spool::{Spool, Spooled};
use chatkeepd::writer::{Draft, Part, Writer, Written};
use rand_core::OsRng;

#[allow(unused_imports, reason = "not every test file uses both")]
pub(crate) use weak::{Permitting, Promising};

pub(crate) const HOUR_US: i64 = 3_600_000_000;
pub(crate) const DAY_US: i64 = 24 * HOUR_US;
/// When everything begins: a Thursday in 2020, where weeks and days begin.
pub(crate) const BEGIN_US: i64 = 18_263 * DAY_US;

/// Keeps what the tests say and nothing else.
pub(crate) const NOTHING: RetentionPolicy = RetentionPolicy {
    everything_for_ms: 0,
    hourly_for_ms: 0,
    daily_for_ms: 0,
    monthly_for_ms: Some(0),
    latest: 1,
    hourly: 0,
    daily: 0,
    monthly: 0,
};

const PAGE: usize = 512;
const PAGES: u32 = 4;
const ARCHIVE: ArchiveId = ArchiveId([9; 16]);

/// One machine and its store.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Arc<ChaosStore<MemoryStore>>,
    /// What stands between the machine and its store, if something does.
    pub(crate) front: Option<Arc<dyn Store>>,
    pub(crate) keys: Keys,
    /// What the database was at each point.
    states: BTreeMap<u64, Vec<Vec<u8>>>,
    /// Which pages each point changed.
    changed: BTreeMap<u64, BTreeSet<u32>>,
    pub(crate) pins: Vec<u64>,
}

/// What the daemon has while it runs.
pub(crate) struct Running {
    pub(crate) catalogue: Catalogue,
    pub(crate) opened: Opened,
}

impl World {
    pub(crate) fn new() -> Self {
        let keys = Keys {
            key: BackupKey::generate(&mut OsRng),
            roots: Arc::new(DataRoots::new(&mut OsRng)),
            counter: 1,
            slots: vec![Keyslot::Raw],
            secret: None,
        };
        Self {
            folder: tempfile::tempdir().unwrap(),
            store: Arc::new(ChaosStore::new(MemoryStore::new(), 7)),
            front: None,
            keys,
            states: BTreeMap::new(),
            changed: BTreeMap::new(),
            pins: Vec::new(),
        }
    }

    /// A copy with a store and a state of its own.
    pub(crate) async fn copy(&self) -> Self {
        let store = MemoryStore::new();
        for object in self.store.inner().list("").await.unwrap() {
            let body = self.store.inner().get(&object.key, None).await.unwrap();
            store.put(&object.key, body, chatkeep_store::PutCondition::Overwrite).await.unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        copy_folder(self.folder.path(), folder.path());
        Self {
            folder,
            store: Arc::new(ChaosStore::new(store, 7)),
            front: None,
            keys: self.keys.clone(),
            states: self.states.clone(),
            changed: self.changed.clone(),
            pins: self.pins.clone(),
        }
    }

    /// The same machine once more: its state, and for now a store without anything in it.
    pub(crate) fn copy_state(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(self.folder.path(), folder.path());
        Self {
            folder,
            store: Arc::new(ChaosStore::new(MemoryStore::new(), 7)),
            front: None,
            keys: self.keys.clone(),
            states: self.states.clone(),
            changed: self.changed.clone(),
            pins: self.pins.clone(),
        }
    }

    pub(crate) fn lose_cache(&self) {
        std::fs::remove_dir_all(self.folder.path().join("cache")).unwrap();
    }

    pub(crate) fn archive(&self) -> Archive {
        let store = self.front.clone().unwrap_or_else(|| self.store.clone());
        Archive { store, id: ARCHIVE }
    }

    /// The daemon starts.
    pub(crate) async fn start(&self) -> Running {
        self.start_beside(&Catalogue::open(&self.folder.path().join("cache")).unwrap()).await
    }

    /// The same, with a cache that is open already.
    pub(crate) async fn start_beside(&self, catalogue: &Catalogue) -> Running {
        let catalogue = catalogue.clone();
        let spool = Spool::open(self.folder.path(), &ARCHIVE).unwrap();
        let log = chatkeepd::log::open(&self.archive(), &self.keys.roots, &catalogue, &spool).await.unwrap();
        assert!(log.blocked.is_none(), "{:?}", log.blocked);
        let opened =
            Opened { archive: self.archive(), keys: self.keys.clone(), spool, log, vaults: Vec::new() };
        Running { catalogue, opened }
    }

    /// Writes and uploads entries of these levels, the first one at `at_us` and then one each second.
    pub(crate) async fn write(&mut self, levels: &[Level], at_us: i64) {
        let mut running = self.start().await;
        for (second, level) in (0_i64..).zip(levels) {
            self.write_one(
                &mut running,
                *level,
                at_us + second * 1_000_000,
                Vec::new(),
                Vec::new(),
                Vec::new(),
            )
            .await
            .unwrap();
        }
    }

    /// Writes and uploads one entry. `folders` may name `listed` packs in their lists; `objects` go up with it.
    pub(crate) async fn write_one(
        &mut self,
        running: &mut Running,
        level: Level,
        taken_at_us: i64,
        folders: Vec<FolderRecord>,
        listed_packs: Vec<[u8; 16]>,
        objects: Vec<Spooled>,
    ) -> Result<(), Fault> {
        self.spool_one(running, level, taken_at_us, folders, listed_packs, objects)?;
        self.upload(running).await
    }

    /// Writes one entry, which then waits in the queue.
    pub(crate) fn write_only(&mut self, running: &mut Running, level: Level, taken_at_us: i64) -> Written {
        self.spool_one(running, level, taken_at_us, Vec::new(), Vec::new(), Vec::new()).unwrap()
    }

    fn spool_one(
        &mut self,
        running: &mut Running,
        level: Level,
        taken_at_us: i64,
        folders: Vec<FolderRecord>,
        listed_packs: Vec<[u8; 16]>,
        mut objects: Vec<Spooled>,
    ) -> Result<Written, Fault> {
        let opened = &mut running.opened;
        let mut before = opened.log.written.clone();
        before.pins.clone_from(&self.pins);
        let seq = before.seq + 1;
        let links: Vec<_> = opened.log.chain.iter().map(chatkeepd::catalogue::Point::link).collect();
        let plan = EntryPlan::at_level(&links, level);
        let mut state =
            self.states.get(&before.seq).cloned().unwrap_or_else(|| vec![vec![0xee; PAGE]; PAGES as usize]);
        let mine =
            BTreeSet::from([(seq % u64::from(PAGES)) as u32 + 1, ((seq / 3) % u64::from(PAGES)) as u32 + 1]);
        for pgno in &mine {
            state[*pgno as usize - 1] =
                format!("page {pgno} of entry {seq}. ").repeat(64).into_bytes()[..PAGE].to_vec();
        }
        let is_base = plan.parent_seq == 0;
        let mut pages: BTreeSet<u32> = self
            .changed
            .range(plan.parent_seq + 1..)
            .flat_map(|(_, pages)| pages)
            .copied()
            .chain(mine.clone())
            .collect();
        if is_base {
            pages = (1..=PAGES).collect();
        }
        let set = |pages: &[u32]| {
            let mut set = PageSet::builder(PAGE as u32);
            for pgno in pages {
                PageSetBuilder::push(&mut set, *pgno, &state[*pgno as usize - 1], None);
            }
            set.finish()
        };
        let pages: Vec<u32> = pages.into_iter().collect();
        let packed = set(&pages[..1]).encode();
        let (pack, object) = self.pack(opened, seq, objects.len() as u32, &packed);
        objects.push(object);
        let mut digest = [0; 16];
        for (pgno, image) in (1..).zip(&state) {
            let page = page_digest(&before.digest_key, pgno, image);
            digest.iter_mut().zip(page).for_each(|(sum, byte)| *sum ^= byte);
        }
        let capture = Capture {
            is_base,
            parent: plan.parent_seq,
            kind: Kind::Opaque,
            page_size: PAGE as u32,
            page_count: PAGES,
            user_version: 0,
            application_id: 0,
            state_digest: digest,
            pages: pages.len() as u32,
            changed_pages: mine.len() as u32,
            bases: 0,
            unchanged: false,
            gap: None,
            bytes_read: 0,
            gone: false,
        };
        let inline = if pages.len() > 1 { set(&pages[1..]) } else { PageSet::default() };
        let part = Part { name: "messages.db".to_owned(), capture, packs: vec![pack], inline };
        let writer = Writer {
            archive: ARCHIVE,
            roots: self.keys.roots.clone(),
            spool: opened.spool.clone(),
            source_name: "chat".to_owned(),
            app_id: String::new(),
            level: 1,
        };
        let parent = opened.log.chain.iter().find(|point| point.seq == plan.parent_seq);
        let written = writer.publish(Draft {
            before: &before,
            parent,
            level: plan.level.number(),
            parts: vec![part],
            unchanged: Vec::new(),
            folders,
            listed_packs,
            objects,
            taken_at_us,
        })?;
        self.states.insert(seq, state);
        self.changed.insert(seq, mine);
        opened.log.wrote(&written);
        Ok(written)
    }

    /// Seals a pack into the queue.
    pub(crate) fn pack(
        &self,
        opened: &Opened,
        seq: u64,
        position: u32,
        plaintext: &[u8],
    ) -> (PackRef, Spooled) {
        let name = pack_name(&self.keys.roots, plaintext);
        let sealed = seal(&ARCHIVE, ObjectName::Pack(name), &self.keys.roots, plaintext, 1, &mut OsRng);
        let object = opened.spool.put_pack(seq, position, name, &sealed).unwrap();
        (PackRef { name, sealed_len: sealed.len() as u64, items: 1 }, object)
    }

    pub(crate) async fn upload(&self, running: &mut Running) -> Result<(), Fault> {
        let Running { catalogue, opened } = running;
        while let Some(written) = opened.log.waiting.front().cloned() {
            let last = written.objects.len() - 1;
            for (at, object) in written.objects.iter().enumerate() {
                let order = UploadOrder {
                    source: SourceId(0),
                    upload: UploadId(0),
                    object: object.clone(),
                    archive: opened.archive.clone(),
                    keys: opened.keys.clone(),
                    spool: opened.spool.clone(),
                    publishes: (at == last).then(|| written.clone()),
                    log: Box::new(opened.log.clone()),
                };
                assert!(!chatkeepd::hands::upload(catalogue, order).await?.spoiled);
                opened.log.confirmed = true;
            }
            opened.log.stored = written.head.clone();
            opened.log.waiting.pop_front();
        }
        Ok(())
    }

    /// A whole life of the daemon that does nothing but prune.
    pub(crate) async fn prune(&self, policy: RetentionPolicy, now_us: i64) -> Result<PruneReport, Fault> {
        let running = self.start().await;
        self.prune_with(&running, policy, now_us, false).await
    }

    pub(crate) async fn prune_with(
        &self,
        running: &Running,
        policy: RetentionPolicy,
        now_us: i64,
        dry_run: bool,
    ) -> Result<PruneReport, Fault> {
        let pruning = Pruning {
            opened: &running.opened,
            catalogue: &running.catalogue,
            pins: &self.pins,
            policy,
            now_us,
            dry_run,
            cancelled: &AtomicBool::new(false),
            progress: &|_, _| {},
        };
        pruning.run().await
    }

    /// The numbers of the points that are offered, oldest first.
    pub(crate) async fn offered(&self) -> Vec<u64> {
        let running = self.start().await;
        let points = running.catalogue.points(&ARCHIVE);
        restorable(&points, &running.catalogue.missing(&ARCHIVE)).into_iter().collect()
    }

    /// What is really in the store.
    pub(crate) async fn objects(&self) -> BTreeSet<StoreKey> {
        self.store.inner().list("").await.unwrap().into_iter().map(|object| object.key).collect()
    }

    /// What the offered points need of it.
    pub(crate) async fn needed(&self) -> BTreeSet<StoreKey> {
        let points = self.start().await.catalogue.points(&ARCHIVE);
        let names = points.iter().flat_map(|point| {
            let packs = point.packs.iter().map(|name| ObjectName::Pack(*name));
            packs.chain([ObjectName::Entry(point.seq)])
        });
        names.map(|name| StoreKey::try_from(name.store_key(&ARCHIVE)).unwrap()).collect()
    }

    /// The numbers of the entries in the store.
    pub(crate) async fn entries(&self) -> Vec<u64> {
        let listed = self.objects().await;
        let entries = listed.iter().filter_map(|key| match ObjectName::parse(key.as_str()) {
            Some((_, ObjectName::Entry(seq))) => Some(seq),
            _ => None,
        });
        entries.collect()
    }

    pub(crate) async fn assert_all_offered_restore(&self, when: &str) -> Vec<u64> {
        let offered = self.offered().await;
        for seq in &offered {
            self.assert_restores(*seq, when).await;
        }
        offered
    }

    /// The point restores, and is what it was.
    pub(crate) async fn assert_restores(&self, seq: u64, when: &str) {
        self.assert_restores_from(self.archive(), seq, when).await;
    }

    /// The point restores from this copy, and is what it was.
    pub(crate) async fn assert_restores_from(&self, archive: Archive, seq: u64, when: &str) {
        let target = tempfile::tempdir().unwrap();
        let source = Source {
            archive,
            roots: self.keys.roots.clone(),
            cancelled: Arc::new(AtomicBool::new(false)),
            progress: Box::new(|_, _| {}),
        };
        let destination = Destination {
            folder: std::fs::File::open(target.path()).unwrap().into(),
            file_name: Some("messages.db".to_owned()),
            in_place: false,
            existing: Existing::Refuse,
            label: String::new(),
        };
        let runtime = tokio::runtime::Handle::current();
        let restored =
            tokio::task::spawn_blocking(move || source.restore(seq, destination, &runtime)).await.unwrap();
        assert!(restored.is_ok(), "point {seq} {when}: {restored:?}");
        let file = std::fs::read(target.path().join("messages.db")).unwrap();
        assert!(file == self.states[&seq].concat(), "point {seq} {when} is another state");
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
