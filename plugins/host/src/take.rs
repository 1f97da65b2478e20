//! What is made of a plugin's answer, and what of it is not believed.

use std::future::Future;
use std::ops::Range;

use bytes::Bytes;
use chatkeep_store::listing::ListingCheck;
use chatkeep_store::protocol::{JSON_LEN_MAX, ListLine};
use chatkeep_store::{ListPrefix, ObjectMeta, Result, StoreError, clamp_range};
use hyper::StatusCode;
use hyper::header::CONTENT_RANGE;

use crate::progress::Progress;
use crate::store::PluginStore;
use crate::wire::Answer;

/// Longest object that is read, in bytes; as in the other end of the protocol.
pub(crate) const OBJECT_LEN_MAX: u64 = 256 << 20;
/// Longest line of a listing, in bytes: a key, a length, and room for fields we do not know.
const LINE_LEN_MAX: usize = 1024;

/// Takes the answer to one kind of request.
pub(crate) trait Take: Send {
    /// What comes of it.
    type Taken: Send;

    /// Whether an answer with this status is one to take; every other is an error.
    fn is_good(&self, status: StatusCode) -> bool {
        status == StatusCode::OK
    }

    fn take(
        self,
        store: &PluginStore,
        answer: Answer,
        progress: &Progress,
    ) -> impl Future<Output = Result<Self::Taken>> + Send;
}

/// An answer that has only a status: this one.
pub(crate) struct Nothing(pub(crate) StatusCode);

impl Take for Nothing {
    type Taken = ();

    fn is_good(&self, status: StatusCode) -> bool {
        status == self.0
    }

    async fn take(self, store: &PluginStore, answer: Answer, progress: &Progress) -> Result<()> {
        answer.collect(&store.lines, JSON_LEN_MAX as u64, progress).await.map(drop)
    }
}

/// A JSON text.
pub(crate) struct Json;

impl Take for Json {
    type Taken = Bytes;

    async fn take(self, store: &PluginStore, answer: Answer, progress: &Progress) -> Result<Bytes> {
        answer.collect(&store.lines, JSON_LEN_MAX as u64, progress).await
    }
}

/// The length of an object.
pub(crate) struct Length;

impl Take for Length {
    type Taken = u64;

    async fn take(self, store: &PluginStore, answer: Answer, progress: &Progress) -> Result<u64> {
        let len = answer.announced();
        answer.skip(&store.lines, progress).await?;
        len.ok_or_else(|| store.lie("it answers HEAD without a length"))
    }
}

/// An object, or the part of it that was asked for.
pub(crate) struct Object(pub(crate) Option<Range<u64>>);

impl Take for Object {
    type Taken = Bytes;

    fn is_good(&self, status: StatusCode) -> bool {
        let of_a_part = [StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE];
        status == StatusCode::OK || (self.0.is_some() && of_a_part.contains(&status))
    }

    async fn take(self, store: &PluginStore, answer: Answer, progress: &Progress) -> Result<Bytes> {
        let status = answer.status();
        let sent = answer.head.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let sent = sent.and_then(parse_content_range);
        let len_max = match (&self.0, status) {
            (Some(_), StatusCode::RANGE_NOT_SATISFIABLE) => JSON_LEN_MAX as u64,
            (Some(range), StatusCode::PARTIAL_CONTENT) => (range.end - range.start).min(OBJECT_LEN_MAX),
            _ => OBJECT_LEN_MAX,
        };
        let body = answer.collect(&store.lines, len_max, progress).await?;
        store.control.received(body.len());
        let Some(range) = self.0 else { return Ok(body) };
        match status {
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(Bytes::new()),
            StatusCode::OK => {
                // it does not know ranges, and sends the whole
                let part = clamp_range(&range, body.len() as u64)?;
                Ok(body.slice(part.start as usize..part.end as usize))
            }
            _ if sent.is_some_and(|sent| sent.fits(&range, body.len() as u64)) => Ok(body),
            _ => Err(store.lie("it answers with another range than it was asked for")),
        }
    }
}

