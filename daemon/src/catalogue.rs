//! What the device remembers of its archives: newest entry, recovery points, keyring, ages. A cache in sled.
//!
//! It may be deleted at any time, and is thrown away when it cannot be read: the store has the truth. The one thing
//! it adds is memory: a store that shows less than was once seen is noticed.

mod accounts;
mod copies;
mod forgotten;

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chatkeep_format::{ArchiveId, DatabaseKind, DatabaseRecord, DatabaseState, Entry, PageSet};
use chatkeep_planner::{ChainLink, Level, Spent};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::damage::DamageReport;
use crate::drill::Drills;
use crate::known::KnownFiles;
use crate::pack_pages::PackPages;
pub use copies::{CopyFacts, CopyId};
pub use forgotten::{PruneFacts, restorable};

/// Set while the cache is opened: a panic then means damage, anywhere else it ends the service.
pub static OPENING: AtomicBool = AtomicBool::new(false);

/// A cache that was just closed is held for a moment by threads of the library.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Whether somebody has the cache open: nothing is wrong with it. The library has no kind of error for that.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// Where the writer of an archive stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Newest entry in the store that this device wrote or saw; 0 for none.
    pub seq: u64,
    /// Its digest; zeros for none.
    pub digest: [u8; 32],
    /// Oldest entry that a restore of it needs.
    pub base_seq: u64,
    /// Points that are to stay, ascending.
    pub pins: Vec<u64>,
    /// Key of the page digests of this archive.
    pub digest_key: [u8; 32],
    /// This installation.
    pub writer_id: [u8; 16],
    /// Fences older writers.
    pub writer_epoch: u64,
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Entry.
    pub seq: u64,
    /// Its digest, which entries that build on it name.
    pub digest: [u8; 32],
    /// The entry it builds on; 0 for a base.
    pub parent_seq: u64,
    /// Oldest entry that a restore needs.
    pub base_seq: u64,
    /// How long a span it stands for.
    pub level: u8,
    /// When it was captured, µs since 1970.
    pub taken_at_us: i64,
    /// Sealed bytes of the entry and its packs.
    pub bytes: u64,
    /// Every pack that it names, also in lists of files, sorted.
    pub packs: Vec<[u8; 16]>,
    /// Its databases.
    pub databases: Vec<DatabaseFacts>,
    /// Its folders of attachments.
    #[serde(default)]
    pub folders: Vec<String>,
    /// When it was last read back and proved, µs since 1970; 0 for never.
    pub verified_us: u64,
    /// A list of files that it names could not be read: it needs more packs than are known.
    #[serde(default)]
    pub lists_unread: bool,
}

impl Point {
    /// What an entry says of itself. `len` is its sealed length.
    pub fn of(entry: &Entry, digest: [u8; 32], len: u64) -> Self {
        let pages = entry.databases.iter().flat_map(|database| &database.packs);
        let lists = entry.folders.iter().flat_map(|folder| &folder.packs);
        Self {
            seq: entry.seq,
            digest,
            parent_seq: entry.parent_seq,
            base_seq: entry.base_seq,
            level: entry.level,
            taken_at_us: entry.taken_at_us,
            bytes: len + pages.chain(lists).map(|pack| pack.sealed_len).sum::<u64>(),
            packs: entry.pack_names(),
            databases: entry.databases.iter().map(DatabaseFacts::of).collect(),
            folders: entry.folders.iter().map(|folder| folder.name.clone()).collect(),
            verified_us: 0,
            lists_unread: false,
        }
    }

    /// Adds packs that it needs.
    pub fn refer_to(&mut self, packs: Vec<[u8; 16]>) {
        self.packs.extend(packs);
        self.packs.sort_unstable();
        self.packs.dedup();
    }

    /// For the planner.
    pub fn link(&self) -> ChainLink {
        ChainLink {
            seq: self.seq,
            level: Level::from_number(self.level).unwrap_or(Level::Base),
            taken_at_us: self.taken_at_us,
            bytes: self.bytes,
        }
    }
}

/// What an entry says of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Its file name.
    pub name: String,
    /// It is encrypted by its app.
    pub opaque: bool,
    /// Bytes of a page.
    pub page_size: u32,
    /// Pages.
    pub page_count: u32,
    /// SQLite's `user_version`.
    pub user_version: u32,
    /// SQLite's `application_id`.
    pub application_id: u32,
    /// Digest over all pages.
    pub state_digest: [u8; 16],
}

impl DatabaseFacts {
    fn of(record: &DatabaseRecord) -> Self {
        Self {
            name: record.name.clone(),
            opaque: record.kind == DatabaseKind::Opaque,
            page_size: record.page_size,
            page_count: record.page_count,
            user_version: record.user_version,
            application_id: record.application_id,
            state_digest: record.state_digest,
        }
    }

