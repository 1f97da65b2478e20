//! What the service begins by itself, and when: events in, commands out, on a clock of the test.

#![allow(clippy::unwrap_used, reason = "tests")]

mod small_world;

use chatkeep_ipc::{Call, Error, JobId, VerifyDepth};
use chatkeep_planner::{Conditions, Level, Millis, SourceId};
use chatkeepd::event::{Command, Event, Outcome, Work};
use chatkeepd::fault::Fault;
use chatkeepd::service::Service;
use small_world::service::opened;
use small_world::{BEGIN_US, World};

const MINUTE: u64 = 60_000;
const SOURCE: SourceId = SourceId(0);

/// A service with one source whose archive is open.
async fn service(world: &mut World, settings: &str) -> Service {
    world.write(&[Level::Base, Level::Entry], BEGIN_US).await;
    let running = world.start().await;
    let mut service = opened(world, running, SOURCE, settings, "");
    service.handle(Event::Found { source: SOURCE }, Millis(2));
    service
}

/// What is begun at a tick.
fn tick(service: &mut Service, minute: u64) -> Option<(JobId, &'static str)> {
    begun(service.handle(Event::Tick, Millis(minute * MINUTE)))
}

fn begun(commands: Vec<Command>) -> Option<(JobId, &'static str)> {
    commands.into_iter().find_map(|command| match command {
        Command::Run { job, work, .. } => Some((
            job,
            match *work {
                Work::Prune { dry_run: false, .. } => "prune",
                Work::Verify { depth: VerifyDepth::Chunks, .. } => "verify",
                Work::Verify { depth: VerifyDepth::Restore, .. } => "drill",
                Work::Retain { ref stores, .. } if stores.len() == 1 => "retain",
                _ => "something else",
            },
        )),
        _ => None,
    })
}

/// A job ends; what is begun then.
fn end(
    service: &mut Service,
    job: JobId,
    result: Result<Outcome, Fault>,
    minute: u64,
) -> Option<(JobId, &'static str)> {
    let ended = Event::JobEnded { job, result, vault: None, keys: None };
    begun(service.handle(ended, Millis(minute * MINUTE)))
}

#[tokio::test]
async fn what_is_due_is_done_one_after_the_other_from_15_minutes_on() {
    let mut world = World::new();
    let mut service = service(&mut world, "").await;
    assert!(tick(&mut service, 14).is_none());
    let (job, what) = tick(&mut service, 16).unwrap();
    assert_eq!(what, "prune");
    assert!(tick(&mut service, 18).is_none(), "one thing at a time");
    let (job, what) = end(&mut service, job, Ok(Outcome::Pruned(Box::default())), 20).unwrap();
    assert_eq!(what, "drill");
    let drilled = Outcome::Drilled { points: vec![2], failure: None };
    let (job, what) = end(&mut service, job, Ok(drilled), 24).unwrap();
    assert_eq!(what, "verify");
    let fault: Fault = Error::StoreUnreachable("no answer".to_owned()).into();
    assert!(end(&mut service, job, Err(fault), 28).is_none());
    // the prune above noted nothing: it did not come to a plan
    assert!((29..76).all(|minute| tick(&mut service, minute).is_none()), "what did not succeed has an hour");
    let (job, what) = tick(&mut service, 77).unwrap();
    assert_eq!(what, "prune");
    assert!(end(&mut service, job, Ok(Outcome::Pruned(Box::default())), 78).is_none());
    let (job, what) = tick(&mut service, 140).unwrap();
    assert_eq!(what, "prune");
    assert!(end(&mut service, job, Err(Error::Cancelled(String::new()).into()), 24 * 60).is_some());
    let begun: Vec<_> = (24 * 60 + 1..26 * 60).filter_map(|minute| tick(&mut service, minute)).collect();
    assert_eq!(begun, [], "the prune is at work");
}

#[tokio::test]
async fn what_is_set_to_never_is_not_done() {
    let mut world = World::new();
    let settings = "[upkeep]\nprune_every = 'never'\nverify_every = '0'\ndrill_every = '0d'\n";
    let mut service = service(&mut world, settings).await;
    assert!((15..2000).all(|minute| tick(&mut service, minute).is_none()));
}

