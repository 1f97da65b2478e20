//! Where the log of an archive stands: what is in the store, what waits in the spool, and whether both are ours.
//!
//! The rule of a fenced log: an entry in the store beyond the newest one that this device knows must be one of its own
//! that waits in the spool, byte for byte (the upload went through, the note of it got lost). Anything else was written
//! by another installation, which this one must not write past. A device that knows nothing (a new machine, a deleted
//! cache) takes the newest entry as the head, and continues as a new writer with the next writer epoch.

mod read;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chatkeep_crypto::DataRoots;
use chatkeep_format::{Entry, ObjectName, entry_digest};
use chatkeep_store::StoreError;
use rand_core::{OsRng, RngCore};
use tracing::{info, warn};

use crate::archive::{Archive, ArchiveError};
use crate::catalogue::{Catalogue, Head, Point};
use crate::fault::{Fault, Result};
use crate::spool::{Spool, Spooled};
use crate::writer::Written;

pub use read::{ReadEntry, read_entries};
use read::{list_newer_points, read_log};

/// The log as the writer continues it.
#[derive(Debug, Clone)]
pub struct Log {
    /// The newest entry in the store.
    pub stored: Head,
    /// The newest entry written: equal to `stored` when the spool is empty.
    pub written: Head,
    /// What waits for upload, oldest first.
    pub waiting: VecDeque<Written>,
    /// The newest entry written and what it builds on, down to its base: newest first. What the next one can build on.
    pub chain: Vec<Point>,
    /// The store was asked whether the log is still ours.
    pub confirmed: bool,
    /// The chain in the store is broken: the next capture must be a base.
    pub rebase: bool,
    /// Digests of entries of ours that the main store did not get, and copies did.
    pub elsewhere: BTreeMap<u64, [u8; 32]>,
    /// The store does not permit to be looked at: what it has is what this device remembers.
    pub blind: bool,
    /// Why nothing may be written; what is there can be restored all the same.
    pub blocked: Option<Fault>,
}

/// What the store says of a log that is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    /// The chain below the newest entry has a hole: what comes next must be a base.
    pub rebase: bool,
    /// The entries that the store lists; nothing when it does not permit that, and all that is known is what this device
    /// remembers.
    pub listed: Option<BTreeSet<u64>>,
}

/// Opens the log: from the cache if there is one, else from the store.
pub async fn open(archive: &Archive, roots: &DataRoots, catalogue: &Catalogue, spool: &Spool) -> Result<Log> {
    let Some(head) = catalogue.head(&archive.id).map_err(Fault::internal)? else {
        let Rebuilt { mut head, blocked, blind } = rebuild(archive, roots, catalogue).await?;
        // The cache was lost, the queue was not: what continues the store's newest entry is ours.
        let spooled = spool.list()?;
        let digests = digests_of(archive, catalogue);
        let newer =
            spooled.iter().filter(|object| matches!(object.name, ObjectName::Entry(seq) if seq > head.seq));
        let mut read = newer.filter_map(|object| read_spooled(archive, roots, object));
        if let Some((entry, _)) = read.find(|(entry, _)| follows(entry, &head, &digests)) {
            (head.writer_id, head.writer_epoch) = (entry.writer_id, entry.writer_epoch);
        }
        let log =
            continue_spool(archive, roots, head, (spooled, spool), catalogue).with_chain(archive, catalogue);
        if blocked.is_none() {
            catalogue.advance(&archive.id, &log.stored, None).map_err(Fault::internal)?;
        }
        return Ok(Log { confirmed: true, blocked, blind, ..log });
    };
    let mut log = continue_spool(archive, roots, head, (spool.list()?, spool), catalogue)
        .with_chain(archive, catalogue);
    match confirm(archive, roots, &log).await {
        Ok(confirmed) => {
            (log.confirmed, log.rebase) = (true, log.rebase || confirmed.rebase);
            log.blind = confirmed.listed.is_none();
            note_listing(archive, catalogue, &confirmed)?;
        }
        Err(ArchiveError::Store(error)) => {
            info!(%error, "the log is confirmed when the store answers");
        }
        Err(error) => {
            if matches!(error, ArchiveError::WriterFenced { .. }) {
                list_newer_points(archive, roots, catalogue, log.stored.seq).await;
            }
            log.blocked = Some(error.into());
        }
    }
    Ok(log)
}

