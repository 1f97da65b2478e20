//! A store of captures in memory: entries along their parents, as docs/format.md has them, restored with the real writer.
//!
//! Pages are kept as patches where the image at the parent came along, so a base that is not the parent's shows twice:
//! it is compared when it comes, and the restore has another digest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;

use chatkeep_format::{PatchMaker, apply_patch};
use chatkeep_sqlite::{
    Capture, CaptureError, Collection, Existing, Integrity, LiveDatabase, PageSink, RestoreError,
    RestoreWriter,
};

/// Key of all page digests.
pub const DIGEST_KEY: [u8; 32] = [42; 32];

/// What an entry says of a page.
#[derive(Clone)]
enum Op {
    Whole(Vec<u8>),
    /// Of what it is at the parent.
    Patch(Vec<u8>),
}

type Pages = BTreeMap<u32, Op>;

/// One entry.
struct Entry {
    capture: Capture,
    pages: Pages,
    /// What a restore of it holds, once it was checked.
    newest_commit: Option<u64>,
}

/// The entries that can still be restored, and the pages of the one that is being made.
#[derive(Default)]
pub struct Replica {
    entries: BTreeMap<u64, Entry>,
    /// What comes now is built on it.
    parent: u64,
    making: Pages,
    /// Pages that were collected for it before.
    collected: Pages,
    is_base: bool,
    page_size: u32,
}

/// Pages that are collected between captures, for one that is to come.
pub struct Collecting {
    /// What was read so far.
    pub collection: Collection,
    /// All of it.
    pub finished: bool,
    page_size: u32,
    pages: Pages,
}

/// One slice of them.
struct Slice<'a> {
    collecting: &'a mut Collecting,
    replica: &'a Replica,
    parent: u64,
}

impl PageSink for Slice<'_> {
    fn begin(&mut self, page_size: u32, _is_base: bool) -> io::Result<()> {
        self.collecting.page_size = page_size;
        Ok(())
    }

    fn page(&mut self, pgno: u32, image: &[u8], base: Option<&[u8]>) -> io::Result<()> {
        let op = self.replica.op(self.parent, self.collecting.page_size, (pgno, image), base)?;
        self.collecting.pages.insert(pgno, op);
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        Err(io::Error::other("a collection is never begun again"))
    }
}

impl Collecting {
    /// For a capture that will be built on `parent`.
    pub fn new(parent: u64) -> Collecting {
        Collecting { collection: Collection::new(parent), finished: false, page_size: 0, pages: Pages::new() }
    }

    /// The entry it is for.
    pub fn parent(&self) -> u64 {
        self.collection.parent()
    }

    /// Reads at most so many bytes.
    pub fn read_slice(
        &mut self,
        live: &mut LiveDatabase,
        bytes: u64,
        replica: &Replica,
    ) -> Result<(), CaptureError> {
        let mut collection = self.collection.clone();
        let parent = self.parent();
        let mut slice = Slice { collecting: self, replica, parent };
        let finished = live.collect(&mut collection, bytes, &mut slice)?;
        (self.collection, self.finished) = (collection, finished);
        Ok(())
    }
}

impl PageSink for Replica {
    fn begin(&mut self, page_size: u32, is_base: bool) -> io::Result<()> {
        if !self.making.is_empty() {
            return Err(io::Error::other("pages begin again without a restart"));
        }
        (self.page_size, self.is_base) = (page_size, is_base);
        Ok(())
    }

    fn page(&mut self, pgno: u32, image: &[u8], base: Option<&[u8]>) -> io::Result<()> {
        if self.is_base && base.is_some() {
            return Err(io::Error::other("a base builds on nothing"));
        }
        // A patch is of the page at the parent, so a page that came before comes whole.
        let again = self.collected.contains_key(&pgno) || self.making.contains_key(&pgno);
        let op = self.op(self.parent, self.page_size, (pgno, image), base)?;
        self.making.insert(pgno, if again { Op::Whole(image.to_vec()) } else { op });
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.making.clear();
        Ok(())
    }
}

impl Replica {
    /// What comes next is built on `parent`.
    pub fn begin_entry(&mut self, parent: u64) {
        self.parent = parent;
        self.making.clear();
        self.collected.clear();
    }

    /// Pages that were collected for it before the capture.
    pub fn take_collected(&mut self, collecting: &Collecting) {
        self.collected = collecting.pages.clone();
    }

