//! The Backup Key Vault: counts password attempts and destroys its part of the key after the last.
//!
//! In reading order: what is decided ([`core`], pure), where the keys are ([`hsm`]), what is kept ([`store`],
//! [`anchor`], [`composite`], [`witness`]), which part of the accounts is here ([`cells`]), for whom
//! accounts are made ([`admission`]), the one thread that joins them
//! ([`vault`]), how the key that seals records is exchanged ([`reseal`]), and how strangers reach it ([`tls`], [`http`]), counted
//! in `metrics`.
//! [`config`], [`setup`], [`serve`] and [`ceremony`] are for whoever runs it.

pub mod admission;
pub mod anchor;
pub mod cells;
pub mod ceremony;
pub mod composite;
pub mod config;
pub mod core;
pub mod hsm;
pub mod http;
mod metrics;
pub mod reseal;
pub mod serve;
pub mod setup;
pub mod store;
pub mod tls;
pub mod vault;
pub mod witness;
