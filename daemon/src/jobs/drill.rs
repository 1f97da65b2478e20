//! A rehearsal: a restore in full into a folder of our own, checked, counted, and thrown away.
//!
//! What is restored is plaintext, so it lies in the service's own folder with mode 0700, is removed whatever happens, and is
//! swept at the next start should the service be killed meanwhile.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use chatkeep_ipc::Error;
use chatkeep_sqlite::{Existing, count_rows};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::{Job, blocking};
use crate::drill::{DrillFailure, DrillRecord, Verdict, next_older};
use crate::event::{Opened, Outcome};
use crate::fault::{Fault, Result};
use crate::restore::{Destination, Source};

/// Room that a rehearsal leaves to others, in bytes (256 MiB).
const RESERVE: u64 = 256 << 20;

impl Job {
    /// Rehearses a restore of the newest point, and then of an older one: these take turns.
    ///
    /// What goes wrong is kept as the last failure, beside the last that went well.
    pub(super) async fn drill(&self, opened: &Opened) -> Result<Outcome> {
        let id = opened.archive.id;
        let points = self.tools.catalogue.points(&id);
        let newest = points.iter().map(|point| point.seq).max();
        let newest = newest.ok_or_else(|| Error::NotFound("there is no recovery point yet".to_owned()))?;
        if let Err(fault) = self.rehearse(opened, newest, false).await {
            return Ok(Outcome::Drilled { points: Vec::new(), failure: Some(fault) });
        }
        let damage = self.tools.catalogue.damage(&id);
        let others = points.iter().map(|point| point.seq);
        let others: Vec<u64> = others.filter(|seq| *seq != newest && !damage.affects(*seq)).collect();
        let last = self.tools.catalogue.drills(&id).prove(&id, &opened.keys.roots).older;
        let Some(older) = next_older(&others, last.map(|record| record.seq)) else {
            return Ok(Outcome::Drilled { points: vec![newest], failure: None });
        };
        Ok(match self.rehearse(opened, older, true).await {
            Ok(()) => Outcome::Drilled { points: vec![newest, older], failure: None },
            Err(fault) => Outcome::Drilled { points: vec![newest], failure: Some(fault) },
        })
    }

    /// One point, and what came of it into the catalogue.
    async fn rehearse(&self, opened: &Opened, seq: u64, older: bool) -> Result<()> {
        self.phase(if older { "rehearsing an older point" } else { "rehearsing a restore" });
        let scratch = self.tools.paths.drills().join(self.id.to_string());
        let source = self.source(opened);
        let runtime = Handle::current();
        let rehearsed = blocking(move || rehearse_in(&scratch, &source, seq, &runtime, free_bytes)).await;
        let catalogue = &self.tools.catalogue;
        let id = opened.archive.id;
        match &rehearsed {
            Ok(record) => {
                let sealed = record.seal(&opened.keys.roots);
                catalogue.update_drills(&id, |drills| {
                    drills.failure = drills.failure.take().filter(|failure| failure.older != older);
                    *(if older { &mut drills.older } else { &mut drills.newest }) = sealed;
                });
                let DrillRecord { pages, bytes, tables, rows, objects, .. } = *record;
                info!(seq, pages, bytes, tables, rows, objects, "a restore was rehearsed");
            }
            Err(fault) if matches!(fault.error, Error::Cancelled(_)) => {}
            Err(fault) => {
                warn!(seq, error = %fault.error.short_name(), "a rehearsal of a restore failed");
                let (error, text) = fault.pair();
                let at_us = crate::clock::now_us();
                let failure = DrillFailure { seq, older, at_us, error, text };
                catalogue.update_drills(&id, |drills| drills.failure = Some(failure));
            }
        }
        rehearsed.map(drop)
    }
}

/// A folder that is gone when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: &Path) -> Result<Self> {
        crate::paths::private_dir(path).map_err(Fault::internal)?;
        Ok(Self(path.to_path_buf()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            warn!(%error, "what a rehearsal wrote cannot be removed now; it is at the next start");
        }
    }
}

/// Room that is left on the disk of a folder, in bytes.
fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Restores point `seq` into `scratch`, and looks at what came out. Blocks.
///
/// `free` says how much room there is in a folder.
pub fn rehearse_in(
    scratch: &Path,
    source: &Source,
    seq: u64,
    runtime: &Handle,
    free: impl Fn(&Path) -> std::io::Result<u64>,
) -> Result<DrillRecord> {
    let started = std::time::Instant::now();
    let chain = source.chain(seq, runtime)?;
    let scratch = Scratch::new(scratch)?;
    let (needed, free) = (chain.bytes_max(), free(&scratch.0)?);
    if needed.saturating_add(RESERVE) > free {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let text = format!(
            "a rehearsal writes {} MiB and leaves {} MiB to others, and {} MiB are free",
            mib(needed),
            mib(RESERVE),
            free >> 20
        );
        return Err(Error::NoSpace(text).into());
    }
    let folder = OwnedFd::from(std::fs::File::open(&scratch.0)?);
    let destination = Destination {
        folder: folder.try_clone()?,
        file_name: None,
        in_place: false,
        existing: Existing::Refuse,
        label: String::new(),
    };
    let report = source.restore_chain(&chain, destination, runtime)?;
    let mut record = DrillRecord {
        archive: source.archive.id,
        seq,
        taken_at_us: report.taken_at_us,
        drilled_us: 0,
        duration_us: 0,
        databases: report.databases.len() as u32,
        pages: report.pages,
        bytes: chain.bytes(),
        objects: report.objects,
        tables: 0,
        rows: 0,
        uncounted: 0,
        verdict: Verdict::Whole,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    for database in &report.databases {
        source.check_cancelled()?;
        let verdict = Verdict::of(&database.integrity);
        record.verdict = record.verdict.max(verdict);
        let counts = (verdict != Verdict::Opaque).then(|| count_rows(&folder, &database.path_name)).flatten();
        let counts = counts.unwrap_or_default();
        record.tables += counts.tables;
        record.rows += counts.rows;
        record.uncounted += counts.uncounted;
    }
    drop(scratch);
    record.duration_us = started.elapsed().as_micros() as u64;
    record.drilled_us = crate::clock::now_us();
    Ok(record)
}
