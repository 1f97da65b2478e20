//! When the service brings copies up to date, and what one store that is away means for the others: events in, commands
//! out, on a clock of the test.

#![allow(clippy::unwrap_used, reason = "tests")]

mod small_world;

use chatkeep_format::ObjectName;
use chatkeep_ipc::{Call, Error, VerifyDepth};
use chatkeep_planner::{Level, Millis, Prunable, Retry, SourceId};
use chatkeepd::catalogue::{Catalogue, CopyId};
use chatkeepd::copies::{CopyEnd, CopyOrder};
use chatkeepd::damage::{DamageKind, damage};
use chatkeepd::event::{Command, Event, Outcome, Stored, UploadOrder, Work};
use chatkeepd::fault::Fault;
use chatkeepd::follower::Captured;
use chatkeepd::service::Service;
use small_world::service::opened_with_commands;
use small_world::{BEGIN_US, World};

const SOURCE: SourceId = SourceId(0);
const HOUR_MS: u64 = 3_600_000;

/// A service with one source, a main store and two copies.
struct Two {
    world: World,
    service: Service,
    catalogue: Catalogue,
    now: u64,
}

impl Two {
    async fn start(levels: &[Level]) -> (Self, Vec<Command>) {
        Self::with(levels, "['disk', 'cloud', 'far']").await
    }

    async fn with(levels: &[Level], stores: &str) -> (Self, Vec<Command>) {
        let mut world = World::new();
        world.write(levels, BEGIN_US).await;
        let running = world.start().await;
        let catalogue = running.catalogue.clone();
        let path = |name: &str| world.folder.path().join(name).display().to_string();
        let store = |name: &str| format!("[[store]]\nname = '{name}'\nurl = 'file://{}'\n", path(name));
        let settings = format!(
            "{}{}[[source]]\nname = 'chat'\npath = '{}'\nstores = {stores}\n",
            store("cloud"),
            store("far"),
            path("chat.db")
        );
        let (service, commands) = opened_with_commands(&world, running, SOURCE, &settings, "");
        (Self { world, service, catalogue, now: 10 }, commands)
    }

    fn handle(&mut self, event: Event) -> Vec<Command> {
        self.now += 1;
        self.service.handle(event, Millis(self.now))
    }

    fn tick_after(&mut self, ms: u64) -> Vec<Command> {
        self.now += ms;
        self.handle(Event::Tick)
    }

    fn end(&mut self, store: &str, result: Result<CopyEnd, Fault>) -> Vec<Command> {
        if result.is_ok() {
            let copy = CopyId::new(&self.world.archive().id, store);
            let now_us = chatkeepd::clock::now_us();
            let note = |facts: &mut chatkeepd::catalogue::CopyFacts| {
                (facts.uploaded_us, facts.listed_us) = (now_us, now_us);
            };
            self.catalogue.update_copy(&copy, note).unwrap();
        }
        self.handle(Event::Copied { source: SOURCE, store: store.to_owned(), result })
    }
}

fn copies(commands: Vec<Command>) -> Vec<CopyOrder> {
    let copy = |command| match command {
        Command::Copy(order) => Some(*order),
        _ => None,
    };
    commands.into_iter().filter_map(copy).collect()
}

fn stores(commands: Vec<Command>) -> Vec<String> {
    copies(commands).into_iter().map(|order| order.store).collect()
}

fn away() -> Fault {
    Fault::new(Error::StoreUnreachable("not plugged in".to_owned()), Retry::WhenReachable)
}

#[tokio::test]
async fn every_copy_is_taken_up_at_the_start_and_waits_for_itself() {
    let (mut two, commands) = Two::start(&[Level::Base, Level::Entry]).await;
    let orders = copies(commands);
    assert_eq!(orders.iter().map(|order| order.store.as_str()).collect::<Vec<_>>(), ["cloud", "far"]);
    assert!(orders.iter().all(|order| order.list && order.waiting.is_empty() && !order.everything));
    assert_eq!(stores(two.end("cloud", Err(away()))), [""; 0]);
    assert_eq!(stores(two.end("far", Ok(CopyEnd::default()))), [""; 0]);
    // The one that is away comes back by itself, ever later, and the other one does not wait for it.
    assert_eq!(stores(two.tick_after(1_000)), ["cloud"]);
    assert_eq!(stores(two.end("cloud", Err(away()))), [""; 0]);
    assert_eq!(stores(two.tick_after(1_000)), [""; 0]);
    assert_eq!(stores(two.tick_after(1_000)), ["cloud"]);
    two.end("cloud", Ok(CopyEnd::default()));
    assert_eq!(stores(two.tick_after(HOUR_MS)), [""; 0], "nothing is to be done");
}

