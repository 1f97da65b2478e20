//! The databases of one source: opened, looked at and waited for together.
//!
//! A source of several databases is followed as soon as one of them is there. One that is missing stays in every entry
//! as it was last: an app that removes a file for a moment must not remove it from the backup.

use std::io;
use std::time::{Duration, Instant};

use chatkeep_sqlite::{CaptureError, LiveConfig, LiveDatabase, Look, Mode, Waker, wait_any};
use tracing::{debug, warn};

use super::{MISSING_LOOK, Start};
use crate::writer::Written;

/// One database.
pub(super) struct Member {
    /// Its file name.
    pub(super) name: String,
    config: LiveConfig,
    pub(super) live: Option<LiveDatabase>,
    /// When it was last tried to be opened.
    tried: Option<Instant>,
    /// The table is to be dropped as soon as there is one.
    rebase: bool,
    /// Why it is not there.
    trouble: Option<String>,
    /// Why it is not read as soon as it is written.
    caution: Option<String>,
}

pub(super) struct Members {
    pub(super) all: Vec<Member>,
    /// What was written since the thread began.
    pub(super) written_seq: u64,
    /// One was opened since this was last asked.
    opened: bool,
}

impl Members {
    pub(super) fn new(start: &Start) -> Self {
        let all = start.databases.iter().map(|config| Member {
            name: config.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            config: config.clone(),
            live: None,
            tried: None,
            rebase: start.rebase,
            trouble: None,
            caution: None,
        });
        Self { all: all.collect(), written_seq: start.written_seq, opened: false }
    }

    /// Opens what is not open. Fails when nothing is.
    pub(super) fn open(&mut self, start: &Start) -> Result<(), CaptureError> {
        let nothing = self.all.iter().all(|member| member.live.is_none());
        let mut failure = None;
        for member in self.all.iter_mut().filter(|member| member.live.is_none()) {
            if !nothing && member.tried.is_some_and(|at| at.elapsed() < MISSING_LOOK) {
                continue;
            }
            member.tried = Some(Instant::now());
            match member.open(start, self.written_seq) {
                Ok(()) => {
                    member.trouble = None;
                    self.opened = true;
                }
                Err(error) => {
                    member.trouble = Some(format!("{}: {error}", member.name));
                    failure = failure.or(Some(error));
                }
            }
        }
        match failure {
            Some(error) if self.live().next().is_none() => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether one was opened since this was last asked.
    pub(super) fn are_new(&self) -> bool {
        self.opened
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &LiveDatabase> {
        self.all.iter().filter_map(|member| member.live.as_ref())
    }

    /// Wakes the thread, whichever of them it is waiting for.
    pub(super) fn waker(&self) -> Option<Waker> {
        self.live().next().map(LiveDatabase::waker)
    }

    /// Looks at all of them. One that cannot be looked at is closed; fails when none is left.
    pub(super) fn look(&mut self) -> Result<Look, CaptureError> {
        self.opened = false;
        let mut sum: Option<Look> = None;
        let mut failure = None;
        for member in &mut self.all {
            let Some(live) = &mut member.live else { continue };
            match live.look() {
                Ok(look) => {
                    member.caution = caution_of(&look);
                    sum = Some(match sum {
                        None => look,
                        Some(sum) => Look {
                            pending_pages: sum.pending_pages + look.pending_pages,
                            pending_bytes: sum.pending_bytes + look.pending_bytes,
                            changed: sum.changed || look.changed,
                            commits: sum.commits + look.commits,
                            mode: if sum.mode == Mode::Following { sum.mode } else { look.mode },
                            gap: sum.gap.or(look.gap),
                            caution: sum.caution.or(look.caution),
                        },
                    });
                }
                Err(error) => {
                    member.close(&error);
                    failure = Some(error);
                }
            }
        }
        match (sum, failure) {
            (Some(look), _) => Ok(look),
            (None, Some(error)) => Err(error),
            (None, None) => Err(CaptureError::Missing),
        }
    }

    /// Waits for an event of any of them.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        let absent = self.all.iter().any(|member| member.live.is_none());
        let timeout = if absent { timeout.min(MISSING_LOOK) } else { timeout };
        let mut live: Vec<&mut LiveDatabase> =
            self.all.iter_mut().filter_map(|member| member.live.as_mut()).collect();
        wait_any(&mut live, timeout)
    }

    /// Why what is followed is not all, or not as soon as it could be.
    pub(super) fn caution(&self) -> Option<String> {
        let several = self.all.len() > 1;
        let cautions = self.all.iter().filter_map(|member| {
            let own = member.caution.clone().filter(|_| member.live.is_some());
            match own {
                Some(caution) if several => Some(format!("{}: {caution}", member.name)),
                Some(caution) => Some(caution),
                None if several => member.trouble.clone(),
                None => None,
            }
        });
        let cautions: Vec<_> = cautions.collect();
        (!cautions.is_empty()).then(|| cautions.join("; "))
    }

    /// Drops the tables: the next captures are bases.
    pub(super) fn forget(&mut self) {
        for member in &mut self.all {
            let dropped = member.live.as_mut().map_or(Ok(false), |live| live.forget().map(|()| true));
            member.rebase = match dropped {
                Ok(dropped) => !dropped,
                Err(error) => {
                    warn!(%error, "the page table cannot be dropped");
                    true
                }
            };
        }
    }

    /// Takes note of what was written: a table opened later has to join it.
    pub(super) fn wrote(&mut self, written: &Written) {
        self.written_seq = written.head.seq;
    }
}

impl Member {
    /// Opens the database, and joins the table of page digests to the log.
    fn open(&mut self, start: &Start, written_seq: u64) -> Result<(), CaptureError> {
        let path = &self.config.path;
        if !start.links && std::fs::canonicalize(path).is_ok_and(|real| real != *path) {
            let reason = "its path leads through a symbolic link now; register the real file".to_owned();
            return Err(CaptureError::Unsupported { reason });
        }
        // What was written down for an entry that is kept counts, also after a crash before it was committed.
        let mut live = LiveDatabase::open_at(self.config.clone(), written_seq)?;
        join(&mut live, written_seq, self.rebase)
            .map_err(|source| CaptureError::Io { doing: "joining the page table to the log", source })?;
        self.rebase = false;
        self.live = Some(live);
        Ok(())
    }

    fn close(&mut self, error: &CaptureError) {
        self.live = None;
        self.trouble = Some(format!("{}: {error}", self.name));
    }
}

/// Why it is not read as soon as it is written.
fn caution_of(look: &Look) -> Option<String> {
    let place = look.caution.map(str::to_owned);
    // A gap that may be closed at once is no delay.
    let gap = look.gap.filter(|_| !look.changed).map(|gap| {
        format!(
            "the whole file has to be read ({gap}), which waits so that reading takes at most 2 % of a core"
        )
    });
    match (place, gap) {
        (Some(place), Some(gap)) => Some(format!("{place}; {gap}")),
        (place, gap) => place.or(gap),
    }
}

/// Makes the table stand at the newest entry written, or drops it: it belongs to another place of the log.
fn join(database: &mut LiveDatabase, written_seq: u64, rebase: bool) -> io::Result<()> {
    match database.table_seq() {
        None => Ok(()),
        Some(at) if at == written_seq && !rebase => Ok(()),
        Some(at) => {
            debug!(
                table = at,
                log = written_seq,
                rebase,
                "the page table does not belong to this place of the log"
            );
            database.forget()
        }
    }
}
