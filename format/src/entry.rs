//! The entry: the log object that publishes one recovery point.

use crate::archive_name::ArchiveId;
use crate::error::{FormatError, malformed};
use crate::limits::{
    MAX_COUNTER, MAX_DATABASES, MAX_NAME_LEN, MAX_PACKS, MAX_PLAINTEXT_LEN, MAX_SEALED_LEN, MAX_TEXT_LEN,
    is_page_size,
};
use crate::pages::PageSet;
use crate::wire::{Reader, put_text};

const FLAG_BASE: u8 = 1;
const PACK_REF_LEN: usize = 28;

/// One recovery point of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The archive it belongs to.
    pub archive: ArchiveId,
    /// The device that wrote it: 16 random bytes.
    pub writer_id: [u8; 16],
    /// Fences an older writer.
    pub writer_epoch: u64,
    /// Its number in the log, from 1.
    pub seq: u64,
    /// The oldest entry that a restore of this one needs.
    pub base_seq: u64,
    /// [`entry_digest`] of the entry before; zeros in the first.
    pub prev: [u8; 32],
    /// When the state was read, in µs since 1970.
    pub taken_at_us: i64,
    /// What the user calls the source.
    pub source_name: String,
    /// The application the source belongs to; may be empty.
    pub app_id: String,
    /// Key of the state digests, the same in all entries of an archive.
    pub digest_key: [u8; 32],
    /// What is known of each database, unique by name. Written sorted by name.
    pub databases: Vec<DatabaseRecord>,
}

/// Whether a database exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseState {
    /// It does.
    Present = 1,
    /// It was deleted.
    Gone = 2,
}

/// What can be read in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseKind {
    /// Its header is SQLite's.
    Plain = 1,
    /// Its header is encrypted: pages are kept, nothing about them is known.
    Opaque = 2,
}

/// One database in an entry.
///
/// Inline pages override packs, and a later pack overrides an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseRecord {
    /// Its file name: no slash, no NUL, not `.` or `..`.
    pub name: String,
    /// Whether it exists. A database that is gone has no pages.
    pub state: DatabaseState,
    /// What can be read in it.
    pub kind: DatabaseKind,
    /// Whether every page is here; else those that changed since the entry before.
    pub is_base: bool,
    /// Bytes of a page; 0 only when there are no pages.
    pub page_size: u32,
    /// Pages of the database at this point.
    pub page_count: u32,
    /// SQLite's `user_version`.
    pub user_version: u32,
    /// SQLite's `application_id`.
    pub application_id: u32,
    /// Proves a restored database (docs/format.md, "State digest").
    pub state_digest: [u8; 16],
    /// Pages that differ from the entry before.
    pub changed_pages: u64,
    /// Where bulk pages are, in the order they were read.
    pub packs: Vec<PackRef>,
    /// Pages in the entry itself.
    pub inline: PageSet,
}

/// Names a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackRef {
    /// The pack's object name.
    pub name: [u8; 16],
    /// Length of the sealed object, for progress and accounting; not a check.
    pub sealed_len: u64,
    /// Pages in it.
    pub pages: u32,
}

impl Entry {
    /// The entry's only encoding. Fails if a value is past a limit or against a rule.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        check_log_position(self.seq, self.base_seq, &self.prev).map_err(unencodable)?;
        let mut databases: Vec<_> = self.databases.iter().collect();
        databases.sort_by(|a, b| a.name.cmp(&b.name));
        let unique = databases.windows(2).all(|pair| pair[0].name != pair[1].name);
        if databases.len() > MAX_DATABASES || !unique {
            return Err(FormatError::Unencodable { what: "databases" });
        }
        let mut out = Vec::new();
        out.extend_from_slice(&self.archive.0);
        out.extend_from_slice(&self.writer_id);
        out.extend_from_slice(&self.writer_epoch.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.base_seq.to_le_bytes());
        out.extend_from_slice(&self.prev);
        out.extend_from_slice(&self.taken_at_us.to_le_bytes());
        out.extend_from_slice(&self.digest_key);
        put_text(&mut out, &self.source_name, MAX_TEXT_LEN, "source name")?;
        put_text(&mut out, &self.app_id, MAX_TEXT_LEN, "application id")?;
        out.extend_from_slice(&(databases.len() as u16).to_le_bytes());
        for database in databases {
            database.check().map_err(unencodable)?;
            database.encode_into(&mut out)?;
        }
        if out.len() > MAX_PLAINTEXT_LEN {
            return Err(FormatError::Unencodable { what: "entry" });
        }
        Ok(out)
    }

    /// Reads an entry from the plaintext of its object.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let mut entry = Self {
            archive: ArchiveId(reader.array("archive")?),
            writer_id: reader.array("writer id")?,
            writer_epoch: reader.u64("writer epoch")?,
            seq: reader.u64("seq")?,
            base_seq: reader.u64("base seq")?,
            prev: reader.array("previous digest")?,
            taken_at_us: reader.u64("time")?.cast_signed(),
            digest_key: reader.array("digest key")?,
            source_name: reader.text(MAX_TEXT_LEN, "source name")?.to_owned(),
            app_id: reader.text(MAX_TEXT_LEN, "application id")?.to_owned(),
            databases: Vec::new(),
        };
        check_log_position(entry.seq, entry.base_seq, &entry.prev).map_err(malformed)?;
        let count = reader.u16_up_to(MAX_DATABASES, "databases")?;
        for _ in 0..count {
            let record = DatabaseRecord::decode(&mut reader)?;
            record.check().map_err(malformed)?;
            if entry.databases.last().is_some_and(|before| before.name >= record.name) {
                return Err(malformed("databases"));
            }
            entry.databases.push(record);
        }
        reader.finish("bytes after the entry")?;
        Ok(entry)
    }
}

