//! What a vault stands on when it is tested, proved or measured: real tokens and real database servers, each in a folder
//! of its own; and vaults themselves, as programs and in this process. In no program that is shipped.
//!
//! Nothing here returns errors: what cannot be set up ends the test, with its reason.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    reason = "for tests: a failure ends them"
)]

pub mod local;
pub mod postgres;
pub mod program;
pub mod soft_token;
pub mod swtpm;

use std::path::Path;
use std::process::Command;

use soft_token::SoftToken;
use swtpm::{Brokered, Swtpm};

/// Where a vault has its keys.
pub trait KeyDevice {
    /// A process that finds it.
    fn command(&self, program: &str) -> Command;
    /// Settings for a vault with its keys here; `more` goes before the tables.
    fn settings(&self, data: &Path, more: &str) -> String;
}

impl KeyDevice for SoftToken {
    fn command(&self, program: &str) -> Command {
        self.command(program)
    }

    fn settings(&self, data: &Path, more: &str) -> String {
        self.settings(data, more)
    }
}

impl KeyDevice for Swtpm {
    fn command(&self, program: &str) -> Command {
        Command::new(program)
    }

    fn settings(&self, data: &Path, more: &str) -> String {
        self.settings(data, more)
    }
}

impl KeyDevice for Brokered {
    fn command(&self, program: &str) -> Command {
        self.command(program)
    }

    fn settings(&self, data: &Path, more: &str) -> String {
        self.settings(data, more)
    }
}
