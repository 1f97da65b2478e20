//! What the end-to-end tests share: a chat whose every row can be recomputed, the checker that does so, simulations and
//! models.

pub mod chat;
pub mod check;
pub mod simulation;
pub mod stack;
pub mod stress;
pub mod vault_model;

pub use check::{Checked, Expect, check_database, check_sqlcipher};
