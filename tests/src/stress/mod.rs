//! Captures of a database that other processes write: every one is restored, and must be a state that was committed.
//!
//! In reading order: [`habits`] is how an app behaves, [`replica`] a store of entries in memory, [`locks`] looks whether
//! we hold any, [`rig`] puts them around one [`LiveDatabase`](chatkeep_sqlite::LiveDatabase), and [`run`] plays.

pub mod habits;
pub mod locks;
pub mod replica;
pub mod rig;
pub mod run;

pub use habits::Habits;
pub use rig::{Rig, Totals};
