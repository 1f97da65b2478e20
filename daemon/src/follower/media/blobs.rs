//! Reads files into blobs: packs of chunks, sealed into the spool before there is an entry that names them.
//!
//! In slices, so that a capture never waits for more than one of them. A blob is filled across slices, small files one
//! behind the other, in the order of their paths: a restore reads them in this order. A chunk that is known already, from
//! the newest entry or from a blob in the spool, is not stored again.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::time::{Duration, Instant};

use chatkeep_attachments::{Chunk, ChunkId, Folder, Found, ReadError, Reading};
use chatkeep_format::{ChunkRef, FileRecord};
use rand_core::{OsRng, RngCore};
use tracing::warn;

use super::folder::{MediaFolder, Pending};
use crate::known::KnownFiles;
use crate::sealing::Sealing;
use crate::spool::Spooled;
use crate::writer::Writer;

/// A blob is sealed when it has so many bytes, 3.5 MiB: with the last chunk it has about 4 MiB.
const BLOB_LEN: usize = 7 << 19;
/// Blobs sealed in one slice: both threads have work, and one can be filled meanwhile.
const SLICE_BLOBS: usize = 3;
/// And no slice reads longer than this.
const SLICE_TIME: Duration = Duration::from_millis(30);

/// Where a chunk is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// In a pack that is sealed.
    Sealed(ChunkRef),
    /// In a blob that is being filled, or was just sent.
    Open { blob: u64, id: ChunkId, offset: u32, len: u32 },
}

/// A file, as far as it was read.
struct Read {
    folder: usize,
    found: Found,
    noted: u64,
    places: Vec<Place>,
}

/// Which files a slice reads.
pub(super) enum Pick {
    /// Those that may be read, until there was enough.
    Slice,
    /// These, all of them, whatever is under way.
    All(Vec<(usize, Pending)>),
}

#[derive(Default)]
pub(super) struct Blobs {
    /// A file that is being read, across slices.
    current: Option<(Read, Reading)>,
    /// Read to the end, with chunks in a blob that is not sealed yet.
    unsealed: Vec<Read>,
    body: Vec<u8>,
    /// The number of the blob that is being filled.
    number: u64,
    /// Chunks in blobs that are not sealed.
    open: HashMap<ChunkId, Place>,
    /// Chunks in sealed blobs that no entry names yet.
    fresh: HashMap<ChunkId, ChunkRef>,
    /// Sealed blobs that no entry names yet.
    objects: Vec<Spooled>,
    next_position: u32,
}

/// What one slice works with.
struct Slice<'a, 's, 'scope, 'env> {
    blobs: &'a mut Blobs,
    sealing: &'s mut Sealing<'scope, 'env>,
    known: &'a KnownFiles,
    key: &'a [u8; 32],
    distrust: bool,
    /// The numbers of the blobs that were sent.
    sent: Vec<u64>,
}

impl Blobs {
    /// Whether a file is read half way, or a blob is filled half way.
    pub(super) fn is_busy(&self) -> bool {
        self.current.is_some() || !self.unsealed.is_empty()
    }

    /// The file that is being read: which folder, how long.
    pub(super) fn current(&self) -> Option<(usize, u64)> {
        self.current.as_ref().map(|(read, _)| (read.folder, read.found.len))
    }

