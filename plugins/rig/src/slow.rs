//! A proxy that makes a good server slow, dead or hostile: it stands before a real one and speaks HTTP.

use std::io::{BufReader, Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use crate::http::{Request, Response};

use crate::http::Listener;

/// How often a stalled connection looks whether it goes on, and pace is made.
const TICK: Duration = Duration::from_millis(10);

/// What is done to a request.
pub enum Deed {
    /// It goes to the server, and the answer back.
    Pass,
    /// It does not go to the server; this is the answer.
    Answer(Response),
    /// It goes to the server, but this is the answer: what was done is not what is said.
    PassAndAnswer(Response),
    /// It goes to the server, and the connection ends before the answer.
    PassAndHangUp,
    /// The connection ends, and the server never hears of it.
    HangUp,
    /// It goes to the server, and of the body of the answer only so many bytes come back.
    Cut(usize),
}

type Rule = Box<dyn Fn(&Request) -> Deed + Send + Sync>;
type Twist = Box<dyn Fn(&Request, Response) -> Response + Send + Sync>;

/// The proxy; ends when dropped.
pub struct Proxy {
    listener: Listener,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    bytes_per_s: u64,
    stalled: AtomicBool,
    /// Stall once so many bytes of bodies were read.
    stall_after: AtomicU64,
    received: AtomicU64,
    rule: Mutex<Option<Rule>>,
    twist: Mutex<Option<Twist>>,
    seen: Mutex<Vec<(String, String)>>,
}

impl Proxy {
    /// Starts one before the server at `to`. It reads `bytes_per_s` bytes per second from each connection; 0 is: as many as come.
    pub fn start(to: SocketAddr, bytes_per_s: u64) -> Self {
        let shared = Arc::new(Shared {
            to,
            bytes_per_s,
            stalled: AtomicBool::new(false),
            stall_after: AtomicU64::new(u64::MAX),
            received: AtomicU64::new(0),
            rule: Mutex::default(),
            twist: Mutex::default(),
            seen: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        Self { listener: Listener::start(move |stream| serve(&serving, &stream)), shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// From now on, nothing moves (or all moves again).
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::Relaxed);
    }

    /// Nothing moves once so many bytes more were read.
    pub fn stall_after(&self, bytes: u64) {
        let received = self.shared.received.load(Ordering::Relaxed);
        self.shared.stall_after.store(received + bytes, Ordering::Relaxed);
    }

    /// Decides over each request from now on.
    pub fn rule(&self, rule: impl Fn(&Request) -> Deed + Send + Sync + 'static) {
        *self.shared.rule.lock().unwrap() = Some(Box::new(rule));
    }

    /// Changes each answer of the server from now on.
    pub fn twist(&self, twist: impl Fn(&Request, Response) -> Response + Send + Sync + 'static) {
        *self.shared.twist.lock().unwrap() = Some(Box::new(twist));
    }

    /// Method and target of each request so far.
    pub fn seen(&self) -> Vec<(String, String)> {
        self.shared.seen.lock().unwrap().clone()
    }
}

fn serve(shared: &Shared, stream: &TcpStream) {
    let mut reader = BufReader::with_capacity(16 << 10, Paced { shared, stream });
    while let Some(request) = Request::read(&mut reader) {
        shared.seen.lock().unwrap().push((request.method.clone(), request.target.clone()));
        let deed = shared.rule.lock().unwrap().as_ref().map_or(Deed::Pass, |rule| rule(&request));
        let pass = || request.send(shared.to);
        let (answer, cut) = match deed {
            Deed::Answer(answer) => (Some(answer), None),
            Deed::PassAndAnswer(answer) => (pass().map(|_| answer), None),
            Deed::Pass => (pass().map(|answer| twisted(shared, &request, answer)), None),
            Deed::Cut(len) => (pass(), Some(len)),
            Deed::PassAndHangUp => (pass().and(None), None),
            Deed::HangUp => (None, None),
        };
        let Some(answer) = answer else { break };
        let mut bytes = Vec::new();
        answer.write(&mut bytes, request.method == "HEAD").unwrap();
        if let Some(len) = cut {
            bytes.truncate(bytes.len() - answer.body.len() + len);
        }
        shared.wait();
        let mut stream = stream;
        if stream.write_all(&bytes).is_err() || cut.is_some() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn twisted(shared: &Shared, request: &Request, answer: Response) -> Response {
    match shared.twist.lock().unwrap().as_ref() {
        Some(twist) => twist(request, answer),
        None => answer,
    }
}

impl Shared {
    fn wait(&self) {
        while self.stalled.load(Ordering::Relaxed)
            || self.received.load(Ordering::Relaxed) >= self.stall_after.load(Ordering::Relaxed)
        {
            std::thread::sleep(TICK);
        }
    }
}

/// Reads as fast as the line is.
struct Paced<'a> {
    shared: &'a Shared,
    stream: &'a TcpStream,
}

impl Read for Paced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.shared.wait();
        let len = self.stream.read(buffer)?;
        self.shared.received.fetch_add(len as u64, Ordering::Relaxed);
        if self.shared.bytes_per_s > 0 {
            std::thread::sleep(Duration::from_secs_f64(len as f64 / self.shared.bytes_per_s as f64));
        }
        Ok(len)
    }
}
