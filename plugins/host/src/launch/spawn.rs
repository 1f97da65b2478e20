//! Plugins as children of this process, where there is no systemd to ask: tests, containers, `chatkeep store check`.
//!
//! A child inherits the seccomp filters of its parent, so this is not for a daemon that was denied the network.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::{End, Launch, Launcher, Running, Walls};

/// Sets the signal that a child gets when its parent dies, which in this process would take unsafe code.
const SETPRIV: &str = "/usr/bin/setpriv";
/// Longest line of standard error that is passed on whole, in bytes.
const LINE_LEN_MAX: usize = 2048;

/// Takes what plugins write to standard error: the name of the store, and one line without control characters.
pub type Lines = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// Starts plugins as children. They die with this process.
#[derive(Clone)]
pub struct Spawn {
    lines: Lines,
}

impl Spawn {
    /// With standard error in the log.
    pub fn new() -> Self {
        Self::with_lines(Arc::new(|store, line| tracing::info!(store, "plugin: {line}")))
    }

    /// With standard error given to `lines`.
    pub fn with_lines(lines: Lines) -> Self {
        Self { lines }
    }
}

impl Default for Spawn {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Launcher for Spawn {
    async fn launch(&self, what: &Launch, listener: BorrowedFd<'_>) -> io::Result<Box<dyn Running>> {
        let listener = listener.try_clone_to_owned()?;
        let (reading, writing) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let command = command(what, listener, writing);
        let (started, start) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        // One thread for each child: the kernel takes the *thread* that started a child for the parent whose death counts.
        std::thread::Builder::new()
            .name("store-plugin".to_owned())
            .stack_size(256 << 10)
            .spawn(move || run(command, started, ended))?;
        let child = start.await.map_err(io::Error::other)??;
        tokio::spawn(pass_on(
            pipe::Receiver::from_owned_fd(reading)?,
            what.store.clone(),
            self.lines.clone(),
        ));
        Ok(Box::new(SpawnedPlugin { child, end: Some(end), how: None }))
    }
}

fn command(what: &Launch, listener: OwnedFd, stderr: OwnedFd) -> Command {
    let mut command = if Path::new(SETPRIV).exists() {
        let mut command = Command::new(SETPRIV);
        command.args(["--pdeathsig", "TERM", "--"]).arg(&what.program);
        command
    } else {
        // those that are written with chatkeep-store-serve ask for the signal themselves
        Command::new(&what.program)
    };
    command
        .env_clear()
        .envs(what.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::from(stderr));
    command
}

/// Starts a child, waits until it ends, and ends what it left behind.
fn run(
    mut command: Command,
    started: oneshot::Sender<io::Result<Handle>>,
    ended: oneshot::Sender<io::Result<ExitStatus>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return drop(started.send(Err(error))),
    };
    // the descriptors of the child, of which this process must not keep a copy
    drop(command);
    let pid = Pid::from_child(&child);
    match pidfd_open(pid, PidfdFlags::empty()) {
        // where nobody takes it any more, dropping it kills the child
        Ok(process) => drop(started.send(Ok(Handle { pid, process }))),
        Err(error) => {
            drop(child.kill());
            drop(started.send(Err(error.into())));
        }
    }
    let _ = ended.send(wait(&mut child, pid));
}

fn wait(child: &mut Child, pid: Pid) -> io::Result<ExitStatus> {
    // As long as it was not reaped nobody else can get its number, which is that of its group.
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    {}
    let _ = kill_process_group(pid, Signal::KILL);
    child.wait()
}

/// Passes standard error on line by line, in bounded memory whatever comes.
async fn pass_on(mut from: pipe::Receiver, store: String, lines: Lines) {
    let mut line: Vec<u8> = Vec::new();
    let mut block = [0; 4096];
    let say = |line: &mut Vec<u8>| {
        if !line.is_empty() {
            let text: String = String::from_utf8_lossy(line)
                .chars()
                .map(|char| if char.is_control() { ' ' } else { char })
                .collect();
            lines(&store, &text);
            line.clear();
        }
    };
    while let Ok(len @ 1..) = from.read(&mut block).await {
        for byte in &block[..len] {
            if *byte == b'\n' || line.len() == LINE_LEN_MAX {
                say(&mut line);
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
    }
    say(&mut line);
}

/// A child that is killed when this is dropped.
struct Handle {
    pid: Pid,
    /// Stands for this very process, also when its number has gone to another one.
    process: OwnedFd,
}

struct SpawnedPlugin {
    child: Handle,
    end: Option<oneshot::Receiver<io::Result<ExitStatus>>>,
    how: Option<End>,
}

impl Handle {
    fn signal(&self, signal: Signal) {
        // it may have ended
        let _ = rustix::process::pidfd_send_signal(&self.process, signal);
    }
}

#[async_trait]
impl Running for SpawnedPlugin {
    fn pid(&self) -> Option<u32> {
        Some(self.child.pid.as_raw_nonzero().get().cast_unsigned())
    }

    fn walls(&self) -> Walls {
        Walls::None
    }

    async fn ended(&mut self) -> End {
        if let Some(end) = &mut self.end {
            let end = end.await;
            self.end = None;
            self.how = Some(how(end.ok().and_then(Result::ok)));
        }
        self.how.clone().unwrap_or_else(|| how(None))
    }

    async fn terminate(&mut self) {
        self.child.signal(Signal::TERM);
    }

    async fn kill(&mut self) {
        self.child.signal(Signal::KILL);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

fn how(status: Option<ExitStatus>) -> End {
    let words = match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("exit status {code}"),
        Some((None, Some(signal))) => format!("signal {signal}"),
        _ => "an end that nobody saw".to_owned(),
    };
    End { clean: status.is_some_and(|status| status.success()), words }
}
