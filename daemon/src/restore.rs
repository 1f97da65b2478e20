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
use chatkeep_sqlite::{Existing, Integrity, Kind, RestoreError, RestoreWriter, Restored};
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
    /// What it has of each database, by name, and how many bytes that had then.
    records: Vec<(String, Has, u64)>,
    /// Nothing when it would take too much memory.
    entry: Option<Entry>,
}

/// What an entry has of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    /// Every page.
    Base,
    /// What changed since the parent.
    Changes,
    /// That it was gone.
    Gone,
}

/// Bytes of a database.
fn size(record: &DatabaseRecord) -> u64 {
    u64::from(record.page_count) * u64::from(record.page_size)
}

impl Has {
    fn of(record: &DatabaseRecord) -> Self {
        match record.state {
            DatabaseState::Gone => Self::Gone,
            DatabaseState::Present if record.is_base => Self::Base,
            DatabaseState::Present => Self::Changes,
        }
    }
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

    /// Bytes of what comes back.
    pub fn bytes(&self) -> u64 {
        self.sum(size)
    }

    /// The most bytes that a restore takes meanwhile: pages beyond the end stay until then, others may build on them.
    pub fn bytes_max(&self) -> u64 {
        self.sum(|record| {
            let then = self.needed(&record.name).iter().flat_map(|link| &link.records);
            let then = then.filter(|(name, ..)| *name == record.name).map(|(.., bytes)| *bytes);
            then.max().unwrap_or(0)
        })
    }

    fn sum(&self, bytes: impl Fn(&DatabaseRecord) -> u64) -> u64 {
        let databases = self.newest.databases.iter().map(bytes);
        let folders = self.newest.folders.iter().map(|folder| folder.bytes);
        databases.chain(folders).fold(0, u64::saturating_add)
    }

    /// The entries whose records of a database are applied, newest first: down to a base of it, or to where it began.
    fn needed(&self, name: &str) -> &[Link] {
        let mut needed = 0;
        for link in &self.links {
            let has = link.records.iter().find(|(known, ..)| known == name).map(|(_, has, _)| *has);
            match has {
                Some(Has::Changes) => needed += 1,
                Some(Has::Base) => {
                    needed += 1;
                    break;
                }
                // What it was before it went, or before it came, is not what this builds on.
                Some(Has::Gone) | None => break,
            }
        }
        &self.links[..needed]
    }
}

impl Source {
    /// Reads the chain of a point, and proves that each entry builds on the one before it, in the same archive.
    pub fn chain(&self, seq: u64, runtime: &Handle) -> Result<Chain> {
        let mut links: Vec<Link> = Vec::new();
        let mut kept = 0;
        let mut newest: Option<Entry> = None;
        let mut next = Some((seq, None));
        while let Some((seq, named)) = next {
            self.check_cancelled()?;
            let (entry, digest, len) = runtime.block_on(self.archive.entry(seq, &self.roots))?;
            let other = |what| ArchiveError::Chain { key: self.key(seq), what };
            if named.is_some_and(|named| !follows(&named, &digest)) {
                return Err(other("a newer entry names another digest").into());
            }
            let newest = newest.get_or_insert_with(|| entry.clone());
            if entry.base_seq != newest.base_seq {
                return Err(other("it names another base").into());
            }
            if entry.digest_key != newest.digest_key {
                return Err(other("it has another digest key").into());
            }
            let parent = next_of_chain(seq, entry.parent_seq).map_err(|error| self.unplanned(seq, error))?;
            next = parent.map(|parent| (parent, Some(entry.parent_digest)));
            // Its pages, unpacked, may be more; the bound is about the sum.
            let pages: usize = entry.databases.iter().map(|database| database.inline.byte_len()).sum();
            let files: usize = entry.folders.iter().map(|folder| folder.inline.byte_len()).sum();
            kept += (len as usize).max(pages + files);
            let records =
                entry.databases.iter().map(|record| (record.name.clone(), Has::of(record), size(record)));
            let records = records.collect();
            links.push(Link { seq, digest, records, entry: (kept <= KEPT_MAX).then_some(entry) });
        }
        let newest = newest.expect("a chain has its point");
        Ok(Chain { links, newest })
    }

    /// Restores point `seq`. Blocks; run it on a thread for that.
    pub fn restore(&self, seq: u64, destination: Destination, runtime: &Handle) -> Result<Report> {
        self.restore_chain(&self.chain(seq, runtime)?, destination, runtime)
    }

