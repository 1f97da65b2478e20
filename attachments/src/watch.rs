//! Tells that something changed below a folder, so that nobody has to walk it again and again.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Dir, FileType};
use rustix::io::{Errno, retry_on_intr};

use crate::folder::Folder;
use crate::os::{self, FOLDER};
use crate::path::RelPath;

/// What is told. Not that a file was opened or read, which we do ourselves; nor each piece that is written: a file
/// that a program has written to is told when it closes it.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR);

/// File systems that other machines (or programs) change without the kernel seeing it: NFS, SMB (three numbers),
/// FUSE, 9p, Ceph, AFS.
const REMOTE: [u32; 8] =
    [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x00c3_6400, 0x5346_414f];

/// When a change is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchPolicy {
    /// So long nothing must have changed.
    pub quiet: Duration,
    /// So long after a change it is told, quiet or not.
    pub quiet_max: Duration,
    /// Folders that are watched at most. The kernel has a limit for all programs of the user together, 8192 on small
    /// machines: leave them some.
    pub watches_max: usize,
    /// How often a change is taken for granted where not all folders can be watched.
    pub period: Duration,
}

impl Default for WatchPolicy {
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(2),
            quiet_max: Duration::from_secs(10),
            watches_max: 1024,
            period: Duration::from_mins(5),
        }
    }
}

/// How changes are noticed at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticing {
    /// As they happen.
    AtOnce,
    /// Some as they happen; for the others, a change is told every now and then whether there was one or not.
    Periodically(Cause),
}

/// Why not all changes are noticed as they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// There are more folders than [`WatchPolicy::watches_max`].
    TooManyFolders,
    /// The kernel gives this user no more watches (`fs.inotify.max_user_watches`).
    LimitOfTheKernel,
    /// Others change this file system without the kernel seeing it.
    RemoteFileSystem,
    /// A folder cannot be watched: no permission, or `/proc` is missing.
    Unwatchable,
}

/// Watches a folder and all below until it is dropped. While it lives, the file system cannot be unmounted.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<OwnedFd>,
    noticing: Arc<Mutex<Noticing>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Begins to watch. Calls `changed` on a thread of its own; what changed is for a walk to find out.
    pub fn start(
        folder: &Folder,
        policy: WatchPolicy,
        changed: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut watch = Watch {
            folder: folder.open_again()?,
            policy,
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            stop: Arc::clone(&stop),
            watched: BTreeSet::new(),
        };
        // before this returns, so that nothing that happens afterwards is missed
        let noticing = Arc::new(Mutex::new(watch.watch_all()));
        let shared = Arc::clone(&noticing);
        let thread = std::thread::Builder::new()
            .name("attachments".to_owned())
            .spawn(move || watch.run(&shared, changed))?;
        Ok(Self { stop, noticing, thread: Some(thread) })
    }

    /// For the status: whether changes are noticed as they happen, and if not, why.
    pub fn noticing(&self) -> Noticing {
        *self.noticing.lock().expect(NO_PANIC)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // cannot fail: it is ours, and the number in it is small
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // a panic of `changed` was told on its thread
            let _ = thread.join();
        }
    }
}

const NO_PANIC: &str = "nothing panics while it holds the state";

struct Watch {
    folder: Folder,
    policy: WatchPolicy,
    inotify: OwnedFd,
    stop: Arc<OwnedFd>,
    /// What inotify calls the folders.
    watched: BTreeSet<i32>,
}

enum Woken {
    /// Something changed; `folders`: perhaps there are new ones.
    Changed {
        folders: bool,
    },
    Timeout,
    Stop,
}

