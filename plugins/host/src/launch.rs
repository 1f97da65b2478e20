//! How a plugin process comes to be: as a child, or as a unit of the systemd user manager.

pub mod spawn;
pub mod units;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

pub use spawn::Spawn;
pub use units::Units;

/// What is started, and how far it may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    /// Name of the store in the configuration.
    pub store: String,
    /// The program, an absolute path. It gets no arguments: those are for everybody to see.
    pub program: PathBuf,
    /// All of its environment.
    pub environment: Vec<(String, String)>,
    /// Whether it may use the network.
    pub network: bool,
    /// What it sees of the home directory and of `/run/user`, and may write to. What does not exist is left out.
    pub paths: Vec<PathBuf>,
}

/// Starts plugin processes.
#[async_trait]
pub trait Launcher: Send + Sync {
    /// Starts one that finds `listener` as file descriptor 0.
    async fn launch(&self, what: &Launch, listener: BorrowedFd<'_>) -> std::io::Result<Box<dyn Running>>;
}

/// How this process starts plugins: as units if it is itself one of the user manager that `session` leads to, else as
/// children.
pub fn usual(session: Option<zbus::Connection>) -> Arc<dyn Launcher> {
    match (session, Units::own_unit()) {
        (Some(session), Some(own)) => Arc::new(Units::new(session, Some(own))),
        _ => Arc::new(Spawn::new()),
    }
}

/// A plugin process. Dropping it ends it.
#[async_trait]
pub trait Running: Send {
    /// Its process id, where that is known.
    fn pid(&self) -> Option<u32>;

    /// Behind which walls it runs.
    fn walls(&self) -> Walls;

    /// Waits until it has ended. Cancelling is safe.
    async fn ended(&mut self) -> End;

    /// Asks it to end (SIGTERM).
    async fn terminate(&mut self);

    /// Ends it and whatever it started (SIGKILL).
    async fn kill(&mut self);
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// With exit status 0.
    pub clean: bool,
    /// In words: `exit status 1`, `signal 9`.
    pub words: String,
}

/// Behind which walls a plugin runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walls {
    /// None but those of the user: there is no systemd to ask for them.
    None,
    /// All but those that need user namespaces, which this machine does not permit: it sees all of the home directory.
    WithoutNamespaces,
    /// All: address families, system calls, memory, and of the home directory only what its manifest names.
    All,
}

impl fmt::Display for Walls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::WithoutNamespaces => "without-namespaces",
            Self::All => "all",
        })
    }
}
