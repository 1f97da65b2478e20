//! The `file:` store: objects are files below one folder.
//!
//! An object becomes visible in one step, whole, and only after its bytes are on the disk; what was acknowledged
//! survives a power cut. Symbolic links below the folder are never followed, and files that are not ours are left
//! alone. In reading order: [`store`] (the [`Store`](chatkeep_store::Store) itself), `root` (the folder, its marker,
//! and whether the drive is there), `files` (the calls), `leftovers` (what a crash leaves), `url`, `errors`.

mod errors;
mod files;
mod leftovers;
mod root;
pub mod store;
mod url;

pub use store::LocalStore;
