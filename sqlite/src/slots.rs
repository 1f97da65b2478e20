//! What the page table holds for each page, as values and as bytes, and changes of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::digest::Digest;
use crate::digests::{Finished, Reader};
use crate::table::{HEADER_LEN, Header, Table};

pub(crate) const SLOT_LEN: usize = 20;
/// Neighbouring slots are read so many at a time (80 KiB).
pub(crate) const SLOTS_AT_ONCE: u32 = 4096;

/// What the table says about one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Slot {
    pub(crate) digest: Digest,
    /// Low 32 bits of the number of the entry that last changed the page: see [`Header::entry_of`].
    pub(crate) changed: u32,
}

/// New digests.
pub(crate) enum Update {
    /// Of the pages that changed, sorted by page number.
    Some(Vec<(u32, Digest)>),
    /// Of all pages.
    All(Finished),
}

/// Reads new digests in about the order of their pages.
pub(crate) enum NewDigests<'a> {
    Some(&'a [(u32, Digest)]),
    All(Reader<'a>),
}

impl NewDigests<'_> {
    /// The new digest of a page of the state; `None` when it did not change.
    pub(crate) fn get(&mut self, pgno: u32) -> io::Result<Option<Digest>> {
        match self {
            NewDigests::Some(slots) => {
                let at = slots.binary_search_by_key(&pgno, |(number, _)| *number);
                Ok(at.ok().map(|at| slots[at].1))
            }
            NewDigests::All(reader) => reader.get(pgno).map(Some),
        }
    }
}

/// A step from one state to the next.
pub(crate) struct Change {
    pub(crate) header: Header,
    pub(crate) update: Update,
    /// Nothing of the old table stays.
    pub(crate) replace: bool,
}

impl Change {
    pub(crate) fn new_digests(&self) -> NewDigests<'_> {
        match &self.update {
            Update::Some(slots) => NewDigests::Some(slots),
            Update::All(digests) => NewDigests::All(digests.reader()),
        }
    }

    /// The entry that this change becomes.
    pub(crate) fn becomes(&mut self, seq: u64) {
        self.header.seq = seq;
        if self.replace {
            self.header.since = seq;
        }
    }
}

/// Reads slots in about the order of their pages.
#[derive(Default)]
pub(crate) struct Slots {
    first: u32,
    slots: Vec<Slot>,
}

impl Slots {
    /// What the table says of a page; `None` when it has no such page. The table must be the same in every call.
    pub(crate) fn get(&mut self, table: &Table, pgno: u32) -> io::Result<Option<Slot>> {
        let at = |first: u32| pgno.checked_sub(first).map_or(usize::MAX, |at| at as usize);
        if self.slots.get(at(self.first)).is_none() {
            self.first = pgno;
            self.slots.clear();
            table.read_slots(pgno, SLOTS_AT_ONCE, &mut |slot| self.slots.push(slot))?;
        }
        Ok(self.slots.get(at(self.first)).copied())
    }
}

pub(crate) fn encode_slot(slot: &Slot) -> [u8; SLOT_LEN] {
    let mut bytes = [0; SLOT_LEN];
    bytes[..16].copy_from_slice(&slot.digest);
    bytes[16..].copy_from_slice(&slot.changed.to_le_bytes());
    bytes
}

pub(crate) fn decode_slot(bytes: &[u8; SLOT_LEN]) -> Slot {
    let (digest, changed) = bytes.split_first_chunk::<16>().expect("a slot has 20 bytes");
    Slot {
        digest: *digest,
        changed: u32::from_le_bytes(*changed.first_chunk().expect("a slot has 20 bytes")),
    }
}

/// One term of a sum (XOR) over all slots that finds last changes that are not what was written: a page left out of an
/// increment because of them would cost a recovery point. Against accidents, not against people (the finalizer of
/// splitmix64, a bijection).
pub(crate) fn last_change_sum(pgno: u32, slot: &Slot) -> u64 {
    if *slot == Slot::default() {
        // The page of the locks, which is in no change.
        return 0;
    }
    let mut x = (u64::from(pgno) << 32 | u64::from(slot.changed)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Slots of pages `first` to `last`. Fails when they are not all there.
pub(crate) fn read_slots(
    file: &File,
    first: u32,
    last: u32,
    each: &mut dyn FnMut(u32, Slot),
) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut next = first;
    while next <= last {
        let count = (last - next + 1).min(SLOTS_AT_ONCE);
        bytes.resize(count as usize * SLOT_LEN, 0);
        file.read_exact_at(&mut bytes, slot_offset(next))?;
        for (pgno, slot) in (next..).zip(bytes.as_chunks::<SLOT_LEN>().0) {
            each(pgno, decode_slot(slot));
        }
        next += count;
    }
    Ok(())
}

pub(crate) fn write_zeros(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    let zeros = [0; 8192];
    while len > 0 {
        let count = len.min(zeros.len() as u64);
        file.write_all_at(&zeros[..count as usize], offset)?;
        (offset, len) = (offset + count, len - count);
    }
    Ok(())
}

pub(crate) fn slot_offset(pgno: u32) -> u64 {
    HEADER_LEN as u64 + (u64::from(pgno) - 1) * SLOT_LEN as u64
}
