//! Registers with, recovers from and watches Backup Key Vaults over one small transport trait.
//!
//! In reading order: how bytes reach a vault ([`transport`], [`courier`]), what can go wrong
//! ([`VaultError`]), then the operations: [`register`], [`register_invited`], [`recover`], [`begin_change`] and
//! [`commit_change`], [`rewrap`], [`look`], [`status`], [`freeze`], [`thaw`], [`destroy`], [`info`], [`witness_head`], [`known_head`]. The protocol itself,
//! and all mathematics, is in `chatkeep-vault-protocol`.

pub mod courier;
pub mod transport;

mod change;
mod error;
mod exchange;
mod head;
mod owner;
mod recover;
mod register;

pub use change::{PendingChange, begin_change, commit_change, rewrap};
pub use chatkeep_vault_protocol::answer::{Counters, DestroyReason, VaultInfo};
pub use chatkeep_vault_protocol::invite::NoInvite;
pub use chatkeep_vault_protocol::{Identity, Invite, KdfFloor, KdfParams, SlotError, SlotSecret, VaultPin};
pub use courier::CourierTransport;
pub use error::VaultError;
pub use head::{KnownEntry, known_head, witness_head};
pub use owner::{StatusReport, VaultReport, destroy, freeze, info, look, status, thaw};
pub use recover::{Recovered, recover};
pub use register::{Invites, Registered, register, register_invited};
pub use transport::{DirectTransport, Transport, TransportError};
