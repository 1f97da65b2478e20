//! One `ssh` with an SFTP server behind it: requests go out as they come, answers find whoever waits for them.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use chatkeep_store::{Result, StoreError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::errors::{self, Ended};
use crate::target::Target;
use crate::wire::{self, Extension, PACKET_LEN_MAX, Reply, Request};

/// Requests that wait to be sent. Together with what `ssh` buffers this is what a line has to carry before a later
/// request gets through.
const QUEUE_LEN: usize = 16;

/// How much of what `ssh` says is kept, in bytes, from its begin.
const WORDS_LEN_MAX: u64 = 8 << 10;

/// How long `ssh` may take to end after it closed its output.
const ENDING: Duration = Duration::from_secs(2);

/// How patient the store is.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// A session ends when requests wait and none is answered for this long.
    pub stall: Duration,
    /// A session has to stand after this long: a key in hardware may wait for a touch.
    pub connect: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { stall: Duration::from_mins(1), connect: Duration::from_mins(2) }
    }
}

/// A session. `ssh` ends when this is dropped.
pub(crate) struct Session {
    packets: mpsc::Sender<Bytes>,
    waiting: Arc<Waiting>,
    stop: Arc<Notify>,
    extensions: Vec<Extension>,
    stall: Duration,
}

/// An answer that is on its way. Dropping it forgets about the answer, not about the request.
pub(crate) struct Ticket(oneshot::Receiver<Reply>);

impl Session {
    /// Starts `ssh` and waits until the server says which version it speaks.
    pub(crate) async fn connect(target: &Target, tuning: Tuning) -> Result<Self> {
        let mut child = Command::new(target.program())
            .args(target.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| StoreError::Invalid {
                reason: format!("cannot run `{}`: {error}", target.program()),
            })?;
        let mut stdin = child.stdin.take().expect("it was asked for");
        let mut stdout = child.stdout.take().expect("it was asked for");
        let words = tokio::spawn(words_of(child.stderr.take().expect("it was asked for")));

        let greeting = async {
            stdin.write_all(&wire::init()).await?;
            read_packet(&mut stdout).await
        };
        let greeting = match timeout(tuning.connect, greeting).await {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(error)) if error.kind() == ErrorKind::InvalidData => {
                return Err(errors::of_greeting("its first packet has no end"));
            }
            Ok(Err(_)) => return Err(errors::of_connecting(&ended(child, words).await)),
            Err(_) => return Err(StoreError::Offline("`ssh` has not connected in time".into())),
        };
        let extensions = wire::parse_version(greeting).map_err(errors::of_greeting)?;

