//! What an operator can watch, and that it tells nothing of any one account or client.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use chatkeep_vault_client::{
    CourierTransport, Invite, Invites, KdfFloor, KdfParams, Transport as _, VaultPin, begin_change,
    commit_change, destroy, freeze, known_head, register_invited, status, witness_head,
};
use chatkeep_vault_protocol::slot::Slot;
use chatkeep_vault_rig::postgres::Cluster;

use common::program::{PROGRAM, Program, courier};
use common::{CONTEXT, KEY, PASSWORD, unlock};
use rand_core::OsRng;

/// A vault that says all it can say, and an invitation to it.
fn serve(dir: &Path, store: &str) -> (Program, SocketAddr, Invite) {
    // free now, and nobody else asks for it in the moment before the vault does
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = dir.join("config.toml");
    let settings = format!(
        "data = '{}'\nlisten = '127.0.0.1:0'\nmetrics = '{metrics}'\ninsecure_dev = true\n[admission]\nkind = 'invite'\n{store}",
        dir.join("data").display()
    );
    std::fs::write(&config, settings).unwrap();
    let run = |command: &str| {
        let done = Command::new(PROGRAM).args([command, "--config"]).arg(&config).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    run("init");
    let invite = run("invite").parse().unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--config"]).arg(&config).env("RUST_LOG", "trace");
    (Program::start(&mut command).ready(), metrics, invite)
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Everything that a client can ask for, once. Gives the slots that it had.
async fn whole_life(transport: &CourierTransport, pins: &[VaultPin], invite: &Invite) -> Vec<Vec<u8>> {
    let (invites, kdf) = (Invites::from([(pins[0].identity, invite.clone())]), KdfParams::TESTING);
    let old = register_invited(transport, pins, &invites, 1, &CONTEXT, PASSWORD, &KEY, kdf, &mut OsRng).await;
    let old = old.unwrap();
    unlock(transport, pins, &old.slot, PASSWORD).await.unwrap();
    unlock(transport, pins, &old.slot, b"wrong").await.unwrap_err();
    let entry = (7, [7; 32]);
    witness_head(transport, pins, &CONTEXT, &old.slot, &old.secret, entry, &mut OsRng).await.unwrap();
    known_head(transport, pins, &CONTEXT, &old.slot, &old.secret, &mut OsRng).await.unwrap();
    status(transport, pins, &CONTEXT, &old.slot, &old.secret, &mut OsRng).await.unwrap();
    let new = begin_change(transport, pins, &CONTEXT, &old.slot, &old.secret, b"new", kdf, &mut OsRng)
        .await
        .unwrap();
    commit_change(transport, pins, &CONTEXT, &new.slot, &new.secret, &mut OsRng).await.unwrap();
    freeze(transport, pins, &CONTEXT, &new.slot, &new.secret, 4_000_000_000, &mut OsRng).await.unwrap();
    destroy(transport, pins, &CONTEXT, &new.slot, &new.secret, &mut OsRng).await.unwrap();
    transport.call(&pins[0], b"no request".to_vec()).await.unwrap();
    vec![old.slot, new.slot]
}

/// `bytes` in the ways in which a program might write them.
fn written(bytes: &[u8]) -> Vec<String> {
    let debug = format!("{bytes:?}");
    let list = debug.trim_matches(['[', ']']).to_owned();
    let mut escaped = String::new();
    for byte in bytes {
        write!(escaped, "\\x{byte:02x}").unwrap();
    }
    let hex = hex::encode(bytes);
    let base64 = (0..3).flat_map(|from| ["+/", "-_"].map(|last| base64(&bytes[from..], last)));
    [hex.clone(), hex.to_uppercase(), list, escaped].into_iter().chain(base64).collect()
}

/// The letters that do not depend on what follows; with the three beginnings they are found inside longer texts, too.
fn base64(bytes: &[u8], last: &str) -> String {
    let letters = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(last.chars());
    let letters: Vec<char> = letters.collect();
    let threes = bytes.chunks_exact(3).map(|three| u32::from_be_bytes([0, three[0], three[1], three[2]]));
    let digits = threes.flat_map(|three| [18, 12, 6, 0].map(|shift| (three >> shift & 63) as usize));
    digits.map(|digit| letters[digit]).collect()
}

fn assert_tells_nothing(text: &str, secrets: &[Vec<u8>]) {
    for needle in secrets.iter().flat_map(|secret| written(secret)) {
        assert!(!text.contains(&needle), "`{needle}` is in: {text}");
    }
    assert!(!text.contains("127.0.0."), "an address is in: {text}");
}

async fn check(store: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (served, metrics, invite) = serve(dir.path(), store);
    let pins = [served.pin()];
    let slots = whole_life(&courier(dir.path()), &pins, &invite).await;
    let account = |slot: &Vec<u8>| {
        let header = Slot::decode(slot, KdfFloor::AllowWeakKdf).unwrap().header;
        header.account(&pins[0].identity).to_vec()
    };
    let mut secrets: Vec<_> = slots.iter().map(account).collect();
    secrets.push(invite.as_bytes()[..16].to_vec());

    let shown = get(metrics, "/metrics");
    assert!(shown.starts_with("HTTP/1.1 200") && shown.contains("text/plain; version=0.0.4"), "{shown}");
    for line in [
        "chatkeep_vault_requests_total{kind=\"begin\",outcome=\"evaluated\"} 2",
        "chatkeep_vault_requests_total{kind=\"guess\",outcome=\"charged\"} 2",
        "chatkeep_vault_requests_total{kind=\"malformed\",outcome=\"refused_malformed\"} 1",
        "chatkeep_vault_requests_total{kind=\"destroy\",outcome=\"destroyed\"} 1",
        "chatkeep_vault_evaluation_seconds_count 4",
        "chatkeep_vault_records 2",
        "chatkeep_vault_ready 1",
        "chatkeep_vault_in_flight_requests 0",
    ] {
        assert!(shown.lines().any(|found| found == line), "no `{line}` in {shown}");
    }
    assert!(get(metrics, "/").starts_with("HTTP/1.1 404"));
    assert_tells_nothing(&shown, &secrets);

    let said = served.stop();
    assert!(said.contains("kind=\"guess\" outcome=\"charged\""), "it says what it does: {said}");
    assert_tells_nothing(&said, &secrets);
}

#[tokio::test]
async fn neither_metrics_nor_logs_tell_who_asked_for_what() {
    check("").await;
}

#[tokio::test]
async fn nor_with_records_in_postgresql() {
    let cluster = tokio::task::spawn_blocking(Cluster::alone).await.unwrap();
    let host = cluster.node("a").host();
    let store = format!(
        "[store]\nkind = 'postgres'\nhosts = ['{host}']\ndatabase = 'cell'\nuser = 'vault'\nallow_asynchronous = true\n"
    );
    check(&store).await;
}

#[test]
fn the_search_knows_how_programs_write_bytes() {
    let ways = written(&[0xfb, 0xff, 0x01, 0x02, 0x03]);
    for way in ["fbff010203", "251, 255, 1, 2, 3", "\\xfb\\xff\\x01", "+/8B", "-_8B", "/wEC", "AQID"] {
        assert!(ways.iter().any(|found| found.starts_with(way)), "{way}: {ways:?}");
    }
}
