//! One request and its whole answer, given up when nothing moves any more. There is no limit to how long it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chatkeep_store::{Result, StoreError};
use futures_util::stream;
use reqwest::header::{self, HeaderMap};
use reqwest::{Certificate, Client, Method, StatusCode, Url};
use tokio::time::Instant;

use crate::errors;
use crate::target::{Auth, Target};

/// The answer about a folder is refused when it is longer: 256 MiB are some 400 000 objects in one folder, and we make
/// a hundredth of that.
pub(crate) const LISTING_BYTES_MAX: usize = 256 << 20;

/// What a body is handed over in, and so how finely progress is seen.
const PIECE_LEN: usize = 64 << 10;

/// How much of a body may wait in buffers of the kernel (`tcp_wmem`) after it was handed over.
const BUFFERED_MAX: u64 = 4 << 20;

const REDIRECTS_MAX: u32 = 3;

/// How often a request is sent on a new connection because the server had closed the one it was sent on.
const SENDS_MAX: u32 = 5;

/// How patient the store is.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// A request ends when not a byte has moved for this long.
    pub stall: Duration,
    /// A connection has to be there after this long.
    pub connect: Duration,
    /// The slowest line that is worth waiting for, in bytes per second: what was handed to the kernel may take this long to leave.
    pub slowest: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { stall: Duration::from_mins(1), connect: Duration::from_secs(30), slowest: 16 << 10 }
    }
}

/// The server, and how it lets us in.
pub(crate) struct Http {
    client: Client,
    auth: Auth,
    tuning: Tuning,
}

/// A request.
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Option<Bytes>,
    /// A longer answer is an error, in bytes.
    pub(crate) answer_len_max: usize,
}

/// An answer, whatever its status; its body is whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Ask {
    /// Without headers and body, and with a short answer.
    pub(crate) fn new(method: &'static str, url: Url) -> Self {
        let method =
            Method::from_bytes(method.as_bytes()).expect("the names of methods are written in this crate");
        Self { method, url, headers: Vec::new(), body: None, answer_len_max: 1 << 20 }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn body(mut self, content_type: &str, body: Bytes) -> Self {
        self.body = Some(body);
        self.header("content-type", content_type)
    }

    pub(crate) fn answer_len_max(self, answer_len_max: usize) -> Self {
        Self { answer_len_max, ..self }
    }
}

impl Answer {
    /// A header, as far as it is text.
    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Where a redirection leads.
    pub(crate) fn leads_to(&self, asked: &Url) -> Option<Url> {
        let location = self.status.is_redirection().then(|| self.header(header::LOCATION))??;
        asked.join(location).ok()
    }

    /// Whether the server only says that what was asked for is a folder, whose name ends in a slash.
    pub(crate) fn says_folder(&self, asked: &Url) -> bool {
        let path = self.leads_to(asked).map(|url| url.path().to_owned());
        path.is_some_and(|path| path.strip_suffix('/') == Some(asked.path()))
    }
}

