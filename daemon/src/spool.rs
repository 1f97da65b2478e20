//! Sealed objects that wait for their upload: plain files, named in upload order, each written and synced before it
//! counts. What lies here is ciphertext; nothing of it was announced to anybody yet.
//!
//! ```text
//! <state>/spool/<archive>/<16-digit entry seq>.<8-digit position>.pack.<32 hex digits>
//! <state>/spool/<archive>/<16-digit entry seq>.99999999.entry
//! <state>/spool/<archive>/repair.pack.<32 hex digits>
//! ```
//!
//! A pack whose entry never came (the capture was cut off) is swept at start. Packs of an entry that is still to come
//! have the seq 0. A repair is a pack that was made again for entries that are in the store: it stays until it is there, too.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chatkeep_format::{ArchiveId, ObjectName};

use crate::pack_pages::PackPages;

/// How the name of a pack begins that was made again.
const REPAIR: &str = "repair.pack.";

/// The queue of one archive.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
}

/// One object that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spooled {
    /// The entry it belongs to.
    pub seq: u64,
    /// What it is called in the store.
    pub name: ObjectName,
    /// Its length, in bytes.
    pub len: u64,
    /// Where it lies.
    pub path: PathBuf,
    /// What is in it.
    pub holds: Holds,
}

/// What is known of the content of an object, so that nobody has to open it to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// Nothing: it was written before the service started.
    Unknown,
    /// These pages, all of them whole.
    Pages(PackPages),
    /// Something that cannot be made again from pages alone.
    Other,
}

impl Spool {
    /// The queue of `archive` under `state`, which is open already.
    pub fn at(state: &Path, archive: &ArchiveId) -> Self {
        Self { folder: state.join("spool").join(archive.to_string()) }
    }

