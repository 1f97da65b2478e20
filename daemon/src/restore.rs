//! From a recovery point to a proven file: entries newest first, every page written once.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chatkeep_crypto::DataRoots;
use chatkeep_format::{DatabaseKind, DatabaseRecord, Entry, ObjectName, PageOp, PageSet};
use chatkeep_ipc::Error;
use chatkeep_planner::{RestorePlanError, follows, plan_restore};
use chatkeep_sqlite::{Existing, Integrity, Kind, RestoreWriter, Restored};
use tokio::runtime::Handle;

use crate::archive::{Archive, ArchiveError};
use crate::fault::{Fault, Result};

/// What a restore reads from and tells.
pub struct Source {
    /// The archive.
    pub archive: Archive,
    /// Its keys.
    pub roots: Arc<DataRoots>,
    /// Set to stop it.
    pub cancelled: Arc<AtomicBool>,
    /// Told the bytes written and to write, now and then.
    pub progress: Box<dyn Fn(u64, u64) + Send + Sync>,
}

/// Where the file goes.
pub struct Destination {
    /// An open folder.
    pub folder: OwnedFd,
    /// The file's name in it; `None` for that of the database.
    pub file_name: Option<String>,
    /// What becomes of a file that is there.
    pub existing: Existing,
    /// Names the file that is kept beside.
    pub label: String,
}

/// A restored database.
#[derive(Debug)]
pub struct Report {
    /// The file.
    pub restored: Restored,
    /// The point.
    pub seq: u64,
    /// When it was captured, µs since 1970.
    pub taken_at_us: i64,
    /// Pages of the database.
    pub pages: u32,
    /// Objects that were read.
    pub objects: u32,
}

impl Report {
    /// What the user should know beside success.
    pub fn warning(&self) -> Option<String> {
        match &self.restored.integrity {
            Integrity::Ok => None,
            Integrity::Opaque => Some(
                "the database is encrypted by its app: every page is proved by its digest, what is in them cannot be \
                 checked here"
                    .to_owned(),
            ),
            Integrity::Inconclusive(why) => Some(format!(
                "every page is proved by its digest; SQLite could not check everything, because the app extends it: {why}"
            )),
            Integrity::Complaints(first) => Some(format!(
                "every page is proved by its digest, so this is what the app had; but SQLite finds it damaged: {first}"
            )),
        }
    }
}

impl Source {
    /// Restores point `seq`. Blocks; run it on a thread for that.
    pub fn restore(&self, seq: u64, destination: Destination, runtime: &Handle) -> Result<Report> {
        let (entry, _, _) = runtime.block_on(self.archive.entry(seq, &self.roots))?;
        let listed: BTreeSet<u64> = runtime.block_on(self.archive.list())?.entries.into_keys().collect();
        let plan = plan_restore(&listed, seq, entry.base_seq).map_err(|error| self.unplanned(seq, error))?;
        let database = record(&entry)?.clone();
        let Destination { folder, file_name, existing, label } = destination;
        let file_name = file_name.unwrap_or_else(|| database.name.clone());
        let mut writer = RestoreWriter::create(
            folder,
            &file_name,
            database.page_size,
            database.page_count,
            entry.digest_key,
        )?;
        let mut pages = Progress { source: self, done: 0, total: u64::from(database.page_count) };
        let mut objects = 0;
        let mut newer: Option<Entry> = None;
        for older in plan.entries {
            self.check_cancelled()?;
            let (entry, digest) = if older == seq {
                (entry.clone(), None)
            } else {
                let (entry, digest, _) = runtime.block_on(self.archive.entry(older, &self.roots))?;
                (entry, Some(digest))
            };
            if let (Some(newer), Some(digest)) = (&newer, digest)
                && !follows(&newer.prev, &digest)
            {
                return Err(ArchiveError::Swapped {
                    key: ObjectName::Entry(older).store_key(&self.archive.id),
                }
                .into());
            }
            objects += 1;
            let part = record(&entry)?;
            pages.write(&mut writer, &part.inline)?;
            for pack in part.packs.iter().rev() {
                if writer.is_complete() {
                    break;
                }
                self.check_cancelled()?;
                objects += 1;
                let pack = runtime.block_on(self.archive.pack(pack.name, &self.roots))?;
                pages.write(&mut writer, &pack)?;
            }
            if writer.is_complete() {
                break;
            }
            newer = Some(entry);
        }
        self.check_cancelled()?;
        let kind = match database.kind {
            DatabaseKind::Plain => Kind::Plain,
            DatabaseKind::Opaque => Kind::Opaque,
        };
        let restored = writer.finish(database.state_digest, kind, existing, &label)?;
        Ok(Report { restored, seq, taken_at_us: entry.taken_at_us, pages: database.page_count, objects })
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Fault::cancelled()) } else { Ok(()) }
    }

    fn unplanned(&self, seq: u64, error: RestorePlanError) -> Fault {
        let key = |seq| ObjectName::Entry(seq).store_key(&self.archive.id);
        match error {
            RestorePlanError::MissingEntry { seq } => ArchiveError::Missing { key: key(seq) }.into(),
            other => ArchiveError::Damaged { key: key(seq), what: other.to_string() }.into(),
        }
    }
}

/// The one database of the entry.
fn record(entry: &Entry) -> Result<&DatabaseRecord> {
    if let [database] = entry.databases.as_slice() {
        return Ok(database);
    }
    Err(Error::NewerFormat("the entry has several databases, which this version cannot restore".to_owned())
        .into())
}

struct Progress<'a> {
    source: &'a Source,
    done: u64,
    total: u64,
}

impl Progress<'_> {
    fn write(&mut self, writer: &mut RestoreWriter, pages: &PageSet) -> Result<()> {
        let zeros = vec![0; pages.page_size() as usize];
        for (pgno, op) in pages.iter() {
            match op {
                PageOp::Full(image) => writer.write_page(pgno, image)?,
                PageOp::Zero => writer.write_page(pgno, &zeros)?,
            }
        }
        self.done = self.total.saturating_sub(u64::from(writer.missing()));
        let size = u64::from(pages.page_size());
        if size > 0 {
            (self.source.progress)(self.done * size, self.total * size);
        }
        Ok(())
    }
}
