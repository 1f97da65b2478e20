//! No total timeout, but no silence either.
//!
//! A line of 2 Mbit/s takes more than a minute for an object of 16 MiB, so how long a request takes says nothing. Whether
//! bytes move does: below a floor for a while, the connection is given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use object_store::client::{HttpError, HttpErrorKind};
use tokio::time::Sleep;

use crate::answer::Fault;
use crate::call::Call;
use crate::http::Failed;

/// How much is handed to the connection at once. What is handed over counts as moved, so it must be small.
const PIECE_LEN: usize = 64 << 10;

/// Most bytes that can lie in the kernel after they were handed over (`tcp_wmem`, 4 MiB by default).
const SEND_BUFFER_LEN: u64 = 4 << 20;

/// At how many times the floor what lies in the kernel is expected to leave.
const DRAIN_FACTOR: u64 = 16;

/// When a connection counts as dead.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// What is looked at together.
    pub window: Duration,
    /// Bytes that must move in it.
    pub bytes_min: u64,
}

impl Default for Pace {
    /// 1 KiB/s over a minute: less than a modem, more than keep-alives.
    fn default() -> Self {
        Self { window: Duration::from_mins(1), bytes_min: 60 << 10 }
    }
}

impl Pace {
    /// Ends when an upload of `len` bytes counts as dead: while it is handed over, or when no answer follows.
    ///
    /// What is seen is how much the kernel took, and it takes nothing until a third of its buffer has left: so a window in
    /// which nothing was taken is followed by the time for that. A line that is gone altogether is noticed earlier, by the
    /// kernel, which is told how long to wait for acknowledgements.
    pub(crate) async fn upload_is_dead(self, moved: &AtomicU64, len: u64) {
        let mut before = 0;
        let seen = || moved.load(Ordering::Relaxed);
        while seen() < len {
            tokio::time::sleep(self.window).await;
            if seen() < len && seen() - before < self.bytes_min {
                tokio::time::sleep(self.drain(seen().min(SEND_BUFFER_LEN) / 3)).await;
                if seen() < len && seen() - before < self.bytes_min {
                    return;
                }
            }
            before = seen();
        }
        tokio::time::sleep(self.window + self.drain(len.min(SEND_BUFFER_LEN))).await;
    }

    /// How long so many bytes take to leave the kernel.
    fn drain(self, bytes: u64) -> Duration {
        self.window.mul_f64(bytes as f64 / (self.bytes_min * DRAIN_FACTOR) as f64)
    }
}

/// The body of a request, in pieces, counted as they are taken.
pub(crate) struct Upload {
    parts: std::vec::IntoIter<Bytes>,
    part: Bytes,
    left: u64,
    moved: Arc<AtomicU64>,
}

impl Upload {
    pub(crate) fn new(parts: Vec<Bytes>, moved: Arc<AtomicU64>) -> Self {
        let left = parts.iter().map(|part| part.len() as u64).sum();
        Self { parts: parts.into_iter(), part: Bytes::new(), left, moved }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        while self.part.is_empty() {
            match self.parts.next() {
                Some(part) => self.part = part,
                None => return Poll::Ready(None),
            }
        }
        let len = self.part.len().min(PIECE_LEN);
        let piece = self.part.split_to(len);
        self.left -= len as u64;
        self.moved.fetch_add(len as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The body of an answer, watched.
pub(crate) struct Download {
    body: reqwest::Body,
    call: Arc<Call>,
    pace: Pace,
    window: Pin<Box<Sleep>>,
    moved: u64,
}

impl Download {
    pub(crate) fn new(body: reqwest::Body, call: Arc<Call>, pace: Pace) -> Self {
        Self { body, call, pace, window: Box::pin(tokio::time::sleep(pace.window)), moved: 0 }
    }

    fn fail(&self, fault: Fault) -> HttpError {
        self.call.failed(fault.clone());
        HttpError::new(HttpErrorKind::Interrupted, Failed(fault))
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => {
                self.moved += frame.data_ref().map_or(0, Bytes::len) as u64;
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Err(error))) => {
                let fault = crate::http::fault_of(error);
                return Poll::Ready(Some(Err(self.fail(fault))));
            }
            Poll::Pending => {}
        }
        while self.window.as_mut().poll(cx).is_ready() {
            if self.moved < self.pace.bytes_min {
                return Poll::Ready(Some(Err(self.fail(Fault::Stalled))));
            }
            self.moved = 0;
            let next = tokio::time::Instant::now() + self.pace.window;
            self.window.as_mut().reset(next);
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const PACE: Pace = Pace { window: Duration::from_mins(1), bytes_min: 60 << 10 };

    /// Seconds until an upload of `len` bytes, of which `per_s` move in each second up to `stuck_at`, is given up.
    async fn given_up_after(len: u64, per_s: u64, stuck_at: u64) -> u64 {
        let moved = AtomicU64::new(0);
        let begin = tokio::time::Instant::now();
        let moving = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let now = (moved.load(Ordering::Relaxed) + per_s).min(stuck_at);
                moved.store(now, Ordering::Relaxed);
            }
        };
        tokio::select! {
            () = PACE.upload_is_dead(&moved, len) => {}
            () = moving => {}
        }
        begin.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_is_slow_is_waited_for_and_one_that_stands_is_not() {
        // 64 s at 2 Mbit/s, and what the default of 30 s for a whole request never lets through
        let slow = given_up_after(16 << 20, 256 << 10, 16 << 20).await;
        assert!(slow > 64 + 60, "{slow}");
        let slower = given_up_after(16 << 20, 2 << 10, 16 << 20).await;
        assert!(slower > 8192, "{slower}");
        assert_eq!(given_up_after(16 << 20, 512, 16 << 20).await, 60);
        assert_eq!(given_up_after(16 << 20, 1 << 20, 5 << 20).await, 120 + 85);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_as_long_as_what_lies_in_the_kernel() {
        assert_eq!(given_up_after(0, 0, 0).await, 60);
        let whole = given_up_after(16 << 20, 16 << 20, 16 << 20).await;
        assert!((300..400).contains(&whole), "{whole}");
    }
}