fn unencodable(what: &'static str) -> FormatError {
    FormatError::Unencodable { what }
}

fn check_log_position(seq: u64, base_seq: u64, prev: &[u8; 32]) -> Result<(), &'static str> {
    if !(1..=MAX_COUNTER).contains(&seq) {
        return Err("seq");
    }
    if !(1..=seq).contains(&base_seq) {
        return Err("base seq");
    }
    if (seq == 1) != (*prev == [0; 32]) {
        return Err("previous digest");
    }
    Ok(())
}

impl DatabaseRecord {
    /// The rules that lengths alone do not give; the same for what is written and what is read.
    fn check(&self) -> Result<(), &'static str> {
        if !is_file_name(&self.name) {
            return Err("database name");
        }
        let without_pages = self.page_count == 0 && self.packs.is_empty() && self.inline.is_empty();
        if self.state == DatabaseState::Gone && !without_pages {
            return Err("database state");
        }
        if !(is_page_size(self.page_size) || self.page_size == 0 && without_pages) {
            return Err("page size");
        }
        if !self.inline.is_empty() && self.inline.page_size() != self.page_size {
            return Err("page size");
        }
        let packs_fit =
            self.packs.iter().all(|pack| pack.sealed_len <= MAX_SEALED_LEN as u64 && pack.pages > 0);
        if self.packs.len() > MAX_PACKS || !packs_fit {
            return Err("packs");
        }
        Ok(())
    }

    fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        put_text(out, &self.name, MAX_NAME_LEN, "database name")?;
        out.push(self.state as u8);
        out.push(self.kind as u8);
        out.push(if self.is_base { FLAG_BASE } else { 0 });
        for value in [self.page_size, self.page_count, self.user_version, self.application_id] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.state_digest);
        out.extend_from_slice(&self.changed_pages.to_le_bytes());
        out.extend_from_slice(&(self.packs.len() as u32).to_le_bytes());
        for pack in &self.packs {
            out.extend_from_slice(&pack.name);
            out.extend_from_slice(&pack.sealed_len.to_le_bytes());
            out.extend_from_slice(&pack.pages.to_le_bytes());
        }
        out.extend_from_slice(&(self.inline.byte_len() as u32).to_le_bytes());
        self.inline.encode_into(out);
        Ok(())
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let name = reader.text(MAX_NAME_LEN, "database name")?.to_owned();
        let state = match reader.u8("database state")? {
            1 => DatabaseState::Present,
            2 => DatabaseState::Gone,
            _ => return Err(malformed("database state")),
        };
        let kind = match reader.u8("database kind")? {
            1 => DatabaseKind::Plain,
            2 => DatabaseKind::Opaque,
            _ => return Err(malformed("database kind")),
        };
        let is_base = match reader.u8("database flags")? {
            0 => false,
            FLAG_BASE => true,
            _ => return Err(malformed("database flags")),
        };
        Ok(Self {
            name,
            state,
            kind,
            is_base,
            page_size: reader.u32("page size")?,
            page_count: reader.u32("page count")?,
            user_version: reader.u32("user version")?,
            application_id: reader.u32("application id")?,
            state_digest: reader.array("state digest")?,
            changed_pages: reader.u64("changed pages")?,
            packs: decode_packs(reader)?,
            inline: decode_inline(reader)?,
        })
    }
}

fn decode_packs(reader: &mut Reader<'_>) -> Result<Vec<PackRef>, FormatError> {
    let count = reader.u32_up_to(MAX_PACKS, "packs")?;
    if count > reader.remaining() / PACK_REF_LEN {
        return Err(malformed("packs"));
    }
    let mut packs = Vec::with_capacity(count);
    for _ in 0..count {
        packs.push(PackRef {
            name: reader.array("packs")?,
            sealed_len: reader.u64("packs")?,
            pages: reader.u32("packs")?,
        });
    }
    Ok(packs)
}

