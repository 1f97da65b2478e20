//! One source: what waits to be captured, what waits to be uploaded, and until when neither is tried.

use std::collections::VecDeque;

use crate::event::{Retry, SourceId, UploadId};
use crate::policy::{Backoff, CapturePolicy, RETRY_AFTER_MAX_MS};
use crate::scheduler::clock::Moment;

#[derive(Debug, Clone)]
pub(super) struct Source {
    id: SourceId,
    removed: bool,
    /// Changes that no capture has been started for.
    change: Option<Change>,
    /// A person asked, and no capture has been started since.
    asked: bool,
    /// A person asked, and what came of it is not in the store yet: uploads go on in a pause, too.
    pressing: bool,
    capture: Option<RunningCapture>,
    capture_failures: Failures,
    /// Nothing is captured before that nobody asked for.
    pub(super) not_before: Moment,
    /// In the order of upload; those under way stay until they are done.
    queue: VecDeque<Waiting>,
    uploading: Vec<Running>,
    upload_failures: Failures,
    /// Of all time.
    failed_uploads: u64,
    /// The last upload that ended was a success. Until then they go one by one: what the first one finds (no store,
    /// another writer) need not be found twice.
    store_answers: bool,
    /// Number of the last upload of this source among all uploads.
    pub(super) last_turn: u64,
}

#[derive(Debug, Clone, Copy)]
struct Change {
    first_at: Moment,
    last_at: Moment,
    pending_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct RunningCapture {
    /// What it is to hold.
    change: Change,
    /// The source was removed meanwhile: what this capture held says nothing about the source that was added again.
    disowned: bool,
}

/// An upload under way.
#[derive(Debug, Clone, Copy)]
struct Running {
    upload: UploadId,
    /// How many uploads had failed when it began: what it brings says nothing about a failure since.
    failures_before: u64,
}

/// An object in the spool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    upload: UploadId,
    pub(super) entry: bool,
}

impl Source {
    pub(super) fn new(id: SourceId) -> Self {
        Self {
            id,
            removed: false,
            change: None,
            asked: false,
            pressing: false,
            capture: None,
            capture_failures: Failures::default(),
            not_before: Moment::default(),
            queue: VecDeque::new(),
            uploading: Vec::new(),
            upload_failures: Failures::default(),
            failed_uploads: 0,
            store_answers: false,
            last_turn: 0,
        }
    }

    pub(super) fn watch(&mut self) {
        self.removed = false;
    }

    /// Forgets everything but a capture that runs: it has the database until it ends. An upload under way is left to
    /// itself; its answer has a number by which it is recognised as an old one.
    pub(super) fn remove(&mut self) {
        let capture = self.capture.map(|capture| RunningCapture { disowned: true, ..capture });
        *self = Self { removed: true, capture, last_turn: self.last_turn, ..Self::new(self.id) };
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed
    }

    /// Whether it is removed and no capture of it runs any more.
    pub(super) fn is_over(&self) -> bool {
        self.removed && self.capture.is_none()
    }

    /// Ends the pressing once all that was asked for is in the store.
    pub(super) fn settle(&mut self) {
        self.pressing &= self.asked || self.capture.is_some() || !self.queue.is_empty();
    }

    pub(super) fn resume(&mut self) {
        self.capture_failures.end_wait(&[Wait::Never]);
        self.upload_failures.end_wait(&[Wait::Never]);
    }

    pub(super) fn store_is_reachable(&mut self) {
        for failures in [&mut self.capture_failures, &mut self.upload_failures] {
            if failures.end_wait(&[Wait::WhenReachable, Wait::Never]) {
                failures.in_a_row = 0;
            }
        }
    }

    pub(super) fn failed_attempts(&self) -> u32 {
        self.capture_failures.in_a_row.max(self.upload_failures.in_a_row)
    }

