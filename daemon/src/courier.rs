//! The way to the vaults: the courier's socket, and a courier of our own where systemd starts none.
//!
//! The daemon has no network. Under systemd, `chatkeep-courier.socket` starts the courier; elsewhere the first call
//! starts one from the folder of this program, with the listening socket as its standard input.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use async_trait::async_trait;
use chatkeep_vault_client::{CourierTransport, Transport, TransportError, VaultPin};
use tracing::info;

/// Sends calls through a courier that is there, or that it starts.
pub struct Courier {
    socket: PathBuf,
    transport: CourierTransport,
    own: Mutex<Option<Own>>,
}

/// A courier of ours. The listening socket stays open here, so a courier that ended when idle is simply started again.
struct Own {
    listener: UnixListener,
    child: Child,
}

impl Courier {
    /// Calls go through `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { transport: CourierTransport::new(socket.clone()), socket, own: Mutex::new(None) }
    }

    fn ensure(&self) -> std::io::Result<()> {
        let mut own = self.own.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(own) = &mut *own {
            if own.child.try_wait()?.is_some() {
                own.child = spawn(&own.listener)?;
            }
            return Ok(());
        }
        if UnixStream::connect(&self.socket).is_ok() {
            return Ok(());
        }
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket)?;
        let child = spawn(&listener)?;
        info!("a courier to the vaults was started");
        *own = Some(Own { listener, child });
        Ok(())
    }
}

fn spawn(listener: &UnixListener) -> std::io::Result<Child> {
    let program = std::env::current_exe()?.with_file_name("chatkeep-courier");
    let program = if program.exists() { program } else { PathBuf::from("chatkeep-courier") };
    Command::new(program).stdin(Stdio::from(OwnedFd::from(listener.try_clone()?))).spawn()
}

impl Drop for Courier {
    fn drop(&mut self) {
        let own = self.own.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(mut own) = own.take() {
            let _ = own.child.kill();
            let _ = own.child.wait();
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

#[async_trait]
impl Transport for Courier {
    async fn call(&self, vault: &VaultPin, request: Vec<u8>) -> Result<Vec<u8>, TransportError> {
        self.ensure().map_err(|error| TransportError::Unreachable {
            what: format!(
                "no courier listens at {} and none could be started: {error}",
                self.socket.display()
            ),
        })?;
        self.transport.call(vault, request).await
    }
}
