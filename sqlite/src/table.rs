//! The table of page digests: what the newest committed entry says every page is.
//!
//! A flat file: a header of [`HEADER_LEN`] bytes, then 20 bytes a page (digest, and the low 32 bits of the
//! number of the entry that last changed the page). It is a cache: whatever does not add up is thrown away,
//! and the next capture is a base. Checks on load: the header's checksum, the digest key, the length, and the
//! XOR of all digests against the state digest in the header.
//!
//! Only changed slots are written. So that a crash in between costs nothing, they first go, with the new
//! header, to a *redo* file that appears whole or not at all, and that is applied again on load.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Facts, Kind, xor};
use crate::os::Identity;
use crate::wal::{Chain, Checksum};

const HEADER_LEN: usize = 192;
const SLOT_LEN: usize = 20;
const MAGIC: &[u8; 8] = b"CKPAGES1";

/// Where following can be taken up again after a restart, for the state the table describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) chain: Chain,
    pub(crate) db: Identity,
}

/// What the table describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) seq: u64,
    pub(crate) page_size: u32,
    pub(crate) page_count: u32,
    pub(crate) state: Digest,
    pub(crate) facts: Facts,
    /// The newest entry says that the database does not exist any more.
    pub(crate) gone: bool,
    pub(crate) position: Option<Position>,
}

/// A step from one state to the next.
pub(crate) struct Change {
    pub(crate) header: Header,
    /// New digests, sorted by page number.
    pub(crate) slots: Vec<(u32, Digest)>,
    /// The slots are all there are: nothing of the old table stays.
    pub(crate) replace: bool,
}

struct Loaded {
    header: Header,
    slots: Vec<[u8; SLOT_LEN]>,
    file: File,
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

    pub(crate) fn header(&self) -> Option<&Header> {
        self.loaded.as_ref().map(|loaded| &loaded.header)
    }

    pub(crate) fn digest(&self, pgno: u32) -> Option<&Digest> {
        let slot = self.loaded.as_ref()?.slots.get(pgno.checked_sub(1)? as usize)?;
        slot.first_chunk::<16>()
    }

    /// Throws the table away: the next capture is a base.
    pub(crate) fn drop_table(&mut self) -> io::Result<()> {
        self.loaded = None;
        for path in [self.path.clone(), self.redo_path()] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // A table that came back after a power failure would be an old one.
        self.sync_dir()
    }

    /// Writes the change. When this fails the table in memory is as before, and the call can be repeated.
    pub(crate) fn apply(&mut self, change: &Change) -> io::Result<()> {
        let few = change.slots.len() * 8 < change.header.page_count as usize + 64;
        if change.replace || self.loaded.is_none() || !few {
            self.rewrite(change)
        } else {
            self.patch(change)
        }
    }

