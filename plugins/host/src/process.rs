//! The life of one plugin process: started when it is needed, stopped when it is not, not started for ever when it crashes.
//!
//! The listening socket stays open here. So whoever calls while the plugin is away waits in its queue, and a plugin that
//! left is simply started again.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chatkeep_store::{Result, StoreError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::crashes::{CrashLog, CrashPolicy, MayStart};
use crate::launch::{Launch, Launcher, Running, Walls};

/// How long a plugin lives.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// It is stopped after so much time without a call.
    pub idle: Duration,
    /// From SIGTERM to SIGKILL.
    pub stop: Duration,
    /// What happens when it crashes.
    pub crashes: CrashPolicy,
}

impl Default for Life {
    fn default() -> Self {
        Self { idle: Duration::from_mins(10), stop: Duration::from_secs(5), crashes: CrashPolicy::default() }
    }
}

/// One plugin: a socket, and a process behind it as long as one is needed.
pub(crate) struct Process {
    launch: Launch,
    launcher: Arc<dyn Launcher>,
    life: Life,
    listener: UnixListener,
    socket: PathBuf,
    current: tokio::sync::Mutex<Option<Arc<Run>>>,
    crashes: Arc<Mutex<CrashLog>>,
    closing: watch::Sender<bool>,
}

/// One process, from its start to its end.
pub(crate) struct Run {
    pub(crate) pid: Option<u32>,
    pub(crate) walls: Walls,
    /// Whether the store was opened in it; locked while it is being opened.
    pub(crate) opened: tokio::sync::Mutex<bool>,
    /// Whether it ever opened a store. One that ends before that has crashed, whatever its exit status.
    pub(crate) has_served: AtomicBool,
    calls: Mutex<Calls>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<Option<String>>,
}

struct Calls {
    running: usize,
    last_end: Instant,
    /// No further call may begin: it is being stopped, or it ended.
    over: bool,
}

/// A call in progress. The process is not idle as long as there is one.
pub(crate) struct InUse(pub(crate) Arc<Run>);

impl Process {
    /// Binds the socket. The folder is made if it is missing, and must be for us alone.
    pub(crate) fn bind(
        launch: Launch,
        launcher: Arc<dyn Launcher>,
        life: Life,
        folder: &Path,
    ) -> Result<Self> {
        let socket = folder.join(format!("{}.sock", launch.store));
        let listener = bind(folder, &socket).map_err(|error| StoreError::Invalid {
            reason: format!("no socket for the plugin of store `{}`: {error}", launch.store),
        })?;
        Ok(Self {
            launch,
            launcher,
            life,
            listener,
            socket,
            current: tokio::sync::Mutex::default(),
            crashes: Arc::new(Mutex::new(CrashLog::new(life.crashes))),
            closing: watch::Sender::new(false),
        })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The running process; starts one if there is none, which may take as long as a crash is waited out.
    pub(crate) async fn up(&self) -> Result<InUse> {
        let mut current = self.current.lock().await;
        if let Some(run) = &*current {
            if let Some(call) = run.enter() {
                return Ok(call);
            }
            run.wait_until_ended().await;
        }
        *current = None;
        self.wait_out_crashes().await?;
        let run = self.start().await?;
        let call = run.enter().ok_or_else(|| self.ended_at_once(&run))?;
        *current = Some(run);
        Ok(call)
    }

    async fn wait_out_crashes(&self) -> Result<()> {
        let name = &self.launch.store;
        let may_start = lock(&self.crashes).may_start(Instant::now());
        let mut closing = self.closing.subscribe();
        match may_start {
            MayStart::Off(how) => Err(StoreError::Invalid {
                reason: format!(
                    "store `{name}` is off: its plugin {} crashed {} times in {} minutes, with {how} at last",
                    self.launch.program.display(),
                    self.life.crashes.crashes_max,
                    self.life.crashes.window.as_secs().div_ceil(60),
                ),
            }),
            MayStart::In(wait) => tokio::select! {
                biased;
                () = told(&mut closing) => {
                    Err(StoreError::Offline(format!("store `{name}` is being closed").into()))
                }
                () = sleep(wait) => Ok(()),
            },
        }
    }

    async fn start(&self) -> Result<Arc<Run>> {
        // in a task of its own, so that a caller who goes away leaves no process that nobody knows of
        let launching = tokio::spawn({
            let (launcher, launch) = (Arc::clone(&self.launcher), self.launch.clone());
            let listener = self.listener.try_clone();
            async move { launcher.launch(&launch, listener?.as_fd()).await }
        });
        let launched = launching.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let running = launched.map_err(|error| {
            lock(&self.crashes).crashed(&error.to_string(), Instant::now());
            let cause = format!("the plugin {} does not start: {error}", self.launch.program.display());
            StoreError::Transient(cause.into())
        })?;
        tracing::debug!(store = self.launch.store, pid = running.pid(), "a plugin was started");
        let (say_ended, ended) = watch::channel(None);
        let run = Arc::new(Run {
            pid: running.pid(),
            walls: running.walls(),
            opened: tokio::sync::Mutex::new(false),
            has_served: AtomicBool::new(false),
            calls: Mutex::new(Calls { running: 0, last_end: Instant::now(), over: false }),
            stop: watch::Sender::new(false),
            ended,
        });
        let crashes = Arc::clone(&self.crashes);
        let (name, life, supervised) = (self.launch.store.clone(), self.life, Arc::clone(&run));
        tokio::spawn(async move {
            let words = supervise(&name, &supervised, running, life, &crashes).await;
            say_ended.send_replace(Some(words));
        });
        Ok(run)
    }

    fn ended_at_once(&self, run: &Run) -> StoreError {
        let how = run.ended.borrow().clone().unwrap_or_default();
        StoreError::Transient(format!("the plugin of `{}` ended at once: {how}", self.launch.store).into())
    }

    /// Stops the process, if there is one; the next call starts another.
    pub(crate) async fn stop(&self) {
        if let Some(run) = self.current.lock().await.take() {
            run.stop.send_replace(true);
            run.wait_until_ended().await;
        }
    }

    /// Stops the process for good: calls that still come are refused.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        self.stop().await;
    }

