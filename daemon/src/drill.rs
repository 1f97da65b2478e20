//! What a rehearsal of a restore found: a small record with a date, authenticated under the archive's key.
//!
//! The record is kept in the cache and shown for months, so it must not be possible to write a better one into it: it has a
//! MAC (`chatkeep_crypto::drill_mac` says why a MAC is the right signature here), and one that is not right, or of another
//! archive, is not shown. That somebody deletes it cannot be helped, nor that somebody puts back an older one of the same
//! archive: its date says how old it is.
//!
//! ```text
//! 17  "chatkeep drill 1" ‖ 0     16  archive     4  key epoch
//!  8  seq of the point      8  time of the point, µs, signed     8  time of the rehearsal, µs     8  how long it took, µs
//!  4  databases   8  pages   8  bytes   4  objects   4  tables   8  rows   4  tables not counted
//!  1  integrity             1  length of the program's version, then the version
//! 32  MAC over all before it
//! ```

use chatkeep_crypto::{DataRoots, drill_mac};
use chatkeep_format::ArchiveId;
use chatkeep_ipc::Details;
use chatkeep_sqlite::Integrity;
use serde::{Deserialize, Serialize};
use zbus::zvariant::{OwnedValue, Value};

const MAGIC: &[u8; 17] = b"chatkeep drill 1\0";
const MAC_LEN: usize = 32;
/// Longest version of the program that is kept, in bytes.
const VERSION_LEN_MAX: usize = 64;

/// What SQLite said about the restored databases, the worst of them. Every page was proved by its digest in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It found nothing.
    Whole = 1,
    /// Encrypted by the app: there is nothing to ask.
    Opaque = 2,
    /// It could not check everything, because the app extends it.
    Inconclusive = 3,
    /// It finds the database damaged: that is how the app had it.
    Complaints = 4,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Whole, Self::Opaque, Self::Inconclusive, Self::Complaints];

    /// Of one database.
    pub fn of(integrity: &Integrity) -> Self {
        match integrity {
            Integrity::Ok => Self::Whole,
            Integrity::Opaque => Self::Opaque,
            Integrity::Inconclusive(_) => Self::Inconclusive,
            Integrity::Complaints(_) => Self::Complaints,
        }
    }

    /// The word on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Opaque => "opaque",
            Self::Inconclusive => "inconclusive",
            Self::Complaints => "complaints",
        }
    }
}

/// One rehearsal that went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillRecord {
    /// Of which archive.
    pub archive: ArchiveId,
    /// Which point was restored.
    pub seq: u64,
    /// When it was captured, µs since 1970.
    pub taken_at_us: i64,
    /// When it was restored, µs since 1970.
    pub drilled_us: u64,
    /// How long that took, in µs.
    pub duration_us: u64,
    /// Databases in it.
    pub databases: u32,
    /// Their pages, each proved by its digest.
    pub pages: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// Objects that were read.
    pub objects: u32,
    /// Tables whose rows were counted.
    pub tables: u32,
    /// Rows in them.
    pub rows: u64,
    /// Tables that SQLite cannot count without the app.
    pub uncounted: u32,
    /// What SQLite said.
    pub verdict: Verdict,
    /// The program that did it.
    pub version: String,
}

/// What the cache has of rehearsals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drills {
    /// The last good one of what was then the newest point, sealed.
    pub newest: Vec<u8>,
    /// The last good one of an older point, sealed.
    pub older: Vec<u8>,
    /// The last one that went wrong, if no good one of that kind came after it.
    pub failure: Option<DrillFailure>,
}

/// A rehearsal that went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillFailure {
    /// Which point was to be restored.
    pub seq: u64,
    /// It was not the newest one.
    pub older: bool,
    /// When, µs since 1970.
    pub at_us: u64,
    /// Short name of the error.
    pub error: String,
    /// The same in words.
    pub text: String,
}

/// What is shown of rehearsals: only what was proved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProvedDrills {
    /// The last good one of what was then the newest point.
    pub newest: Option<DrillRecord>,
    /// The last good one of an older point.
    pub older: Option<DrillRecord>,
    /// The last one that went wrong.
    pub failure: Option<DrillFailure>,
}

