//! When to capture and what to upload: events in, commands out.

mod clock;
mod source;

use std::collections::BTreeMap;

use crate::event::{Command, Event, Millis, SourceId, UploadId};
use crate::policy::CapturePolicy;
use clock::{Clock, Moment};
use source::Source;

/// Decides when each source is captured and in which order objects go up. One per store.
///
/// - At most one capture of a source runs at a time. Over all sources at most
///   [`uploads_at_once`](CapturePolicy::uploads_at_once) uploads run.
/// - Uploads of a source begin in the order in which they were enqueued. Data goes up side by side; an entry goes alone, when
///   all that was enqueued before it is up.
/// - After a start and after a failure uploads of a source go one by one until one succeeds.
/// - After each [`handle`](Scheduler::handle) everything that is due has been asked for; call it again at
///   [`next_deadline`](Scheduler::next_deadline) at the latest.
#[derive(Debug, Clone)]
pub struct Scheduler {
    policy: CapturePolicy,
    clock: Clock,
    /// A removed source stays here until its capture has ended, so that adding it again does not start a second one.
    sources: BTreeMap<SourceId, Source>,
    paused: bool,
    stopping: bool,
    /// Counts started uploads; the source whose last one is longest ago is next.
    turns: u64,
    /// Whether the last upload was an entry that went ahead of a source that had waited longer.
    jumped: bool,
}

/// What can be told about one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceView {
    /// Whether a capture runs.
    pub capturing: bool,
    /// How many objects wait for the store, the one under way included.
    pub waiting_uploads: usize,
    /// Failures in a row: of captures or of uploads, whichever are more.
    pub failed_attempts: u32,
    /// When something that failed is tried again by itself.
    pub next_attempt: Option<Millis>,
}

impl Scheduler {
    /// A scheduler without sources.
    pub fn new(policy: CapturePolicy) -> Self {
        Self {
            policy,
            clock: Clock::default(),
            sources: BTreeMap::new(),
            paused: false,
            stopping: false,
            turns: 0,
            jumped: false,
        }
    }

    /// Takes note of what happened, and says what to do now.
    ///
    /// `now` should not go backwards. Where it does, the time between is as good as none.
    pub fn handle(&mut self, event: Event, now: Millis) -> Vec<Command> {
        let now = self.clock.advance(now);
        self.note(event, now);
        self.sources.values_mut().for_each(Source::settle);
        self.sources.retain(|_, source| !source.is_over());
        if self.stopping {
            return Vec::new();
        }
        let mut commands = self.start_captures(now);
        self.start_uploads(now, &mut commands);
        commands
    }

    /// When [`handle`](Scheduler::handle) must be called next even if nothing happens. `None`: not before an event.
    pub fn next_deadline(&self) -> Option<Millis> {
        if self.stopping {
            return None;
        }
        let now = self.clock.now();
        let earliest =
            self.sources.values().filter_map(|source| source.next_due(&self.policy, self.paused, now)).min();
        earliest.map(|moment| self.clock.outside(moment))
    }

    /// Whether nothing runs: no capture (also none of a removed source), and no upload.
    pub fn is_idle(&self) -> bool {
        self.sources.values().all(|source| !source.is_capturing() && source.uploads() == 0)
    }

    /// How a source is doing. `None` if it is not watched.
    pub fn state(&self, source: SourceId) -> Option<SourceView> {
        let source = self.sources.get(&source).filter(|source| !source.is_removed())?;
        Some(SourceView {
            capturing: source.is_capturing(),
            waiting_uploads: source.waiting_uploads(),
            failed_attempts: source.failed_attempts(),
            next_attempt: source.next_attempt().map(|moment| self.clock.outside(moment)),
        })
    }

    /// Takes a new policy. What became due by it is asked for at the next event.
    pub fn set_policy(&mut self, policy: CapturePolicy) {
        self.policy = policy;
    }

    fn note(&mut self, event: Event, now: Moment) {
        let retry = self.policy.retry;
        match event {
            Event::SourceAdded { source } => {
                self.sources.entry(source).or_insert_with(|| Source::new(source)).watch();
            }
            Event::SourceRemoved { source } => self.with(source, Source::remove),
            Event::Changed { source, pending_bytes } => {
                self.with(source, |it| it.changed(pending_bytes, now));
            }
            Event::Spare { source, wait_ms } => {
                self.with(source, |it| it.not_before = now.after_ms(wait_ms));
            }
            Event::CaptureNow { source } => self.with(source, Source::ask_for_capture),
            Event::CaptureDone { source, more } => self.with(source, |it| it.capture_done(more, now)),
            Event::CaptureFailed { source, retry: when } => {
                self.with(source, |it| it.capture_failed(when, retry, now));
            }
            Event::Enqueued { source, upload, entry } => self.with(source, |it| it.enqueue(upload, entry)),
            Event::UploadDone { source, upload } => self.with(source, |it| it.upload_done(upload)),
            Event::UploadFailed { source, upload, retry: when } => {
                self.with(source, |it| it.upload_failed(upload, when, retry, now));
            }
            Event::StoreReachable { source } => self.with(source, Source::store_is_reachable),
            Event::Paused => self.paused = true,
            Event::Resumed => {
                self.paused = false;
                self.sources.values_mut().for_each(Source::resume);
            }
            Event::Stopping => self.stopping = true,
            Event::Tick => {}
        }
    }

    fn with(&mut self, source: SourceId, act: impl FnOnce(&mut Source)) {
        if let Some(source) = self.sources.get_mut(&source) {
            act(source);
        }
    }

    fn start_captures(&mut self, now: Moment) -> Vec<Command> {
        let mut commands = Vec::new();
        for (id, source) in &mut self.sources {
            if source.capture_due(&self.policy, self.paused).is_some_and(|due| due <= now) {
                source.start_capture(now);
                commands.push(Command::Capture { source: *id });
            }
        }
        commands
    }

    fn start_uploads(&mut self, now: Moment, commands: &mut Vec<Command>) {
        let running = self.sources.values().map(Source::uploads).sum();
        for _ in running..self.policy.uploads_at_once.max(1) {
            let Some((source, upload)) = self.start_one_upload(now) else { return };
            commands.push(Command::Upload { source, upload });
        }
    }

    /// The source that has waited longest is next. An entry goes ahead of it, because it is small and turns objects
    /// that are up already into a recovery point; but only every other time, so that nobody waits for ever.
    fn start_one_upload(&mut self, now: Moment) -> Option<(SourceId, UploadId)> {
        let ready =
            || self.sources.iter().filter(|(_, source)| source.next_upload(self.paused, now).is_some());
        let by_turn = |(_, source): &(&SourceId, &Source)| source.last_turn;
        let longest_waiting = *ready().min_by_key(by_turn)?.0;
        let publishes = |(_, source): &(&SourceId, &Source)| {
            source.next_upload(self.paused, now).is_some_and(|next| next.entry)
        };
        let chosen = match ready().filter(publishes).min_by_key(by_turn) {
            Some((publishing, _)) if !self.jumped => *publishing,
            _ => longest_waiting,
        };
        self.jumped = chosen != longest_waiting;
        self.turns += 1;
        let source = self.sources.get_mut(&chosen)?;
        source.last_turn = self.turns;
        Some((chosen, source.start_upload(self.paused, now)?))
    }
}
