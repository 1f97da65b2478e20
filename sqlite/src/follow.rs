//! Keeping up with a database: rounds of reading its log, and the passages between open, closed and replaced.

use std::time::Duration;

use crate::error::{CaptureError, GapReason, Trouble, doing};
use crate::images::Known;
use crate::live::{LiveDatabase, Source};
use crate::os::{Identity, Paths, Stat, index_in_use, is_absence, open_read};
use crate::tail::{Evidence, Tail, Takeover};
use crate::tracker::Tracker;
use crate::watch::Event;

/// A state that moves while it is read is read again this often, a millisecond apart, then it is a gap.
const ROUND_TRIES: u32 = 40;
const ROUND_PAUSE: Duration = Duration::from_millis(1);
/// Passages (closed, opened again …) followed in one go.
const PASSAGES_MAX: u32 = 60;

const READING: &str = "reading the log";
const RESOLVING: &str = "resolving the path of the database";

/// What a round brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// All that was there when the round began was taken over.
    Still { commits: u32 },
    /// Files came or went: another round is needed.
    Moved { commits: u32 },
    /// There is a gap now.
    Lost,
}

/// What a good look brought, and what the events since the one before had said.
struct Looked {
    commits: u32,
    index_written: bool,
    writer_left: bool,
}

impl LiveDatabase {
    /// Rounds until nothing moves any more, or there is a gap. Returns how many commits they found.
    ///
    /// Without a gap the known state is then at least as new as everything acknowledged before the call.
    pub(crate) fn follow(&mut self) -> Result<u32, CaptureError> {
        self.find_again()?;
        let mut found = 0;
        if self.gap.is_some() {
            return Ok(found);
        }
        for passage in 0..PASSAGES_MAX {
            match self.round()? {
                Round::Still { commits } => return Ok(found + commits),
                Round::Moved { commits } => found += commits,
                Round::Lost => return Ok(found),
            }
            if passage > 1 {
                std::thread::sleep(ROUND_PAUSE);
            }
        }
        self.lose(GapReason::Reopened);
        Ok(found)
    }

    fn round(&mut self) -> Result<Round, CaptureError> {
        match self.source {
            Source::Log(_) => self.round_of_log(),
            Source::File { .. } => self.round_at_rest(),
            Source::Unknown => self.join(),
        }
    }

    /// Looks where the name leads now, and whether the folder there is the one that is watched; `false` when there is
    /// no folder.
    pub(crate) fn find_again(&mut self) -> Result<bool, CaptureError> {
        match std::fs::canonicalize(&self.given) {
            Ok(path) if path != self.paths.db => {
                if !self.linked {
                    // Whoever opened it may not want to be led elsewhere.
                    let reason = "its path leads through a symbolic link now".to_owned();
                    return Err(CaptureError::Unsupported { reason });
                }
                self.paths = Paths::new(&path);
                self.watch.point_at(&path);
                self.lose(GapReason::Replaced);
            }
            Err(error) if !is_absence(&error) => return Err(doing(RESOLVING)(error)),
            // That the name leads nowhere is noticed where the file is looked for.
            _ => {}
        }
        match self.watch.attach() {
            Ok(false) => Ok(true),
            Ok(true) => {
                self.tracker.absorb(Event::Lost);
                Ok(true)
            }
            Err(error) if is_absence(&error) => Ok(false),
            Err(error) => Err(doing("watching the folder")(error)),
        }
    }

    /// Events so far go to the tracker.
    pub(crate) fn drain(&mut self) -> Result<(), CaptureError> {
        for event in self.drained()? {
            self.tracker.absorb(event);
        }
        Ok(())
    }

    fn drained(&mut self) -> Result<Vec<Event>, CaptureError> {
        let mut events = Vec::new();
        if let Err(error) = self.watch.drain(|event| events.push(event)) {
            self.tracker.absorb_all(&events);
            self.tracker.absorb(Event::Lost);
            return Err(doing("reading the folder's events")(error));
        }
        if events.contains(&Event::Lost) {
            // The folder may be another one now. If there is none, opening the database will say so.
            let _ = self.watch.attach();
        }
        Ok(events)
    }

