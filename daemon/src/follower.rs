//! The thread that follows the databases of one source: it waits for events, looks, and captures when it is told to.
//!
//! One thread per source owns its [`LiveDatabase`](chatkeep_sqlite::LiveDatabase)s ([`members`]): what it does is
//! blocking, and the order of wait, look and capture ([`capture`]) is what makes captures sound. It talks to the loop
//! through events, and is woken for orders. Between looks it reads ahead for entries that stand for a long span
//! ([`ahead`]).

mod ahead;
mod capture;
mod media;
mod members;
mod rebuild;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chatkeep_format::ArchiveId;
use chatkeep_ipc::Error;
use chatkeep_planner::SourceId;
use chatkeep_sqlite::{CaptureError, LiveConfig, Waker};

use crate::catalogue::{Head, Point};
use crate::clock::Clock;
use crate::event::Event;
use crate::fault::{Fault, Result};
use crate::writer::{Writer, Written};
use ahead::Ahead;
pub use media::Attachments;
use media::Media;
use members::Members;
use rebuild::Rebuilding;

pub use rebuild::LostPack;

/// Between an event and the look at what it was: a commit is published a moment after its frames made the event. Short,
/// because a writer without a pause overwrites images for patches when it checkpoints; [`wait_any`](chatkeep_sqlite::wait_any)
/// bounds what looks cost (capture.md, 2.4).
const COMMIT_PAUSE: Duration = Duration::from_micros(500);
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
    Rebuild(Vec<LostPack>),
    Look,
    /// With packs that are damaged or missing.
    Forget(BTreeSet<[u8; 16]>),
}

/// One capture.
pub struct CaptureOrder {
    /// Where the log stands.
    pub before: Head,
    /// What the newest entry builds on, newest first.
    pub chain: Vec<Point>,
    /// Seals and spools.
    pub writer: Writer,
    /// Says when the capture began.
    pub clock: Clock,
    /// Set to stop it.
    pub cancelled: Arc<AtomicBool>,
    /// Counts the bytes read, for progress.
    pub done_bytes: Arc<AtomicU64>,
    /// Make an entry also when nothing changed: the log has something to say, such as a pin.
    pub even_if_unchanged: bool,
}

/// How a capture ended.
#[derive(Debug)]
pub struct Captured {
    /// The new entry; none when nothing had changed.
    pub written: Option<Written>,
    /// Why everything had to be read, if it had to.
    pub gap: Option<&'static str>,
    /// The databases are not there any more.
    pub gone: bool,
    /// Attachments are still to be read: another capture follows that has them.
    pub more: bool,
}

/// What the thread begins with.
pub struct Start {
    /// The source.
    pub source: SourceId,
    /// Its databases.
    pub databases: Vec<LiveConfig>,
    /// Its folders of attachments.
    pub attachments: Option<Attachments>,
    /// The newest entry written.
    pub written_seq: u64,
    /// Seals.
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
            quiet_looks: 0,
            fault: None,
            caution: None,
            rebuilding: Rebuilding::default(),
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

    /// Drops the table of page digests: the store lacks something, so the next capture is a base. Attachments in
    /// `bad_packs` are stored again.
    pub fn forget(&self, bad_packs: BTreeSet<[u8; 16]>) {
        self.send(Order::Forget(bad_packs));
    }