    /// The record of a database that is as it was at the parent.
    pub fn unchanged(self) -> DatabaseRecord {
        DatabaseRecord {
            name: self.name,
            state: DatabaseState::Present,
            kind: if self.opaque { DatabaseKind::Opaque } else { DatabaseKind::Plain },
            is_base: false,
            page_size: self.page_size,
            page_count: self.page_count,
            user_version: self.user_version,
            application_id: self.application_id,
            state_digest: self.state_digest,
            changed_pages: 0,
            packs: Vec::new(),
            inline: PageSet::default(),
        }
    }
}

/// Ages of the three different successes, in µs since 1970; 0 for never.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The database was looked at and everything new was captured.
    pub captured_us: u64,
    /// The newest recovery point reached the store.
    pub uploaded_us: u64,
    /// Stored objects were read back and opened.
    pub verified_us: u64,
    /// A whole restore was carried out and proved.
    pub drilled_us: u64,
    /// Locks against deletion were renewed.
    pub retained_us: u64,
    /// The secret was last proved by the user.
    pub secret_checked_us: u64,
    /// When the key was made, or last rotated.
    pub key_created_us: u64,
    /// When a vault was last told the newest entry.
    pub witnessed_us: u64,
    /// The number of that entry.
    pub witnessed_seq: u64,
}

/// How late the library's threads may look for work that they are not woken for, in ns: a minute. There are seven of them,
/// they look every second, and never end: on a machine at rest they would be its most frequent guests.
const SLACK_NS: u64 = 60_000_000_000;

/// Threads that are begun meanwhile have time (`PR_SET_TIMERSLACK` is inherited); and so has this one, so nothing sleeps
/// here.
struct Unhurried {
    before: Option<NonZeroU64>,
}

impl Unhurried {
    fn begin() -> Self {
        let before = rustix::thread::current_timer_slack().ok().and_then(NonZeroU64::new);
        // Where it cannot be set, they wake up more often: nothing else depends on it.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(SLACK_NS));
        Self { before }
    }
}

impl Drop for Unhurried {
    fn drop(&mut self) {
        let _ = rustix::thread::set_current_timer_slack(self.before);
    }
}

/// The cache.
#[derive(Clone)]
pub struct Catalogue {
    db: sled::Db,
    deleting: forgotten::BeingDeleted,
}

