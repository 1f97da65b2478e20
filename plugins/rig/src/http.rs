//! As much of HTTP/1.1 as the servers and proxies of the rig need: a request, an answer, one connection each.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT` …
    pub method: String,
    /// Path and query, as they were sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// 200, 404 …
    pub status: u16,
    /// Without those about length and connection, which are added.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

impl Request {
    /// A request without headers.
    pub fn new(method: &str, target: &str, body: &[u8]) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: body.to_vec(),
        }
    }

    /// With one header more.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    /// The header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a parameter of the query, percent-decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let query = self.target.split_once('?')?.1;
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| percent_decoded(value))
        })
    }

    /// Reads one; `None` at the end of the connection. `take` reads at the pace that it likes.
    pub(crate) fn read(from: &mut BufReader<impl Read>) -> Option<Self> {
        let (first, headers) = read_head(from)?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let len = header(&headers, "content-length").map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; len];
        from.read_exact(&mut body).ok()?;
        Some(Self { method, target, headers, body })
    }

    /// Sends it over a connection of its own, and reads the answer.
    pub fn send(&self, to: SocketAddr) -> Option<Response> {
        let mut stream = TcpStream::connect(to).ok()?;
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            if !matches!(name.as_str(), "connection" | "content-length" | "expect") {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        if self.header("host").is_none() {
            head.push_str(&format!("host: {to}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\nconnection: close\r\n\r\n", self.body.len()));
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(&self.body).ok()?;
        Response::read(&mut BufReader::new(stream), self.method == "HEAD")
    }
}

impl Response {
    /// An answer without headers.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    /// An error as S3 and Google write it.
    pub fn error(status: u16, code: &str) -> Self {
        let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code></Error>");
        Self::new(status, body).with("content-type", "application/xml")
    }

    /// With one header more.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    /// The header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    fn read(from: &mut BufReader<impl Read>, to_head: bool) -> Option<Self> {
        let (first, headers) = read_head(from)?;
        let status: u16 = first.split(' ').nth(1)?.parse().ok()?;
        if status == 100 {
            return Self::read(from, to_head);
        }
        let mut body = Vec::new();
        if to_head || matches!(status, 204 | 304) {
        } else if header(&headers, "transfer-encoding").is_some() {
            loop {
                let mut line = String::new();
                from.read_line(&mut line).ok()?;
                let len = usize::from_str_radix(line.trim(), 16).ok()?;
                let mut chunk = vec![0; len + 2];
                from.read_exact(&mut chunk).ok()?;
                body.extend_from_slice(&chunk[..len]);
                if len == 0 {
                    break;
                }
            }
        } else if let Some(len) = header(&headers, "content-length") {
            body.resize(len.parse().ok()?, 0);
            from.read_exact(&mut body).ok()?;
        } else {
            from.read_to_end(&mut body).ok()?;
        }
        Some(Self { status, headers, body })
    }

    /// Sends it. The length is that of the body, unless there is a header that says otherwise (answers to HEAD do).
    pub(crate) fn write(&self, to: &mut impl Write, to_head: bool) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\n", self.status);
        for (name, value) in &self.headers {
            let ours = matches!(name.as_str(), "connection" | "transfer-encoding" | "content-length");
            if !ours || (to_head && name == "content-length") {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        let says_length = to_head && self.header("content-length").is_some();
        if !says_length && self.status != 204 {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        to.write_all(head.as_bytes())?;
        if !to_head {
            to.write_all(&self.body)?;
        }
        to.flush()
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn read_head(from: &mut BufReader<impl Read>) -> Option<(String, Vec<(String, String)>)> {
    let mut line = || {
        let mut line = String::new();
        let len = from.read_line(&mut line).ok()?;
        (len > 0).then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else { return Some((first, headers)) };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// Undoes `%2F` and the like.
pub(crate) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if let (b'%', [high, low, tail @ ..]) = (first, tail) {
            let digits = [*high, *low];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            rest = tail;
        } else {
            bytes.push(if *first == b'+' { b' ' } else { *first });
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// A listener whose connections are served by threads until it is dropped.
pub(crate) struct Listener {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Serves each connection with `serve`.
    pub(crate) fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // small, so that what a client has sent is about what was read; connections inherit it
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let serve = Arc::new(serve);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (serve, stream) = (Arc::clone(&serve), stream.unwrap());
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // wakes it up
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
