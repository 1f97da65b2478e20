//! The pass over the whole file, at first sight and after a gap.
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

use crate::capture::{Given, SINK, Scope, TABLE};
use crate::digest::{Digest, Facts, lock_byte_page, page_digest, xor};
use crate::digests::{Digests, Finished, UNREAD};
use crate::dirty::Limits;
use crate::error::{CaptureError, GapReason, Trouble, doing};
use crate::follow::Round;
use crate::live::{LiveDatabase, Source};
use crate::os::{Stat, open_read, read_at};
use crate::run::is_of_another_version;
use crate::slots::{Change, Slots, Update};
use crate::table::{Header, Position, Table};
use crate::tail::Tail;
use crate::tracker::Tracker;
use crate::types::{Build, Capture, PageSink};
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
const DIGESTS: &str = "keeping the digests of pages";
/// Most pages of a database (SQLITE_MAX_PAGE_COUNT).
const PAGES_MAX: u64 = 0xffff_fffe;

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
pub(crate) struct Pass<'a> {
    key: [u8; 32],
    page_size: u32,
    scope: Scope<'a>,
    lock_page: u32,
    digests: Digests,
    slots: Slots,
    /// Room for an image of before.
    base: Vec<u8>,
    bases: u32,
    facts: Facts,
    pages: u32,
    position: Option<Position>,
}

