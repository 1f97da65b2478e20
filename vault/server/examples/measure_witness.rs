//! What witnesses cost: `cargo run --release --example measure_witness [DIR]`.
//!
//! A vault with the file anchor alone, then with 2 of 3 witnesses that listen on this machine's loopback, over TLS and
//! with databases of their own on the same disk. So a network adds its round trip, and disks of their own take some away.
#![allow(clippy::unwrap_used, reason = "a measurement has nobody to tell")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatkeep_vault_protocol::Identity;
use chatkeep_vault_server::anchor::{Anchor, Anchored};
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::vault::{Parts, Vault};
use chatkeep_vault_server::{http, setup, tls, witness};
use tokio::sync::watch;

const ADVANCES: u64 = 300;
const WITNESSES: usize = 3;

fn main() -> anyhow::Result<()> {
    let base = tempfile::tempdir_in(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()))?;
    let data = base.path().join("vault");
    let identity = Identity(setup::init(&Config::development(&data))?);
    let runtime = tokio::runtime::Runtime::new()?;
    let (_stop, stopped) = watch::channel(false);
    let mut witnesses = String::new();
    for n in 0..WITNESSES {
        let data = base.path().join(n.to_string());
        witnesses += &runtime.block_on(serve_witness(&data, &identity, stopped.clone()))?;
    }
    report("file", &mut *parts(&data, "")?.anchor)?;
    let quorum = WITNESSES / 2 + 1;
    let settings = format!("[anchor]\nkinds = [\"witness\"]\nquorum = {quorum}\n{witnesses}");
    report(&format!("witness, {quorum} of {WITNESSES}"), &mut *parts(&data, &settings)?.anchor)
}

/// Starts one, and gives the settings with which the vault finds it.
async fn serve_witness(
    data: &Path,
    vault: &Identity,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<String> {
    let identity = setup::init(&Config::development(data))?;
    let parts = parts(data, "")?;
    let leaf = tls::Leaf::issue(&*parts.keys.identity)?;
    let witness = witness::Witness::open(data, &[vault.0], |what| panic!("{what}"))?;
    let (served, starting) = Vault::begin(parts, Some(witness), false, |what| panic!("{what}"))?;
    starting.wait()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (tls, routes) = (tls::server_config(leaf)?, http::routes(Arc::new(served)));
    tokio::spawn(http::serve(listener, Some(tls), routes, http::Slots::new(16), stopped));
    Ok(format!("[[witness]]\nidentity = \"{}\"\naddress = \"https://{address}\"\n", Identity(identity)))
}

fn parts(data: &Path, settings: &str) -> anyhow::Result<Parts> {
    let text = format!("data = \"{}\"\nlisten = \"127.0.0.1:0\"\n{settings}", data.display());
    let config: Config = toml::from_str(&text)?;
    Ok(setup::open(&Config { insecure_dev: true, ..config })?.0)
}

fn report(name: &str, anchor: &mut dyn Anchor) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut at = anchor.read()?;
    let read = start.elapsed();
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..ADVANCES {
        let start = Instant::now();
        let mut root = at.root;
        root[..8].copy_from_slice(&(at.seq + 1).to_be_bytes());
        at = Anchored { seq: at.seq + 1, root };
        anchor.advance(&at)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!(
        "{name:>16}: read {:.1} ms; one batch {:.2} ms (median), {:.2} ms (99 of 100), {:.2} ms (worst)",
        read.as_secs_f64() * 1000.0,
        at(50),
        at(99),
        at(100)
    );
    Ok(())
}