impl Http {
    pub(crate) fn new(target: &mut Target, tuning: Tuning) -> Result<Self> {
        let broken = |error: reqwest::Error| StoreError::Invalid { reason: errors::chain(&error) };
        let ca =
            target.ca.take().map(|pem| Certificate::from_pem_bundle(&pem)).transpose().map_err(broken)?;
        let client = Client::builder()
            .user_agent(concat!("chatkeep/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(tuning.connect)
            .tcp_user_timeout(tuning.stall)
            // shorter than any server keeps an idle connection: Apache's default is 5 s
            .pool_idle_timeout(Duration::from_secs(4))
            .tls_certs_merge(ca.unwrap_or_default())
            .build()
            .map_err(broken)?;
        Ok(Self { client, auth: std::mem::replace(&mut target.auth, Auth::Nothing), tuning })
    }

    /// Asks, and reads the answer to its end. A redirection is followed for reading and on the same server only.
    pub(crate) async fn exchange(&self, ask: Ask) -> Result<Answer> {
        let mut url = ask.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.once(&ask, &url).await?;
            let Some(next) = answer.leads_to(&url).filter(|_| ask.method == Method::GET) else {
                return Ok(answer);
            };
            if next.origin() != url.origin() || answer.says_folder(&url) {
                return Ok(answer);
            }
            url = next;
        }
        Err(StoreError::Transient("the server sends us in circles".into()))
    }

    async fn once(&self, ask: &Ask, url: &Url) -> Result<Answer> {
        let pulse = Pulse::new(self.tuning);
        let work = async {
            let mut sends = 0;
            let response = loop {
                sends += 1;
                pulse.sent.store(0, Ordering::Relaxed);
                match self.request(ask, url, &pulse).send().await {
                    Err(error) if sends < SENDS_MAX && may_be_sent_again(ask, &error, &pulse) => {}
                    sent => break sent.map_err(|error| errors::of_transport(&error))?,
                }
            };
            read(response, &pulse, ask.answer_len_max).await
        };
        pulse.watch(work).await
    }

    fn request(&self, ask: &Ask, url: &Url, pulse: &Arc<Pulse>) -> reqwest::RequestBuilder {
        let mut request = self.client.request(ask.method.clone(), url.clone());
        request = match &self.auth {
            Auth::Nothing => request,
            Auth::Basic { username, password } => {
                request.basic_auth(username.as_str(), Some(password.as_str()))
            }
            Auth::Bearer(token) => request.bearer_auth(token.as_str()),
        };
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        if let Some(body) = &ask.body {
            // with its length: a server notices when less arrives
            request = request.header(header::CONTENT_LENGTH, body.len());
            request = request.body(in_pieces(body.clone(), Arc::clone(pulse)));
        }
        request
    }
}

/// A server may close a connection that was kept just when it is used again, and a busy Apache does so often. That
/// shows at once: what broke off later is the caller's to repeat. A MOVE that happened is another thing the second time.
fn may_be_sent_again(ask: &Ask, error: &reqwest::Error, pulse: &Pulse) -> bool {
    let early = pulse.sent.load(Ordering::Relaxed) <= 4 * PIECE_LEN as u64;
    early && !error.is_connect() && ask.method.as_str() != "MOVE"
}

fn in_pieces(body: Bytes, pulse: Arc<Pulse>) -> reqwest::Body {
    if body.is_empty() {
        return reqwest::Body::from(body);
    }
    reqwest::Body::wrap_stream(stream::unfold((body, pulse), |(mut rest, pulse)| async move {
        if rest.is_empty() {
            return None;
        }
        let piece = rest.split_to(PIECE_LEN.min(rest.len()));
        pulse.sent(piece.len() as u64);
        Some((Ok::<_, std::io::Error>(piece), (rest, pulse)))
    }))
}

async fn read(mut response: reqwest::Response, pulse: &Pulse, len_max: usize) -> Result<Answer> {
    pulse.received();
    let (status, headers) = (response.status(), response.headers().clone());
    let no_body = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let ends =
        headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING);
    let announced = response.content_length().unwrap_or(0);
    let mut body = BytesMut::with_capacity(announced.min(64 << 20) as usize);
    while let Some(piece) = response.chunk().await.map_err(|error| errors::of_transport(&error))? {
        pulse.received();
        if body.len() + piece.len() > len_max {
            return Err(StoreError::Transient(format!("the answer is longer than {len_max} bytes").into()));
        }
        body.extend_from_slice(&piece);
    }
    // a body that goes on until the connection closes: nothing tells its end from a broken line
    if status.is_success() && !no_body && !ends && !body.is_empty() {
        return Err(StoreError::Transient("the server does not say where its answer ends".into()));
    }
    Ok(Answer { status, headers, body: body.freeze() })
}

/// Until when something has to happen.
struct Pulse {
    tuning: Tuning,
    begin: Instant,
    /// In milliseconds after `begin`.
    deadline_ms: AtomicU64,
    sent: AtomicU64,
}

impl Pulse {
    fn new(tuning: Tuning) -> Arc<Self> {
        let pulse =
            Self { tuning, begin: Instant::now(), deadline_ms: AtomicU64::new(0), sent: AtomicU64::new(0) };
        pulse.allow(tuning.connect + tuning.stall);
        Arc::new(pulse)
    }

    fn allow(&self, more: Duration) {
        let deadline = self.begin.elapsed() + more;
        self.deadline_ms.store(deadline.as_millis() as u64, Ordering::Relaxed);
    }

    /// Part of the body was handed over. That it left cannot be seen, only that there was room for it.
    fn sent(&self, len: u64) {
        let sent = self.sent.fetch_add(len, Ordering::Relaxed) + len;
        let drain = Duration::from_secs(sent.min(BUFFERED_MAX) / self.tuning.slowest.max(1));
        self.allow(self.tuning.stall + drain);
    }

    fn received(&self) {
        self.allow(self.tuning.stall);
    }

    /// Does `work`, as long as it gets on.
    async fn watch<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let deadline = self.begin + Duration::from_millis(self.deadline_ms.load(Ordering::Relaxed));
            if deadline <= Instant::now() {
                return Err(StoreError::Transient("nothing moved on the connection for too long".into()));
            }
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }
}
