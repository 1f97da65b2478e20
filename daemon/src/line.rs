//! What the machine says of its line, its battery and its sleep: NetworkManager, UPower, power profiles and logind, on the
//! system bus. By their signals alone; nothing is polled, and a service that is not there says that all is well.

use std::time::Duration;

use chatkeep_planner::Conditions;
use futures_util::StreamExt as _;
use futures_util::stream::select_all;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info};
use zbus::zvariant::{OwnedFd, OwnedValue};
use zbus::{Connection, MatchRule, MessageStream};

use crate::event::Event;

/// What happens at once is one change: waking up, a dozen properties tell of it.
const SETTLE: Duration = Duration::from_millis(100);
/// logind lets a delay last for 5 s by default; uploads are stopped long before.
const SLEEP_PATIENCE: Duration = Duration::from_secs(4);
/// A service of the system that does not answer within this time is as good as none.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

const NETWORK: Service = Service {
    names: &["org.freedesktop.NetworkManager"],
    path: "/org/freedesktop/NetworkManager",
    interface: "org.freedesktop.NetworkManager",
};
const POWER: Service = Service {
    names: &["org.freedesktop.UPower"],
    path: "/org/freedesktop/UPower",
    interface: "org.freedesktop.UPower",
};
const BATTERY: Service = Service {
    names: &["org.freedesktop.UPower"],
    path: "/org/freedesktop/UPower/devices/DisplayDevice",
    interface: "org.freedesktop.UPower.Device",
};
const PROFILE: Service = Service {
    names: &["org.freedesktop.UPower.PowerProfiles"],
    path: "/org/freedesktop/UPower/PowerProfiles",
    interface: "org.freedesktop.UPower.PowerProfiles",
};
/// The name of the same before UPower took it in.
const PROFILE_BEFORE: Service = Service {
    names: &["net.hadess.PowerProfiles"],
    path: "/net/hadess/PowerProfiles",
    interface: "net.hadess.PowerProfiles",
};
const SERVICES: [&Service; 5] = [&NETWORK, &POWER, &BATTERY, &PROFILE, &PROFILE_BEFORE];

const LOGIND: &str = "org.freedesktop.login1";
const LOGIND_PATH: &str = "/org/freedesktop/login1";
const LOGIND_MANAGER: &str = "org.freedesktop.login1.Manager";

/// `NMState`: from 60 on there is a route to somewhere beyond this machine and its link; 0 is: nobody knows.
const NM_STATE_CONNECTED_SITE: u32 = 60;
/// `NMMetered`: 1 is yes, 3 is "guessed yes".
const NM_METERED: [u32; 2] = [1, 3];

/// An object with properties.
struct Service {
    names: &'static [&'static str],
    path: &'static str,
    interface: &'static str,
}

/// As [`watch`] on the system bus, where there is one.
pub async fn watch_system(events: mpsc::Sender<Event>) {
    let watched = async { watch(&Connection::system().await?, &events).await };
    if let Err(error) = watched.await {
        debug!(%error, "nobody says anything of the line and the battery");
    }
}

/// Tells the loop how things are, and whenever something changes. Ends with the loop or the bus.
pub async fn watch(bus: &Connection, events: &mpsc::Sender<Event>) -> zbus::Result<()> {
    let mut changes = changes_of(bus).await?;
    let mut sleeping = false;
    let mut inhibitor = inhibit(bus).await;
    let mut told = None;
    loop {
        let now = Conditions { sleeping, ..read(bus).await };
        if told != Some(now) {
            info!(
                offline = now.offline,
                metered = now.metered,
                battery = now.on_battery,
                sleep = now.sleeping,
                "conditions"
            );
            let (seen, taken_in) = oneshot::channel();
            if events.send(Event::Conditions { conditions: now, seen }).await.is_err() {
                return Ok(());
            }
            // When the loop has taken it in, uploads have stopped: the machine may sleep.
            let _ = tokio::time::timeout(SLEEP_PATIENCE, taken_in).await;
            told = Some(now);
        }
        if sleeping {
            inhibitor = None;
        } else if inhibitor.is_none() {
            inhibitor = inhibit(bus).await;
        }
        let Some(change) = changes.next().await else { return Ok(()) };
        if let Some(asleep) = falls_asleep(&change) {
            sleeping = asleep;
            continue;
        }
        // Whatever else comes within this time is read with it; that the machine falls asleep must not wait.
        let settled = tokio::time::sleep(SETTLE);
        tokio::pin!(settled);
        loop {
            tokio::select! {
                () = &mut settled => break,
                more = changes.next() => match more.as_ref().map(falls_asleep) {
                    None => return Ok(()),
                    Some(None) => {}
                    Some(Some(asleep)) => {
                        sleeping = asleep;
                        break;
                    }
                }
            }
        }
    }
}

