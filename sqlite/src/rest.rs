//! A database that nobody has open in WAL mode: closed, crashed, or with a rollback journal.
//!
//! It is read without a lock, and what was read counts only if nobody wrote meanwhile. Who writes holds a lock that
//! can be asked for without taking one, and every write makes an event before the lock is given up: nobody holding
//! it afterwards and no event since before is the proof. Times and sizes are compared as well, in case an event
//! was lost.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use crate::digest::HeaderPageSize;
use crate::error::{CaptureError, GapReason, Trouble, doing};
use crate::follow::Round;
use crate::images::{Frames, Known, Log};
use crate::journal::{Original, roll_back};
use crate::live::{LiveDatabase, Source};
use crate::os::{Stat, any_lock, being_written, is_absence, open_elsewhere, open_read, read_at, reserved};
use crate::run::{Reader, read_header, recover};
use crate::scan::{Pass, Refused};
use crate::table::Position;
use crate::tracker::Tracker;
use crate::types::{Build, PageSink};

/// A file written this recently may be written again within the same tick of its clock (4 ms), unnoticed.
const TICK_NS: i128 = 20_000_000;
/// A modification time this far in the future is a wrong clock, not a recent write.
const FUTURE_NS: i128 = -1_000_000_000;
/// Page size assumed when nothing tells it.
const DEFAULT_PAGE_SIZE: u32 = 4096;

/// A rollback journal this old, with nobody at work with it, is applied in memory: its app may never come back.
const ABANDONED_NS: i128 = 10_000_000_000;

/// How long to wait before the next attempt to find nobody writing.
const QUIET_PAUSE: Duration = Duration::from_millis(7);
/// The same with caution: every attempt asks a server.
const CAUTIOUS_PAUSE: Duration = Duration::from_millis(100);
/// With caution nobody may have written for so long.
const SILENCE: Duration = Duration::from_secs(2);

const JOURNAL_WAITS: &str = "a rollback journal waits for the app";
const WRITTEN_MEANWHILE: &str = "it was written while it was read";

/// The files as they were when the known state was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rest {
    db: Stat,
    /// A log that was left behind by a crash.
    wal: Option<Stat>,
    /// A rollback journal that was left behind by a crash: the state is what it was before.
    journal: Option<Stat>,
    /// Its end.
    position: Option<Position>,
}

/// A log that was left behind, held.
pub(crate) struct HeldLog {
    wal: File,
    frames: Frames,
}

impl HeldLog {
    /// Where its frames are found.
    pub(crate) fn log(&self) -> Log<'_> {
        Log { wal: &self.wal, frames: &self.frames }
    }
}

impl Rest {
    /// The end of the log left behind.
    pub(crate) fn position(&self) -> Option<Position> {
        self.position
    }
}

impl LiveDatabase {
    /// The log that was followed is gone, and was read to its end.
    pub(crate) fn come_to_rest(&mut self) -> Result<Round, CaptureError> {
        if self.resume.is_some() {
            return Ok(self.lost(GapReason::Restarted));
        }
        if !self.read_to_end {
            return Ok(self.lost(GapReason::Reopened));
        }
        let looking = "looking at the files";
        let wal = Stat::of_path(&self.paths.wal).map_err(doing(looking))?;
        if wal.is_some_and(|wal| wal.size > 0) {
            // Who closes the database removes the index first and the log next.
            return Ok(Round::Moved { commits: 0 });
        }
        let Some(db) = Stat::of_path(&self.paths.db).map_err(doing(looking))? else {
            return Ok(Round::Moved { commits: 0 });
        };
        self.drain()?;
        if !self.tracker.untouched(true) {
            return Ok(self.lost(GapReason::WrittenDirectly));
        }
        let rest = Rest { db, wal: None, journal: None, position: None };
        self.source = Source::File { rest, log: None };
        if wal.is_none() {
            self.tracker = Tracker::restart(false);
        }
        Ok(Round::Still { commits: 0 })
    }