    /// Lets a plugin that crashed too often be started again.
    pub(crate) fn reset(&self) {
        lock(&self.crashes).reset();
    }

    pub(crate) fn is_off(&self) -> bool {
        lock(&self.crashes).is_off()
    }

    /// The process that runs now.
    pub(crate) fn running(&self) -> Option<Arc<Run>> {
        let current = self.current.try_lock().ok()?;
        current.clone().filter(|run| run.ended.borrow().is_none())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(run) = self.current.get_mut() {
            run.stop.send_replace(true);
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Run {
    fn enter(self: &Arc<Self>) -> Option<InUse> {
        let mut calls = lock(&self.calls);
        if calls.over {
            return None;
        }
        calls.running += 1;
        Some(InUse(Arc::clone(self)))
    }

    /// Waits for its end, and says how it was.
    pub(crate) async fn wait_until_ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(words) => words.clone().unwrap_or_default(),
            Err(_) => "nobody looked after it any more".to_owned(),
        }
    }

    /// Counts as over from now on if it was idle for so long; else says when to look again.
    fn retire(&self, idle: Duration) -> Option<Instant> {
        let mut calls = lock(&self.calls);
        let now = Instant::now();
        let due = calls.last_end + idle;
        if calls.running > 0 {
            return Some(now + idle);
        }
        if now < due {
            return Some(due);
        }
        calls.over = true;
        None
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut calls = lock(&self.0.calls);
        calls.running -= 1;
        calls.last_end = Instant::now();
    }
}

/// Looks after one process until it has ended, and says how it did.
async fn supervise(
    name: &str,
    run: &Run,
    mut running: Box<dyn Running>,
    life: Life,
    crashes: &Mutex<CrashLog>,
) -> String {
    let mut stop = run.stop.subscribe();
    let mut look = Instant::now() + life.idle;
    let end = loop {
        tokio::select! {
            end = running.ended() => {
                let crashed = !end.clean || !run.has_served.load(Ordering::Relaxed);
                lock(&run.calls).over = true;
                if crashed {
                    let last = lock(crashes).crashed(&end.words, Instant::now());
                    tracing::warn!(store = name, last, "a plugin crashed: {}", end.words);
                }
                return end.words;
            }
            () = told(&mut stop) => break finish(&mut *running, life.stop).await,
            () = sleep_until(look) => match run.retire(life.idle) {
                Some(later) => look = later,
                None => break finish(&mut *running, life.stop).await,
            },
        }
    };
    lock(&run.calls).over = true;
    tracing::debug!(store = name, "a plugin was stopped: {end}");
    end
}

async fn told(stop: &mut watch::Receiver<bool>) {
    // whoever could tell it is in `run`, which is there as long as this
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn finish(running: &mut dyn Running, patience: Duration) -> String {
    running.terminate().await;
    if let Ok(end) = timeout(patience, running.ended()).await {
        return end.words;
    }
    running.kill().await;
    running.ended().await.words
}

fn bind(folder: &Path, socket: &Path) -> io::Result<UnixListener> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let ours = std::fs::metadata(folder)?;
    if ours.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("{} belongs to somebody else", folder.display())));
    }
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
