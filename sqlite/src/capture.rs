//! Captures of what is known to have changed: since the last one, or since an older entry.
//!
//! An increment has the dirty pages. A *span*, built on an older entry, has those whose last change is newer than that
//! entry as well; a new base has all. Clean pages are as the table says: their images are found in the file or in the
//! log, and proved by their digest. One that is found nowhere has changed meanwhile, so it is dirty after the next look.

use std::io;
use std::time::{Duration, Instant};

use crate::collect::Collection;
use crate::digest::{Facts, lock_byte_page, page_digest, xor};
use crate::error::{CaptureError, GapReason, doing};
use crate::live::{LiveDatabase, Pending, Source};
use crate::slots::{Change, Slot, Slots, Update};
use crate::table::{Header, Position};
use crate::types::{Build, Capture, PageSink};

/// While clean pages are read the log is followed this often: less than one of its generations lives.
const FOLLOW_EVERY: Duration = Duration::from_millis(2);
/// Clean pages that were nowhere are looked for this often, with a look at the log and a pause before each.
const ROUNDS_MAX: u32 = 50;
const ROUND_PAUSE: Duration = Duration::from_millis(2);

pub(crate) const SINK: &str = "storing captured pages";
pub(crate) const TABLE: &str = "reading the page table";
const CHANGED: &str = "reading changed pages";

/// Which pages a capture has, beside those that differ from the table.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    /// 0: none.
    pub(crate) parent: u64,
    /// Every page.
    pub(crate) is_base: bool,
    /// The table says nothing about the pages.
    pub(crate) replace: bool,
    collected: Option<&'a Collection>,
}

impl Scope<'_> {
    /// Whether a page that is as the table says belongs to the capture.
    pub(crate) fn spans(&self, header: &Header, slot: &Slot) -> bool {
        self.is_base || header.entry_of(slot) > self.parent
    }

    /// Whether the caller has its image already.
    pub(crate) fn is_collected(&self, header: &Header, pgno: u32, slot: &Slot) -> bool {
        self.collected.is_some_and(|collected| collected.holds(pgno, header.entry_of(slot)))
    }
}

/// A set of page numbers, a bit for each page there is.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, pgno: u32) {
        let at = pgno as usize / 64;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] |= 1 << (pgno % 64);
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        let bits = |(at, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u32 * 64 + bit)
        };
        self.0.iter().enumerate().flat_map(bits)
    }
}

/// Counts for the caller.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Given {
    /// Pages of the capture.
    pub(crate) pages: u32,
    /// Those that differ from the table.
    pub(crate) changed: u32,
    /// How often the sink got an image of before.
    pub(crate) bases: u32,
}

/// A capture being made without a pass over the whole file.
struct Making<'a> {
    scope: Scope<'a>,
    /// What the table says.
    old: Header,
    sink: &'a mut dyn PageSink,
    given: Given,
    /// Clean pages that were given, or collected before.
    clean: Bits,
    /// Room for one page each.
    image: Vec<u8>,
    base: Vec<u8>,
}

