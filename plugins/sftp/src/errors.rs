//! What `ssh` and the server say, as what the caller does next.

use chatkeep_store::StoreError;

use crate::wire::{STATUS_PERMISSION_DENIED, STATUS_UNSUPPORTED};

/// How `ssh` ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    /// What it said, fit for a message.
    pub(crate) words: String,
    /// What was wrong with what the server sent.
    pub(crate) broken: Option<&'static str>,
}

/// Why something did not happen.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server answered so.
    Refused { code: u32, message: String },
    /// There is no answer.
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    pub(crate) fn is(&self, wanted: u32) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }

    /// For the caller of the store; `what` completes "cannot …". A missing file is not an answer here: whoever expects one
    /// has looked for it before.
    pub(crate) fn sort(self, what: &str) -> StoreError {
        let (code, message) = match self {
            Self::Store(error) => return error,
            Self::Refused { code, message } => (code, shown(&message, 200)),
        };
        let cause = format!("cannot {what}: the server answers `{message}` ({code})");
        match code {
            STATUS_PERMISSION_DENIED => StoreError::Permission(cause.into()),
            STATUS_UNSUPPORTED => StoreError::Invalid { reason: cause },
            _ => StoreError::Transient(cause.into()),
        }
    }
}

/// `ssh` ended before there was a session. It has one exit code for everything, so its words tell why. They are English
/// whatever the language of the user: OpenSSH has no translations.
pub(crate) fn of_connecting(ended: &Ended) -> StoreError {
    let words = &ended.words;
    let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    let cause = match (words.is_empty(), ended.code) {
        (false, _) => words.clone(),
        (true, Some(code)) => format!("`ssh` ended with code {code} and said nothing"),
        (true, None) => "`ssh` was killed".to_owned(),
    };
    if says(AUTH) {
        return StoreError::Auth(cause.into());
    }
    if says(OFFLINE) {
        return StoreError::Offline(cause.into());
    }
    if says(INVALID) {
        return StoreError::Invalid { reason: cause };
    }
    StoreError::Transient(cause.into())
}

/// The user has to do something about a key: their own, or the one of the server.
const AUTH: &[&str] = &[
    "Permission denied (",
    "Host key verification failed",
    "Too many authentication failures",
    "No more authentication methods",
    "no mutual signature",
];

const OFFLINE: &[&str] = &[
    "Could not resolve hostname",
    "Connection refused",
    "Connection timed out",
    "Operation timed out",
    "No route to host",
    "Network is unreachable",
    "Network is down",
    "Host is down",
];

const INVALID: &[&str] = &[
    "subsystem request failed",
    "Bad configuration option",
    "terminating, ",
    "Bad owner or permissions",
    "Can't open user config file",
    "no matching",
];

/// What came first from the server is no SFTP.
pub(crate) fn of_greeting(broken: &'static str) -> StoreError {
    let reason = format!(
        "what answers is no SFTP server ({broken}); a start file of the user's shell there may print something"
    );
    StoreError::Invalid { reason }
}

/// A session that stood has ended.
pub(crate) fn of_lost(ended: &Ended) -> StoreError {
    let why = match (ended.broken, ended.words.as_str()) {
        (Some(broken), _) => broken,
        (None, "") => "`ssh` said nothing",
        (None, words) => words,
    };
    StoreError::Transient(format!("the connection to the server ended: {why}").into())
}

/// Words of `ssh` without frames of `@` and without what a terminal would obey.
pub(crate) fn tidy(words: &[u8]) -> String {
    let words = String::from_utf8_lossy(words);
    let lines = words.lines().map(|line| line.trim_matches(['@', ' ', '\r', '\t']));
    let text: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    shown(&text.join("; "), 900)
}

fn shown(text: &str, chars_max: usize) -> String {
    let harmless = |character: char| if character.is_control() { '?' } else { character };
    text.chars().take(chars_max).map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use chatkeep_store::ErrorKind;

    use super::*;

    /// Words of OpenSSH 9.2.
    #[test]
    fn what_ssh_says_leads_to_what_helps() {
        for (words, kind) in [
            ("ssh: Could not resolve hostname nas: Name or service not known", ErrorKind::Offline),
            ("ssh: connect to host 127.0.0.1 port 9: Connection refused", ErrorKind::Offline),
            ("ssh: connect to host 10.0.0.1 port 22: Connection timed out", ErrorKind::Offline),
            ("ssh: connect to host 10.0.0.1 port 22: No route to host", ErrorKind::Offline),
            ("me@nas: Permission denied (publickey).", ErrorKind::Auth),
            ("No ED25519 host key is known for [nas]:22\nHost key verification failed.", ErrorKind::Auth),
            ("Received disconnect from ::1 port 22:2: Too many authentication failures", ErrorKind::Auth),
            ("subsystem request failed on channel 0", ErrorKind::Invalid),
            (
                "/c: line 1: Bad configuration option: x\n/c: terminating, 1 bad configuration options",
                ErrorKind::Invalid,
            ),
            ("Unable to negotiate with ::1 port 22: no matching host key type found.", ErrorKind::Invalid),
            ("kex_exchange_identification: Connection closed by remote host", ErrorKind::Transient),
            ("", ErrorKind::Transient),
        ] {
            let ended = Ended { code: Some(255), words: tidy(words.as_bytes()), broken: None };
            assert_eq!(of_connecting(&ended).kind(), kind, "{words}");
        }
    }

    #[test]
    fn words_for_the_user_have_no_frames_and_no_escape_sequences() {
        let words = b"@@@@@@@@@@@\n@  WARNING: CHANGED!  @\n@@@@@@@@@@@\nIt is \x1b[2Jpossible.\r\n\n";
        assert_eq!(tidy(words), "WARNING: CHANGED!; It is ?[2Jpossible.");
        assert!(tidy(&[b'a'; 5000]).len() < 1000);
    }
}
