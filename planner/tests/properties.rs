//! Whatever happens in whatever order, these hold.
//!
//! A model follows the same events by the rules as they are written down and judges every command. Time passes only by
//! ticks at the deadlines the scheduler names, so a deadline it forgets is something it never does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chatkeep_planner::{
    Backoff, CapturePolicy, Command, Event, Millis, Retry, Scheduler, SourceId, UploadId,
};
use proptest::prelude::*;

const POLICY: CapturePolicy = CapturePolicy {
    quiet_ms: 2_000,
    wait_max_ms: 10_000,
    pending_bytes_max: 1_000,
    retry: Backoff { first_ms: 1_000, max_ms: 60_000 },
    uploads_at_once: 2,
};

/// What the rules know of one source.
#[derive(Default)]
struct Expected {
    watched: bool,
    asked: bool,
    /// Asked, and not all of it in the store yet.
    pressing: bool,
    /// When the first change was found that no capture was started for.
    unshipped_since: Option<u64>,
    /// The same of the running capture; the second is false once the source was removed.
    capturing: Option<(Option<u64>, bool)>,
    /// Until when failures excuse waiting; `u64::MAX` is for ever.
    capture_excused_until: u64,
    /// Which of them are entries.
    queue: VecDeque<(UploadId, bool)>,
    /// Those that began before the last failure say nothing about it.
    uploading: Vec<(UploadId, bool)>,
    /// Whether the last one that ended was a success.
    store_answers: bool,
    upload_excused_until: u64,
    /// Whether the excuse is one that a reachable store ends.
    until_reachable: BTreeSet<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Capture,
    Upload,
}

struct Model {
    scheduler: Scheduler,
    sources: BTreeMap<SourceId, Expected>,
    paused: bool,
    stopping: bool,
    now: u64,
}

impl Model {
    fn new() -> Self {
        let scheduler = Scheduler::new(POLICY);
        Self { scheduler, sources: BTreeMap::new(), paused: false, stopping: false, now: 0 }
    }

    /// Lets `wait_ms` pass, by ticks at the deadlines alone, then checks that nobody waits longer than allowed.
    fn pass(&mut self, wait_ms: u64) {
        let until = self.now + wait_ms;
        while let Some(Millis(deadline)) = self.scheduler.next_deadline().filter(|at| at.0 <= until) {
            assert!(deadline > self.now, "a deadline that never passes");
            self.now = deadline;
            self.send(Event::Tick);
        }
        self.now = until;
        self.check_nothing_is_late();
    }

    fn send(&mut self, event: Event) {
        self.note(event);
        let commands = self.scheduler.handle(event, Millis(self.now));
        for command in commands {
            self.judge(command);
        }
        if let Some(deadline) = self.scheduler.next_deadline() {
            assert!(deadline.0 > self.now, "something due at {deadline:?} was not asked for at {}", self.now);
        }
        let idle = self.sources.values().all(|it| it.capturing.is_none() && it.uploading.is_empty());
        assert_eq!(self.scheduler.is_idle(), idle);
        for (source, expected) in &self.sources {
            let view = self.scheduler.state(*source);
            assert_eq!(view.is_some(), expected.watched);
            if let Some(view) = view {
                assert_eq!(view.capturing, expected.capturing.is_some());
                assert_eq!(view.waiting_uploads, expected.queue.len());
            }
        }
    }

