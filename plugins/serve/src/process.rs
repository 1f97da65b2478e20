//! The program around a plugin: its socket, its signals, what nobody may look into.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::process::{DumpableBehavior, Signal};
use tokio::signal::unix::{SignalKind, signal};

use crate::opener::Opener;
use crate::server::{Plugin, serve};

/// What is left of the 5 s after SIGTERM for calls that still run; the rest is for ending.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// Serves on the listening unix socket that is file descriptor 0, until SIGTERM.
///
/// Nothing of it says a secret: it writes nothing to standard error, and no other process of the user can read its memory.
pub fn run(name: &'static str, version: &'static str, opener: impl Opener) -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // a plugin whose host is gone serves nobody; under systemd the unit says the same
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let listener = inherited_listener()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(async {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async move {
            terminate.recv().await;
        };
        serve(listener, Plugin::new(name, version, opener), stop, LAST_CALLS).await
    });
    // blocking calls of a store that hangs in the kernel are not waited for
    runtime.shutdown_timeout(Duration::from_millis(300));
    served
}

fn inherited_listener() -> io::Result<UnixListener> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let no_listener = || io::Error::other("standard input is not a listening unix socket");
    if !rustix::net::sockopt::socket_acceptconn(&socket).is_ok_and(|listening| listening) {
        return Err(no_listener());
    }
    let listener = UnixListener::from(socket);
    listener.local_addr().map_err(|_| no_listener())?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
