//! One folder of attachments: walked when something changed, and what is to be read of it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chatkeep_attachments::{
    Folder, Found, Noticing, RelPath, Walked, WatchPolicy, Watcher, compare, is_settled,
};
use chatkeep_format::FileRecord;
use tracing::{debug, info, warn};

use crate::known::{Changes, Known, KnownFile, KnownFiles};

/// Files compared at once: what a walk takes of memory is bounded by it.
const WINDOW: usize = 4096;
/// Files that are noted to be read; more are counted, and found by the next walk.
const PENDING_MAX: usize = 16_384;
/// Between two walks, and until a file that was being written is looked at again.
const WALK_PAUSE: Duration = Duration::from_secs(2);
/// A walk may take one part in so many of the time.
const WALK_SHARE: u32 = 50;
/// A folder of up to so many files is walked within a capture even if nothing was heard of a change: some 20 ms.
const WALK_CHEAP: u64 = 10_000;
/// Until a folder that is not there is looked for again.
const MISSING_PAUSE: Duration = Duration::from_secs(10);
/// Until a file that cannot be read is tried again, unless it changes.
const UNREADABLE_PAUSE: Duration = Duration::from_mins(10);
/// Told soon: waiting for a quiet moment is done here.
const WATCH: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// A change that no entry has yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It is this, and what is in it is in the store or in the spool.
    File(Found, FileRecord),
    /// It went.
    Gone,
}

/// A file that is to be read.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) found: Found,
    /// Captures that were made before it was noted.
    pub(super) noted: u64,
}

/// How much.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Amount {
    pub(super) fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

pub(super) struct MediaFolder {
    pub(super) name: String,
    path: PathBuf,
    /// The path is a link, and was meant to be.
    through_link: bool,
    /// No part of the path may be a link.
    strict: bool,
    watcher: Option<Watcher>,
    /// Set by the watcher's thread.
    news: Arc<AtomicBool>,
    walk_due: Instant,
    walk_cost: Duration,
    /// How many files there were.
    files: u64,
    /// New or changed, and to be read.
    pub(super) pending: VecDeque<Pending>,
    /// The same, but somebody may be writing to them just now.
    pub(super) unsettled: Vec<Pending>,
    /// Most likely as they were: an entry does not wait for them.
    pub(super) later: VecDeque<Found>,
    /// New or changed, and not noted.
    beyond: Amount,
    pub(super) captures: u64,
    pub(super) ready: BTreeMap<Vec<u8>, Change>,
    /// As they were when they could not be read.
    unreadable: BTreeMap<RelPath, Found>,
    unreadable_due: Instant,
    /// What a walk could not look at.
    problems: u64,
    /// Why it is not read now.
    pub(super) missing: Option<String>,
    device: u64,
}

impl MediaFolder {
    pub(super) fn new(path: PathBuf, links: bool) -> Self {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let now = Instant::now();
        Self {
            name,
            through_link: links && path.is_symlink(),
            strict: !links,
            path,
            watcher: None,
            news: Arc::new(AtomicBool::new(true)),
            walk_due: now,
            walk_cost: Duration::ZERO,
            files: 0,
            pending: VecDeque::new(),
            unsettled: Vec::new(),
            later: VecDeque::new(),
            beyond: Amount::default(),
            captures: 0,
            ready: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            unreadable_due: now + UNREADABLE_PAUSE,
            problems: 0,
            missing: None,
            device: 0,
        }
    }

    /// Opens the folder, if it is what was registered.
    pub(super) fn open(&self) -> io::Result<Folder> {
        if self.strict && std::fs::canonicalize(&self.path)? != self.path {
            return Err(io::Error::other("its path leads through a symbolic link now"));
        }
        if self.through_link { Folder::open_through_link(&self.path) } else { Folder::open(&self.path) }
    }

    /// When it is to be walked.
    pub(super) fn due(&self) -> Option<Instant> {
        let waits = self.news.load(Ordering::Acquire)
            || self.missing.is_some()
            || self.watcher.is_none()
            || !self.unsettled.is_empty()
            || self.pending.is_empty() && self.beyond.files > 0;
        let unreadable = (!self.unreadable.is_empty()).then_some(self.unreadable_due);
        waits.then_some(self.walk_due).into_iter().chain(unreadable).min()
    }