    /// Whether the known state is still the newest.
    pub(crate) fn round_at_rest(&mut self) -> Result<Round, CaptureError> {
        let Source::File { rest, .. } = self.source else { return Ok(self.lost(GapReason::Unreadable)) };
        self.drain()?;
        match self.held_file_has_the_name()? {
            Some(true) => {}
            Some(false) => return Ok(self.lost(GapReason::Replaced)),
            None => {
                self.gone = true;
                return Ok(Round::Still { commits: 0 });
            }
        }
        self.gone = false;
        if self.log_in_use() {
            self.source = Source::Unknown;
            self.resume = rest.position;
            self.read_to_end = rest.wal.is_none() && rest.journal.is_none();
            return Ok(Round::Moved { commits: 0 });
        }
        let looking = "looking at the files";
        if self.caution.is_some() {
            self.refresh().map_err(doing(looking))?;
        }
        let wal = Stat::of_path(&self.paths.wal).map_err(doing(looking))?;
        let db = Stat::of_path(&self.paths.db).map_err(doing(looking))?;
        let log_is_empty = wal.is_none_or(|wal| wal.size == 0);
        if rest.wal.is_none() && !log_is_empty {
            // Somebody is opening or closing it, or was killed.
            return Ok(Round::Moved { commits: 0 });
        }
        let journal = match rest.journal {
            Some(_) => Stat::of_path(&self.paths.journal).map_err(doing(looking))?,
            None => None,
        };
        let changed =
            db != Some(rest.db) || (rest.wal.is_some() && wal != rest.wal) || journal != rest.journal;
        let written = self.tracker.db_written || !self.tracker.untouched(log_is_empty);
        if changed || written {
            return Ok(self.lost(GapReason::WrittenDirectly));
        }
        if wal.is_none() {
            self.tracker = Tracker::restart(false);
        }
        Ok(Round::Still { commits: 0 })
    }

    /// Reads the file, and a log left behind, while nobody writes.
    pub(crate) fn scan_at_rest<'a>(
        &mut self,
        build: &Build<'a>,
        db: &File,
        sink: &mut dyn PageSink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Pass<'a>, Refused> {
        let before = self.quiet_files(db)?;
        self.wait_for_silence(&before)?;
        self.drain()?;
        self.tracker = Tracker::restart(before.wal.is_some());
        let wal = match before.wal {
            Some(_) => open_read(&self.paths.wal).map_err(doing("opening the log"))?,
            None => None,
        };
        let mut frames = Frames::default();
        let known = Known { key: &self.key, table: &self.table, db: Some(db) };
        let mut into = Reader { dirty: &mut self.dirty, frames: &mut frames, known: &known };
        let recovered = match &wal {
            Some(wal) => match recover(wal, &mut into) {
                Ok(recovered) => recovered,
                Err(Trouble::Io(error)) => return Err(doing("reading the log")(error).into()),
                Err(Trouble::Gap(reason)) => return Err(Refused::Moved(reason.as_str())),
                Err(Trouble::Again) => return Err(Refused::Moved("its log moved")),
            },
            None => None,
        };
        let rolled_back = match &before.journal {
            Some(journal) => Some(self.roll_back(journal)?),
            None => None,
        };
        let logged = recovered.map(|(chain, pages)| (chain.page_size, pages));
        let logged = logged.or(rolled_back.map(|original| (original.page_size, original.pages)));
        let page_size = match logged {
            Some((page_size, _)) => page_size,
            None => self.guess_page_size(db, wal.as_ref(), before.db.size)?,
        };
        let pages = self.pages_of(logged.map(|(_, pages)| pages), before.db.size, page_size)?;
        let mut pass = self.begin_pass(build, page_size, sink)?;
        // Noticed early, a write costs the rest of the pass only.
        pass.read_file(db, pages, self, sink, cancelled, &mut |live| {
            live.drain()?;
            if live.tracker.written_at_rest() { Err(Refused::Moved(WRITTEN_MEANWHILE)) } else { Ok(pages) }
        })?;

