//! The table of page digests: what the newest committed entry says every page is.
//!
//! A flat file: a header of [`HEADER_LEN`] bytes, then 20 bytes a page (digest, and the low 32 bits of the
//! number of the entry that last changed the page). It stays in the file: a slot is read when it is asked for, so the
//! table of a large database takes no memory. It is a cache: whatever does not add up is thrown away,
//! and the next capture is a base. Checks on load: the header's checksum, the digest key, the length, the
//! XOR of all digests against the state digest in the header, and the sum over all last changes.
//!
//! Only changed slots are written. So that a crash in between costs nothing, they first go, with the new
//! header, to a *redo* file that appears whole or not at all, and that is applied again on load.
//!
//! A change is *prepared* before its entry is kept, and *finished* afterwards. After a crash in between the log knows
//! whether the entry was kept, and the table follows it ([`Table::open_at`]): nothing has to be captured again.

mod header;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub(crate) use header::{HEADER_LEN, Header, Position};

use crate::digest::{Digest, xor};
use crate::os::read_at;
use crate::slots::{
    Change, SLOT_LEN, Slot, Slots, Update, decode_slot, encode_slot, last_change_sum, read_slots,
    slot_offset, write_zeros,
};

struct Loaded {
    header: Header,
    /// Over all slots: see [`last_change_sum`].
    changes: u64,
    file: File,
}

/// A change that is on the disk beside the table.
pub(crate) enum Prepared {
    /// In the next redo.
    Redo { encoded: [u8; HEADER_LEN], changes: u64 },
    /// As a whole new table.
    Whole { file: File, changes: u64 },
}

pub(crate) struct Table {
    path: PathBuf,
    key_check: Digest,
    loaded: Option<Loaded>,
}

impl Table {
    /// Loads the table of this name; one that does not add up is as good as none.
    pub(crate) fn open(dir: &Path, name: &str, digest_key: &[u8; 32]) -> io::Result<Table> {
        let mut key_check = [0; 16];
        key_check.copy_from_slice(&blake3::keyed_hash(digest_key, b"chatkeep page table").as_bytes()[..16]);
        let mut table = Table { path: dir.join(format!("{name}.pages")), key_check, loaded: None };
        table.loaded = table.load()?;
        Ok(table)
    }

    /// Loads the table, as it is at entry `seq`: a change to that entry that was prepared is finished.
    pub(crate) fn open_at(dir: &Path, name: &str, digest_key: &[u8; 32], seq: u64) -> io::Result<Table> {
        let mut table = Self::open(dir, name, digest_key)?;
        let found = table.header().map(|header| header.seq);
        if found != Some(seq) {
            let next = table.load_redo(&table.next_redo_path())?.map(|(header, ..)| header.0.seq);
            if found.is_some() && next == Some(seq) {
                std::fs::rename(table.next_redo_path(), table.redo_path())?;
            } else if table.load_from(&table.next_path())?.is_some_and(|next| next.header.seq == seq) {
                // It stands for itself, and the redo is about the old one.
                remove(&table.redo_path())?;
                table.sync_dir()?;
                std::fs::rename(table.next_path(), &table.path)?;
            }
            table.sync_dir()?;
            table.loaded = table.load()?;
        }
        remove(&table.next_redo_path())?;
        remove(&table.next_path())?;
        Ok(table)
    }

    pub(crate) fn header(&self) -> Option<&Header> {
        self.loaded.as_ref().map(|loaded| &loaded.header)
    }

    /// What it says of a page; `None` when it has no such page.
    pub(crate) fn slot(&self, pgno: u32) -> io::Result<Option<Slot>> {
        let Some(loaded) = &self.loaded else { return Ok(None) };
        if pgno == 0 || pgno > loaded.header.page_count {
            return Ok(None);
        }
        let mut bytes = [0; SLOT_LEN];
        loaded.file.read_exact_at(&mut bytes, slot_offset(pgno))?;
        Ok(Some(decode_slot(&bytes)))
    }

    /// Slots from this page on, at most so many.
    pub(crate) fn read_slots(&self, first: u32, count: u32, each: &mut dyn FnMut(Slot)) -> io::Result<()> {
        let Some(loaded) = &self.loaded else { return Ok(()) };
        let last = loaded.header.page_count.min(first.saturating_add(count - 1));
        if first == 0 { Ok(()) } else { read_slots(&loaded.file, first, last, &mut |_, slot| each(slot)) }
    }

