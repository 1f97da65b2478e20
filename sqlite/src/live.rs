//! One live database: what is known of it, and the doors to it.
//!
//! What is known is the page table (the last committed capture) plus the dirty map (every page that changed since).
//! Either both together are the newest state ("joined"), or there is a gap, and the next capture reads the whole file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::dirty::Dirty;
use crate::error::{CaptureError, GapReason, doing};
use crate::images::{Known, Log};
use crate::os::{Identity, Paths, Stat, caution_about, open_read};
use crate::rest::{HeldLog, Rest};
use crate::slots::Change;
use crate::table::{Position, Prepared, Table};
use crate::tail::Tail;
use crate::tracker::Tracker;
use crate::types::{Build, Capture, LiveConfig, Look, Mode, PageSink};
use crate::versions::Versions;
use crate::watch::{Waker, Watch};

/// Images of changed pages in memory; more go to an unlinked file.
const DIRTY_MEMORY_MAX: usize = 16 << 20;
/// Shortest time between two looks: an app that writes without a pause makes an event a microsecond.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// One live database of another program. Used by one thread.
pub struct LiveDatabase {
    /// The path as it was given: links in it may come to lead elsewhere.
    pub(crate) given: PathBuf,
    /// It led through a link from the beginning.
    pub(crate) linked: bool,
    pub(crate) paths: Paths,
    pub(crate) key: [u8; 32],
    pub(crate) watch: Watch,
    pub(crate) table: Table,
    /// How many tables there were: what is known about one says nothing about the next.
    pub(crate) table_number: u64,
    pub(crate) dirty: Dirty,
    /// What pages were at the entries that later captures may be built on.
    pub(crate) versions: Versions,
    /// Where the digests of a large database are while it is read.
    pub(crate) digests_path: PathBuf,
    pub(crate) tracker: Tracker,
    /// Held, so that its inode number is not given to another file.
    pub(crate) db: Option<(File, Identity)>,
    pub(crate) source: Source,
    /// Why table and dirty map are not the newest state.
    pub(crate) gap: Option<GapReason>,
    /// What the last attempt to keep up failed of, for the status.
    pub(crate) last_loss: Option<GapReason>,
    /// A place in a log where the known state ends, from before the log was (or could be) followed.
    pub(crate) resume: Option<Position>,
    /// Everything known was read to its end before its log was closed: a new log may be joined to it.
    pub(crate) read_to_end: bool,
    /// Size of the known state.
    pub(crate) pages: u32,
    /// Its smallest size since the last committed capture.
    pub(crate) least_pages: u32,
    /// The file has no name any more.
    pub(crate) gone: bool,
    pub(crate) pending: Option<Pending>,
    /// When the whole file may be read again.
    pub(crate) scan_due: Instant,
    pub(crate) bytes_read: u64,
    /// Why it is only read when nobody wrote for a while.
    pub(crate) caution: Option<&'static str>,
    /// With caution: the files as they are, and since when.
    pub(crate) quiet_since: Option<(Rest, Instant)>,
    /// Off only to show that the tests would notice.
    pub(crate) proof: bool,
}

/// Where changes are seen.
pub(crate) enum Source {
    /// To be found out.
    Unknown,
    Log(Tail),
    File {
        rest: Rest,
        /// Left behind by a crash.
        log: Option<HeldLog>,
    },
}

/// A capture between `capture()` and `commit()`.
pub(crate) struct Pending {
    pub(crate) change: Change,
    /// What was written down of it, and for which entry.
    pub(crate) prepared: Option<(u64, Prepared)>,
    pub(crate) scanned: bool,
    pub(crate) unchanged: bool,
}

impl LiveDatabase {
    /// Opens the database, read-only, and loads its page table. Reads no page yet.
    ///
    /// When its path leads through a symbolic link, the link is followed wherever it comes to lead. A link that appears
    /// in the path later is not: then the database is [`Unsupported`](CaptureError::Unsupported), and has to be opened
    /// again.
    pub fn open(config: LiveConfig) -> Result<Self, CaptureError> {
        Self::open_with(config, Table::open)
    }

    /// Opens the database for a log that stands at entry `seq`: a capture that was [prepared](Self::prepare) for it
    /// counts as committed.
    pub fn open_at(config: LiveConfig, seq: u64) -> Result<Self, CaptureError> {
        Self::open_with(config, |dir, name, key| Table::open_at(dir, name, key, seq))
    }