        let locked = self.may_be_written(db)?;
        self.drain()?;
        let after = self.quiet_files(db)?;
        if locked || self.tracker.written_at_rest() || after != before || self.log_in_use() {
            return Err(Refused::Moved(WRITTEN_MEANWHILE));
        }
        pass.override_with_dirty(self, pages, sink)?;
        let db_id = before.db.identity;
        let position = recovered.map(|(chain, _)| Position { chain, db: db_id });
        let log = wal.map(|wal| HeldLog { wal, frames });
        self.source = Source::File { rest: Rest { position, ..before }, log };
        if before.wal.is_none() {
            self.tracker = Tracker::restart(false);
        }
        pass.finish_at(pages, position);
        Ok(pass)
    }

    /// With caution the files have to have been like this for a while, by our own clock.
    fn wait_for_silence(&mut self, files: &Rest) -> Result<(), Refused> {
        if self.caution.is_none() {
            return Ok(());
        }
        match self.quiet_since {
            Some((seen, since)) if seen == *files => {
                if since.elapsed() >= SILENCE {
                    return Ok(());
                }
            }
            _ => self.quiet_since = Some((*files, Instant::now())),
        }
        Err(Refused::Moved("it was written less than 2 s ago, and its file system asks for caution"))
    }

    /// How long to wait before the next attempt to find nobody writing.
    pub(crate) fn quiet_pause(&self) -> Duration {
        if self.caution.is_some() { CAUTIOUS_PAUSE } else { QUIET_PAUSE }
    }

    /// Makes a network file system ask its server again: for the names in the folder, and for the file's size and times
    /// (they are fetched when a file is opened).
    fn refresh(&self) -> io::Result<()> {
        match self.paths.db.parent().map(std::fs::read_dir) {
            Some(Ok(names)) => names.for_each(drop),
            Some(Err(error)) if !is_absence(&error) => return Err(error),
            _ => {}
        }
        for path in [&self.paths.db, &self.paths.wal, &self.paths.journal] {
            open_read(path)?;
        }
        Ok(())
    }

    /// The files' identities, sizes and times, if nobody is writing and nothing waits to be rolled back.
    fn quiet_files(&self, db: &File) -> Result<Rest, Refused> {
        let looking = "looking at the files";
        if self.caution.is_some() {
            self.refresh().map_err(doing(looking))?;
        }
        let stat = Stat::of_file(db).map_err(doing(looking))?;
        let wal = Stat::of_path(&self.paths.wal).map_err(doing(looking))?.filter(|wal| wal.size > 0);
        let now =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as i128;
        let recent = |stat: &Stat| (FUTURE_NS..TICK_NS).contains(&(now - stat.modified_ns));
        if recent(&stat) || wal.as_ref().is_some_and(recent) {
            return Err(Refused::Moved("it was written just now"));
        }
        if self.may_be_written(db)? {
            return Err(Refused::Moved("an app is writing it"));
        }
        let journal = self.hot_journal(db)?;
        if let Some(journal) = &journal
            && (wal.is_some() || !abandoned(db, &stat, journal, now)?)
        {
            return Err(Refused::Moved(JOURNAL_WAITS));
        }
        let named = Stat::of_path(&self.paths.db).map_err(doing(looking))?;
        if named.map(|named| named.identity) != Some(stat.identity) {
            return Err(Refused::Moved("it was replaced"));
        }
        Ok(Rest { db: stat, wal, journal, position: None })
    }

    /// Whether somebody has the lock of those who write the file itself, and the file may not be whole because of it.
    ///
    /// Who keeps a log to itself (`locking_mode = EXCLUSIVE`) has that lock all the time; but with a log the two files
    /// together are a committed state at every moment, as for an app that was killed.
    fn may_be_written(&self, db: &File) -> Result<bool, CaptureError> {
        if !being_written(db).map_err(doing("asking for locks"))? {
            return Ok(false);
        }
        let reading = "reading the log";
        let wal = open_read(&self.paths.wal).map_err(doing(reading))?;
        Ok(wal.as_ref().map(read_header).transpose().map_err(doing(reading))?.flatten().is_none())
    }

    /// Rolls back in memory what the next one to open the database would roll back.
    fn roll_back(&mut self, expected: &Stat) -> Result<Original, Refused> {
        let reading = "reading the rollback journal";
        let Some(journal) = open_read(&self.paths.journal).map_err(doing(reading))? else {
            return Err(Refused::Moved(JOURNAL_WAITS));
        };
        if Stat::of_file(&journal).map_err(doing(reading))? != *expected {
            return Err(Refused::Moved(JOURNAL_WAITS));
        }
        match roll_back(&journal, &mut self.dirty) {
            Ok(Some(original)) => Ok(original),
            Ok(None) | Err(Trouble::Again) => Err(Refused::Moved(JOURNAL_WAITS)),
            Err(Trouble::Gap(reason)) => Err(Refused::Moved(reason.as_str())),
            Err(Trouble::Io(error)) => Err(doing(reading)(error).into()),
        }
    }

    /// A journal that the next reader would roll back: it has a header, and nobody is at work with it.
    fn hot_journal(&self, db: &File) -> Result<Option<Stat>, CaptureError> {
        let reading = "looking at the rollback journal";
        let Some(journal) = open_read(&self.paths.journal).map_err(doing(reading))? else { return Ok(None) };
        let mut magic = [0; 8];
        let read = read_at(&journal, &mut magic, 0).map_err(doing(reading))?;
        if read == 0 || magic[..read].iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if reserved(db).map_err(doing("asking for locks"))? {
            return Ok(None);
        }
        // It may have been finished between the two questions.
        Ok(Stat::of_path(&self.paths.journal).map_err(doing(reading))?.filter(|stat| stat.size > 0))
    }

    /// What a page is when no committed frame tells: header, log, what it was before, or what divides the file.
    pub(crate) fn guess_page_size(
        &self,
        db: &File,
        wal: Option<&File>,
        len: u64,
    ) -> Result<u32, CaptureError> {
        let reading = doing("reading the database's header");
        let mut head = [0; 512];
        let read = match read_at(db, &mut head, 0) {
            Ok(read) => read,
            Err(error) => return Err(reading(error)),
        };
        let from_wal = || -> io::Result<Option<u32>> {
            Ok(wal.map(read_header).transpose()?.flatten().map(|chain| chain.page_size))
        };
        let logged = from_wal().map_err(doing("reading the log"))?;
        match HeaderPageSize::read(&head[..read]) {
            HeaderPageSize::Bytes(size) => return Ok(size),
            HeaderPageSize::Impossible => {
                return Err(CaptureError::NotADatabase {
                    reason: "its header has an impossible page size".to_owned(),
                });
            }
            HeaderPageSize::Unreadable => {}
        }
        if let Some(size) = logged {
            return Ok(size);
        }
        if !len.is_multiple_of(512) {
            return Err(CaptureError::NotADatabase { reason: "it is no whole number of pages".to_owned() });
        }
        let text = |byte: &u8| (0x20..0x7f).contains(byte) || (0x09..=0x0d).contains(byte);
        if read == head.len() && head.iter().all(text) {
            return Err(CaptureError::NotADatabase { reason: "it is a text file".to_owned() });
        }
        let known = self.table.header().map(|header| header.page_size).filter(|size| *size > 0);
        let mut size = known.unwrap_or(DEFAULT_PAGE_SIZE);
        while !len.is_multiple_of(u64::from(size)) {
            size /= 2;
        }
        Ok(size)
    }
}

/// Whether whoever wrote this journal is certainly dead: it is old, nobody has a lock, and nobody has the database open
/// (an app may use locks that cannot be asked for).
fn abandoned(db: &File, stat: &Stat, journal: &Stat, now: i128) -> Result<bool, CaptureError> {
    let old = [stat, journal].iter().all(|stat| now - stat.modified_ns >= ABANDONED_NS);
    Ok(old
        && stat.size > 0
        && !any_lock(db).map_err(doing("asking for locks"))?
        && open_elsewhere(stat.identity).is_none()
        && open_elsewhere(journal.identity).is_none())
}
