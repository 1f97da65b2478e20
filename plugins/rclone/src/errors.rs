//! rclone's words, as what the caller does next.
//!
//! Of a failed call rclone tells a text, and hardly a status: 404 for an object or folder that is not there, 500 for all
//! else. The text has the number or the words of the service in it, wrapped in those of rclone, so they are looked for
//! in a fixed order; what nobody knows is an error that passes.

use chatkeep_store::{StoreError, StoreKey};

use crate::child::Ended;
use crate::control::Failure;

/// Most characters of rclone's words that are kept.
const WORDS_MAX: usize = 300;

/// What was asked of rclone.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked<'a> {
    /// To read an object, or about it.
    Read(&'a StoreKey),
    /// To store an object of so many bytes.
    Write(&'a StoreKey, u64),
    /// Something about no object in particular.
    Other,
}

/// Sorts the errors of one remote.
#[derive(Debug, Clone)]
pub(crate) struct Sorter {
    /// Its name in the configuration.
    pub(crate) remote: String,
    /// Whether rclone was given a password for the configuration.
    pub(crate) has_config_password: bool,
}

/// A group of causes with one remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    UnknownRemote,
    NotAFolder,
    LongName,
    ConfigPassword,
    SignIn,
    Offline,
    Quota,
    Throttled,
    TooLarge,
    Damaged,
    Permission,
    NotFound,
    Passing,
}

/// The words of each class, lower case. The first that is found counts, so the order matters: a token that cannot be
/// fetched because there is no network is no reason to sign in again, and a full Drive is not one that is asked too often.
const WORDS: &[(Class, &[&str])] = &[
    (Class::UnknownRemote, &["didn't find section in config file", "didn't find backend called"]),
    (Class::NotAFolder, &["is a file not a directory"]),
    (Class::LongName, &["file name too long", "filename too long", "name too long"]),
    (Class::ConfigPassword, &["decrypt configuration"]),
    (Class::SignIn, &["unable to authenticate", "no supported methods remain"]),
    (
        Class::Offline,
        &[
            "no such host",
            "connection refused",
            "network is unreachable",
            "no route to host",
            "host is down",
            "name resolution",
            "server misbehaving",
            "i/o timeout",
            "tls handshake timeout",
            "connection timed out",
            "dial tcp",
            "couldn't connect ssh",
        ],
    ),
    // before the class of those that ask too often: `quotaexceeded` is in one of these, too
    (
        Class::Quota,
        &[
            "storagequotaexceeded",
            "storage quota has been exceeded",
            "insufficient storage",
            "insufficient_space",
            "insufficientspace",
            "quotalimitreached",
            "storage_limit_exceeded",
            "teamdrivefilelimitexceeded",
            "numchildreninnonrootlimitexceeded",
            "over quota",
            "quota exceeded on",
            "out of storage",
            "no space left on device",
            "disk quota exceeded",
            "not enough space",
        ],
    ),
    (
        Class::Throttled,
        &[
            "ratelimitexceeded",
            "dailylimitexceeded",
            "quotaexceeded",
            "quota exceeded for quota metric",
            "too many requests",
            "too_many_requests",
            "too_many_write_operations",
            "activitylimitreached",
            "slowdown",
            "slow down",
            "rate limit",
            "throttled",
        ],
    ),
    (
        Class::SignIn,
        &[
            "invalid_grant",
            "invalid_client",
            "unauthorized_client",
            "token expired",
            "token has expired",
            "empty token found",
            "trust token",
            "please reauth",
            "missing pcs cookies",
            "requestpcs",
            "config reconnect",
            "couldn't fetch token",
            "expired_access_token",
            "invalid_access_token",
            "invalidauthenticationtoken",
            "autherror",
            "invalidaccesskeyid",
            "signaturedoesnotmatch",
            "login incorrect",
            "logon failure",
            "unauthorized",
        ],
    ),
    (Class::TooLarge, &["too large", "too_large", "entitytoolarge", "uploadtoolarge", "payload_too_large"]),
    (
        Class::Damaged,
        &["corrupted on transfer", "hashes differ", "checksum mismatch", "baddigest", "content-md5"],
    ),
    (
        Class::Permission,
        &[
            "permission denied",
            "insufficientfilepermissions",
            "insufficientpermissions",
            "accessdenied",
            "access denied",
            "no_write_permission",
            "forbidden",
            "operation not permitted",
            "read-only file system",
            "knownhosts: key",
        ],
    ),
    (
        Class::NotFound,
        &[
            "object not found",
            "directory not found",
            "not a directory",
            "is a directory not a file",
            "no such file",
        ],
    ),
];

