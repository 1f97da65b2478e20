//! One capture: all databases of the source into one entry, and then its attachments.

use std::sync::atomic::Ordering;

use chatkeep_planner::{ChainLink, EntryPlan, Level, LevelPolicy, plan_entry};
use chatkeep_sqlite::{Build, Capture, GapReason};
use tracing::{debug, warn};

use super::ahead::{Ahead, Taken};
use super::media::{Media, MediaDraft};
use super::members::Members;
use super::{CaptureOrder, Captured};
use crate::catalogue::Point;
use crate::fault::{Fault, Result};
use crate::sealing::Packs;
use crate::writer::{Draft, Part, Written};

/// Behind the positions of all packs of pages.
const MEDIA_POSITION: u32 = 50_000_000;

/// What the databases gave.
struct Gathered {
    parts: Vec<Part>,
    packs: Packs,
    gap: Option<&'static str>,
    /// Nothing differs from the entry before.
    unchanged: bool,
    gone: bool,
}

impl Members {
    /// Captures, seals, spools; the tables follow once the entry is on the disk.
    pub(super) fn capture(
        &mut self,
        order: &CaptureOrder,
        ahead: &mut Ahead,
        media: &mut Media,
    ) -> Result<Captured> {
        // Everything committed before this moment is in the capture; what is committed meanwhile may be.
        let now_us = order.clock.now_us() as i64;
        let (plan, ordinary) = self.plan(order, ahead, now_us);
        let taken = ahead.take(plan);
        let captured = self.capture_as(order, plan, taken.as_ref(), media, now_us);
        if let Some(taken) = &taken
            && !matches!(&captured, Ok(Captured { written: Some(_), .. }))
        {
            taken.drop_all(&order.writer);
        }
        let captured = match captured {
            // An app that writes faster than old pages can be read: the long entry has time, the capture has not.
            Err(fault) if plan != ordinary && !order.cancelled.load(Ordering::Relaxed) => {
                debug!(level = plan.level.number(), error = %fault.error.text(), "an ordinary entry instead");
                self.capture_as(order, ordinary, None, media, order.clock.now_us() as i64)
            }
            captured => captured,
        };
        let more = media.captured();
        captured.map(|captured| Captured { more, ..captured })
    }

    /// What the next entry is: what is due, if it can be made without delay, else an ordinary one; and the ordinary one.
    fn plan(&self, order: &CaptureOrder, ahead: &mut Ahead, now_us: i64) -> (EntryPlan, EntryPlan) {
        let links: Vec<ChainLink> = order.chain.iter().map(Point::link).collect();
        let plan = plan_entry(&links, now_us, LevelPolicy::default());
        let ordinary = EntryPlan::at_level(&links, Level::Entry);
        // A base has all databases, or it would lose one.
        let whole = plan.level < Level::Base || self.absent(order).is_empty();
        let short = plan.parent_seq == ordinary.parent_seq;
        let opaque = |name: &str| is_opaque(order, name);
        let ready = short || whole && ahead.is_ready(plan, self, &order.writer, opaque);
        (if ready { plan } else { ordinary }, ordinary)
    }

    /// Databases that the newest entry has and that are not there now.
    fn absent(&self, order: &CaptureOrder) -> Vec<crate::catalogue::DatabaseFacts> {
        let known = order.chain.first().map(|point| point.databases.clone()).unwrap_or_default();
        let there = |name: &str| self.all.iter().any(|member| member.name == name && member.live.is_some());
        known.into_iter().filter(|facts| !there(&facts.name)).collect()
    }

    fn capture_as(
        &mut self,
        order: &CaptureOrder,
        plan: EntryPlan,
        taken: Option<&Taken>,
        media: &mut Media,
        now_us: i64,
    ) -> Result<Captured> {
        let seq = order.before.seq + 1;
        let gathered = match self.gather(order, plan, taken) {
            Ok(gathered) => gathered,
            Err(fault) => {
                self.abort();
                order.writer.spool.drop_entry(seq);
                return Err(fault);
            }
        };
        let Gathered { parts, packs, gap, unchanged, gone } = gathered;
        if !gone {
            media.catch_up(&order.writer);
        }
        if (unchanged && !media.has_news() && !order.even_if_unchanged) || gone {
            order.writer.spool.drop_entry(seq);
            self.commit(order.before.seq, &order.chain)?;
            return Ok(Captured { written: None, gap, gone, more: false });
        }
        match self.publish(order, plan, taken, media, (parts, packs), now_us) {
            Ok((written, draft)) => {
                media.commit(&written, &draft);
                let mut chain = order.chain.clone();
                chain.retain(|point| point.seq <= written.point.parent_seq);
                chain.insert(0, written.point.clone());
                if let Err(error) = self.commit(seq, &chain) {
                    // The entry is safe; a table that is behind is no use.
                    warn!(%error, "the page table could not be written");
                    self.forget();
                }
                self.wrote(&written);
                Ok(Captured { written: Some(written), gap, gone, more: false })
            }
            Err(error) => {
                self.abort();
                media.abort(&order.writer);
                order.writer.spool.drop_entry(seq);
                Err(error.into())
            }
        }
    }