impl Log {
    /// Takes note of an entry that was written.
    pub fn wrote(&mut self, written: &Written) {
        self.written = written.head.clone();
        self.chain.retain(|point| point.seq <= written.point.parent_seq);
        self.chain.insert(0, written.point.clone());
        self.waiting.push_back(written.clone());
    }

    /// Finds what the newest entry builds on. Where that is not known, the next entry is a base.
    fn with_chain(mut self, archive: &Archive, catalogue: &Catalogue) -> Self {
        let mut seq = self.written.seq;
        while seq > 0 {
            let waiting = self.waiting.iter().map(|written| &written.point).find(|point| point.seq == seq);
            let known = waiting.cloned().or_else(|| catalogue.point(&archive.id, seq));
            let Some(point) = known.filter(|point| point.parent_seq < seq) else {
                warn!(seq, "what the newest entry builds on is not known; the next capture is a base");
                self.rebase = true;
                return self;
            };
            seq = point.parent_seq;
            self.chain.push(point);
        }
        self
    }
}

/// Takes up what waits in the spool after `head`. Entries that do not continue it are dropped: the next capture has
/// their content.
fn continue_spool(
    archive: &Archive,
    roots: &DataRoots,
    head: Head,
    (spooled, spool): (Vec<Spooled>, &Spool),
    catalogue: &Catalogue,
) -> Log {
    let mut by_entry: BTreeMap<u64, Vec<Spooled>> = BTreeMap::new();
    for object in spooled {
        by_entry.entry(object.seq).or_default().push(object);
    }
    let mut log = Log {
        stored: head.clone(),
        written: head,
        waiting: VecDeque::new(),
        chain: Vec::new(),
        confirmed: false,
        rebase: false,
        blind: false,
        elsewhere: catalogue
            .elsewhere(&archive.id)
            .into_iter()
            .map(|point| (point.seq, point.digest))
            .collect(),
        blocked: None,
    };
    // Packs that are in the store, or on their way there.
    let mut stored = BTreeSet::new();
    let mut digests = BTreeMap::new();
    if by_entry.keys().any(|seq| *seq > log.written.seq) {
        stored.extend(catalogue.points(&archive.id).into_iter().flat_map(|point| point.packs));
        digests = digests_of(archive, catalogue);
    }
    for (seq, objects) in by_entry {
        // Those up to the head are in the store: the note of it came before the removal.
        let continued = (seq > log.written.seq)
            .then(|| continue_with(archive, roots, &log.written, seq, &objects, (&stored, &digests)));
        if let Some(Some(written)) = continued {
            digests.insert(seq, written.head.digest);
            log.written = written.head.clone();
            stored.extend(written.point.packs.iter().copied());
            log.waiting.push_back(written);
            continue;
        }
        if continued.is_some() {
            warn!(seq, "an entry in the queue does not continue the log; the next capture replaces it");
        }
        if let Err(error) = spool.remove(&objects) {
            warn!(%error, seq, "what the queue does not need any more cannot be removed");
        }
    }
    log
}

fn read_spooled(archive: &Archive, roots: &DataRoots, object: &Spooled) -> Option<(Entry, [u8; 32])> {
    let sealed = std::fs::read(&object.path).ok()?;
    let entry = archive.open_entry(object.seq, roots, &sealed).ok()?;
    Some((entry, entry_digest(&sealed)))
}

