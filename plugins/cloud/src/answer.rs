//! From what a server answered, or did not, to an error that says what to do. Pure.
//!
//! The three services have names for their errors, and S3 has dozens of imitators that use the same names with other
//! statuses: the name decides, the status only where there is none that is known here. Nothing of a server's prose is
//! passed on: it repeats requests, and with them what they were signed with.

use std::time::Duration;

use chatkeep_store::{StoreError, StoreKey};
use quick_xml::Reader;
use quick_xml::events::Event;

/// Longest wait a server can ask for; beyond it a mistake or malice is likelier.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);

/// An answer that is no success.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The service's name of the error, or empty.
    pub(crate) code: String,
    /// The prose was about an object lock.
    pub(crate) about_lock: bool,
    /// The prose was about a limit that the user has set on costs (Backblaze).
    pub(crate) about_cap: bool,
    pub(crate) retry_after: Option<Duration>,
    /// Where the bucket is, if the answer was that it is not here.
    pub(crate) region: Option<String>,
}

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// There was an answer.
    Answer(Answer),
    /// Nobody could be asked.
    Unreachable(String),
    /// Nothing, or next to nothing, arrived for too long.
    Stalled,
    /// The connection ended too early.
    Broken(String),
    /// A page of a listing is not whole, or contradicts itself.
    Listing(String),
    /// The request was not sent.
    Refused(String),
}

/// What was asked, for the words of an error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) key: Option<&'a StoreKey>,
    /// Length of what was to be stored.
    pub(crate) len: u64,
}

impl Answer {
    /// Reads status, headers and the beginning of the body.
    pub(crate) fn read(status: u16, headers: &http::HeaderMap, body: &[u8]) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let said = Said::read(body);
        let code = header("x-ms-error-code").map(str::to_owned).unwrap_or(said.code);
        let prose = said.message.to_ascii_lowercase();
        let retry_after = header("retry-after").and_then(|text| text.trim().parse().ok());
        let region = header("x-amz-bucket-region").map(str::to_owned).or(said.region);
        Self {
            status,
            code: clean(&code),
            about_lock: prose.contains("object lock") || prose.contains("worm protected"),
            about_cap: prose.contains("cap exceeded"),
            retry_after: retry_after.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX)),
            region: region.map(|region| clean(&region)).filter(|region| !region.is_empty()),
        }
    }

    /// Whether asking again within a second or two makes sense: a hiccup, and nothing said about waiting.
    pub(crate) fn is_hiccup(&self) -> bool {
        matches!(self.status, 408 | 500 | 502 | 503 | 504)
            && self.retry_after.is_none()
            && !self.is_throttling()
    }

    fn is_throttling(&self) -> bool {
        const CODES: [&str; 9] = [
            "SlowDown",
            "SlowDownRead",
            "SlowDownWrite",
            "ServerBusy",
            "TooManyRequests",
            "RequestLimitExceeded",
            "Throttling",
            "ThrottlingException",
            "BandwidthLimitExceeded",
        ];
        self.status == 429
            || CODES.contains(&self.code.as_str())
            || (self.status == 503 && self.retry_after.is_some())
    }

    /// Status and name, for logs.
    fn shown(&self) -> String {
        if self.code.is_empty() {
            format!("status {}", self.status)
        } else {
            format!("status {} {}", self.status, self.code)
        }
    }

    fn error(&self, asked: Asked<'_>) -> StoreError {
        if self.is_throttling() {
            return StoreError::Throttled { retry_after: self.retry_after };
        }
        if let (true, Some(key)) = (self.about_lock, asked.key) {
            return StoreError::Retained { key: key.clone() };
        }
        if self.about_cap {
            return StoreError::Quota(self.shown().into());
        }
        self.by_code(asked).unwrap_or_else(|| self.by_status(asked))
    }

    fn by_code(&self, asked: Asked<'_>) -> Option<StoreError> {
        let key = || asked.key.cloned();
        let shown = || self.shown();
        Some(match self.code.as_str() {
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "RequestTimeTooSkewed"
            | "RequestExpired"
            | "InvalidSecurity"
            | "AuthenticationFailed"
            | "InvalidAuthenticationInfo"
            | "NoAuthenticationInformation"
            | "AuthenticationRequired"
            | "MissingSecurityHeader" => StoreError::Auth(shown().into()),
            "AccessDenied"
            | "AllAccessDisabled"
            | "AccountProblem"
            | "NotSignedUp"
            | "AccountIsDisabled"
            | "AuthorizationFailure"
            | "AuthorizationPermissionMismatch"
            | "InsufficientAccountPermissions"
            | "AuthorizationServiceMismatch"
            | "AuthorizationResourceTypeMismatch"
            | "PublicAccessNotPermitted" => StoreError::Permission(shown().into()),
            "NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted" => {
                invalid(format!("the bucket `{}` does not exist", asked.bucket))
            }
            "NoSuchKey" | "BlobNotFound" => StoreError::NotFound { key: key()? },
            "QuotaExceeded"
            | "StorageQuotaExceeded"
            | "BucketQuotaExceeded"
            | "XMinioStorageFull"
            | "XMinioAdminBucketQuotaExceeded"
            | "InsufficientStorage"
            | "UserSuspended" => StoreError::Quota(shown().into()),
            "EntityTooLarge" | "RequestBodyTooLarge" | "MaxMessageLengthExceeded" => {
                StoreError::TooLarge { len: asked.len, len_max: None }
            }
            "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "Md5Mismatch" => {
                StoreError::Corrupt { key: key()? }
            }
            "ObjectLocked"
            | "RetentionPolicyNotMet"
            | "ObjectUnderActiveHold"
            | "BlobImmutableDueToPolicy" => StoreError::Retained { key: key()? },
            "PreconditionFailed" | "ConditionNotMet" | "BlobAlreadyExists" => {
                StoreError::AlreadyExists { key: key()? }
            }
            "IncompleteBody"
            | "RequestTimeout"
            | "OperationAborted"
            | "ConditionalRequestConflict"
            | "OperationTimedOut"
            | "InternalError" => StoreError::Transient(shown().into()),
            "NotImplemented" => StoreError::Unsupported { what: "do this" },
            "InvalidObjectState" => {
                invalid("the object was moved into a class that cannot be read at once".to_owned())
            }
            "PermanentRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException"
            | "InvalidRegionName" => self.elsewhere(asked.bucket),
            "ObjectLockConfigurationNotFoundError" => invalid("the bucket has no object lock".to_owned()),
            _ => return None,
        })
    }

    fn by_status(&self, asked: Asked<'_>) -> StoreError {
        let shown = self.shown();
        match (self.status, asked.key) {
            (401, _) => StoreError::Auth(shown.into()),
            (402 | 507, _) => StoreError::Quota(shown.into()),
            (403, _) => StoreError::Permission(shown.into()),
            (404, Some(key)) => StoreError::NotFound { key: key.clone() },
            (404, None) => invalid(format!("the bucket `{}` does not exist", asked.bucket)),
            (412, Some(key)) => StoreError::AlreadyExists { key: key.clone() },
            (413, _) => StoreError::TooLarge { len: asked.len, len_max: None },
            (405 | 501, _) => StoreError::Unsupported { what: "do this" },
            (301 | 302 | 308, _) => self.elsewhere(asked.bucket),
            (307 | 408 | 409 | 425 | 500.., _) => StoreError::Transient(shown.into()),
            _ => invalid(format!("the store refused the request: {shown}")),
        }
    }

    fn elsewhere(&self, bucket: &str) -> StoreError {
        invalid(match &self.region {
            Some(region) => {
                format!("the bucket `{bucket}` is elsewhere: set the option `region` to `{region}`")
            }
            None => format!("the bucket `{bucket}` is elsewhere: check the options `region` and `endpoint`"),
        })
    }
}