impl Catalogue {
    /// Opens the cache in `folder`; one that is damaged is moved away and begun anew.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let open = || {
            let _unhurried = Unhurried::begin();
            sled::Config::new().path(folder).cache_capacity(4 << 20).flush_every_ms(None).open()
        };
        let open = || {
            for _ in 1..LOCK_TRIES {
                match open() {
                    Err(error) if is_locked(&error) => std::thread::sleep(LOCK_PAUSE),
                    opened => return opened,
                }
            }
            open()
        };
        // The library panics on some kinds of damage.
        OPENING.store(true, Ordering::SeqCst);
        let opened = std::panic::catch_unwind(open);
        OPENING.store(false, Ordering::SeqCst);
        let db = match opened {
            Ok(Ok(db)) => db,
            // A full disk or too many open files pass: what is whole is not thrown away for them.
            Ok(Err(sled::Error::Io(error))) if error.raw_os_error().is_some() => return Err(error.into()),
            Ok(Err(error)) if is_locked(&error) => return Err(error.into()),
            damaged => {
                let error =
                    damaged.ok().and_then(Result::err).map_or("it panicked".to_owned(), |e| e.to_string());
                warn!(%error, "the cache cannot be read, it is rebuilt from the stores");
                let aside = folder.with_extension("damaged");
                let _ = std::fs::remove_dir_all(&aside);
                std::fs::rename(folder, &aside)?;
                open()?
            }
        };
        // Its threads begin with the first write, if they have not begun.
        let _unhurried = Unhurried::begin();
        db.open_tree("opened")?.insert("", "")?;
        db.flush()?;
        Ok(Self { db, deleting: forgotten::BeingDeleted::default() })
    }

    /// Where the writer stands; nothing when this device never wrote or the cache was lost.
    pub fn head(&self, archive: &ArchiveId) -> anyhow::Result<Option<Head>> {
        let Some(value) = self.db.open_tree("heads")?.get(archive.0)? else { return Ok(None) };
        // One that cannot be parsed is as good as none: it is made anew from the store.
        Ok(serde_json::from_slice(&value).ok())
    }

    /// Remembers where the writer stands, and the point it made. Durable when this returns.
    pub fn advance(&self, archive: &ArchiveId, head: &Head, point: Option<&Point>) -> anyhow::Result<()> {
        if let Some(point) = point {
            self.put("points", &point_key(archive, point.seq), point)?;
        }
        self.put("heads", &archive.0, head)?;
        self.db.flush()?;
        Ok(())
    }

    /// All known recovery points, oldest first.
    pub fn points(&self, archive: &ArchiveId) -> Vec<Point> {
        self.points_in("points", archive)
    }

    /// One recovery point.
    pub fn point(&self, archive: &ArchiveId, seq: u64) -> Option<Point> {
        self.get("points", &point_key(archive, seq))
    }

    /// Adds or replaces a point.
    pub fn put_point(&self, archive: &ArchiveId, point: &Point) -> anyhow::Result<()> {
        self.put("points", &point_key(archive, point.seq), point)
    }

    /// The newest keyring that was seen: counter and bytes.
    pub fn keyring(&self, archive: &ArchiveId) -> Option<(u64, Vec<u8>)> {
        self.get("keyrings", &archive.0)
    }

    /// Remembers the newest keyring.
    pub fn put_keyring(&self, archive: &ArchiveId, counter: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.put("keyrings", &archive.0, &(counter, bytes))?;
        self.db.flush()?;
        Ok(())
    }

    /// Whether the entry with this digest was tried to be put into a store that cannot be read.
    pub fn was_tried(&self, archive: &ArchiveId, digest: &[u8; 32]) -> bool {
        self.get::<[u8; 32]>("tried", &archive.0).is_some_and(|tried| tried == *digest)
    }

    /// It is tried from now on. Durable when this returns.
    pub fn put_tried(&self, archive: &ArchiveId, digest: &[u8; 32]) -> anyhow::Result<()> {
        self.put("tried", &archive.0, digest)?;
        self.db.flush()?;
        Ok(())
    }

    /// Ages.
    pub fn facts(&self, archive: &ArchiveId) -> Facts {
        self.get("facts", &archive.0).unwrap_or_default()
    }

    /// Changes ages.
    pub fn update_facts(&self, archive: &ArchiveId, update: impl FnOnce(&mut Facts)) -> Facts {
        let mut facts = self.facts(archive);
        update(&mut facts);
        if let Err(error) = self.put("facts", &archive.0, &facts) {
            warn!(%error, "the cache cannot be written");
        }
        facts
    }

    /// What was asked of a store, and in which month (counted from January 1970).
    pub fn spent(&self, store: &str) -> Option<(u32, Spent)> {
        let (month, [writes, reads, deletes, bytes_up, bytes_down]): (u32, [u64; 5]) =
            self.get("spent", store.as_bytes())?;
        Some((month, Spent { writes, reads, deletes, bytes_up, bytes_down }))
    }

    /// Remembers what was asked of a store.
    pub fn put_spent(&self, store: &str, month: u32, spent: Spent) {
        let counts = [spent.writes, spent.reads, spent.deletes, spent.bytes_up, spent.bytes_down];
        if let Err(error) = self.put("spent", store.as_bytes(), &(month, counts)) {
            warn!(%error, "the cache cannot be written");
        }
    }

    /// What is known to be damaged, located among the points that there are.
    pub fn damage(&self, archive: &ArchiveId) -> DamageReport {
        let mut report: DamageReport = self.get("damage", &archive.0).unwrap_or_default();
        if !report.is_empty() {
            report.locate(&self.points(archive), &self.forgotten(archive));
        }
        report
    }

    /// Changes what is known to be damaged; `update` gets the forgotten points as well, for chains lead over them. Returns
    /// it, located.
    pub fn update_damage(
        &self,
        archive: &ArchiveId,
        update: impl FnOnce(&mut DamageReport, &[Point]),
    ) -> DamageReport {
        let (points, forgotten) = (self.points(archive), self.forgotten(archive));
        let mut report: DamageReport = self.get("damage", &archive.0).unwrap_or_default();
        update(&mut report, &[&points[..], &forgotten].concat());
        report.locate(&points, &forgotten);
        if let Err(error) = self.put("damage", &archive.0, &report) {
            warn!(%error, "the cache cannot be written");
        }
        self.flush();
        report
    }

    /// Which pages a pack holds, if they are whole ones and this device wrote or read it.
    pub fn pack_pages(&self, archive: &ArchiveId, pack: &[u8; 16]) -> Option<PackPages> {
        let value = self.db.open_tree("packs").ok()?.get([archive.0, *pack].concat()).ok()??;
        PackPages::decode(&value)
    }

    /// Remembers which pages a pack holds, unless it is known as of a newer entry.
    pub fn put_pack_pages(
        &self,
        archive: &ArchiveId,
        pack: &[u8; 16],
        pages: &PackPages,
    ) -> anyhow::Result<()> {
        if self.pack_pages(archive, pack).is_none_or(|known| known.seq < pages.seq) {
            self.db.open_tree("packs")?.insert([archive.0, *pack].concat(), pages.encode())?;
        }
        Ok(())
    }

    /// Forgets the pages of packs that are no more.
    pub fn retain_packs(&self, archive: &ArchiveId, keep: impl Fn(&[u8; 16]) -> bool) -> anyhow::Result<()> {
        let tree = self.db.open_tree("packs")?;
        for key in tree.scan_prefix(archive.0).keys() {
            let key = key?;
            if key.last_chunk().is_some_and(|pack| !keep(pack)) {
                tree.remove(key)?;
            }
        }
        Ok(())
    }

    /// What rehearsals found, as it was written: not proved yet.
    pub fn drills(&self, archive: &ArchiveId) -> Drills {
        self.get("drills", &archive.0).unwrap_or_default()
    }

    /// Changes what rehearsals found.
    pub fn update_drills(&self, archive: &ArchiveId, update: impl FnOnce(&mut Drills)) {
        let mut drills = self.drills(archive);
        update(&mut drills);
        if let Err(error) = self.put("drills", &archive.0, &drills) {
            warn!(%error, "the cache cannot be written");
        }
        self.flush();
    }

    /// What is known of the files of an archive.
    pub fn known_files(&self, archive: &ArchiveId) -> anyhow::Result<KnownFiles> {
        KnownFiles::open(&self.db, archive)
    }

    /// Writes everything out.
    pub fn flush(&self) {
        if let Err(error) = self.db.flush() {
            warn!(%error, "the cache cannot be written");
        }
    }

    fn points_in(&self, tree: &str, archive: &ArchiveId) -> Vec<Point> {
        let Ok(tree) = self.db.open_tree(tree) else { return Vec::new() };
        let points = tree.scan_prefix(archive.0).values().flatten();
        points.filter_map(|value| serde_json::from_slice(&value).ok()).collect()
    }

    fn get<T: for<'de> Deserialize<'de>>(&self, tree: &str, key: &[u8]) -> Option<T> {
        let value = self.db.open_tree(tree).ok()?.get(key).ok()??;
        serde_json::from_slice(&value).ok()
    }

    fn put<T: Serialize>(&self, tree: &str, key: &[u8], value: &T) -> anyhow::Result<()> {
        self.db.open_tree(tree)?.insert(key, serde_json::to_vec(value)?)?;
        Ok(())
    }
}

