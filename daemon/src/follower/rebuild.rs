//! Making a pack again that the store has lost, from pages that did not change since.
//!
//! The name of a pack is a keyed hash of its plaintext: what has the name is what was lost, and nothing else has it.

use std::collections::VecDeque;
use std::io;

use chatkeep_crypto::{is_pack_name, open, seal};
use chatkeep_format::{ObjectName, PageSet};
use rand_core::OsRng;
use tracing::warn;

use super::members::Members;
use crate::pack_pages::PackPages;
use crate::spool::Spooled;
use crate::writer::Writer;

/// A pack that is missing or damaged in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostPack {
    /// Its name.
    pub name: [u8; 16],
    /// The pages that it held.
    pub pages: PackPages,
}

/// Packs to be made again, one between two looks: a capture waits for one at most.
#[derive(Default)]
pub(super) struct Rebuilding {
    waiting: VecDeque<LostPack>,
    made: Vec<Spooled>,
    lost: usize,
}

impl Rebuilding {
    pub(super) fn add(&mut self, packs: Vec<LostPack>) {
        for pack in packs {
            if !self.waiting.contains(&pack) {
                self.waiting.push_back(pack);
            }
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Makes the next one. What was made and how many could not be, when it was the last.
    pub(super) fn next(&mut self, members: &mut Members, writer: &Writer) -> Option<(Vec<Spooled>, usize)> {
        let pack = self.waiting.pop_front()?;
        match members.rebuild(&pack, writer) {
            Ok(Some(spooled)) => self.made.push(spooled),
            Ok(None) => self.lost += 1,
            Err(error) => {
                warn!(%error, "a pack cannot be made again now");
                self.lost += 1;
            }
        }
        self.waiting.is_empty().then(|| self.end())
    }

    /// Gives up what is left.
    pub(super) fn end(&mut self) -> (Vec<Spooled>, usize) {
        let lost = std::mem::take(&mut self.lost) + self.waiting.len();
        self.waiting.clear();
        (std::mem::take(&mut self.made), lost)
    }
}

impl Members {
    /// The pack, sealed and safe in the spool; nothing when one of its pages has changed. Which database it is of shows by
    /// its name: all are tried.
    fn rebuild(&mut self, pack: &LostPack, writer: &Writer) -> io::Result<Option<Spooled>> {
        for live in self.all.iter_mut().filter_map(|member| member.live.as_mut()) {
            if live.page_size() != pack.pages.page_size {
                continue;
            }
            let mut pages = PageSet::builder(pack.pages.page_size);
            let mut take = |pgno: u32, image: &[u8]| {
                let room = !pages.is_full();
                if room {
                    pages.push(pgno, image, None);
                }
                room
            };
            let read = live.read_unchanged(&mut pack.pages.pages(), pack.pages.seq, &mut take);
            if !read.map_err(io::Error::other)? {
                continue;
            }
            let body = pages.finish().into_encoding();
            if !is_pack_name(&writer.roots, &pack.name, &body) {
                continue;
            }
            let (object, roots) = (ObjectName::Pack(pack.name), &writer.roots);
            let sealed = seal(&writer.archive, object, roots, &body, writer.level, &mut OsRng);
            drop(body);
            open(&writer.archive, object, roots, &sealed).map_err(io::Error::other)?;
            return writer.spool.put_repair(pack.name, &sealed).map(Some);
        }
        Ok(None)
    }
}