#[tokio::test]
async fn a_copy_that_stays_away_is_asked_every_five_minutes_at_last() {
    let (mut two, _) = Two::start(&[Level::Base]).await;
    two.end("far", Ok(CopyEnd::default()));
    for _ in 0..20 {
        two.end("cloud", Err(away()));
        let due = two.service.next_deadline().unwrap().0;
        assert!(due <= two.now + 300_000, "{due}");
        two.now = due.max(two.now + 300_000);
        assert_eq!(stores(two.handle(Event::Tick)), ["cloud"]);
    }
}

#[tokio::test]
async fn what_only_the_user_can_mend_is_tried_again_within_the_hour() {
    let (mut two, _) = Two::start(&[Level::Base]).await;
    two.end("far", Ok(CopyEnd::default()));
    two.end("cloud", Err(Error::StoreAuth("sign in".to_owned()).into()));
    assert_eq!(stores(two.tick_after(HOUR_MS / 2)), [""; 0]);
    assert_eq!(stores(two.tick_after(HOUR_MS / 2)), ["cloud"]);
}

#[tokio::test]
async fn a_pause_holds_copies_up_and_its_end_lets_them_go() {
    let (mut two, commands) = Two::start(&[Level::Base]).await;
    let cancelled = copies(commands).into_iter().map(|order| order.cancelled).collect::<Vec<_>>();
    let (reply, _) = tokio::sync::oneshot::channel();
    two.handle(Event::Call(Call::Pause { until: None, reason: "user".to_owned(), reply }));
    assert!(cancelled.iter().all(|flag| flag.load(std::sync::atomic::Ordering::Relaxed)));
    two.end("cloud", Err(Fault::cancelled()));
    two.end("far", Err(Fault::cancelled()));
    assert_eq!(stores(two.tick_after(HOUR_MS)), [""; 0]);
    let (reply, _) = tokio::sync::oneshot::channel();
    assert_eq!(stores(two.handle(Event::Call(Call::Resume { reply }))), ["cloud", "far"]);
}

/// One entry is written and put into the queue, as a capture does it.
async fn capture(two: &mut Two) -> Vec<Command> {
    let mut running = two.world.start_beside(&two.catalogue).await;
    let written = two.world.write_only(&mut running, Level::Entry, BEGIN_US + 1);
    let captured = Captured { written: Some(written), gap: None, gone: false, more: false };
    two.handle(Event::Captured { source: SOURCE, result: Ok(captured) })
}

