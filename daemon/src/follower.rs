//! The thread that follows one database: it waits for events, looks, and captures when it is told to.
//!
//! One thread per source owns the [`LiveDatabase`]: what it does is blocking, and the order of wait, look and capture
//! is what makes captures sound. It talks to the loop through events, and is woken for orders.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chatkeep_format::{ArchiveId, Entry, ObjectName, PageOp, PageSet};
use chatkeep_ipc::Error;
use chatkeep_planner::SourceId;
use chatkeep_sqlite::{CaptureError, LiveConfig, LiveDatabase, Waker, page_digest};
use tracing::{debug, info, warn};

use crate::archive::Archive;
use crate::catalogue::Head;
use crate::event::Event;
use crate::fault::{Fault, Result};
use crate::spool::Spooled;
use crate::writer::{Writer, Written};

/// Between two looks: what a database that is written without a pause costs us is bounded by it (capture.md, 2.4).
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// Between two messages to the loop about the same source.
const TELL_PAUSE: Duration = Duration::from_millis(50);
/// Looks after the last event, one after each of these times. SQLite makes an event when it writes the log, and none
/// when it publishes the commit in shared memory; between the two it syncs, which takes as long as the disk takes. At
/// last a look without any event, in case one got lost.
const LATER_LOOKS: [Duration; 7] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
    Duration::from_secs(30),
];
/// A look for a database that is not there; its folder is watched beside. Also the longest wait after a failure.
const MISSING_LOOK: Duration = Duration::from_secs(10);
/// The first wait after a failure; doubled each time.
const FAILED_PAUSE: Duration = Duration::from_millis(250);

/// What the thread is told.
enum Order {
    Capture(Box<CaptureOrder>),
    Look,
    Forget,
}

/// One capture.
pub struct CaptureOrder {
    /// Where the log stands.
    pub before: Head,
    /// Seals and spools.
    pub writer: Writer,
    /// Set to stop it.
    pub cancelled: Arc<AtomicBool>,
    /// Counts the bytes read, for progress.
    pub done_bytes: Arc<AtomicU64>,
}

/// How a capture ended.
#[derive(Debug)]
pub struct Captured {
    /// The new entry; none when nothing had changed.
    pub written: Option<Written>,
    /// Why everything had to be read, if it had to.
    pub gap: Option<&'static str>,
    /// The database is not there any more.
    pub gone: bool,
}

/// What the thread begins with.
pub struct Start {
    /// The source.
    pub source: SourceId,
    /// The database.
    pub live: LiveConfig,
    /// Its archive and keys, to read what waits in the spool.
    pub archive: Archive,
    /// Where the log stands.
    pub written: Head,
    /// What waits in the spool, oldest first.
    pub waiting: Vec<Written>,
    /// Opens and seals.
    pub writer: Writer,
    /// The chain of entries in the store is broken: begin with a base.
    pub rebase: bool,
    /// Follow symbolic links. Not where an app registered the path: it could later point it at another app's database.
    pub links: bool,
}

/// The loop's handle of the thread. Stops it when dropped, at the next safe point.
pub struct Follower {
    orders: Sender<Order>,
    waker: Arc<Mutex<Option<Waker>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Starts the thread. What happens goes to `events`.
    pub fn start(start: Start, events: tokio::sync::mpsc::Sender<Event>) -> std::io::Result<Self> {
        let (orders, incoming) = channel();
        let waker = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let body = Body {
            incoming,
            events,
            waker: waker.clone(),
            stop: stop.clone(),
            source: start.source,
            told: Told::default(),
            rebase: start.rebase,
            quiet_looks: 0,
            fault: None,
        };
        let thread = std::thread::Builder::new()
            .name(format!("follow-{}", start.source.0))
            .spawn(move || body.run(&start))?;
        Ok(Self { orders, waker, stop, thread: Some(thread) })
    }

    /// Captures; the answer is [`Event::Captured`].
    pub fn capture(&self, order: CaptureOrder) {
        self.send(Order::Capture(Box::new(order)));
    }

    /// Drops the table of page digests: the store lacks something, so the next capture is a base.
    pub fn forget(&self) {
        self.send(Order::Forget);
    }

    /// Something happened in its folder.
    pub fn look(&self) {
        self.send(Order::Look);
    }

