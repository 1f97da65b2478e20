//! What the end-to-end tests share: a chat whose every row can be recomputed, and the checker that does so.

pub mod chat;
pub mod check;
pub mod simulation;
pub mod stack;
pub mod stress;

pub use check::{Checked, Expect, check_database, check_sqlcipher};
