//! Plugins as their host sees them: real processes, and stand-ins that say what no honest plugin says.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ends;
mod kit;
mod lies;
mod life;
mod limits;
mod socket;
mod support;
mod units;