    /// Makes packs again; the answer is [`Event::Rebuilt`].
    pub fn rebuild(&self, packs: Vec<LostPack>) {
        self.send(Order::Rebuild(packs));
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
    /// Looks since the last event.
    quiet_looks: usize,
    /// Why there is nothing to follow.
    fault: Option<Fault>,
    /// What the loop was told about doubts and delays.
    caution: Option<String>,
    rebuilding: Rebuilding,
}

impl Body {
    fn run(mut self, start: &Start) {
        let mut members = Members::new(start);
        let mut ahead = Ahead::default();
        let waker = self.waker.clone();
        let wake = move || {
            if let Ok(waker) = waker.lock()
                && let Some(waker) = &*waker
            {
                waker.wake();
            }
        };
        let mut media = Media::new(
            start.attachments.as_ref(),
            start.databases.iter().map(|database| database.path.as_path()),
            (start.links, start.rebase),
            wake,
        );
        let mut failures = 0;
        while !self.stopped() {
            if let Err(error) = members.open(start) {
                self.complain(error);
                if !self.wait_without_database(failures, &mut members, &mut media, &start.writer) {
                    return;
                }
                failures += 1;
                continue;
            }
            self.found(&members);
            // Every order that is there: the wake for the last of them may be the one that was just taken.
            loop {
                match self.incoming.try_recv() {
                    Ok(Order::Capture(order)) => {
                        let result = members.capture(&order, &mut ahead, &mut media);
                        self.told = Told::default();
                        self.tell(Event::Captured { source: self.source, result });
                    }
                    Ok(Order::Forget(bad_packs)) => {
                        ahead.drop_all(&start.writer);
                        members.forget();
                        media.forget(&bad_packs, &start.writer);
                    }
                    Ok(Order::Rebuild(packs)) => self.rebuilding.add(packs),
                    Ok(Order::Look) => {}
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if self.stopped() {
                return;
            }
            match self.follow(&mut members, &mut ahead, &mut media, &start.writer) {
                Ok(()) => failures = 0,
                Err(error) => {
                    let absent = matches!(error, CaptureError::Missing);
                    self.complain(error);
                    if !absent {
                        if !self.wait_without_database(failures, &mut members, &mut media, &start.writer) {
                            return;
                        }
                        failures += 1;
                    }
                }
            }
        }
    }

    /// Waits before the databases are opened again, and answers orders meanwhile. False when there will be no more.
    fn wait_without_database(
        &mut self,
        failures: u32,
        members: &mut Members,
        media: &mut Media,
        writer: &Writer,
    ) -> bool {
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
                Ok(Order::Forget(bad_packs)) => {
                    members.forget();
                    media.forget(&bad_packs, writer);
                }
                Ok(Order::Rebuild(packs)) => {
                    self.rebuilding.add(packs);
                    let (packs, lost) = self.rebuilding.end();
                    self.tell(Event::Rebuilt { source: self.source, packs, lost });
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// One round: look, tell, read ahead, wait for an event.
    fn follow(
        &mut self,
        members: &mut Members,
        ahead: &mut Ahead,
        media: &mut Media,
        writer: &Writer,
    ) -> Result<(), CaptureError> {
        let look = members.look()?;
        let mut timeout = LATER_LOOKS[self.quiet_looks.min(LATER_LOOKS.len() - 1)];
        // Attachments that are in the spool are a change, too, also when no database changed.
        let media_bytes = media.wants_entry();
        let pending_bytes = look.pending_bytes + media_bytes.unwrap_or(0);
        let changed = look.changed || media_bytes.is_some();
        if changed && (pending_bytes != self.told.pending || self.told.at.is_none()) {
            let since = self.told.at.map_or(TELL_PAUSE, |at| at.elapsed());
            if since >= TELL_PAUSE {
                self.told = Told { at: Some(Instant::now()), pending: pending_bytes };
                self.tell(Event::Changed { source: self.source, pending_bytes });
            } else {
                timeout = timeout.min(TELL_PAUSE.saturating_sub(since));
            }
        }
        let cautions: Vec<String> = members.caution().into_iter().chain(media.caution()).collect();
        self.caution((!cautions.is_empty()).then(|| cautions.join("; ")));
        if ahead.has_work() {
            ahead.read_slice(members, writer);
            timeout = Duration::ZERO;
        }
        if self.rebuilding.has_work() {
            if let Some((packs, lost)) = self.rebuilding.next(members, writer) {
                self.tell(Event::Rebuilt { source: self.source, packs, lost });
            }
            timeout = Duration::ZERO;
        }
        if media.has_work() {
            media.work(writer);
            timeout = Duration::ZERO;
        } else if let Some(idle) = media.idle_for() {
            timeout = timeout.min(idle);
        }
        let happened = members
            .wait(timeout)
            .map_err(|source| CaptureError::Io { doing: "waiting for events", source })?;
        if happened {
            self.quiet_looks = 0;
            std::thread::sleep(COMMIT_PAUSE);
        } else if !timeout.is_zero() {
            self.quiet_looks += 1;
        }
        Ok(())
    }

    /// Tells that there is something to follow (again).
    fn found(&mut self, members: &Members) {
        // Always: the one whose waker it was may have gone.
        if let Ok(mut waker) = self.waker.lock() {
            *waker = members.waker();
        }
        if !members.are_new() {
            return;
        }
        self.told = Told::default();
        self.fault = None;
        self.tell(Event::Found { source: self.source });
    }

    /// Tells about doubts and delays when they change.
    fn caution(&mut self, caution: Option<String>) {
        if self.caution != caution {
            self.caution.clone_from(&caution);
            self.tell(Event::Caution { source: self.source, caution });
        }
    }

    /// Tells why the databases cannot be followed, once for each reason.
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

/// Where the tables of page digests lie.
pub fn table_folder(state: &Path) -> std::path::PathBuf {
    state.join("tables")
}

/// The name of a table: of the archive, and of the writer whose log it stands in. A writer that begins anew, because it
/// knows nothing of the log, never joins the table of another.
pub fn table_name(archive: &ArchiveId, head: &Head) -> String {
    format!("{archive}-{}", hex::encode(&head.writer_id[..8]))
}

/// The name of the table of one database of the source.
pub fn table_name_of(table: &str, database: &Path) -> String {
    let name = database.file_name().unwrap_or_default();
    let hash = blake3::hash(name.as_encoded_bytes());
    format!("{table}-{}", hex::encode(&hash.as_bytes()[..4]))
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
