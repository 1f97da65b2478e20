//! Errors for people: one sentence what it is, one what to do.

use std::fmt::Display;

use chatkeep_ipc::Error;
use serde_json::json;

use crate::output::{note, plain};

pub(crate) const FAILED: u8 = 1;
pub(crate) const NO_SERVICE: u8 = 3;
pub(crate) const WRONG_SECRET: u8 = 4;
pub(crate) const CANCELLED: u8 = 5;
pub(crate) const INTERRUPTED: u8 = 130;

/// Why the command ends without success.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// The error's short name; `Local` for what did not come from the service.
    name: String,
    what: String,
    advice: String,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// Something on this side failed.
    pub(crate) fn local(what: &str, cause: &dyn Display) -> Self {
        Self::said(&format!("{what}: {cause}"), "")
    }

    /// A refusal of the command itself.
    pub(crate) fn said(what: &str, advice: &str) -> Self {
        Self { code: FAILED, name: "Local".into(), what: what.into(), advice: advice.into() }
    }

    /// Nothing was typed where a secret was asked for.
    pub(crate) fn no_secret(what: &str, advice: &str) -> Self {
        Self { name: "NoSecret".into(), ..Self::said(what, advice) }
    }

    /// See [`Failure::no_secret`].
    pub(crate) fn is_no_secret(&self) -> bool {
        self.name == "NoSecret"
    }

    pub(crate) fn interrupted() -> Self {
        Self { code: INTERRUPTED, ..Self::said("interrupted", "") }
    }

    pub(crate) fn no_service(cause: &dyn Display) -> Self {
        Self {
            code: NO_SERVICE,
            name: "NoService".into(),
            what: format!("the service cannot be reached: {cause}"),
            advice: "start it with `systemctl --user start chatkeepd`, then see `chatkeep doctor`".into(),
        }
    }

    /// The secret was wrong: it can be asked for again.
    pub(crate) fn is_wrong_secret(&self) -> bool {
        self.code == WRONG_SECRET
    }

    /// Somebody cancelled it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.code == CANCELLED
    }

    /// From the outcome of a job: short name and text.
    pub(crate) fn of_job(name: &str, text: &str) -> Self {
        Self::from(Error::from_name(name, text))
    }

    pub(crate) fn print(&self, json: bool) {
        if json {
            let value =
                json!({"error": self.name, "message": self.what, "advice": self.advice, "exit": self.code});
            crate::output::json(&value);
            return;
        }
        note(&format!("chatkeep: {}", plain(&self.what)));
        if !self.advice.is_empty() {
            note(&format!("  {}", plain(&self.advice)));
        }
    }
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        Self::from(Error::from(error))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (what, advice) = sentences(&error);
        let code = match &error {
            Error::WrongSecret(_) | Error::InvalidSecret(_) => WRONG_SECRET,
            Error::Cancelled(_) => CANCELLED,
            Error::ZBus(zbus::Error::InputOutput(_) | zbus::Error::Address(_)) => NO_SERVICE,
            _ => FAILED,
        };
        let name = if let Error::ZBus(_) = error { "Bus".into() } else { error.short_name() };
        let text = error.text();
        let what = if text.is_empty() || text == what { what.to_owned() } else { format!("{what}: {text}") };
        Self { code, name, what, advice: advice.into() }
    }
}

