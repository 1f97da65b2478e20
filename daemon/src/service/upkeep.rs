//! What is done with what is stored, by itself and now and then: points are forgotten, objects are read back, a restore
//! is rehearsed. One thing at a time, and only while there is nothing better to do.

use std::collections::HashMap;
use std::sync::Arc;

use chatkeep_format::ArchiveId;
use chatkeep_ipc::{Details, Error, JobId, JobOutcome, NewJob, VerifyDepth};
use chatkeep_planner::{Millis, SourceId};
use zbus::zvariant::{OwnedValue, Value};

use super::Service;
use crate::config::{Period, Span};
use crate::event::{Opened, Work};
use crate::jobs::prune::PruneReport;
use crate::source::{Phase, PointSummary, Source, StoreCopy};

/// Nothing is done for so long after the start, in milliseconds: a login has enough to do.
const FIRST_AFTER_MS: u64 = 15 * 60_000;
/// Between two looks at what is due, in milliseconds.
const LOOK_EVERY_MS: u64 = 60_000;
/// A prune that did not come to a plan is tried again after so long, in milliseconds.
const PRUNE_AGAIN_MS: u64 = 3_600_000;
/// What reads much, and found something wrong or did not come to an end, is: as often as once a day it costs what it is worth.
const READ_AGAIN_MS: u64 = 24 * 3_600_000;
/// At most so many points are named in the result of a prune; the numbers are of all.
const POINTS_TOLD_MAX: usize = 1000;

/// Something that is done now and then.
struct Chore {
    operation: &'static str,
    every: fn(&Service, &Source) -> Period,
    /// When it was last done, µs since 1970; 0 for never.
    last_us: fn(&Source) -> u64,
    /// How long it is not tried again when it was not done, in milliseconds.
    again_ms: u64,
    work: fn(&Service, &Source, Arc<Opened>) -> Work,
}

/// In the order of their importance.
const CHORES: [Chore; 5] = [
    Chore {
        operation: "retain",
        every: |service, source| service.renew_every(source),
        last_us: |source| source.facts.retained_us,
        again_ms: PRUNE_AGAIN_MS,
        work: |service, source, opened| service.retain_work(source, opened),
    },
    Chore {
        operation: "prune",
        every: |service, _| service.config.upkeep.prune_every,
        last_us: |source| source.pruned.pruned_us,
        again_ms: PRUNE_AGAIN_MS,
        work: |service, source, opened| service.prune_work(source, opened, false),
    },
    Chore {
        operation: "drill",
        every: |service, _| service.config.upkeep.drill_every,
        last_us: |source| source.facts.drilled_us,
        again_ms: READ_AGAIN_MS,
        work: |_, _, opened| Work::Verify { opened, depth: VerifyDepth::Restore },
    },
    Chore {
        operation: "verify",
        every: |service, _| service.config.upkeep.verify_every,
        last_us: |source| source.facts.verified_us,
        again_ms: READ_AGAIN_MS,
        work: |_, _, opened| Work::Verify { opened, depth: VerifyDepth::Chunks },
    },
    Chore {
        operation: VERIFY_COPY,
        every: |service, _| service.config.upkeep.verify_every,
        last_us: |source| copy_to_verify(source).map_or(0, |copy| copy.facts.verified_us),
        again_ms: READ_AGAIN_MS,
        work: |service, source, opened| service.verify_copy_work(source, opened),
    },
];

/// Copies are read back one after the other.
const VERIFY_COPY: &str = "verify-copy";

/// The copy that was not read back for the longest.
fn copy_to_verify(source: &Source) -> Option<&StoreCopy> {
    let alive = source.copies.iter().filter(|copy| copy.is_alive() && copy.running.is_none() && !copy.blind);
    alive.min_by_key(|copy| copy.facts.verified_us)
}

/// What is under way, and when the next look is due.
pub(super) struct Upkeep {
    next_look: Millis,
    job: Option<JobId>,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self { next_look: Millis(FIRST_AFTER_MS), job: None }
    }
}

