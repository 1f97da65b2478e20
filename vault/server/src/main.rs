//! `chatkeep-vault`: makes, serves and shows a Backup Key Vault.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chatkeep_vault_protocol::{Identity, head};
use chatkeep_vault_server::ceremony;
use chatkeep_vault_server::config::Config;
use chatkeep_vault_server::core::Policy;
use chatkeep_vault_server::hsm::{IdentityKey as _, SoftHsm};
use chatkeep_vault_server::vault::Vault;
use chatkeep_vault_server::{http, setup, tls, witness};
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
    /// Serve from a backup of the database: every account is left with one attempt at most.
    RestoreCeremony {
        /// Settings from a file …
        #[arg(long, conflicts_with_all = ["data", "insecure_dev"])]
        config: Option<PathBuf>,
        /// … or a data directory,
        #[arg(long, required_unless_present = "config")]
        data: Option<PathBuf>,
        /// and the knowledge that the keys are in software.
        #[arg(long)]
        insecure_dev: bool,
        /// What you agree to; without it, nothing is done and the phrase is shown.
        #[arg(long)]
        phrase: Option<String>,
        /// Make anchors anew that are lost for good. Witnesses never are.
        #[arg(long)]
        anchor_lost: bool,
    },
    /// Show the newest state to witnesses that are new or lost their memory.
    EnrolWitnesses {
        /// Settings, with `[[witness]]`.
        #[arg(long)]
        config: PathBuf,
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
            let config = settings(config, data, listen, insecure_dev)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(serve(config))?;
        }
        Command::Fingerprint { data } => println!("{}", Identity(SoftHsm::open(&data)?.public())),
        Command::Status { data } => {
            let (identity, seq, records) = setup::inspect(&data)?;
            println!(
                "identity {}\nhsm {}\ncommits {}\nrestores {}\nrecords {records}",
                Identity(identity),
                SoftHsm::NAME,
                head::commits(seq),
                head::restores(seq)
            );
        }
        Command::RestoreCeremony { config, data, insecure_dev, phrase, anchor_lost } => {
            let config = settings(config, data, NOWHERE, insecure_dev)?;
            restore(&config, phrase.as_deref(), anchor_lost)?;
        }
        Command::EnrolWitnesses { config } => {
            enrol(&settings(Some(config), None, NOWHERE, false)?)?;
        }
    }
    Ok(())
}

/// For commands that do not listen.
const NOWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

fn settings(
    config: Option<PathBuf>,
    data: Option<PathBuf>,
    listen: SocketAddr,
    insecure_dev: bool,
) -> anyhow::Result<Config> {
    match (config, data) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(&path).context("the configuration file")?;
            toml::from_str(&text).context("the configuration file")
        }
        (None, Some(data)) => Ok(Config::new(data, listen, insecure_dev)),
        (None, None) => bail!("say --config or --data"),
    }
}

fn restore(config: &Config, phrase: Option<&str>, anchor_lost: bool) -> anyhow::Result<()> {
    if phrase != Some(ceremony::PHRASE) {
        bail!(
            "a backup gives back attempts that were used after it was made. Serving from one leaves every account \
             with one attempt at most, until its owner gives the right password; accounts made since are gone, and \
             accounts erased since are there again, with one attempt. The number of restores is shown for ever, to \
             witnesses too. To do it, say: --phrase \"{}\"",
            ceremony::PHRASE
        );
    }
    let (parts, _lock) = setup::open(&config.data, Policy::default(), config.insecure_dev)?;
    let witnesses = witness::config::witness_anchor(&parts, config)?;
    let mut anchors = witness::config::list(parts.anchor, witnesses, config)?;
    let mut store = parts.store;
    let done = ceremony::restore(&mut *store, &parts.keys, &parts.digester, &mut anchors, anchor_lost)?;
    println!(
        "restored from commit {}{}\naccounts {}\nleft with one attempt {}\nrestores {}",
        done.backup,
        done.anchored.map(|seq| format!(" of {}", head::commits(seq))).unwrap_or_default(),
        done.accounts,
        done.reduced,
        done.restores
    );
    Ok(())
}

fn enrol(config: &Config) -> anyhow::Result<()> {
    let (mut parts, _lock) = setup::open(&config.data, Policy::default(), config.insecure_dev)?;
    let mut witnesses =
        witness::config::witness_anchor(&parts, config)?.context("the configuration names no witnesses")?;
    let state = witness::config::enrol(&mut parts, &mut witnesses, config)?;
    println!("a quorum of witnesses holds commit {}", head::commits(state.seq));
    Ok(())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let policy = config.policy.policy(config.insecure_dev)?;
    let (parts, _lock) = setup::open(&config.data, policy, config.insecure_dev)?;
    let parts = witness::config::join(parts, &config)?;
    let identity = parts.keys.identity.clone();
    let (failed, mut failure) = tokio::sync::mpsc::channel::<String>(2);
    let witness_failed = failed.clone();
    let witness = witness::config::witness(&config, move |what| drop(witness_failed.try_send(what)))?;
    // others may be needed for this check, and may need this vault for theirs: it listens meanwhile
    let may_wait = witness.is_some() || !config.witnesses.is_empty();
    let (vault, starting) = Vault::begin(parts, witness, true, move |what| drop(failed.try_send(what)))?;
    let vault = Arc::new(vault);
    let mut started = tokio::task::spawn_blocking(move || starting.wait());
    if !may_wait {
        (&mut started).await??;
    }
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
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
    let ready = || println!("listening on https://{address} identity {}", Identity(vault.identity()));
    let mut serving = !may_wait;
    if serving {
        ready();
    }

    let mut renewal = tokio::time::interval(RENEW_EVERY);
    renewal.tick().await; // the first tick is now, and the certificates are fresh
    let outcome = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            result = &mut started, if !serving => match result? {
                Ok(()) => {
                    serving = true;
                    ready();
                }
                Err(error) => break Err(error.into()),
            },
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
