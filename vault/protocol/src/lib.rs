//! Messages, password-protected secret sharing and limits of the Backup Key Vault.
//!
//! Pure: no I/O, no clock, no randomness of its own. `docs/vault-protocol.md` is the twin of this
//! crate, byte by byte. In reading order: what is pinned ([`pin`], [`tls`]), what is said
//! ([`message`], [`answer`], between vaults [`head`], of a part of one [`cell`], to be let in [`invite`]), the mathematics
//! ([`suite`], [`shamir`], [`password`], [`secret`]), what is stored beside the backup ([`slot`]) and the two operations on it
//! ([`ppss`]).

pub mod answer;
pub mod cbor;
pub mod cell;
pub mod head;
pub mod invite;
pub mod limits;
pub mod message;
pub mod password;
pub mod pin;
pub mod ppss;
pub mod secret;
pub mod shamir;
pub mod slot;
pub mod suite;
pub mod tls;

mod error;

pub use error::{AnswerError, SlotError};
pub use invite::Invite;
pub use password::{KdfFloor, KdfParams};
pub use pin::{Identity, VaultPin};
pub use secret::SlotSecret;
pub use suite::Suite;
