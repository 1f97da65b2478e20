//! The databases of one source: opened, looked at and waited for together.
//!
//! A source of several databases is followed as soon as one of them is there. One that is missing stays in every entry
//! as it was last: an app that removes a file for a moment must not remove it from the backup.

use std::io;
use std::time::{Duration, Instant};

use chatkeep_format::{Entry, ObjectName, PageOp, PageSet};
use chatkeep_sqlite::{CaptureError, LiveConfig, LiveDatabase, Look, Mode, Waker, page_digest, wait_any};
use tracing::{debug, info, warn};

use super::{MISSING_LOOK, Start};
use crate::fault::{Fault, Result};
use crate::spool::Spooled;
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
}

pub(super) struct Members {
    pub(super) all: Vec<Member>,
    /// What was written since the thread began.
    pub(super) written_seq: u64,
    waiting: Vec<Written>,
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
        });
        Self {
            all: all.collect(),
            written_seq: start.written.seq,
            waiting: start.waiting.clone(),
            opened: false,
        }
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
            match member.open(start, self.written_seq, &self.waiting) {
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
                    sum = Some(match sum {
                        None => look,
                        Some(sum) => Look {
                            pending_pages: sum.pending_pages + look.pending_pages,
                            pending_bytes: sum.pending_bytes + look.pending_bytes,
                            changed: sum.changed || look.changed,
                            commits: sum.commits + look.commits,
                            mode: if sum.mode == Mode::Following { sum.mode } else { look.mode },
                            gap: sum.gap.or(look.gap),
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
            let own = member.live.as_ref().and_then(caution_of);
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
        self.waiting.clear();
    }
}

impl Member {
    /// Opens the database, and joins the table of page digests to the log.
    fn open(&mut self, start: &Start, written_seq: u64, waiting: &[Written]) -> Result<(), CaptureError> {
        let path = &self.config.path;
        if !start.links && std::fs::canonicalize(path).is_ok_and(|real| real != *path) {
            let reason = "its path leads through a symbolic link now; register the real file".to_owned();
            return Err(CaptureError::Unsupported { reason });
        }
        let mut live = LiveDatabase::open(self.config.clone())?;
        join(&mut live, &self.name, start, written_seq, waiting, self.rebase)
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
fn caution_of(_live: &LiveDatabase) -> Option<String> {
    None
}

/// Makes the table stand at the newest entry written: replays what the spool has beyond it, or drops it.
fn join(
    database: &mut LiveDatabase,
    name: &str,
    start: &Start,
    written_seq: u64,
    waiting: &[Written],
    rebase: bool,
) -> io::Result<()> {
    let Some(at) = database.table_seq() else { return Ok(()) };
    if rebase {
        return database.forget();
    }
    if at == written_seq {
        return Ok(());
    }
    let newer: Vec<&Written> = waiting.iter().filter(|entry| entry.head.seq > at).collect();
    let joins = newer.first().is_some_and(|first| first.head.seq == at + 1);
    if joins {
        for entry in newer {
            if let Err(fault) = replay(database, name, start, entry) {
                warn!(seq = entry.head.seq, error = %fault.error.text(), "the queue cannot be replayed");
                return database.forget();
            }
        }
        info!(from = at, to = written_seq, "the page table caught up with the queue");
        return Ok(());
    }
    debug!(table = at, log = written_seq, "the page table belongs to another place of the log");
    database.forget()
}

fn replay(database: &mut LiveDatabase, name: &str, start: &Start, written: &Written) -> Result<()> {
    let seq = written.head.seq;
    let roots = &start.writer.roots;
    let open = |object: &Spooled| -> Result<Vec<u8>> {
        let sealed = std::fs::read(&object.path)?;
        let opened = chatkeep_crypto::open(&start.archive.id, object.name, roots, &sealed);
        opened.map_err(|error| Fault::internal(format!("an object in the queue does not open: {error}")))
    };
    let entry = written.objects.last().ok_or_else(|| Fault::internal("an entry is missing in the queue"))?;
    let entry = Entry::decode(&open(entry)?).map_err(Fault::internal)?;
    let record = entry.databases.iter().find(|record| record.name == name);
    let record = record.ok_or_else(|| Fault::internal("an entry without the database"))?;
    let mut digests = Vec::new();
    let mut digest = |pages: &PageSet| -> Result<()> {
        let zeros = vec![0; pages.page_size() as usize];
        for (pgno, op) in pages.iter() {
            let image = match op {
                PageOp::Full(image) => image,
                PageOp::Zero => &zeros,
                PageOp::Patch { .. } => return Err(Fault::internal("a patch says nothing without its base")),
            };
            digests.push((pgno, page_digest(&written.head.digest_key, pgno, image)));
        }
        Ok(())
    };
    for pack in &record.packs {
        let object = written.objects.iter().find(|object| object.name == ObjectName::Pack(pack.name));
        let object = object.ok_or_else(|| Fault::internal("a pack is missing in the queue"))?;
        digest(&PageSet::decode(open(object)?).map_err(Fault::internal)?)?;
    }
    digest(&record.inline)?;
    let (page_size, page_count) = (record.page_size, record.page_count);
    database.replay(seq, page_size, page_count, record.state_digest, &mut digests.into_iter())?;
    Ok(())
}
