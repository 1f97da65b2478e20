//! Reading pages as they are at the newest committed entry: those of a large capture in slices, beforehand and between other
//! captures; and those of an older entry that did not change since.
//!
//! A slice has pages as the table says they are, proved by their digests. What changes later is given again by the
//! capture the collection is for; the table knows: its last change is newer than the slice.

use crate::capture::{SINK, TABLE};
use crate::digest::lock_byte_page;
use crate::error::{CaptureError, doing};
use crate::live::LiveDatabase;
use crate::slots::{Slot, Slots};
use crate::types::{Build, PageSink};

/// Which pages were collected for a capture, and as of when.
#[derive(Debug, Clone)]
pub struct Collection {
    parent: u64,
    /// The table it was begun with.
    table: Option<u64>,
    /// Page numbers up to which it was read, and the entry the table stood at then.
    slices: Vec<(u32, u64)>,
    /// Pages that were left out on the way, sorted.
    skipped: Vec<u32>,
}

impl Collection {
    /// Nothing yet, for a capture that will be built on `parent` (0 for a new base).
    pub fn new(parent: u64) -> Collection {
        Collection { parent, table: None, slices: Vec::new(), skipped: Vec::new() }
    }

    /// The entry it is for.
    pub fn parent(&self) -> u64 {
        self.parent
    }

    /// Fails when it was begun with a table that is no more.
    pub(crate) fn check(&self, live: &LiveDatabase) -> Result<(), CaptureError> {
        let same = self.table.is_none_or(|table| table == live.table_number);
        if same { Ok(()) } else { Err(CaptureError::Outdated) }
    }

    fn end(&self) -> u32 {
        self.slices.last().map_or(0, |(end, _)| *end)
    }

    /// Whether it has the image of a page that changed last with this entry.
    pub(crate) fn holds(&self, pgno: u32, changed: u64) -> bool {
        let at = self.slices.partition_point(|(end, _)| *end < pgno);
        let Some((_, as_of)) = self.slices.get(at) else { return false };
        changed <= *as_of && self.skipped.binary_search(&pgno).is_err()
    }
}

impl LiveDatabase {
    /// Reads the next pages of a coming capture, as they were at the newest committed entry; `true` when there are no
    /// more. Call it between captures until then, and give the collection to [`capture`](Self::capture).
    ///
    /// It reads at most `max_bytes`, however many pages it has to pass over. The sink's `begin` is called first of all,
    /// and never `restart`. Pages that changed since, or are nowhere any more, are left to the capture. Fails with
    /// [`Outdated`](CaptureError::Outdated) when the table is another one: begin again.
    pub fn collect(
        &mut self,
        collection: &mut Collection,
        max_bytes: u64,
        sink: &mut dyn PageSink,
    ) -> Result<bool, CaptureError> {
        self.settle();
        collection.check(self)?;
        let Some(header) = self.table.header().copied().filter(|header| !header.gone) else {
            return Err(CaptureError::Outdated);
        };
        let scope = self.scope(&Build::on(collection.parent), header.page_size)?;
        if collection.table.is_none() {
            sink.begin(header.page_size, scope.is_base).map_err(doing(SINK))?;
            collection.table = Some(self.table_number);
        }
        let page_len = header.page_size as usize;
        let (mut image, mut base) = (vec![0; page_len], vec![0; page_len]);
        let (mut slots, mut read) = (Slots::default(), 0);
        let mut end = collection.end();
        while end < header.page_count && read < max_bytes {
            let pgno = end + 1;
            let slot = slots.get(&self.table, pgno).map_err(doing(TABLE))?.unwrap_or_default();
            if pgno != lock_byte_page(header.page_size) && scope.spans(&header, &slot) {
                read += page_len as u64;
                let found = !self.dirty.contains(pgno)
                    && self
                        .read_clean(pgno, &slot.digest, &mut image)
                        .map_err(doing("reading the database"))?;
                if found {
                    let has_base = self.read_base(&scope, pgno, Some(&slot), &mut base)?;
                    sink.page(pgno, &image, has_base.then_some(&base)).map_err(doing(SINK))?;
                } else {
                    collection.skipped.push(pgno);
                }
            }
            end = pgno;
        }
        if end > collection.end() {
            collection.slices.push((end, header.seq));
        }
        Ok(end >= header.page_count)
    }

    /// Gives pages as they are at the newest committed entry, each proved by its digest, if that is how they were at entry
    /// `seq`. `false` when one of them changed since, or is nowhere any more, or when `take` has had enough; what was given
    /// until then is of no use.
    ///
    /// Of changes before the table began nothing is known: then pages are given that may have changed, and the caller has to
    /// have a proof of its own.
    pub fn read_unchanged(
        &mut self,
        pages: &mut dyn Iterator<Item = u32>,
        seq: u64,
        take: &mut dyn FnMut(u32, &[u8]) -> bool,
    ) -> Result<bool, CaptureError> {
        self.settle();
        let Some(header) = self.table.header().copied().filter(|header| !header.gone) else {
            return Ok(false);
        };
        let mut image = vec![0; header.page_size as usize];
        let mut slots = Slots::default();
        for pgno in pages {
            let slot = slots.get(&self.table, pgno).map_err(doing(TABLE))?;
            let unchanged = |slot: &Slot| header.since > seq || header.entry_of(slot) <= seq;
            let Some(slot) = slot.filter(unchanged) else { return Ok(false) };
            let found = !self.dirty.contains(pgno)
                && self.read_clean(pgno, &slot.digest, &mut image).map_err(doing("reading the database"))?;
            if !found || !take(pgno, &image) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes of a page, as the newest committed entry says; 0 when there is none.
    pub fn page_size(&self) -> u32 {
        self.table.header().map_or(0, |header| header.page_size)
    }
}
