//! The `sftp:` store: a folder on another machine, reached with the user's own `ssh`, so that its keys, agents, known
//! hosts and configuration are used as they are. Nobody is ever asked anything.
//!
//! In reading order: [`target`] (what a URL and its options mean, and how `ssh` is called), [`store`] (the contract),
//! [`live`] (a connection and what is known of its other end), [`objects`], [`listing`], [`leftovers`], [`files`] (what SFTP
//! can do), [`session`] (one `ssh`), [`wire`] (bytes), [`errors`].

mod errors;
mod files;
mod leftovers;
mod listing;
mod live;
mod objects;
mod session;
mod store;
mod target;
mod wire;

pub use session::Tuning;
pub use store::{open, open_tuned};