    /// Whether a capture has to look: something may have come of which nothing was heard yet.
    pub(super) fn is_due_in_capture(&self) -> bool {
        if self.files > WALK_CHEAP && !self.news.load(Ordering::Acquire) {
            // What happened before the capture is told about now.
            std::thread::sleep(WATCH.0 + WATCH.0);
        }
        self.news.load(Ordering::Acquire) || !self.unsettled.is_empty() || self.files <= WALK_CHEAP
    }

    /// Walks, and notes what is to be read and what went. `wake` is called when something changes.
    pub(super) fn walk(
        &mut self,
        known: &KnownFiles,
        now_ns: i64,
        wake: &Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<()> {
        let begun = Instant::now();
        // Before the walk: what happens while it goes on is news.
        self.news.store(false, Ordering::Release);
        let walked = self.open().and_then(|folder| {
            self.watch(&folder, wake);
            self.look(&folder, known, now_ns)
        });
        self.walk_cost = begun.elapsed();
        self.walk_due = Instant::now() + WALK_PAUSE.max(self.walk_cost * WALK_SHARE);
        match walked {
            Ok(walked) => {
                if self.missing.take().is_some() {
                    info!("a folder of attachments is there again");
                }
                self.files = walked.files;
                self.note_problems(&walked);
                Ok(())
            }
            // What is known of it stays as it is: nothing is gone because it cannot be seen.
            Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                if self.missing.is_none() {
                    info!(%error, "a folder of attachments cannot be read now");
                }
                self.missing = Some(error.to_string());
                self.watcher = None;
                self.forget_pending();
                self.walk_due = Instant::now() + MISSING_PAUSE;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn watch(&mut self, folder: &Folder, wake: &Arc<dyn Fn() + Send + Sync>) {
        if self.watcher.is_some() && self.missing.is_none() {
            return;
        }
        let (news, wake) = (self.news.clone(), wake.clone());
        let policy = WatchPolicy { quiet: WATCH.0, quiet_max: WATCH.1, ..WatchPolicy::default() };
        let told = move || {
            news.store(true, Ordering::Release);
            wake();
        };
        match Watcher::start(folder, policy, told) {
            Ok(watcher) => self.watcher = Some(watcher),
            // It is walked again and again.
            Err(error) => warn!(%error, "a folder of attachments cannot be watched"),
        }
    }

    fn look(&mut self, folder: &Folder, known: &KnownFiles, now_ns: i64) -> io::Result<Walked> {
        let mut look = Look {
            folder: self,
            known,
            now_ns,
            before: Vec::new(),
            pending: VecDeque::new(),
            unsettled: Vec::new(),
            later: VecDeque::new(),
            beyond: Amount::default(),
            gone: Vec::new(),
            unreadable: BTreeMap::new(),
            after: None,
            window: Vec::new(),
        };
        look.before = look.folder.pending.iter().chain(&look.folder.unsettled).cloned().collect();
        look.before.sort_unstable_by(|a, b| a.found.path.cmp(&b.found.path));
        let walked = folder.walk(&mut |found| look.found(found))?;
        look.compare(true);
        let Look { pending, unsettled, later, beyond, gone, unreadable, .. } = look;
        let device = self.path.metadata().map_or(0, |metadata| metadata.dev());
        let totals = known.totals(&self.name).unwrap_or_default();
        if walked.files == 0 && totals.files > 0 && ![0, device].contains(&totals.device) {
            return Err(io::Error::other("it is empty, and on another file system than it was"));
        }
        (self.pending, self.unsettled, self.later, self.beyond) = (pending, unsettled, later, beyond);
        (self.unreadable, self.device) = (unreadable, device);
        for path in gone.into_iter().filter(|path| !walked.may_hide(path)) {
            let path = path.as_bytes();
            if matches!(known.get(&self.name, path), Some(Known::File(_))) {
                self.ready.insert(path.to_vec(), Change::Gone);
            } else {
                self.ready.remove(path);
            }
        }
        debug!(files = walked.files, pending = self.pending.len(), "attachments were looked at");
        Ok(walked)
    }

    fn note_problems(&mut self, walked: &Walked) {
        let problems = walked.problems.len() as u64 + walked.problems_unnamed;
        if problems != self.problems && problems > 0 {
            warn!(problems, "attachments cannot be looked at");
        }
        self.problems = problems;
    }

    /// A file was read: what an entry will say of it.
    pub(super) fn was_read(
        &mut self,
        known: &KnownFiles,
        found: Found,
        record: FileRecord,
    ) -> io::Result<()> {
        let path = found.path.as_bytes().to_vec();
        match known.get(&self.name, &path) {
            // It is what the newest entry has: only what the file system says of it is new.
            Some(Known::File(before)) if says_the_same(&before.record, &record) => {
                self.ready.remove(&path);
                let mut changes = Changes::default();
                changes.put(&self.name, &path, &Known::File(KnownFile { found, ..before }));
                known.apply(changes).map_err(io::Error::other)?;
            }
            _ => {
                self.ready.insert(path, Change::File(found, record));
            }
        }
        Ok(())
    }

    /// A file changed while it was read.
    pub(super) fn was_changing(&mut self, pending: Pending) {
        self.unsettled.push(pending);
    }

    /// A file cannot be read.
    pub(super) fn was_unreadable(&mut self, found: Found) {
        if self.unreadable.is_empty() {
            self.unreadable_due = Instant::now() + UNREADABLE_PAUSE;
            warn!("attachments cannot be read");
        }
        self.unreadable.insert(found.path.clone(), found);
    }

    /// What is to be read and holds an entry back.
    pub(super) fn unread(&self) -> Amount {
        let mut amount = self.beyond;
        self.pending.iter().chain(&self.unsettled).for_each(|pending| amount.add(pending.found.len));
        amount
    }

    /// Whether there are more than are noted.
    pub(super) fn has_beyond(&self) -> bool {
        self.beyond.files > 0
    }

    /// Takes out what a capture reads: everything, or what came since the capture before.
    pub(super) fn take_pending(&mut self, everything: bool) -> Vec<Pending> {
        let captures = self.captures;
        let taken = |pending: &Pending| everything || pending.noted == captures;
        let (mut now, pending) = std::mem::take(&mut self.pending).into_iter().partition::<Vec<_>, _>(taken);
        let (fresh, unsettled) =
            std::mem::take(&mut self.unsettled).into_iter().partition::<Vec<_>, _>(taken);
        (self.pending, self.unsettled) = (pending.into(), unsettled);
        now.extend(fresh);
        now
    }

    /// One of them is not read in the capture after all.
    pub(super) fn give_back(&mut self, pending: Pending) {
        if is_settled(&pending.found, None, super::now_ns()) {
            self.pending.push_back(pending);
        } else {
            self.unsettled.push(pending);
        }
    }

    /// Files that cannot be read.
    pub(super) fn refused(&self) -> u64 {
        self.unreadable.len() as u64 + self.problems
    }

    /// Changes are noticed late.
    pub(super) fn is_noticed_late(&self) -> bool {
        self.watcher.as_ref().is_some_and(|watcher| watcher.noticing() != Noticing::AtOnce)
    }

    pub(super) fn device(&self) -> u64 {
        self.device
    }

    /// Begins anew, with a walk.
    pub(super) fn start_over(&mut self) {
        self.ready.clear();
        self.forget_pending();
        self.news.store(true, Ordering::Release);
        self.walk_due = Instant::now();
    }
}

/// Whether two records are of one content, wherever it lies.
fn says_the_same(a: &FileRecord, b: &FileRecord) -> bool {
    let ids = |record: &FileRecord| record.chunks.iter().map(|chunk| chunk.id).collect::<Vec<_>>();
    (a.mode, a.mtime_ns, a.len) == (b.mode, b.mtime_ns, b.len) && ids(a) == ids(b)
}

impl MediaFolder {
    /// It cannot be opened any more: the next walk says why.
    pub(super) fn vanished(&mut self) {
        self.forget_pending();
        self.look_again();
    }

    /// It is to be walked, after a while.
    pub(super) fn look_again(&mut self) {
        self.news.store(true, Ordering::Release);
    }

    fn forget_pending(&mut self) {
        self.pending.clear();
        self.unsettled.clear();
        self.later.clear();
        self.beyond = Amount::default();
    }
}

/// A walk under way.
struct Look<'a> {
    folder: &'a MediaFolder,
    known: &'a KnownFiles,
    now_ns: i64,
    /// What was to be read, by path.
    before: Vec<Pending>,
    pending: VecDeque<Pending>,
    unsettled: Vec<Pending>,
    later: VecDeque<Found>,
    beyond: Amount,
    gone: Vec<RelPath>,
    unreadable: BTreeMap<RelPath, Found>,
    /// The last path that was compared.
    after: Option<RelPath>,
    window: Vec<Found>,
}

impl Look<'_> {
    fn found(&mut self, found: Found) {
        self.window.push(found);
        if self.window.len() >= WINDOW {
            self.compare(false);
        }
    }

    /// Compares what was found since the last time; `last`: and nothing follows.
    fn compare(&mut self, last: bool) {
        let window = std::mem::take(&mut self.window);
        let until = window.last().filter(|_| !last).map(|found| found.path.clone());
        let before = self.known_between(until.as_ref());
        let changes = compare(&before, &window);
        for place in changes.new_or_changed {
            let found = &window[place];
            let same = before.binary_search_by(|known| known.path.cmp(&found.path)).ok();
            // Known from an entry, and never read by this device.
            let is_recorded = |known: &Found| {
                known.ctime_ns == 0 && (known.len, known.mtime_ns) == (found.len, found.mtime_ns)
            };
            if same.is_some_and(|at| is_recorded(&before[at])) {
                self.later(found);
            } else {
                self.pend(found);
            }
        }
        changes.touched_only.iter().for_each(|(_, place)| self.later(&window[*place]));
        self.gone.extend(changes.gone.into_iter().map(|place| before[place].path.clone()));
        self.after = until;
    }

    /// What is known of the files of a window: what was read since the newest entry counts more than the entry.
    fn known_between(&self, until: Option<&RelPath>) -> Vec<Found> {
        let (after, until) = (self.after.as_ref().map(RelPath::as_bytes), until.map(RelPath::as_bytes));
        let is_within =
            |path: &[u8]| after.is_none_or(|after| path > after) && until.is_none_or(|until| path <= until);
        let ready = &self.folder.ready;
        let mut files: Vec<Found> = self
            .known
            .range(&self.folder.name, after, until)
            .filter(|(path, _)| !ready.contains_key(path))
            .filter_map(|(_, known)| match known {
                Known::File(file) => Some(file.found),
                Known::Gone(_) => None,
            })
            .collect();
        let len = files.len();
        files.extend(ready.iter().filter(|(path, _)| is_within(path)).filter_map(
            |(_, change)| match change {
                Change::File(found, _) => Some(found.clone()),
                Change::Gone => None,
            },
        ));
        if files.len() > len {
            files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        }
        files
    }

    fn later(&mut self, found: &Found) {
        if !self.is_refused(found) && self.later.len() < PENDING_MAX {
            self.later.push_back(found.clone());
        }
    }

    fn pend(&mut self, found: &Found) {
        if self.is_refused(found) {
            return;
        }
        if self.pending.len() + self.unsettled.len() >= PENDING_MAX {
            self.beyond.add(found.len);
            return;
        }
        let previous = self.before.binary_search_by(|before| before.found.path.cmp(&found.path)).ok();
        let previous = previous.map(|at| &self.before[at]);
        let noted = previous.map_or(self.folder.captures, |previous| previous.noted);
        let pending = Pending { found: found.clone(), noted };
        if is_settled(found, previous.map(|previous| &previous.found), self.now_ns) {
            self.pending.push_back(pending);
        } else {
            self.unsettled.push(pending);
        }
    }

    /// Whether it could not be read, and is as it was then.
    fn is_refused(&mut self, found: &Found) -> bool {
        let retry = Instant::now() >= self.folder.unreadable_due;
        let refused = !retry && self.folder.unreadable.get(&found.path) == Some(found);
        if refused {
            self.unreadable.insert(found.path.clone(), found.clone());
        }
        refused
    }
}
