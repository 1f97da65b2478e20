//! The Backup Key Vault: counts password attempts and destroys its part of the key after the last.
//!
//! In reading order: what is decided ([`core`], pure), where the keys are ([`hsm`]), what is kept ([`store`],
//! [`anchor`]), which part of the accounts is here ([`cells`]), the one thread that joins them ([`vault`]), and how
//! strangers reach it ([`tls`], [`http`]).
//! [`config`] and [`setup`] are for whoever runs it.

pub mod anchor;
pub mod cells;
pub mod config;
pub mod core;
pub mod hsm;
pub mod http;
pub mod setup;
pub mod store;
pub mod tls;
pub mod vault;