    fn note(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::SourceAdded { source } => self.sources.entry(source).or_default().watched = true,
            Event::Paused => self.paused = true,
            Event::Stopping => self.stopping = true,
            Event::Resumed => {
                self.paused = false;
                self.sources
                    .values_mut()
                    .for_each(|it| it.excuses_end(&[Kind::Capture, Kind::Upload], false));
            }
            // sparing a store has tests of its own; here it would excuse every wait
            Event::Tick | Event::Spare { .. } => {}
            Event::SourceRemoved { source }
            | Event::Changed { source, .. }
            | Event::CaptureNow { source }
            | Event::CaptureDone { source, .. }
            | Event::CaptureFailed { source, .. }
            | Event::Enqueued { source, .. }
            | Event::UploadDone { source, .. }
            | Event::UploadFailed { source, .. }
            | Event::StoreReachable { source } => {
                if let Some(expected) = self.sources.get_mut(&source) {
                    expected.note(event, now);
                    expected.pressing |= matches!(event, Event::CaptureNow { .. }) && expected.watched;
                    expected.pressing &=
                        expected.asked || expected.capturing.is_some() || !expected.queue.is_empty();
                }
            }
        }
    }

    fn judge(&mut self, command: Command) {
        assert!(!self.stopping, "{command:?} during shutdown");
        let running = self.running();
        match command {
            Command::Capture { source } => {
                let expected = self.sources.get_mut(&source).expect("a source that was added");
                assert!(expected.watched, "a removed source is captured");
                assert!(expected.capturing.is_none(), "two captures of one source at once");
                assert!(expected.asked || !self.paused, "a capture in a pause");
                assert!(expected.asked || expected.unshipped_since.is_some(), "nothing to capture");
                expected.capturing = Some((expected.unshipped_since.take(), true));
                expected.asked = false;
            }
            Command::Upload { source, upload } => {
                let expected = self.sources.get_mut(&source).expect("a source that was added");
                assert!(
                    expected.watched && (expected.pressing || !self.paused),
                    "an upload of a removed source or in a pause"
                );
                assert!(running < POLICY.uploads_at_once, "too many uploads at once");
                let others = expected.uploading.len();
                assert!(others == 0 || expected.store_answers, "a second try before the first has told");
                let waiting = |(id, _): &&(UploadId, bool)| expected.uploading.iter().all(|(it, _)| it != id);
                let next = expected.queue.iter().find(waiting).copied();
                assert_eq!(next.map(|(id, _)| id), Some(upload), "an upload out of order");
                let entry_ahead = expected.queue.front().is_some_and(|(id, entry)| *entry && *id != upload);
                assert!(!entry_ahead, "data overtakes an entry");
                assert!(others == 0 || next.is_some_and(|(_, entry)| !entry), "an entry before its data");
                expected.uploading.push((upload, true));
            }
        }
    }

    /// Where nothing runs, an upload that nobody waits for.
    fn running_of(&self, source: SourceId, newest: bool) -> UploadId {
        let running = self.sources.get(&source).map(|it| it.uploading.as_slice()).unwrap_or_default();
        let ended = if newest { running.last() } else { running.first() };
        ended.map_or(UploadId(999), |(id, _)| *id)
    }

    fn running(&self) -> usize {
        self.sources.values().map(|it| it.uploading.len()).sum()
    }

    fn check_nothing_is_late(&self) {
        if self.paused || self.stopping {
            return;
        }
        let running = self.running();
        for (source, it) in self.sources.iter().filter(|(_, it)| it.watched) {
            let due =
                it.unshipped_since.map(|since| (since + POLICY.wait_max_ms).max(it.capture_excused_until));
            let late = it.capturing.is_none() && due.is_some_and(|due| due < self.now);
            assert!(!late, "{source:?} should have been captured at {due:?}, it is {}", self.now);
            let first_entry = it.queue.iter().position(|(_, entry)| *entry).unwrap_or(it.queue.len());
            let beside = it.store_answers && it.uploading.len() < first_entry;
            let free = it.uploading.is_empty() && !it.queue.is_empty() || beside;
            let ready = free && it.upload_excused_until < self.now;
            assert!(!ready || running >= POLICY.uploads_at_once, "an upload of {source:?} is forgotten");
        }
    }
}

