//! Turns one capture into sealed objects in the spool: packs while pages arrive, the entry last.
//!
//! Pages are collected on the thread that reads the databases ([`Collector`]); packs are encoded, named, sealed and
//! written on two more ([`sealing`](crate::sealing)), so that both cores work during a first backup. A page may arrive
//! twice (a base is read while the app writes): the later image wins, because later packs beat earlier ones and the
//! inline pages of the entry beat all packs.

use std::io;
use std::sync::Arc;

use chatkeep_crypto::{DataRoots, seal};
use chatkeep_format::{
    ArchiveId, DatabaseKind, DatabaseRecord, DatabaseState, Entry, FolderRecord, ObjectName, PackRef,
    PageSet, entry_digest,
};
use chatkeep_sqlite::{Capture, Kind};
use rand_core::OsRng;

use crate::catalogue::{DatabaseFacts, Head, Point};
use crate::spool::{Spool, Spooled};

/// What does not change from capture to capture.
#[derive(Clone)]
pub struct Writer {
    /// The archive.
    pub archive: ArchiveId,
    /// Its keys.
    pub roots: Arc<DataRoots>,
    /// Where objects wait.
    pub spool: Spool,
    /// Shown to people, sealed.
    pub source_name: String,
    /// The app.
    pub app_id: String,
    /// zstd level.
    pub level: i32,
}

/// A capture that waits for its upload.
#[derive(Debug, Clone)]
pub struct Written {
    /// Where the writer stands now.
    pub head: Head,
    /// The recovery point, once all objects are in the store.
    pub point: Point,
    /// The objects, in upload order.
    pub objects: Vec<Spooled>,
}

/// One database as it was captured.
#[derive(Debug)]
pub struct Part {
    /// Its file name.
    pub name: String,
    /// What was read.
    pub capture: Capture,
    /// Its bulk pages, in order.
    pub packs: Vec<PackRef>,
    /// The pages that travel in the entry.
    pub inline: PageSet,
}

/// What an entry is made of.
pub struct Draft<'a> {
    /// Where the log stands.
    pub before: &'a Head,
    /// What the entry builds on; nothing for a base.
    pub parent: Option<&'a Point>,
    /// How long a span it stands for.
    pub level: u8,
    /// Databases that were captured.
    pub parts: Vec<Part>,
    /// Databases that are known and were not captured: they are as they were.
    pub unchanged: Vec<DatabaseFacts>,
    /// Folders of attachments.
    pub folders: Vec<FolderRecord>,
    /// Packs that lists of files in packs name.
    pub listed_packs: Vec<[u8; 16]>,
    /// Sealed packs, in upload order.
    pub objects: Vec<Spooled>,
    /// When it was captured, µs since 1970.
    pub taken_at_us: i64,
}

impl Writer {
    /// Seals the entry and writes it into the spool: from here on the point will reach the store.
    pub fn publish(&self, draft: Draft<'_>) -> io::Result<Written> {
        let Draft {
            before,
            parent,
            level,
            parts,
            unchanged,
            folders,
            listed_packs,
            mut objects,
            taken_at_us,
        } = draft;
        let seq = before.seq + 1;
        let captured = parts.into_iter().map(record);
        let databases: Vec<_> = captured.chain(unchanged.into_iter().map(DatabaseFacts::unchanged)).collect();
        let entry = Entry {
            archive: self.archive,
            writer_id: before.writer_id,
            writer_epoch: before.writer_epoch,
            seq,
            parent_seq: parent.map_or(0, |parent| parent.seq),
            base_seq: parent.map_or(seq, |parent| parent.base_seq),
            level,
            prev: before.digest,
            parent_digest: parent.map_or([0; 32], |parent| parent.digest),
            taken_at_us,
            source_name: self.source_name.clone(),
            app_id: self.app_id.clone(),
            digest_key: before.digest_key,
            pins: before.pins.clone(),
            databases,
            folders,
        };
        let body = entry.encode().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let sealed = seal(&self.archive, ObjectName::Entry(seq), &self.roots, &body, self.level, &mut OsRng);
        objects.push(self.spool.put_entry(seq, &sealed)?);
        let digest = entry_digest(&sealed);
        let mut point = Point::of(&entry, digest, 0);
        point.bytes = objects.iter().map(|object| object.len).sum();
        point.refer_to(listed_packs);
        let head = Head { seq, digest, base_seq: entry.base_seq, ..before.clone() };
        Ok(Written { head, point, objects })
    }
}

fn record(part: Part) -> DatabaseRecord {
    let capture = part.capture;
    DatabaseRecord {
        name: part.name,
        state: DatabaseState::Present,
        kind: match capture.kind {
            Kind::Plain => DatabaseKind::Plain,
            Kind::Opaque => DatabaseKind::Opaque,
        },
        is_base: capture.is_base,
        page_size: capture.page_size,
        page_count: capture.page_count,
        user_version: capture.user_version,
        application_id: capture.application_id,
        state_digest: capture.state_digest,
        changed_pages: u64::from(capture.pages),
        packs: part.packs,
        inline: part.inline,
    }
}
