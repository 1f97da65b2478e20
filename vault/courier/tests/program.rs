//! The program with a socket as its standard input.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_chatkeep-courier");

fn ask(socket: &std::path::Path, head: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "{head}host: x\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn it_serves_the_socket_it_was_given_and_leaves_when_nobody_calls() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["--idle-timeout", "1"])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .unwrap();
    let identity = "11".repeat(32);
    let check = |head: String, status: &str, word: &str| {
        let answer = ask(&socket, &head);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(word), "{answer}");
    };
    let call = "POST /v1/call HTTP/1.1\r\n";
    check("GET / HTTP/1.1\r\n".to_owned(), "400", "bad-request: only POST");
    check(call.to_owned(), "400", "bad-request: no chatkeep-vault-url");
    check(
        format!("{call}chatkeep-vault-url: https://127.0.0.1:1\r\n"),
        "400",
        "bad-request: no chatkeep-vault-id",
    );
    let to =
        |url: &str| format!("{call}chatkeep-vault-url: {url}\r\nchatkeep-vault-identity: {identity}\r\n");
    check(to("http://127.0.0.1:1"), "400", "bad-request: the address must begin");
    check(to("https://127.0.0.1:1"), "502", "unreachable-connect: ");

    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => panic!("it does not leave"),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    assert!(status.success());
}

#[test]
fn it_says_so_when_standard_input_is_no_socket() {
    let output = Command::new(PROGRAM).stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a listening unix socket"));
}