impl Fault {
    /// The error for this.
    pub(crate) fn error(&self, asked: Asked<'_>) -> StoreError {
        match self {
            Self::Answer(answer) => answer.error(asked),
            Self::Unreachable(text) => StoreError::Offline(text.clone().into()),
            Self::Stalled => StoreError::Offline("nothing arrived for too long".into()),
            Self::Broken(text) => StoreError::Transient(text.clone().into()),
            Self::Listing(reason) => StoreError::IncompleteListing { reason: reason.clone() },
            Self::Refused(reason) => invalid(reason.clone()),
        }
    }
}

fn invalid(reason: String) -> StoreError {
    StoreError::Invalid { reason }
}

/// A name, not prose: letters, digits and what joins them.
fn clean(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(64).collect()
}

/// What an `<Error>` of S3 and its imitators says.
#[derive(Default)]
struct Said {
    code: String,
    message: String,
    region: Option<String>,
}

impl Said {
    /// Takes what there is: an error page of something in between is no XML.
    fn read(body: &[u8]) -> Self {
        let mut said = Self::default();
        let mut reader = Reader::from_reader(body);
        let mut inside = Vec::new();
        loop {
            match reader.read_event() {
                Ok(Event::Start(start)) => inside = start.local_name().as_ref().to_vec(),
                Ok(Event::Text(text)) => {
                    let Ok(text) = text.decode() else { break };
                    match inside.as_slice() {
                        b"Code" if said.code.is_empty() => said.code = text.into_owned(),
                        b"Message" => said.message.push_str(&text),
                        b"Region" => said.region = Some(text.into_owned()),
                        _ => {}
                    }
                }
                Ok(Event::End(_)) => inside.clear(),
                Ok(Event::Eof) | Err(_) => break,
                Ok(_) => {}
            }
        }
        said
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use chatkeep_store::ErrorKind;

    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer::read(status, &http::HeaderMap::new(), body.as_bytes())
    }

    fn error_of(answer: Answer) -> StoreError {
        let key = StoreKey::try_from("a/log/1").unwrap();
        Fault::Answer(answer).error(Asked { bucket: "vault", key: Some(&key), len: 7 })
    }

