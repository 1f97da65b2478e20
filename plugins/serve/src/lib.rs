//! The plugin's end of protocol 1 for stores written in Rust: serves any `Store` on a listening unix socket.
//!
//! In reading order: [`opener`] (what a plugin gives), [`process`] (the program around it: file descriptor 0, signals),
//! [`server`] (connections), then the requests and the bodies they carry. docs/plugins.md is the protocol as text.

mod answers;
mod body;
mod opener;
mod process;
mod requests;
mod server;

pub use opener::{Opened, Opener, Plain, plain};
pub use process::run;
pub use server::{Plugin, serve};
