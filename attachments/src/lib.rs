//! One folder of attachments of another program, on a live system: photos, voice notes, files.
//!
//! [`Folder::walk`] lists it, [`compare`] says what changed since the files were last read, [`Folder::read`] reads one
//! of them in chunks or says that it changed meanwhile, [`Restorer`] writes files back, [`Watcher`] says when to look again. No symbolic link is followed and
//! no other file system entered, so nothing outside of the folder is ever read or written. The program that owns
//! the folder is not disturbed: no lock, nothing written beside its files, not even the time of access.
//!
//! Nothing here knows of archives: chunks are identified under a key that the caller passes in.

mod path;

mod found;

mod compare;

mod os;

mod folder;
mod walk;

mod chunk;
mod read;

mod leftovers;
mod restore;

mod watch;

pub use chunk::{CHUNK_LEN_MAX, Chunk, ChunkId, UNCUT_LEN_MAX};
pub use compare::{Changes, compare};
pub use folder::Folder;
pub use found::{Found, is_settled};
pub use path::{PathError, RelPath};
pub use read::{Read, ReadError, Reading};
pub use restore::{Begun, Content, FileWriter, RestoreError, Restored, Restorer, Wanted};
pub use walk::{Problem, Skipped, Walked, Why};
pub use watch::{Cause, Noticing, WatchPolicy, Watcher};