impl Expected {
    fn note(&mut self, event: Event, now: u64) {
        match event {
            Event::SourceRemoved { .. } => {
                let capturing = self.capturing.map(|(since, _)| (since, false));
                *self = Self { capturing, ..Self::default() };
            }
            Event::CaptureDone { more, .. } => self.capture_ended(now, more, None),
            Event::CaptureFailed { retry, .. } => self.capture_ended(now, false, Some(retry)),
            Event::UploadDone { upload, .. } | Event::UploadFailed { upload, .. } if !self.runs(upload) => {}
            Event::UploadDone { upload, .. } => {
                if self.uploading.contains(&(upload, true)) {
                    self.upload_excused_until = 0;
                    self.store_answers = true;
                }
                self.uploading.retain(|(id, _)| *id != upload);
                self.queue.retain(|(id, _)| *id != upload);
            }
            Event::UploadFailed { upload, retry, .. } => {
                self.uploading.retain(|(id, _)| *id != upload);
                self.uploading.iter_mut().for_each(|(_, fresh)| *fresh = false);
                self.store_answers = false;
                self.excuse(Kind::Upload, retry, now);
            }
            _ if !self.watched => {}
            Event::Changed { .. } => {
                self.unshipped_since.get_or_insert(now);
            }
            Event::CaptureNow { .. } => {
                self.asked = true;
                self.excuses_end(&[Kind::Capture, Kind::Upload], false);
            }
            Event::Enqueued { upload, entry, .. } if !self.waits(upload) => {
                self.queue.push_back((upload, entry));
            }
            Event::StoreReachable { .. } => self.excuses_end(&[Kind::Capture, Kind::Upload], true),
            _ => {}
        }
    }

    fn waits(&self, upload: UploadId) -> bool {
        self.queue.iter().any(|(id, _)| *id == upload)
    }

    fn runs(&self, upload: UploadId) -> bool {
        self.uploading.iter().any(|(id, _)| *id == upload)
    }

    fn capture_ended(&mut self, now: u64, more: bool, failed: Option<Retry>) {
        let Some((since, ours)) = self.capturing.take() else {
            return;
        };
        if !ours || !self.watched {
            return;
        }
        if let Some(retry) = failed {
            self.unshipped_since = since.or(Some(now));
            self.excuse(Kind::Capture, retry, now);
        } else {
            self.capture_excused_until = 0;
            self.unshipped_since = more.then(|| self.unshipped_since.unwrap_or(now));
        }
    }

    fn excuse(&mut self, kind: Kind, retry: Retry, now: u64) {
        let until = match retry {
            Retry::Backoff | Retry::WhenReachable => now + POLICY.retry.max_ms,
            Retry::After { ms } => now + ms.max(1),
            Retry::Never => u64::MAX,
        };
        match kind {
            Kind::Capture => self.capture_excused_until = until,
            Kind::Upload => self.upload_excused_until = until,
        }
        if retry == Retry::WhenReachable {
            self.until_reachable.insert(kind);
        } else {
            self.until_reachable.remove(&kind);
        }
    }

    /// `Never` ends in any case, the wait for the store only if it is reachable.
    fn excuses_end(&mut self, kinds: &[Kind], reachable: bool) {
        for kind in kinds {
            let until = match kind {
                Kind::Capture => &mut self.capture_excused_until,
                Kind::Upload => &mut self.upload_excused_until,
            };
            if *until == u64::MAX || (reachable && self.until_reachable.contains(kind)) {
                *until = 0;
            }
        }
    }
}

/// What can happen, with the jobs that end named by their source: the model knows what runs.
#[derive(Debug, Clone)]
enum Step {
    Send(Event),
    /// `newest`: of those that run the one that began last.
    EndUpload {
        source: SourceId,
        newest: bool,
        failed: Option<Retry>,
    },
}

fn source() -> impl Strategy<Value = SourceId> {
    (0..4_u32).prop_map(SourceId)
}

