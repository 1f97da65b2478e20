//! The Chatkeep user service: it joins the crates that capture, seal, store and restore.
//!
//! In reading order: [`config`] and [`paths`] say what the user wants and where things lie; [`keys`] keeps the
//! device's copy of the keys; [`spool`] holds sealed objects until they are in the store.

pub mod config;
pub mod keys;
pub mod paths;
pub mod spool;