    /// What the sealed blobs take, in bytes.
    pub(super) fn sealed_bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.len).sum()
    }

    /// Reads on. After an error nothing that was read and not sealed counts.
    pub(super) fn read(
        &mut self,
        folders: &mut [MediaFolder],
        pick: Pick,
        (known, key): (&KnownFiles, &[u8; 32]),
        writer: &Writer,
    ) -> io::Result<()> {
        let distrust = known.distrusts();
        let first_position = self.next_position;
        let blobs = &mut *self;
        let (read, packs) = writer.sealing(0, first_position, |sealing| {
            let mut slice = Slice { blobs, sealing, known, key, distrust, sent: Vec::new() };
            let read = match pick {
                Pick::Slice => slice.read_some(folders),
                Pick::All(files) => slice.read_these(folders, files),
            };
            read.map(|()| slice.sent)
        });
        let packs = packs.inspect_err(|_| self.drop_unsealed())?;
        let sent = read.inspect_err(|_| self.drop_unsealed())?;
        self.next_position += sent.len() as u32;
        let names: HashMap<u64, [u8; 16]> =
            sent.into_iter().zip(packs.parts).map(|(number, part)| (number, part[0].name)).collect();
        for object in packs.objects {
            if self.objects.iter().any(|known| known.name == object.name) {
                writer.spool.remove(&[object])?;
            } else {
                self.objects.push(object);
            }
        }
        self.settle(folders, known, &names)
    }

    /// Gives what lay in open blobs the names of these.
    fn settle(
        &mut self,
        folders: &mut [MediaFolder],
        known: &KnownFiles,
        names: &HashMap<u64, [u8; 16]>,
    ) -> io::Result<()> {
        let settle = |place: &mut Place| {
            if let Place::Open { blob, id, offset, len } = *place
                && let Some(pack) = names.get(&blob)
            {
                *place = Place::Sealed(ChunkRef { id, pack: *pack, offset, len });
            }
        };
        for (id, mut place) in std::mem::take(&mut self.open) {
            settle(&mut place);
            match place {
                Place::Sealed(chunk) => drop(self.fresh.insert(id, chunk)),
                Place::Open { .. } => drop(self.open.insert(id, place)),
            }
        }
        let current = self.current.iter_mut().map(|(read, _)| read);
        current.chain(&mut self.unsealed).flat_map(|read| &mut read.places).for_each(settle);
        let whole = |read: &Read| read.places.iter().all(|place| matches!(place, Place::Sealed(_)));
        let (done, unsealed) = std::mem::take(&mut self.unsealed).into_iter().partition(whole);
        self.unsealed = unsealed;
        let done: Vec<Read> = done;
        for Read { folder, found, places, .. } in done {
            let chunks = places.into_iter().filter_map(|place| match place {
                Place::Sealed(chunk) => Some(chunk),
                Place::Open { .. } => None,
            });
            let record = FileRecord {
                mode: found.mode & 0o777,
                mtime_ns: found.mtime_ns,
                len: found.len,
                chunks: chunks.collect(),
            };
            folders[folder].was_read(known, found, record)?;
        }
        Ok(())
    }

    /// The blobs that an entry with these packs needs. What nobody needs any more is removed.
    pub(super) fn take(&mut self, packs: &BTreeSet<[u8; 16]>, writer: &Writer) -> Vec<Spooled> {
        let needed = |object: &Spooled| matches!(object.name, chatkeep_format::ObjectName::Pack(name) if packs.contains(&name));
        let (taken, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.objects).into_iter().partition(needed);
        let reading: BTreeSet<[u8; 16]> = self
            .current
            .iter()
            .map(|(read, _)| read)
            .chain(&self.unsealed)
            .flat_map(|read| &read.places)
            .filter_map(|place| match place {
                Place::Sealed(chunk) => Some(chunk.pack),
                Place::Open { .. } => None,
            })
            .collect();
        let is_read = |object: &Spooled| matches!(object.name, chatkeep_format::ObjectName::Pack(name) if reading.contains(&name));
        let (kept, useless): (Vec<_>, Vec<_>) = left.into_iter().partition(is_read);
        self.objects = kept;
        self.fresh.retain(|_, chunk| reading.contains(&chunk.pack) && !packs.contains(&chunk.pack));
        if let Err(error) = writer.spool.remove(&useless) {
            warn!(%error, "packs that are not needed cannot be removed");
        }
        taken
    }

    /// Drops everything, with its packs.
    pub(super) fn drop_all(&mut self, writer: &Writer) {
        self.drop_unsealed();
        self.fresh.clear();
        if let Err(error) = writer.spool.remove(&std::mem::take(&mut self.objects)) {
            warn!(%error, "packs that are not needed cannot be removed");
        }
    }

    fn drop_unsealed(&mut self) {
        self.current = None;
        self.unsealed.clear();
        self.body = Vec::new();
        self.open.clear();
        self.number += 1;
    }

    /// Begins the file that is being read anew: what it refers to may be deleted from now on.
    pub(super) fn restart_current(&mut self, folders: &mut [MediaFolder]) {
        if let Some((read, _)) = self.current.take() {
            folders[read.folder].pending.push_front(Pending { found: read.found, noted: read.noted });
        }
    }
}

