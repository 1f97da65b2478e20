//! A fake: a WebDAV server in memory that misbehaves on command. Whatever a real server can show is shown at real ones.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request that arrived whole.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// What the fake does instead of answering as it should.
pub(crate) enum Fault {
    /// Sends exactly this and closes.
    Raw(String),
    /// Sends a status, a header and no body.
    Status(&'static str, &'static str),
    /// Does what was asked, and closes without an answer.
    Lost,
    /// Keeps this many bytes of a body and acknowledges all.
    Keeps(usize),
    /// Overwrites as servers in Go do: removes what is there, and after this time moves the other file.
    RemovesFirst(Duration),
    /// Says nothing for as long as the test runs.
    Silence,
}

type Plan = Box<dyn Fn(&Request) -> Option<Fault> + Send>;

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    seen: Vec<Request>,
    plan: Option<Plan>,
    properties: String,
    deaf: bool,
}

/// The fake. Its store is at `/backups`.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    pub(crate) port: u16,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fake = Self { state: Arc::default(), port: listener.local_addr().unwrap().port() };
        let serving = fake.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(&stream.unwrap()));
            }
        });
        fake
    }

    /// From now on; the plan sees every request before it is carried out.
    pub(crate) fn plan(&self, plan: impl Fn(&Request) -> Option<Fault> + Send + 'static) {
        self.state.lock().unwrap().plan = Some(Box::new(plan));
    }

    /// From now on the body of a PUT is not read.
    pub(crate) fn deaf(&self) {
        self.state.lock().unwrap().deaf = true;
    }

    /// XML beside the other properties of every folder.
    pub(crate) fn properties(&self, xml: &str) {
        xml.clone_into(&mut self.state.lock().unwrap().properties);
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.state.lock().unwrap().seen.clone()
    }

    pub(crate) fn file(&self, path: &str, body: &str) {
        self.state.lock().unwrap().files.insert(path.to_owned(), body.as_bytes().to_vec());
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.state.lock().unwrap().files.keys().cloned().collect()
    }

    fn read(&self, stream: &TcpStream) -> Option<Request> {
        let mut reader = BufReader::with_capacity(1, stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_ascii_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let len = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
        if method == "PUT" && self.state.lock().unwrap().deaf {
            std::thread::park();
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body).ok()?;
        Some(Request { method, path, headers, body })
    }

    fn serve(&self, stream: &TcpStream) {
        while let Some(mut request) = self.read(stream) {
            let mut state = self.state.lock().unwrap();
            state.seen.push(request.clone());
            let fault = state.plan.as_ref().and_then(|plan| plan(&request));
            let mut writer = stream;
            match fault {
                None => {
                    let answer = state.answer(&request);
                    drop(state);
                    if writer.write_all(&answer).is_err() {
                        return;
                    }
                }
                Some(Fault::Raw(text)) => {
                    let _ = writer.write_all(text.as_bytes());
                    return;
                }
                Some(Fault::Status(status, header)) => {
                    let text = format!("HTTP/1.1 {status}\r\n{header}\r\nContent-Length: 0\r\n\r\n");
                    let _ = writer.write_all(text.replace("\r\n\r\nContent", "\r\nContent").as_bytes());
                }
                Some(Fault::Lost) => {
                    state.answer(&request);
                    return;
                }
                Some(Fault::Keeps(len)) => {
                    request.body.truncate(len);
                    let answer = state.answer(&request);
                    let _ = writer.write_all(&answer);
                }
                Some(Fault::RemovesFirst(pause)) => {
                    state.files.remove(&destination(&request));
                    drop(state);
                    std::thread::sleep(pause);
                    let answer = self.state.lock().unwrap().answer(&request);
                    let _ = writer.write_all(&answer);
                }
                Some(Fault::Silence) => {
                    drop(state);
                    std::thread::park();
                }
            }
        }
    }
}

impl State {
    fn answer(&mut self, request: &Request) -> Vec<u8> {
        let path = request.path.as_str();
        match request.method.as_str() {
            "PUT" => {
                self.files.insert(path.to_owned(), request.body.clone());
                reply("201 Created", b"")
            }
            "MKCOL" => reply("201 Created", b""),
            "DELETE" => {
                reply(if self.files.remove(path).is_some() { "204 No Content" } else { "404 Not Found" }, b"")
            }
            "GET" => match self.files.get(path) {
                Some(body) => reply("200 OK\r\nETag: \"1\"", body),
                None => reply("404 Not Found", b""),
            },
            "MOVE" => {
                let target = destination(request);
                if request.headers["overwrite"] == "F" && self.files.contains_key(&target) {
                    return reply("412 Precondition Failed", b"");
                }
                match self.files.remove(path) {
                    Some(body) => self.files.insert(target, body),
                    None => return reply("404 Not Found", b""),
                };
                reply("201 Created", b"")
            }
            "PROPFIND" => self.propfind(request),
            _ => reply("405 Method Not Allowed", b""),
        }
    }

    fn propfind(&self, request: &Request) -> Vec<u8> {
        if let Some(body) = self.files.get(&request.path) {
            return reply("207 Multi-Status", multistatus(&[file(&request.path, body.len())]).as_bytes());
        }
        let folder = format!("{}/", request.path.trim_end_matches('/'));
        let below =
            || self.files.iter().filter_map(|(path, body)| Some((path.strip_prefix(&folder)?, body.len())));
        if folder != "/backups/" && below().next().is_none() {
            return reply("404 Not Found", b"");
        }
        let mut entries = vec![folder_with(&folder, &self.properties)];
        if request.headers["depth"] == "1" {
            let children: BTreeMap<_, _> = below()
                .map(|(rest, len)| (rest.split_once('/'), (rest, len)))
                .map(|(cut, (rest, len))| match cut {
                    Some((name, _)) => (name, folder_with(&format!("{folder}{name}/"), "")),
                    None => (rest, file(&format!("{folder}{rest}"), len)),
                })
                .collect();
            entries.extend(children.into_values());
        }
        reply("207 Multi-Status", multistatus(&entries).as_bytes())
    }
}

/// The path that a MOVE leads to.
fn destination(request: &Request) -> String {
    request.headers["destination"].splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap()
}

/// A whole answer.
pub(crate) fn reply(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A multistatus of some responses.
pub(crate) fn multistatus(responses: &[String]) -> String {
    format!("<?xml version=\"1.0\"?><multistatus xmlns=\"DAV:\">{}</multistatus>", responses.concat())
}

/// The response for a file.
pub(crate) fn file(path: &str, len: usize) -> String {
    response(path, &format!("<resourcetype/><getcontentlength>{len}</getcontentlength>"))
}

/// The response for a folder.
pub(crate) fn folder_with(path: &str, properties: &str) -> String {
    response(path, &format!("<resourcetype><collection/></resourcetype>{properties}"))
}

fn response(path: &str, properties: &str) -> String {
    format!(
        "<response><href>{path}</href><propstat><prop>{properties}</prop><status>HTTP/1.1 200 OK</status>\
         </propstat></response>"
    )
}