    fn rewrite(&mut self, change: &Change) -> io::Result<()> {
        let old = if change.replace { None } else { self.loaded.as_ref() };
        let mut slots = old.map(|loaded| loaded.slots.clone()).unwrap_or_default();
        change.put_into(&mut slots);
        let temporary = self.path.with_extension("pages-new");
        let mut file = create(&temporary)?;
        file.write_all(&self.encode(&change.header))?;
        file.write_all(slots.as_flattened())?;
        file.sync_data()?;
        // The redo must be gone before the new table is there: it may have the same seq. Until then the old table
        // depends on it, unless the table itself is on the disk.
        if let Some(old) = &self.loaded {
            old.file.sync_data()?;
        }
        match std::fs::remove_file(self.redo_path()) {
            Ok(()) => self.sync_dir()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        std::fs::rename(&temporary, &self.path)?;
        self.sync_dir()?;
        self.loaded = Some(Loaded { header: change.header, slots, file });
        Ok(())
    }

    fn patch(&mut self, change: &Change) -> io::Result<()> {
        let header = self.encode(&change.header);
        let redo = self.redo_path();
        let Some(loaded) = self.loaded.as_mut() else { return Err(io::Error::other("no table")) };
        // The redo of the change before may be replaced only after that change is on the disk.
        loaded.file.sync_data()?;
        let mut bytes = Vec::with_capacity(HEADER_LEN + 36 + change.slots.len() * SLOT_LEN);
        bytes.extend(header);
        for (pgno, digest) in &change.slots {
            bytes.extend(pgno.to_le_bytes());
            bytes.extend(digest);
        }
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        let temporary = redo.with_extension("pages-redo-new");
        let mut file = create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        std::fs::rename(&temporary, &redo)?;
        sync_dir_of(&redo)?;

        let mut first = 0;
        while first < change.slots.len() {
            // One write for neighbours.
            let mut bytes = Vec::new();
            let mut next = first;
            while next < change.slots.len()
                && change.slots[next].0 == change.slots[first].0 + (next - first) as u32
            {
                bytes.extend(slot(&change.slots[next].1, change.header.seq));
                next += 1;
            }
            loaded.file.write_all_at(&bytes, slot_offset(change.slots[first].0))?;
            first = next;
        }
        loaded.file.set_len(slot_offset(change.header.page_count + 1))?;
        loaded.file.write_all_at(&header, 0)?;
        change.put_into(&mut loaded.slots);
        loaded.header = change.header;
        Ok(())
    }

    fn load(&self) -> io::Result<Option<Loaded>> {
        let file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = std::fs::read(&self.path)?;
        let Some((head, body)) = bytes.split_at_checked(HEADER_LEN) else { return Ok(None) };
        let mut slots = body.as_chunks::<SLOT_LEN>().0.to_vec();
        let mut header = self.decode(head);
        if let Some(redo) = self.load_redo()?
            && header.as_ref().is_none_or(|header| redo.header.seq >= header.seq)
        {
            redo.put_into(&mut slots);
            header = Some(redo.header);
            // Idempotent, and it makes the file what the checks below are about.
            file.write_all_at(&self.encode(&redo.header), 0)?;
            file.write_all_at(slots.as_flattened(), HEADER_LEN as u64)?;
            file.set_len(slot_offset(redo.header.page_count + 1))?;
        }
        let Some(header) = header else { return Ok(None) };
        let mut state = Digest::default();
        for slot in &slots {
            xor(&mut state, slot.first_chunk().expect("a slot has 20 bytes"));
        }
        let adds_up = slots.len() == header.page_count as usize && state == header.state;
        if !adds_up {
            tracing::warn!(
                pages = header.page_count,
                "the page table does not add up, the next capture is a base"
            );
        }
        Ok(adds_up.then_some(Loaded { header, slots, file }))
    }

    fn load_redo(&self) -> io::Result<Option<Change>> {
        let bytes = match std::fs::read(self.redo_path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((body, hash)) = bytes.split_last_chunk::<32>() else { return Ok(None) };
        if blake3::hash(body).as_bytes() != hash || body.len() < HEADER_LEN {
            return Ok(None);
        }
        let slots = body[HEADER_LEN..].as_chunks::<SLOT_LEN>().0.iter().map(|entry| {
            let (pgno, digest) = entry.split_first_chunk::<4>().expect("an entry has 20 bytes");
            (u32::from_le_bytes(*pgno), *digest.first_chunk().expect("an entry has 20 bytes"))
        });
        let slots = slots.collect();
        Ok(self.decode(&body[..HEADER_LEN]).map(|header| Change { header, slots, replace: false }))
    }

    fn redo_path(&self) -> PathBuf {
        self.path.with_extension("pages-redo")
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_dir_of(&self.path)
    }

    fn encode(&self, header: &Header) -> [u8; HEADER_LEN] {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(MAGIC);
        bytes.extend(self.key_check);
        bytes.extend(header.seq.to_le_bytes());
        bytes.extend(header.page_size.to_le_bytes());
        bytes.extend(header.page_count.to_le_bytes());
        bytes.extend(header.state);
        bytes.extend(header.facts.user_version.to_le_bytes());
        bytes.extend(header.facts.application_id.to_le_bytes());
        let opaque = header.facts.kind == Kind::Opaque;
        bytes.extend([u8::from(opaque), u8::from(header.gone), u8::from(header.position.is_some())]);
        if let Some(Position { chain, db }) = &header.position {
            bytes.push(u8::from(chain.big_endian));
            bytes.extend(chain.salt);
            bytes.extend(chain.page_size.to_le_bytes());
            bytes.extend(chain.frame.to_le_bytes());
            bytes.extend(chain.checksum.0.to_le_bytes());
            bytes.extend(chain.checksum.1.to_le_bytes());
            bytes.extend(db.device.to_le_bytes());
            bytes.extend(db.inode.to_le_bytes());
        }
        bytes.resize(HEADER_LEN - 32, 0);
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes.try_into().expect("filled up to this length")
    }

    fn decode(&self, bytes: &[u8]) -> Option<Header> {
        let (body, hash) = bytes.split_last_chunk::<32>()?;
        let intact = bytes.len() == HEADER_LEN && blake3::hash(body).as_bytes() == hash;
        if !intact || &body[..8] != MAGIC || body[8..24] != self.key_check {
            return None;
        }
        let int = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        let long = |at: usize| u64::from(int(at)) | u64::from(int(at + 4)) << 32;
        let position = (body[66] != 0).then(|| {
            let mut salt = [0; 8];
            salt.copy_from_slice(&body[68..76]);
            Position {
                chain: Chain {
                    salt,
                    big_endian: body[67] != 0,
                    page_size: int(76),
                    frame: int(80),
                    checksum: Checksum(int(84), int(88)),
                },
                db: Identity { device: long(92), inode: long(100) },
            }
        });
        let mut state = [0; 16];
        state.copy_from_slice(&body[40..56]);
        let kind = if body[64] == 0 { Kind::Plain } else { Kind::Opaque };
        Some(Header {
            seq: long(24),
            page_size: int(32),
            page_count: int(36),
            state,
            facts: Facts { kind, user_version: int(56), application_id: int(60) },
            gone: body[65] != 0,
            position,
        })
    }
}

impl Change {
    fn put_into(&self, slots: &mut Vec<[u8; SLOT_LEN]>) {
        slots.resize(self.header.page_count as usize, [0; SLOT_LEN]);
        for (pgno, digest) in &self.slots {
            if let Some(place) = slots.get_mut(*pgno as usize - 1) {
                *place = slot(digest, self.header.seq);
            }
        }
    }
}

fn slot(digest: &Digest, seq: u64) -> [u8; SLOT_LEN] {
    let mut bytes = [0; SLOT_LEN];
    bytes[..16].copy_from_slice(digest);
    bytes[16..].copy_from_slice(&(seq as u32).to_le_bytes());
    bytes
}

fn slot_offset(pgno: u32) -> u64 {
    HEADER_LEN as u64 + (u64::from(pgno) - 1) * SLOT_LEN as u64
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

    /// A table of `of.len()` pages; page i has the digest of number of[i-1].
    fn table(dir: &Path, of: &[u32]) -> Table {
        let mut table = Table::open(dir, "t", &KEY).unwrap();
        let slots = of.iter().enumerate().map(|(i, of)| (i as u32 + 1, digest(*of))).collect();
        table.apply(&Change { header: header(1, of), slots, replace: true }).unwrap();
        table
    }

    fn reopened(dir: &Path) -> Table {
        Table::open(dir, "t", &KEY).unwrap()
    }

    #[test]
    fn what_was_written_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let mut written = table(dir.path(), &[1, 2, 3]);
        let change = Change { header: header(2, &[1, 9]), slots: vec![(2, digest(9))], replace: false };
        written.apply(&change).unwrap();
        let loaded = reopened(dir.path());
        assert_eq!(loaded.header(), Some(&header(2, &[1, 9])));
        assert_eq!(
            (loaded.digest(1), loaded.digest(2), loaded.digest(3)),
            (Some(&digest(1)), Some(&digest(9)), None)
        );
        assert_eq!(loaded.digest(0), None);
    }

    #[test]
    fn a_table_with_any_byte_changed_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        drop(table(dir.path(), &[1, 2, 3]));
        let path = dir.path().join("t.pages");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            // The last 4 bytes of a slot are a hint for merging, not covered by the state digest.
            if at >= HEADER_LEN && (at - HEADER_LEN) % SLOT_LEN >= 16 {
                continue;
            }
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
        let slots = vec![(5, digest(777)), (50, digest(778))];
        written.apply(&Change { header: header(2, &after), slots, replace: false }).unwrap();
        let complete = std::fs::read(&path).unwrap();
        // Any mixture of old and new bytes: the redo has the last word.
        for cut in [0, 10, HEADER_LEN, HEADER_LEN + 4 * SLOT_LEN + 7, before.len()] {
            let mut torn = complete.clone();
            torn[cut..].copy_from_slice(&before[cut..]);
            std::fs::write(&path, torn).unwrap();
            let loaded = reopened(dir.path());
            assert_eq!(loaded.header(), Some(&header(2, &after)), "cut at {cut}");
            assert_eq!(loaded.digest(50), Some(&digest(778)));
        }
    }