impl Slice<'_, '_, '_, '_> {
    fn read_some(&mut self, folders: &mut [MediaFolder]) -> io::Result<()> {
        let begun = Instant::now();
        let mut opened: Vec<Option<Folder>> = folders.iter().map(|_| None).collect();
        loop {
            if self.blobs.current.is_none() {
                let Some((at, pending)) = next(folders) else { break };
                let folder = match &mut opened[at] {
                    Some(folder) => folder,
                    none => {
                        let Ok(folder) = folders[at].open() else {
                            folders[at].vanished();
                            continue;
                        };
                        none.insert(folder)
                    }
                };
                self.begin(folder, &mut folders[at], (at, pending));
            }
            while let Some((read, reading)) = self.blobs.current.take() {
                if self.sent.len() >= SLICE_BLOBS || begun.elapsed() >= SLICE_TIME {
                    self.blobs.current = Some((read, reading));
                    return Ok(());
                }
                self.step(folders, read, reading)?;
            }
        }
        self.send()
    }

    fn read_these(&mut self, folders: &mut [MediaFolder], files: Vec<(usize, Pending)>) -> io::Result<()> {
        let under_way = self.blobs.current.take();
        let mut opened: Option<(usize, Folder)> = None;
        for (at, pending) in files {
            if opened.as_ref().is_none_or(|(of, _)| *of != at) {
                opened = folders[at].open().ok().map(|folder| (at, folder));
            }
            let Some((_, folder)) = &opened else {
                folders[at].was_changing(pending);
                continue;
            };
            self.begin(folder, &mut folders[at], (at, pending));
            while let Some((read, reading)) = self.blobs.current.take() {
                self.step(folders, read, reading)?;
            }
        }
        self.blobs.current = under_way;
        self.send()
    }

    fn begin(&mut self, opened: &Folder, folder: &mut MediaFolder, (at, pending): (usize, Pending)) {
        match opened.begin(&pending.found) {
            Ok(reading) => {
                let Pending { found, noted } = pending;
                self.blobs.current = Some((Read { folder: at, found, noted, places: Vec::new() }, reading));
            }
            Err(ReadError::Changed) => folder.was_changing(pending),
            Err(_) => folder.was_unreadable(pending.found),
        }
    }

    /// Reads one chunk.
    fn step(&mut self, folders: &mut [MediaFolder], mut read: Read, mut reading: Reading) -> io::Result<()> {
        match reading.next(self.key) {
            Ok(Some(chunk)) => {
                let place = self.place(chunk)?;
                read.places.push(place);
                self.blobs.current = Some((read, reading));
            }
            Ok(None) => self.blobs.unsealed.push(read),
            Err(ReadError::Changed) => {
                folders[read.folder].was_changing(Pending { found: read.found, noted: read.noted });
            }
            Err(_) => folders[read.folder].was_unreadable(read.found),
        }
        Ok(())
    }

    fn place(&mut self, chunk: Chunk<'_>) -> io::Result<Place> {
        let blobs = &mut *self.blobs;
        if let Some(place) = blobs.open.get(&chunk.id) {
            return Ok(*place);
        }
        if let Some(chunk) = blobs.fresh.get(&chunk.id).copied().or_else(|| self.known.chunk(&chunk.id)) {
            return Ok(Place::Sealed(chunk));
        }
        let (offset, len) = (blobs.body.len() as u32, chunk.bytes.len() as u32);
        let place = Place::Open { blob: blobs.number, id: chunk.id, offset, len };
        blobs.body.extend_from_slice(chunk.bytes);
        blobs.open.insert(chunk.id, place);
        if blobs.body.len() >= BLOB_LEN {
            self.send()?;
        }
        Ok(place)
    }

    fn send(&mut self) -> io::Result<()> {
        let blobs = &mut *self.blobs;
        if blobs.body.is_empty() {
            return Ok(());
        }
        let mut body = std::mem::take(&mut blobs.body);
        if self.distrust {
            // Bytes that no file names: the blob must not have the name of one that is damaged.
            body.extend_from_slice(&OsRng.next_u64().to_le_bytes());
        }
        self.sent.push(blobs.number);
        blobs.number += 1;
        let part = self.sealing.begin_part();
        self.sealing.bytes(part, body, 0)
    }
}

/// What is read next: what an entry waits for, then the rest.
fn next(folders: &mut [MediaFolder]) -> Option<(usize, Pending)> {
    for (at, folder) in folders.iter_mut().enumerate() {
        if let Some(pending) = folder.pending.pop_front() {
            return Some((at, pending));
        }
    }
    for (at, folder) in folders.iter_mut().enumerate() {
        if let Some(found) = folder.later.pop_front() {
            return Some((at, Pending { found, noted: folder.captures }));
        }
    }
    None
}