/// HTTP statuses that decide. Others are no more than words.
const STATUSES: &[(u16, &str, Class)] = &[
    (401, "unauthorized", Class::SignIn),
    (403, "forbidden", Class::Permission),
    (404, "not found", Class::NotFound),
    (413, "request entity too large", Class::TooLarge),
    (429, "too many requests", Class::Throttled),
    (507, "insufficient storage", Class::Quota),
];

impl Failure {
    /// Whether rclone says that there is no such file or folder.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Answered { status, text } if *status == 404 || class_of(text) == Class::NotFound)
    }
}

impl Sorter {
    /// What a failed call means.
    pub(crate) fn sort(&self, failure: Failure, asked: Asked<'_>) -> StoreError {
        match failure {
            Failure::NoConnection(error) => StoreError::Transient(error.into()),
            Failure::Broken(cause) => StoreError::Transient(cause),
            Failure::NotOpened => StoreError::Transient("rclone could not open the object".into()),
            Failure::Answered { status, text } => self.sort_words(status, &text, asked),
        }
    }

    fn sort_words(&self, status: u16, text: &str, asked: Asked<'_>) -> StoreError {
        let cause = || shown(text).into();
        let class = if status == 404 { Class::NotFound } else { class_of(text) };
        match (class, asked) {
            (Class::UnknownRemote, _) => self.unknown(),
            (Class::NotAFolder, _) => {
                let reason =
                    format!("the path in the URL is a file of the remote `{}`, not a folder", self.remote);
                StoreError::Invalid { reason }
            }
            (Class::LongName, _) => {
                let reason =
                    "the remote takes no names as long as these (rclone's `crypt` makes names longer)";
                StoreError::Invalid { reason: reason.to_owned() }
            }
            (Class::ConfigPassword, _) => StoreError::Auth(self.config_password().into()),
            (Class::SignIn, _) => StoreError::Auth(self.sign_in(text).into()),
            (Class::Offline, _) => StoreError::Offline(cause()),
            (Class::Quota, _) => StoreError::Quota(cause()),
            (Class::Throttled, _) => StoreError::Throttled { retry_after: None },
            (Class::TooLarge, Asked::Write(_, len)) => StoreError::TooLarge { len, len_max: None },
            (Class::Damaged, Asked::Write(key, _)) => StoreError::Corrupt { key: key.clone() },
            (Class::Permission, _) => StoreError::Permission(cause()),
            (Class::NotFound, Asked::Read(key)) => StoreError::NotFound { key: key.clone() },
            _ => StoreError::Transient(cause()),
        }
    }

    fn unknown(&self) -> StoreError {
        let reason = format!(
            "rclone's configuration has no remote `{}` (see `rclone listremotes`; `rclone config` makes one)",
            self.remote
        );
        StoreError::Invalid { reason }
    }

    fn config_password(&self) -> String {
        let which = if self.has_config_password { "is wrong" } else { "is missing" };
        format!("rclone's configuration is encrypted, and the secret `config_password` {which}")
    }

    fn sign_in(&self, text: &str) -> String {
        let remote = &self.remote;
        format!(
            "sign in again: `rclone config reconnect {remote}:`, or `rclone config` where the remote has a password: {}",
            shown(text)
        )
    }
}

