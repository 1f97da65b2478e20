//! From a recovery point to proven files: the entries of its chain, applied from the oldest to the newest.
//!
//! Databases here, attachments in [`folders`]. Attachments come first: while a database is not there, the restore is
//! not done, and can be begun again to go on.

mod folders;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chatkeep_crypto::DataRoots;
use chatkeep_format::{
    DatabaseKind, DatabaseRecord, DatabaseState, Entry, ObjectName, PageOp, PageSet, apply_patch,
};
use chatkeep_ipc::Error;
use chatkeep_planner::{ChainError, follows, next_of_chain};
use chatkeep_sqlite::{Existing, Integrity, Kind, RestoreWriter, Restored};
use rustix::fs::{Mode, OFlags};
use tokio::runtime::Handle;

pub use folders::RestoredFolder;

use crate::archive::{Archive, ArchiveError};
use crate::fault::{Fault, Result};

/// Entries of a chain are kept in memory up to this many bytes (8 MiB); those beyond it are read a second time.
const KEPT_MAX: usize = 8 << 20;

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

/// Where the files go.
pub struct Destination {
    /// An open folder.
    pub folder: OwnedFd,
    /// The file's name in it; `None` for that of the database. A source of several databases, or with attachments, makes
    /// a folder of this name, or goes right into `folder`.
    pub file_name: Option<String>,
    /// `folder` is where the files belong: several go right into it, too, and `file_name` is that of the only database.
    pub in_place: bool,
    /// What becomes of a file that is there.
    pub existing: Existing,
    /// Names the file that is kept beside.
    pub label: String,
}

/// A restored point.
#[derive(Debug)]
pub struct Report {
    /// The databases.
    pub databases: Vec<Restored>,
    /// The folders of attachments.
    pub folders: Vec<RestoredFolder>,
    /// The point.
    pub seq: u64,
    /// When it was captured, µs since 1970.
    pub taken_at_us: i64,
    /// Pages of the databases.
    pub pages: u64,
    /// Objects that were read, and how many of them were entries.
    pub objects: u32,
    /// Entries that were read.
    pub entries: u32,
}

impl Report {
    /// What the user should know beside success.
    pub fn warning(&self) -> Option<String> {
        let several = self.databases.len() > 1;
        let warnings = self.databases.iter().filter_map(|database| {
            let warning = warning_of(&database.integrity)?;
            Some(if several { format!("{}: {warning}", database.path_name) } else { warning })
        });
        let unread: u64 = self.folders.iter().map(|folder| u64::from(folder.unread)).sum();
        let unread = (unread > 0).then(|| {
            format!(
                "{unread} files of attachments were not read yet, or could not be, when this point was made"
            )
        });
        let warnings: Vec<_> = warnings.chain(unread).collect();
        (!warnings.is_empty()).then(|| warnings.join("; "))
    }
}

