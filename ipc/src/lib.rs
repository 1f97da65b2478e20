//! The D-Bus face of Chatkeep: interfaces, proxies, error names, secrets by file descriptor.
//!
//! The daemon makes a [`Server`], tells it the state of everything, and takes [`Call`]s from a channel. Nothing is
//! decided here. The same objects are served on the session bus and, for each peer, on a control socket; the contract
//! is `ipc/xml/*.xml`, explained in docs/dbus.md.

pub mod names;

mod error;
pub use error::{Error, ServeError};
mod secret;
pub use secret::{KeyOut, SECRET_LEN_MAX, SECRET_TIMEOUT, Secret};
mod caller;
pub use caller::{App, Caller};
mod options;

mod state;
pub use names::JobId;
pub use state::{
    CopyState, DatabaseState, Details, EncryptionState, JobOutcome, JobState, ManagerState, RecoveryPoint,
    RemoteArchive, StoreState, VaultState,
};
mod call;
pub use call::{
    Call, Calls, NewJob, PointFilter, RegisterOptions, Reply, RestoreOptions, RestoreTarget, VerifyDepth,
};

mod interface;
mod mirror;
mod request;
mod server;
mod shared;
pub use server::{BusAddress, BusServer, ControlSocket, Peer, Server, Settings};

pub mod proxy;