fn uploads(commands: &[Command]) -> Vec<&UploadOrder> {
    fn upload(command: &Command) -> Option<&UploadOrder> {
        match command {
            Command::Upload(order) => Some(order),
            _ => None,
        }
    }
    commands.iter().filter_map(upload).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_goes_to_copies_when_the_main_store_has_it_or_is_away() {
    for main_is_away in [false, true] {
        let (mut two, _) = Two::start(&[Level::Base]).await;
        two.end("cloud", Ok(CopyEnd::default()));
        two.end("far", Ok(CopyEnd::default()));
        let commands = capture(&mut two).await;
        let first = uploads(&commands)[0].upload;
        assert_eq!(stores(commands), [""; 0], "the main store may refuse it");
        if main_is_away {
            let failed = Event::Uploaded { source: SOURCE, upload: first, result: Err(away()) };
            let orders = copies(two.handle(failed));
            assert_eq!(orders.len(), 2);
            for order in orders {
                assert_eq!(order.waiting.iter().map(|point| point.seq).collect::<Vec<_>>(), [2]);
                assert_eq!(order.written_seq, 2);
            }
            continue;
        }
        let uploaded = |upload| Event::Uploaded { source: SOURCE, upload, result: Ok(Stored::default()) };
        let commands = two.handle(uploaded(first));
        let entry = uploads(&commands)[0].upload;
        assert_eq!(stores(commands), [""; 0], "the packs alone are no point");
        let orders = copies(two.handle(uploaded(entry)));
        assert_eq!(orders.len(), 2);
        assert!(orders.iter().all(|order| order.waiting.is_empty() && !order.list));
    }
}

#[tokio::test]
async fn a_store_that_is_no_copy_any_more_is_forgotten() {
    let (two, _) = Two::with(&[Level::Base], "['disk', 'far']").await;
    let id = two.world.archive().id;
    let Two { world, service, catalogue, .. } = two;
    catalogue.update_copy(&CopyId::new(&id, "cloud"), |facts| facts.store = "cloud".to_owned()).unwrap();
    drop((service, catalogue));
    let running = world.start().await;
    let catalogue = running.catalogue.clone();
    opened_with_commands(&world, running, SOURCE, "", "");
    assert_eq!(catalogue.copies_of(&id), [""; 0]);
}

/// The order in the configuration is the other one: the copy becomes the main store when it has everything.
#[tokio::test]
async fn the_main_store_is_exchanged_when_the_copy_has_everything() {
    let (mut two, commands) = Two::with(&[Level::Base, Level::Entry], "['cloud', 'disk']").await;
    let orders = copies(commands);
    assert_eq!((orders[0].store.as_str(), orders[0].main.as_str()), ("cloud", "disk"));
    assert!(orders[0].everything && orders[0].list);
    assert_eq!(stores(two.end("cloud", Ok(CopyEnd::default()))), [""; 0], "it is said to be behind still");
    let registered =
        |two: &Two| std::fs::read_to_string(two.world.folder.path().join("data/registrations.toml")).unwrap();
    let copy = CopyId::new(&two.world.archive().id, "cloud");
    two.catalogue.update_copy(&copy, |facts| (facts.newest_seq, facts.lacking) = (2, 1)).unwrap();
    two.end("cloud", Ok(CopyEnd::default()));
    assert!(registered(&two).contains("store = \"disk\""), "it lacks a point");
    two.catalogue.update_copy(&copy, |facts| (facts.newest_seq, facts.lacking) = (1, 0)).unwrap();
    two.end("cloud", Ok(CopyEnd::default()));
    assert!(registered(&two).contains("store = \"disk\""), "it lacks the newest point");
    two.catalogue.update_copy(&copy, |facts| facts.newest_seq = 2).unwrap();
    two.end("cloud", Ok(CopyEnd::default()));
    let commands = two.handle(Event::Unfollowed { source: SOURCE });
    let opens = commands.iter().any(|command| matches!(command, Command::Open { .. }));
    assert!(opens, "its archive is opened anew, in the other store");
    let registered = registered(&two);
    assert!(
        registered.contains("store = \"cloud\"") && registered.contains("copies = [\"disk\"]"),
        "{registered}"
    );
}

/// How long a queue gets before captures are put off, or it is thinned out.
const QUEUE: usize = 32;

fn level(seq: u64) -> Level {
    if seq.is_multiple_of(12) { Level::Dozen } else { Level::Entry }
}

impl Two {
    fn changed(&mut self, pending_bytes: u64) -> Vec<Command> {
        self.now += 20_000;
        let mut commands = self.handle(Event::Changed { source: SOURCE, pending_bytes });
        commands.extend(self.tick_after(20_000));
        commands
    }

    /// Answers a capture with an entry of this level. The last upload that was begun.
    async fn captures(&mut self, level: Level) -> Vec<Command> {
        let mut running = self.world.start_beside(&self.catalogue).await;
        let written = self.world.write_only(&mut running, level, BEGIN_US + self.now as i64);
        let captured = Captured { written: Some(written), gap: None, gone: false, more: false };
        self.handle(Event::Captured { source: SOURCE, result: Ok(captured) })
    }

    /// The main store does not answer: whatever is sent there fails.
    fn fail_uploads(&mut self, commands: &[Command]) -> Vec<Command> {
        let failed: Vec<_> = uploads(commands).iter().map(|order| order.upload).collect();
        let fail = |upload| self.handle(Event::Uploaded { source: SOURCE, upload, result: Err(away()) });
        failed.into_iter().flat_map(fail).collect()
    }
}

fn is_capture(command: &Command) -> bool {
    matches!(command, Command::Capture { .. })
}

/// A week without the store: after a few entries nothing more is captured, and one capture holds all the rest.
#[tokio::test(flavor = "multi_thread")]
async fn without_any_store_one_capture_holds_it_all_in_the_end() {
    let (mut two, _) = Two::with(&[Level::Base], "['disk']").await;
    let mut captured = 0;
    let mut first = None;
    for commit in 1..200 {
        let mut commands = two.changed(commit);
        if commands.iter().any(is_capture) {
            captured += 1;
            commands.extend(two.captures(level(captured)).await);
        }
        first = first.or_else(|| uploads(&commands).first().map(|order| order.upload));
        two.fail_uploads(&commands);
    }
    assert_eq!(captured as usize, QUEUE + 1, "of 200 commits");
    // It is back: as soon as the first entry is up there is room for one capture, and no more.
    let mut captures = 0;
    let mut commands = two.tick_after(HOUR_MS);
    while let Some(order) = uploads(&commands).first() {
        let upload = order.upload;
        commands = two.handle(Event::Uploaded { source: SOURCE, upload, result: Ok(Stored::default()) });
        captures += commands.iter().filter(|command| is_capture(command)).count();
    }
    assert_eq!(captures, 1);
}

/// A copy takes what is captured, while the main store is away: the queue for that one holds what it needs in the end.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_copy_takes_what_is_captured_the_queue_holds_what_the_main_store_needs_in_the_end() {
    let (mut two, _) = Two::start(&[Level::Base, Level::Entry]).await;
    two.end("cloud", Ok(CopyEnd::default()));
    two.end("far", Err(away()));
    for seq in 3..=100 {
        let commands = two.changed(seq);
        assert!(commands.iter().any(is_capture), "entry {seq} is captured");
        two.fail_uploads(&commands);
        let commands = two.captures(level(seq)).await;
        let failed = two.fail_uploads(&commands);
        if commands.into_iter().chain(failed).any(|command| matches!(command, Command::Copy(_))) {
            two.end("cloud", Ok(CopyEnd::default()));
        }
    }
    let Two { world, service, catalogue, .. } = two;
    drop(service);
    // What is left in the queue is one log, and goes up after a restart.
    let mut running = world.start_beside(&catalogue).await;
    let waiting: Vec<u64> = running.opened.log.waiting.iter().map(|written| written.head.seq).collect();
    assert!(waiting.len() <= QUEUE && waiting[0] == 3 && waiting[waiting.len() - 1] == 100, "{waiting:?}");
    assert_eq!(running.opened.log.written.seq, 100);
    assert!(!running.opened.log.rebase);
    let puts = || {
        let log = world.store.log().into_iter();
        log.filter(|call| call.operation == chatkeep_store::chaos::Operation::Put).count()
    };
    let before = puts();
    world.upload(&mut running).await.unwrap();
    assert!(puts() - before <= 2 * QUEUE, "{} objects for 98 entries", puts() - before);
    drop((running, catalogue));
    let offered = world.assert_all_offered_restore("after a long time away").await;
    assert_eq!(offered.last(), Some(&100));
    // A new machine reads the same log, and another installation cannot continue it in between.
    world.lose_cache();
    assert_eq!(world.assert_all_offered_restore("without the cache").await, offered);
}

