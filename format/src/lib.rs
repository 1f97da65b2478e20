//! Every object in a Chatkeep archive, byte by byte; the twin of docs/format.md.
//!
//! Pure: bytes and values only. Nothing here knows a key; `chatkeep-crypto` seals and opens what this crate encodes.
//! Decoders are total: whatever a store sends gives a value or a [`FormatError`], never a panic, and nothing is
//! allocated before the limit that bounds it was checked. Every value has exactly one encoding.

mod archive_name;
mod entry;
mod error;
mod folder;
mod header;
mod keyring;
pub mod limits;
mod pack;
mod padding;
mod page_set_builder;
mod pages;
mod patch;
mod wire;

pub use archive_name::{ArchiveId, InvalidArchiveId, ObjectKind, ObjectName};
pub use entry::{DatabaseKind, DatabaseRecord, DatabaseState, Entry, entry_digest};
pub use error::FormatError;
pub use folder::{ChunkRef, FileOp, FileRecord, FileSet, FolderRecord};
pub use header::{CHECKSUM_LEN, HEADER_LEN, Header, MAGIC, checksum};
pub use keyring::{Keyring, Keyslot, WRAPPED_LEN, WrappedEpoch};
pub use limits::{CHUNK_LEN, FORMAT_VERSION, TAG_LEN};
pub use pack::PackRef;
pub use padding::{padded_len, padme, sealed_len};
pub use page_set_builder::PageSetBuilder;
pub use pages::{PageOp, PageSet};
pub use patch::{PatchMaker, apply_patch};
