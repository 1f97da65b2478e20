//! The scheduler's rules, one sentence each.

use chatkeep_planner::{
    Backoff, CapturePolicy, Command, Event, Millis, Retry, Scheduler, SourceId, SourceView, UploadId,
};

const A: SourceId = SourceId(1);
const B: SourceId = SourceId(2);
const C: SourceId = SourceId(3);
const CAPTURE_A: Command = Command::Capture { source: A };

/// A scheduler, the commands it gave, and the time.
struct World {
    scheduler: Scheduler,
    now: u64,
}

impl World {
    fn with(sources: &[SourceId]) -> Self {
        Self::with_policy(sources, CapturePolicy::default())
    }

    fn with_policy(sources: &[SourceId], policy: CapturePolicy) -> Self {
        let mut world = Self { scheduler: Scheduler::new(policy), now: 0 };
        for source in sources {
            world.expect(Event::SourceAdded { source: *source }, &[]);
        }
        world
    }

    /// Lets something happen at once, and requires these commands.
    #[track_caller]
    fn expect(&mut self, event: Event, commands: &[Command]) {
        assert_eq!(self.scheduler.handle(event, Millis(self.now)), commands, "{event:?} at {}", self.now);
    }

    /// Requires that nothing is due before `at`, and that these commands are then.
    #[track_caller]
    fn expect_at(&mut self, at: u64, commands: &[Command]) {
        assert_eq!(self.scheduler.next_deadline(), Some(Millis(at)));
        self.now = at - 1;
        self.expect(Event::Tick, &[]);
        self.now = at;
        self.expect(Event::Tick, commands);
    }

    #[track_caller]
    fn expect_no_deadline(&mut self) {
        assert_eq!(self.scheduler.next_deadline(), None);
        self.now += 1_000_000_000;
        self.expect(Event::Tick, &[]);
    }

    fn state(&self, source: SourceId) -> SourceView {
        self.scheduler.state(source).expect("it is watched")
    }

    /// Waits exactly until what failed is tried again, and requires these commands.
    #[track_caller]
    fn expect_retry(&mut self, wait_ms: u64, commands: &[Command]) {
        self.expect_at(self.now + wait_ms, commands);
    }
}

fn changed(source: SourceId, pending_bytes: u64) -> Event {
    Event::Changed { source, pending_bytes }
}

fn done(source: SourceId) -> Event {
    Event::CaptureDone { source, more: false }
}

fn enqueued(source: SourceId, upload: u64) -> Event {
    Event::Enqueued { source, upload: UploadId(upload), entry: false }
}

fn entry_enqueued(source: SourceId, upload: u64) -> Event {
    Event::Enqueued { source, upload: UploadId(upload), entry: true }
}

fn uploaded(source: SourceId, upload: u64) -> Event {
    Event::UploadDone { source, upload: UploadId(upload) }
}

fn not_uploaded(source: SourceId, upload: u64, retry: Retry) -> Event {
    Event::UploadFailed { source, upload: UploadId(upload), retry }
}

fn upload(source: SourceId, upload: u64) -> Command {
    Command::Upload { source, upload: UploadId(upload) }
}

// Captures.

#[test]
fn a_change_is_captured_after_two_seconds_of_silence() {
    let mut world = World::with(&[A]);
    world.expect(changed(A, 100), &[]);
    world.expect_at(2_000, &[CAPTURE_A]);
    world.expect(done(A), &[]);
    world.expect_no_deadline();
}

#[test]
fn activity_puts_a_capture_off() {
    let mut world = World::with(&[A]);
    world.expect(changed(A, 100), &[]);
    world.now = 1_500;
    world.expect(changed(A, 200), &[]);
    world.expect_at(3_500, &[CAPTURE_A]);
}

#[test]
fn a_look_that_finds_the_same_changes_again_is_silence() {
    let mut world = World::with(&[A]);
    world.expect(changed(A, 100), &[]);
    world.now = 1_500;
    world.expect(changed(A, 100), &[]);
    world.expect_at(2_000, &[CAPTURE_A]);
}