fn warning_of(integrity: &Integrity) -> Option<String> {
    match integrity {
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

/// One entry of a chain.
struct Link {
    seq: u64,
    digest: [u8; 32],
    /// Databases that are whole in it.
    bases: Vec<String>,
    /// Nothing when it would take too much memory.
    entry: Option<Entry>,
}

/// The entries that a restore of a point reads, newest first. All of them were read once, and follow each other.
pub struct Chain {
    links: Vec<Link>,
    /// The point itself.
    pub newest: Entry,
}

impl Chain {
    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// It always has the point itself.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The numbers of its entries, newest first.
    pub fn seqs(&self) -> impl Iterator<Item = u64> {
        self.links.iter().map(|link| link.seq)
    }
}

impl Source {
    /// Reads the chain of a point, and proves that each entry builds on the one before it.
    pub fn chain(&self, seq: u64, runtime: &Handle) -> Result<Chain> {
        let mut links: Vec<Link> = Vec::new();
        let mut kept = 0;
        let mut newest = None;
        let mut next = Some((seq, None));
        while let Some((seq, named)) = next {
            self.check_cancelled()?;
            let (entry, digest, len) = runtime.block_on(self.archive.entry(seq, &self.roots))?;
            if named.is_some_and(|named| !follows(&named, &digest)) {
                return Err(ArchiveError::Swapped { key: self.key(seq) }.into());
            }
            let parent = next_of_chain(seq, entry.parent_seq).map_err(|error| self.unplanned(seq, error))?;
            next = parent.map(|parent| (parent, Some(entry.parent_digest)));
            // Its pages, unpacked, may be more; the bound is about the sum.
            let pages: usize = entry.databases.iter().map(|database| database.inline.byte_len()).sum();
            let files: usize = entry.folders.iter().map(|folder| folder.inline.byte_len()).sum();
            kept += (len as usize).max(pages + files);
            if newest.is_none() {
                newest = Some(entry.clone());
            }
            let whole = entry.databases.iter().filter(|database| database.is_base);
            let bases = whole.map(|database| database.name.clone()).collect();
            links.push(Link { seq, digest, bases, entry: (kept <= KEPT_MAX).then_some(entry) });
        }
        let newest = newest.expect("a chain has its point");
        Ok(Chain { links, newest })
    }

    /// Restores point `seq`. Blocks; run it on a thread for that.
    pub fn restore(&self, seq: u64, destination: Destination, runtime: &Handle) -> Result<Report> {
        let chain = self.chain(seq, runtime)?;
        let present = |record: &&DatabaseRecord| record.state == DatabaseState::Present;
        let databases: Vec<DatabaseRecord> =
            chain.newest.databases.iter().filter(present).map(DatabaseRecord::clone).collect();
        let single = databases.len() == 1 && chain.newest.folders.is_empty();
        let (folder, name) = match &destination.file_name {
            Some(name) if !single && !destination.in_place => (open_folder(&destination.folder, name)?, None),
            // Several have their own names.
            name => (destination.folder.try_clone()?, name.clone().filter(|_| databases.len() == 1)),
        };
        let file_name = |database: &DatabaseRecord| name.clone().unwrap_or_else(|| database.name.clone());
        let mut report = Report {
            databases: Vec::new(),
            folders: Vec::new(),
            seq,
            taken_at_us: chain.newest.taken_at_us,
            pages: databases.iter().map(|database| u64::from(database.page_count)).sum(),
            objects: chain.len() as u32,
            entries: chain.len() as u32,
        };
        let size = |database: &DatabaseRecord| u64::from(database.page_count) * u64::from(database.page_size);
        let files: u64 = chain.newest.folders.iter().map(|folder| folder.bytes).sum();
        let total = files + databases.iter().map(size).sum::<u64>();
        if !single && destination.existing == Existing::Refuse {
            // Before gigabytes are written for nothing.
            for database in &databases {
                refuse_if_there(&folder, &file_name(database))?;
            }
        }
        let restored = self.restore_folders(&chain, (&folder, &destination), total, runtime)?;
        report.folders = restored.0;
        report.objects += restored.1;
        let Destination { existing, label, .. } = destination;
        let mut progress = Progress { source: self, done: files, total };
        for database in &databases {
            let file_name = file_name(database);
            let folder = folder.try_clone()?;
            let mut writer = RestoreWriter::create(
                folder,
                &file_name,
                database.page_size,
                database.page_count,
                chain.newest.digest_key,
            )?;
            let begun = progress.done;
            report.objects +=
                self.write_database(&chain, &database.name, &mut writer, &mut progress, runtime)?;
            self.check_cancelled()?;
            let kind = match database.kind {
                DatabaseKind::Plain => Kind::Plain,
                DatabaseKind::Opaque => Kind::Opaque,
            };
            report.databases.push(writer.finish(database.state_digest, kind, existing, &label)?);
            progress.done = begun + size(database);
        }
        Ok(report)
    }

    /// Writes all pages of a database, oldest first. Returns how many objects were read beside the chain.
    fn write_database(
        &self,
        chain: &Chain,
        name: &str,
        writer: &mut RestoreWriter,
        progress: &mut Progress<'_>,
        runtime: &Handle,
    ) -> Result<u32> {
        let begun = progress.done;
        let mut objects = 0;
        let base = chain.links.iter().position(|link| link.bases.iter().any(|base| base == name));
        let needed = &chain.links[..base.map_or(chain.links.len(), |base| base + 1)];
        for link in needed.iter().rev() {
            self.check_cancelled()?;
            let again;
            let entry = if let Some(entry) = &link.entry {
                entry
            } else {
                objects += 1;
                again = self.read_again(link, runtime)?;
                &again
            };
            let Some(record) = entry.databases.iter().find(|record| record.name == name) else { continue };
            let bad = |pgno: u32| self.bad_page(link.seq, name, pgno);
            for pack in &record.packs {
                self.check_cancelled()?;
                objects += 1;
                let pages = runtime.block_on(self.archive.pack(pack.name, &self.roots))?;
                write_pages(writer, &pages, &bad)?;
                progress.tell(begun, writer, record.page_size);
            }
            write_pages(writer, &record.inline, &bad)?;
            progress.tell(begun, writer, record.page_size);
        }
        Ok(objects)
    }

    fn read_again(&self, link: &Link, runtime: &Handle) -> Result<Entry> {
        let (entry, digest, _) = runtime.block_on(self.archive.entry(link.seq, &self.roots))?;
        if digest == link.digest {
            Ok(entry)
        } else {
            Err(ArchiveError::Swapped { key: self.key(link.seq) }.into())
        }
    }

    fn key(&self, seq: u64) -> String {
        ObjectName::Entry(seq).store_key(&self.archive.id)
    }

    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Fault::cancelled()) } else { Ok(()) }
    }

    fn unplanned(&self, seq: u64, error: ChainError) -> Fault {
        match error {
            ChainError::MissingEntry { seq } => ArchiveError::Missing { key: self.key(seq) }.into(),
            other => ArchiveError::Damaged { key: self.key(seq), what: other.to_string() }.into(),
        }
    }

    fn bad_page(&self, seq: u64, name: &str, pgno: u32) -> Fault {
        let what = format!("page {pgno} of {name} cannot be made from what it was before");
        ArchiveError::Damaged { key: self.key(seq), what }.into()
    }
}

