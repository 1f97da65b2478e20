//! Keys, and the sealing and opening of objects (docs/format.md, "Key schedule" to "Body").
//!
//! Pure: randomness is passed in, nothing is read or written. A wrong key is only ever concluded from a keyring's
//! key check value; after a keyring opened, whatever does not open is damaged, cut off, or another object.

mod backup_key;
mod digits;
mod error;
mod keyring;
mod object;
mod roots;
mod schedule;

pub use backup_key::{BackupKey, first_difference};
pub use digits::{DigitsError, GROUPS, locate_typo};
pub use error::{DamagedPart, OpenError};
pub use keyring::{open_keyring, read_keyring, write_keyring};
pub use object::{authenticate, open, seal};
pub use roots::{DataRoots, drill_mac, is_pack_name, pack_name};
