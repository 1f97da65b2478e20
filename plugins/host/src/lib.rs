//! Finds, starts and supervises plugin processes; the `Store` that talks plugin protocol 1 over their socket.
//!
//! In reading order: [`manifest`] (which plugin a URL means, and whether it may run), [`launch`] (how a process comes to be), `process` and [`crashes`] (how long it lives), `wire` and
//! [`progress`] (how a call travels, and when it is given up), [`store`] with `calls` (the [`PluginStore`] itself),
//! [`meter`] (limits, counters), [`retry`] (what is tried again, and how many calls run at once),
//! [`check`] (the conformance kit for any store and any plugin). docs/plugins.md is the protocol as text.

mod calls;
pub mod check;
pub mod crashes;
pub mod launch;
pub mod manifest;
pub mod meter;
mod permits;
mod process;
pub mod progress;
pub mod retry;
pub mod store;
mod take;
mod wire;

pub use crashes::CrashPolicy;
pub use launch::{Launch, Launcher, Spawn, Units, Walls};
pub use manifest::Manifest;
pub use manifest::find::{Manifests, Places};
pub use manifest::trust::TrustList;
pub use meter::{Counters, StoreControl};
pub use process::Life;
pub use progress::Patience;
pub use retry::{RetryPolicy, Steady};
pub use store::{PluginState, PluginStore, Settings};
