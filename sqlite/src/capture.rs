//! Captures: the increment of what is known to have changed, and the pass over the whole file.
//!
//! # Why a pass over a file that is being written is right
//!
//! In WAL mode only checkpoints write the file, and they copy committed frames. A generation of the log can only
//! begin when all frames of the one before are in the file. So every byte that changes after the log was attached
//! lies in a page one of whose frames was seen (torn reads included), and those pages are overridden at the end. The
//! claim needs exactly "no frame was missed between attaching and the end", which following proves.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use crate::digest::{Digest, Facts, lock_byte_page, page_digest, xor};
use crate::dirty::{Dirty, Limits};
use crate::error::{CaptureError, GapReason, Trouble, doing};
use crate::follow::Round;
use crate::live::{LiveDatabase, Pending, Source};
use crate::os::{Stat, open_read, read_at};
use crate::rest::QUIET_PAUSE;
use crate::table::{Change, Header, Position, Table};
use crate::tail::Tail;
use crate::tracker::Tracker;
use crate::types::{Capture, PageSink};
use crate::watch::Event;

/// The file is read in pieces of this many bytes.
const PIECE_LEN: usize = 1 << 20;
/// The log is followed this often during a pass: less than one of its generations lives.
const FOLLOW_EVERY: Duration = Duration::from_millis(2);
/// A pass is attempted this often at least, and as often as this time allows.
const ATTEMPTS_MIN: u32 = 3;
const ATTEMPTS_TIME: Duration = Duration::from_secs(3);
/// The next pass is due after this many times the time that went into the last one, all attempts together: at most
/// 2 % of one core. Tiny databases are read again almost at once.
const SCAN_REST: u32 = 50;
const SCAN_REST_MAX: Duration = Duration::from_hours(1);
/// Most pages of a database (SQLITE_MAX_PAGE_COUNT).
const PAGES_MAX: u64 = 0xffff_fffe;

const SINK: &str = "storing captured pages";

/// A sink, and how long it took.
struct Timed<'a> {
    sink: &'a mut dyn PageSink,
    spent: Duration,
}

impl Timed<'_> {
    fn time(&mut self, act: impl FnOnce(&mut dyn PageSink) -> io::Result<()>) -> io::Result<()> {
        let began = Instant::now();
        let result = act(self.sink);
        self.spent += began.elapsed();
        result
    }
}

impl PageSink for Timed<'_> {
    fn begin(&mut self, page_size: u32, is_base: bool) -> io::Result<()> {
        self.time(|sink| sink.begin(page_size, is_base))
    }

    fn page(&mut self, pgno: u32, image: &[u8], base: Option<&[u8]>) -> io::Result<()> {
        self.time(|sink| sink.page(pgno, image, base))
    }

    fn restart(&mut self) -> io::Result<()> {
        self.time(|sink| sink.restart())
    }
}

