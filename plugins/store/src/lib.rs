//! The contract of object stores: what a store must do, and what its errors mean to the caller.
//!
//! A store sees ciphertext only. It keeps whole objects under [`StoreKey`]s, and nothing else is asked of it: no
//! locks, no renames, no modification times. In reading order: [`key`], [`error`], [`contract`] (the [`Store`]
//! trait), [`opening`] (what a store is opened with) and [`protocol`] (how a plugin process says all of it); [`listing`] turns what a foreign store lists into something that can be trusted, [`temporary`] is for stores made of files; [`memory`] is the
//! simplest store, [`chaos`] makes any store misbehave on command, and [`conformance`] is the suite every store passes.

pub mod chaos;
pub mod conformance;
pub mod contract;
pub mod error;
pub mod key;
pub mod listing;
pub mod memory;
pub mod opening;
pub mod protocol;
pub mod temporary;

pub use contract::{
    Capabilities, CreateGuarantee, ObjectMeta, PutCondition, PutReceipt, Store, Usage, Visibility,
    clamp_range,
};
pub use error::{ErrorKind, NextStep, Result, StoreError};
pub use key::{InvalidKey, ListPrefix, StoreKey};
pub use opening::{Opening, Secrets};