    fn kind(status: u16, code: &str) -> ErrorKind {
        error_of(answer(status, &format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>"))).kind()
    }

    #[test]
    fn the_name_of_an_error_decides_whatever_the_status() {
        for (status, code, expected) in [
            (403, "InvalidAccessKeyId", ErrorKind::Auth),
            (403, "SignatureDoesNotMatch", ErrorKind::Auth),
            (400, "ExpiredToken", ErrorKind::Auth),
            (403, "RequestTimeTooSkewed", ErrorKind::Auth),
            (403, "AuthenticationFailed", ErrorKind::Auth),
            (403, "AccessDenied", ErrorKind::Permission),
            (403, "AuthorizationPermissionMismatch", ErrorKind::Permission),
            (404, "NoSuchKey", ErrorKind::NotFound),
            (404, "NoSuchBucket", ErrorKind::Invalid),
            (404, "ContainerNotFound", ErrorKind::Invalid),
            (503, "SlowDown", ErrorKind::Throttled),
            (503, "ServerBusy", ErrorKind::Throttled),
            (500, "XMinioStorageFull", ErrorKind::Quota),
            (400, "EntityTooLarge", ErrorKind::TooLarge),
            (400, "BadDigest", ErrorKind::Corrupt),
            (400, "RequestTimeout", ErrorKind::Transient),
            (409, "ConditionalRequestConflict", ErrorKind::Transient),
            (409, "BlobAlreadyExists", ErrorKind::AlreadyExists),
            (409, "BlobImmutableDueToPolicy", ErrorKind::Retained),
            (403, "RetentionPolicyNotMet", ErrorKind::Retained),
            (501, "NotImplemented", ErrorKind::Unsupported),
            (403, "InvalidObjectState", ErrorKind::Invalid),
            (400, "AuthorizationHeaderMalformed", ErrorKind::Invalid),
        ] {
            assert_eq!(kind(status, code), expected, "{status} {code}");
        }
    }

    #[test]
    fn without_a_name_the_status_decides() {
        for (status, expected) in [
            (400, ErrorKind::Invalid),
            (401, ErrorKind::Auth),
            (403, ErrorKind::Permission),
            (404, ErrorKind::NotFound),
            (409, ErrorKind::Transient),
            (412, ErrorKind::AlreadyExists),
            (413, ErrorKind::TooLarge),
            (429, ErrorKind::Throttled),
            (500, ErrorKind::Transient),
            (501, ErrorKind::Unsupported),
            (502, ErrorKind::Transient),
            (503, ErrorKind::Transient),
            (507, ErrorKind::Quota),
        ] {
            assert_eq!(kind(status, ""), expected, "{status}");
            assert_eq!(kind(status, "NeverHeardOf"), expected, "{status}");
            assert_eq!(error_of(answer(status, "<html>Bad gateway")).kind(), expected, "{status}");
        }
    }

    #[test]
    fn a_listing_of_nothing_is_not_a_bucket_that_is_missing() {
        let asked = Asked { bucket: "vault", key: None, len: 0 };
        let error = Fault::Answer(answer(404, "")).error(asked);
        assert_eq!(error.to_string(), "the bucket `vault` does not exist");
    }

    #[test]
    fn how_long_to_wait_is_taken_from_the_answer_but_not_for_days() {
        let wait = |seconds: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("retry-after", seconds.parse().unwrap());
            match error_of(Answer::read(503, &headers, b"")) {
                StoreError::Throttled { retry_after } => retry_after,
                other => panic!("{other}"),
            }
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("99999999999"), Some(RETRY_AFTER_MAX));
    }

    #[test]
    fn a_lock_and_a_limit_on_costs_are_told_from_a_lack_of_permission_by_the_prose() {
        let body =
            |message: &str| format!("<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>");
        let locked = answer(403, &body("Access Denied because object protected by object lock."));
        assert_eq!(error_of(locked).kind(), ErrorKind::Retained);
        let capped = answer(403, &body("Cannot upload files, storage cap exceeded. See the Caps page."));
        assert_eq!(error_of(capped).kind(), ErrorKind::Quota);
    }

    #[test]
    fn a_bucket_elsewhere_is_named_with_its_region() {
        let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>";
        let error = error_of(answer(400, body)).to_string();
        assert!(error.contains("`region` to `eu-west-1`"), "{error}");
    }

    #[test]
    fn the_prose_of_a_server_is_not_passed_on() {
        let body = "<Error><Code>SignatureDoesNotMatch\u{1b}[2J</Code><Message>hunter2</Message>\
                    <StringToSign>hunter2</StringToSign></Error>";
        let error = error_of(answer(403, body));
        let shown = format!("{error:?}");
        assert!(!shown.contains("hunter2") && !shown.contains('\u{1b}'), "{shown}");
        assert!(!format!("{:?}", answer(403, body)).contains("hunter2"));
    }

    #[test]
    fn only_a_hiccup_is_asked_again_at_once() {
        assert!(answer(500, "").is_hiccup() && answer(503, "").is_hiccup());
        for (status, body) in
            [(503, "<Error><Code>SlowDown</Code></Error>"), (429, ""), (501, ""), (507, ""), (404, "")]
        {
            assert!(!answer(status, body).is_hiccup(), "{status} {body}");
        }
    }
}