#[test]
fn activity_without_end_is_captured_after_ten_seconds() {
    let mut world = World::with(&[A]);
    for second in 0..10 {
        world.now = second * 1_000;
        world.expect(changed(A, second + 1), &[]);
    }
    world.expect_at(10_000, &[CAPTURE_A]);
}

#[test]
fn eight_mebibytes_are_captured_at_once() {
    let mut world = World::with(&[A]);
    world.expect(changed(A, (8 << 20) - 1), &[]);
    world.expect(changed(A, 8 << 20), &[CAPTURE_A]);
}

#[test]
fn a_person_need_not_wait() {
    let mut world = World::with(&[A]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
}

#[test]
fn a_store_that_is_to_be_spared_lets_captures_wait_unless_a_person_asks() {
    let mut world = World::with(&[A]);
    world.expect(Event::Spare { source: A, wait_ms: 60_000 }, &[]);
    world.expect(changed(A, 1), &[]);
    world.expect_at(60_000, &[CAPTURE_A]);
    world.expect(done(A), &[]);
    world.expect(Event::Spare { source: A, wait_ms: 60_000 }, &[]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
}

#[test]
fn asking_during_a_capture_leads_to_one_more() {
    let mut world = World::with(&[A]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
    world.expect(Event::CaptureNow { source: A }, &[]);
    world.expect(Event::CaptureNow { source: A }, &[]);
    world.expect(done(A), &[CAPTURE_A]);
    world.expect(done(A), &[]);
    world.expect_no_deadline();
}

#[test]
fn what_looks_find_during_a_capture_counts_only_if_the_capture_lacks_it() {
    for (more, deadline) in [(false, None), (true, Some(Millis(3_000)))] {
        let mut world = World::with(&[A]);
        world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
        world.now = 1_000;
        world.expect(changed(A, 9 << 20), &[]);
        world.now = 1_500;
        world.expect(Event::CaptureDone { source: A, more }, &[]);
        assert_eq!(world.scheduler.next_deadline(), deadline);
    }
}

#[test]
fn changes_that_nobody_saw_during_a_capture_are_captured_too() {
    let mut world = World::with(&[A]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
    world.now = 500;
    world.expect(Event::CaptureDone { source: A, more: true }, &[]);
    world.expect_at(2_500, &[CAPTURE_A]);
}

#[test]
fn a_capture_that_failed_is_tried_again_later_and_later() {
    let mut world = World::with(&[A]);
    world.expect(changed(A, 1), &[]);
    world.expect_at(2_000, &[CAPTURE_A]);
    for failures in 1..=12 {
        world.expect(Event::CaptureFailed { source: A, retry: Retry::Backoff }, &[]);
        assert_eq!(world.state(A).failed_attempts, failures);
        world.expect_retry(Backoff::default().delay_ms(A, failures), &[CAPTURE_A]);
    }
    world.expect(done(A), &[]);
    assert_eq!(world.state(A).failed_attempts, 0);
    world.expect_no_deadline();
}

#[test]
fn a_flood_of_changes_does_not_cut_a_back_off_short() {
    let mut world = World::with(&[A]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
    world.expect(Event::CaptureFailed { source: A, retry: Retry::After { ms: 50_000 } }, &[]);
    world.expect(changed(A, 100 << 20), &[]);
    world.expect_retry(50_000, &[CAPTURE_A]);
}

#[test]
fn a_capture_that_a_person_asked_for_is_not_forgotten_when_it_fails() {
    let mut world = World::with(&[A]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
    world.expect(Event::CaptureFailed { source: A, retry: Retry::Backoff }, &[]);
    world.now = 2_000;
    world.expect(Event::Tick, &[CAPTURE_A]);
}

#[test]
fn a_person_cuts_a_back_off_short() {
    for retry in [Retry::Backoff, Retry::Never, Retry::WhenReachable, Retry::After { ms: 900_000 }] {
        let mut world = World::with(&[A]);
        world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
        world.expect(Event::CaptureFailed { source: A, retry }, &[]);
        world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
    }
}

// Uploads.

#[test]
fn uploads_of_a_source_go_one_by_one_in_their_order() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 7), &[upload(A, 7)]);
    world.expect(enqueued(A, 5), &[]);
    world.expect(entry_enqueued(A, 6), &[]);
    assert_eq!(world.state(A).waiting_uploads, 3);
    world.expect(uploaded(A, 7), &[upload(A, 5)]);
    world.expect(uploaded(A, 5), &[upload(A, 6)]);
    world.expect(uploaded(A, 6), &[]);
    assert!(world.scheduler.is_idle());
}

#[test]
fn data_goes_up_side_by_side_once_the_store_has_answered_and_its_entry_alone() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    for data in 2..5 {
        world.expect(enqueued(A, data), &[]);
    }
    world.expect(entry_enqueued(A, 5), &[]);
    world.expect(enqueued(A, 6), &[]);
    world.expect(uploaded(A, 1), &[upload(A, 2), upload(A, 3)]);
    world.expect(uploaded(A, 3), &[upload(A, 4)]);
    world.expect(uploaded(A, 2), &[]);
    world.expect(uploaded(A, 4), &[upload(A, 5)]);
    world.expect(uploaded(A, 5), &[upload(A, 6)]);
}

#[test]
fn of_two_uploads_that_fail_side_by_side_one_is_tried_again_first() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    for data in 2..5 {
        world.expect(enqueued(A, data), &[]);
    }
    world.expect(uploaded(A, 1), &[upload(A, 2), upload(A, 3)]);
    world.expect(not_uploaded(A, 2, Retry::Backoff), &[]);
    world.expect(not_uploaded(A, 3, Retry::Backoff), &[]);
    assert_eq!(world.state(A).failed_attempts, 1, "it is one outage");
    world.expect_retry(Backoff::default().delay_ms(A, 1), &[upload(A, 2)]);
    world.expect(uploaded(A, 2), &[upload(A, 3), upload(A, 4)]);
}

#[test]
fn what_went_up_beside_a_failure_does_not_end_the_wait() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    for data in 2..5 {
        world.expect(enqueued(A, data), &[]);
    }
    world.expect(uploaded(A, 1), &[upload(A, 2), upload(A, 3)]);
    world.expect(not_uploaded(A, 2, Retry::After { ms: 5_000 }), &[]);
    world.expect(uploaded(A, 3), &[]);
    world.expect_retry(5_000, &[upload(A, 2)]);
}

