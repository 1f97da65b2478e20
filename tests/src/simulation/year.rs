//! A year of hourly captures of a real, small database: real entries in a store, retention and deletion as planned.
//!
//! `chatkeep_planner::year` models a year of thousands of messages with sizes that were measured; this one shows that what
//! is planned is also what is written, deleted and restored.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use chatkeep_planner::year::PriceList;
use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{Store, StoreKey};

use super::life::{Life, Stop};
use super::model::Model;
use super::world::World;

/// The service is killed and started again so often.
const DAYS_OF_A_LIFE: u32 = 15;

/// What came of it.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Days lived through.
    pub days: u32,
    /// Entries written.
    pub entries: u64,
    /// By level.
    pub levels: [u64; 9],
    /// The database at the end.
    pub database_bytes: u64,
    /// Objects at the end.
    pub objects: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// The most bytes at the end of a day.
    pub stored_bytes_max: u64,
    /// Objects uploaded.
    pub puts: u64,
    /// Bytes uploaded.
    pub put_bytes: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Points that are kept, or carried for others.
    pub points: u64,
    /// All of them, restored and compared.
    pub restores: u64,
    /// The longest chain of these.
    pub chain_max: u64,
    /// Objects that a restore of the newest point reads.
    pub restore_objects: u64,
    /// And how long it takes here, in milliseconds.
    pub restore_ms: u64,
    /// What storing and requests cost on S3, in US dollars.
    pub dollars: f64,
}

struct Year {
    world: World,
    store: Arc<MemoryStore>,
    byte_days: f64,
    report: Report,
}

/// Lives through so many days.
pub fn live(parent: &Path, program: &Path, days: u32, seed: u64) -> Result<Report> {
    let folder = tempfile::Builder::new().prefix("ck").tempdir_in(parent)?;
    let store = Arc::new(MemoryStore::new());
    let world = World::new(folder.path(), store.clone(), program, 1, seed, Model::default())?;
    let mut year = Year { world, store, byte_days: 0.0, report: Report { days, ..Report::default() } };
    let mut life = Life::begin(&year.world).map_err(serious)?;
    for day in 0..days {
        for _ in 0..24 {
            year.hour(&mut life).with_context(|| format!("on day {day}"))?;
        }
        year.prune(&mut life).with_context(|| format!("on day {day}"))?;
        if day % DAYS_OF_A_LIFE == DAYS_OF_A_LIFE - 1 {
            life.crash(&mut year.world)?;
            life = Life::begin(&year.world).map_err(serious)?;
        }
    }
    year.finish(life)
}

fn serious(stop: Stop) -> anyhow::Error {
    match stop {
        Stop::Fault(fault) => anyhow::anyhow!("the service says: {fault:?}"),
        Stop::Broken(error) => error,
    }
}

impl Year {
    fn hour(&mut self, life: &mut Life) -> Result<()> {
        self.world.apps[0].say(&mut self.world.random)?;
        self.world.pass(3600);
        ensure!(life.capture(&mut self.world).map_err(serious)?, "nothing was captured");
        let written = life.newest().context("something was just written")?;
        self.report.puts += written.objects.len() as u64;
        self.report.put_bytes += written.point.bytes;
        while life.upload(&mut self.world).map_err(serious)? {}
        ensure!(life.is_done(), "the queue is not empty");
        Ok(())
    }

    /// Lengths of all objects, by key.
    fn objects(&self) -> Result<BTreeMap<StoreKey, u64>> {
        let listed = self.world.runtime.block_on(self.store.list(""))?;
        Ok(listed.into_iter().map(|object| (object.key, object.len)).collect())
    }

    /// Once a day.
    fn prune(&mut self, life: &mut Life) -> Result<()> {
        let report = life.prune(&mut self.world).map_err(serious)?;
        ensure!(report.hindrance.is_none(), "nothing is deleted: {:?}", report.hindrance);
        let stored: u64 = self.objects()?.values().sum();
        self.byte_days += stored as f64;
        self.report.stored_bytes_max = self.report.stored_bytes_max.max(stored);
        Ok(())
    }

    /// Restores everything that is kept, and adds up.
    fn finish(mut self, life: Life) -> Result<Report> {
        let points = life.points(&self.world);
        life.check_listed(&self.world)?;
        life.finish();
        for seq in points.keys() {
            self.world.check_point(*seq)?;
        }
        let newest = points.keys().next_back().copied().context("there are points")?;
        let began = Instant::now();
        self.world.check_point(newest)?;
        let restore_ms = began.elapsed().as_millis() as u64;
        let mut restore_objects = 0;
        let mut next = Some(newest);
        while let Some(point) = next.and_then(|seq| points.get(&seq)) {
            restore_objects += 1 + point.packs.len() as u64;
            next = (point.parent_seq > 0).then_some(point.parent_seq);
        }
        let objects = self.objects()?;
        let prices = PriceList::S3_STANDARD;
        let storage = self.byte_days / 1e9 * 24.0 / 730.0 * prices.gigabyte_month;
        let requests = self.report.puts as f64 / 1e6 * prices.million_puts;
        let figures = &self.world.figures;
        Ok(Report {
            entries: figures.entries,
            levels: figures.levels,
            database_bytes: std::fs::metadata(self.world.apps[0].database())?.len(),
            objects: objects.len() as u64,
            stored_bytes: objects.values().sum(),
            deletes: figures.deleted,
            points: points.len() as u64,
            restores: figures.restores,
            chain_max: figures.chain_max,
            restore_objects,
            restore_ms,
            dollars: storage + requests,
            ..self.report
        })
    }
}