    fn open_with(
        config: LiveConfig,
        open_table: impl FnOnce(&Path, &str, &[u8; 32]) -> io::Result<Table>,
    ) -> Result<Self, CaptureError> {
        // SQLite keeps a log beside the file a symbolic link points to.
        let path = match std::fs::canonicalize(&config.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(CaptureError::Missing),
            other => other.map_err(doing("resolving the path of the database"))?,
        };
        let LiveConfig { path: given, digest_key, state_dir, name } = config;
        let paths = Paths::new(&path);
        let db = open_read(&paths.db).map_err(doing("opening the database"))?.ok_or(CaptureError::Missing)?;
        let caution = caution_about(&db).map_err(doing("asking for the file system"))?;
        let watch = match Watch::new(&paths.db) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(CaptureError::Missing),
            other => other.map_err(doing("watching the folder"))?,
        };
        std::fs::create_dir_all(&state_dir).map_err(doing("creating the state folder"))?;
        let table = open_table(&state_dir, &name, &digest_key);
        let table = table.map_err(doing("loading the page table"))?;
        let identity = Stat::of_file(&db).map_err(doing("opening the database"))?.identity;
        let header = table.header().copied();
        let resume = header.and_then(|header| header.position).filter(|position| position.db == identity);
        let gap = match header {
            None => Some(GapReason::FirstSight),
            Some(_) if resume.is_none() => Some(GapReason::Restarted),
            Some(_) => None,
        };
        let pages = header.map_or(0, |header| header.page_count);
        Ok(LiveDatabase {
            dirty: Dirty::new(state_dir.join(format!("{name}.spill")), DIRTY_MEMORY_MAX),
            versions: Versions::new(state_dir.join(format!("{name}.versions"))),
            digests_path: state_dir.join(format!("{name}.digests")),
            linked: given != path,
            given,
            paths,
            key: digest_key,
            watch,
            table,
            table_number: 1,
            tracker: Tracker::default(),
            db: Some((db, identity)),
            source: Source::Unknown,
            gap,
            last_loss: None,
            resume,
            read_to_end: false,
            pages,
            least_pages: pages,
            gone: false,
            pending: None,
            scan_due: Instant::now(),
            bytes_read: 0,
            caution,
            quiet_since: None,
            proof: true,
        })
    }

    /// Follows without the proof that nothing was missed: shows that the tests notice.
    #[doc(hidden)]
    pub fn disable_proof(&mut self) {
        self.proof = false;
    }

    /// As if it were on a file system that other machines can write to: for tests.
    #[doc(hidden)]
    pub fn be_cautious(&mut self) {
        self.caution = Some("a test");
        self.lose(GapReason::Replaced);
    }

    /// Makes [`wait`](Self::wait) return.
    pub fn waker(&self) -> Waker {
        self.watch.waker()
    }

    /// Waits for something to happen in the folder, for a wake, or for `timeout`; `false` when it was the timeout.
    ///
    /// Returns early when the whole file is to be read and the time for it has come: no event would tell.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        crate::wait_any(&mut [self], timeout)
    }

    /// Takes over what was committed since the last look. Costs as much as was written; never reads the whole file.
    pub fn look(&mut self) -> Result<Look, CaptureError> {
        self.settle();
        let mut commits = 0;
        if self.gap.is_none() {
            commits = self.follow()?;
        }
        if self.gap.is_some() {
            self.look_across_gap()?;
        }
        let pending_pages = if self.gap.is_some() { 0 } else { self.dirty.len() as u64 };
        let page_size = self.table.header().map_or(0, |header| header.page_size);
        let stored_pages = self.table.header().map_or(0, |header| header.page_count);
        let changed = match self.gap {
            _ if self.gone => true,
            Some(_) => Instant::now() >= self.scan_due,
            None => pending_pages > 0 || self.pages != stored_pages,
        };
        let mode = match &self.source {
            _ if self.gone => Mode::Gone,
            Source::Log(_) => Mode::Following,
            _ if self.log_in_use() => Mode::Following,
            _ => Mode::AtRest,
        };
        let pending_bytes = pending_pages * u64::from(page_size);
        let (gap, caution, commits) = (self.gap, self.caution, u64::from(commits));
        Ok(Look { pending_pages, pending_bytes, changed, mode, gap, caution, commits })
    }

    /// Gives the pages of one consistent committed state, at least as new as everything acknowledged before the call.
    ///
    /// A capture built on the newest entry costs what changed. One built on an older entry reads pages that did not
    /// change now as well; when they change faster than that, it is [`NotQuiet`](CaptureError::NotQuiet), and one that
    /// is built on the newest entry still succeeds. After it comes [`commit`](Self::commit) or [`abort`](Self::abort),
    /// and nothing between.
    pub fn capture(
        &mut self,
        build: Build,
        sink: &mut dyn PageSink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Capture, CaptureError> {
        self.settle();
        self.bytes_read = 0;
        if self.gap.is_none() {
            self.follow()?;
        }
        if self.gap.is_none()
            && let Some(capture) = self.build(&build, sink, cancelled)?
        {
            return Ok(capture);
        }
        if self.gap.is_some() {
            self.look_across_gap()?;
        }
        if self.gone { self.capture_gone(sink) } else { self.scan(&build, sink, cancelled) }
    }

    /// Writes down what [`commit`](Self::commit) of entry `seq` will change, durably: from here on the entry may be kept.
    ///
    /// After a crash before the commit, [`open_at`](Self::open_at) finds it. Costs nothing twice: the commit takes it.
    pub fn prepare(&mut self, seq: u64) -> io::Result<()> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        pending.change.becomes(seq);
        pending.prepared = Some((seq, self.table.prepare(&pending.change)?));
        Ok(())
    }

    /// The captured state is safely kept as entry `seq`.
    ///
    /// `marks` are the entries that later captures may be built on, beside this one: for these, images for patches are
    /// kept as far as there is room. A capture may be built on others, too; then it has whole pages.
    pub fn commit(&mut self, seq: u64, marks: &[u64]) -> io::Result<()> {
        let Some(mut pending) = self.pending.take() else { return Ok(()) };
        pending.change.becomes(seq);
        self.versions.set_marks(marks);
        let prepared = pending.prepared.take().filter(|(prepared, _)| *prepared == seq);
        let written = self.keep_versions(&pending.change).and_then(|()| {
            let prepared = match prepared {
                Some((_, prepared)) => prepared,
                None => self.table.prepare(&pending.change)?,
            };
            self.table.finish(&pending.change, prepared)
        });
        if let Err(error) = written {
            self.pending = Some(pending);
            return Err(error);
        }
        self.dirty.clear();
        self.least_pages = self.pages;
        if pending.change.replace {
            self.table_number += 1;
            self.versions.clear();
        }
        if pending.change.header.gone {
            self.lose(GapReason::Replaced);
            self.scan_due = Instant::now();
        }
        Ok(())
    }

    /// The captured state was lost: the next capture gives it again.
    pub fn abort(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        if pending.unchanged {
            return;
        }
        if pending.scanned {
            self.lose(GapReason::Aborted);
            self.scan_due = Instant::now();
        }
    }

    /// The entry the table on disk stands at; `None` when there is no table.
    pub fn table_seq(&self) -> Option<u64> {
        self.table.header().map(|header| header.seq)
    }

    /// Throws the table away: the next capture is a base.
    pub fn forget(&mut self) -> io::Result<()> {
        self.pending = None;
        self.versions.clear();
        self.table_number += 1;
        self.lose(GapReason::FirstSight);
        self.gap = Some(GapReason::FirstSight);
        self.scan_due = Instant::now();
        self.table.drop_table()
    }

    /// Reads the image that the table is about into `buffer`; `false` when it is not there any more.
    pub(crate) fn read_clean(&self, pgno: u32, digest: &Digest, buffer: &mut [u8]) -> io::Result<bool> {
        let log: Option<Log> = match &self.source {
            Source::Log(tail) => Some(tail.log()),
            Source::File { log, .. } => log.as_ref().map(HeldLog::log),
            Source::Unknown => None,
        };
        let db = self.db.as_ref().map(|(db, _)| db);
        Known { key: &self.key, table: &self.table, db }.find_digest(pgno, digest, log, buffer)
    }

    /// A capture that was neither committed nor aborted counts as lost.
    pub(crate) fn settle(&mut self) {
        if self.pending.is_some() {
            self.abort();
        }
    }

    /// From here on table and dirty map are not the newest state.
    pub(crate) fn lose(&mut self, reason: GapReason) {
        self.last_loss = Some(reason);
        if self.gap.is_none() {
            tracing::debug!(%reason, "lost the thread, the next capture reads the whole file");
            self.gap = Some(reason);
        }
        self.dirty.clear();
        self.source = Source::Unknown;
        self.resume = None;
        self.read_to_end = false;
    }
}
