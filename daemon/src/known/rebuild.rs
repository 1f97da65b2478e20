//! Brings what is known of files up to date from the records of the log: a crash came between an entry and the note of
//! it, or the cache was lost, or another installation wrote.

use std::collections::BTreeMap;

use chatkeep_attachments::{Found, RelPath};
use chatkeep_crypto::DataRoots;
use chatkeep_format::{Entry, FileOp, FileRecord, FileSet, FolderRecord, ObjectName, PackRef, entry_digest};
use tracing::{debug, info};

use super::{Changes, Known, KnownFile, KnownFiles, Place, Totals};
use crate::archive::{Archive, ArchiveError};
use crate::catalogue::Catalogue;
use crate::fault::{Fault, Result};
use crate::log::Log;
use crate::spool::Spooled;

/// The folders of one entry, with all that it lists of them.
struct Listed {
    seq: u64,
    folders: Vec<(FolderRecord, Vec<FileSet>)>,
}

/// Where objects come from: what waits for upload is not in the store yet.
struct Reader<'a> {
    archive: &'a Archive,
    roots: &'a DataRoots,
    spooled: Vec<Spooled>,
}

/// Makes `known` stand at the newest entry written. Where that is impossible now nothing is known: the next record lists
/// all files, and what is in them is stored again.
pub async fn bring_up_to_date(
    known: &KnownFiles,
    archive: &Archive,
    roots: &DataRoots,
    catalogue: &Catalogue,
    (log, spooled): (&Log, Vec<Spooled>),
) -> Result<()> {
    let newest = Place { seq: log.written.seq, digest: log.written.digest };
    let place = known.place();
    if place == Some(newest) {
        return Ok(());
    }
    let digest_of = |seq: u64| {
        let waiting = log.waiting.iter().map(|written| &written.point).find(|point| point.seq == seq);
        waiting.cloned().or_else(|| catalogue.point(&archive.id, seq)).map(|point| point.digest)
    };
    // An entry of this log, from which what came later can be told.
    let from = place.filter(|place| place.seq < newest.seq && digest_of(place.seq) == Some(place.digest));
    let reader = Reader { archive, roots, spooled };
    let applied = match reader.listed(newest, from.map_or(0, |place| place.seq)).await {
        Ok(listed) => {
            debug!(entries = listed.len(), "what is known of attachments is read from the log");
            known.take(&listed, from.is_some(), newest).map_err(Fault::internal)
        }
        Err(error) => Err(error.into()),
    };
    if let Err(fault) = applied {
        info!(error = %fault.error.text(), "what is known of attachments is lost, they are read again");
        known.clear().map_err(Fault::internal)?;
    }
    Ok(())
}

impl Reader<'_> {
    /// What the entries of the chain of `newest` list, oldest first; only of those that are newer than `from`.
    async fn listed(&self, newest: Place, from: u64) -> Result<Vec<Listed>, ArchiveError> {
        let mut entries = Vec::new();
        let Place { mut seq, mut digest } = newest;
        // What changed since a parent is listed as it is now, so a parent before `from` will do.
        while seq > from {
            let (entry, found) = self.entry(seq).await?;
            if found != digest {
                let key = ObjectName::Entry(seq).store_key(&self.archive.id);
                return Err(ArchiveError::Swapped { key });
            }
            // A parent is older: that was checked when it was decoded.
            (seq, digest) = (entry.parent_seq, entry.parent_digest);
            entries.push((entry.seq, entry.folders));
        }
        let mut all = Vec::new();
        for (seq, records) in entries.into_iter().rev() {
            let mut folders = Vec::new();
            for record in records {
                let mut sets = Vec::new();
                for pack in &record.packs {
                    sets.push(self.file_set(pack).await?);
                }
                folders.push((record, sets));
            }
            all.push(Listed { seq, folders });
        }
        Ok(all)
    }

    async fn entry(&self, seq: u64) -> Result<(Entry, [u8; 32]), ArchiveError> {
        match self.read_spooled(ObjectName::Entry(seq)) {
            Some(sealed) => Ok((self.archive.open_entry(seq, self.roots, &sealed)?, entry_digest(&sealed))),
            None => self.archive.entry(seq, self.roots).await.map(|(entry, digest, _)| (entry, digest)),
        }
    }

    async fn file_set(&self, pack: &PackRef) -> Result<FileSet, ArchiveError> {
        match self.read_spooled(ObjectName::Pack(pack.name)) {
            Some(sealed) => self.archive.open_file_set(pack.name, self.roots, &sealed),
            None => self.archive.file_set(pack.name, self.roots).await,
        }
    }

    fn read_spooled(&self, name: ObjectName) -> Option<Vec<u8>> {
        let object = self.spooled.iter().find(|object| object.name == name)?;
        std::fs::read(&object.path).ok()
    }
}