fn refuse_if_there(folder: &OwnedFd, name: &str) -> Result<()> {
    match rustix::fs::statat(folder.as_fd(), name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(chatkeep_sqlite::RestoreError::Exists.into()),
        Err(_) => Ok(()),
    }
}

/// Opens the folder of this name, made if it is not there.
fn open_folder(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(parent.as_fd(), name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(std::io::Error::from(error).into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent.as_fd(), name, flags, Mode::empty()) {
        Ok(folder) => Ok(folder),
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            let text = format!(
                "`{name}` is there and is no folder; this point is several files, and goes into a folder"
            );
            Err(Error::InvalidArgument(text).into())
        }
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

fn write_pages(writer: &mut RestoreWriter, pages: &PageSet, bad: &dyn Fn(u32) -> Fault) -> Result<()> {
    let zeros = vec![0; pages.page_size() as usize];
    for (pgno, op) in pages.iter() {
        match op {
            PageOp::Full(image) => writer.write_page(pgno, image)?,
            PageOp::Zero => writer.write_page(pgno, &zeros)?,
            PageOp::Patch(patch) => writer
                .patch_page(pgno, |before, image| apply_patch(before, patch, image).is_ok())
                .map_err(|error| match error {
                    chatkeep_sqlite::RestoreError::BadPatch { pgno } => bad(pgno),
                    other => other.into(),
                })?,
        }
    }
    Ok(())
}

/// In bytes.
struct Progress<'a> {
    source: &'a Source,
    done: u64,
    total: u64,
}

impl Progress<'_> {
    fn tell(&mut self, begun: u64, writer: &RestoreWriter, page_size: u32) {
        let written = u64::from(writer.page_count() - writer.missing());
        self.done = begun + written * u64::from(page_size);
        (self.source.progress)(self.done.min(self.total), self.total);
    }
}