impl Drills {
    /// What of it is authentic.
    pub fn prove(&self, archive: &ArchiveId, roots: &DataRoots) -> ProvedDrills {
        let open = |sealed: &[u8]| DrillRecord::open(sealed, archive, roots);
        ProvedDrills { newest: open(&self.newest), older: open(&self.older), failure: self.failure.clone() }
    }
}

impl ProvedDrills {
    /// As it goes over D-Bus (docs/dbus.md, "Rehearsals").
    pub fn details(&self) -> Details {
        let mut details: Vec<(&str, Value<'_>)> = Vec::new();
        if let Some(record) = &self.newest {
            let time = u64::try_from(record.taken_at_us).unwrap_or(0);
            details.extend([
                ("point", Value::from(record.seq.to_string())),
                ("point-time", time.into()),
                ("time", record.drilled_us.into()),
                ("duration", record.duration_us.into()),
                ("databases", record.databases.into()),
                ("pages", record.pages.into()),
                ("bytes", record.bytes.into()),
                ("objects", record.objects.into()),
                ("tables", record.tables.into()),
                ("rows", record.rows.into()),
                ("uncounted-tables", record.uncounted.into()),
                ("verdict", record.verdict.as_str().into()),
                ("version", record.version.as_str().into()),
            ]);
        }
        if let Some(record) = &self.older {
            details.extend([
                ("older-point", Value::from(record.seq.to_string())),
                ("older-time", record.drilled_us.into()),
                ("older-verdict", record.verdict.as_str().into()),
            ]);
        }
        if let Some(failure) = &self.failure {
            details.extend([
                ("failed-point", Value::from(failure.seq.to_string())),
                ("failed-time", failure.at_us.into()),
                ("failed-error", failure.error.as_str().into()),
                ("failed-message", failure.text.as_str().into()),
            ]);
        }
        let owned = |(name, value): (&str, Value<'_>)| {
            OwnedValue::try_from(value).ok().map(|value| (name.to_owned(), value))
        };
        details.into_iter().filter_map(owned).collect()
    }
}

impl DrillRecord {
    /// The record with its MAC, under the newest key epoch.
    pub fn seal(&self, roots: &DataRoots) -> Vec<u8> {
        let key_epoch = roots.current_epoch();
        let mut out = self.encode(key_epoch);
        let mac = drill_mac(roots, key_epoch, &out).expect("the roots have their newest epoch");
        out.extend_from_slice(&mac);
        out
    }

    /// Reads a record; nothing for what is not authentic, or not about this archive.
    pub fn open(sealed: &[u8], archive: &ArchiveId, roots: &DataRoots) -> Option<Self> {
        let (body, mac) = sealed.split_last_chunk::<MAC_LEN>()?;
        let (record, key_epoch) = Self::decode(body)?;
        let expected = drill_mac(roots, key_epoch, body)?;
        // In constant time, as `blake3::Hash` compares.
        (blake3::Hash::from(expected) == blake3::Hash::from(*mac) && record.archive == *archive)
            .then_some(record)
    }

    fn encode(&self, key_epoch: u32) -> Vec<u8> {
        let mut version = self.version.as_bytes();
        version = &version[..version.len().min(VERSION_LEN_MAX)];
        [
            &MAGIC[..],
            &self.archive.0,
            &key_epoch.to_le_bytes(),
            &self.seq.to_le_bytes(),
            &self.taken_at_us.to_le_bytes(),
            &self.drilled_us.to_le_bytes(),
            &self.duration_us.to_le_bytes(),
            &self.databases.to_le_bytes(),
            &self.pages.to_le_bytes(),
            &self.bytes.to_le_bytes(),
            &self.objects.to_le_bytes(),
            &self.tables.to_le_bytes(),
            &self.rows.to_le_bytes(),
            &self.uncounted.to_le_bytes(),
            &[self.verdict as u8, version.len() as u8],
            version,
        ]
        .concat()
    }

