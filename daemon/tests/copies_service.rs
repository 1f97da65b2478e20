//! When the service brings copies up to date, and what one store that is away means for the others: events in, commands
//! out, on a clock of the test.

#![allow(clippy::unwrap_used, reason = "tests")]

mod small_world;

use chatkeep_ipc::{Call, Error};
use chatkeep_planner::{Level, Millis, Retry, SourceId};
use chatkeepd::catalogue::{Catalogue, CopyId};
use chatkeepd::copies::{CopyEnd, CopyOrder};
use chatkeepd::event::{Command, Event, Stored, UploadOrder};
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
    let copy = CopyId::new(&two.world.archive().id, "cloud");
    two.catalogue.update_copy(&copy, |facts| facts.newest_seq = 2).unwrap();
    two.end("cloud", Ok(CopyEnd::default()));
    let commands = two.handle(Event::Unfollowed { source: SOURCE });
    let opens = commands.iter().any(|command| matches!(command, Command::Open { .. }));
    assert!(opens, "its archive is opened anew, in the other store");
    let registered =
        std::fs::read_to_string(two.world.folder.path().join("data/registrations.toml")).unwrap();
    assert!(
        registered.contains("store = \"cloud\"") && registered.contains("copies = [\"disk\"]"),
        "{registered}"
    );
}
