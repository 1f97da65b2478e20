//! What the user is told without having asked: notifications of the desktop, only when somebody must act.
//!
//! `org.freedesktop.Notifications` on the session bus. Nobody may be there (no desktop, no bus): then the properties on D-Bus
//! and `chatkeep status` say it all the same, and stay until it is acknowledged.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tracing::{debug, info};
use zbus::Connection;
use zbus::zvariant::Value;

use crate::event::Event;

/// Notices that wait while the desktop does not answer; more are dropped.
const WAITING: usize = 8;
/// The standard's words for "critical" and "never goes away by itself".
const URGENCY_CRITICAL: u8 = 2;
const STAYS: i32 = 0;

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is about: a newer notice about the same takes its place.
    pub about: String,
    /// The vault that the buttons are for; empty without buttons.
    pub vault: String,
    /// One line.
    pub summary: String,
    /// A few sentences.
    pub body: String,
    /// What can be done about it at once.
    pub buttons: Vec<Button>,
}

/// What can be done from a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Button {
    /// Let the vaults refuse all attempts for a week.
    Freeze,
    /// It was the user.
    Acknowledge,
}

impl Button {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Freeze, Self::Acknowledge];

    fn key(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Acknowledge => "acknowledge",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Freeze => "Freeze for 7 days",
            Self::Acknowledge => "It was me",
        }
    }
}

#[zbus::proxy(
    interface = "org.freedesktop.Notifications",
    default_service = "org.freedesktop.Notifications",
    default_path = "/org/freedesktop/Notifications"
)]
trait Notifications {
    fn get_capabilities(&self) -> zbus::Result<Vec<String>>;
    #[expect(clippy::too_many_arguments, reason = "the arguments of the D-Bus method")]
    fn notify(
        &self,
        app_name: &str,
        replaces_id: u32,
        app_icon: &str,
        summary: &str,
        body: &str,
        actions: &[&str],
        hints: HashMap<&str, Value<'_>>,
        expire_timeout: i32,
    ) -> zbus::Result<u32>;
    #[zbus(signal)]
    fn action_invoked(&self, id: u32, action_key: String) -> zbus::Result<()>;
}

/// The way to the desktop; a task of its own begins with the first notice.
pub struct Desktop {
    notices: Option<mpsc::Sender<Notice>>,
    waiting: Option<(mpsc::Receiver<Notice>, mpsc::Sender<Event>)>,
}

impl Desktop {
    /// Pressed buttons become events. Without a bus nothing is shown.
    pub fn new(bus: bool, events: mpsc::Sender<Event>) -> Self {
        let (notices, waiting) = mpsc::channel(WAITING);
        if bus {
            Self { notices: Some(notices), waiting: Some((waiting, events)) }
        } else {
            Self { notices: None, waiting: None }
        }
    }

    /// Shows a notice, some time; never waits.
    pub fn notify(&mut self, notice: Notice) {
        if let Some((waiting, events)) = self.waiting.take() {
            tokio::spawn(async move {
                if let Err(error) = serve(waiting, events).await {
                    info!(%error, "notifications cannot be shown");
                }
            });
        }
        if let Some(notices) = &self.notices
            && notices.try_send(notice).is_err()
        {
            debug!("a notification is not shown");
        }
    }
}

async fn serve(mut notices: mpsc::Receiver<Notice>, events: mpsc::Sender<Event>) -> zbus::Result<()> {
    let bus = Connection::session().await?;
    let desktop = NotificationsProxy::new(&bus).await?;
    let mut pressed = desktop.receive_action_invoked().await?;
    // The notification about each thing, and the vault that its buttons are for.
    let mut shown: HashMap<String, (u32, String)> = HashMap::new();
    loop {
        tokio::select! {
            notice = notices.recv() => {
                let Some(notice) = notice else { return Ok(()) };
                match show(&desktop, &notice, shown.get(&notice.about).map(|shown| shown.0)).await {
                    Ok(id) => drop(shown.insert(notice.about, (id, notice.vault))),
                    Err(error) => info!(%error, "a notification cannot be shown"),
                }
            }
            signal = pressed.next() => {
                let Some(signal) = signal else { return Ok(()) };
                let Ok(said) = signal.args() else { continue };
                let vault = shown.values().find(|(id, _)| *id == said.id).map(|(_, vault)| vault.clone());
                let button = Button::ALL.into_iter().find(|button| button.key() == said.action_key);
                let (Some(vault), Some(button)) = (vault, button) else { continue };
                if events.send(Event::Pressed { vault, button }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn show(desktop: &NotificationsProxy<'_>, notice: &Notice, replaces: Option<u32>) -> zbus::Result<u32> {
    let can = desktop.get_capabilities().await?;
    let has = |capability: &str| can.iter().any(|has| has == capability);
    let buttons = notice.buttons.iter().filter(|_| has("actions"));
    let actions: Vec<&str> = buttons.flat_map(|button| [button.key(), button.label()]).collect();
    // Names come from the configuration and may hold anything.
    let body = if has("body-markup") { escaped(&notice.body) } else { notice.body.clone() };
    let hints = HashMap::from([
        ("urgency", Value::from(URGENCY_CRITICAL)),
        ("desktop-entry", Value::from(chatkeep_ipc::names::BUS_NAME)),
    ]);
    let id = replaces.unwrap_or(0);
    desktop.notify("Chatkeep", id, "dialog-warning", &notice.summary, &body, &actions, hints, STAYS).await
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
