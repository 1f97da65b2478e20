//! The events of a database's folder, read by the follower itself.
//!
//! The proofs need "no such event until now", which only a reader of the queue can say: inotify queues an
//! event before the system call that caused it returns, so draining the queue tells all that happened so far.
//! Writes through a memory map make no event; SQLite uses one for the index only, where the proofs need
//! truncation and growth alone, which do.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// Which file of the database an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Member {
    Db,
    Wal,
    Shm,
    Journal,
}

/// Something that happened in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Written(Member),
    /// A descriptor that could write was closed, or its process ended.
    Closed(Member),
    Created(Member),
    Deleted(Member),
    /// Renamed to or away from this name.
    Moved(Member),
    /// The kernel dropped events, or the folder went away.
    Lost,
}

/// Makes [`LiveDatabase::wait`](crate::LiveDatabase::wait) return, from any thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Wakes the waiting thread, or makes its next wait return at once.
    pub fn wake(&self) {
        // Fails only when the counter is full: then it is awake already.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// The watched folder.
pub(crate) struct Watch {
    inotify: OwnedFd,
    waker: Waker,
    folder: PathBuf,
    name: OsString,
    /// The watch of the folder that had the name last; the kernel does not give its number away again soon.
    current: Option<i32>,
    last_return: Instant,
}

impl Watch {
    pub(crate) fn new(db: &Path) -> io::Result<Watch> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut watch = Watch {
            inotify,
            waker: Waker(Arc::new(wake)),
            folder: PathBuf::new(),
            name: OsString::new(),
            current: None,
            last_return: Instant::now(),
        };
        watch.point_at(db);
        watch.attach()?;
        Ok(watch)
    }

    /// From the next [`attach`](Self::attach) on the events are those of this database.
    pub(crate) fn point_at(&mut self, db: &Path) {
        let folder = db.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        folder.clone_into(&mut self.folder);
        db.file_name().unwrap_or_default().clone_into(&mut self.name);
    }

    /// Watches the folder that has the name now: a folder whose parent was moved away goes on to be watched, without
    /// an event that tells. `true` when it was not this one that was watched until now.
    pub(crate) fn attach(&mut self) -> io::Result<bool> {
        let flags = WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(&self.inotify, &self.folder, flags)?;
        if self.current == Some(watch) {
            return Ok(false);
        }
        if let Some(old) = self.current.replace(watch) {
            // Fails when its folder is gone, and the watch with it.
            let _ = inotify::remove_watch(&self.inotify, old);
        }
        Ok(true)
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Hands every event that happened until now to `each`, in order.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Event)) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let flags = event.events();
            if self.current != Some(event.wd()) && !flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                continue;
            }
            if flags.contains(ReadFlags::IGNORED) {
                self.current = None;
            }
            let lost = ReadFlags::QUEUE_OVERFLOW
                | ReadFlags::IGNORED
                | ReadFlags::UNMOUNT
                | ReadFlags::DELETE_SELF
                | ReadFlags::MOVE_SELF;
            if flags.intersects(lost) {
                each(Event::Lost);
                continue;
            }
            let Some(member) =
                event.file_name().and_then(|name| self.member(OsStr::from_bytes(name.to_bytes())))
            else {
                continue;
            };
            if flags.contains(ReadFlags::MODIFY) {
                each(Event::Written(member));
            } else if flags.contains(ReadFlags::CLOSE_WRITE) {
                each(Event::Closed(member));
            } else if flags.contains(ReadFlags::CREATE) {
                each(Event::Created(member));
            } else if flags.contains(ReadFlags::DELETE) {
                each(Event::Deleted(member));
            } else if flags.intersects(ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO) {
                each(Event::Moved(member));
            }
        }
    }

    fn member(&self, name: &OsStr) -> Option<Member> {
        match name.as_bytes().strip_prefix(self.name.as_bytes())? {
            b"" => Some(Member::Db),
            b"-wal" => Some(Member::Wal),
            b"-shm" => Some(Member::Shm),
            b"-journal" => Some(Member::Journal),
            _ => None,
        }
    }
}

/// Returns on an event or a wake of one of them (`true`) or at the end of `timeout`, and at most once every `pause`.
pub(crate) fn wait_for_any(
    watches: &mut [&mut Watch],
    timeout: Duration,
    pause: Duration,
) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    let happened = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let span = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let descriptors = watches.iter().flat_map(|watch| [&watch.inotify, &*watch.waker.0]);
        let mut fds: Vec<_> = descriptors.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&span)) {
            Ok(ready) => break ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let last_return = watches.iter().map(|watch| watch.last_return).max();
    std::thread::sleep(last_return.map_or(Duration::ZERO, |last| pause.saturating_sub(last.elapsed())));
    for watch in watches {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&*watch.waker.0, &mut counter);
        watch.last_return = Instant::now();
    }
    Ok(happened)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn events(watch: &mut Watch) -> Vec<Event> {
        let mut events = Vec::new();
        watch.drain(|event| events.push(event)).unwrap();
        events
    }

    #[test]
    fn the_folder_that_has_the_name_is_watched_and_no_other() {
        let top = tempfile::tempdir().unwrap();
        let (parent, away) = (top.path().join("parent"), top.path().join("away"));
        let db = parent.join("folder/db");
        std::fs::create_dir_all(db.parent().unwrap()).unwrap();
        let mut watch = Watch::new(&db).unwrap();
        assert!(!watch.attach().unwrap(), "it is watched already");
        std::fs::rename(&parent, &away).unwrap();
        watch.attach().unwrap_err();
        std::fs::create_dir_all(db.parent().unwrap()).unwrap();
        assert_eq!(events(&mut watch), [], "the kernel does not tell");
        assert!(watch.attach().unwrap());
        std::fs::write(away.join("folder/db"), b"old").unwrap();
        assert_eq!(events(&mut watch), []);
        std::fs::write(&db, b"new").unwrap();
        let new = [Event::Created(Member::Db), Event::Written(Member::Db), Event::Closed(Member::Db)];
        assert_eq!(events(&mut watch), new);
        // Removed and made again: the watch went with the folder.
        std::fs::remove_dir_all(&parent).unwrap();
        assert!(events(&mut watch).contains(&Event::Lost));
        std::fs::create_dir_all(db.parent().unwrap()).unwrap();
        assert!(watch.attach().unwrap());
        std::fs::write(&db, b"new").unwrap();
        assert_eq!(events(&mut watch), new);
    }
}