/// What the digests of known entries are: those in the store, and those on their way there.
fn digests_of(archive: &Archive, catalogue: &Catalogue) -> BTreeMap<u64, [u8; 32]> {
    let (points, forgotten) = (catalogue.points(&archive.id), catalogue.forgotten(&archive.id));
    points.into_iter().chain(forgotten).map(|point| (point.seq, point.digest)).collect()
}

/// Whether an entry comes after `head`: right after it, or later, with what it builds on known. Those in between were
/// dropped from the queue while the store was away, and something newer stands for them.
fn follows(entry: &Entry, head: &Head, digests: &BTreeMap<u64, [u8; 32]>) -> bool {
    if entry.seq == head.seq + 1 {
        return entry.prev == head.digest;
    }
    let stands = entry.parent_seq == 0 || digests.get(&entry.parent_seq) == Some(&entry.parent_digest);
    entry.seq > head.seq && stands
}

fn continue_with(
    archive: &Archive,
    roots: &DataRoots,
    after: &Head,
    seq: u64,
    objects: &[Spooled],
    (stored, digests): (&BTreeSet<[u8; 16]>, &BTreeMap<u64, [u8; 32]>),
) -> Option<Written> {
    let spooled = objects.iter().find(|object| object.name == ObjectName::Entry(seq))?;
    let (entry, digest) = read_spooled(archive, roots, spooled)?;
    let continues = follows(&entry, after, digests) && entry.writer_id == after.writer_id;
    let mut listed = Vec::new();
    for list in entry.folders.iter().flat_map(|folder| &folder.packs) {
        let spooled = objects.iter().find(|object| object.name == ObjectName::Pack(list.name))?;
        let sealed = std::fs::read(&spooled.path).ok()?;
        listed.extend(archive.open_file_set(list.name, roots, &sealed).ok()?.packs());
    }
    let mut point = Point::of(&entry, digest, spooled.len);
    point.bytes = objects.iter().map(|object| object.len).sum();
    point.refer_to(listed);
    // What is in files may have come with an entry before this one.
    let is_there = |pack: &[u8; 16]| {
        objects.iter().any(|object| object.name == ObjectName::Pack(*pack)) || stored.contains(pack)
    };
    let whole = point.packs.iter().all(is_there);
    (continues && whole).then(|| Written {
        head: Head { seq, digest, base_seq: entry.base_seq, pins: entry.pins.clone(), ..after.clone() },
        point,
        objects: objects.to_vec(),
    })
}

/// Remembers which entries the store lists, if it does.
pub fn note_listing(archive: &Archive, catalogue: &Catalogue, confirmed: &Confirmed) -> Result<()> {
    match &confirmed.listed {
        Some(listed) => catalogue.note_listing(&archive.id, listed).map_err(Fault::internal),
        None => Ok(()),
    }
}

