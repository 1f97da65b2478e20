//! `chatkeep-vault`: makes, serves and shows a Backup Key Vault.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chatkeep_vault_protocol::Identity;
use chatkeep_vault_server::config::{Config, PolicyConfig, default_connections_max};
use chatkeep_vault_server::hsm::{IdentityKey as _, SoftHsm};
use chatkeep_vault_server::vault::Vault;
use chatkeep_vault_server::{http, setup, tls};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Certificates live for seven days; renewing daily leaves room for six days of trouble.
const RENEW_EVERY: Duration = Duration::from_hours(24);

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
        /// Where; made if it does not exist.
        #[arg(long)]
        data: PathBuf,
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
        #[arg(long, default_value = "127.0.0.1:8443")]
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
        /// The data directory.
        #[arg(long)]
        data: PathBuf,
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
        Command::Init { data, insecure_dev } => {
            if !insecure_dev {
                bail!(
                    "only software keys can be made so far; say --insecure-dev to know that they protect little"
                );
            }
            println!("identity {}", Identity(setup::init(&data)?));
        }
        Command::Serve { config, data, listen, insecure_dev } => {
            let config = match (config, data) {
                (Some(path), _) => {
                    let text = std::fs::read_to_string(&path).context("the configuration file")?;
                    toml::from_str(&text).context("the configuration file")?
                }
                (None, Some(data)) => Config {
                    data,
                    listen,
                    insecure_dev,
                    connections_max: default_connections_max(),
                    policy: PolicyConfig::default(),
                },
                (None, None) => bail!("say --config or --data"),
            };
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(serve(config))?;
        }
        Command::Fingerprint { data } => println!("{}", Identity(SoftHsm::open(&data)?.public())),
        Command::Status { data } => {
            let (identity, seq, records) = setup::inspect(&data)?;
            println!(
                "identity {}\nhsm {}\ncommits {seq}\nrecords {records}",
                Identity(identity),
                SoftHsm::NAME
            );
        }
    }
    Ok(())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let policy = config.policy.policy(config.insecure_dev)?;
    let (parts, _lock) = setup::open(&config.data, policy, config.insecure_dev)?;
    let identity = parts.keys.identity.clone();
    let (failed, mut failure) = tokio::sync::mpsc::channel::<String>(1);
    let vault = Arc::new(Vault::start(parts, move |what| drop(failed.try_send(what)))?);
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