type Changes = futures_util::stream::SelectAll<futures_util::stream::BoxStream<'static, zbus::Message>>;

/// Everything that can be the sign of a change, as one stream.
async fn changes_of(bus: &Connection) -> zbus::Result<Changes> {
    let mut rules = Vec::new();
    for service in SERVICES {
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .interface("org.freedesktop.DBus.Properties")?
            .member("PropertiesChanged")?
            .path(service.path)?;
        rules.push(rule.build());
        for name in service.names {
            let rule = MatchRule::builder()
                .msg_type(zbus::message::Type::Signal)
                .sender("org.freedesktop.DBus")?
                .interface("org.freedesktop.DBus")?
                .member("NameOwnerChanged")?
                .arg(0, *name)?;
            rules.push(rule.build());
        }
    }
    let sleep = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        // anybody on the system bus can send a signal of this name
        .sender(LOGIND)?
        .interface(LOGIND_MANAGER)?
        .member("PrepareForSleep")?
        .path(LOGIND_PATH)?;
    rules.push(sleep.build());
    let mut streams = Vec::new();
    for rule in rules {
        let stream = MessageStream::for_match_rule(rule, bus, None).await?;
        streams.push(stream.filter_map(|message| async move { message.ok() }).boxed());
    }
    Ok(select_all(streams))
}

/// Whether the machine falls asleep (or wakes up), if that is what the message says.
fn falls_asleep(message: &zbus::Message) -> Option<bool> {
    let header = message.header();
    let says = header.member().is_some_and(|member| *member == "PrepareForSleep");
    says.then(|| message.body().deserialize().ok()).flatten()
}

/// Asks everybody who is there.
async fn read(bus: &Connection) -> Conditions {
    let mut conditions = Conditions::default();
    if let Some(state) = property::<u32>(bus, &NETWORK, "State").await {
        conditions.offline = (1..NM_STATE_CONNECTED_SITE).contains(&state);
        let metered = property::<u32>(bus, &NETWORK, "Metered").await;
        conditions.metered = metered.is_some_and(|metered| NM_METERED.contains(&metered));
    }
    if let Some(on_battery) = property::<bool>(bus, &POWER, "OnBattery").await {
        conditions.on_battery = on_battery;
        let percent = property::<f64>(bus, &BATTERY, "Percentage").await;
        let there = property::<bool>(bus, &BATTERY, "IsPresent").await.unwrap_or(true);
        conditions.battery_percent =
            percent.filter(|_| there).map(|percent| percent.clamp(0.0, 100.0).round() as u8);
    }
    let mut profile = property::<String>(bus, &PROFILE, "ActiveProfile").await;
    if profile.is_none() {
        profile = property::<String>(bus, &PROFILE_BEFORE, "ActiveProfile").await;
    }
    conditions.power_saver = profile.as_deref() == Some("power-saver");
    conditions
}

/// A property of a service that runs; nothing is started for it.
async fn property<T: TryFrom<OwnedValue>>(bus: &Connection, of: &Service, name: &str) -> Option<T> {
    let read = async {
        let broker = zbus::fdo::DBusProxy::new(bus).await.ok()?;
        for owner in of.names {
            if !broker.name_has_owner((*owner).try_into().ok()?).await.ok()? {
                continue;
            }
            let properties = zbus::fdo::PropertiesProxy::new(bus, *owner, of.path).await.ok()?;
            let value = properties.get(of.interface.try_into().ok()?, name).await.ok()?;
            return T::try_from(value).ok();
        }
        None
    };
    tokio::time::timeout(ANSWER_PATIENCE, read).await.ok().flatten()
}

/// Asks logind to wait for us before the machine sleeps. Held until it is dropped.
async fn inhibit(bus: &Connection) -> Option<OwnedFd> {
    let arguments = ("sleep", "Chatkeep", "An upload is being stopped", "delay");
    let call = bus.call_method(Some(LOGIND), LOGIND_PATH, Some(LOGIND_MANAGER), "Inhibit", &arguments);
    let answer = tokio::time::timeout(ANSWER_PATIENCE, call).await.ok()?;
    let answer = answer.inspect_err(|error| debug!(%error, "sleep cannot be delayed")).ok()?;
    answer.body().deserialize().ok()
}