impl Service {
    /// Begins what is due, if there is time for it.
    pub(super) fn keep_up(&mut self) {
        if self.now < self.upkeep.next_look {
            return;
        }
        self.upkeep.next_look = Millis(self.now.0 + LOOK_EVERY_MS);
        let busy = self.upkeep.job.as_ref().is_some_and(|job| self.jobs.contains_key(job));
        if busy || self.pause.is_some() {
            return;
        }
        let now_us = crate::clock::now_us();
        let due = self.sources.iter().filter(|(number, source)| self.is_idle(**number, source));
        let due = due.flat_map(|(number, source)| CHORES.iter().map(move |chore| (*number, source, chore)));
        let next = due.into_iter().find(|(_, source, chore)| {
            // What cannot be read cannot be verified; a prune says that it may not.
            let blind = source.log.as_ref().is_some_and(|log| log.blind);
            if blind && !matches!(chore.operation, "prune" | VERIFY_COPY) {
                return false;
            }
            if chore.operation == VERIFY_COPY && copy_to_verify(source).is_none() {
                return false;
            }
            let may = source.upkeep_again.get(chore.operation).is_none_or(|at| *at <= self.now);
            may && is_due((chore.every)(self, source), (chore.last_us)(source), now_us)
        });
        if let Some((number, _, chore)) = next {
            self.do_chore(number, chore);
        }
    }

    fn do_chore(&mut self, number: SourceId, chore: &Chore) {
        let Some(source) = self.sources.get(&number) else { return };
        let Some(opened) = source.opened.clone() else { return };
        let work = (chore.work)(self, source, opened);
        let job = NewJob { id: self.tools.server.new_job_id(), started_by: "schedule".to_owned() };
        self.upkeep.job = Some(job.id.clone());
        let again = Millis(self.now.0 + chore.again_ms);
        let prune = matches!(work, Work::Prune { .. });
        let verifies = matches!(work, Work::Verify { .. } | Work::VerifyCopy { .. });
        let operation = if verifies { "verify" } else { chore.operation };
        self.update(number, |source| {
            source.upkeep_again.insert(chore.operation, again);
            if prune {
                source.prune_job = Some((job.id.clone(), false));
            }
        });
        self.run(job, operation, Some(number), false, work);
    }

    fn verify_copy_work(&self, source: &Source, opened: Arc<Opened>) -> Work {
        let chosen = copy_to_verify(source).map(|copy| copy.store.clone());
        let copy = self.copies_to_read(source).into_iter().find(|(store, _)| Some(store) == chosen.as_ref());
        match copy {
            Some((store, copy)) => Work::VerifyCopy { opened, store, copy },
            None => Work::Verify { opened, depth: VerifyDepth::Manifest },
        }
    }

    /// Its store answers and may be used, and nothing else is done with it or waits.
    fn is_idle(&self, number: SourceId, source: &Source) -> bool {
        let waits =
            !source.uploads.is_empty() || !source.waiters.is_empty() || !source.pin_requests.is_empty();
        let works = source.capturing.is_some() || self.jobs.values().any(|job| job.source == Some(number));
        let log = source.log.as_ref();
        let stored = log.is_some_and(|log| log.confirmed && log.stored.seq > 0);
        let store = &source.registration.store;
        let answers = !self.silent_stores.contains(store) && self.pause_of(store).is_none();
        source.phase == Phase::Open && stored && answers && !waits && !works
    }

    /// Forgets points and deletes objects, as somebody asked.
    pub(super) fn prune(&mut self, id: &str, dry_run: bool, job: NewJob) -> Result<JobId, Error> {
        let (number, opened) = self.opened_of(id)?;
        let source = &self.sources[&number];
        if source.phase != Phase::Open && !dry_run {
            let why = source.fault().map(|fault| fault.error.clone());
            return Err(why.unwrap_or_else(|| Error::Busy("its archive is being opened".to_owned())));
        }
        match &source.prune_job {
            Some((running, same)) if *same == dry_run => return Ok(running.clone()),
            Some(_) => return Err(Error::Busy("its backups are being pruned; try again".to_owned())),
            None => {}
        }
        let work = self.prune_work(source, opened, dry_run);
        let running = Some((job.id.clone(), dry_run));
        self.update(number, |source| source.prune_job = running);
        Ok(self.run(job, "prune", Some(number), false, work))
    }

    /// Half of the time of a lock: whatever fails has the other half to be noticed and mended.
    fn renew_every(&self, source: &Source) -> Period {
        let shortest = self.locking_stores(source).into_iter().map(|(_, retain_s)| retain_s).min();
        Period(shortest.map(|retain_s| Span(retain_s * 1000 / 2)))
    }

    fn retain_work(&self, source: &Source, opened: Arc<Opened>) -> Work {
        let now_s = crate::clock::now_us() / 1_000_000;
        let until =
            self.locking_stores(source).into_iter().map(|(store, retain_s)| (store, now_s + retain_s));
        Work::Retain { opened, stores: until.collect() }
    }

    /// The stores of a source, the main one and the copies, that are to lock their objects, and for how long, in seconds.
    fn locking_stores(&self, source: &Source) -> Vec<(Arc<dyn chatkeep_store::Store>, u64)> {
        let names = std::iter::once(&source.registration.store).chain(&source.registration.copies);
        let managed = names.filter_map(|name| self.managed.get(name));
        managed.filter_map(|store| Some((store.clone() as _, store.retain_s()?))).collect()
    }

