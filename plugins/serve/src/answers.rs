//! Answers, and the two shapes their bodies have: in one piece, and line by line.

use std::convert::Infallible;

use bytes::Bytes;
use chatkeep_store::protocol::{ListLine, PROBLEM, Problem, status_of};
use chatkeep_store::{ObjectMeta, StoreError};
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

pub(crate) type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Lines of a listing that go out together: about 64 KiB.
const LINES_AT_ONCE: usize = 1000;

/// An answer with this body.
pub(crate) fn answer(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = status;
    answer
}

/// An answer to `HEAD`: the length of what is not sent.
pub(crate) fn length(len: u64) -> Answer {
    let mut answer = answer(StatusCode::OK, Bytes::new());
    answer.headers_mut().insert(CONTENT_LENGTH, len.into());
    answer
}

/// An answer in JSON. What is said in this protocol can be written as JSON.
pub(crate) fn json(body: &impl serde::Serialize) -> Answer {
    let body = serde_json::to_vec(body).expect("the types of the protocol have text as keys");
    let mut answer = answer(StatusCode::OK, body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// What a failed call is answered with.
pub(crate) fn problem(error: &StoreError) -> Answer {
    let problem = Problem::of(error);
    let body = serde_json::to_vec(&problem).expect("a problem is text and a number");
    let status = StatusCode::from_u16(status_of(error.kind())).expect("every kind has a valid status");
    let mut answer = answer(status, body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(PROBLEM, HeaderValue::from_static(error.kind().as_str()));
    if let Some(seconds) = problem.retry_after_s {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    answer
}

/// A listing, line by line, with its end.
pub(crate) fn listing(objects: Vec<ObjectMeta>) -> Answer {
    let count = objects.len() as u64;
    let blocks = stream::unfold(Some(objects.into_iter()), move |rest| async move {
        let mut rest = rest?;
        let mut text = Vec::new();
        for object in rest.by_ref().take(LINES_AT_ONCE) {
            line(&mut text, &ListLine::Object { k: object.key.to_string(), n: object.len });
        }
        let goes_on = rest.len() > 0;
        if !goes_on {
            line(&mut text, &ListLine::End { end: true, count });
        }
        Some((Ok(Frame::data(Bytes::from(text))), goes_on.then_some(rest)))
    });
    let mut answer = Response::new(BoxBody::new(StreamBody::new(blocks)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    answer
}

fn line(text: &mut Vec<u8>, line: &ListLine) {
    serde_json::to_writer(&mut *text, line).expect("a line is text and numbers, and memory takes it");
    text.push(b'\n');
}