fn retry() -> impl Strategy<Value = Retry> {
    prop_oneof![
        4 => Just(Retry::Backoff),
        2 => (0..120_000_u64).prop_map(|ms| Retry::After { ms }),
        2 => Just(Retry::WhenReachable),
        1 => Just(Retry::Never),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let event = prop_oneof![
        6 => source().prop_map(|source| Event::SourceAdded { source }),
        1 => source().prop_map(|source| Event::SourceRemoved { source }),
        10 => (source(), 0..1_200_u64).prop_map(|(source, pending_bytes)| Event::Changed { source, pending_bytes }),
        2 => source().prop_map(|source| Event::CaptureNow { source }),
        6 => (source(), any::<bool>()).prop_map(|(source, more)| Event::CaptureDone { source, more }),
        4 => (source(), retry()).prop_map(|(source, retry)| Event::CaptureFailed { source, retry }),
        10 => (source(), 0..40_u64, any::<bool>())
            .prop_map(|(source, upload, entry)| Event::Enqueued { source, upload: UploadId(upload), entry }),
        2 => source().prop_map(|source| Event::StoreReachable { source }),
        1 => Just(Event::Paused),
        3 => Just(Event::Resumed),
        1 => Just(Event::Tick),
    ];
    let end_upload = (source(), any::<bool>(), proptest::option::of(retry()));
    prop_oneof![
        4 => event.prop_map(Step::Send),
        1 => end_upload.prop_map(|(source, newest, failed)| Step::EndUpload { source, newest, failed }),
    ]
}

fn run(model: &mut Model, step: &Step) {
    match *step {
        Step::Send(event) => model.send(event),
        Step::EndUpload { source, newest, failed } => {
            let upload = model.running_of(source, newest);
            model.send(match failed {
                None => Event::UploadDone { source, upload },
                Some(retry) => Event::UploadFailed { source, upload, retry },
            });
        }
    }
}

fn wait_ms() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0), 5 => 0..3_000_u64, 2 => 0..30_000_u64, 1 => 0..400_000_u64]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_rule_holds_in_every_order_of_events(steps in prop::collection::vec((wait_ms(), step()), 1..120)) {
        let mut model = Model::new();
        for (wait_ms, step) in &steps {
            model.pass(*wait_ms);
            run(&mut model, step);
        }
        model.pass(1_000_000);
    }

    #[test]
    fn a_shutdown_starts_nothing_and_ends(steps in prop::collection::vec((wait_ms(), step()), 1..60)) {
        let mut model = Model::new();
        for (position, (wait_ms, step)) in steps.iter().enumerate() {
            if position == steps.len() / 2 {
                model.send(Event::Stopping);
            }
            model.pass(*wait_ms);
            run(&mut model, step);
        }
        prop_assert!(steps.len() < 2 || model.scheduler.next_deadline().is_none());
    }

    #[test]
    fn a_mad_clock_breaks_no_rule_and_stalls_nothing(
        steps in prop::collection::vec((any::<u64>(), step()), 1..60),
        last in any::<u32>(),
    ) {
        let mut model = Model::new();
        for (now, step) in &steps {
            // what is late is not judged here: the model has no idea of the time either
            let mut scheduler = std::mem::replace(&mut model.scheduler, Scheduler::new(POLICY));
            let commands = scheduler.handle(Event::Tick, Millis(*now));
            model.scheduler = scheduler;
            for command in commands {
                model.judge(command);
            }
            model.now = *now;
            run_untimed(&mut model, step);
        }
        let (source, start) = (SourceId(77), u64::from(last));
        model.scheduler.handle(Event::Resumed, Millis(start));
        model.scheduler.handle(Event::SourceAdded { source }, Millis(start));
        model.scheduler.handle(Event::Changed { source, pending_bytes: 1 }, Millis(start));
        let commands = model.scheduler.handle(Event::Tick, Millis(start + POLICY.wait_max_ms));
        let captures = commands.contains(&Command::Capture { source });
        prop_assert!(captures);
    }
}

/// As [`run`], but only the rules about what runs are judged.
fn run_untimed(model: &mut Model, step: &Step) {
    let event = match *step {
        Step::Send(event) => event,
        Step::EndUpload { source, newest, failed } => {
            let upload = model.running_of(source, newest);
            match failed {
                None => Event::UploadDone { source, upload },
                Some(retry) => Event::UploadFailed { source, upload, retry },
            }
        }
    };
    // the model adds up times of its own, which must not overflow where the clock is mad
    let now = std::mem::replace(&mut model.now, 0);
    model.note(event);
    model.now = now;
    for command in model.scheduler.handle(event, Millis(now)) {
        model.judge(command);
    }
}