/// What a file of our own in the folder for temporary files means.
pub(crate) fn of_own_files(error: std::io::Error) -> StoreError {
    // no room there is not a full store: it must not stop uploads for good
    StoreError::Transient(error.into())
}

/// What it means that rclone did not start.
pub(crate) fn of_start(ended: &Ended, words: &str) -> StoreError {
    let last = words.lines().last().unwrap_or_default();
    StoreError::Transient(format!("rclone did not start ({ended}): {}", shown(last)).into())
}

fn class_of(text: &str) -> Class {
    let text = text.to_lowercase();
    let by_words = || WORDS.iter().find(|(_, words)| words.iter().any(|word| text.contains(word)));
    // words say more than numbers: Drive's 403 is a full Drive, too many requests, or a lack of rights
    match by_words().map(|(class, _)| *class) {
        Some(class) if !matches!(class, Class::Permission | Class::NotFound) => class,
        by_words => STATUSES
            .iter()
            .find(|(number, phrase, _)| has_status(&text, *number, phrase))
            .map(|(_, _, class)| *class)
            .or(by_words)
            .unwrap_or(Class::Passing),
    }
}

/// Whether `text` has a number as a status: named as one, or with its phrase behind it. Names of objects have numbers, too.
fn has_status(text: &str, number: u16, phrase: &str) -> bool {
    let number = number.to_string();
    text.match_indices(&number).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + number.len()..]);
        let named = ["error ", "status ", "status: ", "status code ", "code ", "code: ", "http "];
        let ends = !after.starts_with(|c: char| c.is_alphanumeric());
        ends && (after.strip_prefix(' ').is_some_and(|rest| rest.starts_with(phrase))
            || named.iter().any(|word| before.ends_with(word)))
    })
}

