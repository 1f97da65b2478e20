//! The servers that stores are tested against: real ones, each in a folder of its own, on loopback. In no program that is
//! shipped.
//!
//! Nothing here returns errors: what cannot be set up ends the test, with its reason.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    clippy::format_push_string,
    clippy::format_collect,
    reason = "for tests: a failure ends them"
)]

pub mod azurite;
pub mod dav;
pub mod gcs;
pub mod http;
pub mod moto;
pub mod rclone;
pub mod server;
pub mod slow;
pub mod sshd;
pub mod tools;
