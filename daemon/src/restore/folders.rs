//! The folders of attachments of a point: every file, each chunk proved by its name.
//!
//! What is there already, from a restore that was cut off, is compared and left. Several threads write, because a file
//! is on the disk before it counts; blobs are read once, as files lie in them in the order of their paths.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chatkeep_attachments::{Begun, Content, Folder, RelPath, RestoreError, Restorer, Wanted};
use chatkeep_format::{ChunkRef, FileOp, FileRecord, FileSet, FolderRecord, ObjectName};
use chatkeep_ipc::Error;
use chatkeep_sqlite::Existing;
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::{Chain, Destination, Source, open_folder};
use crate::archive::ArchiveError;
use crate::fault::{Fault, Result};

/// Files written at once: while one waits for the disk, others are fetched.
const THREADS: usize = 4;
/// Blobs in memory, beside those that are in use: about 4 MiB each, 64 MiB at the most.
const BLOBS_KEPT: usize = 3;

/// Files of a folder, by path.
type Files = BTreeMap<Vec<u8>, FileRecord>;

/// A restored folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredFolder {
    /// Its name in the destination.
    pub name: String,
    /// Files in it.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Files that were there already.
    pub already_there: u64,
    /// Files that the point does not have, or not as they were then: they could not be read.
    pub unread: u32,
    /// What an existing folder was renamed to.
    pub kept_beside: Option<String>,
}

/// A pack of chunks by its name.
type Blob = ([u8; 16], Arc<Vec<u8>>);

/// What the threads share.
struct Work<'a> {
    source: &'a Source,
    restorer: &'a Restorer,
    key: [u8; 32],
    files: Mutex<std::collections::btree_map::Iter<'a, Vec<u8>, FileRecord>>,
    blobs: Mutex<VecDeque<Blob>>,
    runtime: &'a Handle,
    failed: AtomicBool,
    objects: AtomicU32,
    done: AtomicU64,
    total: u64,
}

impl Source {
    /// Restores all folders of a point into `folder`. `total` is what the whole restore writes, in bytes. Returns them,
    /// and how many objects were read.
    pub(super) fn restore_folders(
        &self,
        chain: &Chain,
        (folder, destination): (&OwnedFd, &Destination),
        total: u64,
        runtime: &Handle,
    ) -> Result<(Vec<RestoredFolder>, u32)> {
        let (mut restored, mut objects, mut done) = (Vec::new(), 0, 0);
        for record in &chain.newest.folders {
            let (files, read) = self.files_of(chain, record, runtime)?;
            objects += read;
            let restore = || {
                let opened = open_folder(folder, &record.name)?;
                self.write_files(&opened, chain, record, &files, (done, total), runtime)
            };
            let mut kept_beside = None;
            let written = match restore() {
                Err(Failure::Conflict(_)) if destination.existing == Existing::KeepBeside => {
                    kept_beside = Some(keep_beside(folder, &record.name, &destination.label)?);
                    restore()
                }
                other => other,
            };
            let (already_there, read) = written.map_err(|failure| failure.into_fault(&record.name))?;
            objects += read;
            done += record.bytes;
            restored.push(RestoredFolder {
                name: record.name.clone(),
                files: record.files,
                bytes: record.bytes,
                already_there,
                unread: record.unread,
                kept_beside,
            });
        }
        Ok((restored, objects))
    }

    /// What is in a folder at the point. Returns how many objects were read for it.
    fn files_of(&self, chain: &Chain, record: &FolderRecord, runtime: &Handle) -> Result<(Files, u32)> {
        let mut objects = 0;
        let mut records: Vec<(u64, FolderRecord)> = Vec::new();
        for link in &chain.links {
            self.check_cancelled()?;
            let again;
            let entry = if let Some(entry) = &link.entry {
                entry
            } else {
                objects += 1;
                again = self.read_again(link, runtime)?;
                &again
            };
            let Some(older) = entry.folders.iter().find(|older| older.name == record.name) else { break };
            records.push((link.seq, older.clone()));
            if older.is_base {
                break;
            }
        }
        let mut files = Files::new();
        for (_, older) in records.iter().rev() {
            for pack in &older.packs {
                self.check_cancelled()?;
                objects += 1;
                take(&mut files, &runtime.block_on(self.archive.file_set(pack.name, &self.roots))?);
            }
            take(&mut files, &older.inline);
        }
        let bytes: u64 = files.values().map(|file| file.len).sum();
        if (files.len() as u64, bytes) != (record.files, record.bytes) || !is_a_tree(&files) {
            let what = format!("the files of the folder {} do not fit together", record.name);
            return Err(ArchiveError::Content { key: self.key(chain.newest.seq), what }.into());
        }
        Ok((files, objects))
    }