        let (packets, mut queue) = mpsc::channel::<Bytes>(QUEUE_LEN);
        let (waiting, stop) = (Arc::new(Waiting::default()), Arc::new(Notify::new()));
        tokio::spawn(async move {
            while let Some(packet) = queue.recv().await {
                // that nobody reads any more shows where answers are read
                if stdin.write_all(&packet).await.is_err() {
                    break;
                }
            }
        });
        tokio::spawn({
            let (waiting, stop) = (Arc::clone(&waiting), Arc::clone(&stop));
            async move {
                let broken = tokio::select! {
                    broken = deliver(stdout, &waiting) => broken,
                    () = stop.notified() => Some("it was stopped"),
                };
                waiting.lock().over = true;
                if broken.is_some() {
                    let _ = child.start_kill();
                }
                let mut ended = ended(child, words).await;
                ended.broken = broken;
                waiting.end(ended);
            }
        });
        Ok(Self { packets, waiting, stop, extensions, stall: tuning.stall })
    }

    pub(crate) fn can(&self, extension: Extension) -> bool {
        self.extensions.contains(&extension)
    }

    /// Whether it is of no use any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.packets.is_closed() || self.waiting.lock().over
    }

    /// Sends a request; the answer can be waited for later.
    pub(crate) async fn send(&self, request: &Request) -> Result<Ticket> {
        let (number, receiver) = self.waiting.enter()?;
        let packet = request.packet(number);
        self.watch(async { self.packets.send(packet).await.map_err(|_| self.waiting.why()) }).await?;
        Ok(Ticket(receiver))
    }

    pub(crate) async fn wait(&self, ticket: Ticket) -> Result<Reply> {
        self.watch(async { ticket.0.await.map_err(|_| self.waiting.why()) }).await
    }

    pub(crate) async fn ask(&self, request: &Request) -> Result<Reply> {
        let ticket = self.send(request).await?;
        self.wait(ticket).await
    }

    /// Sends a request whose answer does not matter, now or not at all.
    pub(crate) fn mention(&self, request: &Request) {
        let Ok((number, _)) = self.waiting.enter() else { return };
        let full = self.packets.try_send(request.packet(number)).err();
        if let (Some(TrySendError::Full(packet)), Ok(runtime)) = (full, Handle::try_current()) {
            let packets = self.packets.clone();
            runtime.spawn(async move { packets.send(packet).await });
        }
    }

    /// Does `work`, as long as anything is answered at all; else the session ends.
    async fn watch<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let deadline = self.waiting.lock().heard + self.stall;
            if deadline <= Instant::now() {
                self.stop.notify_one();
                return Err(StoreError::Transient("the server has not answered for too long".into()));
            }
            tokio::select! {
                done = &mut work => return done,
                () = sleep_until(deadline) => {}
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// Who waits for which answer.
#[derive(Default)]
struct Waiting(Mutex<State>);

struct State {
    next: u32,
    answers: HashMap<u32, oneshot::Sender<Reply>>,
    /// When the last answer came, or the first question after a silence went out.
    heard: Instant,
    /// No more answers come; how `ssh` ended may not be known yet.
    over: bool,
    ended: Option<Ended>,
}

impl Default for State {
    fn default() -> Self {
        Self { next: 0, answers: HashMap::new(), heard: Instant::now(), over: false, ended: None }
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the state")
    }

    fn enter(&self) -> Result<(u32, oneshot::Receiver<Reply>)> {
        let mut state = self.lock();
        if let Some(ended) = &state.ended {
            return Err(errors::of_lost(ended));
        }
        if state.answers.is_empty() {
            state.heard = Instant::now();
        }
        let number = state.next;
        state.next = state.next.wrapping_add(1);
        let (sender, receiver) = oneshot::channel();
        state.answers.insert(number, sender);
        Ok((number, receiver))
    }

    fn answer(&self, number: u32, reply: Reply) -> Result<(), &'static str> {
        let mut state = self.lock();
        state.heard = Instant::now();
        let sender = state.answers.remove(&number).ok_or("the server answers what nobody asked")?;
        // whoever asked may have gone
        let _ = sender.send(reply);
        Ok(())
    }

    fn end(&self, ended: Ended) {
        let mut state = self.lock();
        state.ended = Some(ended);
        state.answers.clear();
    }

    fn why(&self) -> StoreError {
        match &self.lock().ended {
            Some(ended) => errors::of_lost(ended),
            None => StoreError::Transient("the connection ended".into()),
        }
    }
}

/// Hands answers out until there are no more; says what was wrong with them, if anything.
async fn deliver(mut stdout: ChildStdout, waiting: &Waiting) -> Option<&'static str> {
    loop {
        let packet = match read_packet(&mut stdout).await {
            Ok(packet) => packet,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Some("a packet is too long");
            }
            Err(_) => return None,
        };
        let answered = wire::parse_reply(packet).and_then(|(number, reply)| waiting.answer(number, reply));
        if let Err(broken) = answered {
            return Some(broken);
        }
    }
}

async fn read_packet(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Bytes> {
    let len = from.read_u32().await? as usize;
    if len > PACKET_LEN_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut packet = vec![0; len];
    from.read_exact(&mut packet).await?;
    Ok(packet.into())
}

/// What `ssh` says. It is read to its end, so that `ssh` never waits for a reader.
async fn words_of(mut stderr: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut words = Vec::new();
    let _ = (&mut stderr).take(WORDS_LEN_MAX).read_to_end(&mut words).await;
    let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    words
}

/// Waits for `ssh` to end, not for long, and gathers what it said.
async fn ended(mut child: Child, words: tokio::task::JoinHandle<Vec<u8>>) -> Ended {
    let status = timeout(ENDING, child.wait()).await;
    if status.is_err() {
        let _ = child.kill().await;
    }
    let code = status.ok().and_then(std::result::Result::ok).and_then(|status| status.code());
    // a helper of it (`ProxyCommand`) may hold the pipe open
    let words = timeout(ENDING, words).await;
    let words = words.ok().and_then(std::result::Result::ok).unwrap_or_default();
    Ended { code, words: errors::tidy(&words), broken: None }
}