#[tokio::test]
async fn a_pause_and_a_capture_under_way_come_first() {
    let mut world = World::new();
    let mut service = service(&mut world, "").await;
    let call = |call| Event::Call(call);
    let pause =
        Call::Pause { until: None, reason: "user".to_owned(), reply: tokio::sync::oneshot::channel().0 };
    service.handle(call(pause), Millis(MINUTE));
    assert!(tick(&mut service, 20).is_none(), "paused");
    service.handle(call(Call::Resume { reply: tokio::sync::oneshot::channel().0 }), Millis(21 * MINUTE));
    let changed = Event::Changed { source: SOURCE, pending_bytes: 100 << 20 };
    let commands = service.handle(changed, Millis(21 * MINUTE + 1));
    assert!(commands.iter().any(|command| matches!(command, Command::Capture { .. })));
    assert!(tick(&mut service, 23).is_none(), "something is captured");
    let captured = chatkeepd::follower::Captured { written: None, gap: None, gone: false, more: false };
    let commands =
        service.handle(Event::Captured { source: SOURCE, result: Ok(captured) }, Millis(25 * MINUTE));
    assert_eq!(begun(commands).unwrap().1, "prune");
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_left_alone() {
    let mut world = World::new();
    let mut service = service(&mut world, "").await;
    let job: JobId = "test_job_900".parse().unwrap();
    let (reply, _) = tokio::sync::oneshot::channel();
    let new = chatkeep_ipc::NewJob { id: job.clone(), started_by: "test".to_owned() };
    let restart = Call::Prune { database: "chat".to_owned(), dry_run: true, job: new, reply };
    assert_eq!(begun(service.handle(Event::Call(restart), Millis(MINUTE))).unwrap().1, "something else");
    assert!(end(&mut service, job, Ok(Outcome::Pruned(Box::default())), 2).is_none());
    // the archive is opened again, and the store is away
    service.handle(
        Event::Opened { source: SOURCE, result: Err(Error::StoreUnreachable("away".to_owned()).into()) },
        Millis(3 * MINUTE),
    );
    assert!((16..100).all(|minute| tick(&mut service, minute).is_none()));
}

#[tokio::test]
async fn locks_against_deletion_are_renewed_before_anything_else_and_every_half_of_their_time() {
    let mut world = World::new();
    world.write(&[Level::Base, Level::Entry], BEGIN_US).await;
    let running = world.start().await;
    let mut service = opened(&world, running, SOURCE, "", "retain = '30d'\n");
    service.handle(Event::Found { source: SOURCE }, Millis(2));
    let (job, what) = tick(&mut service, 16).unwrap();
    assert_eq!(what, "retain");
    let (_, what) = end(&mut service, job, Ok(Outcome::Retained), 18).unwrap();
    assert_eq!(what, "prune", "renewed, and not again");
}

#[tokio::test]
async fn upkeep_waits_for_a_line_that_may_be_used() {
    let mut world = World::new();
    let mut service = service(&mut world, "").await;
    let on_battery = Conditions { on_battery: true, battery_percent: Some(10), ..Conditions::default() };
    let conditions = |conditions| Event::Conditions { conditions, seen: tokio::sync::oneshot::channel().0 };
    service.handle(conditions(on_battery), Millis(MINUTE));
    assert!((15..30).all(|minute| tick(&mut service, minute).is_none()));
    // plugged in: the event itself begins it
    let begun = begun(service.handle(conditions(Conditions::default()), Millis(31 * MINUTE)));
    let begun = begun.or_else(|| tick(&mut service, 33)).unwrap();
    assert_eq!(begun.1, "prune");
}

#[tokio::test]
async fn what_only_the_user_can_mend_is_told_once() {
    let mut world = World::new();
    let mut service = service(&mut world, "").await;
    let mut said = |error: Error, at: u64| {
        let opened = Event::Opened { source: SOURCE, result: Err(error.into()) };
        let commands = service.handle(opened, Millis(at * MINUTE));
        let notice = commands.into_iter().find_map(|command| match command {
            Command::Notify(notice) => Some(notice.summary),
            _ => None,
        });
        notice.unwrap_or_default()
    };
    assert_eq!(said(Error::StoreUnreachable("away".to_owned()), 1), "");
    assert!(said(Error::StoreAuth("the token ended".to_owned()), 2).contains("sign in again"));
    assert_eq!(said(Error::StoreAuth("the token ended".to_owned()), 3), "");
    assert!(said(Error::StoreFull("no room".to_owned()), 4).contains("full"));
}
