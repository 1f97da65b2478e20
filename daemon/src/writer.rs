//! Turns one capture into sealed objects in the spool: packs while pages arrive, the entry last.
//!
//! Pages are collected on the thread that reads the database; packs are encoded, named, sealed and written on a second
//! one, so that both cores work during a first backup. A page may arrive twice (a base is read while the app writes):
//! the later image wins, because later packs beat earlier ones and the inline pages of the entry beat all packs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use chatkeep_crypto::{DataRoots, pack_name, seal};
use chatkeep_format::{
    ArchiveId, DatabaseKind, DatabaseRecord, DatabaseState, Entry, ObjectName, PackRef, PageOp, PageSet,
    entry_digest,
};
use chatkeep_sqlite::{Capture, Kind, PageSink};
use rand_core::OsRng;

use crate::catalogue::{Head, Point};
use crate::spool::{Spool, Spooled};

/// Target size of a pack before compression: 8 MiB, a compromise between requests and what a broken upload repeats.
const PACK_LEN: usize = 8 << 20;
/// Changes up to this many bytes travel inside the entry: one object, one `put`.
const INLINE_LEN: usize = 1 << 20;

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
    /// File name of the database.
    pub database_name: String,
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

/// Sealed packs in the order they were made, with what the entry says of them.
pub type Packs = Vec<(PackRef, Spooled)>;

/// Collects the pages of one capture. Use with [`Writer::collect`].
pub struct Collector {
    to_sealer: SyncSender<ToSealer>,
    pages: Option<chatkeep_format::PageSetBuilder>,
    page_size: u32,
    is_base: bool,
    done_bytes: Arc<AtomicU64>,
}

enum ToSealer {
    Pack(PageSet),
    Restart,
}

impl Writer {
    /// Runs `capture` with a collector, and seals packs beside it. Returns the capture, the packs (in order) and the
    /// pages that travel inline.
    pub fn collect<E: From<io::Error>>(
        &self,
        seq: u64,
        done_bytes: &Arc<AtomicU64>,
        capture: impl FnOnce(&mut Collector) -> Result<Capture, E>,
    ) -> Result<(Capture, Packs, PageSet), E> {
        let (to_sealer, from_collector) = sync_channel(1);
        let mut collector = Collector {
            to_sealer,
            pages: None,
            page_size: 0,
            is_base: false,
            done_bytes: done_bytes.clone(),
        };
        std::thread::scope(|scope| {
            let sealer = scope.spawn(move || self.seal_packs(seq, &from_collector));
            let captured = capture(&mut collector);
            let inline = match &captured {
                Ok(capture) => collector.finish(capture.page_count),
                Err(_) => Ok(PageSet::default()),
            };
            drop(collector);
            // What stopped the sealer stopped the capture, too: it is the cause.
            let packs = sealer.join().expect("the sealer does not panic")?;
            Ok((captured?, packs, inline?))
        })
    }

    fn seal_packs(&self, seq: u64, incoming: &Receiver<ToSealer>) -> io::Result<Packs> {
        let mut packs: Packs = Vec::new();
        let mut position = 0;
        while let Ok(message) = incoming.recv() {
            match message {
                ToSealer::Restart => {
                    packs.clear();
                    self.spool.drop_entry(seq);
                }
                ToSealer::Pack(pages) => {
                    let body = pages.encode();
                    let name = pack_name(&self.roots, &body);
                    // The same content twice in one capture is one object; the later place in the order counts.
                    if let Some(at) = packs.iter().position(|(pack, _)| pack.name == name) {
                        let known = packs.remove(at);
                        packs.push(known);
                        continue;
                    }
                    let object = ObjectName::Pack(name);
                    let sealed = seal(&self.archive, object, &self.roots, &body, self.level, &mut OsRng);
                    let spooled = self.spool.put_pack(seq, position, name, &sealed)?;
                    position += 1;
                    let pack = PackRef { name, sealed_len: sealed.len() as u64, pages: pages.len() as u32 };
                    packs.push((pack, spooled));
                }
            }
        }
        Ok(packs)
    }

    /// Seals the entry and writes it into the spool: from here on the point will reach the store.
    pub fn publish(
        &self,
        before: &Head,
        capture: &Capture,
        packs: Packs,
        inline: PageSet,
        now_us: i64,
    ) -> io::Result<Written> {
        let seq = before.seq + 1;
        let base_seq = if capture.is_base || before.base_seq == 0 { seq } else { before.base_seq };
        let (packs, mut objects): (Vec<_>, Vec<_>) = packs.into_iter().unzip();
        let record = DatabaseRecord {
            name: self.database_name.clone(),
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
            changed_pages: u64::from(capture.changed_pages),
            packs,
            inline,
        };
        let entry = Entry {
            archive: self.archive,
            writer_id: before.writer_id,
            writer_epoch: before.writer_epoch,
            seq,
            base_seq,
            prev: before.digest,
            taken_at_us: now_us,
            source_name: self.source_name.clone(),
            app_id: self.app_id.clone(),
            digest_key: before.digest_key,
            databases: vec![record],
        };
        let body = entry.encode().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let sealed = seal(&self.archive, ObjectName::Entry(seq), &self.roots, &body, self.level, &mut OsRng);
        objects.push(self.spool.put_entry(seq, &sealed)?);
        let bytes = objects.iter().map(|object| object.len).sum();
        Ok(Written {
            head: Head { seq, digest: entry_digest(&sealed), base_seq, ..before.clone() },
            point: Point { seq, base_seq, taken_at_us: now_us, bytes, verified_us: 0 },
            objects,
        })
    }
}

impl Collector {
    /// The last pages: inline when there are few, else one more pack. Inline there are none beyond `page_count`: the
    /// database may have shrunk while it was read.
    fn finish(&mut self, page_count: u32) -> io::Result<PageSet> {
        match self.pages.take() {
            None => Ok(PageSet::default()),
            Some(pages) if pages.byte_len() <= INLINE_LEN => Ok(within(pages.finish(), page_count)),
            Some(pages) => {
                self.send(ToSealer::Pack(pages.finish()))?;
                Ok(PageSet::default())
            }
        }
    }

    fn send(&self, message: ToSealer) -> io::Result<()> {
        self.to_sealer
            .send(message)
            .map_err(|_| io::Error::other("sealing stopped, see the error before this one"))
    }
}

fn within(pages: PageSet, page_count: u32) -> PageSet {
    if pages.iter().next_back().is_none_or(|(pgno, _)| pgno <= page_count) {
        return pages;
    }
    let mut kept = PageSet::builder(pages.page_size());
    for (pgno, op) in pages.iter().filter(|(pgno, _)| *pgno <= page_count) {
        match op {
            PageOp::Full(image) => kept.push(pgno, image),
            PageOp::Zero => kept.push_zero(pgno),
        }
    }
    kept.finish()
}

impl PageSink for Collector {
    fn begin(&mut self, page_size: u32, is_base: bool) -> io::Result<()> {
        (self.page_size, self.is_base, self.pages) = (page_size, is_base, None);
        Ok(())
    }

    fn page(&mut self, pgno: u32, image: &[u8]) -> io::Result<()> {
        let page_size = self.page_size;
        let pages = self.pages.get_or_insert_with(|| PageSet::builder(page_size));
        pages.push(pgno, image);
        self.done_bytes.fetch_add(image.len() as u64, Ordering::Relaxed);
        if pages.is_full() || pages.byte_len() >= PACK_LEN {
            let full = self.pages.take().expect("pages were just added");
            self.send(ToSealer::Pack(full.finish()))?;
        }
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.pages = None;
        self.send(ToSealer::Restart)
    }
}
