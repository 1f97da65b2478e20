//! Finds, starts and supervises plugin processes; the `Store` that talks plugin protocol 1 over their socket.
//!
//! In reading order: [`launch`] (how a process comes to be), `process` and [`crashes`] (how long it lives), `wire` and
//! [`progress`] (how a call travels, and when it is given up), [`store`] with `calls` (the [`PluginStore`] itself),
//! [`meter`] (limits, pause, counters). docs/plugins.md is the protocol as text.

mod calls;
pub mod crashes;
pub mod launch;
pub mod meter;
mod permits;
mod process;
pub mod progress;
pub mod store;
mod take;
mod wire;

pub use crashes::CrashPolicy;
pub use launch::{Launch, Launcher, Spawn, Units, Walls};
pub use meter::{Counters, StoreControl, Throttle};
pub use process::Life;
pub use progress::Patience;
pub use store::{PluginState, PluginStore, Settings};