fn decode_inline(reader: &mut Reader<'_>) -> Result<PageSet, FormatError> {
    let len = reader.u32_up_to(MAX_PLAINTEXT_LEN, "inline pages")?;
    PageSet::decode(reader.bytes(len, "inline pages")?.to_vec())
}

/// A restore creates a file of this name: it must not lead anywhere else.
fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// What the next entry's [`prev`](Entry::prev) names: BLAKE3 of the sealed object's bytes.
pub fn entry_digest(sealed: &[u8]) -> [u8; 32] {
    *blake3::hash(sealed).as_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn record(name: &str) -> DatabaseRecord {
        let mut inline = PageSet::builder(512);
        inline.push(3, &[9; 512]);
        inline.push_zero(4);
        DatabaseRecord {
            name: name.to_owned(),
            state: DatabaseState::Present,
            kind: DatabaseKind::Plain,
            is_base: true,
            page_size: 512,
            page_count: 4,
            user_version: 5,
            application_id: 6,
            state_digest: [7; 16],
            changed_pages: 8,
            packs: vec![PackRef { name: [1; 16], sealed_len: 9000, pages: 2 }],
            inline: inline.finish(),
        }
    }

    fn entry() -> Entry {
        Entry {
            archive: ArchiveId([1; 16]),
            writer_id: [2; 16],
            writer_epoch: 3,
            seq: 4,
            base_seq: 2,
            prev: [5; 32],
            taken_at_us: -6,
            source_name: "Fennel ❦".to_owned(),
            app_id: "org.example.Fennel".to_owned(),
            digest_key: [7; 32],
            databases: vec![record("a.db"), record("b.db")],
        }
    }

    #[test]
    fn an_entry_reads_back_sorted() {
        assert_eq!(Entry::decode(&entry().encode().unwrap()).unwrap(), entry());
        let mut shuffled = entry();
        shuffled.databases.reverse();
        assert_eq!(shuffled.encode(), entry().encode());
    }

    #[test]
    fn what_breaks_a_rule_is_not_written() {
        let check = |change: fn(&mut Entry), what| {
            let mut entry = entry();
            change(&mut entry);
            assert_eq!(entry.encode().unwrap_err(), FormatError::Unencodable { what });
        };
        check(|e| e.seq = 0, "seq");
        check(|e| e.seq = MAX_COUNTER + 1, "seq");
        check(|e| e.base_seq = 0, "base seq");
        check(|e| e.base_seq = 5, "base seq");
        check(|e| e.prev = [0; 32], "previous digest");
        check(|e| (e.seq, e.base_seq) = (1, 1), "previous digest");
        check(|e| e.source_name = "x".repeat(MAX_TEXT_LEN + 1), "source name");
        check(|e| e.databases[1].name = "a.db".to_owned(), "databases");
        for name in ["", ".", "..", "a/b", "a\0b"] {
            let mut entry = entry();
            entry.databases[0].name = name.to_owned();
            let error = entry.encode().unwrap_err();
            assert_eq!(error, FormatError::Unencodable { what: "database name" }, "{name:?}");
        }
        check(|e| e.databases[0].name = "x".repeat(256), "database name");
        check(|e| e.databases[0].state = DatabaseState::Gone, "database state");
        check(|e| e.databases[0].page_size = 0, "page size");
        check(|e| e.databases[0].page_size = 1024, "page size");
        check(|e| e.databases[0].packs[0].pages = 0, "packs");
        check(|e| e.databases[0].packs[0].sealed_len = u64::MAX, "packs");
    }

    #[test]
    fn a_database_that_is_gone_or_empty_needs_no_page_size() {
        for state in [DatabaseState::Gone, DatabaseState::Present] {
            let mut entry = entry();
            let database = &mut entry.databases[0];
            (database.state, database.page_size, database.page_count) = (state, 0, 0);
            database.packs.clear();
            database.inline = PageSet::default();
            assert_eq!(Entry::decode(&entry.encode().unwrap()).unwrap(), entry);
        }
    }

    /// Any changed byte gives an error or an entry with this very encoding: there is no second encoding of anything.
    #[test]
    fn changed_bytes_never_panic_and_never_decode_to_another_encoding() {
        let bytes = entry().encode().unwrap();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x2f, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(read) = Entry::decode(&changed) {
                    assert_eq!(read.encode().unwrap(), changed, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn cut_and_extended_entries_are_refused() {
        let bytes = entry().encode().unwrap();
        for len in 0..bytes.len() {
            assert!(matches!(Entry::decode(&bytes[..len]), Err(FormatError::Malformed { .. })), "{len}");
        }
        let extended = [&bytes[..], &[0]].concat();
        assert_eq!(Entry::decode(&extended).unwrap_err(), malformed("bytes after the entry"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(entry) = Entry::decode(&bytes) {
                prop_assert_eq!(entry.encode().unwrap(), bytes);
            }
        }
    }
}