impl Watch {
    fn run(&mut self, noticing: &Mutex<Noticing>, mut changed: impl FnMut()) {
        loop {
            let periodic = *noticing.lock().expect(NO_PANIC) != Noticing::AtOnce;
            let mut folders = match self.wait(periodic.then_some(self.policy.period)) {
                Woken::Stop => return,
                Woken::Timeout => true,
                Woken::Changed { folders } => folders,
            };
            let latest = Instant::now() + self.policy.quiet_max;
            loop {
                let left = latest.saturating_duration_since(Instant::now());
                match self.wait(Some(self.policy.quiet.min(left))) {
                    Woken::Stop => return,
                    Woken::Changed { folders: more } => folders |= more,
                    Woken::Timeout => break,
                }
                if left.is_zero() {
                    break;
                }
            }
            // before it is told: what happens in a new folder from now on is noticed, what was before is found
            if folders {
                *noticing.lock().expect(NO_PANIC) = self.watch_all();
            }
            changed();
        }
    }

    /// Waits for an event, for `span` at most, and takes all that are there.
    fn wait(&self, span: Option<Duration>) -> Woken {
        let span = span.map(|span| Timespec {
            tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(span.subsec_nanos()),
        });
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&*self.stop, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut fds, span.as_ref())) {
            Ok(0) => return Woken::Timeout,
            // no memory in the kernel: what happened meanwhile is unknown
            Err(_) => {
                std::thread::sleep(self.policy.quiet);
                return Woken::Changed { folders: true };
            }
            Ok(_) if !fds[1].revents().is_empty() => return Woken::Stop,
            Ok(_) => {}
        }
        let mut folders = false;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        // ends with `AGAIN`
        while let Ok(event) = reader.next() {
            folders |= event.events().intersects(ReadFlags::ISDIR | ReadFlags::QUEUE_OVERFLOW);
        }
        Woken::Changed { folders }
    }

    /// Watches every folder there is, and those no longer that are gone or elsewhere.
    fn watch_all(&mut self) -> Noticing {
        let mut now = BTreeSet::new();
        let watched = self.watch_below(self.folder.fd(), RelPath::SEGMENTS_MAX, &mut now);
        for old in self.watched.difference(&now) {
            // the kernel may have done it: the folder was deleted
            let _ = inotify::remove_watch(&self.inotify, *old);
        }
        self.watched = now;
        match watched {
            Err(cause) => Noticing::Periodically(cause),
            Ok(()) if is_remote(self.folder.fd()) => Noticing::Periodically(Cause::RemoteFileSystem),
            Ok(()) => Noticing::AtOnce,
        }
    }

    fn watch_below(
        &self,
        folder: BorrowedFd<'_>,
        depth: usize,
        now: &mut BTreeSet<i32>,
    ) -> Result<(), Cause> {
        if now.len() >= self.policy.watches_max {
            return Err(Cause::TooManyFolders);
        }
        // this very folder, whatever its path leads to by now
        let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
        match inotify::add_watch(&self.inotify, path, EVENTS) {
            Ok(watch) => drop(now.insert(watch)),
            Err(Errno::NOSPC | Errno::NOMEM) => return Err(Cause::LimitOfTheKernel),
            Err(_) => return Err(Cause::Unwatchable),
        }
        // watched before it is listed, so that no new folder is missed in between
        let entries = retry_on_intr(|| Dir::read_from(folder)).map_err(|_| Cause::Unwatchable)?;
        let mut first_cause = Ok(());
        for entry in entries.flatten() {
            let name = entry.file_name().to_bytes();
            let may_be_folder = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            if !may_be_folder || name == b"." || name == b".." || depth <= 1 {
                continue;
            }
            let below = match os::open_below(folder, name, FOLDER) {
                Ok(below) => below,
                // gone, no folder, a link, another file system: a walk does not go there either
                Err(errno) if os::is_gone(errno) || errno == Errno::XDEV => continue,
                Err(_) => {
                    first_cause = first_cause.and(Err(Cause::Unwatchable));
                    continue;
                }
            };
            match self.watch_below(below.as_fd(), depth - 1, now) {
                Err(cause @ (Cause::TooManyFolders | Cause::LimitOfTheKernel)) => return Err(cause),
                other => first_cause = first_cause.and(other),
            }
        }
        first_cause
    }
}

fn is_remote(folder: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(folder).is_ok_and(|stat| REMOTE.contains(&(stat.f_type as u32)))
}
