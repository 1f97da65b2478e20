//! Reads entries of a store, several at a time, down to what the catalogue has to know of them.

use std::collections::BTreeMap;
use std::time::Duration;

use chatkeep_crypto::DataRoots;
use chatkeep_format::Entry;
use chatkeep_store::{NextStep, StoreError};
use futures_util::{Stream, StreamExt};
use tracing::{info, warn};

use super::next_writer;
use crate::archive::{Archive, ArchiveError, Listing};
use crate::catalogue::{Catalogue, Head, Point};
use crate::fault::{Fault, Result};

/// So many entries are read at once: enough to hide the way to a distant store, few enough for the memory.
const AT_ONCE: usize = 8;
/// Progress is told after so many entries.
const TOLD_EVERY: usize = 1000;
/// How often an entry is asked for when the store fails for a moment, and the first pause in between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// What an entry says, without its content.
pub struct ReadEntry {
    /// The point it makes.
    pub point: Point,
    /// Where a writer that knows nothing else continues after it.
    pub head: Head,
    /// The digest of the entry before it.
    pub prev: [u8; 32],
    /// The digest of the entry it builds on.
    pub parent_digest: [u8; 32],
}

/// Reads these entries, in this order; each with its answer.
pub fn read_entries<'a>(
    archive: &'a Archive,
    roots: &'a DataRoots,
    seqs: Vec<u64>,
) -> impl Stream<Item = (u64, Result<ReadEntry, ArchiveError>)> + Send + 'a {
    let read = move |seq| async move { (seq, read_patiently(archive, roots, seq).await) };
    futures_util::stream::iter(seqs).map(read).buffered(AT_ONCE)
}

async fn read_patiently(archive: &Archive, roots: &DataRoots, seq: u64) -> Result<ReadEntry, ArchiveError> {
    for pause in (0..TRIES - 1).map(|tries| PAUSE * 2_u32.pow(tries)) {
        match read_entry(archive, roots, seq).await {
            Err(ArchiveError::Store(error)) if passes(&error) => tokio::time::sleep(pause).await,
            answer => return answer,
        }
    }
    read_entry(archive, roots, seq).await
}

/// Whether it makes sense to ask again at once. A store that is away is waited for elsewhere.
fn passes(error: &StoreError) -> bool {
    matches!(error.next_step(), NextStep::RetryLater | NextStep::SlowDown(_) | NextStep::SendAgain)
}

async fn read_entry(archive: &Archive, roots: &DataRoots, seq: u64) -> Result<ReadEntry, ArchiveError> {
    let (entry, digest, len) = archive.entry(seq, roots).await?;
    let mut point = Point::of(&entry, digest, len);
    read_lists(archive, roots, &entry, &mut point).await?;
    Ok(ReadEntry {
        head: next_writer(&entry, digest),
        prev: entry.prev,
        parent_digest: entry.parent_digest,
        point,
    })
}

/// Adds the packs that lists of files name where these are packs themselves. One that cannot be read is remembered:
/// the point's files are lost, its databases are not.
async fn read_lists(
    archive: &Archive,
    roots: &DataRoots,
    entry: &Entry,
    point: &mut Point,
) -> Result<(), ArchiveError> {
    point.lists_unread = false;
    for list in entry.folders.iter().flat_map(|folder| &folder.packs) {
        match archive.file_set(list.name, roots).await {
            Ok(files) => point.refer_to(files.packs().collect()),
            Err(ArchiveError::Store(error)) => return Err(error.into()),
            Err(error) => {
                warn!(seq = entry.seq, %error, "a list of files cannot be read");
                point.lists_unread = true;
            }
        }
    }
    Ok(())
}

/// Reads the whole log, newest entry first, and fills the catalogue. Returns the newest entry, and what forbids to write
/// after it: an entry that is newer and cannot be read.
///
/// Entries may be missing: they were forgotten. Each says which one it builds on, and by which digest. One that cannot be
/// read hides no other.
pub(super) async fn read_log(
    archive: &Archive,
    roots: &DataRoots,
    catalogue: &Catalogue,
    listing: Listing,
) -> Result<(Option<Head>, Option<Fault>)> {
    let listed = listing.entries.keys().copied().collect();
    let total = listing.entries.len();
    let mut head: Option<Head> = None;
    // What newer entries say the digest of an older one is.
    let mut named: BTreeMap<u64, [u8; 32]> = BTreeMap::new();
    let mut fault = None;
    let newest_first: Vec<u64> = listing.entries.into_keys().rev().collect();
    let mut entries = Box::pin(read_entries(archive, roots, newest_first));
    let mut done = 0;
    while let Some((seq, answer)) = entries.next().await {
        done += 1;
        if done % TOLD_EVERY == 0 {
            info!(done, total, "reading the log");
        }
        let entry = match answer {
            Ok(entry) => entry,
            // What cannot be reached now must not look like a shorter history.
            Err(ArchiveError::Store(error)) => return Err(error.into()),
            Err(error) => {
                warn!(seq, %error, "an entry cannot be read, its point is not listed");
                if head.is_none() {
                    fault = fault.or(Some(error.into()));
                }
                continue;
            }
        };
        if named.get(&seq).is_some_and(|named| *named != entry.point.digest) {
            warn!(seq, "a newer entry does not name this one; its point is not listed");
            continue;
        }
        named.insert(seq - 1, entry.prev);
        named.insert(entry.point.parent_seq, entry.parent_digest);
        catalogue.put_point(&archive.id, &entry.point).map_err(Fault::internal)?;
        if head.is_none() {
            head = Some(entry.head);
        }
    }
    catalogue.note_listing(&archive.id, &listed).map_err(Fault::internal)?;
    Ok((head, fault))
}

/// Entries that somebody else wrote after ours are points, too: they can be restored here.
pub(super) async fn list_newer_points(
    archive: &Archive,
    roots: &DataRoots,
    catalogue: &Catalogue,
    after: u64,
) {
    let Ok(listing) = archive.list().await else { return };
    let newer = listing.entries.range(after + 1..).map(|(seq, _)| *seq).collect();
    let mut entries = Box::pin(read_entries(archive, roots, newer));
    while let Some((_, answer)) = entries.next().await {
        if let Ok(entry) = answer
            && let Err(error) = catalogue.put_point(&archive.id, &entry.point)
        {
            warn!(%error, "the cache cannot be written");
        }
    }
}