    /// When a failed capture or upload is tried again by itself.
    pub(super) fn next_attempt(&self) -> Option<Moment> {
        let capture =
            self.capture_failures.retry_at().filter(|_| self.capture.is_none() && self.change.is_some());
        let upload = self.upload_failures.retry_at().filter(|_| self.has_waiting());
        capture.into_iter().chain(upload).min()
    }

    /// The next moment at which time alone makes something due.
    pub(super) fn next_due(&self, policy: &CapturePolicy, paused: bool, now: Moment) -> Option<Moment> {
        let capture = self.capture_due(policy, paused);
        let waits = self.has_waiting() && !self.removed && (self.pressing || !paused);
        // an upload whose wait is over waits for another one to end, which is an event
        let upload = self.upload_failures.retry_at().filter(|at| waits && *at > now);
        capture.into_iter().chain(upload).min()
    }
}

/// Captures.
impl Source {
    pub(super) fn changed(&mut self, pending_bytes: u64, now: Moment) {
        if self.removed {
            return;
        }
        let change = self.change.get_or_insert(Change { first_at: now, last_at: now, pending_bytes });
        // a look that finds what the last one found is silence
        if change.pending_bytes != pending_bytes {
            change.last_at = now;
            change.pending_bytes = pending_bytes;
        }
    }

    /// Also ends the waiting of uploads: who asks for a backup wants it in the store. Only what the store itself asked
    /// for is kept to.
    pub(super) fn ask_for_capture(&mut self) {
        if self.removed {
            return;
        }
        self.asked = true;
        self.pressing = true;
        self.capture_failures.end_wait(&[Wait::Never]);
        self.upload_failures.end_wait(&[Wait::Backoff, Wait::WhenReachable, Wait::Never]);
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    /// When the next capture is due, as things are. May be in the past.
    pub(super) fn capture_due(&self, policy: &CapturePolicy, paused: bool) -> Option<Moment> {
        if self.capture.is_some() || self.removed {
            return None;
        }
        if self.asked {
            return Some(Moment::default());
        }
        let change = self.change.filter(|_| !paused)?;
        let silent = change.last_at.after_ms(policy.quiet_ms);
        let late = change.first_at.after_ms(policy.wait_max_ms);
        let settled =
            if change.pending_bytes >= policy.pending_bytes_max { change.last_at } else { silent.min(late) };
        let settled = settled.max(self.not_before);
        match self.capture_failures.wait {
            None => Some(settled),
            Some((Wait::Never, _)) => None,
            Some((_, until)) => Some(settled.max(until)),
        }
    }

    pub(super) fn start_capture(&mut self, now: Moment) {
        let asked_only = Change { first_at: now, last_at: now, pending_bytes: 0 };
        let change = self.change.take().unwrap_or(asked_only);
        self.capture = Some(RunningCapture { change, disowned: false });
        self.asked = false;
    }

    /// What looks found during the capture counts only if the capture says that it does not hold it: they also find
    /// what is just being captured.
    pub(super) fn capture_done(&mut self, more: bool, now: Moment) {
        let Some(capture) = self.capture.take() else { return };
        if self.removed || capture.disowned {
            return;
        }
        self.capture_failures = Failures::default();
        let seen_meanwhile =
            self.change.take().unwrap_or(Change { first_at: now, last_at: now, pending_bytes: 0 });
        // how much of it is left, the next look tells
        self.change = more.then_some(Change { pending_bytes: 0, ..seen_meanwhile });
    }

    pub(super) fn capture_failed(&mut self, when: Retry, backoff: Backoff, now: Moment) {
        let Some(capture) = self.capture.take() else { return };
        if self.removed || capture.disowned {
            return;
        }
        self.capture_failures.add(self.id, when, backoff, now);
        let newest = self.change.unwrap_or(capture.change);
        self.change = Some(Change { first_at: capture.change.first_at, ..newest });
    }
}

/// Uploads.
impl Source {
    pub(super) fn enqueue(&mut self, upload: UploadId, entry: bool) {
        let known = self.queue.iter().any(|waiting| waiting.upload == upload);
        if !known && !self.removed {
            self.queue.push_back(Waiting { upload, entry });
        }
    }