/// Why a pass came to nothing.
pub(crate) enum Refused {
    /// Try again: what was read is not one state.
    Moved(&'static str),
    Failed(CaptureError),
}

impl From<CaptureError> for Refused {
    fn from(error: CaptureError) -> Self {
        Refused::Failed(error)
    }
}

/// One pass over the whole file.
pub(crate) struct Pass {
    key: [u8; 32],
    page_size: u32,
    is_base: bool,
    lock_page: u32,
    /// Of every page read; the number of the first is 1.
    digests: Vec<Digest>,
    read: Vec<bool>,
    facts: Facts,
    pages: u32,
    position: Option<Position>,
}

impl Pass {
    fn old<'a>(&self, pgno: u32, table: &'a Table) -> Option<&'a Digest> {
        if self.is_base { None } else { table.digest(pgno) }
    }

    fn grow(&mut self, pages: u32) {
        if self.digests.len() < pages as usize {
            self.digests.resize(pages as usize, [0; 16]);
            self.read.resize(pages as usize, false);
        }
    }

    /// Reads pages 1 to `pages` from the file, without those that are dirty. `follow` is called often; it says how
    /// many pages there are now.
    pub(crate) fn read_file(
        &mut self,
        db: &File,
        mut pages: u32,
        live: &mut LiveDatabase,
        sink: &mut dyn PageSink,
        cancelled: &dyn Fn() -> bool,
        follow: &mut dyn FnMut(&mut LiveDatabase) -> Result<u32, Refused>,
    ) -> Result<(), Refused> {
        let page_len = self.page_size as usize;
        let per_piece = (PIECE_LEN / page_len).max(1) as u32;
        let mut piece = vec![0; per_piece as usize * page_len];
        let mut first = 1;
        let mut followed = Instant::now();
        while first <= pages {
            if cancelled() {
                return Err(Refused::Failed(CaptureError::Cancelled));
            }
            let count = per_piece.min(pages - first + 1);
            let bytes = &mut piece[..count as usize * page_len];
            let offset = u64::from(first - 1) * u64::from(self.page_size);
            let got = read_at(db, bytes, offset).map_err(doing("reading the database"))?;
            // Beyond the end of the file SQLite sees zeros.
            bytes[got..].fill(0);
            live.bytes_read += got as u64;
            self.grow(first + count - 1);
            for (pgno, image) in (first..).zip(bytes.chunks_exact(page_len)) {
                if pgno == self.lock_page || live.dirty.contains(pgno) {
                    continue;
                }
                let digest = page_digest(&self.key, pgno, image);
                self.digests[pgno as usize - 1] = digest;
                self.read[pgno as usize - 1] = true;
                if pgno == 1 {
                    self.facts = Facts::of_page_one(image);
                }
                if self.old(pgno, &live.table) != Some(&digest) {
                    sink.page(pgno, image, None).map_err(doing(SINK))?;
                }
                if followed.elapsed() >= FOLLOW_EVERY {
                    pages = follow(live)?;
                    followed = Instant::now();
                }
            }
            first += count;
        }
        Ok(())
    }

    /// Puts the dirty pages over what was read from the file.
    pub(crate) fn override_with(
        &mut self,
        dirty: &Dirty,
        pages: u32,
        table: &Table,
        sink: &mut dyn PageSink,
    ) -> Result<(), Refused> {
        self.grow(pages);
        let mut image = vec![0; self.page_size as usize];
        for pgno in dirty.pages() {
            if pgno > pages || pgno == self.lock_page {
                continue;
            }
            dirty.read(pgno, &mut image).map_err(doing("reading changed pages"))?;
            let digest = page_digest(&self.key, pgno, &image);
            let at = pgno as usize - 1;
            let old = self.old(pgno, table);
            // The sink may have an image from the file that was not the newest one.
            let given = self.read[at] && old != Some(&self.digests[at]);
            let differs = old != Some(&digest);
            if (given && self.digests[at] != digest) || (!given && differs) {
                sink.page(pgno, &image, None).map_err(doing(SINK))?;
            }
            self.digests[at] = digest;
            self.read[at] = true;
            if pgno == 1 {
                self.facts = Facts::of_page_one(&image);
            }
        }
        let unread = (1..=pages).any(|pgno| pgno != self.lock_page && !self.read[pgno as usize - 1]);
        if unread { Err(Refused::Moved("it grew while it was read")) } else { Ok(()) }
    }

    pub(crate) fn finish_at(&mut self, pages: u32, position: Option<Position>) {
        (self.pages, self.position) = (pages, position);
    }
}

