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