    /// Throws the table away: the next capture is a base.
    pub(crate) fn drop_table(&mut self) -> io::Result<()> {
        self.loaded = None;
        for path in [self.path.clone(), self.redo_path(), self.next_path(), self.next_redo_path()] {
            remove(&path)?;
        }
        // A table that came back after a power failure would be an old one.
        self.sync_dir()
    }

    /// Whether a change of so many pages is written over the table; a larger one makes it anew.
    pub(crate) fn is_few(changed: usize, page_count: u32) -> bool {
        changed * 8 < page_count as usize + 64
    }

    /// Writes the change. When this fails the table is as before, and the call can be repeated; if it is not, because
    /// the disk failed half-way, there is no table any more.
    #[cfg(test)]
    pub(crate) fn apply(&mut self, change: &Change) -> io::Result<()> {
        let prepared = self.prepare(change)?;
        self.finish(change, prepared)
    }

    /// Writes the change beside the table, durably. The table is as before.
    pub(crate) fn prepare(&self, change: &Change) -> io::Result<Prepared> {
        let prepared = match &change.update {
            Update::Some(slots)
                if !change.replace
                    && self.loaded.is_some()
                    && Self::is_few(slots.len(), change.header.page_count) =>
            {
                self.prepare_redo(change.header, slots)?
            }
            _ => self.prepare_whole(change)?,
        };
        self.sync_dir()?;
        Ok(prepared)
    }

    /// Takes over what was prepared for this change. When this fails the table is as before, or there is none any more.
    pub(crate) fn finish(&mut self, change: &Change, prepared: Prepared) -> io::Result<()> {
        match (prepared, &change.update) {
            (Prepared::Whole { file, changes }, _) => self.finish_whole(change.header, file, changes),
            (Prepared::Redo { encoded, changes }, Update::Some(slots)) => {
                self.finish_redo(change.header, slots, &encoded, changes)
            }
            (Prepared::Redo { .. }, Update::All(_)) => Err(io::Error::other("prepared for another change")),
        }
    }

    fn prepare_whole(&self, change: &Change) -> io::Result<Prepared> {
        let file = create(&self.next_path())?;
        let mut out = BufWriter::new(&file);
        out.write_all(&[0; HEADER_LEN])?;
        let header = change.header;
        let (mut old, mut new) = (Slots::default(), change.new_digests());
        let (mut state, mut changes) = (Digest::default(), 0);
        for pgno in 1..=header.page_count {
            let before = if change.replace { None } else { old.get(self, pgno)? };
            let mut slot = before.unwrap_or_default();
            if let Some(digest) = new.get(pgno)?
                && digest != slot.digest
            {
                slot = Slot { digest, changed: header.seq as u32 };
            }
            xor(&mut state, &slot.digest);
            changes ^= last_change_sum(pgno, &slot);
            out.write_all(&encode_slot(&slot))?;
        }
        out.flush()?;
        drop(out);
        if state != header.state {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the new page table does not add up"));
        }
        file.write_all_at(&header.encode(&self.key_check, changes), 0)?;
        file.sync_data()?;
        Ok(Prepared::Whole { file, changes })
    }

    fn finish_whole(&mut self, header: Header, file: File, changes: u64) -> io::Result<()> {
        // The redo must be gone before the new table is there: it may have the same seq. Until then the old table
        // depends on it, unless the table itself is on the disk.
        if let Some(old) = &self.loaded {
            old.file.sync_data()?;
        }
        if remove(&self.redo_path())? {
            self.sync_dir()?;
        }
        std::fs::rename(self.next_path(), &self.path)?;
        self.sync_dir()?;
        self.loaded = Some(Loaded { header, changes, file });
        Ok(())
    }

    fn prepare_redo(&self, header: Header, slots: &[(u32, Digest)]) -> io::Result<Prepared> {
        let Some(loaded) = self.loaded.as_ref() else { return Err(io::Error::other("no table")) };
        let new = |digest: &Digest| Slot { digest: *digest, changed: header.seq as u32 };
        let old_count = loaded.header.page_count;
        let mut changes = loaded.changes;
        for (pgno, digest) in slots {
            let old = self.slot(*pgno)?;
            changes ^=
                old.map_or(0, |old| last_change_sum(*pgno, &old)) ^ last_change_sum(*pgno, &new(digest));
        }
        read_slots(&loaded.file, header.page_count + 1, old_count, &mut |pgno, slot| {
            changes ^= last_change_sum(pgno, &slot);
        })?;
        if old_count < header.page_count {
            // Room, before anything is promised. What is longer than its header says is cut on load.
            let grown = slot_offset(header.page_count + 1) - slot_offset(old_count + 1);
            write_zeros(&loaded.file, slot_offset(old_count + 1), grown)?;
        }
        let encoded = header.encode(&self.key_check, changes);
        self.write_next_redo(&encoded, slots)?;
        Ok(Prepared::Redo { encoded, changes })
    }

