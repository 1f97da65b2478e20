//! `chatkeep-bench-store`: bytes a second into S3 and back, by the library itself, by our store around it, and by the plugin
//! process behind its socket, in turns of one run. docs/benchmarks.md has the figures.

mod sink;
mod ways;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use chatkeep_store::{PutCondition, StoreKey};
use chatkeep_store_rig::moto::Moto;
use clap::Parser;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use serde_json::json;

use ways::{Direct, Way};

/// Measures the way to a store.
#[derive(Parser)]
struct Arguments {
    /// The plugin, `chatkeep-store`; built with --release
    #[arg(long)]
    program: PathBuf,
    /// Length of an object, in MiB
    #[arg(long, default_value_t = 8)]
    mib: usize,
    /// Objects a turn
    #[arg(long, default_value_t = 32)]
    objects: usize,
    /// How many at once
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// Turns of each way; the median counts
    #[arg(long, default_value_t = 7)]
    turns: usize,
}

/// Servers that only take bytes: at the end of a line as users have it (bytes a second), and of none at all.
const SINKS: [(&str, Option<u64>); 3] =
    [("100 Mbit/s", Some(12_500_000)), ("1 Gbit/s", Some(125_000_000)), ("no line", None)];

/// What one way did against one server, in MB/s.
struct Speeds {
    way: &'static str,
    put: Vec<f64>,
    get: Vec<f64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("| server | way | put, MB/s | of direct | get, MB/s | of direct |\n|---|---|---|---|---|---|");
    let mut figures = Vec::new();
    for (name, rate) in SINKS {
        let sink = runtime.block_on(sink::start(rate))?;
        figures.push(runtime.block_on(server(name, &format!("http://{sink}"), &arguments))?);
    }
    let moto = Moto::start();
    moto.bucket("bench", false);
    figures.push(runtime.block_on(server("moto", &moto.endpoint(), &arguments))?);
    println!("{}", json!({ "servers": figures }));
    Ok(())
}

/// All ways to one server, in turns.
async fn server(name: &str, endpoint: &str, arguments: &Arguments) -> Result<serde_json::Value> {
    let plugin = ways::plugin(&arguments.program, endpoint).await?;
    let idle = plugin.memory()?;
    let ways: Vec<Way> = vec![
        Way { name: "object_store", store: Arc::new(Direct::new(endpoint)?) },
        Way { name: "our store", store: ways::in_process(endpoint).await? },
        Way { name: "plugin", store: plugin.store() },
    ];
    let mut speeds: Vec<Speeds> =
        ways.iter().map(|way| Speeds { way: way.name, put: Vec::new(), get: Vec::new() }).collect();
    let body = Bytes::from((0..arguments.mib << 20).map(|at| ((at * 31) >> 7) as u8).collect::<Vec<u8>>());
    for turn in 0..=arguments.turns {
        for (way, speed) in ways.iter().zip(&mut speeds) {
            let (put, get) = measure(way, &body, arguments).await?;
            // the first turn opens connections
            if turn > 0 {
                speed.put.push(put);
                speed.get.push(get);
            }
        }
    }
    let busy = plugin.memory()?;
    let direct = (median(&speeds[0].put), median(&speeds[0].get));
    let mut rows = Vec::new();
    for speed in &speeds {
        let (put, get) = (median(&speed.put), median(&speed.get));
        let (of_put, of_get) = (put / direct.0, get / direct.1);
        println!("| {name} | {} | {put:.0} | {of_put:.2} | {get:.0} | {of_get:.2} |", speed.way);
        rows.push(json!({ "way": speed.way, "put_mb_s": put, "put_ratio": of_put, "get_mb_s": get, "get_ratio": of_get }));
    }
    println!("plugin: {idle} KiB of its own at rest, {busy} KiB after that (Pss)");
    Ok(json!({ "server": name, "ways": rows, "plugin_idle_kib": idle, "plugin_busy_kib": busy }))
}

/// Puts and gets of one turn, in MB/s. Every turn writes the same objects: nothing has to be deleted, and memory is bounded.
async fn measure(way: &Way, body: &Bytes, arguments: &Arguments) -> Result<(f64, f64)> {
    let keys: Vec<StoreKey> = (0..arguments.objects)
        .map(|at| StoreKey::try_from(format!("{}/{at}", way.name.replace([' ', '_'], "-"))))
        .collect::<Result<_, _>>()?;
    let bytes = (body.len() * keys.len()) as f64;
    let speed = |took: Duration| bytes / 1e6 / took.as_secs_f64();
    let begin = Instant::now();
    let puts = keys.iter().map(|key| way.store.put(key, body.clone(), PutCondition::Overwrite));
    let receipts: Vec<_> =
        futures_util::stream::iter(puts).buffer_unordered(arguments.parallel).try_collect().await?;
    let put = speed(begin.elapsed());
    ensure!(
        receipts.iter().all(|receipt| receipt.len == body.len() as u64),
        "a put is not acknowledged as whole"
    );
    let begin = Instant::now();
    let gets = keys.iter().map(|key| way.store.get(key, None));
    let bodies: Vec<Bytes> =
        futures_util::stream::iter(gets).buffer_unordered(arguments.parallel).try_collect().await?;
    let get = speed(begin.elapsed());
    ensure!(bodies.iter().all(|back| back == body), "a body came back different");
    Ok((put, get))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
