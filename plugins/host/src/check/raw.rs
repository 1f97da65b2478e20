//! Requests by hand, to say what the client of this crate never says.

use std::io;
use std::path::Path;
use std::time::Duration;

use chatkeep_store::ErrorKind;
use chatkeep_store::protocol::Problem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// For one exchange. A plugin in a slow language on a busy machine needs seconds, a hanging one for ever.
const PATIENCE: Duration = Duration::from_mins(2);
/// The most that is read of an answer, in bytes.
const ANSWER_LEN_MAX: u64 = 64 << 20;

/// What came back.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// The kind of the problem that it is, if it is one.
    pub(super) fn kind(&self) -> Option<ErrorKind> {
        let problem: Problem = serde_json::from_slice(&self.body).ok()?;
        ErrorKind::ALL.into_iter().find(|kind| kind.as_str() == problem.kind)
    }
}

/// Sends a request with these headers and this body on a connection of its own.
pub(super) async fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<Reply> {
    let exchange = async {
        let mut stream = begin(socket, method, path, headers, body.len()).await?;
        // a plugin may answer before it has read everything
        let _ = stream.write_all(body).await;
        let mut bytes = Vec::new();
        stream.take(ANSWER_LEN_MAX).read_to_end(&mut bytes).await?;
        parse(&bytes).ok_or_else(|| io::Error::other("the answer is not HTTP/1.1 with a body in one piece"))
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| Err(io::Error::other("no answer in two minutes")))
}

/// Sends the head of a request, and leaves its body to the caller.
pub(super) async fn begin(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &str,
    len: usize,
) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

fn parse(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let status = head.strip_prefix("http/1.")?.split(' ').nth(1)?.parse().ok()?;
    let mut body = bytes[end + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = unchunk(&body)?;
    }
    Some(Reply { status, body })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(end + 2..end + 2 + size)?);
        rest = rest.get(end + 2 + size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn answers_are_read_with_a_length_and_in_chunks() {
        let plain = parse(b"HTTP/1.1 404 Not Found\r\nX: y\r\n\r\n{\"kind\":\"not-found\"}").unwrap();
        assert_eq!((plain.status, plain.kind()), (404, Some(ErrorKind::NotFound)));
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap().body, b"abcde");
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab").is_none());
        assert!(parse(b"hello").is_none());
    }
}