    /// Restores the point whose chain was read. Blocks, as [`restore`](Self::restore).
    pub fn restore_chain(&self, chain: &Chain, destination: Destination, runtime: &Handle) -> Result<Report> {
        let seq = chain.newest.seq;
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
        let files: u64 = chain.newest.folders.iter().map(|folder| folder.bytes).sum();
        let total = files + databases.iter().map(size).sum::<u64>();
        if !single && destination.existing == Existing::Refuse {
            // Before gigabytes are written for nothing.
            for database in &databases {
                refuse_if_there(&folder, &file_name(database))?;
            }
        }
        let restored = self.restore_folders(chain, (&folder, &destination), total, runtime)?;
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
            report.objects += self.write_database(chain, database, &mut writer, &mut progress, runtime)?;
            self.check_cancelled()?;
            let kind = match database.kind {
                DatabaseKind::Plain => Kind::Plain,
                DatabaseKind::Opaque => Kind::Opaque,
            };
            let restored = writer.finish(database.state_digest, kind, existing, &label);
            report.databases.push(restored.map_err(|error| self.unproved(seq, &database.name, error))?);
            progress.done = begun + size(database);
        }
        Ok(report)
    }

    /// Writes all pages of a database, oldest first. Returns how many objects were read beside the chain.
    fn write_database(
        &self,
        chain: &Chain,
        goal: &DatabaseRecord,
        writer: &mut RestoreWriter,
        progress: &mut Progress<'_>,
        runtime: &Handle,
    ) -> Result<u32> {
        let begun = progress.done;
        let mut objects = 0;
        for link in chain.needed(&goal.name).iter().rev() {
            self.check_cancelled()?;
            let again;
            let entry = if let Some(entry) = &link.entry {
                entry
            } else {
                objects += 1;
                again = self.read_again(link, runtime)?;
                &again
            };
            let Some(record) = entry.databases.iter().find(|record| record.name == goal.name) else {
                continue;
            };
            let has_pages = !record.packs.is_empty() || !record.inline.is_empty();
            let entry_name = ObjectName::Entry(link.seq);
            if has_pages && record.page_size != goal.page_size {
                let what = format!("pages of {} bytes in the chain of {}", record.page_size, goal.page_size);
                return Err(self.archive.malformed(entry_name, what).into());
            }
            for pack in &record.packs {
                self.check_cancelled()?;
                objects += 1;
                let name = ObjectName::Pack(pack.name);
                let pages = runtime.block_on(self.archive.pack(pack.name, &self.roots))?;
                if let Some(rule) = broken_rule(record, &pages) {
                    return Err(self.archive.malformed(name, rule.to_owned()).into());
                }
                write_pages(writer, &pages).map_err(|error| self.bad_set(chain, name, goal, error))?;
                progress.tell(begun, writer, goal.page_size);
            }
            write_pages(writer, &record.inline)
                .map_err(|error| self.bad_set(chain, entry_name, goal, error))?;
            progress.tell(begun, writer, goal.page_size);
        }
        Ok(objects)
    }

    fn read_again(&self, link: &Link, runtime: &Handle) -> Result<Entry> {
        let (entry, digest, _) = runtime.block_on(self.archive.entry(link.seq, &self.roots))?;
        if digest == link.digest {
            Ok(entry)
        } else {
            Err(ArchiveError::Chain { key: self.key(link.seq), what: "it was another a moment ago" }.into())
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

    /// Why pages of an object could not be written.
    fn bad_set(&self, chain: &Chain, object: ObjectName, goal: &DatabaseRecord, error: SetError) -> Fault {
        let name = &goal.name;
        match error {
            SetError::Malformed(what) => self.archive.malformed(object, format!("{name}: {what}")).into(),
            SetError::OtherBases(what) => {
                let what = format!("what changed in {name} {what}");
                ArchiveError::Content { key: self.key(chain.newest.seq), what }.into()
            }
            SetError::Writing(error) => error.into(),
        }
    }

    /// Why what was written is not the state that was captured.
    fn unproved(&self, seq: u64, name: &str, error: RestoreError) -> Fault {
        match error {
            RestoreError::DigestMismatch | RestoreError::MissingPages { .. } => {
                ArchiveError::Content { key: self.key(seq), what: format!("{name}: {error}") }.into()
            }
            other => other.into(),
        }
    }
}

/// The rule that a pack of a record breaks, if it breaks one.
pub fn broken_rule(record: &DatabaseRecord, pages: &PageSet) -> Option<&'static str> {
    if !pages.is_empty() && pages.page_size() != record.page_size {
        Some("its pages have another size than its entry says")
    } else if record.is_base && pages.has_bases() {
        Some("a base builds on no page")
    } else {
        None
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

/// Why a page set cannot be applied.
enum SetError {
    /// No version of ours wrote it.
    Malformed(String),
    /// It builds on other pages than there are.
    OtherBases(String),
    /// The file cannot be written.
    Writing(RestoreError),
}

impl From<RestoreError> for SetError {
    fn from(error: RestoreError) -> Self {
        Self::Writing(error)
    }
}

/// Applies a page set. Its bases are read first: it may replace them.
fn write_pages(writer: &mut RestoreWriter, pages: &PageSet) -> Result<(), SetError> {
    let page_len = pages.page_size() as usize;
    let mut bases = vec![0; pages.bases_len()];
    for (pgno, base) in pages.bases().zip(bases.chunks_exact_mut(page_len.max(1))) {
        if !writer.read_page(pgno, base)? {
            return Err(SetError::OtherBases(format!("builds on page {pgno}, which no entry before has")));
        }
    }
    if !pages.is_made_with(&bases) {
        let what = "builds on pages other than those that were found".to_owned();
        return Err(SetError::OtherBases(what));
    }
    let (zeros, mut image) = (vec![0; page_len], vec![0; page_len]);
    for (pgno, op) in pages.iter() {
        let image = match op {
            PageOp::Full(image) => image,
            PageOp::Zero => &zeros,
            PageOp::Patch { place, patch } => {
                apply_patch(&bases, place, patch, &mut image)
                    .map_err(|error| SetError::Malformed(format!("page {pgno} cannot be made: {error}")))?;
                &image
            }
        };
        writer.write_page(pgno, image).map_err(SetError::Writing)?;
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
