//! The entry: the log object that publishes one recovery point.

use crate::archive_name::ArchiveId;
use crate::error::{FormatError, malformed};
use crate::folder::FolderRecord;
use crate::limits::{
    MAX_COUNTER, MAX_DATABASES, MAX_FOLDERS, MAX_LEVEL, MAX_NAME_LEN, MAX_PINS, MAX_PLAINTEXT_LEN,
    MAX_TEXT_LEN, is_page_size,
};
use crate::pack::{PackRef, decode_packs, encode_packs, packs_fit};
use crate::pages::PageSet;
use crate::wire::{Reader, put_text};

const FLAG_BASE: u8 = 1;

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
    /// The entry that this one builds on: here is what changed since. 0 for a base, which needs no other.
    pub parent_seq: u64,
    /// The oldest entry that a restore of this one needs: the base at the end of the parents.
    pub base_seq: u64,
    /// How long a span it may stand for (0 for an ordinary entry): what retention and compaction go by.
    pub level: u8,
    /// [`entry_digest`] of the entry before; zeros in the first.
    pub prev: [u8; 32],
    /// [`entry_digest`] of the parent; zeros in a base.
    pub parent_digest: [u8; 32],
    /// When the state was read, in µs since 1970.
    pub taken_at_us: i64,
    /// What the user calls the source.
    pub source_name: String,
    /// The application the source belongs to; may be empty.
    pub app_id: String,
    /// Key of the state digests, the same in all entries of an archive.
    pub digest_key: [u8; 32],
    /// Recovery points that are to stay, ascending: all of them, not only new ones.
    pub pins: Vec<u64>,
    /// What is known of each database, unique by name. Written sorted by name.
    pub databases: Vec<DatabaseRecord>,
    /// What is known of each folder of attachments, unique by name. Written sorted by name.
    pub folders: Vec<FolderRecord>,
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
    /// Whether every page is here; else those that changed since the parent.
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
    /// Pages that changed since the parent.
    pub changed_pages: u64,
    /// Where bulk pages are, in the order they were read.
    pub packs: Vec<PackRef>,
    /// Pages in the entry itself.
    pub inline: PageSet,
}

