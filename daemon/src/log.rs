//! Where the log of an archive stands: what is in the store, what waits in the spool, and whether both are ours.
//!
//! The rule of a fenced log: an entry in the store beyond the newest one that this device knows must be one of its own
//! that waits in the spool, byte for byte (the upload went through, the note of it got lost). Anything else was written
//! by another installation, which this one must not write past. A device that knows nothing (a new machine, a deleted
//! cache) takes the newest entry as the head, and continues as a new writer with the next writer epoch.

use std::collections::{BTreeMap, VecDeque};

use chatkeep_crypto::DataRoots;
use chatkeep_format::{ObjectName, entry_digest};
use rand_core::{OsRng, RngCore};
use tracing::{info, warn};

use crate::archive::{Archive, ArchiveError};
use crate::catalogue::{Catalogue, Head, Point};
use crate::fault::{Fault, Result};
use crate::spool::{Spool, Spooled};
use crate::writer::Written;

/// The log as the writer continues it.
#[derive(Debug, Clone)]
pub struct Log {
    /// The newest entry in the store.
    pub stored: Head,
    /// The newest entry written: equal to `stored` when the spool is empty.
    pub written: Head,
    /// What waits for upload, oldest first.
    pub waiting: VecDeque<Written>,
    /// The store was asked whether the log is still ours.
    pub confirmed: bool,
    /// Why nothing may be written; what is there can be restored all the same.
    pub blocked: Option<Fault>,
}

/// Opens the log: from the cache if there is one, else from the store.
pub async fn open(archive: &Archive, roots: &DataRoots, catalogue: &Catalogue, spool: &Spool) -> Result<Log> {
    if let Some(head) = catalogue.head(&archive.id) {
        let spooled = spool.list()?;
        let mut log = continue_spool(archive, roots, head, spooled);
        if log.waiting.is_empty() {
            spool.clear()?;
        }
        match confirm(archive, &log).await {
            Ok(()) => log.confirmed = true,
            Err(ArchiveError::Store(error)) => {
                info!(%error, "the log is confirmed when the store answers");
            }
            Err(error) => log.blocked = Some(error.into()),
        }
        return Ok(log);
    }
    // Without a head nobody knows what the spool continued.
    spool.clear()?;
    let (head, blocked) = rebuild(archive, roots, catalogue).await?;
    Ok(Log { stored: head.clone(), written: head, waiting: VecDeque::new(), confirmed: true, blocked })
}

/// Takes up what waits in the spool after `head`. Entries that do not continue it are dropped: the next capture has
/// their content.
fn continue_spool(archive: &Archive, roots: &DataRoots, head: Head, spooled: Vec<Spooled>) -> Log {
    let mut by_entry: BTreeMap<u64, Vec<Spooled>> = BTreeMap::new();
    for object in spooled {
        by_entry.entry(object.seq).or_default().push(object);
    }
    let mut log = Log {
        stored: head.clone(),
        written: head,
        waiting: VecDeque::new(),
        confirmed: false,
        blocked: None,
    };
    for (seq, objects) in by_entry {
        if seq <= log.written.seq {
            continue;
        }
        let Some(written) = continue_with(archive, roots, &log.written, seq, objects) else {
            warn!(seq, "an object in the queue does not continue the log; the next capture replaces it");
            break;
        };
        log.written = written.head.clone();
        log.waiting.push_back(written);
    }
    log
}

fn continue_with(
    archive: &Archive,
    roots: &DataRoots,
    after: &Head,
    seq: u64,
    objects: Vec<Spooled>,
) -> Option<Written> {
    let spooled = objects.iter().find(|object| object.name == ObjectName::Entry(seq))?;
    let sealed = std::fs::read(&spooled.path).ok()?;
    let entry = archive.open_entry(seq, roots, &sealed).ok()?;
    let continues = seq == after.seq + 1 && entry.prev == after.digest && entry.writer_id == after.writer_id;
    continues.then(|| Written {
        head: Head { seq, digest: entry_digest(&sealed), base_seq: entry.base_seq, ..after.clone() },
        point: Point {
            seq,
            base_seq: entry.base_seq,
            taken_at_us: entry.taken_at_us,
            bytes: objects.iter().map(|object| object.len).sum(),
            verified_us: 0,
        },
        objects,
    })
}

