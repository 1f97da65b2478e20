//! Waiting for something to become true, without guessing how long it takes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Far more than anything takes on a slow, busy machine: reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Looks again until `look` finds something. `what` is for the error.
pub fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() > patience {
            bail!("waited {} s in vain: {what}", patience.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
