//! When the service looks at its vaults and tells them something, and what it makes of the answers: events in, commands out.

#![allow(clippy::unwrap_used, reason = "tests")]

mod small_world;

use chatkeep_format::Keyslot;
use chatkeep_planner::{Level, Millis, SourceId};
use chatkeep_vault_client::{KdfParams, SlotSecret, VaultPin};
use chatkeep_vault_protocol::slot::Header;
use chatkeep_vault_protocol::{Suite, ppss};
use chatkeepd::event::{Command, Event};
use chatkeepd::guard::{Counted, Look, LookOrder, VaultSeen};
use chatkeepd::service::Service;
use chatkeepd::witness::Compared;
use rand_core::OsRng;
use small_world::service::opened;
use small_world::{BEGIN_US, World};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const SOURCE: SourceId = SourceId(0);
const IDENTITY: [u8; 32] = [0xab; 32];

/// A keyslot of one vault, and the secret behind it.
fn slot(world: &World) -> (Vec<u8>, SlotSecret) {
    let header = Header {
        suite: Suite::Ristretto255,
        threshold: 1,
        kdf: KdfParams::TESTING,
        salt: [1; 32],
        locator: [2; 16],
        epoch: [3; 16],
        context: world.archive().id.0,
        vaults: vec![VaultPin {
            name: "home".to_owned(),
            url: "https://v.example".to_owned(),
            identity: IDENTITY,
        }],
    };
    let question = ppss::Question::new(&header, 0, &[4; 32], &mut OsRng);
    let key = Suite::Ristretto255.generate_key(&mut OsRng);
    let evaluated = Suite::Ristretto255.evaluate(&key, question.element()).unwrap();
    let masks = [question.answered(&header, &evaluated).unwrap()];
    let secret = SlotSecret::generate(&mut OsRng);
    let slot = ppss::register(header, &masks, &secret, &[5; 32], &mut OsRng).unwrap();
    (slot.encode(), secret)
}

/// A service with one source whose archive is open, behind a password or not.
async fn service(world: &mut World, settings: &str, password: bool) -> Service {
    world.write(&[Level::Base, Level::Entry], BEGIN_US).await;
    let mut running = world.start().await;
    if password {
        let (slot, secret) = slot(world);
        (running.opened.keys.slots, running.opened.keys.secret) =
            (vec![Keyslot::Password(slot)], Some(secret));
    }
    let vault = format!(
        "[[vault]]\nname = 'home'\nurl = 'https://v.example'\nidentity = '{}'\n",
        hex::encode(IDENTITY)
    );
    opened(world, running, SOURCE, settings, &vault)
}

/// What is asked for at a tick: a look, with what it is to compare.
fn look_at(service: &mut Service, now: u64) -> Option<LookOrder> {
    looks(service.handle(Event::Tick, Millis(now)))
}

fn looks(commands: Vec<Command>) -> Option<LookOrder> {
    commands.into_iter().find_map(|command| match command {
        Command::Guard { source: SOURCE, order } => Some(*order),
        _ => None,
    })
}

/// The next look, at the minute when it comes.
fn next_look(service: &mut Service, from: u64) -> (u64, LookOrder) {
    (from..from + 3 * HOUR)
        .step_by(MINUTE as usize)
        .find_map(|at| look_at(service, at).map(|order| (at, order)))
        .expect("a look within three hours")
}

fn seen() -> VaultSeen {
    VaultSeen { name: "home".to_owned(), state: "ok", attempts_left: Some(9), ..VaultSeen::default() }
}

fn look(seen: VaultSeen, reached: bool) -> Look {
    Look { vaults: vec![seen], again: false, reached, store: Compared::Not }
}

fn end(service: &mut Service, look: Look, now: u64) -> Vec<Command> {
    service.handle(Event::Guarded { source: SOURCE, look: Some(look) }, Millis(now))
}