    fn finish_redo(
        &mut self,
        header: Header,
        slots: &[(u32, Digest)],
        encoded: &[u8; HEADER_LEN],
        changes: u64,
    ) -> io::Result<()> {
        let Some(loaded) = self.loaded.as_ref() else { return Err(io::Error::other("no table")) };
        // The redo of the change before may be replaced only after that change is on the disk. Under which of its two
        // names a power failure leaves the new one does not matter.
        loaded.file.sync_data()?;
        std::fs::rename(self.next_redo_path(), self.redo_path())?;
        let new = |digest: &Digest| Slot { digest: *digest, changed: header.seq as u32 };
        let written = (|| {
            let mut first = 0;
            while first < slots.len() {
                // One write for neighbours.
                let mut bytes = Vec::new();
                let mut next = first;
                while next < slots.len() && slots[next].0 == slots[first].0 + (next - first) as u32 {
                    bytes.extend(encode_slot(&new(&slots[next].1)));
                    next += 1;
                }
                loaded.file.write_all_at(&bytes, slot_offset(slots[first].0))?;
                first = next;
            }
            loaded.file.set_len(slot_offset(header.page_count + 1))?;
            loaded.file.write_all_at(encoded, 0)
        })();
        if let Err(error) = written {
            self.loaded = None;
            return Err(error);
        }
        if let Some(loaded) = &mut self.loaded {
            (loaded.header, loaded.changes) = (header, changes);
        }
        Ok(())
    }

    fn write_next_redo(&self, header: &[u8; HEADER_LEN], slots: &[(u32, Digest)]) -> io::Result<()> {
        let file = create(&self.next_redo_path())?;
        let mut hasher = blake3::Hasher::new();
        let mut out = BufWriter::new(&file);
        let mut put = |bytes: &[u8]| {
            hasher.update(bytes);
            out.write_all(bytes)
        };
        put(header)?;
        for (pgno, digest) in slots {
            put(&pgno.to_le_bytes())?;
            put(digest)?;
        }
        let hash = hasher.finalize();
        out.write_all(hash.as_bytes())?;
        out.flush()?;
        drop(out);
        file.sync_data()
    }

    fn load(&self) -> io::Result<Option<Loaded>> {
        self.load_from(&self.path)
    }

    fn load_from(&self, path: &Path) -> io::Result<Option<Loaded>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut head = [0; HEADER_LEN];
        let read = read_at(&file, &mut head, 0)?;
        let mut header = Header::decode(&self.key_check, &head[..read]);
        let redo = if path == self.path { self.load_redo(&self.redo_path())? } else { None };
        if let Some((redo, encoded, slots)) = redo
            && header.as_ref().is_none_or(|(header, _)| redo.0.seq >= header.seq)
        {
            // Idempotent, and it makes the file what the checks below are about.
            for (pgno, digest) in slots {
                let slot = Slot { digest, changed: redo.0.seq as u32 };
                file.write_all_at(&encode_slot(&slot), slot_offset(pgno))?;
            }
            file.write_all_at(&encoded, 0)?;
            header = Some(redo);
        }
        let Some((header, expected)) = header else { return Ok(None) };
        let len = slot_offset(header.page_count + 1);
        if file.metadata()?.len() > len {
            file.set_len(len)?;
        }
        let (mut state, mut changes) = (Digest::default(), 0);
        let read = read_slots(&file, 1, header.page_count, &mut |pgno, slot| {
            xor(&mut state, &slot.digest);
            changes ^= last_change_sum(pgno, &slot);
        });
        let adds_up = read.is_ok() && state == header.state && changes == expected;
        if !adds_up {
            tracing::warn!(
                pages = header.page_count,
                "the page table does not add up, the next capture is a base"
            );
        }
        Ok(adds_up.then_some(Loaded { header, changes, file }))
    }

    fn load_redo(&self, path: &Path) -> io::Result<Option<Redo>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((body, hash)) = bytes.split_last_chunk::<32>() else { return Ok(None) };
        if blake3::hash(body).as_bytes() != hash {
            return Ok(None);
        }
        let Some((head, body)) = body.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let Some(header) = Header::decode(&self.key_check, head) else { return Ok(None) };
        let slots = body.as_chunks::<SLOT_LEN>().0.iter().map(|entry| {
            let (pgno, digest) = entry.split_first_chunk::<4>().expect("an entry has 20 bytes");
            (u32::from_le_bytes(*pgno), *digest.first_chunk().expect("an entry has 20 bytes"))
        });
        // Nothing beyond the end: it would make the file longer than it is.
        let within = |pgno: u32| pgno > 0 && pgno <= header.0.page_count;
        Ok(Some((header, *head, slots.filter(|(pgno, _)| within(*pgno)).collect())))
    }

    fn redo_path(&self) -> PathBuf {
        self.path.with_extension("pages-redo")
    }

    /// A redo that was prepared.
    fn next_redo_path(&self) -> PathBuf {
        self.path.with_extension("pages-redo-new")
    }

    /// A whole table that was prepared.
    fn next_path(&self) -> PathBuf {
        self.path.with_extension("pages-new")
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_dir_of(&self.path)
    }
}

