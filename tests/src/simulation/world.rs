//! A machine with apps, a clock that is ours, and a store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use chatkeep_crypto::{BackupKey, DataRoots};
use chatkeep_format::{ArchiveId, Keyslot};
use chatkeep_sqlite::{Existing, Integrity};
use chatkeep_store::Store;
use chatkeepd::archive::Archive;
use chatkeepd::clock::Clock;
use chatkeepd::keyring::Keys;
use chatkeepd::restore::{Destination, Source};

use super::app::{App, fingerprint_of};
use super::model::Model;
use crate::stack::random::Random;

/// When the story begins, µs since 1970.
const BEGIN_US: u64 = 1_700_000_000_000_000;

/// Counts.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    /// Times that the service was dropped without a word.
    pub crashes: u64,
    /// Those in the middle of a store call.
    pub crashes_in_calls: u64,
    /// Entries written.
    pub entries: u64,
    /// By level.
    pub levels: [u64; 9],
    /// Points announced.
    pub announced: u64,
    /// Points restored and compared.
    pub restores: u64,
    /// The longest chain.
    pub chain_max: u64,
    /// And how many of its entries are there because a plan was not carried out.
    pub late_max: u64,
    /// Times that it was decided what is forgotten, points that were, and objects deleted.
    pub prunes: u64,
    /// See above.
    pub forgotten: u64,
    /// See above.
    pub deleted: u64,
    /// Databases read as a whole, though a table was there.
    pub gaps: u64,
}

impl Figures {
    /// Adds another world.
    pub fn add(&mut self, other: &Figures) {
        self.crashes += other.crashes;
        self.crashes_in_calls += other.crashes_in_calls;
        self.entries += other.entries;
        self.announced += other.announced;
        self.restores += other.restores;
        self.gaps += other.gaps;
        self.prunes += other.prunes;
        self.forgotten += other.forgotten;
        self.deleted += other.deleted;
        self.chain_max = self.chain_max.max(other.chain_max);
        self.late_max = self.late_max.max(other.late_max);
        self.levels.iter_mut().zip(other.levels).for_each(|(sum, more)| *sum += more);
    }
}

/// Everything that survives the service.
pub struct World {
    pub(super) folder: PathBuf,
    pub(super) state: PathBuf,
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Keys,
    pub(super) apps: Vec<App>,
    pub(super) now_us: Arc<AtomicU64>,
    pub(super) model: Model,
    pub(super) random: Random,
    pub(super) runtime: tokio::runtime::Runtime,
    /// Entries written below their level since the last that was as planned.
    pub(super) late: u64,
    /// What happened.
    pub figures: Figures,
}

/// Numbers that follow from a seed, for keys that nobody has to be kept from.
struct Seeded(Random);

impl rand_core::RngCore for Seeded {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0.number()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.0.number().to_le_bytes()[..chunk.len()]);
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl rand_core::CryptoRng for Seeded {}

impl World {
    /// A world in `folder` with so many databases. `program` is `chatkeep-writer`.
    pub fn new(
        folder: &Path,
        store: Arc<dyn Store>,
        program: &Path,
        databases: usize,
        seed: u64,
        model: Model,
    ) -> Result<World> {
        let mut rng = Seeded(Random::new(seed));
        let keys = Keys {
            key: BackupKey::generate(&mut rng),
            roots: Arc::new(DataRoots::new(&mut rng)),
            counter: 1,
            slots: vec![Keyslot::Raw],
            secret: None,
        };
        let app = folder.join("app");
        std::fs::create_dir_all(&app)?;
        let names = ["messages.db", "media.db", "keys.db"];
        let apps = names[..databases].iter().map(|name| App::new(program, &app.join(name))).collect();
        let mut world = World {
            folder: folder.to_owned(),
            state: folder.join("state-0"),
            store,
            keys,
            apps,
            now_us: Arc::new(AtomicU64::new(BEGIN_US)),
            model,
            random: Random::new(seed ^ 0x3107_2a0d),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            late: 0,
            figures: Figures::default(),
        };
        std::fs::create_dir_all(&world.state)?;
        world.write_all()?;
        Ok(world)
    }

    pub(super) fn archive(&self) -> Archive {
        Archive { store: self.store.clone(), id: ArchiveId([9; 16]) }
    }

    pub(super) fn clock(&self) -> Clock {
        let now_us = self.now_us.clone();
        Clock::new(move || now_us.load(Ordering::Relaxed))
    }

    /// Lets time go by, or jump.
    pub fn pass(&mut self, seconds: i64) {
        let now = self.now_us.load(Ordering::Relaxed);
        self.now_us
            .store(now.saturating_add_signed(seconds * 1_000_000).max(BEGIN_US / 2), Ordering::Relaxed);
    }

    /// Every app writes.
    pub fn write_all(&mut self) -> Result<()> {
        self.apps.iter_mut().try_for_each(|app| app.write(&mut self.random))
    }

    /// One app writes.
    pub fn write(&mut self) -> Result<()> {
        let at = self.random.below(self.apps.len() as u64) as usize;
        self.apps[at].write(&mut self.random)
    }

    pub(super) fn fingerprints(&mut self) -> Result<Vec<String>> {
        self.apps.iter_mut().map(App::fingerprint).collect()
    }

    /// Every announced point restores.
    pub fn check_all(&mut self) -> Result<()> {
        self.model.announced().into_iter().try_for_each(|seq| self.check_point(seq))
    }

    /// Restores a point, and compares it with what it must be.
    pub fn check_point(&mut self, seq: u64) -> Result<()> {
        let expected = self.model.at(seq).with_context(|| format!("point {seq} was never written"))?.to_vec();
        let folder = tempfile::tempdir_in(&self.folder)?;
        let source = Source {
            archive: self.archive(),
            roots: self.keys.roots.clone(),
            cancelled: Arc::new(AtomicBool::new(false)),
            progress: Box::new(|_, _| {}),
        };
        let destination = Destination {
            folder: std::fs::File::open(folder.path())?.into(),
            file_name: None,
            in_place: false,
            existing: Existing::Refuse,
            label: String::new(),
        };
        let restored = source.restore(seq, destination, self.runtime.handle());
        let report = restored.map_err(|fault| anyhow::anyhow!("point {seq}: {fault:?}"))?;
        ensure!(report.databases.len() == expected.len(), "point {seq} has other databases");
        for (app, expected) in self.apps.iter().zip(&expected) {
            let name = app.database().file_name().context("a file has a name")?.to_string_lossy();
            let database = report.databases.iter().find(|database| *database.path_name == *name);
            let integrity = &database.with_context(|| format!("point {seq} lacks {name}"))?.integrity;
            ensure!(*integrity == Integrity::Ok, "point {seq}: {integrity:?}");
            let found = fingerprint_of(&folder.path().join(&*name))?;
            if found != *expected {
                bail!("point {seq}, {name}: {expected:?} was captured, {found:?} came back");
            }
        }
        let entries = u64::from(report.entries);
        ensure!(
            entries <= chatkeep_planner::levels::CHAIN_LINKS_MAX as u64 + self.figures.late_max,
            "a restore of point {seq} reads {entries} entries"
        );
        self.figures.chain_max = self.figures.chain_max.max(entries);
        self.figures.restores += 1;
        Ok(())
    }
}
