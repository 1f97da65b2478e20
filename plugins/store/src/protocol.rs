//! Plugin protocol 1: what a plugin process and its host say to each other, as types. docs/plugins.md is the text.
//!
//! HTTP/1.1 over the listening unix socket that the plugin finds as file descriptor 0. Unknown JSON fields and headers are
//! ignored both ways; a breaking change is a new number. Pure: [`chatkeep-store-host`] and [`chatkeep-store-serve`] are the ends.
//!
//! [`chatkeep-store-host`]: https://docs.rs/chatkeep-store-host
//! [`chatkeep-store-serve`]: https://docs.rs/chatkeep-store-serve

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::contract::{Capabilities, CreateGuarantee, Usage, Visibility};
use crate::error::{ErrorKind, StoreError};
use crate::key::StoreKey;
use crate::opening::Secrets;

/// The protocol that is spoken here.
pub const PROTOCOL: u32 = 1;

/// Request header: when an object must not be deleted before, in seconds since 1970 (`PATCH /o/KEY`).
pub const RETAIN_UNTIL: &str = "store-retain-until";
/// Answer header: a secret was renewed; the host fetches it with `GET /secrets` and keeps it.
pub const SECRETS_CHANGED: &str = "store-secrets-changed";
/// Answer header of an error: the kind that is also in its body, because the answer to `HEAD` has no body.
pub const PROBLEM: &str = "store-problem";
/// Longest JSON body of a request or answer, in bytes; listings are streamed and not bound by it.
pub const JSON_LEN_MAX: usize = 1 << 20;

/// `POST /open`: the first request, and again after the plugin was restarted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenRequest {
    /// Protocols that the host speaks.
    pub protocol: Vec<u32>,
    /// Name of the store in the configuration, for messages.
    pub store: String,
    /// Its URL.
    pub url: String,
    /// Settings, as text.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Secrets by name.
    #[serde(default)]
    pub secrets: Secrets,
    /// Nothing will be written.
    #[serde(default)]
    pub read_only: bool,
    /// Program and version of the host.
    #[serde(default)]
    pub agent: String,
}

/// The answer to [`OpenRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenAnswer {
    /// The protocol the plugin picked.
    pub protocol: u32,
    /// Name of the plugin.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What the store can do, as it says.
    #[serde(default)]
    pub caps: Caps,
}

/// [`Capabilities`] as they are written. What is not said is taken as the least.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caps {
    /// `atomic`, `advisory` or `none`.
    pub create: Option<String>,
    /// `strong` or `eventual`.
    pub read_after_write: Option<String>,
    /// `strong` or `eventual`.
    pub list_after_write: Option<String>,
    /// A range costs less than the whole.
    pub range: bool,
    /// `final` or `trash`.
    pub delete: Option<String>,
    /// `GET /usage` works.
    pub usage: bool,
    /// `PATCH /o/KEY` with a time until when an object is kept works.
    pub retain: bool,
    /// The largest object, in bytes.
    pub max_object: Option<u64>,
    /// How many requests at once are useful.
    pub parallel: Option<u16>,
}

/// One line of a listing: an object, or the end. A listing without its end failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ListLine {
    /// An object.
    Object {
        /// Its key.
        k: String,
        /// Its length, in bytes.
        n: u64,
    },
    /// All that there is was named.
    End {
        /// Always `true`.
        end: bool,
        /// How many objects were named.
        count: u64,
    },
}

/// `GET /usage`, in bytes, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsageAnswer {
    /// Used by the objects of this store.
    pub used: Option<u64>,
    /// Room in all.
    pub total: Option<u64>,
    /// Room left.
    pub free: Option<u64>,
}

/// `POST /auth`: a sign-in that the user carries out, relayed by the host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthRequest {
    /// Empty to begin; then the `step` of the last answer.
    pub step: String,
    /// What the user answered.
    pub answer: String,
}

/// The answer to [`AuthRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthAnswer {
    /// `open-url`, `ask` or `done`.
    pub state: String,
    /// What to name in the next request.
    pub step: String,
    /// To be opened in a browser.
    pub url: String,
    /// To be asked.
    pub prompt: String,
}

/// The body of every error, `application/problem+json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// Name of an [`ErrorKind`].
    pub kind: String,
    /// For people. Must not hold a secret.
    pub detail: String,
    /// For `throttled`: how long to wait, in seconds.
    pub retry_after_s: Option<u64>,
}

