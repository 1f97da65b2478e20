//! What a server or the way to it says, as what the caller does next.

use std::time::{Duration, SystemTime};

use chatkeep_store::StoreError;
use reqwest::header::{DATE, RETRY_AFTER};
use reqwest::{StatusCode, Url};

use crate::http::Answer;

/// Sorts an answer that is not the one hoped for; `what` completes "cannot …".
pub(crate) fn of_answer(answer: &Answer, asked: &Url, what: &str) -> StoreError {
    let status = answer.status;
    let cause = format!("cannot {what}: the server answers {status}").into();
    match status.as_u16() {
        300..=399 => moved(answer, asked),
        401 => StoreError::Auth(cause),
        403 => StoreError::Permission(cause),
        // 501: of a server, not of a proxy that waits for it
        405 | 501 => StoreError::Invalid {
            reason: format!(
                "cannot {what}: the server answers {status}; is WebDAV switched on at this address?"
            ),
        },
        413 => StoreError::TooLarge { len: 0, len_max: None },
        423 => {
            StoreError::Transient(format!("cannot {what}: somebody else has locked it at the server").into())
        }
        429 => StoreError::Throttled { retry_after: retry_after(answer) },
        503 => match retry_after(answer) {
            None => StoreError::Transient(cause),
            retry_after => StoreError::Throttled { retry_after },
        },
        507 => StoreError::Quota(cause),
        _ => StoreError::Transient(cause),
    }
}

/// Sorts a request that got no answer.
pub(crate) fn of_transport(error: &reqwest::Error) -> StoreError {
    let text = chain(error);
    // a certificate that does not hold is no lack of a network, and whoever set the store up must hear of it
    if error.is_connect() && !text.contains("certificate") {
        StoreError::Offline(text.into())
    } else {
        StoreError::Transient(text.into())
    }
}

/// An error with everything below it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn moved(answer: &Answer, asked: &Url) -> StoreError {
    let mut reason = format!("the server answers {} instead of doing it", answer.status);
    if let Some(url) = answer.leads_to(asked) {
        let shown: String = url.as_str().chars().take(300).flat_map(char::escape_debug).collect();
        reason = format!("the server says that the store is at `{shown}`: its URL has to be changed");
    }
    StoreError::Invalid { reason }
}

/// How long the server wants to be left alone: it writes seconds, or a time of its own clock.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let text = answer.header(RETRY_AFTER)?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    Some(until.duration_since(clock_of(answer)?).unwrap_or_default())
}

/// What the clock of the server says.
pub(crate) fn clock_of(answer: &Answer) -> Option<SystemTime> {
    httpdate::parse_http_date(answer.header(DATE)?).ok()
}

/// Whether an answer to a PUT or MOVE may say that a folder on the way is missing: with 409, nginx with 404, both nginx and
/// Apache with 500.
pub(crate) fn lacks_folder(status: StatusCode) -> bool {
    matches!(status, StatusCode::CONFLICT | StatusCode::NOT_FOUND | StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use bytes::Bytes;
    use chatkeep_store::ErrorKind;
    use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)]) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect::<HeaderMap>();
        Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::new() }
    }

    fn sort(status: u16, headers: &[(&'static str, &'static str)]) -> StoreError {
        of_answer(&answer(status, headers), &Url::parse("https://h/a/b").unwrap(), "test")
    }

    #[test]
    fn each_status_leads_to_what_helps() {
        for (status, kind) in [
            (401, ErrorKind::Auth),
            (403, ErrorKind::Permission),
            (405, ErrorKind::Invalid),
            (409, ErrorKind::Transient),
            (413, ErrorKind::TooLarge),
            (423, ErrorKind::Transient),
            (429, ErrorKind::Throttled),
            (500, ErrorKind::Transient),
            (501, ErrorKind::Invalid),
            (502, ErrorKind::Transient),
            (503, ErrorKind::Transient),
            (507, ErrorKind::Quota),
        ] {
            assert_eq!(sort(status, &[]).kind(), kind, "{status}");
        }
    }

    #[test]
    fn a_pause_is_read_as_seconds_or_as_a_time_of_the_servers_clock() {
        let pause = |headers: &[(&'static str, &'static str)]| match sort(503, headers) {
            StoreError::Throttled { retry_after } => retry_after,
            _ => None,
        };
        assert_eq!(pause(&[("retry-after", "120")]), Some(Duration::from_mins(2)));
        let (date, until) = ("Thu, 26 Nov 2026 12:00:00 GMT", "Thu, 26 Nov 2026 12:01:00 GMT");
        assert_eq!(pause(&[("retry-after", until), ("date", date)]), Some(Duration::from_mins(1)));
        assert_eq!(pause(&[("retry-after", date), ("date", until)]), Some(Duration::ZERO));
        assert_eq!(pause(&[("retry-after", "soon")]), None);
    }

    #[test]
    fn a_store_that_moved_is_named_with_its_new_place() {
        let error = sort(301, &[("location", "https://new.example/a/b")]);
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("`https://new.example/a/b`"), "{error}");
    }
}
