//! The file: store: a folder, atomic and fsynced.
