//! Names and object paths on the bus. The major version is part of every one of them.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use zbus::zvariant::{ObjectPath, OwnedObjectPath};

use crate::Error;

/// The well-known bus name of the service.
pub const BUS_NAME: &str = "io.github.chatkeep.Chatkeep1";
/// The root object: `ObjectManager` and `Manager`.
pub const ROOT: &str = "/io/github/chatkeep/Chatkeep1";
/// Prefix of every error name, without the dot at its end.
pub const ERROR_PREFIX: &str = "io.github.chatkeep.Chatkeep1.Error";

/// Longest identifier that becomes part of an object path.
pub const ID_LEN_MAX: usize = 128;

/// Path of the control socket below the user's runtime directory.
pub const CONTROL_SOCKET: &str = "chatkeep/control.sock";

/// The path of the object `id` of one `kind` (`database`, `store`, `vault`, `job`).
///
/// Identifiers are free text in the configuration; here every byte outside `[A-Za-z0-9]` becomes `_` and two hex
/// digits, so two identifiers never share a path.
pub(crate) fn object_path(kind: &str, id: &str) -> OwnedObjectPath {
    let mut path = format!("{ROOT}/{kind}/");
    if id.is_empty() {
        path.push('_');
    }
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "_{byte:02x}"); // a String takes everything
        }
    }
    OwnedObjectPath::try_from(path).expect("escaped to what a path may contain")
}

/// The path of a database object.
pub fn database_path(id: &str) -> OwnedObjectPath {
    object_path("database", id)
}

/// The path of a store object.
pub fn store_path(id: &str) -> OwnedObjectPath {
    object_path("store", id)
}

/// The path of a vault object.
pub fn vault_path(id: &str) -> OwnedObjectPath {
    object_path("vault", id)
}

/// "No object": what a property of type `o` holds when there is none.
pub fn no_object() -> OwnedObjectPath {
    ObjectPath::from_static_str_unchecked("/").into()
}

/// The identifier in a path made by [`database_path`] and its likes, or nothing if it is no such path.
pub fn id_of_path(kind: &str, path: &str) -> Option<String> {
    let rest = path.strip_prefix(ROOT)?.strip_prefix('/')?.strip_prefix(kind)?.strip_prefix('/')?;
    let mut bytes = Vec::with_capacity(rest.len());
    let mut left = rest.bytes();
    while let Some(byte) = left.next() {
        match byte {
            b'_' => match (left.next(), left.next()) {
                (Some(high), Some(low)) => {
                    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
                    bytes.push(digit(high)? << 4 | digit(low)?);
                }
                (None, _) if bytes.is_empty() => {}
                _ => return None,
            },
            b'/' => return None,
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Names a job: a number given by the service, or the token that a caller chose beforehand (`job-token`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(String);

impl JobId {
    pub(crate) fn numbered(number: u64) -> Self {
        Self(number.to_string())
    }

    /// The identifier as text, the last part of the job's path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of the job object.
    pub fn path(&self) -> OwnedObjectPath {
        OwnedObjectPath::try_from(format!("{ROOT}/job/{}", self.0)).expect("checked when it was made")
    }
}

/// Letters, digits and underscores, 8 to 64 of them, not all digits: those are the service's own.
impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let allowed = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let own = text.bytes().all(|byte| byte.is_ascii_digit());
        if allowed && !own && (8..=64).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::InvalidArgument(
                "job-token must be 8 to 64 letters, digits or underscores, and not digits only".into(),
            ))
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn round_trip(id: &str) {
        let path = database_path(id);
        assert_eq!(id_of_path("database", &path).as_deref(), Some(id), "{path}");
    }

    #[test]
    fn every_identifier_comes_back_from_its_path() {
        for id in ["dino", "org.gajim.Gajim", "a_b", "a/b", "", "Nachrichten – alt", "_2e"] {
            round_trip(id);
        }
    }

    #[test]
    fn different_identifiers_have_different_paths() {
        assert_ne!(database_path("a.b"), database_path("a_2eb"));
    }

    #[test]
    fn foreign_paths_name_nothing() {
        for path in
            ["/", ROOT, "/io/github/chatkeep/Chatkeep1/store/x", "/io/github/chatkeep/Chatkeep1/database/a_2"]
        {
            assert_eq!(id_of_path("database", path), None, "{path}");
        }
    }

    #[test]
    fn a_token_cannot_collide_with_a_numbered_job() {
        assert!("12345678".parse::<JobId>().is_err());
        assert!("short".parse::<JobId>().is_err());
        assert!("has/slash_".parse::<JobId>().is_err());
        assert_eq!("cli_0123456789".parse::<JobId>().unwrap().as_str(), "cli_0123456789");
    }
}
