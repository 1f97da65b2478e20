//! A server process: started on a free port of loopback, waited for, killed when dropped.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How long a server may take until it listens: Python and Node on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running server with all of its children; killed when dropped.
pub struct Server {
    child: Child,
    output: File,
    port: u16,
}

/// A port that nobody uses now, and that nobody is given by chance before a server has it: it lies below those that the
/// kernel hands out, and no other call in this process answers with it.
pub fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        // processes that test at the same time begin at different places
        let number = std::process::id().wrapping_mul(101) + GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + number % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

impl Server {
    /// Starts `command`, which listens on `port`, and waits until it does.
    pub fn start(command: &mut Command, port: u16) -> Self {
        let output = tempfile::tempfile().unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap()).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let mut server = Self { child, output, port };
        let begin = Instant::now();
        while TcpStream::connect(server.address()).is_err() {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended ({ended:?}): {}", server.said());
            assert!(begin.elapsed() < PATIENCE, "{command:?} does not listen: {}", server.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// All that it wrote so far.
    pub fn said(&self) -> String {
        let mut bytes = vec![0; self.output.metadata().unwrap().len() as usize];
        self.output.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends all of its processes a signal.
    pub fn signal(&self, signal: Signal) {
        // they may have ended
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}