    /// One good look at the log, and whether it is still the log of the file.
    pub(crate) fn round_of_log(&mut self) -> Result<Round, CaptureError> {
        let mut commits = 0;
        let same_before = self.same_files()?;
        match self.good_look()? {
            Ok(looked) => commits += looked.commits,
            Err(reason) => {
                self.lose(reason);
                return Ok(Round::Lost);
            }
        }
        let Source::Log(tail) = &self.source else { return Ok(Round::Lost) };
        if same_before && self.same_files()? {
            let in_use = tail.in_use().map_err(doing("asking for locks"))?;
            if !in_use && !tail.would_recover_the_same().map_err(doing(READING))? {
                if !self.same_files()? {
                    return Ok(Round::Moved { commits });
                }
                // Everybody died, or somebody writes the log without an index.
                return Ok(self.lost(GapReason::WrittenDirectly));
            }
            self.tracker.still_in_place();
            return Ok(Round::Still { commits });
        }
        if same_before {
            // It ended while it was looked at: what was published last may be unread.
            return Ok(Round::Moved { commits });
        }
        // The good look came after the end: this incarnation is read to its end from the held descriptors. Unless
        // everybody had died, and somebody went on with the log without its index, or with another one.
        if !tail.would_recover_the_same().map_err(doing(READING))? {
            return Ok(self.lost(GapReason::WrittenDirectly));
        }
        self.source = Source::Unknown;
        self.read_to_end = true;
        Ok(Round::Moved { commits })
    }

    /// Takes over all that the index publishes now. The inner error is a gap.
    fn good_look(&mut self) -> Result<Result<Looked, GapReason>, CaptureError> {
        for attempt in 0..ROUND_TRIES {
            if attempt > 0 {
                std::thread::sleep(ROUND_PAUSE);
            }
            self.drain()?;
            let Source::Log(tail) = &self.source else { return Ok(Err(GapReason::Unreadable)) };
            let Some(header) = tail.index().map_err(doing("reading the log's index"))? else { continue };
            // Events up to the header count against it, and later ones must not be forgotten over it.
            let later = self.drained()?;
            let mut so_far = self.tracker;
            so_far.absorb_all(&later);
            let Source::Log(tail) = &mut self.source else { return Ok(Err(GapReason::Unreadable)) };
            let evidence = Evidence {
                index_written: so_far.index_written,
                writer_left: so_far.writer_left,
                proof: self.proof,
            };
            let db = self.db.as_ref().map(|(db, _)| db);
            let known = Known { key: &self.key, table: &self.table, db };
            let into = Takeover { dirty: &mut self.dirty, known: &known };
            let step = match tail.advance(&header, evidence, into) {
                Ok(step) => step,
                Err(trouble) => {
                    self.tracker.absorb_all(&later);
                    match trouble {
                        Trouble::Again => continue,
                        Trouble::Gap(reason) => return Ok(Err(reason)),
                        Trouble::Io(error) => return Err(doing(READING)(error)),
                    }
                }
            };
            self.bytes_read += step.bytes_read;
            if tail.pages != 0 {
                self.pages = tail.pages;
                self.least_pages = self.least_pages.min(step.smallest.unwrap_or(tail.pages));
            }
            let Tracker { index_written, writer_left, .. } = self.tracker;
            let suspicious = if writer_left { tail.may_have_orphan() } else { Ok(false) };
            if let Ok(suspicious) = suspicious {
                self.tracker.good_look(suspicious);
            }
            self.tracker.absorb_all(&later);
            suspicious.map_err(doing(READING))?;
            return Ok(Ok(Looked { commits: step.commits, index_written, writer_left }));
        }
        Ok(Err(GapReason::Unreadable))
    }

    /// Whether the names still belong to the files held.
    fn same_files(&self) -> Result<bool, CaptureError> {
        let (Source::Log(tail), Some((_, db))) = (&self.source, &self.db) else { return Ok(false) };
        let is = |path, identity: Identity| {
            Ok(Stat::of_path(path)
                .map_err(doing("looking at the files"))?
                .is_some_and(|stat| stat.identity == identity))
        };
        Ok(is(&self.given, *db)?
            && is(&self.paths.db, *db)?
            && is(&self.paths.wal, tail.wal_id)?
            && is(&self.paths.shm, tail.shm_id)?)
    }

