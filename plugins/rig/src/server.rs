//! A server process: started on a free port of loopback, waited for, killed when dropped.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
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

/// A port that nobody uses now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
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