impl KnownFiles {
    /// Takes over what entries list, oldest first. Without `goes_on` they are all there is.
    fn take(&self, listed: &[Listed], goes_on: bool, newest: Place) -> anyhow::Result<()> {
        self.tree.remove(super::STANDING)?;
        // What was read by this device and is listed just so needs not be read again.
        let mut remembered: BTreeMap<String, BTreeMap<Vec<u8>, Known>> = BTreeMap::new();
        for folder in self.folders() {
            remembered.insert(folder.clone(), self.range(&folder, None, None).collect());
            if !goes_on {
                self.forget_folder(&folder)?;
            }
        }
        for entry in listed {
            let named = |folder: &str| entry.folders.iter().any(|(record, _)| record.name == folder);
            for gone in self.folders().into_iter().filter(|folder| !named(folder)) {
                self.forget_folder(&gone)?;
            }
            for (record, sets) in &entry.folders {
                self.take_folder(entry.seq, record, sets, remembered.get(&record.name))?;
            }
        }
        let mut changes = Changes::default();
        changes.stands_at(newest);
        self.apply(changes)?;
        self.flush()
    }

    fn take_folder(
        &self,
        seq: u64,
        record: &FolderRecord,
        sets: &[FileSet],
        remembered: Option<&BTreeMap<Vec<u8>, Known>>,
    ) -> anyhow::Result<()> {
        let before = self.totals(&record.name);
        if record.is_base && before.is_some() {
            self.forget_folder(&record.name)?;
        }
        let before = before.filter(|_| !record.is_base);
        let mut changed = false;
        for set in sets.iter().chain([&record.inline]) {
            let mut changes = Changes::default();
            changed |= !set.is_empty();
            for (path, op) in set.iter() {
                let known = match op {
                    FileOp::Gone => Known::Gone(seq),
                    FileOp::File(file) => {
                        let own = remembered.and_then(|files| files.get(path));
                        Known::File(KnownFile { seq, found: found(path, file, own)?, record: file.clone() })
                    }
                };
                changes.put(&record.name, path, &known);
            }
            self.apply(changes)?;
        }
        let mut changes = Changes::default();
        let totals = Totals {
            since: before.map_or(seq, |before| before.since),
            changed: before.filter(|_| !changed).map_or(seq, |before| before.changed),
            files: record.files,
            bytes: record.bytes,
            device: 0,
        };
        changes.totals(&record.name, &totals);
        self.apply(changes)
    }
}

/// What the file system said of a file, if this device remembers it, else what is in the record.
fn found(path: &[u8], record: &FileRecord, own: Option<&Known>) -> anyhow::Result<Found> {
    if let Some(Known::File(own)) = own
        && own.record == *record
    {
        return Ok(own.found.clone());
    }
    let path = RelPath::parse(path)?;
    Ok(Found { path, len: record.len, mtime_ns: record.mtime_ns, ctime_ns: 0, inode: 0, mode: record.mode })
}