    #[test]
    fn a_redo_does_not_outlive_the_table_it_belongs_to() {
        let dir = tempfile::tempdir().unwrap();
        let pages: Vec<u32> = (1..=100).collect();
        let mut written = table(dir.path(), &pages);
        let mut after = pages.clone();
        after[4] = 777;
        let patch = Change { header: header(2, &after), slots: vec![(5, digest(777))], replace: false };
        written.apply(&patch).unwrap();
        let redo = dir.path().join("t.pages-redo");
        assert!(redo.exists());
        // The same seq, another state.
        let slots = pages.iter().map(|of| (*of, digest(*of))).collect();
        written.apply(&Change { header: header(2, &pages), slots, replace: true }).unwrap();
        assert!(!redo.exists());
        assert_eq!(reopened(dir.path()).digest(5), Some(&digest(5)));
        // One that cannot be removed keeps the old table, which it may belong to.
        std::fs::create_dir(&redo).unwrap();
        let slots = after.iter().map(|of| (*of, digest(*of))).collect();
        written.apply(&Change { header: header(3, &after), slots, replace: true }).unwrap_err();
        let bytes = std::fs::read(dir.path().join("t.pages")).unwrap();
        assert_eq!(bytes[24..32], 2_u64.to_le_bytes());
        std::fs::remove_dir(&redo).unwrap();
        std::fs::remove_file(dir.path().join("t.pages-new")).unwrap();
        written.apply(&patch).unwrap();
        written.drop_table().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