    /// How many run.
    pub(super) fn uploads(&self) -> usize {
        self.uploading.len()
    }

    /// Whether something waits that may go up beside what runs.
    fn has_waiting(&self) -> bool {
        self.front().is_some()
    }

    /// The next object that does not run. Data goes up side by side, an entry when all before it is up.
    fn front(&self) -> Option<Waiting> {
        let running = self.uploading.len();
        let next = self.queue.iter().find(|waiting| !self.is_running(waiting.upload))?;
        let entry_runs = self.queue.front().is_some_and(|first| first.entry) && running > 0;
        let alone = next.entry || entry_runs || !self.store_answers;
        (running == 0 || !alone).then_some(*next)
    }

    fn is_running(&self, upload: UploadId) -> bool {
        self.uploading.iter().any(|running| running.upload == upload)
    }

    pub(super) fn waiting_uploads(&self) -> usize {
        self.queue.len()
    }

    /// The object that may go up now.
    pub(super) fn next_upload(&self, paused: bool, now: Moment) -> Option<Waiting> {
        let waits = match self.upload_failures.wait {
            None => false,
            Some((Wait::Never, _)) => true,
            Some((_, until)) => until > now,
        };
        let holds = paused && !self.pressing;
        if holds || waits { None } else { self.front() }
    }

    pub(super) fn start_upload(&mut self, paused: bool, now: Moment) -> Option<UploadId> {
        let upload = self.next_upload(paused, now)?.upload;
        self.uploading.push(Running { upload, failures_before: self.failed_uploads });
        Some(upload)
    }

    pub(super) fn upload_done(&mut self, upload: UploadId) {
        let Some(ended) = self.end_upload(upload) else { return };
        self.queue.retain(|waiting| waiting.upload != upload);
        if ended.failures_before == self.failed_uploads {
            self.upload_failures = Failures::default();
            self.store_answers = true;
        }
    }

    pub(super) fn upload_failed(&mut self, upload: UploadId, when: Retry, backoff: Backoff, now: Moment) {
        let Some(ended) = self.end_upload(upload) else { return };
        self.store_answers = false;
        if ended.failures_before < self.failed_uploads {
            // Two that ran side by side met the same trouble.
            self.upload_failures.in_a_row = self.upload_failures.in_a_row.saturating_sub(1);
        }
        self.failed_uploads += 1;
        self.upload_failures.add(self.id, when, backoff, now);
    }

    fn end_upload(&mut self, upload: UploadId) -> Option<Running> {
        let at = self.uploading.iter().position(|running| running.upload == upload)?;
        Some(self.uploading.swap_remove(at))
    }
}

/// Failures in a row, and what is waited for because of the last one.
#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    in_a_row: u32,
    /// Until when; for `Never` the moment of the failure.
    wait: Option<(Wait, Moment)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Backoff,
    AsTold,
    WhenReachable,
    Never,
}

impl Failures {
    fn add(&mut self, source: SourceId, when: Retry, backoff: Backoff, now: Moment) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let delayed = now.after_ms(backoff.delay_ms(source, self.in_a_row));
        self.wait = Some(match when {
            Retry::Backoff => (Wait::Backoff, delayed),
            Retry::After { ms } => (Wait::AsTold, now.after_ms(ms.clamp(1, RETRY_AFTER_MAX_MS))),
            Retry::WhenReachable => (Wait::WhenReachable, delayed),
            Retry::Never => (Wait::Never, now),
        });
    }

    /// Ends the waiting if it is of one of these kinds, and says whether it was.
    fn end_wait(&mut self, kinds: &[Wait]) -> bool {
        let ends = self.wait.is_some_and(|(wait, _)| kinds.contains(&wait));
        if ends {
            self.wait = None;
        }
        ends
    }

    fn retry_at(&self) -> Option<Moment> {
        self.wait.filter(|(wait, _)| *wait != Wait::Never).map(|(_, until)| until)
    }
}
