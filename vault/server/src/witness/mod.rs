//! Vaults that remember each other's newest state, so that an old disk is noticed without any hardware.
//!
//! In reading order: what is signed ([`rule`], pure), the side that remembers ([`service`]), the side that is
//! remembered ([`anchor`]: q of w, with [`peers`] behind it), and how it is set up ([`config`], [`link`]).
//!
//! A witness's memory is in a database and on a thread of its own, and is not among what it anchors itself: two vaults
//! that witness each other would otherwise have a new state because of the other's new state, for ever; and a vault that
//! waits for its witness could not witness.

pub mod anchor;
pub mod config;
pub mod link;
pub mod peers;
pub mod rule;
pub mod service;

pub use anchor::WitnessAnchor;
pub use service::Witness;