impl From<Capabilities> for Caps {
    fn from(can: Capabilities) -> Self {
        let visible = |when| match when {
            Visibility::Strong => "strong",
            Visibility::Eventual => "eventual",
        };
        let create = match can.create {
            CreateGuarantee::Atomic => "atomic",
            CreateGuarantee::Advisory => "advisory",
            CreateGuarantee::None => "none",
        };
        Self {
            create: Some(create.to_owned()),
            read_after_write: Some(visible(can.read_after_write).to_owned()),
            list_after_write: Some(visible(can.list_after_write).to_owned()),
            range: can.range,
            delete: Some(if can.delete_is_final { "final" } else { "trash" }.to_owned()),
            usage: can.usage,
            retain: can.retain,
            max_object: can.object_len_max,
            parallel: Some(can.parallel),
        }
    }
}

impl From<&Caps> for Capabilities {
    fn from(caps: &Caps) -> Self {
        let visible = |when: &Option<String>| match when.as_deref() {
            Some("strong") => Visibility::Strong,
            _ => Visibility::Eventual,
        };
        Self {
            create: match caps.create.as_deref() {
                Some("atomic") => CreateGuarantee::Atomic,
                Some("advisory") => CreateGuarantee::Advisory,
                _ => CreateGuarantee::None,
            },
            read_after_write: visible(&caps.read_after_write),
            list_after_write: visible(&caps.list_after_write),
            range: caps.range,
            delete_is_final: caps.delete.as_deref() == Some("final"),
            usage: caps.usage,
            retain: caps.retain,
            object_len_max: caps.max_object,
            parallel: caps.parallel.unwrap_or(1).clamp(1, 32),
        }
    }
}

impl From<Usage> for UsageAnswer {
    fn from(usage: Usage) -> Self {
        Self { used: usage.used, total: usage.total, free: usage.free }
    }
}

impl From<UsageAnswer> for Usage {
    fn from(usage: UsageAnswer) -> Self {
        Self { used: usage.used, total: usage.total, free: usage.free }
    }
}

/// The value of `Content-Digest` (RFC 9530) for a body with this SHA-256.
pub fn content_digest(sha256: &[u8; 32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "sha-256=:".to_owned();
    for group in sha256.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(*group.get(at).unwrap_or(&0)));
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if digit > group.len() { '=' } else { char::from(DIGITS[value as usize]) });
        }
    }
    text.push(':');
    text
}

/// HTTP status of an error: for people with `curl`, and for plugins that say no kind.
pub fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::NotFound => 404,
        ErrorKind::AlreadyExists => 412,
        ErrorKind::Transient | ErrorKind::Offline => 503,
        ErrorKind::IncompleteListing | ErrorKind::UntrustedListing => 502,
        ErrorKind::Throttled => 429,
        ErrorKind::Auth => 401,
        ErrorKind::Permission => 403,
        ErrorKind::Quota => 507,
        ErrorKind::TooLarge => 413,
        ErrorKind::Corrupt => 422,
        ErrorKind::Retained => 423,
        ErrorKind::Unsupported => 501,
        ErrorKind::Invalid => 400,
    }
}

/// The kind that a status means by itself.
pub fn kind_of(status: u16) -> ErrorKind {
    match status {
        401 => ErrorKind::Auth,
        403 => ErrorKind::Permission,
        404 => ErrorKind::NotFound,
        412 => ErrorKind::AlreadyExists,
        413 => ErrorKind::TooLarge,
        422 => ErrorKind::Corrupt,
        423 => ErrorKind::Retained,
        429 => ErrorKind::Throttled,
        501 => ErrorKind::Unsupported,
        507 => ErrorKind::Quota,
        400..=499 => ErrorKind::Invalid,
        _ => ErrorKind::Transient,
    }
}

impl Problem {
    /// What a plugin answers for this error: the words of its causes, or its own where it has none. The host adds those of
    /// the kind again.
    pub fn of(error: &StoreError) -> Self {
        let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
        let causes: Vec<String> = causes.map(ToString::to_string).collect();
        let detail = if causes.is_empty() { error.to_string() } else { causes.join(": ") };
        let retry_after_s = match error {
            StoreError::Throttled { retry_after } => retry_after.map(|wait| wait.as_secs().max(1)),
            _ => None,
        };
        Self { kind: error.kind().as_str().to_owned(), detail, retry_after_s }
    }