impl LiveDatabase {
    /// The pages that are known to have changed; `None` when there is a gap after all.
    pub(crate) fn increment(&mut self, sink: &mut dyn PageSink) -> Result<Option<Capture>, CaptureError> {
        let Some(old) = self.table.header().copied() else {
            self.lose(GapReason::FirstSight);
            return Ok(None);
        };
        let position = match (&self.source, &self.db) {
            (Source::Log(tail), Some((_, db))) => tail.position().map(|chain| Position { chain, db: *db }),
            (Source::File(rest), _) => rest.position(),
            _ => None,
        };
        if matches!(&self.source, Source::Log(tail) if tail.page_size != 0 && tail.page_size != old.page_size)
        {
            self.lose(GapReason::PageSize);
            return Ok(None);
        }
        let pages = self.pages;
        let lock_page = lock_byte_page(old.page_size);
        let grown_from = old.page_count.min(self.least_pages) + 1;
        if (grown_from..=pages).any(|pgno| pgno != lock_page && !self.dirty.contains(pgno)) {
            // SQLite writes every page it adds; whoever does not is read as a whole.
            self.lose(GapReason::Missed);
            return Ok(None);
        }
        if self.gone && self.dirty.pages().is_empty() {
            return self.capture_gone(sink).map(Some);
        }
        sink.begin(old.page_size, false).map_err(doing(SINK))?;
        let mut header = Header { page_count: pages, gone: false, position, ..old };
        let mut slots = Vec::new();
        let mut image = vec![0; old.page_size as usize];
        for pgno in self.dirty.pages() {
            if pgno > pages || pgno == lock_page {
                continue;
            }
            self.dirty.read(pgno, &mut image).map_err(doing("reading changed pages"))?;
            let digest = page_digest(&self.key, pgno, &image);
            let before = self.table.digest(pgno);
            if before == Some(&digest) {
                continue;
            }
            sink.page(pgno, &image, None).map_err(doing(SINK))?;
            xor(&mut header.state, before.unwrap_or(&[0; 16]));
            xor(&mut header.state, &digest);
            slots.push((pgno, digest));
            if pgno == 1 {
                header.facts = Facts::of_page_one(&image);
            }
        }
        for pgno in pages + 1..=old.page_count {
            xor(&mut header.state, self.table.digest(pgno).unwrap_or(&[0; 16]));
        }
        let change = Change { header, slots, replace: false };
        Ok(Some(self.captured(change, false, None)))
    }

    /// The database was deleted, and nothing of it is left to be captured.
    pub(crate) fn capture_gone(&mut self, sink: &mut dyn PageSink) -> Result<Capture, CaptureError> {
        let Some(old) = self.table.header().copied().filter(|old| !old.gone) else {
            return Err(CaptureError::Missing);
        };
        sink.begin(old.page_size, false).map_err(doing(SINK))?;
        let header = Header { page_count: 0, state: [0; 16], gone: true, position: None, ..old };
        let capture = self.captured(Change { header, slots: Vec::new(), replace: true }, false, None);
        Ok(Capture { gone: true, ..capture })
    }

    fn captured(&mut self, change: Change, scanned: bool, gap: Option<GapReason>) -> Capture {
        let header = change.header;
        let old = self.table.header();
        let same_shape = old.is_some_and(|old| {
            old.page_count == header.page_count
                && old.page_size == header.page_size
                && old.gone == header.gone
        });
        let unchanged = same_shape && change.slots.is_empty();
        let cut = self.dirty.cut();
        if unchanged {
            self.dirty.forget(cut);
        }
        let capture = Capture {
            is_base: scanned && change.replace,
            kind: header.facts.kind,
            page_size: header.page_size,
            page_count: header.page_count,
            user_version: header.facts.user_version,
            application_id: header.facts.application_id,
            state_digest: header.state,
            changed_pages: change.slots.len() as u32,
            unchanged,
            gap,
            bytes_read: self.bytes_read,
            gone: false,
        };
        self.pending = Some(Pending { change, cut, scanned, unchanged });
        capture
    }

