//! Reading ahead for an entry that stands for a long span, or for everything, between captures.
//!
//! Such an entry has many pages, and a capture must not wait for them. So the pages that do not change are read in
//! slices beforehand, each checked against the table of page digests, and sealed into packs in the spool; the capture
//! that makes the entry adds what changed meanwhile. Until then ordinary entries are made. What was read ahead is lost
//! with the process, and begun again.

use std::io;
use std::sync::atomic::AtomicU64;

use chatkeep_format::PackRef;
use chatkeep_planner::EntryPlan;
use chatkeep_sqlite::Collection;
use tracing::{debug, warn};

use super::members::Members;
use crate::spool::Spooled;
use crate::writer::Writer;

/// Bytes read in one slice, some ten milliseconds of work: one set of patches, or two packs.
const SLICE_LEN: u64 = 8 << 20;
/// A span of up to so many bytes is read in the capture itself.
const DIRECT_LEN: u64 = 8 << 20;

/// What was read ahead.
#[derive(Default)]
pub(super) struct Ahead {
    begun: Option<Begun>,
}

struct Begun {
    plan: EntryPlan,
    /// By member.
    parts: Vec<ReadAhead>,
    next_position: u32,
    objects: Vec<Spooled>,
}

/// What was read ahead of one database.
struct ReadAhead {
    collection: Collection,
    /// Bytes of a page, and whether it is a base.
    shape: (u32, bool),
    packs: Vec<PackRef>,
    /// Images before are of use: not those of an encrypted database, where nothing repeats.
    patches: bool,
    finished: bool,
}

/// What was read ahead, as a capture takes it.
pub(super) struct Taken {
    /// By member.
    pub(super) parts: Vec<(Collection, Vec<PackRef>)>,
    pub(super) objects: Vec<Spooled>,
}

impl Ahead {
    /// Whether there is something left to read.
    pub(super) fn has_work(&self) -> bool {
        self.begun.as_ref().is_some_and(|begun| begun.parts.iter().any(|part| !part.finished))
    }

    /// Whether the plan can be carried out now; if not, begins to read ahead for it. `is_opaque` tells by name which
    /// databases are encrypted.
    pub(super) fn is_ready(
        &mut self,
        plan: EntryPlan,
        members: &Members,
        writer: &Writer,
        is_opaque: impl Fn(&str) -> bool,
    ) -> bool {
        let same = self.begun.as_ref().is_some_and(|begun| begun.plan == plan);
        if same {
            return !self.has_work();
        }
        self.drop_all(writer);
        let bytes: Result<u64, _> = members.live().map(|live| live.span_bytes(plan.parent_seq)).sum();
        // What cannot be asked for now cannot be captured like this either.
        let Ok(bytes) = bytes else { return false };
        if bytes <= DIRECT_LEN {
            return true;
        }
        debug!(
            level = plan.level.number(),
            parent = plan.parent_seq,
            bytes,
            "reading ahead for a long entry"
        );
        let parts = members.all.iter().map(|member| ReadAhead {
            collection: Collection::new(plan.parent_seq),
            shape: (0, false),
            packs: Vec::new(),
            patches: !is_opaque(&member.name),
            finished: member.live.is_none(),
        });
        self.begun = Some(Begun { plan, parts: parts.collect(), next_position: 0, objects: Vec::new() });
        false
    }

    /// Reads one slice. What goes wrong ends it: the next capture asks again.
    pub(super) fn read_slice(&mut self, members: &mut Members, writer: &Writer) {
        let Some(begun) = &mut self.begun else { return };
        if let Err(error) = begun.read_slice(members, writer) {
            warn!(%error, "what was read ahead is dropped");
            self.drop_all(writer);
        }
    }

    /// What was read ahead for this plan.
    pub(super) fn take(&mut self, plan: EntryPlan) -> Option<Taken> {
        if self.begun.as_ref()?.plan != plan {
            return None;
        }
        let begun = self.begun.take()?;
        let parts = begun.parts.into_iter().map(|part| (part.collection, part.packs)).collect();
        Some(Taken { parts, objects: begun.objects })
    }

    /// Drops it, with its packs.
    pub(super) fn drop_all(&mut self, writer: &Writer) {
        if let Some(begun) = self.begun.take() {
            drop_objects(&begun.objects, writer);
        }
    }
}

impl Taken {
    /// The capture came to nothing.
    pub(super) fn drop_all(&self, writer: &Writer) {
        drop_objects(&self.objects, writer);
    }
}

fn drop_objects(objects: &[Spooled], writer: &Writer) {
    if let Err(error) = writer.spool.remove(objects) {
        warn!(%error, "packs that are not needed cannot be removed");
    }
}

impl Begun {
    fn read_slice(&mut self, members: &mut Members, writer: &Writer) -> io::Result<()> {
        let Some(at) = self.parts.iter().position(|part| !part.finished) else { return Ok(()) };
        let part = &mut self.parts[at];
        let Some(live) = &mut members.all[at].live else {
            return Err(io::Error::other("the database went away meanwhile"));
        };
        let done_bytes = AtomicU64::new(0);
        let (read, packs) = writer.sealing(0, self.next_position, |sealing| {
            let mut collector = sealing.collector(&done_bytes, part.patches);
            collector.continue_as(part.shape);
            let read = live.collect(&mut part.collection, SLICE_LEN, &mut collector);
            part.shape = collector.shape();
            collector.finish_packs()?;
            read.map_err(io::Error::other)
        });
        let packs = packs?;
        self.next_position += 2;
        part.packs.extend(packs.parts.into_iter().flatten());
        self.objects.extend(packs.objects);
        part.finished = read?;
        Ok(())
    }
}
