//! End-to-end tests of Chatkeep: the harness that runs all of it for real.

pub mod stack;