/// What it is, and what to do.
fn sentences(error: &Error) -> (&'static str, &'static str) {
    match error {
        Error::ZBus(_) => ("the service did not answer as expected", "see `chatkeep doctor`"),
        Error::NotFound(_) => ("not found", "`chatkeep status` lists what there is"),
        Error::AlreadyRegistered(_) => {
            ("another file is registered under this name", "choose another with --name")
        }
        Error::AlreadyEnabled(_) => {
            ("encryption is on already", "use `chatkeep encryption change-password` or `rotate-key`")
        }
        Error::NotEnabled(_) => ("encryption is not set up this way", "see `chatkeep encryption status`"),
        Error::Configured(_) => ("this comes from the configuration file", "change it there"),
        Error::AccessDenied(_) => {
            ("not allowed", "run the command outside of any sandbox, as the service's user")
        }
        Error::ProofRequired(_) => ("this needs the current password or key", ""),
        Error::InvalidArgument(_) => ("the service does not accept this", ""),
        Error::Unsupported(_) => {
            ("this version of the service cannot do it", "see `chatkeep doctor` for versions")
        }
        Error::InvalidSecret(_) => {
            ("this cannot be a password or key", "check what was typed, and try again")
        }
        Error::WrongSecret(_) => {
            ("wrong password or key", "check keyboard layout and capitals, and try again")
        }
        Error::SecretTimeout(_) => ("the secret was not handed over in time", "try again"),
        Error::Unconfirmed(_) => {
            ("the new digits were not confirmed yet", "type them back with `chatkeep encryption confirm`")
        }
        Error::VaultBackoff(_) => {
            ("the vault takes no attempt just now", "wait, then try again; nothing is lost")
        }
        Error::VaultDestroyed(_) => (
            "the vault has destroyed the key for this password, for good",
            "use the 64 digits if you have them; on a machine that is still unlocked, set a new password",
        ),
        Error::VaultUnreachable(_) => {
            ("the vault cannot be reached", "no attempt was counted; check the network and try again")
        }
        Error::VaultUntrusted(_) => (
            "what answered is not the vault that was chosen",
            "do not type the password again; check its address",
        ),
        Error::StoreUnreachable(_) => ("the store cannot be reached", "check the network; it is tried again"),
        Error::StoreAuth(_) => {
            ("the store wants a sign-in", "set its credentials, then `chatkeep store test`")
        }
        Error::StoreFull(_) => ("the store is full", "make room there, or choose another store"),
        Error::Corrupt(_) => {
            ("stored data is damaged", "try an earlier point (`chatkeep points`), and run `chatkeep verify`")
        }
        Error::ObjectMissing(_) => (
            "something that must be in the store is missing",
            "try an earlier point (`chatkeep points`), and run `chatkeep verify`",
        ),
        Error::WriterFenced(_) => (
            "another installation continues this archive",
            "use it on one machine only; here, `chatkeep unregister` it, then `chatkeep adopt` it again",
        ),
        Error::RollbackDetected(_) => (
            "the store returned an older state than before",
            "somebody may have put back old data; check the store",
        ),
        Error::NewerFormat(_) => ("a newer version of chatkeep wrote this", "install that version here"),
        Error::KeyUnavailable(_) => ("the key is not on this machine", "run `chatkeep unlock`"),
        Error::KeyringLocked(_) => {
            ("the keyring is locked", "unlock it, usually by signing in to the desktop")
        }
        Error::DatabaseMissing(_) => ("the database file is gone", "restore it, or `chatkeep unregister` it"),
        Error::DatabaseInUse(_) => ("a program has the database open", "close it, then try again"),
        Error::DatabaseBusy(_) => ("the database changes too fast just now", "it is tried again by itself"),
        Error::NoSpace(_) => ("no room on this machine", "make room, then try again"),
        Error::Busy(_) => ("another operation is going on", "wait for its end, or cancel it"),
        Error::Paused(_) => ("backups are paused", "run `chatkeep resume`"),
        Error::Cancelled(_) => ("it was cancelled", ""),
        _ => ("the service made a mistake", "its log has more: `journalctl --user -u chatkeepd`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_service_says_follows_what_it_is() {
        let failure = Failure::from(Error::WrongSecret("group 3 differs".into()));
        assert_eq!(failure.what, "wrong password or key: group 3 differs");
        assert_eq!(failure.code, WRONG_SECRET);
    }

    #[test]
    fn a_job_s_error_is_explained_like_an_answer() {
        let failure = Failure::of_job("VaultDestroyed", "");
        assert!(failure.what.contains("for good") && failure.advice.contains("64 digits"), "{failure:?}");
        assert_eq!(Failure::of_job("SomethingNew", "x").what, "the service made a mistake: x");
    }
}
