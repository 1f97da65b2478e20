//! Who shows notifications on a machine's session bus, and the finger that presses their buttons.
//!
//! Real ones need a display; this is the part of `org.freedesktop.Notifications` that a client can see.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use zbus::object_server::SignalEmitter;
use zbus::zvariant::OwnedValue;

const PATH: &str = "/org/freedesktop/Notifications";

/// One notification, as it was asked for last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its number.
    pub id: u32,
    /// One line.
    pub summary: String,
    /// The text.
    pub body: String,
    /// Keys and labels of its buttons, in turn.
    pub actions: Vec<String>,
}

mod served {
    use super::{Arc, HashMap, Mutex, OwnedValue, Shown, SignalEmitter};

    pub(super) struct Notifications {
        pub(super) shown: Arc<Mutex<Vec<Shown>>>,
    }

    #[zbus::interface(name = "org.freedesktop.Notifications")]
    impl Notifications {
        #[expect(clippy::unused_self, reason = "a method of an interface")]
        fn get_capabilities(&self) -> Vec<String> {
            ["body", "actions", "persistence"].map(str::to_owned).to_vec()
        }

        #[expect(clippy::too_many_arguments, reason = "the arguments of the D-Bus method")]
        fn notify(
            &self,
            app_name: String,
            replaces_id: u32,
            app_icon: String,
            summary: String,
            body: String,
            actions: Vec<String>,
            hints: HashMap<String, OwnedValue>,
            expire_timeout: i32,
        ) -> u32 {
            // How it looks is for real desktops.
            drop((app_name, app_icon, hints, expire_timeout));
            let mut shown = self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let id = if replaces_id > 0 { replaces_id } else { shown.len() as u32 + 1 };
            shown.push(Shown { id, summary, body, actions });
            id
        }

        /// A button was pressed.
        #[zbus(signal)]
        pub(super) async fn action_invoked(
            emitter: &SignalEmitter<'_>,
            id: u32,
            action_key: &str,
        ) -> zbus::Result<()>;
    }
}

/// The desktop.
pub struct Desktop {
    shown: Arc<Mutex<Vec<Shown>>>,
    connection: zbus::Connection,
    runtime: tokio::runtime::Runtime,
}

impl Desktop {
    /// Takes the name on the bus at `address`.
    pub fn start(address: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let shown = Arc::<Mutex<Vec<Shown>>>::default();
        let served = served::Notifications { shown: shown.clone() };
        let connection = runtime.block_on(async {
            let builder = zbus::connection::Builder::address(address)?;
            builder.serve_at(PATH, served)?.name("org.freedesktop.Notifications")?.build().await
        });
        let connection = connection.context("nobody can show notifications")?;
        Ok(Self { shown, connection, runtime })
    }

    /// Everything that was shown so far.
    pub fn shown(&self) -> Vec<Shown> {
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Waits for a notification.
    pub fn wait(&self) -> Result<Shown> {
        let last = || Ok(self.shown().pop());
        super::wait::until("a notification", Duration::from_mins(1), last)
    }

    /// Presses a button of a notification.
    pub fn press(&self, id: u32, key: &str) -> Result<()> {
        self.runtime.block_on(async {
            let emitter = SignalEmitter::new(&self.connection, PATH)?;
            served::Notifications::action_invoked(&emitter, id, key).await
        })?;
        Ok(())
    }
}