fn point_key(archive: &ArchiveId, seq: u64) -> Vec<u8> {
    [&archive.0[..], &seq.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A point without content.
    pub(super) fn point(seq: u64, parent_seq: u64) -> Point {
        Point {
            seq,
            digest: [8; 32],
            parent_seq,
            base_seq: 2,
            level: 0,
            taken_at_us: 7,
            bytes: 9,
            packs: vec![[4; 16]],
            databases: Vec::new(),
            folders: Vec::new(),
            verified_us: 0,
            lists_unread: false,
        }
    }

    #[test]
    fn a_cache_that_somebody_has_open_is_waited_for_and_not_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let archive = ArchiveId([5; 16]);
        let catalogue = Catalogue::open(folder.path()).unwrap();
        catalogue.put_point(&archive, &point(1, 0)).unwrap();
        let path = folder.path().to_owned();
        let second = std::thread::spawn(move || Catalogue::open(&path).unwrap());
        std::thread::sleep(LOCK_PAUSE);
        drop(catalogue);
        assert_eq!(second.join().unwrap().points(&archive).len(), 1);
    }

    #[test]
    fn the_cache_remembers_and_a_broken_one_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let archive = ArchiveId([5; 16]);
        let head = Head {
            seq: 300,
            digest: [1; 32],
            base_seq: 2,
            pins: vec![7],
            digest_key: [2; 32],
            writer_id: [3; 16],
            writer_epoch: 1,
        };
        {
            let catalogue = Catalogue::open(&path).unwrap();
            for seq in [2, 300] {
                catalogue.advance(&archive, &head, Some(&point(seq, 0))).unwrap();
            }
            catalogue.update_facts(&archive, |facts| facts.drilled_us = 11);
        }
        {
            let catalogue = Catalogue::open(&path).unwrap();
            assert_eq!(catalogue.head(&archive).unwrap(), Some(head));
            assert_eq!(catalogue.points(&archive).iter().map(|p| p.seq).collect::<Vec<_>>(), [2, 300]);
            assert_eq!(catalogue.facts(&archive).drilled_us, 11);
            assert_eq!(catalogue.points(&ArchiveId([6; 16])), []);
        }
        std::fs::write(path.join("conf"), b"not a sled configuration").unwrap();
        let catalogue = Catalogue::open(&path).unwrap();
        assert_eq!(catalogue.head(&archive).unwrap(), None);
    }
}