/// Somebody else continued the log meanwhile: the numbers that were dropped must not hide that.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_gaps_does_not_write_past_another_installation() {
    let mut world = World::new();
    world.write(&[Level::Base], BEGIN_US).await;
    let mut running = world.start().await;
    let log: Vec<_> = (0..5)
        .map(|at| {
            world.write_only(
                &mut running,
                if at == 4 { Level::Dozen } else { Level::Entry },
                BEGIN_US + 1 + at,
            )
        })
        .collect();
    // As the service thins it: the first stays, and what the newest builds on.
    for dropped in [3, 4, 5] {
        running.opened.spool.drop_entry(dropped);
    }
    let catalogue = running.catalogue.clone();
    drop(running);
    let mut running = world.start_beside(&catalogue).await;
    assert_eq!(running.opened.log.waiting.iter().map(|written| written.head.seq).collect::<Vec<_>>(), [2, 6]);
    // The first went up; then another machine adopts the archive, and writes entry 3.
    let second = running.opened.log.waiting.pop_back().unwrap();
    world.upload(&mut running).await.unwrap();
    let mut other = world.copy().await;
    other.lose_cache();
    std::fs::remove_dir_all(other.folder.path().join("spool")).unwrap();
    other.write(&[Level::Entry], BEGIN_US + 10).await;
    let name = ObjectName::Entry(3);
    let foreign = other.archive().get(name).await.unwrap();
    world.archive().put_new(name, foreign.clone()).await.unwrap();
    running.opened.log.waiting.push_back(second);
    let fault = world.upload(&mut running).await.unwrap_err();
    assert!(matches!(fault.error, Error::WriterFenced(_)), "{fault:?}");
    assert_eq!(world.archive().get(name).await.unwrap(), foreign);
    assert_eq!(world.entries().await, [1, 2, 3]);
    assert_eq!(log.len(), 5);
}

