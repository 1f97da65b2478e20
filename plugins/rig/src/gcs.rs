//! A FAKE of Google Cloud Storage's XML interface.
//!
//! No emulator of it can be had: those of Google and others speak the JSON interface, which the store does not use. So this
//! shows that our side follows the published rules (generation conditions, ranges, pages, errors), and nothing about
//! Google's. Tokens are looked at, not verified.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::http::{Listener, Request, Response, percent_decoded};

/// Most names of a page, as Google has it.
const PAGE_LEN: usize = 1000;

/// The only bucket.
pub const BUCKET: &str = "bucket";

/// A running fake; ends when dropped.
pub struct Gcs {
    listener: Listener,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Names to bodies and generations.
    objects: BTreeMap<String, (Vec<u8>, u64)>,
    generation: u64,
    retained: bool,
}

impl Gcs {
    /// Starts one with the empty bucket [`BUCKET`].
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let serving = Arc::clone(&state);
        let listener = Listener::start(move |stream| serve(&serving, &stream));
        Self { listener, state }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// From now on a retention policy holds all objects.
    pub fn retain(&self) {
        self.state.lock().unwrap().retained = true;
    }
}

/// The JSON of a service account, with a key that was made just now.
pub fn service_account() -> String {
    let made = Command::new("openssl").args(["genpkey", "-quiet", "-algorithm", "RSA"]).output().unwrap();
    let key = String::from_utf8(made.stdout).unwrap().replace('\n', "\\n");
    assert!(key.contains("PRIVATE KEY"), "openssl makes no key: {}", String::from_utf8_lossy(&made.stderr));
    format!(
        r#"{{"type":"service_account","private_key":"{key}","private_key_id":"1","client_email":"a@b.example"}}"#
    )
}

fn serve(state: &Mutex<State>, stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader) {
        let answer = state.lock().unwrap().answer(&request);
        let mut stream = stream;
        if answer.write(&mut stream, request.method == "HEAD").is_err() {
            break;
        }
    }
}

impl State {
    fn answer(&mut self, request: &Request) -> Response {
        let token = request.header("authorization").and_then(|text| text.strip_prefix("Bearer "));
        if token.is_none_or(|token| token.split('.').count() != 3) {
            return Response::error(401, "AuthenticationRequired");
        }
        let path = percent_decoded(request.path());
        let (bucket, name) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        if bucket != BUCKET {
            return Response::error(404, "NoSuchBucket");
        }
        match (request.method.as_str(), name) {
            ("GET", "") => self.list(request),
            ("GET" | "HEAD", name) => self.get(request, name),
            ("PUT", name) => self.put(request, name),
            ("DELETE", name) => self.delete(name),
            _ => Response::error(405, "MethodNotAllowed"),
        }
    }

    fn put(&mut self, request: &Request, name: &str) -> Response {
        let there = self.objects.contains_key(name);
        match request.header("x-goog-if-generation-match") {
            Some("0") if there => return Response::error(412, "PreconditionFailed"),
            Some("0") | None => {}
            Some(_) => return Response::error(501, "NotImplemented"),
        }
        if there && self.retained {
            return Response::error(403, "RetentionPolicyNotMet");
        }
        self.generation += 1;
        self.objects.insert(name.to_owned(), (request.body.clone(), self.generation));
        self.described(Response::new(200, ""), name)
    }

    fn described(&self, answer: Response, name: &str) -> Response {
        let generation = self.objects[name].1.to_string();
        answer
            .with("etag", &format!("\"{generation}\""))
            .with("x-goog-generation", &generation)
            .with("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
    }

    fn get(&self, request: &Request, name: &str) -> Response {
        let Some((body, _)) = self.objects.get(name) else { return Response::error(404, "NoSuchKey") };
        let Some(range) = request.header("range").and_then(|text| text.strip_prefix("bytes=")) else {
            let answer = Response::new(200, body.clone()).with("content-length", &body.len().to_string());
            return self.described(answer, name);
        };
        let (start, end) = range.split_once('-').unwrap();
        let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
        if start >= body.len() {
            return Response::error(416, "InvalidRange");
        }
        let end = end.min(body.len() - 1);
        let answer = Response::new(206, &body[start..=end]);
        self.described(answer.with("content-range", &format!("bytes {start}-{end}/{}", body.len())), name)
    }

    fn delete(&mut self, name: &str) -> Response {
        if self.retained && self.objects.contains_key(name) {
            return Response::error(403, "RetentionPolicyNotMet");
        }
        match self.objects.remove(name) {
            Some(_) => Response::new(204, ""),
            None => Response::error(404, "NoSuchKey"),
        }
    }

    fn list(&self, request: &Request) -> Response {
        let prefix = request.query("prefix").unwrap_or_default();
        let after = request.query("continuation-token").unwrap_or_default();
        let named: Vec<_> = self
            .objects
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix) && name.as_str() > after.as_str())
            .collect();
        let mut xml = String::from("<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>");
        for (name, (body, generation)) in named.iter().take(PAGE_LEN) {
            xml.push_str(&format!(
                "<Contents><Key>{name}</Key><Generation>{generation}</Generation><LastModified>\
                 2026-01-01T00:00:00.000Z</LastModified><ETag>\"{generation}\"</ETag><Size>{}</Size></Contents>",
                body.len()
            ));
        }
        let more = named.len() > PAGE_LEN;
        xml.push_str(&format!("<IsTruncated>{more}</IsTruncated>"));
        if more {
            let last = named[PAGE_LEN - 1].0;
            xml.push_str(&format!("<NextContinuationToken>{last}</NextContinuationToken>"));
        }
        xml.push_str("</ListBucketResult>");
        Response::new(200, xml).with("content-type", "application/xml")
    }
}