    fn gather(&mut self, order: &CaptureOrder, plan: EntryPlan, taken: Option<&Taken>) -> Result<Gathered> {
        let seq = order.before.seq + 1;
        let cancelled = || order.cancelled.load(Ordering::Relaxed);
        // Behind the positions of what was read ahead.
        let first_position = taken.map_or(0, |taken| taken.objects.len() as u32);
        let (gathered, packs) = order.writer.sealing(seq, first_position, |sealing| {
            let mut captures: Vec<(String, Capture, chatkeep_format::PageSet)> = Vec::new();
            for (at, member) in self.all.iter_mut().enumerate() {
                let Some(live) = &mut member.live else {
                    sealing.begin_part();
                    continue;
                };
                let collected = taken.map(|taken| &taken.parts[at].0);
                // What was read ahead comes first in a restore: what pages were before is no more then.
                let patches = taken.is_none() && !is_opaque(order, &member.name);
                let mut collector = sealing.collector(&order.done_bytes, patches);
                let build = Build { parent: plan.parent_seq, collected };
                let capture = live.capture(build, &mut collector, &cancelled)?;
                let inline = collector.finish(capture.page_count)?;
                captures.push((member.name.clone(), capture, inline));
            }
            Ok::<_, Fault>(captures)
        });
        // What stopped the sealing stopped the capture, too: it is the cause.
        let mut packs = packs?;
        let captures = gathered?;
        let gap = captures.iter().find_map(|(_, capture, _)| capture.gap).map(GapReason::as_str);
        if let Some(gap) = gap {
            let bytes: u64 = captures.iter().map(|(_, capture, _)| capture.bytes_read).sum();
            debug!(gap, bytes, "the whole database was read");
        }
        let unchanged = captures.iter().all(|(_, capture, _)| capture.unchanged);
        let gone = captures.iter().all(|(_, capture, _)| capture.gone);
        let mut parts = Vec::new();
        for (name, capture, inline) in captures {
            let at = self.all.iter().position(|member| member.name == name).expect("it was just captured");
            let mut own = taken.map(|taken| taken.parts[at].1.clone()).unwrap_or_default();
            own.append(&mut packs.parts[at]);
            parts.push(Part { name, capture, packs: own, inline });
        }
        Ok(Gathered { parts, packs, gap, unchanged, gone })
    }

    fn publish(
        &mut self,
        order: &CaptureOrder,
        plan: EntryPlan,
        taken: Option<&Taken>,
        media: &mut Media,
        (parts, packs): (Vec<Part>, Packs),
        now_us: i64,
    ) -> std::io::Result<(Written, MediaDraft)> {
        let seq = order.before.seq + 1;
        let mut unchanged = self.absent(order);
        // One that is gone for good was captured as far as it could be: it stays as it was.
        let (gone, parts): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.capture.gone);
        let known = order.chain.first().map(|point| point.databases.as_slice()).unwrap_or_default();
        unchanged
            .extend(known.iter().filter(|facts| gone.iter().any(|part| part.name == facts.name)).cloned());
        // All that is read as a whole is a base, also where a span was planned.
        let is_base = unchanged.is_empty() && parts.iter().all(|part| part.capture.is_base);
        let parent = order.chain.iter().find(|point| point.seq == plan.parent_seq).filter(|_| !is_base);
        let level = if is_base { Level::Base } else { plan.level };
        // The tables know of the entry before it is kept: whatever crashes after it, nothing is read again.
        for live in self.all.iter_mut().filter_map(|member| member.live.as_mut()) {
            live.prepare(seq)?;
        }
        let mut objects = match taken {
            Some(taken) => order.writer.spool.assign(&taken.objects, seq, 0)?,
            None => Vec::new(),
        };
        objects.extend(packs.objects);
        let parent_seq = parent.map_or(0, |parent| parent.seq);
        let mut draft = media.draft(&order.writer, seq, parent_seq, MEDIA_POSITION)?;
        objects.append(&mut draft.objects);
        let written = order.writer.publish(Draft {
            before: &order.before,
            parent,
            level: level.number(),
            parts,
            unchanged,
            folders: draft.records(),
            listed_packs: draft.listed_packs.clone(),
            objects,
            taken_at_us: now_us,
        })?;
        Ok((written, draft))
    }

    fn abort(&mut self) {
        self.all
            .iter_mut()
            .filter_map(|member| member.live.as_mut())
            .for_each(chatkeep_sqlite::LiveDatabase::abort);
    }

    fn commit(&mut self, seq: u64, chain: &[Point]) -> std::io::Result<()> {
        let marks = marks(chain);
        let mut result = Ok(());
        for live in self.all.iter_mut().filter_map(|member| member.live.as_mut()) {
            result = result.and(live.commit(seq, &marks));
        }
        result
    }
}

/// Whether the newest entry has it encrypted.
fn is_opaque(order: &CaptureOrder, name: &str) -> bool {
    let newest = order.chain.first();
    newest.is_some_and(|point| point.databases.iter().any(|facts| facts.opaque && facts.name == name))
}

/// The entries that a later one may build on: for each level, the newest of at least that level.
fn marks(chain: &[Point]) -> Vec<u64> {
    let newest =
        |level: Level| chain.iter().find(|point| point.level >= level.number()).map(|point| point.seq);
    let mut marks: Vec<u64> = Level::ALL.into_iter().filter_map(newest).collect();
    marks.dedup();
    marks
}
