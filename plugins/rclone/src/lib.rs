//! `rclone:` stores: whatever rclone reaches, through its remote control on a unix socket.
//!
//! rclone runs as a child with a socket in a folder of its own, and nobody but this process knows the password. In
//! reading order: `url` (what the user names), `version` (which rclone is good enough), `child` (the process), `control`
//! (its HTTP), `errors` (its words as kinds), `backend` (what differs from service to service), `session` (calls, on an
//! rclone that is started when there is none), `folders`, `upload`, `download`, `walk`, and `store`, which joins them.

mod backend;
mod child;
mod control;
mod download;
mod errors;
mod folders;
mod session;
mod store;
mod upload;
mod url;
mod version;
mod walk;

pub use store::open;
