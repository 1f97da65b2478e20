//! A server that speaks as much of S3 as a put and a get need, and costs next to nothing: what is measured is the way to it.
//!
//! It is no store: it keeps the newest body of each key in memory and checks no signature. Beside it the same is measured
//! against moto, which is slow and answers like the real one.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, ETAG, LAST_MODIFIED};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

type Objects = Arc<Mutex<HashMap<String, Bytes>>>;

/// Serves until the runtime ends.
pub(crate) async fn start() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let objects = Objects::default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // a small answer must not wait for a full packet
            let _ = stream.set_nodelay(true);
            let objects = Arc::clone(&objects);
            let service = service_fn(move |request| answer(Arc::clone(&objects), request));
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

async fn answer(objects: Objects, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let key = request.uri().path().to_owned();
    let (status, body) = match *request.method() {
        Method::PUT => match request.into_body().collect().await {
            Ok(body) => {
                objects.lock().expect("nothing panics here").insert(key, body.to_bytes());
                (StatusCode::OK, Some(Bytes::new()))
            }
            Err(_) => (StatusCode::BAD_REQUEST, None),
        },
        Method::DELETE => {
            objects.lock().expect("nothing panics here").remove(&key);
            (StatusCode::NO_CONTENT, Some(Bytes::new()))
        }
        // HEAD: the library below writes the length and leaves the body out
        _ => match objects.lock().expect("nothing panics here").get(&key) {
            Some(body) => (StatusCode::OK, Some(body.clone())),
            None => (StatusCode::NOT_FOUND, None),
        },
    };
    let body = body.unwrap_or_default();
    let mut response = Response::builder().status(status).header(ETAG, "\"etag\"");
    response = response.header(LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT");
    response = response.header(CONTENT_LENGTH, body.len());
    Ok(response.body(Full::new(body)).expect("every part of it is well formed"))
}