/// A listing, line by line.
pub(crate) struct Listing(pub(crate) ListPrefix);

impl Take for Listing {
    type Taken = Vec<ObjectMeta>;

    async fn take(
        self,
        store: &PluginStore,
        mut answer: Answer,
        progress: &Progress,
    ) -> Result<Vec<ObjectMeta>> {
        let mut lines =
            ListingLines { check: ListingCheck::new(self.0.as_str())?, line: Vec::new(), end: None };
        loop {
            match answer.next(progress).await {
                Ok(Some(part)) => {
                    store.control.received(part.len());
                    lines.push(&part)?;
                }
                Ok(None) => break,
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    return Err(incomplete(&format!("it broke off: {}", cause.unwrap_or_default())));
                }
            }
        }
        answer.done(&store.lines);
        lines.finish()
    }
}

struct ListingLines {
    check: ListingCheck,
    line: Vec<u8>,
    end: Option<u64>,
}

impl ListingLines {
    fn push(&mut self, part: &[u8]) -> Result<()> {
        for piece in part.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > LINE_LEN_MAX {
                return Err(incomplete("it has a line that is too long"));
            }
            self.line.extend_from_slice(piece);
            if !piece.ends_with(b"\n") {
                continue;
            }
            if self.end.is_some() {
                return Err(incomplete("it goes on after its end"));
            }
            match serde_json::from_slice(&self.line).map_err(|_| incomplete("it has a line that is none"))? {
                ListLine::Object { k, n } => self.check.push(&k, n)?,
                ListLine::End { end: true, count } => self.end = Some(count),
                ListLine::End { end: false, .. } => return Err(incomplete("it says that it has no end")),
            }
            self.line.clear();
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<ObjectMeta>> {
        if !self.line.is_empty() {
            return Err(incomplete("its last line is cut off"));
        }
        self.check.finish(self.end)
    }
}

fn incomplete(reason: &str) -> StoreError {
    StoreError::IncompleteListing { reason: reason.to_owned() }
}

/// The header `Content-Range`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    whole: Option<u64>,
}

impl ContentRange {
    /// Whether this, with a body of `len` bytes, is an answer to `range`: from its start, and shorter only where the
    /// object ends.
    fn fits(self, range: &Range<u64>, len: u64) -> bool {
        let Some(last) = len.checked_sub(1).map(|more| range.start.saturating_add(more)) else {
            return false;
        };
        let ends_here = self.whole.is_none_or(|whole| whole == last + 1);
        self.first == range.start && self.last == last && (ends_here || last + 1 == range.end)
    }
}

/// Reads `bytes FIRST-LAST/WHOLE`, where the whole may be `*`.
fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let whole = if whole == "*" { None } else { Some(whole.parse().ok()?) };
    Some(ContentRange { first: first.parse().ok()?, last: last.parse().ok()?, whole })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_range_is_believed_only_where_it_begins_as_asked_and_ends_with_the_object() {
        let fits = |text: &str, range: Range<u64>, len: u64| {
            parse_content_range(text).is_some_and(|sent| sent.fits(&range, len))
        };
        assert!(fits("bytes 5-9/100", 5..10, 5));
        assert!(fits("bytes 5-9/*", 5..10, 5));
        assert!(fits("bytes 5-7/8", 5..10, 3));
        assert!(fits("bytes 5-7/*", 5..10, 3));
        for (text, range, len) in [
            ("bytes 0-4/100", 5..10, 5),
            ("bytes 5-7/100", 5..10, 3),
            ("bytes 5-9/100", 5..10, 3),
            ("bytes 5-4/100", 5..10, 0),
            ("bytes 9-5/100", 9..10, 1),
            ("bytes 5-18446744073709551615/*", 5..u64::MAX, 5),
            ("bytes */100", 5..10, 5),
            ("5-9", 5..10, 5),
        ] {
            assert!(!fits(text, range, len), "{text}");
        }
    }
}
