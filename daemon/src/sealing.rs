//! Seals packs beside the thread that reads: pages go in, packs in the spool come out, in the order they were sent.
//!
//! The threads begin with the first pack: a small capture, which travels in the entry, starts none.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use chatkeep_crypto::{pack_name, seal};
use chatkeep_format::{ObjectName, PackRef, PageSet, PageSetBuilder};
use chatkeep_sqlite::PageSink;
use rand_core::OsRng;

use crate::pack_pages::PackPages;
use crate::spool::{Holds, Spooled};
use crate::writer::Writer;

/// Target size of a pack before compression, 4 MiB: two being sealed, one being filled and what zstd needs stay below
/// the service's bound of 48 MiB; a broken upload repeats no more than this.
const PACK_LEN: usize = 4 << 20;
/// Pages whose images before are at hand are gathered up to this many bytes, 8 MiB: the more there are, the more of them
/// patches find in each other (docs/decisions/0012). They leave far less than a pack. Until then the thread that reads
/// has as much again for the images before, and 4 MiB for the patch maker.
const PATCHED_LEN: usize = 8 << 20;
/// Changes up to this many bytes travel inside the entry: one object, one `put`. A restore reads up to 60 entries.
const INLINE_LEN: usize = 2 << 20;
/// One for each core of a small machine.
const THREADS: usize = 2;

/// A body that waits to be sealed.
struct Job {
    at: At,
    body: Body,
}

enum Body {
    Pages(PageSet),
    /// Encoded already, with the number of things in it.
    Bytes(Vec<u8>, u32),
}

/// Which pack of which part. Those of an attempt that came to nothing are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct At {
    part: u32,
    attempt: u32,
    position: u32,
}

struct Sealed {
    at: At,
    pack: PackRef,
    spooled: Spooled,
}

type Threads<'scope> = Vec<ScopedJoinHandle<'scope, io::Result<Vec<Sealed>>>>;

/// The packs of one entry, while they are made. Begins with [`Writer::sealing`].
pub struct Sealing<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    shared: &'scope Shared<'env>,
    to_sealers: Option<SyncSender<Job>>,
    threads: Threads<'scope>,
    next_position: u32,
    /// By part: the attempt that counts.
    attempts: Vec<u32>,
}

struct Shared<'env> {
    writer: &'env Writer,
    seq: u64,
    jobs: Mutex<Option<Receiver<Job>>>,
    failed: AtomicBool,
}

/// Sealed packs of each part, in order, and all objects in upload order.
#[derive(Debug, Default)]
pub struct Packs {
    /// By part, in the order the parts were begun.
    pub parts: Vec<Vec<PackRef>>,
    /// In upload order.
    pub objects: Vec<Spooled>,
}

impl Writer {
    /// Runs `work`, which makes packs of entry `seq` (0: of an entry that is still to come, from `first_position` on).
    pub fn sealing<T>(
        &self,
        seq: u64,
        first_position: u32,
        work: impl FnOnce(&mut Sealing<'_, '_>) -> T,
    ) -> (T, io::Result<Packs>) {
        let shared = Shared { writer: self, seq, jobs: Mutex::new(None), failed: AtomicBool::new(false) };
        std::thread::scope(|scope| {
            let mut sealing = Sealing {
                scope,
                shared: &shared,
                to_sealers: None,
                threads: Vec::new(),
                next_position: first_position,
                attempts: Vec::new(),
            };
            let result = work(&mut sealing);
            (result, sealing.finish())
        })
    }
}