impl Entry {
    /// The entry's only encoding. Fails if a value is past a limit or against a rule.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check_log_position().map_err(unencodable)?;
        self.check_bases().map_err(unencodable)?;
        let databases = sorted(&self.databases, MAX_DATABASES, |record| &record.name);
        let databases = databases.ok_or(unencodable("databases"))?;
        let folders = sorted(&self.folders, MAX_FOLDERS, |record| &record.name);
        let folders = folders.ok_or(unencodable("folders"))?;
        let mut out = Vec::new();
        out.extend_from_slice(&self.archive.0);
        out.extend_from_slice(&self.writer_id);
        out.extend_from_slice(&self.writer_epoch.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.parent_seq.to_le_bytes());
        out.extend_from_slice(&self.base_seq.to_le_bytes());
        out.push(self.level);
        out.extend_from_slice(&self.prev);
        out.extend_from_slice(&self.parent_digest);
        out.extend_from_slice(&self.taken_at_us.to_le_bytes());
        out.extend_from_slice(&self.digest_key);
        put_text(&mut out, &self.source_name, MAX_TEXT_LEN, "source name")?;
        put_text(&mut out, &self.app_id, MAX_TEXT_LEN, "application id")?;
        out.extend_from_slice(&(self.pins.len() as u16).to_le_bytes());
        self.pins.iter().for_each(|pin| out.extend_from_slice(&pin.to_le_bytes()));
        out.extend_from_slice(&(databases.len() as u16).to_le_bytes());
        for database in databases {
            database.check().map_err(unencodable)?;
            database.encode_into(&mut out)?;
        }
        out.extend_from_slice(&(folders.len() as u16).to_le_bytes());
        for folder in folders {
            folder.encode_into(&mut out)?;
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
            parent_seq: reader.u64("parent seq")?,
            base_seq: reader.u64("base seq")?,
            level: reader.u8("level")?,
            prev: reader.array("previous digest")?,
            parent_digest: reader.array("parent digest")?,
            taken_at_us: reader.u64("time")?.cast_signed(),
            digest_key: reader.array("digest key")?,
            source_name: reader.text(MAX_TEXT_LEN, "source name")?.to_owned(),
            app_id: reader.text(MAX_TEXT_LEN, "application id")?.to_owned(),
            pins: Vec::new(),
            databases: Vec::new(),
            folders: Vec::new(),
        };
        let pins = reader.u16_up_to(MAX_PINS, "pins")?;
        for _ in 0..pins {
            entry.pins.push(reader.u64("pins")?);
        }
        entry.check_log_position().map_err(malformed)?;
        let count = reader.u16_up_to(MAX_DATABASES, "databases")?;
        for _ in 0..count {
            let record = DatabaseRecord::decode(&mut reader)?;
            record.check().map_err(malformed)?;
            if entry.databases.last().is_some_and(|before| before.name >= record.name) {
                return Err(malformed("databases"));
            }
            entry.databases.push(record);
        }
        let count = reader.u16_up_to(MAX_FOLDERS, "folders")?;
        for _ in 0..count {
            let record = FolderRecord::decode(&mut reader)?;
            if entry.folders.last().is_some_and(|before| before.name >= record.name) {
                return Err(malformed("folders"));
            }
            entry.folders.push(record);
        }
        entry.check_bases().map_err(malformed)?;
        reader.finish("bytes after the entry")?;
        Ok(entry)
    }

    /// Every pack that the entry names: those of pages, those of lists of files, those of what is in the files.
    /// Sorted, each once.
    pub fn pack_names(&self) -> Vec<[u8; 16]> {
        let pages = self.databases.iter().flat_map(|database| &database.packs);
        let lists = self.folders.iter().flat_map(|folder| &folder.packs);
        let files = self.folders.iter().flat_map(|folder| folder.inline.packs());
        let mut names: Vec<_> = pages.chain(lists).map(|pack| pack.name).chain(files).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn check_log_position(&self) -> Result<(), &'static str> {
        if !(1..=MAX_COUNTER).contains(&self.seq) {
            return Err("seq");
        }
        if self.parent_seq >= self.seq {
            return Err("parent seq");
        }
        let base_fits = if self.parent_seq == 0 {
            self.base_seq == self.seq
        } else {
            (1..=self.parent_seq).contains(&self.base_seq)
        };
        if !base_fits {
            return Err("base seq");
        }
        if self.level > MAX_LEVEL {
            return Err("level");
        }
        if (self.seq == 1) != (self.prev == [0; 32]) {
            return Err("previous digest");
        }
        let next_to_each_other = self.parent_seq + 1 == self.seq && self.parent_seq > 0;
        if (self.parent_seq == 0) != (self.parent_digest == [0; 32])
            || next_to_each_other && self.parent_digest != self.prev
        {
            return Err("parent digest");
        }
        let known = self.pins.last().is_none_or(|last| *last <= self.seq) && self.pins.first() != Some(&0);
        if self.pins.len() > MAX_PINS || !known || !self.pins.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err("pins");
        }
        Ok(())
    }

    /// A base is one in everything it has.
    fn check_bases(&self) -> Result<(), &'static str> {
        let whole = |database: &DatabaseRecord| database.is_base || database.state == DatabaseState::Gone;
        if self.parent_seq > 0 {
            Ok(())
        } else if !self.databases.iter().all(whole) {
            Err("database flags")
        } else if !self.folders.iter().all(|folder| folder.is_base) {
            Err("folder flags")
        } else {
            Ok(())
        }
    }
}

/// The records by name, if each has a name of its own and there are not too many.
fn sorted<T>(records: &[T], limit: usize, name: impl Fn(&T) -> &String) -> Option<Vec<&T>> {
    let mut records: Vec<_> = records.iter().collect();
    records.sort_by(|a, b| name(a).cmp(name(b)));
    let unique = records.windows(2).all(|pair| name(pair[0]) != name(pair[1]));
    (records.len() <= limit && unique).then_some(records)
}

