//! What strangers may send, and how much of it: the routes on a real socket, without TLS.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::SocketAddr;

use chatkeep_vault_protocol::answer::{Answer, verify};
use chatkeep_vault_protocol::limits::REQUEST_LEN_MAX;
use chatkeep_vault_protocol::message::{Envelope, Info, Request};
use chatkeep_vault_server::http;
use common::Local;
use rand_core::OsRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

struct Served {
    local: std::sync::Arc<Local>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
}

async fn serve(connections_max: usize) -> Served {
    let local = Local::new("vault");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let routes = http::routes(local.vault().unwrap());
    let server =
        tokio::spawn(http::serve(listener, None, routes, http::Slots::new(connections_max), stopped));
    Served { local, address, stop, server }
}

impl Served {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The head of the answer to `head` and `body`, and its body.
    async fn ask(&self, head: &str, body: &[u8]) -> (String, Vec<u8>) {
        let mut stream = self.connect().await;
        let length = body.len();
        let head =
            format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // it may answer, and hang up, before it has read all of it
        stream.write_all(body).await.ok();
        read_answer(&mut stream).await
    }
}

async fn read_answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.ok();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer") + 4;
    (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end..].to_vec())
}

fn info() -> Vec<u8> {
    Envelope::new(Request::Info(Info {}), &mut OsRng).encode()
}

#[tokio::test]
async fn clients_get_signed_answers_and_people_a_page() {
    let served = serve(8).await;
    let request = info();
    let (head, answer) = served.ask("POST /v1/call", &request).await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/cbor"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    let now_s = served.local.vault().unwrap().now_s();
    let body = verify(&answer, &served.local.pin.identity, &request, now_s).unwrap();
    assert!(matches!(body.answer, Answer::Info(_)));
    let (head, page) = served.ask("GET /", b"").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(String::from_utf8(page).unwrap().contains("hsm: soft"));
}

#[tokio::test]
async fn everything_else_is_refused() {
    let served = serve(8).await;
    for (asked, status) in
        [("GET /v1/call", "405"), ("POST /", "405"), ("GET /metrics", "404"), ("GET /v1/call/x", "404")]
    {
        let (head, _) = served.ask(asked, b"").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{asked}: {head}");
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_not_read() {
    let served = serve(8).await;
    let (head, _) = served.ask("POST /v1/call", &vec![0; REQUEST_LEN_MAX]).await;
    assert!(head.starts_with("HTTP/1.1 200"), "malformed, and said so over a signature: {head}");
    let (head, _) = served.ask("POST /v1/call", &vec![0; REQUEST_LEN_MAX + 1]).await;
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
}

#[tokio::test]
async fn who_has_no_slot_waits_for_one() {
    let served = serve(1).await;
    let first = served.connect().await;
    let mut second = served.connect().await;
    second.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut byte = [0];
    tokio::select! {
        biased;
        _ = second.read(&mut byte) => panic!("it was answered while another connection had the only slot"),
        () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {}
    }
    drop(first);
    let (head, _) = read_answer(&mut second).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test]
async fn a_request_that_was_begun_is_answered_when_the_vault_stops() {
    let served = serve(8).await;
    let request = info();
    let mut stream = served.connect().await;
    let head = format!("POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", request.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // the head has arrived, and the vault waits for the body, when another connection was served
    served.ask("GET /", b"").await;
    served.stop.send_replace(true);
    stream.write_all(&request).await.unwrap();
    let (head, _) = read_answer(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("connection: close"), "{head}");
    served.server.await.unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}