#[tokio::test]
async fn a_vault_is_looked_at_soon_then_hourly_and_less_often_while_it_is_away() {
    let mut world = World::new();
    let mut service = service(&mut world, "", true).await;
    let (first, order) = next_look(&mut service, 1);
    assert!(first <= 3 * MINUTE, "{first}");
    assert!(order.check_store && order.lock_s.is_none());
    assert!(look_at(&mut service, first + 2 * HOUR).is_none(), "one at a time");
    let store = Compared::Whole;
    end(&mut service, Look { store, ..look(seen(), true) }, first);
    let (second, order) = next_look(&mut service, first + 1);
    assert!(
        (48 * MINUTE..=2 * HOUR + 1).contains(&(second - first)),
        "an hour, give or take a fifth: {second}"
    );
    assert!(!order.check_store, "the store is compared once a day");

    // Away: two minutes, four, eight … up to an hour.
    let mut now = second;
    let mut waits = Vec::new();
    for _ in 0..8 {
        let away = VaultSeen { state: "unreachable", attempts_left: None, ..seen() };
        end(&mut service, look(away, false), now);
        let (next, _) = next_look(&mut service, now + 1);
        waits.push((next - now) / MINUTE);
        now = next;
    }
    assert!(waits[0] <= 3 && waits[2] >= 6 && waits[7] >= 47 && waits[7] <= 73, "{waits:?}");
}

#[tokio::test]
async fn what_is_not_certain_is_looked_at_again_soon() {
    let mut world = World::new();
    let mut service = service(&mut world, "", true).await;
    let (first, _) = next_look(&mut service, 1);
    end(&mut service, Look { again: true, ..look(seen(), true) }, first);
    let (second, _) = next_look(&mut service, first + 1);
    assert!(second - first <= 4 * MINUTE, "{second}");
}

#[tokio::test]
async fn without_a_password_or_with_never_nobody_is_asked_or_told_anything() {
    for (settings, password) in [("", false), ("[vaults]\nlook_every='never'\nremember_every='never'", true)]
    {
        let mut world = World::new();
        let mut service = service(&mut world, settings, password).await;
        for minute in 0..200 {
            let commands = service.handle(Event::Tick, Millis(minute * MINUTE));
            let vault =
                |command: &Command| matches!(command, Command::Guard { .. } | Command::Remember { .. });
            assert!(!commands.iter().any(vault), "{settings} {password}");
        }
        let last = service.handle(Event::Stop, Millis(201 * MINUTE));
        assert!(!last.iter().any(|command| matches!(command, Command::Remember { .. })));
    }
}

#[tokio::test]
async fn an_attempt_elsewhere_is_told_once_and_reminded_of_until_it_is_acknowledged() {
    let mut world = World::new();
    let mut service = service(&mut world, "", true).await;
    let notices = |commands: &[Command]| {
        commands.iter().filter(|command| matches!(command, Command::Notify(_))).count()
    };
    let counted = Counted { failed: 1, here: 0, elsewhere: 1, unacknowledged: 1, seen_us: 1 };
    let known = VaultSeen { counted: Some(counted), ..seen() };
    // Noticed before the service was started: a reminder.
    assert_eq!(notices(&end(&mut service, look(known.clone(), true), 1)), 1);
    assert_eq!(notices(&end(&mut service, look(known.clone(), true), 2)), 0);
    let more = VaultSeen { new_elsewhere: 1, ..known };
    assert_eq!(notices(&end(&mut service, look(more, true), 3)), 1);
    let fine = VaultSeen { counted: Some(Counted { unacknowledged: 0, ..counted }), ..seen() };
    assert_eq!(notices(&end(&mut service, look(fine, true), 4)), 0);
    let gone = VaultSeen { state: "destroyed", news: true, counted: None, ..seen() };
    assert_eq!(notices(&end(&mut service, look(gone.clone(), true), 5)), 1);
    assert_eq!(notices(&end(&mut service, look(VaultSeen { news: false, ..gone }, true), 6)), 0);
}

#[tokio::test]
async fn vaults_are_told_the_newest_entry_when_it_is_stored_and_again_after_a_failure() {
    let mut world = World::new();
    let mut service = service(&mut world, "", true).await;
    let told = |commands: Vec<Command>| {
        commands.into_iter().find_map(|command| match command {
            Command::Remember { head, at_last, .. } => Some((head.0, at_last)),
            _ => None,
        })
    };
    // They were told of entry 2 when the archive was opened.
    assert_eq!(told(service.handle(Event::Tick, Millis(3))), None, "one try at a time");
    let failed = Event::Remembered { source: SOURCE, done: false };
    assert_eq!(told(service.handle(failed, Millis(4))), None);
    assert_eq!(told(service.handle(Event::Tick, Millis(9 * MINUTE))), None);
    assert_eq!(told(service.handle(Event::Tick, Millis(11 * MINUTE))), Some((2, false)));
    assert_eq!(told(service.handle(Event::Stop, Millis(12 * MINUTE))), Some((2, true)));
}
