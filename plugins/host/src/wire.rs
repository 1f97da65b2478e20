//! HTTP/1.1 on the socket of a plugin: connections that are kept, bodies that go out in pieces, answers that are bounded.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use chatkeep_store::StoreError;
use chatkeep_store::error::Cause;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::StatusCode;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_LENGTH, HOST, HeaderValue};
use hyper::http::request;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use crate::meter::{CHUNK_LEN, StoreControl};
use crate::process::lock;
use crate::progress::Progress;

/// The most that is made room for before anything has come, in bytes: an announced length may be a lie.
const ROOM_FIRST: u64 = 16 << 20;

pub(crate) type Body = UnsyncBoxBody<Bytes, Cause>;

/// Connections to one process that wait for their next request.
#[derive(Default)]
pub(crate) struct Lines(Mutex<Vec<Line>>);

/// A connection. Dropping it closes it, also in the middle of a body: that is how a call is broken off.
struct Line {
    sender: SendRequest<Body>,
    task: AbortHandle,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer of which only the head has come.
pub(crate) struct Answer {
    pub(crate) head: hyper::http::response::Parts,
    body: Incoming,
    line: Line,
}

impl Lines {
    /// Closes all that wait: their process is another one now.
    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Sends one request, and returns once the head of its answer has come.
    pub(crate) async fn send(
        &self,
        socket: &Path,
        request: request::Builder,
        body: impl Fn() -> Body + Send,
    ) -> Result<Answer, Cause> {
        let head = request.header(HOST, "plugin").body(())?;
        loop {
            let kept = lock(&self.0).pop();
            let is_kept = kept.is_some();
            let mut line = match kept {
                Some(line) => line,
                None => connect(socket).await?,
            };
            if let Err(error) = line.sender.ready().await {
                if is_kept {
                    // it was closed while it waited
                    continue;
                }
                return Err(error.into());
            }
            let request = head.clone().map(|()| body());
            let mut error = match line.sender.try_send_request(request).await {
                Ok(answer) => {
                    let (head, body) = answer.into_parts();
                    return Ok(Answer { head, body, line });
                }
                Err(error) => error,
            };
            let nothing_was_sent = error.take_message().is_some();
            if !(is_kept && nothing_was_sent) {
                return Err(error.into_error().into());
            }
        }
    }

    fn keep(&self, line: Line) {
        if !line.sender.is_closed() {
            lock(&self.0).push(line);
        }
    }
}

async fn connect(socket: &Path) -> Result<Line, Cause> {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // why a connection ended is told to the call that was on it
    let task = tokio::spawn(async move { connection.await.unwrap_or(()) }).abort_handle();
    Ok(Line { sender, task })
}

impl Answer {
    /// The length that was announced, if one was.
    pub(crate) fn announced(&self) -> Option<u64> {
        self.head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.head.status
    }

    /// Reads a body of at most `len_max` bytes.
    pub(crate) async fn collect(
        mut self,
        lines: &Lines,
        len_max: u64,
        progress: &Progress,
    ) -> Result<Bytes, StoreError> {
        if self.announced().is_some_and(|len| len > len_max) {
            return Err(too_long(len_max));
        }
        let room = self.announced().unwrap_or(0).min(ROOM_FIRST);
        let mut all = BytesMut::new();
        while let Some(part) = self.next(progress).await? {
            if (all.len() + part.len()) as u64 > len_max {
                return Err(too_long(len_max));
            }
            if all.is_empty() {
                all.reserve(room as usize);
            }
            all.extend_from_slice(&part);
        }
        lines.keep(self.line);
        Ok(all.freeze())
    }

    /// Reads an answer whose body is empty whatever its headers say.
    pub(crate) async fn skip(mut self, lines: &Lines, progress: &Progress) -> Result<(), StoreError> {
        while self.next(progress).await?.is_some() {}
        lines.keep(self.line);
        Ok(())
    }

    /// The next part of a body.
    pub(crate) async fn next(&mut self, progress: &Progress) -> Result<Option<Bytes>, StoreError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| StoreError::Transient(error.into()))?;
            if let Ok(part) = frame.into_data() {
                progress.moving(part.len());
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    /// Keeps the connection of an answer that was read to its end.
    pub(crate) fn done(self, lines: &Lines) {
        lines.keep(self.line);
    }
}

fn too_long(len_max: u64) -> StoreError {
    StoreError::Invalid { reason: format!("the plugin answers with more than {len_max} bytes") }
}

/// A body in one piece.
pub(crate) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// The body of an upload: piece by piece, as the controls of the store permit.
pub(crate) fn metered(bytes: Bytes, control: Arc<StoreControl>, progress: Arc<Progress>) -> Body {
    let pieces = stream::unfold(Some(bytes), move |rest| {
        let (control, progress) = (Arc::clone(&control), Arc::clone(&progress));
        async move {
            let mut rest = rest?;
            if rest.is_empty() {
                return None;
            }
            let piece = rest.split_to(CHUNK_LEN.min(rest.len()));
            progress.held();
            control.send(piece.len()).await;
            progress.moving(piece.len());
            if rest.is_empty() {
                progress.waiting();
            }
            Some((Ok(Frame::data(piece)), Some(rest)))
        }
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// The length of a body, as a header.
pub(crate) fn len_header(len: usize) -> HeaderValue {
    HeaderValue::from(len as u64)
}