    /// Whether some process has the database open in WAL mode, and its log can be followed.
    pub(crate) fn log_in_use(&self) -> bool {
        self.caution.is_none()
            && matches!(open_read(&self.paths.shm), Ok(Some(shm)) if index_in_use(&shm).unwrap_or(false))
    }

    /// Opens the log as it is now. `None`: nobody has the database open in WAL mode, or it cannot be followed.
    pub(crate) fn open_tail(&mut self) -> Result<Option<Result<Tail, Trouble>>, CaptureError> {
        if self.caution.is_some() {
            return Ok(None);
        }
        let wal = open_read(&self.paths.wal).map_err(doing("opening the log"))?;
        let shm = open_read(&self.paths.shm).map_err(doing("opening the log's index"))?;
        let (Some(wal), Some(shm)) = (wal, shm) else { return Ok(None) };
        if !index_in_use(&shm).map_err(doing("asking for locks"))? {
            return Ok(None);
        }
        Ok(Some(Tail::attach(wal, shm)))
    }

    /// Goes on from the known state in the log that is there now, if it can be proved to continue it.
    fn join(&mut self) -> Result<Round, CaptureError> {
        self.drain()?;
        match self.held_file_has_the_name()? {
            Some(true) => {}
            Some(false) => {
                self.lose(GapReason::Replaced);
                return Ok(Round::Lost);
            }
            None => {
                self.gone = true;
                return Ok(if self.resume.is_some() {
                    self.lost(GapReason::Reopened)
                } else {
                    Round::Still { commits: 0 }
                });
            }
        }
        self.gone = false;
        let mut tail = match self.open_tail()? {
            Some(Ok(tail)) => tail,
            Some(Err(Trouble::Io(error))) => return Err(doing(READING)(error)),
            Some(Err(_)) => return Ok(Round::Moved { commits: 0 }),
            None => return self.come_to_rest(),
        };
        if let Some(position) = self.resume {
            if !tail.resume_at(&position.chain).map_err(doing(READING))? {
                return Ok(self.lost(GapReason::Restarted));
            }
            // Nothing is known about the time in between: a counter proves nothing, and a dead writer is possible.
            self.tracker = Tracker::restart(true);
            self.tracker.absorb(Event::Lost);
            self.source = Source::Log(tail);
        } else {
            let counted = self.tracker;
            if !self.read_to_end || !counted.hands_over_to_one_log() {
                return Ok(self.lost(GapReason::Reopened));
            }
            // The new index began to count at 0. Its making was an event, which is accounted for.
            self.tracker = Tracker::restart(true);
            self.source = Source::Log(tail);
        }
        let handed_over = self.resume.is_none();
        let looked = match self.good_look() {
            Ok(Ok(looked)) => looked,
            Ok(Err(reason)) => return Ok(self.lost(reason)),
            Err(error) => {
                // What follows was not asked yet, and could not be asked later.
                self.lose(GapReason::Reopened);
                return Err(error);
            }
        };
        if handed_over {
            let Source::Log(tail) = &self.source else { return Ok(Round::Lost) };
            let index_written = looked.index_written || self.tracker.index_written;
            let writer_left = looked.writer_left || self.tracker.writer_left;
            let again = index_written || writer_left || self.tracker.log_came_or_went();
            if tail.change() != looked.commits || again {
                return Ok(self.lost(GapReason::Reopened));
            }
        }
        self.resume = None;
        self.read_to_end = false;
        Ok(Round::Moved { commits: looked.commits })
    }

    pub(crate) fn lost(&mut self, reason: GapReason) -> Round {
        self.lose(reason);
        Round::Lost
    }

    /// Whether the database's name belongs to the file held; `None` when there is no such name.
    pub(crate) fn held_file_has_the_name(&self) -> Result<Option<bool>, CaptureError> {
        let stat = Stat::of_path(&self.given).map_err(doing("looking at the database"))?;
        Ok(stat.map(|stat| self.db.as_ref().is_some_and(|(_, held)| *held == stat.identity)))
    }

    /// While the whole file waits to be read: only whether there is one.
    pub(crate) fn look_across_gap(&mut self) -> Result<(), CaptureError> {
        self.find_again()?;
        self.drain()?;
        self.gone = self.held_file_has_the_name()?.is_none();
        let stored = self.table.header().is_some_and(|header| !header.gone);
        if self.gone && !stored { Err(CaptureError::Missing) } else { Ok(()) }
    }
}
