//! A server that speaks as much of S3 as a put and a get need, and costs next to nothing: what is measured is the way to it.
//!
//! It is no store: it keeps the newest body of each key in memory and checks no signature. Beside it the same is measured
//! against moto, which is slow and answers like the real one.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, ETAG, LAST_MODIFIED};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What is kept, and the line to it.
struct Sink {
    objects: Mutex<HashMap<String, Bytes>>,
    /// Bytes a second over all connections, in each direction; `None` is: as fast as it goes.
    rate: Option<u64>,
    /// Until when the line is taken.
    taken: Mutex<Instant>,
}

impl Sink {
    /// Waits for a turn of so many bytes on the line.
    async fn carry(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let over = {
            let mut taken = self.taken.lock().expect("nothing panics here");
            *taken = (*taken).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *taken
        };
        tokio::time::sleep_until(over.into()).await;
    }
}

/// Serves until the runtime ends.
pub(crate) async fn start(rate: Option<u64>) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let sink = Arc::new(Sink { objects: Mutex::default(), rate, taken: Mutex::new(Instant::now()) });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // a small answer must not wait for a full packet
            let _ = stream.set_nodelay(true);
            let sink = Arc::clone(&sink);
            let service = service_fn(move |request| answer(Arc::clone(&sink), request));
            tokio::spawn(async move {
                // a client that goes away is no event worth telling
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(address)
}

async fn answer(sink: Arc<Sink>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let key = request.uri().path().to_owned();
    let (status, body) = if *request.method() == Method::PUT {
        let taken = take(&sink, request.into_body()).await;
        let status = if taken.is_some() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
        if let Some(body) = taken {
            sink.objects.lock().expect("nothing panics here").insert(key, body);
        }
        (status, Bytes::new())
    } else {
        // HEAD: the library below writes the length and leaves the body out
        let found = sink.objects.lock().expect("nothing panics here").get(&key).cloned();
        if let Some(body) = &found {
            sink.carry(body.len()).await;
        }
        (if found.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND }, found.unwrap_or_default())
    };
    let mut response = Response::builder().status(status).header(ETAG, "\"etag\"");
    response = response.header(LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT");
    response = response.header(CONTENT_LENGTH, body.len());
    Ok(response.body(Full::new(body)).expect("every part of it is well formed"))
}

/// The body, as fast as the line carries it.
async fn take(sink: &Sink, mut body: Incoming) -> Option<Bytes> {
    let mut taken = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.ok()?.into_data() {
            sink.carry(piece.len()).await;
            taken.extend_from_slice(&piece);
        }
    }
    Some(Bytes::from(taken))
}