    /// Opens the queue of `archive` under `state`, and sweeps what a crash left half done.
    pub fn open(state: &Path, archive: &ArchiveId) -> io::Result<Self> {
        let spool = Self::at(state, archive);
        std::fs::create_dir_all(&spool.folder)?;
        for entry in std::fs::read_dir(&spool.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "tmp") {
                std::fs::remove_file(path)?;
            }
        }
        let waiting = spool.list()?;
        let is_entry = |object: &&Spooled| matches!(object.name, ObjectName::Entry(_));
        let published: BTreeSet<u64> = waiting.iter().filter(is_entry).map(|object| object.seq).collect();
        for object in waiting.iter().filter(|object| !published.contains(&object.seq)) {
            std::fs::remove_file(&object.path)?;
        }
        Ok(spool)
    }

    /// Writes a pack of entry `seq`. It is durable after [`Spool::put_entry`] of that entry, which syncs the folder.
    pub fn put_pack(&self, seq: u64, position: u32, name: [u8; 16], sealed: &[u8]) -> io::Result<Spooled> {
        self.write(&format!("{seq:016}.{position:08}.pack.{}", hex::encode(name)), sealed)?;
        Ok(self.describe(seq, ObjectName::Pack(name), position, sealed.len()))
    }

    /// Gives packs of an entry that was still to come (their seq is 0) to entry `seq`, from position `first` on.
    pub fn assign(&self, objects: &[Spooled], seq: u64, first: u32) -> io::Result<Vec<Spooled>> {
        let mut assigned = Vec::with_capacity(objects.len());
        for (position, object) in (first..).zip(objects) {
            let described = self.describe(seq, object.name, position, object.len as usize);
            let described = Spooled { holds: object.holds.clone(), ..described };
            std::fs::rename(&object.path, &described.path)?;
            assigned.push(described);
        }
        Ok(assigned)
    }

    /// Writes entry `seq`: from here on it will reach the store, whatever crashes.
    pub fn put_entry(&self, seq: u64, sealed: &[u8]) -> io::Result<Spooled> {
        // The packs' names must be on the disk before the entry's.
        std::fs::File::open(&self.folder)?.sync_all()?;
        self.write(&format!("{seq:016}.99999999.entry"), sealed)?;
        std::fs::File::open(&self.folder)?.sync_all()?;
        Ok(self.describe(seq, ObjectName::Entry(seq), 99_999_999, sealed.len()))
    }

    /// Writes a pack that was made again and is to take the place of a damaged one. Durable when this returns.
    pub fn put_repair(&self, name: [u8; 16], sealed: &[u8]) -> io::Result<Spooled> {
        let file = format!("{REPAIR}{}", hex::encode(name));
        self.write(&file, sealed)?;
        std::fs::File::open(&self.folder)?.sync_all()?;
        Ok(Spooled {
            seq: 0,
            name: ObjectName::Pack(name),
            len: sealed.len() as u64,
            path: self.folder.join(file),
            holds: Holds::Unknown,
        })
    }

    /// Packs that were made again and are not in the store yet.
    pub fn repairs(&self) -> io::Result<Vec<Spooled>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let file = entry.file_name();
            let name = file.to_str().and_then(|file| file.strip_prefix(REPAIR));
            let name = name.and_then(|digits| hex::decode(digits).ok()?.try_into().ok());
            if let Some(name) = name.map(ObjectName::Pack) {
                let Some(len) = len_of(&entry)? else { continue };
                found.push(Spooled { seq: 0, name, len, path: entry.path(), holds: Holds::Unknown });
            }
        }
        Ok(found)
    }

    /// Everything that waits, in upload order.
    pub fn list(&self) -> io::Result<Vec<Spooled>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Some((seq, position, name)) = entry.file_name().to_str().and_then(parse_name) {
                let Some(len) = len_of(&entry)? else { continue };
                let path = entry.path();
                found.push((position, Spooled { seq, name, len, path, holds: Holds::Unknown }));
            }
        }
        found.sort_by_key(|(position, object)| (object.seq, *position));
        Ok(found.into_iter().map(|(_, object)| object).collect())
    }

    /// Forgets objects that are in the store: the entry first. Packs without an entry are swept, an entry without its
    /// packs would be a hole.
    pub fn remove(&self, objects: &[Spooled]) -> io::Result<()> {
        for object in objects.iter().rev() {
            match std::fs::remove_file(&object.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Drops whatever there is of a capture that came to nothing, as far as it can be dropped.
    pub fn drop_entry(&self, seq: u64) {
        let objects = self.list().unwrap_or_default().into_iter().filter(|object| object.seq == seq);
        if let Err(error) = self.remove(&objects.collect::<Vec<_>>()) {
            tracing::warn!(%error, seq, "what a failed capture left cannot be removed");
        }
    }

    /// Drops everything: the queue continues nothing that is in the store.
    pub fn clear(&self) -> io::Result<()> {
        for object in self.list()?.into_iter().rev() {
            std::fs::remove_file(object.path)?;
        }
        Ok(())
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.list()?.iter().map(|o| o.len).sum())
    }

    fn write(&self, name: &str, body: &[u8]) -> io::Result<()> {
        let temporary = self.folder.join(format!("{name}.tmp"));
        let write = || {
            // A store on the same file system takes this very file, with its mode.
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(body)?;
            file.sync_data()?;
            std::fs::rename(&temporary, self.folder.join(name))
        };
        write().inspect_err(|_| {
            // On a full disk every bit of room counts.
            let _ = std::fs::remove_file(&temporary);
        })
    }

    fn describe(&self, seq: u64, name: ObjectName, position: u32, len: usize) -> Spooled {
        let file = match name {
            ObjectName::Pack(id) => format!("{seq:016}.{position:08}.pack.{}", hex::encode(id)),
            _ => format!("{seq:016}.{position:08}.entry"),
        };
        Spooled { seq, name, len: len as u64, path: self.folder.join(file), holds: Holds::Unknown }
    }
}

/// The length of a file; nothing if it left the queue meanwhile: an upload that ends removes it while others look.
fn len_of(entry: &std::fs::DirEntry) -> io::Result<Option<u64>> {
    match entry.metadata() {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_name(name: &str) -> Option<(u64, u32, ObjectName)> {
    let mut parts = name.split('.');
    let seq: u64 = parts.next()?.parse().ok()?;
    let position: u32 = parts.next()?.parse().ok()?;
    let object = match (parts.next()?, parts.next()) {
        ("entry", None) => ObjectName::Entry(seq),
        ("pack", Some(id)) => ObjectName::Pack(hex::decode(id).ok()?.try_into().ok()?),
        _ => return None,
    };
    parts.next().is_none().then_some((seq, position, object))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const ARCHIVE: ArchiveId = ArchiveId([1; 16]);

    #[test]
    fn objects_come_back_in_upload_order_with_the_entry_last() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::open(state.path(), &ARCHIVE).unwrap();
        for position in [2, 0, 1] {
            spool.put_pack(5, position, [position as u8; 16], b"pack").unwrap();
        }
        let entry = spool.put_entry(5, b"entry").unwrap();
        spool.put_entry(6, b"next").unwrap();
        let listed = Spool::open(state.path(), &ARCHIVE).unwrap().list().unwrap();
        let names: Vec<_> = listed.iter().map(|o| o.name).collect();
        let packs = (0..3).map(|i| ObjectName::Pack([i; 16]));
        assert_eq!(names, packs.chain([ObjectName::Entry(5), ObjectName::Entry(6)]).collect::<Vec<_>>());
        assert_eq!(listed[3], entry);
        spool.remove(&listed[..4]).unwrap();
        assert_eq!(spool.list().unwrap().len(), 1);
    }

    #[test]
    fn what_leaves_the_queue_while_it_is_listed_is_no_error() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::open(state.path(), &ARCHIVE).unwrap();
        std::thread::scope(|scope| {
            let uploads = scope.spawn(|| {
                for round in 0..60 {
                    let packs: Vec<_> =
                        (0..8).map(|i| spool.put_pack(round, i, [i as u8; 16], b"pack").unwrap()).collect();
                    spool.remove(&packs).unwrap();
                }
            });
            while !uploads.is_finished() {
                spool.list().unwrap();
            }
        });
    }

    #[test]
    fn packs_made_ahead_belong_to_their_entry_in_the_end_and_are_swept_without_it() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::open(state.path(), &ARCHIVE).unwrap();
        let ahead: Vec<_> =
            (0..2).map(|i| spool.put_pack(0, 10 + i, [i as u8; 16], b"pack").unwrap()).collect();
        let assigned = spool.assign(&ahead, 4, 0).unwrap();
        spool.put_pack(0, 12, [9; 16], b"pack").unwrap();
        let entry = spool.put_entry(4, b"entry").unwrap();
        let listed = Spool::open(state.path(), &ARCHIVE).unwrap().list().unwrap();
        assert_eq!(listed, [assigned[0].clone(), assigned[1].clone(), entry]);
    }

    #[test]
    fn packs_without_their_entry_and_half_written_files_are_swept() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::open(state.path(), &ARCHIVE).unwrap();
        spool.put_pack(7, 0, [7; 16], b"pack").unwrap();
        std::fs::write(spool.folder.join("0000000000000007.99999999.entry.tmp"), b"half").unwrap();
        let spool = Spool::open(state.path(), &ARCHIVE).unwrap();
        assert!(spool.list().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(&spool.folder).unwrap().count(), 0);
    }
}
