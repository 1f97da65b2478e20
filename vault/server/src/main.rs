//! `chatkeep-vault`: makes, serves and shows a Backup Key Vault.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chatkeep_vault_protocol::Identity;
use chatkeep_vault_server::cells::CellMap;
use chatkeep_vault_server::config::{Config, PolicyConfig, default_connections_max};
use chatkeep_vault_server::hsm::{IdentityKey, SoftHsm};
use chatkeep_vault_server::store::StoreConfig;
use chatkeep_vault_server::vault::Vault;
use chatkeep_vault_server::{http, setup, tls};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Certificates live for seven days; renewing daily leaves room for six days of trouble.
const RENEW_EVERY: Duration = Duration::from_hours(24);

/// Unless said otherwise.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// The Backup Key Vault of Chatkeep: counts password attempts, and erases its part of the key after the last.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make keys and an empty database.
    Init {
        /// Settings from a file: for records in PostgreSQL, and for one cell of several …
        #[arg(long, conflicts_with = "data")]
        config: Option<PathBuf>,
        /// … or a data directory; made if it does not exist.
        #[arg(long, required_unless_present = "config")]
        data: Option<PathBuf>,
        /// Know that the keys are in software.
        #[arg(long)]
        insecure_dev: bool,
    },
    /// Serve until SIGTERM. Prints one line when ready.
    Serve {
        /// Settings from a file …
        #[arg(long, conflicts_with_all = ["data", "listen", "insecure_dev"])]
        config: Option<PathBuf>,
        /// … or a data directory,
        #[arg(long, required_unless_present = "config")]
        data: Option<PathBuf>,
        /// an address,
        #[arg(long, default_value_t = LISTEN)]
        listen: SocketAddr,
        /// and the knowledge that the keys are in software.
        #[arg(long)]
        insecure_dev: bool,
    },
    /// Print the identity that clients pin.
    Fingerprint {
        /// The data directory.
        #[arg(long)]
        data: PathBuf,
    },
    /// Print what is in a data directory.
    Status {
        /// Settings from a file …
        #[arg(long, conflicts_with = "data")]
        config: Option<PathBuf>,
        /// … or a data directory.
        #[arg(long, required_unless_present = "config")]
        data: Option<PathBuf>,
    },
    /// Sign a map of cells with the vault's identity, in place.
    SignCells {
        /// The data directory.
        #[arg(long)]
        data: PathBuf,
        /// The map.
        map: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    // keys in memory must not end in a core file, nor be read by another process of this user
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    match Arguments::parse().command {
        Command::Init { config, data, insecure_dev } => {
            let config = configuration(config, data)?;
            if !insecure_dev && !config.insecure_dev {
                bail!(
                    "only software keys can be made so far; say --insecure-dev to know that they protect little"
                );
            }
            let identity = setup::init_with(&config.data, &config.store, config.cell.as_ref())?;
            println!("identity {}", Identity(identity));
        }
        Command::Serve { config, data, listen, insecure_dev } => {
            let config = match config {
                Some(path) => configuration(Some(path), None)?,
                None => Config { listen, insecure_dev, ..configuration(None, data)? },
            };
            serve(config)?;
        }
        Command::Fingerprint { data } => println!("{}", Identity(SoftHsm::open(&data)?.public())),
        Command::Status { config, data } => {
            let config = configuration(config, data)?;
            let status = setup::inspect(&config.data, &config.store)?;
            println!(
                "identity {}\nhsm {}\nstore {}\ncommits {}\nrecords {}",
                Identity(status.identity),
                SoftHsm::NAME,
                status.store,
                status.seq,
                status.records
            );
        }
        Command::SignCells { data, map } => {
            let text = std::fs::read_to_string(&map).context("the map of cells")?;
            std::fs::write(&map, CellMap::sign(&text, &SoftHsm::open(&data)?)?)
                .context("the map of cells")?;
        }
    }
    Ok(())
}

/// The settings in a file, or the defaults for a data directory.
fn configuration(config: Option<PathBuf>, data: Option<PathBuf>) -> anyhow::Result<Config> {
    match (config, data) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(&path).context("the configuration file")?;
            toml::from_str(&text).context("the configuration file")
        }
        (None, Some(data)) => Ok(Config {
            data,
            listen: LISTEN,
            insecure_dev: false,
            connections_max: default_connections_max(),
            policy: PolicyConfig::default(),
            store: StoreConfig::default(),
            cell: None,
        }),
        (None, None) => bail!("say --config or --data"),
    }
}

/// Opens the store on this thread, outside the runtime: it may wait for its lease, and PostgreSQL's brings a runtime
/// of its own.
fn serve(config: Config) -> anyhow::Result<()> {
    let policy = config.policy.policy(config.insecure_dev)?;
    let mut standby = || {
        tracing::info!("standby: another process has the store");
        let status = sd_notify::NotifyState::Status("standby: another process has the store");
        drop(sd_notify::notify(&[sd_notify::NotifyState::Ready, status]));
    };
    let Config { data, store, cell, insecure_dev, .. } = &config;
    let (parts, _lock) = setup::open_with(data, store, cell.as_ref(), policy, *insecure_dev, &mut standby)?;
    let identity = parts.keys.identity.clone();
    let (failed, failure) = tokio::sync::mpsc::channel::<String>(1);
    let vault = Arc::new(Vault::start(parts, move |what| drop(failed.try_send(what)))?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(answer(config, vault, identity, failure))
}

async fn answer(
    config: Config,
    vault: Arc<Vault>,
    identity: Arc<dyn IdentityKey>,
    mut failure: tokio::sync::mpsc::Receiver<String>,
) -> anyhow::Result<()> {
    let leaf = tls::Leaf::issue(&*identity)?;
    let listener = tokio::net::TcpListener::bind(config.listen).await.context("the address to listen on")?;
    let address = listener.local_addr()?;

    let (stop, stopped) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = tokio::spawn(http::serve(
        listener,
        tls::server_config(leaf.clone())?,
        vault.clone(),
        config.connections_max,
        stopped,
    ));
    println!("listening on https://{address} identity {}", Identity(vault.identity()));
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));

    let mut renewal = tokio::time::interval(RENEW_EVERY);
    renewal.tick().await; // the first tick is now, and the certificates are fresh
    let outcome = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            what = failure.recv() => {
                // what is durable is unknown: stop answering, start again from the disk
                break Err(anyhow::anyhow!("stopped: {}", what.unwrap_or_default()));
            }
            _ = renewal.tick() => {
                vault.renew_certificate();
                leaf.renew(&*identity)?;
            }
        }
    };
    drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    stop.send_replace(true);
    server.await?;
    outcome
}
