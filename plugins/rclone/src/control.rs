//! rclone's remote control: HTTP/1.1 on its unix socket, one connection for each call.
//!
//! A connection to a unix socket costs microseconds, and dropping it is how a call is cancelled: rclone then ends what
//! the call had begun.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HOST, HeaderValue, RANGE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

/// Longest answer to a call, in bytes: the listing of one folder with some hundred thousand objects.
const ANSWER_LEN_MAX: usize = 64 << 20;

/// Longest object that is read, in bytes: far above any of ours, and an end to what a hostile store can send.
const OBJECT_LEN_MAX: usize = 1 << 30;

/// The user that rclone expects; the name is no secret.
pub(crate) const USER: &str = "chatkeep";

/// Where an rclone listens, and what lets us in.
pub(crate) struct Control {
    socket: PathBuf,
    authorization: HeaderValue,
}

/// Why a call has no answer that can be used.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody listens: nothing was sent.
    NoConnection(std::io::Error),
    /// rclone went away during the call, or sent something that makes no sense.
    Broken(Box<dyn std::error::Error + Send + Sync>),
    /// rclone says that it failed, and why.
    Answered {
        /// Its status; 404 is sure, 500 is everything else.
        status: u16,
        /// Its words.
        text: String,
    },
    /// An object is there or was there a moment ago, and cannot be opened. rclone does not say why.
    NotOpened,
}

/// What a read answers.
pub(crate) struct Fetched {
    pub(crate) body: Bytes,
    /// Length of the whole object, where a range was asked for.
    pub(crate) object_len: Option<u64>,
}

impl Control {
    pub(crate) fn new(socket: PathBuf, password: &str) -> Self {
        let token = base64(format!("{USER}:{password}").as_bytes());
        let mut authorization =
            HeaderValue::from_str(&format!("Basic {token}")).expect("base64 is fit for a header");
        authorization.set_sensitive(true);
        Self { socket, authorization }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Calls a command with JSON arguments.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: &Value,
    ) -> Result<T, Failure> {
        let body = Full::new(Bytes::from(arguments.to_string()));
        let request = self.request("POST", &format!("/{command}")).header(CONTENT_TYPE, "application/json");
        let answer = self.send(request.body(body).expect("a method, a path and fixed headers")).await?;
        let status = answer.status();
        let body = collect(answer.into_body(), ANSWER_LEN_MAX).await?;
        if !status.is_success() {
            return Err(answered(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| Failure::Broken(error.into()))
    }

    /// Reads an object, or a part of it that is not empty.
    ///
    /// What is shorter than rclone announced is [`Failure::Broken`].
    pub(crate) async fn read(
        &self,
        spec: &str,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<Fetched, Failure> {
        let mut request =
            self.request("GET", &format!("/{}/{}", escaped(&format!("[{spec}]")), escaped(name)));
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        let answer = self.send(request.body(Full::default()).expect("escaped path, fixed headers")).await?;
        let status = answer.status();
        if !status.is_success() {
            // an object that is found and then not opened, for whatever reason, is answered as a bare 404
            let json = answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
            let body = collect(answer.into_body(), ANSWER_LEN_MAX).await?;
            return Err(if json { answered(status, &body) } else { Failure::NotOpened });
        }
        let object_len = answer.headers().get(CONTENT_RANGE).and_then(total_of);
        let body = collect(answer.into_body(), OBJECT_LEN_MAX).await?;
        Ok(Fetched { body, object_len })
    }

    fn request(&self, method: &str, path: &str) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "rclone")
            .header(AUTHORIZATION, self.authorization.clone())
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(Failure::NoConnection)?;
        let broken = |error: hyper::Error| Failure::Broken(error.into());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // ends when the answer was read, or as soon as nobody waits for it any more
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(broken)
    }
}

fn answered(status: StatusCode, body: &[u8]) -> Failure {
    #[derive(Deserialize)]
    struct Problem {
        error: String,
    }
    let text = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => problem.error,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    Failure::Answered { status: status.as_u16(), text }
}

async fn collect(mut body: Incoming, len_max: usize) -> Result<Bytes, Failure> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| Failure::Broken(error.into()))?.into_data() {
            if all.len() + data.len() > len_max {
                return Err(Failure::Broken(format!("an answer of more than {len_max} bytes").into()));
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

/// The length behind the slash of `bytes 0-9/100`.
fn total_of(header: &HeaderValue) -> Option<u64> {
    header.to_str().ok()?.rsplit_once('/')?.1.parse().ok()
}

/// Percent-encodes what is not plain, but slashes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// RFC 4648; for a password and the header with it.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_its_rfc() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_path_is_escaped_but_for_its_slashes() {
        assert_eq!(escaped("[My Drive:a/ä?#]"), "%5BMy%20Drive%3Aa/%C3%A4%3F%23%5D");
    }

    #[test]
    fn the_length_of_the_object_is_behind_the_slash() {
        assert_eq!(total_of(&HeaderValue::from_static("bytes 200-5/6")), Some(6));
        assert_eq!(total_of(&HeaderValue::from_static("bytes 0-1/*")), None);
    }
}
