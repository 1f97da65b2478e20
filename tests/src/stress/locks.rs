//! Do we hold a lock on a file of the app? The kernel knows.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks. A lock that nobody is to see must not be there for a moment, and a moment is not seen always: the
/// writers that never wait see the rest.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks at the locks of this process all the time.
pub struct LockWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

/// What was seen.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// How often it was looked.
    pub looks: u64,
    /// Locks of ours, as the kernel describes them.
    pub locks: Vec<String>,
}

impl LockWatch {
    /// Looks until it is asked, at files in `app`.
    pub fn start(app: &Path) -> LockWatch {
        let (stop, app) = (Arc::new(AtomicBool::new(false)), app.to_owned());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || watch(&app, &stopped));
        LockWatch { stop, thread: Some(thread) }
    }

    /// Ends, and says what was seen.
    pub fn finish(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for LockWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(app: &Path, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        seen.looks += 1;
        seen.locks.extend(own_locks(app));
        std::thread::sleep(LOOK_EVERY);
    }
    seen
}

/// Locks that this process holds on files in `app`. (It may on restored copies elsewhere.)
pub fn own_locks(app: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let files = std::fs::read_dir(app).into_iter().flatten().flatten();
    let inodes: Vec<String> =
        files.filter_map(|file| Some(file.metadata().ok()?.ino().to_string())).collect();
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let is_ours = |line: &&str| {
        // number, class, kind, access, process, device:device:inode, range; descriptors' locks have no process
        let fields: Vec<&str> = line.split_whitespace().filter(|field| *field != "->").collect();
        let [_, class, _, _, process, inode, ..] = fields[..] else { return false };
        let ours = class == "OFDLCK" || process == own;
        ours && inodes.iter().any(|known| inode.rsplit(':').next() == Some(known.as_str()))
    };
    locks.lines().filter(is_ours).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_lock_of_ours_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let database = rusqlite::Connection::open(folder.path().join("chat.db")).unwrap();
        database.execute_batch("CREATE TABLE t(x); BEGIN IMMEDIATE; INSERT INTO t VALUES (1);").unwrap();
        let watch = LockWatch::start(folder.path());
        std::thread::sleep(LOOK_EVERY * 4);
        let seen = watch.finish();
        assert!(seen.looks > 0 && !seen.locks.is_empty(), "{seen:?}");
        drop(database);
        assert!(own_locks(folder.path()).is_empty());
    }
}