impl LiveDatabase {
    /// What a capture built like this has, as things are now.
    pub(crate) fn scope<'a>(&self, build: &Build<'a>, page_size: u32) -> Result<Scope<'a>, CaptureError> {
        let collected = build.collected;
        if let Some(collected) = collected {
            collected.check(self)?;
            if collected.parent() != build.parent {
                return Err(invalid("a collection for another parent"));
            }
        }
        let Some(old) = self.table.header() else {
            return Ok(Scope { parent: 0, is_base: true, replace: true, collected });
        };
        if build.parent > old.seq {
            return Err(invalid("the parent is newer than the page table"));
        }
        let replace = old.gone || old.page_size != page_size;
        // Of the time before the table began nothing is known.
        let is_base = replace || build.parent == 0 || build.parent < old.since;
        Ok(Scope { parent: if is_base { 0 } else { build.parent }, is_base, replace, collected })
    }

    /// Reads the image that a page had at the parent; `false` when it is not at hand.
    ///
    /// `slot` is what the table says of it.
    pub(crate) fn read_base(
        &self,
        scope: &Scope,
        pgno: u32,
        slot: Option<&Slot>,
        buffer: &mut [u8],
    ) -> Result<bool, CaptureError> {
        let (Some(header), Some(slot)) = (self.table.header(), slot) else { return Ok(false) };
        if scope.is_base {
            return Ok(false);
        }
        let read = if header.entry_of(slot) > scope.parent {
            self.versions.read(pgno, scope.parent, buffer)
        } else {
            self.dirty.read_base(pgno, buffer)
        };
        read.map_err(doing("reading the images of before"))
    }

    /// Captures without reading the whole file; `None` when there is a gap after all, and the sink has nothing.
    pub(crate) fn build(
        &mut self,
        build: &Build,
        sink: &mut dyn PageSink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Capture>, CaptureError> {
        let Some(old) = self.table.header().copied() else {
            self.lose(GapReason::FirstSight);
            return Ok(None);
        };
        let scope = self.scope(build, old.page_size)?;
        if scope.replace {
            self.lose(GapReason::Replaced);
        }
        if scope.replace || self.has_another_page_size(&old) || !self.knows_all_pages(&old) {
            return Ok(None);
        }
        if self.gone && self.dirty.len() == 0 {
            return self.capture_gone(sink).map(Some);
        }
        sink.begin(old.page_size, scope.is_base).map_err(doing(SINK))?;
        let room = || vec![0; old.page_size as usize];
        let (given, clean) = (Given::default(), Bits::default());
        let mut making = Making { scope, old, sink, given, clean, image: room(), base: room() };
        if scope.is_base || scope.parent < old.seq {
            let all = self.give_clean(&mut making, cancelled)?;
            if !all || self.has_another_page_size(&old) || !self.knows_all_pages(&old) {
                making.sink.restart().map_err(doing(SINK))?;
                return Ok(None);
            }
        }
        let change = self.give_dirty(&mut making)?;
        let clean = making.clean.iter().filter(|pgno| *pgno <= self.pages && !self.dirty.contains(*pgno));
        let given = Given { pages: making.given.pages + clean.count() as u32, ..making.given };
        Ok(Some(self.captured(change, &scope, given, None)))
    }

    fn has_another_page_size(&mut self, old: &Header) -> bool {
        let other =
            matches!(&self.source, Source::Log(tail) if ![0, old.page_size].contains(&tail.page_size));
        if other {
            self.lose(GapReason::PageSize);
        }
        other
    }

    /// SQLite writes every page it adds; whoever does not is read as a whole.
    fn knows_all_pages(&mut self, old: &Header) -> bool {
        let lock_page = lock_byte_page(old.page_size);
        let grown_from = old.page_count.min(self.least_pages) + 1;
        let all = (grown_from..=self.pages).all(|pgno| pgno == lock_page || self.dirty.contains(pgno));
        if !all {
            self.lose(GapReason::Missed);
        }
        all
    }

    /// Gives the clean pages that belong to the capture. `false` when there is a gap now.
    fn give_clean(
        &mut self,
        making: &mut Making,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<bool, CaptureError> {
        let lock_page = lock_byte_page(making.old.page_size);
        let mut slots = Slots::default();
        let mut nowhere = Vec::new();
        let mut followed = Instant::now();
        for pgno in 1..=making.old.page_count {
            if followed.elapsed() >= FOLLOW_EVERY {
                if cancelled() {
                    return Err(CaptureError::Cancelled);
                }
                self.follow()?;
                if self.gap.is_some() {
                    return Ok(false);
                }
                followed = Instant::now();
            }
            let Some(slot) = slots.get(&self.table, pgno).map_err(doing(TABLE))? else { break };
            let belongs = pgno != lock_page && making.scope.spans(&making.old, &slot);
            if belongs && !self.give_clean_page(making, pgno, &slot)? {
                nowhere.push((pgno, slot));
            }
        }
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                std::thread::sleep(ROUND_PAUSE);
            }
            // Also when nothing is left to be looked for: the state captured is the one of the last look.
            self.follow()?;
            if self.gap.is_some() {
                return Ok(false);
            }
            let mut still = Vec::new();
            for (pgno, slot) in nowhere {
                if !self.give_clean_page(making, pgno, &slot)? {
                    still.push((pgno, slot));
                }
            }
            if still.is_empty() {
                return Ok(true);
            }
            nowhere = still;
        }
        Err(CaptureError::not_quiet("pages moved on faster than they could be read"))
    }

    /// Gives a page as the table says it is, unless it changed since; `false` when it is nowhere.
    fn give_clean_page(&mut self, making: &mut Making, pgno: u32, slot: &Slot) -> Result<bool, CaptureError> {
        let Making { scope, old, sink, given, clean, image, base } = making;
        // Beyond the end as it is now a page is gone, or it comes back and is dirty.
        if pgno > self.pages || self.dirty.contains(pgno) {
            return Ok(true);
        }
        if !scope.is_collected(old, pgno, slot) {
            if !self.read_clean(pgno, &slot.digest, image).map_err(doing("reading the database"))? {
                return Ok(false);
            }
            self.bytes_read += image.len() as u64;
            let has_base = self.read_base(scope, pgno, Some(slot), base)?;
            given.bases += u32::from(has_base);
            sink.page(pgno, image, has_base.then_some(base)).map_err(doing(SINK))?;
        }
        clean.set(pgno);
        Ok(true)
    }

    /// Gives the dirty pages that differ from the table, or belong to the capture all the same.
    fn give_dirty(&mut self, making: &mut Making) -> Result<Change, CaptureError> {
        let Making { scope, old, sink, given, image, base, .. } = making;
        let (pages, lock_page) = (self.pages, lock_byte_page(old.page_size));
        let mut header = Header { page_count: pages, gone: false, position: self.position(), ..*old };
        let mut changed = Vec::new();
        for pgno in self.dirty.pages() {
            if pgno > pages || pgno == lock_page {
                continue;
            }
            self.dirty.read(pgno, image).map_err(doing(CHANGED))?;
            let digest = page_digest(&self.key, pgno, image);
            let slot = self.table.slot(pgno).map_err(doing(TABLE))?;
            let changes = slot.is_none_or(|slot| slot.digest != digest);
            if !changes && !slot.is_some_and(|slot| scope.spans(old, &slot)) {
                continue;
            }
            let has_base = self.read_base(scope, pgno, slot.as_ref(), base)?;
            given.pages += 1;
            given.bases += u32::from(has_base);
            sink.page(pgno, image, has_base.then_some(base)).map_err(doing(SINK))?;
            if !changes {
                continue;
            }
            xor(&mut header.state, &slot.unwrap_or_default().digest);
            xor(&mut header.state, &digest);
            changed.push((pgno, digest));
            if pgno == 1 {
                header.facts = Facts::of_page_one(image);
            }
        }
        given.changed = changed.len() as u32;
        let mut slots = Slots::default();
        for pgno in pages.saturating_add(1)..=old.page_count {
            let slot = slots.get(&self.table, pgno).map_err(doing(TABLE))?;
            xor(&mut header.state, &slot.unwrap_or_default().digest);
        }
        Ok(Change { header, update: Update::Some(changed), replace: false })
    }

    /// Where following can be taken up again later.
    pub(crate) fn position(&self) -> Option<Position> {
        match (&self.source, &self.db) {
            (Source::Log(tail), Some((_, db))) => tail.position().map(|chain| Position { chain, db: *db }),
            (Source::File { rest, .. }, _) => rest.position(),
            _ => None,
        }
    }

    /// The database was deleted, and nothing of it is left to be captured.
    pub(crate) fn capture_gone(&mut self, sink: &mut dyn PageSink) -> Result<Capture, CaptureError> {
        let Some(old) = self.table.header().copied().filter(|old| !old.gone) else {
            return Err(CaptureError::Missing);
        };
        sink.begin(old.page_size, false).map_err(doing(SINK))?;
        let header = Header { page_count: 0, state: [0; 16], gone: true, position: None, ..old };
        let change = Change { header, update: Update::Some(Vec::new()), replace: true };
        let scope = Scope { parent: old.seq, is_base: false, replace: false, collected: None };
        let capture = self.captured(change, &scope, Given::default(), None);
        Ok(Capture { gone: true, ..capture })
    }

    /// `gap`: why the whole file was read.
    pub(crate) fn captured(
        &mut self,
        change: Change,
        scope: &Scope,
        given: Given,
        gap: Option<GapReason>,
    ) -> Capture {
        let header = change.header;
        let old = self.table.header();
        let same_shape = old.is_some_and(|old| {
            old.page_count == header.page_count
                && old.page_size == header.page_size
                && old.gone == header.gone
        });
        let unchanged = same_shape && given.changed == 0;
        if unchanged {
            self.dirty.clear();
        }
        let capture = Capture {
            is_base: scope.is_base,
            parent: scope.parent,
            kind: header.facts.kind,
            page_size: header.page_size,
            page_count: header.page_count,
            user_version: header.facts.user_version,
            application_id: header.facts.application_id,
            state_digest: header.state,
            pages: given.pages,
            changed_pages: given.changed,
            bases: given.bases,
            unchanged,
            gap,
            bytes_read: self.bytes_read,
            gone: false,
        };
        self.pending = Some(Pending { change, prepared: None, scanned: gap.is_some(), unchanged });
        capture
    }

    /// Keeps the images that pages had until now, where a later capture may be built on an entry that has them.
    pub(crate) fn keep_versions(&mut self, change: &Change) -> io::Result<()> {
        let Some(header) = self.table.header() else { return Ok(()) };
        let mut image = vec![0; header.page_size as usize];
        let mut new = change.new_digests();
        for pgno in self.dirty.pages_with_base() {
            let Some(slot) = self.table.slot(pgno)?.filter(|_| pgno <= change.header.page_count) else {
                continue;
            };
            let from = header.entry_of(&slot);
            let changes = new.get(pgno)?.is_some_and(|digest| digest != slot.digest);
            if changes && self.versions.wants(from, header.seq) && self.dirty.read_base(pgno, &mut image)? {
                self.versions.keep(pgno, from, header.seq, &image);
            }
        }
        Ok(())
    }
}

fn invalid(reason: &'static str) -> CaptureError {
    doing("starting a capture")(io::Error::new(io::ErrorKind::InvalidInput, reason))
}