    fn prune_work(&self, source: &Source, opened: Arc<Opened>, dry_run: bool) -> Work {
        Work::Prune {
            opened,
            pins: source.all_pins(),
            policy: self.config.retention.policy(),
            now_us: i64::try_from(crate::clock::now_us()).unwrap_or(i64::MAX),
            dry_run,
        }
    }

    /// A prune ended well, though it may not have done much.
    pub(super) fn pruned(&mut self, number: Option<SourceId>, report: &PruneReport) -> JobOutcome {
        if let Some(number) = number {
            self.count_points(number);
        }
        JobOutcome::Done(details_of(report))
    }

    /// A job ended, one way or the other.
    pub(super) fn prune_ended(&mut self, number: SourceId, job: &JobId) {
        let Some(source) = self.sources.get_mut(&number) else { return };
        if source.prune_job.as_ref().is_some_and(|(running, _)| running == job) {
            source.prune_job = None;
            // Also one that failed may have forgotten and deleted.
            self.count_points(number);
        }
    }

    /// Counts what is offered and what is forgotten anew.
    pub(super) fn count_points(&mut self, number: SourceId) {
        let archive = self.sources.get(&number).and_then(|source| source.registration.archive);
        let Some(archive) = archive else { return };
        let points = self.summary_of(&archive);
        let forgotten = u32::try_from(self.tools.catalogue.forgotten(&archive).len()).unwrap_or(u32::MAX);
        let pruned = self.tools.catalogue.prune_facts(&archive);
        self.update(number, |source| {
            (source.points, source.forgotten, source.pruned) = (points, forgotten, pruned);
        });
    }

    pub(super) fn summary_of(&self, archive: &ArchiveId) -> PointSummary {
        let mut summary = PointSummary::default();
        let mut points = self.tools.catalogue.points(archive);
        points.extend(self.on_copies_only(archive));
        points.sort_unstable_by_key(|point| point.seq);
        for point in &points {
            summary.add(point);
        }
        summary
    }
}

/// Whether something that was last done then is to be done now. A time in the future was told by a clock that was wrong.
pub(super) fn is_due(every: Period, last_us: u64, now_us: u64) -> bool {
    let every_ms = every.every_ms();
    every_ms.is_some_and(|ms| last_us > now_us || now_us - last_us >= ms.saturating_mul(1000))
}

/// The result of the job (docs/dbus.md, "Results").
fn details_of(report: &PruneReport) -> Details {
    let count = |number: usize| Value::from(u32::try_from(number).unwrap_or(u32::MAX));
    let points: Vec<(String, u64, u64)> = report
        .points
        .iter()
        .take(POINTS_TOLD_MAX)
        .map(|point| (point.seq.to_string(), point.bytes, u64::try_from(point.until_us).unwrap_or(0)))
        .collect();
    let mut details = HashMap::from([
        ("newly-forgotten", count(report.newly_forgotten)),
        ("deleted-points", count(report.deleted_points)),
        ("deleted-objects", count(report.deleted_objects)),
        ("deleted-bytes", Value::from(report.deleted_bytes)),
        ("waiting-objects", count(report.waiting_objects)),
        ("waiting-bytes", Value::from(report.waiting_bytes)),
        ("points", Value::from(points)),
    ]);
    if let Some(hindrance) = &report.hindrance {
        details.insert("warning", Value::from(hindrance.text()));
    }
    let owned = |(name, value): (&str, Value<'_>)| Some((name.to_owned(), OwnedValue::try_from(value).ok()?));
    details.into_iter().filter_map(owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: u64 = 3_600_000_000;

    #[track_caller]
    fn check(every: Option<u64>, last_us: u64, due: bool) {
        let now_us = 1000 * HOUR_US;
        assert_eq!(is_due(Period(every.map(Span)), last_us, now_us), due);
    }

    #[test]
    fn what_was_never_done_is_due_and_what_was_just_done_is_not() {
        let day_ms = Some(24 * 3_600_000);
        check(day_ms, 0, true);
        check(day_ms, 1000 * HOUR_US, false);
        check(day_ms, 977 * HOUR_US, false);
        check(day_ms, 976 * HOUR_US, true);
    }

    #[test]
    fn never_is_never() {
        check(None, 0, false);
        check(Some(0), 0, false);
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_stop_upkeep_for_years() {
        check(Some(24 * 3_600_000), 2000 * HOUR_US, true);
    }
}
