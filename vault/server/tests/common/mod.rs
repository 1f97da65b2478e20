//! What the tests of the vault share; most of it is in the rig.
#![allow(dead_code, unused_imports, clippy::unwrap_used, reason = "tests; each uses a part of this")]

pub(crate) mod cells;
pub(crate) mod device_cases;
pub(crate) mod program;
pub(crate) mod witnessed;
pub(crate) mod world;

pub(crate) use chatkeep_vault_rig::local::*;
