//! The objects as D-Bus sees them: thin, `&self` only, no state of their own.
//!
//! A handler that held `&mut self` would block every property read of its object for as long as it waits, and with it
//! `GetManagedObjects` of every client. Argument names are part of the contract (`ipc/xml`).

mod database;
mod encryption;
mod job;
mod manager;
mod store;
mod vault;

pub(crate) use database::DatabaseInterface;
pub(crate) use encryption::EncryptionInterface;
pub(crate) use job::JobInterface;
pub(crate) use manager::ManagerInterface;
pub(crate) use store::StoreInterface;
pub(crate) use vault::VaultInterface;

use zbus::zvariant::{ObjectPath, OwnedObjectPath};

use crate::Error;
use crate::names::{self, id_of_path};

/// The path for an identifier, `/` for an empty one.
pub(crate) fn optional(id: &str, path: fn(&str) -> OwnedObjectPath) -> OwnedObjectPath {
    if id.is_empty() { names::no_object() } else { path(id) }
}

/// The database that a path argument names.
fn database_id(path: &ObjectPath<'_>) -> Result<String, Error> {
    id_of_path("database", path).ok_or_else(|| Error::NotFound("there is no such database".into()))
}

/// Names and other short texts from callers.
fn short_text(what: &str, text: String) -> Result<String, Error> {
    if text.is_empty() || text.len() > names::ID_LEN_MAX || text.chars().any(char::is_control) {
        return Err(Error::InvalidArgument(format!("{what} must be 1 to 128 bytes of printable text")));
    }
    Ok(text)
}

/// A file name is one part of a path: no directories, and not `.` or `..`.
fn file_name(text: String) -> Result<String, Error> {
    let text = short_text("file_name", text)?;
    if text.contains('/') || text == "." || text == ".." {
        return Err(Error::InvalidArgument("file_name must be a plain file name".into()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_cannot_leave_the_directory() {
        for bad in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0b", "a\nb"] {
            assert!(file_name(bad.into()).is_err(), "{bad:?}");
        }
        assert_eq!(file_name("messages.db".into()), Ok("messages.db".into()));
    }
}