/// Words of rclone for people: short, nothing a terminal would obey, and without the query of any URL in it, for that is
/// where services put tokens.
pub(crate) fn shown(text: &str) -> String {
    let mut short = String::new();
    let (mut query, mut count) = (false, 0);
    for c in text.chars() {
        match c {
            _ if c.is_whitespace() || c == '"' || c == '\'' || c == '>' => query = false,
            '?' if !query => {
                query = true;
                short.push_str("?…");
                continue;
            }
            _ => {}
        }
        if !query {
            count += 1;
            if count > WORDS_MAX {
                short.push('…');
                break;
            }
            short.extend(c.escape_debug());
        }
    }
    short
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::error::Error as _;

    use chatkeep_store::ErrorKind::{self, *};

    use super::*;

    fn sort(status: u16, text: &str) -> StoreError {
        let key = StoreKey::try_from("a/log/0000000000000403").unwrap();
        let failure = Failure::Answered { status, text: text.to_owned() };
        Sorter { remote: "mine".to_owned(), has_config_password: false }.sort(failure, Asked::Write(&key, 5))
    }

    #[track_caller]
    fn check(text: &str, kind: ErrorKind) {
        assert_eq!(sort(500, text).kind(), kind, "{text}");
    }

    /// As rclone 1.75 says them; those of Drive, OneDrive, Dropbox, Box and iCloud from its source, the others measured.
    #[test]
    fn each_error_leads_to_what_helps() {
        for (text, kind) in [
            ("a/log/403: 507 Insufficient Storage: Insufficient Storage", Quota),
            (
                "googleapi: Error 403: The user's Drive storage quota has been exceeded., storageQuotaExceeded",
                Quota,
            ),
            ("path/insufficient_space/..", Quota),
            ("quotaLimitReached: Insufficient Space Available", Quota),
            ("write /mnt/x: no space left on device", Quota),
            ("googleapi: Error 403: User Rate Limit Exceeded, userRateLimitExceeded", Throttled),
            ("googleapi: Error 403: Quota exceeded for quota metric 'Queries', rateLimitExceeded", Throttled),
            ("update: 429 Too Many Requests", Throttled),
            ("HTTP error 429 (429) returned body: \"\"", Throttled),
            ("too_many_requests/...", Throttled),
            ("googleapi: Error 403: Insufficient Permission, insufficientPermissions", Permission),
            ("couldn't list files: Forbidden: 403 Forbidden", Permission),
            ("open /mnt/x: permission denied", Permission),
            ("413 Request Entity Too Large", TooLarge),
            ("HTTP error 413", TooLarge),
            ("couldn't list files: Unauthorized: 401 Unauthorized", Auth),
            (
                "couldn't fetch token: invalid_grant: maybe token expired? - try refreshing with \"rclone config reconnect x:\"",
                Auth,
            ),
            ("trust token expired, please reauth", Auth),
            ("HTTP error 421: Missing PCS cookies from the request", Auth),
            ("missing icloud trust token: try refreshing it with \"rclone config reconnect x:\"", Auth),
            (
                "couldn't connect SSH: ssh: handshake failed: ssh: unable to authenticate, attempted methods [none]",
                Auth,
            ),
            ("NewFs: couldn't connect SSH: dial tcp 127.0.0.1:22: connect: connection refused", Offline),
            (
                "couldn't fetch token: Post \"https://oauth2.googleapis.com/token\": dial tcp: lookup oauth2.googleapis.com: no such host",
                Offline,
            ),
            (
                "read metadata failed: Propfind \"http://127.0.0.1:1/\": dial tcp 127.0.0.1:1: connect: connection refused",
                Offline,
            ),
            ("corrupted on transfer: md5 hashes differ src(x) \"a\" vs dst(y) \"b\"", Corrupt),
            ("corrupted on transfer: sizes differ src(x) 507 vs dst(y) 403", Corrupt),
            ("didn't find section in config file (\"mine\")", Invalid),
            ("is a file not a directory", Invalid),
            ("lstat /mnt/lllll: file name too long", Invalid),
            ("500 Internal Server Error", Transient),
            ("read tcp 127.0.0.1:1->127.0.0.1:2: connection reset by peer", Transient),
            ("something new in a/log/401 and 429 others", Transient),
            ("", Transient),
        ] {
            check(text, kind);
        }
    }

    #[test]
    fn only_a_read_of_an_object_finds_that_it_is_missing() {
        let key = StoreKey::try_from("a").unwrap();
        let sorter = Sorter { remote: "mine".to_owned(), has_config_password: false };
        for (status, text) in [
            (404, "object not found"),
            (500, "lstat /x/a: not a directory"),
            (500, "is a directory not a file"),
        ] {
            let failure = || Failure::Answered { status, text: text.to_owned() };
            assert_eq!(sorter.sort(failure(), Asked::Read(&key)).kind(), NotFound);
            assert_eq!(sorter.sort(failure(), Asked::Other).kind(), Transient);
            assert_eq!(sorter.sort(failure(), Asked::Write(&key, 1)).kind(), Transient);
        }
        // that the object cannot be opened is not that it is missing
        assert_eq!(sorter.sort(Failure::NotOpened, Asked::Read(&key)).kind(), Transient);
    }

    #[test]
    fn a_sign_in_says_what_to_type() {
        let cause = sort(500, "trust token expired").source().unwrap().to_string();
        assert!(cause.contains("rclone config reconnect mine:"), "{cause}");
    }

    #[test]
    fn words_of_a_service_are_bounded_and_harmless() {
        let cause = sort(500, &format!("\u{1b}[2J{}", "x".repeat(5000))).source().unwrap().to_string();
        assert!(cause.chars().count() < 320 && !cause.contains('\u{1b}'), "{cause}");
        let cause = sort(500, "Get \"https://host/a?sig=hunter2&b=1?c\": EOF").source().unwrap().to_string();
        assert_eq!(cause, r#"Get \"https://host/a?…\": EOF"#);
    }
}
