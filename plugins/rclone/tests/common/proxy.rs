//! A WebDAV server with faults on command: a proxy of ours before a real one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chatkeep_store_rig::rclone;
use chatkeep_store_rig::server::Server;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::RANGE;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::World;

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The request is answered with this status and not passed on.
    Status(u16),
    /// The answer announces all of its body and ends in the middle of it.
    CutAnswer,
    /// Half of what is uploaded is passed on, and all of it acknowledged.
    HalveUpload,
    /// All is passed on, and looked at once; then an earlier attempt arrives and replaces it by its half.
    HalveLate,
    /// A range is not passed on, so the answer is the whole object.
    IgnoreRange,
    /// The answer to an upload comes after this many milliseconds.
    Wait(u64),
}

/// The requests that a fault is for: of a method, to paths that contain a text.
type Rule = (&'static str, &'static str, Fault);

/// The proxy with the server behind it.
pub(crate) struct Proxy {
    _server: Server,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<(String, String)>>,
    /// The half that arrives late: its path, and after how many looks.
    late: Mutex<Option<(String, u32, Bytes)>>,
}

impl Proxy {
    /// Starts both, and adds the remote `dav` to the configuration.
    pub(crate) async fn start(world: &mut World) -> Self {
        let server = rclone::webdav(&world.objects());
        let behind = server.address();
        let state = Arc::new(State::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        world.remote("dav", &[("type", "webdav"), ("vendor", "rclone"), ("url", &url)]);
        tokio::spawn(serve(listener, behind, Arc::clone(&state)));
        Self { _server: server, state }
    }

    /// From now on this goes wrong, and what went wrong before does not.
    pub(crate) fn set(&self, rules: &[Rule]) {
        *self.state.rules.lock().unwrap() = rules.to_vec();
    }

    /// The paths of all requests of a method so far.
    pub(crate) fn seen(&self, method: &str) -> Vec<String> {
        let seen = self.state.seen.lock().unwrap();
        seen.iter().filter(|(m, _)| m == method).map(|(_, path)| path.clone()).collect()
    }
}

async fn serve(listener: TcpListener, behind: SocketAddr, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        let service = service_fn(move |request: Request<Incoming>| {
            let (state, fault) = (Arc::clone(&state), state.fault_of(&request));
            async move { Ok::<_, Infallible>(state.answer(request, behind, fault).await) }
        });
        tokio::spawn(async move {
            // a client that goes away, or a body that is cut, ends it with an error
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl State {
    fn fault_of(&self, request: &Request<Incoming>) -> Option<Fault> {
        let path = request.uri().path();
        self.seen.lock().unwrap().push((request.method().to_string(), path.to_owned()));
        let fits = |(method, part, _): &&Rule| request.method() == *method && path.contains(part);
        self.rules.lock().unwrap().iter().find(fits).map(|(_, _, fault)| *fault)
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        behind: SocketAddr,
        fault: Option<Fault>,
    ) -> Response<Piece> {
        let (mut head, body) = request.into_parts();
        let mut body = body.collect().await.unwrap().to_bytes();
        match fault {
            Some(Fault::Status(status)) => {
                return Response::builder().status(status).body(Piece::whole(Bytes::new())).unwrap();
            }
            Some(Fault::HalveUpload) => {
                body.truncate(body.len() / 2);
                head.headers.remove("content-length");
            }
            Some(Fault::HalveLate) => {
                let half = body.slice(..body.len() / 2);
                *self.late.lock().unwrap() = Some((head.uri.path().to_owned(), 1, half));
            }
            Some(Fault::IgnoreRange) => {
                head.headers.remove(RANGE);
            }
            Some(Fault::Wait(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Some(Fault::CutAnswer) | None => {}
        }
        if head.method == "PROPFIND" {
            self.arrive_late(head.uri.path(), behind).await;
        }
        let (head, body) = pass_on(behind, Request::from_parts(head, body)).await.into_parts();
        let cut = matches!(fault, Some(Fault::CutAnswer)) && head.status.is_success();
        Response::from_parts(head, if cut { Piece::half(&body) } else { Piece::whole(body) })
    }

    async fn arrive_late(&self, path: &str, behind: SocketAddr) {
        let half = {
            let mut late = self.late.lock().unwrap();
            match late.as_mut() {
                Some((late_path, 0, _)) if late_path == path => late.take(),
                Some((late_path, looks, _)) if late_path == path => {
                    *looks -= 1;
                    None
                }
                _ => None,
            }
        };
        if let Some((path, _, half)) = half {
            let put = Request::put(path).header("host", "late").body(half).unwrap();
            assert!(pass_on(behind, put).await.status().is_success());
        }
    }
}

async fn pass_on(behind: SocketAddr, request: Request<Bytes>) -> Response<Bytes> {
    let stream = TcpStream::connect(behind).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request.map(Full::new)).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

/// A body that may end early.
struct Piece {
    bytes: Option<Bytes>,
    cut: bool,
}

impl Piece {
    fn whole(bytes: Bytes) -> Self {
        Self { bytes: Some(bytes), cut: false }
    }

    fn half(bytes: &Bytes) -> Self {
        Self { bytes: Some(bytes.slice(..bytes.len() / 2)), cut: true }
    }
}

impl Body for Piece {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let next = self.bytes.take().map(|bytes| Ok(Frame::data(bytes)));
        let cut = || self.cut.then(|| Err(std::io::Error::other("cut on command")));
        std::task::Poll::Ready(next.or_else(cut))
    }

    fn size_hint(&self) -> SizeHint {
        // the length that the server has announced is in a header
        SizeHint::default()
    }
}