    /// Returns how many files were there already, and how many objects were read.
    fn write_files(
        &self,
        folder: &OwnedFd,
        chain: &Chain,
        record: &FolderRecord,
        files: &Files,
        (done, total): (u64, u64),
        runtime: &Handle,
    ) -> Result<(u64, u32), Failure> {
        let restorer = Restorer::create(&Folder::from_fd(folder).map_err(Fault::from)?)?;
        let work = Work {
            source: self,
            restorer: &restorer,
            key: chain.newest.digest_key,
            files: Mutex::new(files.iter()),
            blobs: Mutex::default(),
            runtime,
            failed: AtomicBool::new(false),
            objects: AtomicU32::new(0),
            done: AtomicU64::new(done),
            total,
        };
        let threads = THREADS.min(record.files.max(1) as usize);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run())).collect();
            let ends = threads.into_iter().map(|thread| thread.join().expect("writing files does not panic"));
            ends.fold(Ok(()), Result::and)
        })?;
        let objects = work.objects.into_inner();
        Ok((restorer.finish()?.already_there, objects))
    }
}

impl Work<'_> {
    fn run(&self) -> Result<(), Failure> {
        while !self.failed.load(Ordering::Relaxed) {
            let next = self.files.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((path, file)) = next else { return Ok(()) };
            if let Err(failure) = self.write(path, file) {
                self.failed.store(true, Ordering::Relaxed);
                return Err(failure);
            }
        }
        Ok(())
    }

    fn write(&self, path: &[u8], file: &FileRecord) -> Result<(), Failure> {
        self.source.check_cancelled()?;
        let path = RelPath::parse(path).map_err(|error| Fault::from(Error::Corrupt(error.to_string())))?;
        let chunks: Vec<_> = file.chunks.iter().map(|chunk| (chunk.id, u64::from(chunk.len))).collect();
        let content = Some(Content { key: &self.key, chunks: &chunks });
        let (len, mtime_ns, mode) = (file.len, file.mtime_ns, file.mode);
        match self.restorer.file(Wanted { path: &path, len, mtime_ns, mode, content })? {
            Begun::AlreadyThere => self.tell(len),
            Begun::Write(mut writer) => {
                for chunk in &file.chunks {
                    self.source.check_cancelled()?;
                    let blob = self.blob(chunk.pack)?;
                    writer.write(self.prove(chunk, &blob)?)?;
                    self.tell(u64::from(chunk.len));
                }
                writer.finish()?;
            }
        }
        Ok(())
    }

    fn blob(&self, name: [u8; 16]) -> Result<Arc<Vec<u8>>, Failure> {
        // Held while it is fetched: whoever needs the same blob waits for it, and the order is kept.
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, blob)) = blobs.iter().find(|(known, _)| *known == name) {
            return Ok(blob.clone());
        }
        let read = self.runtime.block_on(self.source.archive.pack_body(name, &self.source.roots));
        let blob = Arc::new(read.map_err(Fault::from)?);
        self.objects.fetch_add(1, Ordering::Relaxed);
        blobs.truncate(BLOBS_KEPT - 1);
        blobs.push_front((name, blob.clone()));
        Ok(blob)
    }

    fn prove<'a>(&self, chunk: &ChunkRef, blob: &'a [u8]) -> Result<&'a [u8], Failure> {
        let start = chunk.offset as usize;
        let bytes = blob.get(start..start + chunk.len as usize);
        let right = |bytes: &&[u8]| blake3::keyed_hash(&self.key, bytes).as_bytes()[..16] == chunk.id;
        bytes.filter(right).ok_or_else(|| {
            let key = ObjectName::Pack(chunk.pack).store_key(&self.source.archive.id);
            let what = "a piece of a file in it is not what it should be".to_owned();
            Fault::from(ArchiveError::Content { key, what }).into()
        })
    }

    fn tell(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.source.progress)(done.min(self.total), self.total);
    }
}

/// Why files could not be written.
enum Failure {
    /// Something else is in their place.
    Conflict(RestoreError),
    Other(Fault),
}

impl Failure {
    fn into_fault(self, folder: &str) -> Fault {
        match self {
            Self::Conflict(error) => Error::InvalidArgument(format!(
                "in the folder `{folder}`: {error}; what was restored before stays, and a restore goes on from there"
            ))
            .into(),
            Self::Other(fault) => fault,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Other(fault)
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Exists | RestoreError::InTheWay => Self::Conflict(error),
            other => Self::Other(other.into()),
        }
    }
}

fn take(files: &mut Files, set: &FileSet) {
    for (path, op) in set.iter() {
        match op {
            FileOp::Gone => drop(files.remove(path)),
            FileOp::File(file) => drop(files.insert(path.to_vec(), file.clone())),
        }
    }
}

/// Whether no path is a folder on the way to another.
fn is_a_tree(files: &Files) -> bool {
    files.keys().all(|path| {
        let mut slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes.all(|(at, _)| !files.contains_key(&path[..at]))
    })
}

/// Renames what has the name of the folder.
fn keep_beside(parent: &OwnedFd, name: &str, label: &str) -> Result<String> {
    let base = format!("{name}.before-{label}");
    for number in 1..100 {
        let beside = if number == 1 { base.clone() } else { format!("{base}-{number}") };
        let fd = parent.as_fd();
        match rustix::fs::statat(fd, beside.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            _ => continue,
        }
        match rustix::fs::renameat_with(fd, name, fd, beside.as_str(), RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(fd, name, fd, beside.as_str()),
            other => other,
        }
        .map_err(std::io::Error::from)?;
        return Ok(beside);
    }
    Err(Fault::internal("no free name for the folder that is kept beside"))
}