    fn decode(body: &[u8]) -> Option<(Self, u32)> {
        let mut reader = Reader(body.strip_prefix(MAGIC)?);
        let archive = ArchiveId(reader.array()?);
        let key_epoch = u32::from_le_bytes(reader.array()?);
        let seq = u64::from_le_bytes(reader.array()?);
        let taken_at_us = i64::from_le_bytes(reader.array()?);
        let drilled_us = u64::from_le_bytes(reader.array()?);
        let duration_us = u64::from_le_bytes(reader.array()?);
        let databases = u32::from_le_bytes(reader.array()?);
        let pages = u64::from_le_bytes(reader.array()?);
        let bytes = u64::from_le_bytes(reader.array()?);
        let objects = u32::from_le_bytes(reader.array()?);
        let tables = u32::from_le_bytes(reader.array()?);
        let rows = u64::from_le_bytes(reader.array()?);
        let uncounted = u32::from_le_bytes(reader.array()?);
        let [verdict, version_len] = reader.array()?;
        let verdict = Verdict::ALL.into_iter().find(|known| *known as u8 == verdict)?;
        let version = std::str::from_utf8(reader.0).ok()?.to_owned();
        let record = Self {
            archive,
            seq,
            taken_at_us,
            drilled_us,
            duration_us,
            databases,
            pages,
            bytes,
            objects,
            tables,
            rows,
            uncounted,
            verdict,
            version,
        };
        (record.version.len() == usize::from(version_len)).then_some((record, key_epoch))
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }
}

/// The older point that is rehearsed next: the newest one before the last that was, and the newest of all when there is none.
/// `points` are those that should restore, without the newest.
pub fn next_older(points: &[u64], last: Option<u64>) -> Option<u64> {
    let before = points.iter().filter(|seq| last.is_some_and(|last| **seq < last)).max();
    before.or(points.iter().max()).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rand_core::OsRng;

    use super::*;

    const ARCHIVE: ArchiveId = ArchiveId([8; 16]);

    fn record() -> DrillRecord {
        DrillRecord {
            archive: ARCHIVE,
            seq: 77,
            taken_at_us: -5,
            drilled_us: 1_795_509_000_000_000,
            duration_us: 12_000_000,
            databases: 1,
            pages: 500_000,
            bytes: 2_048_000_000,
            objects: 511,
            tables: 12,
            rows: 3_306_000,
            uncounted: 1,
            verdict: Verdict::Inconclusive,
            version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn a_record_reads_back_also_after_a_rotation() {
        let mut roots = DataRoots::new(&mut OsRng);
        let sealed = record().seal(&roots);
        assert_eq!(DrillRecord::open(&sealed, &ARCHIVE, &roots), Some(record()));
        roots.add_epoch(&mut OsRng);
        assert_eq!(DrillRecord::open(&sealed, &ARCHIVE, &roots), Some(record()));
    }

    #[test]
    fn a_record_with_any_byte_changed_cut_or_added_is_nothing() {
        let roots = DataRoots::new(&mut OsRng);
        let sealed = record().seal(&roots);
        for at in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[at] ^= 1;
            assert_eq!(DrillRecord::open(&forged, &ARCHIVE, &roots), None, "byte {at}");
            assert_eq!(DrillRecord::open(&sealed[..at], &ARCHIVE, &roots), None, "{at} bytes");
        }
        assert_eq!(DrillRecord::open(&[&sealed[..], &[0]].concat(), &ARCHIVE, &roots), None);
    }

    #[test]
    fn a_record_of_another_archive_or_key_is_nothing() {
        let roots = DataRoots::new(&mut OsRng);
        let sealed = record().seal(&roots);
        assert_eq!(DrillRecord::open(&sealed, &ArchiveId([9; 16]), &roots), None);
        assert_eq!(DrillRecord::open(&sealed, &ARCHIVE, &DataRoots::new(&mut OsRng)), None);
    }

    #[test]
    fn older_points_take_turns() {
        assert_eq!(next_older(&[], Some(3)), None);
        assert_eq!(next_older(&[4, 2, 9], None), Some(9));
        assert_eq!(next_older(&[4, 2, 9], Some(9)), Some(4));
        assert_eq!(next_older(&[4, 2, 9], Some(4)), Some(2));
        assert_eq!(next_older(&[4, 2, 9], Some(2)), Some(9));
        assert_eq!(next_older(&[4, 2, 9], Some(1)), Some(9));
    }
}
