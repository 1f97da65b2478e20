//! What somebody sees who listens between the vault and its TPM: everything that goes over the wire to swtpm.
#![cfg(feature = "tpm2")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use chatkeep_vault_rig::swtpm::{self, Swtpm};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::{hsm, setup};

const HOST: &str = "0x0180c4e0";
const SEAL: [&str; 2] = ["0x0180c4e1", "0x0180c4e2"];
const ANCHOR: &str = "0x0180c4e3";

type Heard = Arc<Mutex<Vec<u8>>>;

/// Carries everything to the TPM and back; gives its own port.
fn listen(tpm_port: u16, heard: &Heard) -> u16 {
    let port = (0..50).find_map(|_| swtpm::free_port()).expect("a free port");
    for channel in [0, 1] {
        let heard = heard.clone();
        let listener = TcpListener::bind(("127.0.0.1", port + channel)).unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, tpm) =
                    (client.unwrap(), TcpStream::connect(("127.0.0.1", tpm_port + channel)).unwrap());
                let ways = [(client.try_clone().unwrap(), tpm.try_clone().unwrap()), (tpm, client)].map(
                    |(from, to)| {
                        let heard = heard.clone();
                        std::thread::spawn(move || carry(from, to, &heard))
                    },
                );
                for way in ways {
                    way.join().unwrap();
                }
            }
        });
    }
    port
}

fn carry(mut from: TcpStream, mut to: TcpStream, heard: &Heard) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        heard.lock().unwrap().extend_from_slice(&bytes[..length]);
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Write).ok();
}

#[test]
fn no_secret_travels_but_what_lets_the_root_be_used() {
    let (tpm, dir) = (Swtpm::new(), tempfile::tempdir().unwrap());
    let heard = Heard::default();
    let port = listen(tpm.port(), &heard);
    let settings =
        tpm.settings(dir.path(), "").replace(&format!("port={}", tpm.port()), &format!("port={port}"));
    let config: Config = toml::from_str(&settings).unwrap();

    setup::init(&config).unwrap();
    let mut device = hsm::open(&config.hsm, &config.data, hsm::Part::Whole).unwrap();
    device.keys.sealer.make_key(1).unwrap();
    let anchor = device.anchor.as_mut().unwrap();
    let mut value = anchor.read().unwrap();
    value.root = [0x5a; 32];
    anchor.advance(&value).unwrap();
    drop(device);

    let heard = heard.lock().unwrap();
    let travels = |bytes: &[u8]| heard.windows(bytes.len()).any(|window| window == bytes);
    let auth = |auth: String| hex::decode(auth.strip_prefix("hex:").unwrap()).unwrap();
    let read = |index| tpm.do_tool("tpm2_nvread", &[index, "-C", index, "-P", &swtpm::index_auth()]);
    assert!(!travels(&auth(swtpm::index_auth())), "auth value of the indices");
    assert!(!travels(&read(HOST)[..32]), "the host's secret");
    for index in SEAL {
        assert!(!travels(&read(index)[12..]), "a seal key");
    }
    // and it was really listened
    assert!(travels(&auth(swtpm::root_auth())) && travels(&read(ANCHOR)[8..]));
}