#[test]
fn an_answer_about_another_object_ends_no_upload() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(enqueued(A, 2), &[]);
    world.expect(uploaded(A, 2), &[]);
    world.expect(not_uploaded(A, 2, Retry::Backoff), &[]);
    assert_eq!(world.state(A).waiting_uploads, 2);
    world.expect(uploaded(A, 1), &[upload(A, 2)]);
}

#[test]
fn a_failed_upload_is_not_overtaken_by_the_next_one() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(entry_enqueued(A, 2), &[]);
    world.expect(not_uploaded(A, 1, Retry::Backoff), &[]);
    assert!(world.state(A).next_attempt.is_some());
    world.expect_retry(Backoff::default().delay_ms(A, 1), &[upload(A, 1)]);
}

#[test]
fn two_uploads_run_at_once_and_no_more() {
    let mut world = World::with(&[A, B, C]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(enqueued(B, 2), &[upload(B, 2)]);
    world.expect(enqueued(C, 3), &[]);
    assert_eq!(world.scheduler.next_deadline(), None, "it waits for an event, not for a time");
    world.expect(uploaded(B, 2), &[upload(C, 3)]);
}

#[test]
fn sources_take_turns() {
    let one = CapturePolicy { uploads_at_once: 1, ..CapturePolicy::default() };
    let mut world = World::with_policy(&[A, B, C], one);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    for (source, number) in [(A, 2), (B, 11), (B, 12), (C, 21), (C, 22)] {
        world.expect(enqueued(source, number), &[]);
    }
    world.expect(uploaded(A, 1), &[upload(B, 11)]);
    world.expect(uploaded(B, 11), &[upload(C, 21)]);
    world.expect(uploaded(C, 21), &[upload(A, 2)]);
    world.expect(uploaded(A, 2), &[upload(B, 12)]);
}

#[test]
fn an_entry_goes_ahead_of_others_data_but_not_twice_in_a_row() {
    let one = CapturePolicy { uploads_at_once: 1, ..CapturePolicy::default() };
    let mut world = World::with_policy(&[A, B], one);
    world.expect(entry_enqueued(A, 1), &[upload(A, 1)]);
    world.expect(entry_enqueued(A, 2), &[]);
    world.expect(entry_enqueued(A, 3), &[]);
    world.expect(enqueued(B, 11), &[]);
    world.expect(enqueued(B, 12), &[]);
    world.expect(uploaded(A, 1), &[upload(A, 2)]);
    world.expect(uploaded(A, 2), &[upload(B, 11)]);
}

#[test]
fn an_object_enqueued_twice_goes_up_once() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(enqueued(A, 1), &[]);
    world.expect(uploaded(A, 1), &[]);
    assert_eq!(world.state(A).waiting_uploads, 0);
}