/// Asks the store whether the log is still ours, and whether the next entry can build on what is there.
///
/// One that does not permit to be listed is no reason not to write: that an entry can only be created is the fence then.
pub async fn confirm(archive: &Archive, roots: &DataRoots, log: &Log) -> Result<Confirmed, ArchiveError> {
    let listing = match archive.list().await {
        Ok(listing) => listing,
        Err(ArchiveError::Store(StoreError::Permission(_))) => {
            return Ok(Confirmed { rebase: false, listed: None });
        }
        Err(error) => return Err(error),
    };
    let newest = listing.entries.keys().next_back().copied().unwrap_or(0);
    if newest < log.stored.seq {
        return Err(ArchiveError::RolledBack { expected: log.stored.seq, found: newest });
    }
    for seq in listing.entries.range(log.stored.seq + 1..).map(|(seq, _)| *seq) {
        let ours = log.waiting.iter().find(|written| written.head.seq == seq);
        let ours = ours.map(|written| &written.head.digest).or_else(|| log.elsewhere.get(&seq));
        let is_ours = match (ours, archive.get(ObjectName::Entry(seq)).await) {
            (Some(digest), Ok(sealed)) => *digest == entry_digest(&sealed),
            // Nobody can look at it; its number is one of ours.
            (ours, Err(ArchiveError::Store(StoreError::Permission(_)))) => ours.is_some(),
            (None, Ok(_)) => false,
            (_, Err(error)) => return Err(error),
        };
        if !is_ours {
            return Err(ArchiveError::WriterFenced { key: ObjectName::Entry(seq).store_key(&archive.id) });
        }
    }
    let mut rebase = false;
    if log.stored.seq > 0 {
        let seq = log.stored.seq;
        match archive.get(ObjectName::Entry(seq)).await {
            Ok(sealed) if entry_digest(&sealed) == log.stored.digest => {}
            // An entry of somebody else stands in the place of ours.
            Ok(sealed) if archive.open_entry(seq, roots, &sealed).is_ok() => {
                return Err(ArchiveError::WriterFenced {
                    key: ObjectName::Entry(seq).store_key(&archive.id),
                });
            }
            Err(ArchiveError::Store(StoreError::Permission(_))) => {}
            Err(ArchiveError::Store(error)) => return Err(ArchiveError::Store(error)),
            Ok(_) | Err(_) => rebase = true,
        }
        let in_store = log.chain.iter().filter(|point| point.seq <= seq);
        rebase |= in_store.clone().any(|point| !listing.entries.contains_key(&point.seq));
    }
    // A base that waits for its upload mends it.
    rebase &= log.chain.last().is_none_or(|base| base.seq <= log.stored.seq);
    if rebase {
        warn!(
            seq = log.stored.seq,
            "entries are missing or damaged in the store; the next capture is a base"
        );
    }
    Ok(Confirmed { rebase, listed: Some(listing.entries.into_keys().collect()) })
}

/// Where a new writer continues, and what forbids it.
struct Rebuilt {
    head: Head,
    blocked: Option<Fault>,
    /// The store does not permit to look.
    blind: bool,
}

/// Reads the whole log into the catalogue: never write after an entry that cannot be read.
///
/// Of an archive that this device made itself, and has not written to, there is nothing to be read: its first entry meets
/// whatever there is by its number.
async fn rebuild(archive: &Archive, roots: &DataRoots, catalogue: &Catalogue) -> Result<Rebuilt> {
    let listing = match archive.list().await {
        Ok(listing) => Some(listing),
        Err(ArchiveError::Store(StoreError::Permission(_))) if catalogue.keyring(&archive.id).is_some() => {
            None
        }
        Err(error) => return Err(error.into()),
    };
    let blind = listing.is_none();
    let (head, blocked) = match listing {
        Some(listing) => read_log(archive, roots, catalogue, listing).await?,
        None => (None, None),
    };
    let head = head.unwrap_or_else(|| {
        let mut digest_key = [0; 32];
        OsRng.fill_bytes(&mut digest_key);
        let none = Head {
            seq: 0,
            digest: [0; 32],
            base_seq: 0,
            pins: Vec::new(),
            digest_key,
            writer_id: [0; 16],
            writer_epoch: 0,
        };
        renewed(none)
    });
    info!(seq = head.seq, writer_epoch = head.writer_epoch, "the log was read from the store");
    Ok(Rebuilt { head, blocked, blind })
}

/// A writer that was never here before, after this entry.
fn next_writer(entry: &Entry, digest: [u8; 32]) -> Head {
    renewed(Head {
        seq: entry.seq,
        digest,
        base_seq: entry.base_seq,
        pins: entry.pins.clone(),
        digest_key: entry.digest_key,
        writer_id: entry.writer_id,
        writer_epoch: entry.writer_epoch,
    })
}

/// The same place in the log, for a writer of its own.
fn renewed(head: Head) -> Head {
    let mut writer_id = [0; 16];
    OsRng.fill_bytes(&mut writer_id);
    Head { writer_id, writer_epoch: head.writer_epoch.saturating_add(1), ..head }
}