    /// The error a host makes of a plugin's answer to a call about `key` with a body of `len` bytes. Where the body says no
    /// kind that is known here, the status does.
    pub fn into_error(self, status: u16, key: Option<&StoreKey>, len: u64) -> StoreError {
        let kind = ErrorKind::ALL.into_iter().find(|kind| kind.as_str() == self.kind);
        let detail = if self.detail.is_empty() {
            format!("status {status}")
        } else {
            crate::key::shown_long(&self.detail)
        };
        let about_key = |error: fn(StoreKey) -> StoreError| match key {
            Some(key) => error(key.clone()),
            None => StoreError::Invalid { reason: detail.clone() },
        };
        match kind.unwrap_or_else(|| kind_of(status)) {
            ErrorKind::NotFound => about_key(|key| StoreError::NotFound { key }),
            ErrorKind::AlreadyExists => about_key(|key| StoreError::AlreadyExists { key }),
            ErrorKind::Corrupt => about_key(|key| StoreError::Corrupt { key }),
            ErrorKind::Retained => about_key(|key| StoreError::Retained { key }),
            ErrorKind::Transient => StoreError::Transient(detail.into()),
            ErrorKind::Offline => StoreError::Offline(detail.into()),
            ErrorKind::Throttled => {
                StoreError::Throttled { retry_after: self.retry_after_s.map(Duration::from_secs) }
            }
            ErrorKind::Auth => StoreError::Auth(detail.into()),
            ErrorKind::Permission => StoreError::Permission(detail.into()),
            ErrorKind::Quota => StoreError::Quota(detail.into()),
            ErrorKind::TooLarge => StoreError::TooLarge { len, len_max: None },
            ErrorKind::IncompleteListing | ErrorKind::UntrustedListing => {
                StoreError::IncompleteListing { reason: detail }
            }
            ErrorKind::Unsupported => StoreError::Unsupported { what: "do this" },
            ErrorKind::Invalid => StoreError::Invalid { reason: detail },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn every_error_survives_the_way_through_its_problem() {
        let key = StoreKey::try_from("a/log/1").unwrap();
        for kind in ErrorKind::ALL {
            let problem =
                Problem { kind: kind.as_str().to_owned(), detail: "why".to_owned(), retry_after_s: Some(7) };
            let back = problem.into_error(status_of(kind), Some(&key), 5);
            // what a listing names is judged by the host, so a plugin's word for it is: the listing failed
            let expected =
                if kind == ErrorKind::UntrustedListing { ErrorKind::IncompleteListing } else { kind };
            assert_eq!(back.kind(), expected);
            if let StoreError::Throttled { retry_after } = back {
                assert_eq!(retry_after, Some(Duration::from_secs(7)));
            }
        }
    }

    #[test]
    fn a_status_alone_says_the_kind() {
        let key = StoreKey::try_from("a/log/1").unwrap();
        for kind in ErrorKind::ALL {
            let back = Problem::default().into_error(status_of(kind), Some(&key), 5).kind();
            let expected = match kind {
                ErrorKind::Offline | ErrorKind::IncompleteListing | ErrorKind::UntrustedListing => {
                    ErrorKind::Transient
                }
                other => other,
            };
            assert_eq!(back, expected, "{kind}");
        }
        assert_eq!(Problem::default().into_error(500, None, 0).kind(), ErrorKind::Transient);
        assert_eq!(Problem::default().into_error(418, None, 0).kind(), ErrorKind::Invalid);
    }

    #[test]
    fn capabilities_that_are_not_said_are_the_least() {
        let least = Capabilities::from(&Caps::default());
        assert_eq!(least.create, CreateGuarantee::None);
        assert_eq!(least.read_after_write, Visibility::Eventual);
        assert_eq!((least.parallel, least.delete_is_final, least.retain), (1, false, false));
    }

    #[test]
    fn capabilities_survive_the_way() {
        let can = Capabilities {
            create: CreateGuarantee::Advisory,
            read_after_write: Visibility::Strong,
            list_after_write: Visibility::Eventual,
            range: true,
            delete_is_final: true,
            usage: true,
            retain: true,
            object_len_max: Some(5),
            parallel: 4,
        };
        let text = serde_json::to_string(&Caps::from(can)).unwrap();
        let caps: Caps = serde_json::from_str(&text).unwrap();
        assert_eq!(Capabilities::from(&caps), can);
    }

    /// The example of RFC 9530, section 2: the body `{"hello": "world"}` and a line feed.
    #[test]
    fn a_digest_is_written_as_in_its_specification() {
        let sha256 = [
            0x44, 0xaf, 0xf4, 0xab, 0x2d, 0x7c, 0x32, 0x50, 0x52, 0x56, 0x75, 0xa0, 0x8f, 0x0c, 0xfa, 0x95,
            0x91, 0x16, 0x8c, 0xff, 0xe5, 0x17, 0x91, 0xc5, 0xf5, 0xbb, 0xc4, 0x17, 0xc1, 0x5a, 0x6c, 0x38,
        ];
        assert_eq!(content_digest(&sha256), "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:");
    }

    #[test]
    fn a_line_of_a_listing_is_an_object_or_the_end() {
        let object: ListLine = serde_json::from_str(r#"{"k":"a/log/1","n":5,"t":"ignored"}"#).unwrap();
        assert_eq!(object, ListLine::Object { k: "a/log/1".to_owned(), n: 5 });
        let end: ListLine = serde_json::from_str(r#"{"end":true,"count":1}"#).unwrap();
        assert_eq!(end, ListLine::End { end: true, count: 1 });
        serde_json::from_str::<ListLine>(r#"{"end":true}"#).unwrap_err();
    }
}