#[test]
fn a_store_that_names_a_time_is_left_alone_until_then_and_for_an_hour_at_most() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(not_uploaded(A, 1, Retry::After { ms: 30_000 }), &[]);
    world.expect(Event::StoreReachable { source: A }, &[]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
    world.expect_retry(30_000, &[upload(A, 1)]);
    world.expect(not_uploaded(A, 1, Retry::After { ms: u64::MAX }), &[]);
    world.expect_retry(3_600_000, &[upload(A, 1)]);
}

#[test]
fn a_store_that_is_back_ends_the_wait_for_it_and_makes_the_next_one_short() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    for _ in 0..8 {
        world.expect(not_uploaded(A, 1, Retry::WhenReachable), &[]);
        world.now += 300_000;
        world.expect(Event::Tick, &[upload(A, 1)]);
    }
    world.expect(not_uploaded(A, 1, Retry::WhenReachable), &[]);
    world.expect(Event::StoreReachable { source: A }, &[upload(A, 1)]);
    world.expect(not_uploaded(A, 1, Retry::WhenReachable), &[]);
    world.expect_retry(Backoff::default().delay_ms(A, 1), &[upload(A, 1)]);
}

#[test]
fn a_store_that_is_back_does_not_shorten_the_back_off_after_other_failures() {
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(not_uploaded(A, 1, Retry::Backoff), &[]);
    world.expect(Event::StoreReachable { source: A }, &[]);
}

#[test]
fn what_the_user_must_mend_waits_for_a_sign_that_it_is() {
    for sign in [Event::Resumed, Event::StoreReachable { source: A }] {
        let mut world = World::with(&[A]);
        world.expect(enqueued(A, 1), &[upload(A, 1)]);
        world.expect(not_uploaded(A, 1, Retry::Never), &[]);
        world.expect_no_deadline();
        world.expect(sign, &[upload(A, 1)]);
    }
    let mut world = World::with(&[A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(not_uploaded(A, 1, Retry::Never), &[]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A, upload(A, 1)]);
}

// Pause, removal, shutdown, nonsense.

#[test]
fn a_pause_stops_everything_but_what_a_person_asks_for() {
    let mut world = World::with(&[A]);
    world.expect(Event::Paused, &[]);
    world.expect(changed(A, 100 << 20), &[]);
    world.expect(enqueued(A, 1), &[]);
    world.expect_no_deadline();
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A, upload(A, 1)]);
    world.expect(enqueued(A, 2), &[]);
    world.expect(Event::CaptureDone { source: A, more: true }, &[]);
    world.expect(uploaded(A, 1), &[upload(A, 2)]);
    world.expect(uploaded(A, 2), &[]);
    world.expect(enqueued(A, 3), &[]);
    world.expect_no_deadline();
    world.expect(Event::Resumed, &[CAPTURE_A, upload(A, 3)]);
}