/// Asks the store whether the log is still ours.
pub async fn confirm(archive: &Archive, log: &Log) -> Result<(), ArchiveError> {
    let listing = archive.list().await?;
    let newest = listing.entries.keys().next_back().copied().unwrap_or(0);
    if newest < log.stored.seq {
        return Err(ArchiveError::RolledBack { expected: log.stored.seq, found: newest });
    }
    for seq in listing.entries.range(log.stored.seq + 1..).map(|(seq, _)| *seq) {
        let key = || ObjectName::Entry(seq).store_key(&archive.id);
        let ours = log.waiting.iter().find(|written| written.head.seq == seq);
        let sealed = archive.get(ObjectName::Entry(seq)).await?;
        if ours.is_none_or(|written| written.head.digest != entry_digest(&sealed)) {
            return Err(ArchiveError::WriterFenced { key: key() });
        }
    }
    Ok(())
}

/// Reads the whole log, newest entry first, and fills the catalogue. Returns where a new writer continues, and what
/// forbids it: never write after an entry that cannot be read.
async fn rebuild(
    archive: &Archive,
    roots: &DataRoots,
    catalogue: &Catalogue,
) -> Result<(Head, Option<Fault>)> {
    let listing = archive.list().await?;
    let mut head: Option<Head> = None;
    let mut newer_prev: Option<[u8; 32]> = None;
    let mut fault: Option<Fault> = None;
    for seq in listing.entries.keys().rev() {
        let (entry, digest, len) = match archive.entry(*seq, roots).await {
            Ok(found) => found,
            // What cannot be reached now must not look like a shorter history.
            Err(ArchiveError::Store(error)) => return Err(error.into()),
            Err(error) => {
                warn!(seq, %error, "an entry cannot be read, its point is not listed");
                if head.is_none() {
                    fault = fault.or(Some(error.into()));
                }
                newer_prev = None;
                continue;
            }
        };
        if newer_prev.is_some_and(|prev| prev != digest) {
            warn!(seq, "the entry after this one does not name it; older points are not listed");
            break;
        }
        newer_prev = Some(entry.prev);
        if head.is_none() {
            head = Some(next_writer(*seq, digest, entry.base_seq, entry.digest_key, entry.writer_epoch));
        }
        let packs: u64 =
            entry.databases.iter().flat_map(|database| &database.packs).map(|pack| pack.sealed_len).sum();
        let point = Point {
            seq: *seq,
            base_seq: entry.base_seq,
            taken_at_us: entry.taken_at_us,
            bytes: len + packs,
            verified_us: 0,
        };
        catalogue.put_point(&archive.id, &point).map_err(Fault::internal)?;
    }
    let head = head.unwrap_or_else(|| {
        let mut digest_key = [0; 32];
        OsRng.fill_bytes(&mut digest_key);
        next_writer(0, [0; 32], 0, digest_key, 0)
    });
    if fault.is_none() {
        catalogue.advance(&archive.id, &head, None).map_err(Fault::internal)?;
    }
    info!(seq = head.seq, writer_epoch = head.writer_epoch, "the log was read from the store");
    Ok((head, fault))
}

/// A writer that was never here before, after entry `seq`.
fn next_writer(seq: u64, digest: [u8; 32], base_seq: u64, digest_key: [u8; 32], writer_epoch: u64) -> Head {
    let mut writer_id = [0; 16];
    OsRng.fill_bytes(&mut writer_id);
    Head { seq, digest, base_seq, digest_key, writer_id, writer_epoch: writer_epoch.saturating_add(1) }
}