    /// Reads the whole file, attempt after attempt, until one gives one state.
    pub(crate) fn scan(
        &mut self,
        sink: &mut dyn PageSink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Capture, CaptureError> {
        let gap = self.gap.unwrap_or(GapReason::FirstSight);
        let began = Instant::now();
        let mut attempts = 0;
        let mut spent = Duration::ZERO;
        loop {
            let attempt_began = Instant::now();
            let mut sink = Timed { sink: &mut *sink, spent: Duration::ZERO };
            let attempted = self.attempt(&mut sink, cancelled);
            // What the sink takes (sealing a base, say) is not the price of reading.
            spent += attempt_began.elapsed().saturating_sub(sink.spent);
            self.scan_due = Instant::now() + (spent * SCAN_REST).min(SCAN_REST_MAX);
            let refused = match attempted {
                Ok(pass) => return Ok(self.accept(pass, gap)),
                Err(Refused::Failed(error)) => {
                    self.give_up(gap);
                    return Err(error);
                }
                Err(Refused::Moved(reason)) => reason,
            };
            self.give_up(gap);
            attempts += 1;
            if attempts >= ATTEMPTS_MIN && began.elapsed() >= ATTEMPTS_TIME {
                return Err(CaptureError::not_quiet(refused));
            }
            if cancelled() {
                return Err(CaptureError::Cancelled);
            }
            std::thread::sleep(QUIET_PAUSE);
            sink.restart().map_err(doing(SINK))?;
        }
    }

    fn give_up(&mut self, gap: GapReason) {
        self.lose(gap);
        self.gap = Some(gap);
    }

    fn attempt(&mut self, sink: &mut dyn PageSink, cancelled: &dyn Fn() -> bool) -> Result<Pass, Refused> {
        self.dirty.clear();
        self.dirty.limit(Limits::PASS);
        self.source = Source::Unknown;
        if !self.find_again()? {
            return Err(CaptureError::Missing.into());
        }
        self.drain()?;
        self.tracker = Tracker::restart(true);
        let db =
            open_read(&self.paths.db).map_err(doing("opening the database"))?.ok_or(CaptureError::Missing)?;
        let stat = Stat::of_file(&db).map_err(doing("looking at the database"))?;
        let held = db.try_clone().map_err(doing("opening the database"))?;
        self.db = Some((held, stat.identity));
        if self.watch.attach().map_err(doing("watching the folder"))? {
            self.tracker.absorb(Event::Lost);
            return Err(Refused::Moved("its folder was replaced"));
        }
        match self.open_tail()? {
            Some(Ok(tail)) => self.scan_while_following(&db, tail, sink, cancelled),
            Some(Err(Trouble::Io(error))) => Err(doing("reading the log")(error).into()),
            Some(Err(_)) => Err(Refused::Moved("its log was being set up")),
            None => self.scan_at_rest(&db, sink, cancelled),
        }
    }

    pub(crate) fn begin_pass(
        &mut self,
        page_size: u32,
        sink: &mut dyn PageSink,
    ) -> Result<Pass, CaptureError> {
        let old = self.table.header();
        let is_base = old.is_none_or(|old| old.gone || old.page_size != page_size);
        sink.begin(page_size, is_base).map_err(doing(SINK))?;
        Ok(Pass {
            key: self.key,
            page_size,
            is_base,
            lock_page: lock_byte_page(page_size),
            digests: Vec::new(),
            read: Vec::new(),
            facts: Facts::EMPTY,
            pages: 0,
            position: None,
        })
    }

    fn scan_while_following(
        &mut self,
        db: &File,
        tail: Tail,
        sink: &mut dyn PageSink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Pass, Refused> {
        self.pages = 0;
        self.least_pages = u32::MAX;
        // Whoever died before now may have left a transaction that nobody published.
        self.tracker.writer_left = tail.may_have_orphan().map_err(doing("reading the log"))?;
        self.source = Source::Log(tail);
        self.keep_up()?;
        let page_size = match &self.source {
            Source::Log(tail) if tail.page_size != 0 => tail.page_size,
            _ => {
                let wal = open_read(&self.paths.wal).map_err(doing("opening the log"))?;
                let len = Stat::of_file(db).map_err(doing("looking at the database"))?.size;
                self.guess_page_size(db, wal.as_ref(), len)?
            }
        };
        let page_count = move |live: &LiveDatabase, db: &File| -> Result<u32, Refused> {
            let len = Stat::of_file(db).map_err(doing("looking at the database"))?.size;
            live.pages_of((live.pages > 0).then_some(live.pages), len, page_size)
        };
        let mut pass = self.begin_pass(page_size, sink)?;
        let pages = page_count(self, db)?;
        pass.read_file(db, pages, self, sink, cancelled, &mut |live| {
            live.keep_up()?;
            page_count(live, db)
        })?;
        self.keep_up()?;
        if matches!(&self.source, Source::Log(tail) if tail.page_size != 0 && tail.page_size != page_size) {
            return Err(Refused::Moved("its page size changed"));
        }
        let pages = page_count(self, db)?;
        pass.override_with(&self.dirty, pages, &self.table, sink)?;
        let position = match (&self.source, &self.db) {
            (Source::Log(tail), Some((_, db))) => tail.position().map(|chain| Position { chain, db: *db }),
            _ => None,
        };
        pass.finish_at(pages, position);
        Ok(pass)
    }

    /// The size of the database in pages: what its log says, else what the file's length says.
    ///
    /// Every page is in the file or in the log, but for the one of the locks: a log that says otherwise could make us
    /// ask for any amount of memory.
    pub(crate) fn pages_of(&self, logged: Option<u32>, len: u64, page_size: u32) -> Result<u32, Refused> {
        let in_file = len / u64::from(page_size);
        if in_file > PAGES_MAX {
            let reason = "it is larger than a database can be".to_owned();
            return Err(CaptureError::NotADatabase { reason }.into());
        }
        match logged {
            None => Ok(in_file as u32),
            Some(pages) if u64::from(pages) <= in_file + self.dirty.len() as u64 + 1 => Ok(pages),
            Some(_) => Err(Refused::Moved("its log speaks of more pages than there are")),
        }
    }

    /// Follows the log during a pass: the very log the pass began with.
    fn keep_up(&mut self) -> Result<(), Refused> {
        for _ in 0..3 {
            match self.round_of_log()? {
                Round::Still { .. } => return Ok(()),
                Round::Moved { .. } if matches!(self.source, Source::Log(_)) => {}
                Round::Moved { .. } => return Err(Refused::Moved("it was closed while it was read")),
                Round::Lost => {
                    return Err(Refused::Moved(self.last_loss.map_or("it moved", GapReason::as_str)));
                }
            }
        }
        Err(Refused::Moved("it was closed while it was read"))
    }

    /// The state of a pass becomes the known state.
    fn accept(&mut self, pass: Pass, gap: GapReason) -> Capture {
        let mut state = Digest::default();
        let mut slots = Vec::new();
        let mut digests = pass.digests;
        digests.truncate(pass.pages as usize);
        for (pgno, digest) in (1..).zip(&digests) {
            if pgno == pass.lock_page {
                continue;
            }
            xor(&mut state, digest);
            if pass.is_base || self.table.digest(pgno) != Some(digest) {
                slots.push((pgno, *digest));
            }
        }
        let header = Header {
            seq: self.table.header().map_or(0, |old| old.seq),
            page_size: pass.page_size,
            page_count: pass.pages,
            state,
            facts: pass.facts,
            gone: false,
            position: pass.position,
        };
        self.dirty.limit(Limits::FOLLOWING);
        self.gap = None;
        self.gone = false;
        self.resume = None;
        self.read_to_end = false;
        (self.pages, self.least_pages) = (pass.pages, pass.pages);
        self.captured(Change { header, slots, replace: pass.is_base }, true, Some(gap))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::cell::Cell;
    use std::time::SystemTime;

    use super::*;
    use crate::types::LiveConfig;

    struct Nowhere;

    impl PageSink for Nowhere {
        fn begin(&mut self, _page_size: u32, _is_base: bool) -> io::Result<()> {
            Ok(())
        }

        fn page(&mut self, _pgno: u32, _image: &[u8], _base: Option<&[u8]>) -> io::Result<()> {
            Ok(())
        }

        fn restart(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_rest_after_a_pass_counts_the_attempts_that_came_to_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.db");
        let app = rusqlite::Connection::open(&path).unwrap();
        app.execute_batch("CREATE TABLE t(id);").unwrap();
        app.close().unwrap();
        let touch = |at| File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        touch(SystemTime::now() - Duration::from_mins(1));
        let config = LiveConfig {
            path: path.clone(),
            digest_key: [1; 32],
            state_dir: folder.path().join("state"),
            name: "chat".to_owned(),
        };
        let mut live = LiveDatabase::open(config).unwrap();
        let (began, long) = (Instant::now(), Duration::from_millis(20));
        let asked = Cell::new(0);
        // Asked for every piece that is read: the first attempt takes long, and comes to nothing.
        let cancelled = || {
            asked.set(asked.get() + 1);
            if asked.get() == 1 {
                std::thread::sleep(long);
                touch(SystemTime::now());
            }
            false
        };
        live.capture(&mut Nowhere, &cancelled).unwrap();
        assert!(asked.get() > 1, "there was another attempt");
        assert!(live.scan_due >= began + long * SCAN_REST);
    }
}
