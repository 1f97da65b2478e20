//! The counting rule. Pure: (record, request, now, rng) -> (record', reply), and nothing is answered before
//! record' is durable.
//!
//! No I/O, no clock: the same code is driven by the service, by the model test, and could run inside a device.

mod admission;
mod policy;
mod record;
mod step;

pub use admission::{Terms, makes_account, redeem};
pub use policy::Policy;
pub use record::{Live, Pending, RECORD_LEN, Record, Registration};
pub use step::{Context, Evaluation, Evaluator, Reply, Step, Then, step};

#[cfg(test)]
mod model;