    fn send(&self, order: Order) {
        // A thread that ended has said why.
        let _ = self.orders.send(order);
        if let Ok(waker) = self.waker.lock()
            && let Some(waker) = &*waker
        {
            waker.wake();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.look();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the loop knows already, so that it is not told again.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    pending: u64,
}

struct Body {
    incoming: Receiver<Order>,
    events: tokio::sync::mpsc::Sender<Event>,
    waker: Arc<Mutex<Option<Waker>>>,
    stop: Arc<AtomicBool>,
    source: SourceId,
    told: Told,
    /// The table is to be dropped as soon as there is one.
    rebase: bool,
    /// Looks since the last event.
    quiet_looks: usize,
    /// Why there is nothing to follow.
    fault: Option<Fault>,
}

impl Body {
    fn run(mut self, start: &Start) {
        let mut live: Option<LiveDatabase> = None;
        let mut written = start.written.clone();
        let mut waiting = start.waiting.clone();
        let mut failures = 0;
        while !self.stopped() {
            if live.is_none() {
                live = self.open(start, &written, &waiting);
            }
            let Some(database) = &mut live else {
                if !self.wait_without_database(failures) {
                    return;
                }
                failures += 1;
                continue;
            };
            // Every order that is there: the wake for the last of them may be the one that was just taken.
            loop {
                match self.incoming.try_recv() {
                    Ok(Order::Capture(order)) => {
                        let result = capture(database, &order);
                        if let Ok(Captured { written: Some(new), .. }) = &result {
                            written = new.head.clone();
                            waiting.clear();
                        }
                        self.told = Told::default();
                        self.tell(Event::Captured { source: self.source, result });
                    }
                    Ok(Order::Forget) => match database.forget() {
                        Ok(()) => self.rebase = false,
                        Err(error) => {
                            warn!(%error, "the page table cannot be dropped");
                            self.rebase = true;
                        }
                    },
                    Ok(Order::Look) => {}
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if self.stopped() {
                return;
            }
            match self.follow(database) {
                Ok(()) => failures = 0,
                Err(error) => {
                    live = None;
                    let absent = matches!(error, CaptureError::Missing);
                    self.complain(error);
                    if !absent {
                        if !self.wait_without_database(failures) {
                            return;
                        }
                        failures += 1;
                    }
                }
            }
        }
    }

    /// Waits before the database is opened again, and answers orders meanwhile. False when there will be no more.
    fn wait_without_database(&mut self, failures: u32) -> bool {
        let pause = match &self.fault {
            Some(fault) if !matches!(fault.error, Error::DatabaseMissing(_)) => {
                (FAILED_PAUSE * 2_u32.pow(failures.min(6))).min(MISSING_LOOK)
            }
            _ => MISSING_LOOK,
        };
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.incoming.recv_timeout(left) {
                Ok(Order::Capture(_)) => {
                    let fault = self.fault.clone().unwrap_or_else(|| CaptureError::Missing.into());
                    self.tell(Event::Captured { source: self.source, result: Err(fault) });
                }
                // It may be there now.
                Ok(Order::Look) if pause == MISSING_LOOK || self.stopped() => return true,
                Ok(Order::Look) => {}
                Ok(Order::Forget) => self.rebase = true,
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// One round: wait for an event, look, tell.
    fn follow(&mut self, database: &mut LiveDatabase) -> Result<(), CaptureError> {
        let look = database.look()?;
        let mut timeout = LATER_LOOKS[self.quiet_looks.min(LATER_LOOKS.len() - 1)];
        if look.changed && (look.pending_bytes != self.told.pending || self.told.at.is_none()) {
            let since = self.told.at.map_or(TELL_PAUSE, |at| at.elapsed());
            if since >= TELL_PAUSE {
                self.told = Told { at: Some(Instant::now()), pending: look.pending_bytes };
                self.tell(Event::Changed { source: self.source, pending_bytes: look.pending_bytes });
            } else {
                timeout = timeout.min(TELL_PAUSE.saturating_sub(since));
            }
        }
        let happened = database
            .wait(timeout)
            .map_err(|source| CaptureError::Io { doing: "waiting for events", source })?;
        if happened {
            self.quiet_looks = 0;
            std::thread::sleep(LOOK_PAUSE);
        } else {
            self.quiet_looks += 1;
        }
        Ok(())
    }

    /// Opens the database, and joins the table of page digests to the log.
    fn open(&mut self, start: &Start, written: &Head, waiting: &[Written]) -> Option<LiveDatabase> {
        let path = &start.live.path;
        if !start.links && std::fs::canonicalize(path).is_ok_and(|real| real != *path) {
            let reason = "its path leads through a symbolic link now; register the real file".to_owned();
            self.complain(CaptureError::Unsupported { reason });
            return None;
        }
        let mut database = match LiveDatabase::open(start.live.clone()) {
            Ok(database) => database,
            Err(error) => {
                self.complain(error);
                return None;
            }
        };
        if let Err(error) = join(&mut database, start, written, waiting, self.rebase) {
            self.complain(CaptureError::Io { doing: "joining the page table to the log", source: error });
            return None;
        }
        if let Ok(mut waker) = self.waker.lock() {
            *waker = Some(database.waker());
        }
        self.rebase = false;
        self.told = Told::default();
        self.fault = None;
        self.tell(Event::Found { source: self.source });
        Some(database)
    }

    /// Tells why the database cannot be followed, once for each reason.
    fn complain(&mut self, error: CaptureError) {
        let fault = Fault::from(error);
        let known = self.fault.as_ref().is_some_and(|known| known.error == fault.error);
        self.fault = Some(fault.clone());
        if !known {
            self.tell(Event::Lost { source: self.source, fault: Box::new(fault) });
        }
    }

    fn tell(&self, event: Event) {
        // The loop has ended when nobody listens.
        let _ = self.events.blocking_send(event);
    }
}

/// Makes the table stand at the newest entry written: replays what the spool has beyond it, or drops it.
fn join(
    database: &mut LiveDatabase,
    start: &Start,
    written: &Head,
    waiting: &[Written],
    rebase: bool,
) -> std::io::Result<()> {
    let Some(at) = database.table_seq() else { return Ok(()) };
    if rebase {
        return database.forget();
    }
    if at == written.seq {
        return Ok(());
    }
    let newer: Vec<&Written> = waiting.iter().filter(|entry| entry.head.seq > at).collect();
    let joins = newer.first().is_some_and(|first| first.head.seq == at + 1);
    if joins {
        for entry in newer {
            if let Err(fault) = replay(database, start, entry) {
                warn!(seq = entry.head.seq, error = %fault.error.text(), "the queue cannot be replayed");
                return database.forget();
            }
        }
        info!(from = at, to = written.seq, "the page table caught up with the queue");
        return Ok(());
    }
    debug!(table = at, log = written.seq, "the page table belongs to another place of the log");
    database.forget()
}

fn replay(database: &mut LiveDatabase, start: &Start, written: &Written) -> Result<()> {
    let seq = written.head.seq;
    let roots = &start.writer.roots;
    let open = |object: &Spooled| -> Result<Vec<u8>> {
        let sealed = std::fs::read(&object.path)?;
        let opened = chatkeep_crypto::open(&start.archive.id, object.name, roots, &sealed);
        opened.map_err(|error| Fault::internal(format!("an object in the queue does not open: {error}")))
    };
    let mut digests = Vec::new();
    let mut digest = |pages: &PageSet| {
        let zeros = vec![0; pages.page_size() as usize];
        for (pgno, op) in pages.iter() {
            let image = match op {
                PageOp::Full(image) => image,
                PageOp::Zero => &zeros,
            };
            digests.push((pgno, page_digest(&written.head.digest_key, pgno, image)));
        }
    };
    let mut record = None;
    for object in &written.objects {
        let body = open(object)?;
        match object.name {
            ObjectName::Pack(_) => digest(&PageSet::decode(body).map_err(Fault::internal)?),
            ObjectName::Entry(_) => {
                let entry = Entry::decode(&body).map_err(Fault::internal)?;
                let database = entry.databases.into_iter().next();
                let database = database.ok_or_else(|| Fault::internal("an entry without a database"))?;
                digest(&database.inline);
                record = Some(database);
            }
            ObjectName::Keyring(_) => {}
        }
    }
    let record = record.ok_or_else(|| Fault::internal("an entry is missing in the queue"))?;
    let (page_size, page_count) = (record.page_size, record.page_count);
    database.replay(seq, page_size, page_count, record.state_digest, &mut digests.into_iter())?;
    Ok(())
}

/// Captures, seals, spools; the table follows once the entry is on the disk.
fn capture(database: &mut LiveDatabase, order: &CaptureOrder) -> Result<Captured> {
    let seq = order.before.seq + 1;
    let cancelled = || order.cancelled.load(Ordering::Relaxed);
    // Everything committed before this moment is in the capture; what is committed meanwhile may be.
    let now_us = crate::clock::now_us() as i64;
    let collected = order
        .writer
        .collect(seq, &order.done_bytes, |sink| database.capture(sink, &cancelled).map_err(Fault::from));
    let (capture, packs, inline) = match collected {
        Ok(collected) => collected,
        Err(fault) => {
            database.abort();
            order.writer.spool.drop_entry(seq);
            return Err(fault);
        }
    };
    let gap = capture.gap.map(chatkeep_sqlite::GapReason::as_str);
    if let Some(gap) = gap {
        debug!(gap, bytes = capture.bytes_read, "the whole database was read");
    }
    if capture.unchanged || capture.gone {
        order.writer.spool.drop_entry(seq);
        database.commit(order.before.seq)?;
        return Ok(Captured { written: None, gap, gone: capture.gone });
    }
    match order.writer.publish(&order.before, &capture, packs, inline, now_us) {
        Ok(written) => {
            if let Err(error) = database.commit(seq) {
                // The entry is safe; a table that is behind is replayed or dropped at the next start.
                warn!(%error, "the page table could not be written");
                if let Err(error) = database.forget() {
                    warn!(%error, "nor dropped");
                }
            }
            Ok(Captured { written: Some(written), gap, gone: capture.gone })
        }
        Err(error) => {
            database.abort();
            order.writer.spool.drop_entry(seq);
            Err(error.into())
        }
    }
}

/// Where the tables of page digests lie.
pub fn table_folder(state: &Path) -> std::path::PathBuf {
    state.join("tables")
}

/// The name of a table: of the archive, and of the writer whose log it stands in. A writer that begins anew, because it
/// knows nothing of the log, never joins the table of another.
pub fn table_name(archive: &ArchiveId, head: &Head) -> String {
    format!("{archive}-{}", hex::encode(&head.writer_id[..8]))
}

/// Removes the tables of writers that are no more.
pub fn sweep_tables(folder: &Path, archive: &ArchiveId, name: &str) {
    let Ok(found) = std::fs::read_dir(folder) else { return };
    for entry in found.flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if file.starts_with(&archive.to_string()) && !file.starts_with(name) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