fn unencodable(what: &'static str) -> FormatError {
    FormatError::Unencodable { what }
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
        if self.is_base && self.inline.has_bases() {
            return Err("page operation");
        }
        if packs_fit(&self.packs) { Ok(()) } else { Err("packs") }
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
        encode_packs(&self.packs, out);
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

fn decode_inline(reader: &mut Reader<'_>) -> Result<PageSet, FormatError> {
    let len = reader.u32_up_to(MAX_PLAINTEXT_LEN, "inline pages")?;
    PageSet::decode(reader.bytes(len, "inline pages")?.to_vec())
}

/// A restore creates a file of this name: it must not lead anywhere else.
pub(crate) fn is_file_name(name: &str) -> bool {
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

    use crate::folder::fixtures::folder;
    use crate::pages::PageSet;

    fn record(name: &str) -> DatabaseRecord {
        let mut inline = PageSet::builder(512);
        inline.push(3, &[9; 512], None);
        inline.push(4, &[0; 512], None);
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
            packs: vec![PackRef { name: [1; 16], sealed_len: 9000, items: 2 }],
            inline: inline.finish(),
        }
    }

    fn entry() -> Entry {
        Entry {
            archive: ArchiveId([1; 16]),
            writer_id: [2; 16],
            writer_epoch: 3,
            seq: 4,
            parent_seq: 3,
            base_seq: 2,
            level: 1,
            prev: [5; 32],
            parent_digest: [5; 32],
            taken_at_us: -6,
            source_name: "Fennel ❦".to_owned(),
            app_id: "org.example.Fennel".to_owned(),
            digest_key: [7; 32],
            pins: vec![1, 3],
            databases: vec![record("a.db"), record("b.db")],
            folders: vec![folder("media"), folder("stickers")],
        }
    }

    #[test]
    fn an_entry_reads_back_sorted() {
        assert_eq!(Entry::decode(&entry().encode().unwrap()).unwrap(), entry());
        let mut shuffled = entry();
        shuffled.databases.reverse();
        shuffled.folders.reverse();
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
        check(|e| e.parent_seq = 4, "parent seq");
        check(|e| e.base_seq = 0, "base seq");
        check(|e| e.base_seq = 4, "base seq");
        check(|e| e.parent_seq = 0, "base seq");
        check(|e| e.level = MAX_LEVEL + 1, "level");
        check(|e| e.prev = [0; 32], "previous digest");
        check(|e| (e.seq, e.parent_seq, e.base_seq) = (1, 0, 1), "previous digest");
        check(|e| e.parent_digest = [6; 32], "parent digest");
        check(|e| e.parent_digest = [0; 32], "parent digest");
        check(|e| (e.parent_seq, e.base_seq) = (0, 4), "parent digest");
        check(|e| e.pins = vec![3, 3], "pins");
        check(|e| e.pins = vec![0, 3], "pins");
        check(|e| e.pins = vec![5], "pins");
        check(
            |e| {
                (e.parent_seq, e.base_seq, e.parent_digest) = (0, 4, [0; 32]);
                e.databases[1].is_base = false;
            },
            "database flags",
        );
        check(
            |e| {
                (e.parent_seq, e.base_seq, e.parent_digest) = (0, 4, [0; 32]);
                e.folders[0].is_base = false;
            },
            "folder flags",
        );
        check(|e| e.source_name = "x".repeat(MAX_TEXT_LEN + 1), "source name");
        check(|e| e.databases[1].name = "a.db".to_owned(), "databases");
        check(|e| e.folders[1].name = "media".to_owned(), "folders");
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
        check(
            |e| {
                let mut pages = PageSet::builder(512);
                pages.push(3, &[9; 512], Some(&[9; 512]));
                (e.databases[0].is_base, e.databases[0].inline) = (true, pages.finish());
            },
            "page operation",
        );
        check(|e| e.databases[0].packs[0].items = 0, "packs");
        check(|e| e.databases[0].packs[0].sealed_len = u64::MAX, "packs");
    }

    #[test]
    fn an_entry_may_build_on_an_older_one() {
        let mut entry = entry();
        (entry.parent_seq, entry.parent_digest) = (2, [6; 32]);
        entry.databases[0].is_base = false;
        assert_eq!(Entry::decode(&entry.encode().unwrap()).unwrap(), entry);
    }

    #[test]
    fn every_pack_that_is_named_is_found() {
        assert_eq!(entry().pack_names(), [[1; 16], [2; 16], [3; 16]]);
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
        /// What begins as an entry does, so that many get far.
        #[test]
        fn any_bytes_give_an_answer(
            at in any::<prop::sample::Index>(),
            rest in proptest::collection::vec(prop_oneof![4 => Just(0u8), 2 => 0u8..3, 1 => any::<u8>()], 0..300),
        ) {
            let entry = entry().encode().unwrap();
            let bytes = [&entry[..at.index(entry.len())], &rest].concat();
            if let Ok(entry) = Entry::decode(&bytes) {
                prop_assert_eq!(entry.encode().unwrap(), bytes);
            }
        }
    }
}