    /// How a page is kept that came for an entry built on `parent`.
    fn op(
        &self,
        parent: u64,
        page_size: u32,
        (pgno, image): (u32, &[u8]),
        base: Option<&[u8]>,
    ) -> io::Result<Op> {
        if image.len() != page_size as usize || pgno == 0 {
            return Err(io::Error::other(format!("page {pgno} has {} bytes", image.len())));
        }
        let mut patch = Vec::new();
        match base {
            Some(base) if self.image_at(parent, pgno).as_deref() != Some(base) => {
                Err(io::Error::other(format!("page {pgno} was something else at the parent")))
            }
            Some(base) if PatchMaker::new(base).make_patch(0, image, &mut patch) => Ok(Op::Patch(patch)),
            _ => Ok(Op::Whole(image.to_vec())),
        }
    }

    /// Keeps what came as entry `seq`.
    pub fn keep(&mut self, seq: u64, capture: &Capture) -> Result<(), String> {
        if self.is_base != capture.is_base {
            return Err("the sink was told something else than the caller".to_owned());
        }
        let mut pages = std::mem::take(&mut self.collected);
        pages.append(&mut self.making);
        pages.retain(|pgno, _| *pgno <= capture.page_count);
        // A pass over the file gives pages that turn out to be what they were.
        let more = capture.gap.is_some() && pages.len() > capture.pages as usize;
        if pages.len() != capture.pages as usize && !more {
            return Err(format!("{} pages came, {} are said to be in it", pages.len(), capture.pages));
        }
        if capture.parent != 0 && !self.entries.contains_key(&capture.parent) {
            return Err(format!("built on entry {}, which there is not", capture.parent));
        }
        self.entries.insert(seq, Entry { capture: capture.clone(), pages, newest_commit: None });
        Ok(())
    }

    /// Forgets all entries but these and what they build on.
    pub fn forget_all_but(&mut self, points: &[u64]) {
        let needed: BTreeSet<u64> = points.iter().flat_map(|seq| self.chain(*seq)).collect();
        self.entries.retain(|seq, _| needed.contains(seq));
    }

    /// All entries that are left, oldest first.
    pub fn points(&self) -> Vec<u64> {
        self.entries.keys().copied().collect()
    }

    /// The entries that a restore of `seq` reads, newest first.
    pub fn chain(&self, seq: u64) -> Vec<u64> {
        let mut chain = Vec::new();
        let mut next = seq;
        while let Some(entry) = self.entries.get(&next) {
            chain.push(next);
            next = entry.capture.parent;
        }
        chain
    }

    fn image_at(&self, seq: u64, pgno: u32) -> Option<Vec<u8>> {
        if pgno > self.entries.get(&seq)?.capture.page_count {
            return None;
        }
        let mut patches = Vec::new();
        for seq in self.chain(seq) {
            match self.entries[&seq].pages.get(&pgno) {
                None => {}
                Some(Op::Patch(patch)) => patches.push(patch),
                Some(Op::Whole(image)) => {
                    let mut image = image.clone();
                    for patch in patches.into_iter().rev() {
                        let base = image.clone();
                        apply_patch(&base, 0, patch, &mut image).ok()?;
                    }
                    return Some(image);
                }
            }
        }
        None
    }

    /// Restores entry `seq` as `name` in `directory`: its chain, oldest first.
    pub fn restore(&self, seq: u64, directory: &Path, name: &str) -> Result<Integrity, RestoreError> {
        let Capture { page_size, page_count, kind, state_digest, .. } = self.entries[&seq].capture;
        let folder = File::open(directory).map_err(|source| RestoreError::Io { doing: "opening", source })?;
        let mut writer = RestoreWriter::create(folder.into(), name, page_size, page_count, DIGEST_KEY)?;
        for seq in self.chain(seq).into_iter().rev() {
            for (pgno, op) in &self.entries[&seq].pages {
                match op {
                    Op::Whole(image) => writer.write_page(*pgno, image)?,
                    Op::Patch(patch) => {
                        let (mut base, mut image) =
                            (vec![0; page_size as usize], vec![0; page_size as usize]);
                        let known = *pgno > page_count || writer.read_page(*pgno, &mut base)?;
                        if known && apply_patch(&base, 0, patch, &mut image).is_ok() {
                            writer.write_page(*pgno, &image)?;
                        } else if *pgno <= page_count {
                            let reason = format!("page {pgno} cannot be made from what it was");
                            return Err(RestoreError::Invalid { reason });
                        }
                    }
                }
            }
        }
        Ok(writer.finish(state_digest, kind, Existing::Refuse, "test")?.integrity)
    }

    /// Whether `commit` is what a restore of `seq` gave before; takes note of it the first time.
    pub fn holds(&mut self, seq: u64, commit: u64) -> bool {
        let known = self.entries.get_mut(&seq).map(|entry| entry.newest_commit.get_or_insert(commit));
        known.is_none_or(|known| *known == commit)
    }
}
