//! The program of this workspace.

pub(crate) use chatkeep_vault_rig::program::{Program, courier};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_chatkeep-vault");