impl<'scope, 'env> Sealing<'scope, 'env> {
    /// Begins the next part: a database. Without `patches` all its pages are whole.
    pub fn collector<'a>(
        &'a mut self,
        done_bytes: &'a AtomicU64,
        patches: bool,
    ) -> Collector<'a, 'scope, 'env> {
        let part = self.begin_part();
        Collector {
            sealing: self,
            part,
            pages: None,
            page_size: 0,
            is_base: false,
            patches,
            patched_len: PATCHED_LEN,
            sent: Vec::new(),
            done_bytes,
        }
    }

    /// Begins a part without pages.
    pub fn begin_part(&mut self) -> u32 {
        self.attempts.push(0);
        self.attempts.len() as u32 - 1
    }

    /// Seals a body as it is. `items` is what its [`PackRef`] says.
    pub fn bytes(&mut self, part: u32, body: Vec<u8>, items: u32) -> io::Result<()> {
        self.send(part, Body::Bytes(body, items))
    }

    fn send(&mut self, part: u32, body: Body) -> io::Result<()> {
        let stopped = || io::Error::other("sealing stopped, see the error before this one");
        let attempt = self.attempts[part as usize];
        let at = At { part, attempt, position: self.next_position };
        self.next_position += 1;
        if self.to_sealers.is_none() {
            let (sender, receiver) = sync_channel(0);
            *self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
            self.to_sealers = Some(sender);
            let shared = self.shared;
            self.threads = (0..THREADS).map(|_| self.scope.spawn(move || shared.work())).collect();
        }
        if self.shared.failed.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        let sender = self.to_sealers.as_ref().expect("the threads were just started");
        sender.send(Job { at, body }).map_err(|_| stopped())
    }

    fn finish(mut self) -> io::Result<Packs> {
        drop(self.to_sealers.take());
        let mut sealed = Vec::new();
        let mut failed = None;
        for thread in self.threads {
            match thread.join().expect("sealing does not panic") {
                Ok(done) => sealed.extend(done),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        sealed.sort_by_key(|pack| pack.at);
        let mut packs = Packs { parts: vec![Vec::new(); self.attempts.len()], objects: Vec::new() };
        for Sealed { at, pack, spooled } in sealed {
            let part = &mut packs.parts[at.part as usize];
            if at.attempt != self.attempts[at.part as usize] {
                self.shared.writer.spool.remove(&[spooled])?;
                continue;
            }
            // The same content twice is one object; the later place in the order counts.
            if let Some(known) = part.iter().position(|known| known.name == pack.name) {
                part.remove(known);
            }
            part.push(pack);
            if packs.objects.iter().any(|known| known.name == spooled.name) {
                self.shared.writer.spool.remove(&[spooled])?;
            } else {
                packs.objects.push(spooled);
            }
        }
        Ok(packs)
    }
}

impl Shared<'_> {
    fn next(&self) -> Option<Job> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref()?.recv().ok()
    }

    fn work(&self) -> io::Result<Vec<Sealed>> {
        let mut done = Vec::new();
        while let Some(job) = self.next() {
            match self.seal(job) {
                Ok(sealed) => done.push(sealed),
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    // Whoever sends must not wait for us; the other thread sees the flag only after its job.
                    while self.next().is_some() {}
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    fn seal(&self, Job { at, body }: Job) -> io::Result<Sealed> {
        let writer = self.writer;
        let (body, items, holds) = match body {
            Body::Pages(pages) => {
                let items = pages.len() as u32;
                let holds = PackPages::of(&pages, self.seq).map_or(Holds::Other, Holds::Pages);
                (pages.into_encoding(), items, holds)
            }
            Body::Bytes(body, items) => (body, items, Holds::Other),
        };
        let name = pack_name(&writer.roots, &body);
        let object = ObjectName::Pack(name);
        let sealed = seal(&writer.archive, object, &writer.roots, &body, writer.level, &mut OsRng);
        drop(body);
        let spooled = writer.spool.put_pack(self.seq, at.position, name, &sealed)?;
        let pack = PackRef { name, sealed_len: sealed.len() as u64, items };
        Ok(Sealed { at, pack, spooled: Spooled { holds, ..spooled } })
    }
}

/// Collects the pages of one database.
pub struct Collector<'a, 'scope, 'env> {
    sealing: &'a mut Sealing<'scope, 'env>,
    part: u32,
    pages: Option<PageSetBuilder>,
    page_size: u32,
    /// It builds on nothing.
    is_base: bool,
    /// Images before are of use.
    patches: bool,
    /// Bytes of pages that make a set, where their images before are at hand.
    patched_len: usize,
    /// Pages in packs of this capture, by number. In a restore, what they were at the parent is no more when the next
    /// packs are read.
    sent: Vec<u64>,
    done_bytes: &'a AtomicU64,
}

impl Collector<'_, '_, '_> {
    /// Bytes of a page, and whether it is a base: as the one who gives pages said.
    pub fn shape(&self) -> (u32, bool) {
        (self.page_size, self.is_base)
    }

    /// Goes on with a database whose pages were begun with another collector.
    pub fn continue_as(&mut self, (page_size, is_base): (u32, bool)) {
        (self.page_size, self.is_base) = (page_size, is_base);
    }

    /// The last pages: inline when they are short, else one more pack. There are none beyond `page_count`: the database
    /// may have shrunk while it was read.
    pub fn finish(mut self, page_count: u32) -> io::Result<PageSet> {
        let Some(mut pages) = self.pages.take() else { return Ok(PageSet::default()) };
        pages.truncate(page_count);
        let pages = pages.finish();
        if pages.byte_len() <= INLINE_LEN {
            return Ok(pages);
        }
        self.sealing.send(self.part, Body::Pages(pages))?;
        Ok(PageSet::default())
    }

    /// All pages as packs, for an entry that is still to come.
    pub fn finish_packs(mut self) -> io::Result<()> {
        match self.pages.take() {
            None => Ok(()),
            Some(pages) => self.sealing.send(self.part, Body::Pages(pages.finish())),
        }
    }

    fn was_sent(&self, pgno: u32) -> bool {
        self.sent.get(pgno as usize / 64).is_some_and(|word| word & (1 << (pgno % 64)) != 0)
    }

    /// Makes the patches here and not where packs are sealed: only one set is in memory with its bases.
    fn send_full(&mut self) -> io::Result<()> {
        let full = self.pages.take().expect("pages were just added");
        let had_bases = full.bases_len() > 0;
        let full = full.finish();
        // Much is left to be sealed while the next set is gathered, so that one has to be smaller.
        if had_bases && full.byte_len() > PACK_LEN / 2 {
            self.patched_len = PACK_LEN;
        }
        for (pgno, _) in full.iter() {
            let word = pgno as usize / 64;
            if self.sent.len() <= word {
                self.sent.resize(word + 1, 0);
            }
            self.sent[word] |= 1 << (pgno % 64);
        }
        self.sealing.send(self.part, Body::Pages(full))
    }
}

impl PageSink for Collector<'_, '_, '_> {
    fn begin(&mut self, page_size: u32, is_base: bool) -> io::Result<()> {
        (self.page_size, self.is_base, self.pages) = (page_size, is_base, None);
        Ok(())
    }

    fn page(&mut self, pgno: u32, image: &[u8], base: Option<&[u8]>) -> io::Result<()> {
        let base = base.filter(|_| self.patches && !self.is_base && !self.was_sent(pgno));
        let page_size = self.page_size;
        let pages = self.pages.get_or_insert_with(|| PageSet::builder(page_size));
        pages.push(pgno, image, base);
        self.done_bytes.fetch_add(image.len() as u64, Ordering::Relaxed);
        let whole = pages.images_len().saturating_sub(pages.bases_len());
        if pages.is_full() || whole >= PACK_LEN || pages.images_len() >= self.patched_len {
            self.send_full()?;
        }
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.pages = None;
        self.sent.clear();
        self.sealing.attempts[self.part as usize] += 1;
        Ok(())
    }
}
