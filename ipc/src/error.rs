//! The errors a caller can see. A program branches on the name; the text is for people.

/// Every error of the interface, `io.github.chatkeep.Chatkeep1.Error.*` on the wire.
///
/// The text is one sentence: what it is, and where it is not obvious, what to do. It never carries a secret.
#[derive(Debug, Clone, PartialEq, zbus::DBusError)]
#[zbus(prefix = "io.github.chatkeep.Chatkeep1.Error")]
#[non_exhaustive]
pub enum Error {
    /// The bus itself failed; never sent by the service.
    #[zbus(error)]
    ZBus(zbus::Error),

    // The caller's own mistake: change the call.
    /// No such database, store, vault, job or point, or not the caller's.
    NotFound(String),
    /// Another file is registered under this name.
    AlreadyRegistered(String),
    /// Encryption is on already; change or switch instead.
    AlreadyEnabled(String),
    /// Encryption is off, or in the other mode.
    NotEnabled(String),
    /// It comes from the configuration file, and can be changed only there.
    Configured(String),
    /// The caller may not do this.
    AccessDenied(String),
    /// The call needs the current password or key.
    ProofRequired(String),
    /// An argument or option is unknown or out of range.
    InvalidArgument(String),
    /// This version cannot do it.
    Unsupported(String),

    // About the secret: ask the user again.
    /// Not usable as a secret: no pipe, empty, too long, or not well-formed. The text says which group of digits.
    InvalidSecret(String),
    /// Well-formed, but not the right one. The text says which group of digits, or how many attempts are left.
    WrongSecret(String),
    /// The other end of the pipe was not closed within five seconds.
    SecretTimeout(String),
    /// The generated key was not typed back yet.
    Unconfirmed(String),

    // About the vault.
    /// Too many attempts in a short time; the text says when the next is possible.
    VaultBackoff(String),
    /// The last attempt was used, or the record was destroyed on request. The password opens nothing any more.
    VaultDestroyed(String),
    /// No answer; nothing was counted.
    VaultUnreachable(String),
    /// The answer is not signed by the vault that was chosen.
    VaultUntrusted(String),

    // About the place where backups are kept.
    /// No answer from the store; it is tried again.
    StoreUnreachable(String),
    /// The store wants a sign-in.
    StoreAuth(String),
    /// The store has no room left.
    StoreFull(String),
    /// What the store returned is damaged.
    Corrupt(String),
    /// An object that must be in the store is not there.
    ObjectMissing(String),
    /// The store returned an older state than was seen before.
    RollbackDetected(String),
    /// Another installation continues this archive; this one writes nothing into it any more.
    WriterFenced(String),
    /// Written by a newer version of the program.
    NewerFormat(String),

    // About this device.
    /// The key is not on this device; unlock first.
    KeyUnavailable(String),
    /// The keyring is locked; it opens with the desktop session.
    KeyringLocked(String),
    /// The database file is gone.
    DatabaseMissing(String),
    /// A process has the database open.
    DatabaseInUse(String),
    /// The database changes too fast at the moment; it is tried again.
    DatabaseBusy(String),
    /// No room on this device.
    NoSpace(String),

    // Try later.
    /// Another operation is going on.
    Busy(String),
    /// Backups are paused.
    Paused(String),
    /// It was cancelled.
    Cancelled(String),
    /// A mistake in the service. The log has more.
    Internal(String),
}

impl Error {
    /// The last part of the error's name, as [`JobState::error`](crate::JobState::error) carries it.
    pub fn short_name(&self) -> String {
        use zbus::DBusError as _;
        self.name().as_str().rsplit('.').next().unwrap_or_default().to_owned()
    }

    /// The text without the name in front of it.
    pub fn text(&self) -> String {
        use zbus::DBusError as _;
        match self {
            Self::ZBus(error) => error.to_string(),
            _ => self.description().unwrap_or_default().to_owned(),
        }
    }

    /// Reads an error back from its name and text; names of a newer service become [`Error::Internal`].
    pub fn from_name(name: &str, text: &str) -> Self {
        let text = text.to_owned();
        match name.rsplit('.').next().unwrap_or_default() {
            "NotFound" => Self::NotFound(text),
            "AlreadyRegistered" => Self::AlreadyRegistered(text),
            "AlreadyEnabled" => Self::AlreadyEnabled(text),
            "NotEnabled" => Self::NotEnabled(text),
            "Configured" => Self::Configured(text),
            "AccessDenied" => Self::AccessDenied(text),
            "ProofRequired" => Self::ProofRequired(text),
            "InvalidArgument" => Self::InvalidArgument(text),
            "Unsupported" => Self::Unsupported(text),
            "InvalidSecret" => Self::InvalidSecret(text),
            "WrongSecret" => Self::WrongSecret(text),
            "SecretTimeout" => Self::SecretTimeout(text),
            "Unconfirmed" => Self::Unconfirmed(text),
            "VaultBackoff" => Self::VaultBackoff(text),
            "VaultDestroyed" => Self::VaultDestroyed(text),
            "VaultUnreachable" => Self::VaultUnreachable(text),
            "VaultUntrusted" => Self::VaultUntrusted(text),
            "StoreUnreachable" => Self::StoreUnreachable(text),
            "StoreAuth" => Self::StoreAuth(text),
            "StoreFull" => Self::StoreFull(text),
            "Corrupt" => Self::Corrupt(text),
            "ObjectMissing" => Self::ObjectMissing(text),
            "RollbackDetected" => Self::RollbackDetected(text),
            "WriterFenced" => Self::WriterFenced(text),
            "NewerFormat" => Self::NewerFormat(text),
            "KeyUnavailable" => Self::KeyUnavailable(text),
            "KeyringLocked" => Self::KeyringLocked(text),
            "DatabaseMissing" => Self::DatabaseMissing(text),
            "DatabaseInUse" => Self::DatabaseInUse(text),
            "DatabaseBusy" => Self::DatabaseBusy(text),
            "NoSpace" => Self::NoSpace(text),
            "Busy" => Self::Busy(text),
            "Paused" => Self::Paused(text),
            "Cancelled" => Self::Cancelled(text),
            _ => Self::Internal(text),
        }
    }
}

/// Why serving could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another instance owns the bus name: leave, and do not restart.
    #[error("another instance owns the bus name")]
    NameTaken,
    /// Another instance answers on the control socket: leave, and do not restart.
    #[error("another instance answers on the control socket")]
    SocketTaken,
    /// The directory of the control socket belongs to somebody else, or others may enter it.
    #[error("the directory of the control socket is not private: {what}")]
    NotPrivate {
        /// What is wrong with it.
        what: String,
    },
    /// There is no bus. The control socket is enough for the command.
    #[error("the bus cannot be used")]
    Bus(#[source] zbus::Error),
    /// The socket could not be made.
    #[error("the control socket cannot be made")]
    Io(#[source] std::io::Error),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use zbus::DBusError as _;

    use super::*;

    #[test]
    fn names_carry_the_prefix_and_come_back() {
        let error = Error::WrongSecret("group 3 differs".into());
        assert_eq!(error.name().as_str(), "io.github.chatkeep.Chatkeep1.Error.WrongSecret");
        assert_eq!(error.text(), "group 3 differs");
        assert_eq!(Error::from_name(error.name().as_str(), &error.text()), error);
        assert_eq!(Error::from_name(&error.short_name(), &error.text()), error);
    }
}