/// A redo: its header and the sum over last changes, the same as bytes, and its slots.
type Redo = ((Header, u64), [u8; HEADER_LEN], Vec<(u32, Digest)>);

/// Removes a file; `false` when there is none.
fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes sure that names in the folder survive a power failure.
fn sync_dir_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::digest::{Facts, Kind};
    use crate::os::Identity;
    use crate::slots::SLOTS_AT_ONCE;
    use crate::wal::{Chain, Checksum};

    const KEY: [u8; 32] = [7; 32];

    fn digest(of: u32) -> Digest {
        crate::digest::page_digest(&KEY, of, b"x")
    }

    fn header(seq: u64, pages: &[u32]) -> Header {
        let mut state = Digest::default();
        for of in pages {
            xor(&mut state, &digest(*of));
        }
        Header {
            seq,
            since: 1,
            page_size: 4096,
            page_count: pages.len() as u32,
            state,
            facts: Facts { kind: Kind::Opaque, user_version: 3, application_id: 4 },
            gone: false,
            position: Some(Position {
                chain: Chain {
                    salt: *b"saltsalt",
                    big_endian: true,
                    page_size: 4096,
                    frame: 9,
                    checksum: Checksum(1, 2),
                },
                db: Identity { device: 5, inode: 1 << 40 },
            }),
        }
    }

    fn whole(header: Header, of: &[u32]) -> Change {
        let mut all = crate::digests::Digests::new("nowhere/spill".into());
        all.grow(of.len() as u32).unwrap();
        for (pgno, of) in (1..).zip(of) {
            all.set(pgno, &digest(*of)).unwrap();
        }
        Change { header, update: Update::All(all.finish().unwrap()), replace: true }
    }

    /// A patch that gives page `pgno` the digest of number `of`.
    fn patch(header: Header, pages: &[(u32, u32)]) -> Change {
        let slots = pages.iter().map(|(pgno, of)| (*pgno, digest(*of))).collect();
        Change { header, update: Update::Some(slots), replace: false }
    }

    /// Digest and last change.
    fn slot(table: &Table, pgno: u32) -> Option<(Digest, u32)> {
        table.slot(pgno).unwrap().map(|slot| (slot.digest, slot.changed))
    }

    /// A table of `of.len()` pages; page i has the digest of number of[i-1].
    fn table(dir: &Path, of: &[u32]) -> Table {
        let mut table = Table::open(dir, "t", &KEY).unwrap();
        table.apply(&whole(header(1, of), of)).unwrap();
        table
    }

    fn reopened(dir: &Path) -> Table {
        Table::open(dir, "t", &KEY).unwrap()
    }

    #[test]
    fn what_was_written_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let mut written = table(dir.path(), &[1, 2, 3]);
        written.apply(&patch(header(2, &[1, 9]), &[(2, 9)])).unwrap();
        let loaded = reopened(dir.path());
        assert_eq!(loaded.header(), Some(&header(2, &[1, 9])));
        for table in [&written, &loaded] {
            let slots = [0, 1, 2, 3].map(|pgno| slot(table, pgno));
            assert_eq!(slots, [None, Some((digest(1), 1)), Some((digest(9), 2)), None]);
        }
    }

    #[test]
    fn a_table_with_any_byte_changed_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        drop(table(dir.path(), &[1, 2, 3]));
        let path = dir.path().join("t.pages");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(reopened(dir.path()).header().is_none(), "byte {at}");
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(reopened(dir.path()).header().is_none());
    }

    #[test]
    fn a_table_of_another_key_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        drop(table(dir.path(), &[1, 2, 3]));
        assert!(Table::open(dir.path(), "t", &[8; 32]).unwrap().header().is_none());
    }

    #[test]
    fn a_crash_while_slots_are_written_is_made_good_by_the_redo() {
        let dir = tempfile::tempdir().unwrap();
        let pages: Vec<u32> = (1..=100).collect();
        let mut written = table(dir.path(), &pages);
        let path = dir.path().join("t.pages");
        let before = std::fs::read(&path).unwrap();
        let mut after = pages.clone();
        after[4] = 777;
        after[49] = 778;
        written.apply(&patch(header(2, &after), &[(5, 777), (50, 778)])).unwrap();
        let complete = std::fs::read(&path).unwrap();
        // Any mixture of old and new bytes: the redo has the last word.
        for cut in [0, 10, HEADER_LEN, HEADER_LEN + 4 * SLOT_LEN + 7, before.len()] {
            let mut torn = complete.clone();
            torn[cut..].copy_from_slice(&before[cut..]);
            std::fs::write(&path, torn).unwrap();
            let loaded = reopened(dir.path());
            assert_eq!(loaded.header(), Some(&header(2, &after)), "cut at {cut}");
            assert_eq!(slot(&loaded, 50), Some((digest(778), 2)));
        }
    }

    #[test]
    fn a_redo_does_not_outlive_the_table_it_belongs_to() {
        let dir = tempfile::tempdir().unwrap();
        let pages: Vec<u32> = (1..=100).collect();
        let mut written = table(dir.path(), &pages);
        let mut after = pages.clone();
        after[4] = 777;
        let patch = patch(header(2, &after), &[(5, 777)]);
        written.apply(&patch).unwrap();
        let redo = dir.path().join("t.pages-redo");
        assert!(redo.exists());
        // The same seq, another state.
        written.apply(&whole(header(2, &pages), &pages)).unwrap();
        assert!(!redo.exists());
        assert_eq!(slot(&reopened(dir.path()), 5), Some((digest(5), 2)));
        // One that cannot be removed keeps the old table, which it may belong to.
        std::fs::create_dir(&redo).unwrap();
        written.apply(&whole(header(3, &after), &after)).unwrap_err();
        let bytes = std::fs::read(dir.path().join("t.pages")).unwrap();
        assert_eq!(bytes[24..32], 2_u64.to_le_bytes());
        std::fs::remove_dir(&redo).unwrap();
        std::fs::remove_file(dir.path().join("t.pages-new")).unwrap();
        written.apply(&patch).unwrap();
        written.drop_table().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_page_whose_digest_stays_keeps_its_last_change() {
        let dir = tempfile::tempdir().unwrap();
        let mut written = table(dir.path(), &[1, 2, 3, 4]);
        let all = Change { replace: false, ..whole(header(2, &[1, 9, 3]), &[1, 9, 3]) };
        written.apply(&all).unwrap();
        let grown = [1, 9, 3, 4, 5];
        written.apply(&patch(header(3, &grown), &[(4, 4), (5, 5)])).unwrap();
        for table in [written, reopened(dir.path())] {
            let changed: Vec<_> = (1..=5).map(|pgno| slot(&table, pgno).unwrap().1).collect();
            assert_eq!(changed, [1, 2, 1, 3, 3]);
        }
    }

    #[test]
    fn the_number_of_an_entry_is_told_from_its_low_bits() {
        let entry = |seq, changed| header(seq, &[]).entry_of(&Slot { changed, ..Slot::default() });
        assert_eq!((entry(9, 9), entry(9, 2), entry(9, 0)), (9, 2, 0));
        assert_eq!((entry(1 << 32, 0), entry(1 << 32, u32::MAX)), (1 << 32, (1 << 32) - 1));
        assert_eq!(entry(9, 10), 0, "there is no such entry: as old as can be, and found on load");
    }

    #[test]
    fn neighbouring_slots_are_read_together() {
        let dir = tempfile::tempdir().unwrap();
        let pages: Vec<u32> = (1..=SLOTS_AT_ONCE * 2 + 5).collect();
        let table = table(dir.path(), &pages);
        let mut slots = Slots::default();
        for pgno in pages.iter().chain(&[3, SLOTS_AT_ONCE + 9, 1]) {
            assert_eq!(slots.get(&table, *pgno).unwrap(), table.slot(*pgno).unwrap(), "page {pgno}");
        }
        assert_eq!(slots.get(&table, pages.len() as u32 + 1).unwrap(), None);
    }
}
