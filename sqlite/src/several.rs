//! Several databases followed by one thread, and what a coming capture of one would take.

use std::io;
use std::time::{Duration, Instant};

use crate::error::{CaptureError, doing};
use crate::live::{LOOK_PAUSE, LiveDatabase};
use crate::slots::Slots;
use crate::types::Build;
use crate::watch::{Watch, wait_for_any};

/// Waits for something to happen in a folder of one of them, for a wake of one, or for `timeout`; `false` when it was the
/// timeout. As [`LiveDatabase::wait`], for all of them.
pub fn wait_any(databases: &mut [&mut LiveDatabase], timeout: Duration) -> io::Result<bool> {
    let now = Instant::now();
    let due = databases.iter().filter_map(|database| database.scan_due_in(now)).min();
    let timeout = due.map_or(timeout, |due| timeout.min(due));
    let mut watches: Vec<&mut Watch> = databases.iter_mut().map(|database| &mut database.watch).collect();
    wait_for_any(&mut watches, timeout, LOOK_PAUSE)
}

impl LiveDatabase {
    /// Until when the whole file waits to be read; none when it does not, or may be read now.
    pub(crate) fn scan_due_in(&self, now: Instant) -> Option<Duration> {
        let due = self.scan_due.saturating_duration_since(now);
        (self.gap.is_some() && !due.is_zero()).then_some(due)
    }

    /// How many bytes of pages a capture with this parent has, beside those that change until then: what
    /// [`collect`](Self::collect) would read. 0 when it reads the whole file anyway.
    pub fn span_bytes(&self, parent: u64) -> Result<u64, CaptureError> {
        let Some(header) = self.table.header().copied().filter(|header| !header.gone) else { return Ok(0) };
        if self.gap.is_some() {
            return Ok(0);
        }
        let scope = self.scope(&Build::on(parent), header.page_size)?;
        let mut slots = Slots::default();
        let mut pages = 0;
        for pgno in 1..=header.page_count {
            let slot = slots.get(&self.table, pgno).map_err(doing("reading the page table"))?;
            pages += u64::from(slot.is_some_and(|slot| scope.spans(&header, &slot)));
        }
        Ok(pages * u64::from(header.page_size))
    }
}