impl Pass<'_> {
    /// Whether the sink has to get an image with this digest.
    fn wants(&mut self, pgno: u32, digest: &Digest, table: &Table) -> Result<bool, CaptureError> {
        if self.scope.replace {
            return Ok(true);
        }
        let slot = self.slots.get(table, pgno).map_err(doing(TABLE))?;
        let (Some(header), Some(slot)) = (table.header(), slot) else { return Ok(true) };
        let collected = self.scope.is_collected(header, pgno, &slot);
        Ok(slot.digest != *digest || (self.scope.spans(header, &slot) && !collected))
    }

    fn give(
        &mut self,
        pgno: u32,
        image: &[u8],
        live: &LiveDatabase,
        sink: &mut dyn PageSink,
    ) -> Result<(), CaptureError> {
        let slot = if self.scope.replace {
            None
        } else {
            self.slots.get(&live.table, pgno).map_err(doing(TABLE))?
        };
        let has_base = live.read_base(&self.scope, pgno, slot.as_ref(), &mut self.base)?;
        self.bases += u32::from(has_base);
        sink.page(pgno, image, has_base.then_some(&self.base)).map_err(doing(SINK))
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
        let mut piece = vec![0; per_piece.min(pages) as usize * page_len];
        let mut first = 1;
        let mut followed = Instant::now();
        while first <= pages {
            if cancelled() {
                return Err(Refused::Failed(CaptureError::Cancelled));
            }
            let count = per_piece.min(pages - first + 1);
            piece.resize(piece.len().max(count as usize * page_len), 0);
            let bytes = &mut piece[..count as usize * page_len];
            let offset = u64::from(first - 1) * u64::from(self.page_size);
            let got = read_at(db, bytes, offset).map_err(doing("reading the database"))?;
            // Beyond the end of the file SQLite sees zeros.
            bytes[got..].fill(0);
            live.bytes_read += got as u64;
            self.digests.grow(first + count - 1).map_err(doing(DIGESTS))?;
            for (pgno, image) in (first..).zip(bytes.chunks_exact(page_len)) {
                if pgno == self.lock_page || live.dirty.contains(pgno) {
                    continue;
                }
                let digest = page_digest(&self.key, pgno, image);
                self.digests.set(pgno, &digest).map_err(doing(DIGESTS))?;
                if pgno == 1 {
                    self.facts = Facts::of_page_one(image);
                }
                if self.wants(pgno, &digest, &live.table)? {
                    self.give(pgno, image, live, sink)?;
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
    pub(crate) fn override_with_dirty(
        &mut self,
        live: &LiveDatabase,
        pages: u32,
        sink: &mut dyn PageSink,
    ) -> Result<(), Refused> {
        self.digests.grow(pages).map_err(doing(DIGESTS))?;
        let mut image = vec![0; self.page_size as usize];
        for pgno in live.dirty.pages() {
            if pgno > pages || pgno == self.lock_page {
                continue;
            }
            live.dirty.read(pgno, &mut image).map_err(doing("reading changed pages"))?;
            let digest = page_digest(&self.key, pgno, &image);
            let read = self.digests.set(pgno, &digest).map_err(doing(DIGESTS))?;
            // The sink may have an image from the file that was not the newest one.
            let given = read != UNREAD && self.wants(pgno, &read, &live.table)?;
            let wanted = if given { read != digest } else { self.wants(pgno, &digest, &live.table)? };
            if wanted {
                self.give(pgno, &image, live, sink)?;
            }
            if pgno == 1 {
                self.facts = Facts::of_page_one(&image);
            }
        }
        for pgno in (1..=pages).filter(|pgno| *pgno != self.lock_page) {
            if self.digests.get(pgno).map_err(doing(DIGESTS))? == UNREAD {
                return Err(Refused::Moved("it grew while it was read"));
            }
        }
        Ok(())
    }

    pub(crate) fn finish_at(&mut self, pages: u32, position: Option<Position>) {
        (self.pages, self.position) = (pages, position);
    }
}

impl LiveDatabase {
    /// Reads the whole file, attempt after attempt, until one gives one state.
    pub(crate) fn scan(
        &mut self,
        build: &Build,
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
            let attempted = self.attempt(build, &mut sink, cancelled);
            // What the sink takes (sealing a base, say) is not the price of reading.
            spent += attempt_began.elapsed().saturating_sub(sink.spent);
            self.scan_due = Instant::now() + (spent * SCAN_REST).min(SCAN_REST_MAX);
            let refused = match attempted {
                Ok(pass) => return self.accept(pass, gap),
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
            std::thread::sleep(self.quiet_pause());
            sink.restart().map_err(doing(SINK))?;
        }
    }

    fn give_up(&mut self, gap: GapReason) {
        self.lose(gap);
        self.gap = Some(gap);
    }

    fn attempt<'a>(
        &mut self,
        build: &Build<'a>,
        sink: &mut dyn PageSink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Pass<'a>, Refused> {
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
        self.refuse_unknown_log()?;
        match self.open_tail()? {
            Some(Ok(tail)) => self.scan_while_following(build, &db, tail, sink, cancelled),
            Some(Err(Trouble::Io(error))) => Err(doing("reading the log")(error).into()),
            Some(Err(_)) => Err(Refused::Moved("its log was being set up")),
            None => self.scan_at_rest(build, &db, sink, cancelled),
        }
    }

    /// What is in a log of another kind cannot be told, and without it the file is no state.
    fn refuse_unknown_log(&self) -> Result<(), CaptureError> {
        let looking = "looking at the log";
        let wal = open_read(&self.paths.wal).map_err(doing(looking))?;
        let unknown = wal.map_or(Ok(false), |wal| is_of_another_version(&wal)).map_err(doing(looking))?;
        let second = Stat::of_path(&self.paths.wal2).map_err(doing(looking))?;
        if unknown || second.is_some_and(|second| second.size > 0) {
            let reason = "its log is in a version that is not known".to_owned();
            return Err(CaptureError::Unsupported { reason });
        }
        Ok(())
    }

    pub(crate) fn begin_pass<'a>(
        &mut self,
        build: &Build<'a>,
        page_size: u32,
        sink: &mut dyn PageSink,
    ) -> Result<Pass<'a>, CaptureError> {
        let scope = self.scope(build, page_size)?;
        sink.begin(page_size, scope.is_base).map_err(doing(SINK))?;
        Ok(Pass {
            key: self.key,
            page_size,
            scope,
            lock_page: lock_byte_page(page_size),
            digests: Digests::new(self.digests_path.clone()),
            slots: Slots::default(),
            base: vec![0; page_size as usize],
            bases: 0,
            facts: Facts::EMPTY,
            pages: 0,
            position: None,
        })
    }

    fn scan_while_following<'a>(
        &mut self,
        build: &Build<'a>,
        db: &File,
        tail: Tail,
        sink: &mut dyn PageSink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Pass<'a>, Refused> {
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
        let mut pass = self.begin_pass(build, page_size, sink)?;
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
        pass.override_with_dirty(self, pages, sink)?;
        let position = self.position();
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
    fn accept(&mut self, pass: Pass, gap: GapReason) -> Result<Capture, CaptureError> {
        let Pass { scope, lock_page, bases, .. } = pass;
        let digests = pass.digests.finish().map_err(doing(DIGESTS))?;
        let mut state = Digest::default();
        let mut given = Given { bases, ..Given::default() };
        let (mut slots, mut new) = (Slots::default(), digests.reader());
        let old = self.table.header().copied().filter(|_| !scope.replace);
        for pgno in (1..=pass.pages).filter(|pgno| *pgno != lock_page) {
            let digest = new.get(pgno).map_err(doing(DIGESTS))?;
            xor(&mut state, &digest);
            let slot = match old {
                Some(_) => slots.get(&self.table, pgno).map_err(doing(TABLE))?,
                None => None,
            };
            let changes = slot.is_none_or(|slot| slot.digest != digest);
            let spans = old.zip(slot).is_some_and(|(old, slot)| scope.spans(&old, &slot));
            given.changed += u32::from(changes);
            given.pages += u32::from(changes || spans);
        }
        let header = Header {
            seq: self.table.header().map_or(0, |old| old.seq),
            since: self.table.header().map_or(0, |old| old.since),
            page_size: pass.page_size,
            page_count: pass.pages,
            state,
            facts: pass.facts,
            gone: false,
            position: pass.position,
        };
        let update = if old.is_some() && Table::is_few(given.changed as usize, pass.pages) {
            self.changes_among(&digests, pass.pages, lock_page)?
        } else {
            Update::All(digests)
        };
        self.dirty.limit(Limits::FOLLOWING);
        self.gap = None;
        self.gone = false;
        self.resume = None;
        self.read_to_end = false;
        (self.pages, self.least_pages) = (pass.pages, pass.pages);
        let change = Change { header, update, replace: scope.replace };
        Ok(self.captured(change, &scope, given, Some(gap)))
    }

    /// The few digests that differ from the table.
    fn changes_among(&self, digests: &Finished, pages: u32, lock_page: u32) -> Result<Update, CaptureError> {
        let (mut slots, mut new, mut changed) = (Slots::default(), digests.reader(), Vec::new());
        for pgno in (1..=pages).filter(|pgno| *pgno != lock_page) {
            let digest = new.get(pgno).map_err(doing(DIGESTS))?;
            let slot = slots.get(&self.table, pgno).map_err(doing(TABLE))?;
            if slot.is_none_or(|slot| slot.digest != digest) {
                changed.push((pgno, digest));
            }
        }
        Ok(Update::Some(changed))
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
        live.capture(Build::on(0), &mut Nowhere, &cancelled).unwrap();
        assert!(asked.get() > 1, "there was another attempt");
        assert!(live.scan_due >= began + long * SCAN_REST);
    }
}