#[test]
fn nothing_is_started_during_a_shutdown() {
    let mut world = World::with(&[A]);
    world.expect(changed(A, 1), &[]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(enqueued(A, 2), &[]);
    world.expect(Event::Stopping, &[]);
    assert!(!world.scheduler.is_idle());
    world.expect(uploaded(A, 1), &[]);
    world.expect(Event::CaptureNow { source: A }, &[]);
    world.expect(Event::Resumed, &[]);
    world.expect_no_deadline();
    assert!(world.scheduler.is_idle());
}

#[test]
fn a_removed_source_is_forgotten_once_its_capture_has_ended() {
    let mut world = World::with(&[A]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(enqueued(A, 2), &[]);
    world.expect(Event::SourceRemoved { source: A }, &[]);
    assert_eq!(world.scheduler.state(A), None);
    assert!(!world.scheduler.is_idle());
    world.expect(uploaded(A, 1), &[]);
    world.expect(Event::CaptureFailed { source: A, retry: Retry::Backoff }, &[]);
    assert!(world.scheduler.is_idle());
    world.expect_no_deadline();
}

#[test]
fn a_source_added_again_waits_for_the_capture_of_the_removed_one() {
    let mut world = World::with(&[A]);
    world.expect(Event::CaptureNow { source: A }, &[CAPTURE_A]);
    world.expect(Event::SourceRemoved { source: A }, &[]);
    world.expect(Event::SourceAdded { source: A }, &[]);
    world.expect(changed(A, 100 << 20), &[]);
    // the old capture does not answer for what was found since
    world.expect(done(A), &[CAPTURE_A]);
}

#[test]
fn an_upload_of_a_removed_source_holds_nobody_up() {
    let one = CapturePolicy { uploads_at_once: 1, ..CapturePolicy::default() };
    let mut world = World::with_policy(&[A, B], one);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
    world.expect(enqueued(B, 11), &[]);
    world.expect(Event::SourceRemoved { source: A }, &[upload(B, 11)]);
    world.expect(Event::SourceAdded { source: A }, &[]);
    world.expect(enqueued(A, 2), &[]);
    world.expect(uploaded(B, 11), &[upload(A, 2)]);
    // a late answer about the old one ends nothing
    world.expect(not_uploaded(A, 1, Retry::Never), &[]);
    assert_eq!(world.state(A).failed_attempts, 0);
    world.expect(uploaded(A, 2), &[]);
    assert!(world.scheduler.is_idle());
}

#[test]
fn events_about_what_does_not_run_change_nothing() {
    let mut world = World::with(&[A]);
    for event in [
        changed(B, 100 << 20),
        Event::CaptureNow { source: B },
        enqueued(B, 1),
        done(A),
        Event::CaptureFailed { source: A, retry: Retry::Never },
        uploaded(A, 1),
        not_uploaded(A, 1, Retry::Never),
        Event::SourceRemoved { source: B },
        Event::StoreReachable { source: B },
    ] {
        world.expect(event, &[]);
    }
    assert_eq!(world.state(A).failed_attempts, 0);
    assert_eq!(world.scheduler.state(B), None);
    world.expect(changed(A, 1), &[]);
    world.expect_at(2_000, &[CAPTURE_A]);
}

#[test]
fn adding_a_source_twice_loses_nothing() {
    let mut world = World::with(&[A]);
    world.expect(changed(A, 1), &[]);
    world.expect(Event::SourceAdded { source: A }, &[]);
    world.expect_at(2_000, &[CAPTURE_A]);
}

#[test]
fn a_clock_that_steps_back_delays_but_never_stalls() {
    let mut world = World::with(&[A]);
    world.now = u64::MAX;
    world.expect(changed(A, 1), &[]);
    world.now = 1_000;
    world.expect(Event::Tick, &[]);
    world.expect_at(3_000, &[CAPTURE_A]);
}

#[test]
fn a_new_policy_holds_for_what_waits_already() {
    let mut world = World::with(&[A]);
    world.expect(changed(A, 1), &[]);
    world.scheduler.set_policy(CapturePolicy { quiet_ms: 500, ..CapturePolicy::default() });
    world.expect_at(500, &[CAPTURE_A]);
}

#[test]
fn no_slots_at_all_count_as_one() {
    let none = CapturePolicy { uploads_at_once: 0, ..CapturePolicy::default() };
    let mut world = World::with_policy(&[A], none);
    world.expect(enqueued(A, 1), &[upload(A, 1)]);
}