fn jobs(commands: Vec<Command>) -> Vec<(chatkeep_ipc::JobId, Work)> {
    let job = |command| match command {
        Command::Run { job, work, .. } => Some((job, *work)),
        _ => None,
    };
    commands.into_iter().filter_map(job).collect()
}

#[tokio::test]
async fn what_is_found_damaged_is_looked_for_in_copies_before_it_is_made_again() {
    let (mut two, _) = Two::start(&[Level::Base, Level::Entry]).await;
    two.end("cloud", Ok(CopyEnd::default()));
    let id = two.world.archive().id;
    let packs = two.catalogue.point(&id, 1).unwrap().packs;
    two.catalogue.put_copied(&CopyId::new(&id, "cloud"), [Prunable::Pack(packs[0])]).unwrap();
    let name = ObjectName::Pack(packs[0]);
    let damages = vec![damage(&id, name, DamageKind::Missing, "gone")];
    let job: chatkeep_ipc::JobId = "test_job_901".parse().unwrap();
    let (reply, _) = tokio::sync::oneshot::channel();
    let new = chatkeep_ipc::NewJob { id: job.clone(), started_by: "test".to_owned() };
    let depth = VerifyDepth::Chunks;
    two.handle(Event::Call(Call::Verify { database: "chat".to_owned(), depth, job: new, reply }));
    let ended = |job, outcome| Event::JobEnded { job, result: Ok(outcome), vault: None, keys: None };
    let found = Outcome::Verified { depth, points: vec![2, 1], damages };
    let mut begun = jobs(two.handle(ended(job, found)));
    let (job, Work::Fetch { copies, objects, .. }) = begun.remove(0) else { panic!() };
    assert_eq!((copies[0].0.as_str(), objects.as_slice()), ("cloud", &[name][..]));
    two.handle(ended(job, Outcome::Fetched { objects }));
    assert!(two.catalogue.damage(&id).is_empty());
}

#[tokio::test]
async fn copies_are_read_back_one_after_the_other_and_what_is_damaged_is_sent_again() {
    let (mut two, _) = Two::start(&[Level::Base, Level::Entry]).await;
    let id = two.world.archive().id;
    two.end("cloud", Ok(CopyEnd::default()));
    two.end("far", Err(away()));
    // All else was done a moment ago.
    let now_us = chatkeepd::clock::now_us();
    two.catalogue.update_facts(&id, |facts| (facts.verified_us, facts.drilled_us) = (now_us, now_us));
    two.now = 15 * 60_000;
    let mut verified = None;
    for _ in 0..200 {
        for (job, work) in jobs(two.tick_after(60_000)) {
            match work {
                Work::VerifyCopy { store, .. } => verified = Some((job, store)),
                other => {
                    let outcome = match other {
                        Work::Prune { .. } => Outcome::Pruned(Box::default()),
                        Work::Verify { depth: VerifyDepth::Restore, .. } => {
                            Outcome::Drilled { points: vec![2], failure: None }
                        }
                        _ => Outcome::Verified {
                            depth: VerifyDepth::Chunks,
                            points: vec![2],
                            damages: Vec::new(),
                        },
                    };
                    two.handle(Event::JobEnded { job, result: Ok(outcome), vault: None, keys: None });
                }
            }
        }
        if verified.is_some() {
            break;
        }
    }
    let (job, store) = verified.unwrap();
    assert_eq!(store, "cloud", "the other one is away");
    let damages = vec![damage(&id, ObjectName::Entry(2), DamageKind::Damaged, "a bit is wrong")];
    let outcome = Outcome::CopyVerified { store, damages };
    let commands = two.handle(Event::JobEnded { job, result: Ok(outcome), vault: None, keys: None });
    assert_eq!(stores(commands), ["cloud"]);
    let copy = CopyId::new(&id, "cloud");
    assert!(two.catalogue.spoiled(&copy).contains(&Prunable::Entry(2)));
    assert_eq!(two.catalogue.copy_facts(&copy).verified_us, 0);
    assert!(two.catalogue.damage(&id).is_empty(), "the main store is not damaged");
}
