//! From the queue into the store: what goes up next, and what its end means for the points.

use std::collections::BTreeSet;

use chatkeep_ipc::Error;
use chatkeep_planner::{Event as Happened, Retry, SourceId, UploadId};
use tracing::{info, warn};

use super::Service;
use crate::event::{Command, Stored, UploadOrder};
use crate::fault::Result;
use crate::writer::Written;

impl Service {
    /// Gives the objects of an entry to the planner, in upload order.
    pub(super) fn enqueue(&mut self, number: SourceId, written: &Written) {
        let last = written.objects.len().saturating_sub(1);
        for (at, object) in written.objects.iter().enumerate() {
            let upload = UploadId(self.next_upload);
            self.next_upload += 1;
            let publishes = (at == last).then(|| written.clone());
            if let Some(source) = self.sources.get_mut(&number) {
                source.uploads.insert(upload, (object.clone(), publishes));
            }
            self.plan(Happened::Enqueued { source: number, upload, entry: at == last });
        }
    }

    pub(super) fn uploaded(&mut self, number: SourceId, upload: UploadId, result: Result<Stored>) {
        let Some(source) = self.sources.get_mut(&number) else { return };
        if !source.uploads.contains_key(&upload) {
            // Of a time before the source was let go.
            self.plan(Happened::UploadDone { source: number, upload });
            return;
        }
        let store = source.registration.store.clone();
        match result {
            Ok(Stored { spoiled: true, .. }) => {
                warn!(database = %source.id, "an object in the queue is damaged; the next capture replaces it");
                let objects: Vec<_> = source.uploads.values().map(|(object, _)| object.clone()).collect();
                let removed = source.opened.as_ref().map_or(Ok(()), |opened| opened.spool.remove(&objects));
                match removed {
                    Ok(()) => self.restart(number),
                    Err(error) => {
                        self.update(number, |source| source.store_fault = Some(error.into()));
                        let retry = Retry::Backoff;
                        self.plan(Happened::UploadFailed { source: number, upload, retry });
                    }
                }
            }
            Ok(Stored { confirmed, rebase, blind, .. }) => {
                if rebase {
                    // What just went up builds on what is not there: only the base that follows is a point to rely on.
                    source.wait_anew();
                    self.out.push(Command::Rebase { source: number, bad_packs: BTreeSet::new() });
                    self.plan(Happened::CaptureNow { source: number });
                }
                let Some(source) = self.sources.get_mut(&number) else { return };
                source.store_fault = None;
                let done = source.uploads.remove(&upload);
                if let Some((object, _)) = &done {
                    // A damaged pack was just replaced by the same content.
                    self.uploaded_again(number, object.name);
                }
                let Some(source) = self.sources.get_mut(&number) else { return };
                if let Some(log) = &mut source.log {
                    // Not by one that began before another failed: what came back since may be another store.
                    log.confirmed |= confirmed;
                    log.blind = if confirmed { blind } else { log.blind };
                    if let Some((_, Some(written))) = &done {
                        log.stored = written.head.clone();
                        log.waiting.pop_front();
                    }
                }
                let announced = done.as_ref().and_then(|(_, written)| Some(written.as_ref()?.point.clone()));
                if let Some((_, Some(written))) = done {
                    info!(database = %source.id, seq = written.head.seq, bytes = written.point.bytes, "recovery point");
                    source.points.add(&written.point);
                    self.note_facts(number, |facts, now| facts.uploaded_us = now);
                }
                self.saw_store(&store, None, None);
                self.plan(Happened::UploadDone { source: number, upload });
                self.release_held(number);
                if let Some(point) = announced {
                    self.copies_fall_behind(number, &point);
                }
                self.finish_waiters(number);
                self.show(number);
            }
            Err(fault) => {
                // Whatever comes back may be another store.
                if let Some(log) = &mut source.log {
                    log.confirmed = false;
                }
                if self.pause_of(&store).is_some() && matches!(fault.error, Error::StoreUnreachable(_)) {
                    // Nothing failed: it goes on when the gate opens.
                    let retry = Retry::WhenReachable;
                    self.plan(Happened::UploadFailed { source: number, upload, retry });
                    self.show(number);
                    return;
                }
                self.saw_store(&store, Some(&fault), None);
                let ends = matches!(
                    fault.error,
                    Error::WriterFenced(_) | Error::RollbackDetected(_) | Error::Corrupt(_)
                );
                if ends && fault.retry() == Retry::Never {
                    self.block(number, &fault);
                    return;
                }
                self.fail_backups(number, &fault);
                let retry = if fault.retry() == Retry::Never { Retry::Backoff } else { fault.retry() };
                self.update(number, |source| source.store_fault = Some(fault));
                self.plan(Happened::UploadFailed { source: number, upload, retry });
                // What waits goes to the copies meanwhile.
                self.copy_now(number);
            }
        }
    }

    /// Starts an upload; `false` when there is nothing to put any more.
    pub(super) fn begin_upload(&mut self, number: SourceId, upload: UploadId) -> bool {
        let Some(source) = self.sources.get_mut(&number) else { return false };
        let (Some(opened), Some(log)) = (&source.opened, &source.log) else { return false };
        let Some((object, publishes)) = source.uploads.get(&upload) else { return false };
        source.last_attempt_us = crate::clock::now_us();
        let order = UploadOrder {
            source: number,
            upload,
            object: object.clone(),
            archive: opened.archive.clone(),
            keys: opened.keys.clone(),
            spool: opened.spool.clone(),
            publishes: publishes.clone(),
            log: Box::new(log.clone()),
        };
        self.out.push(Command::Upload(Box::new(order)));
        true
    }
}
