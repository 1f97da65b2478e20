//! `chatkeep-vault`: makes, serves and shows a Backup Key Vault.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chatkeep_vault_protocol::{Identity, head};
use chatkeep_vault_server::cells::CellMap;
use chatkeep_vault_server::ceremony;
use chatkeep_vault_server::config::{Config, HsmConfig};
use chatkeep_vault_server::hsm::{HsmError, IdentityKey};
use chatkeep_vault_server::reseal::{self, ResealError};
use chatkeep_vault_server::vault::{Starting, Vault};
use chatkeep_vault_server::{http, setup, tls, witness};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Certificates live for seven days; renewing daily leaves room for six days of trouble.
const RENEW_EVERY: Duration = Duration::from_hours(24);
/// Much less than the shortest useful lifetime of a seal key.
const LOOK_AT_SEAL_KEY_EVERY: Duration = Duration::from_mins(10);
/// Threads that wait for the device: enough to keep it busy, few enough for `TasksMax=` of the unit.
const BLOCKING_THREADS_MAX: usize = 64;

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
    Init(Place),
    /// Serve until SIGTERM. Prints one line when ready.
    Serve {
        #[command(flatten)]
        place: Place,
        /// Where to listen, without a configuration.
        #[arg(long, default_value = "127.0.0.1:8443", conflicts_with = "config")]
        listen: SocketAddr,
    },
    /// Print the identity that clients pin.
    Fingerprint(Place),
    /// Print what there is, and what it cannot protect against.
    Status(Place),
    /// Exchange the key that seals records: old copies of the database can never be opened again. Not while it serves: then
    /// it does so itself, as `seal_key_lifetime` says.
    RotateSealKey(Place),
    /// Serve from a backup of the database: every account is left with one attempt at most.
    RestoreCeremony {
        #[command(flatten)]
        place: Place,
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
    /// Sign a map of cells with the vault's identity, in place.
    SignCells {
        #[command(flatten)]
        place: Place,
        /// The map.
        map: PathBuf,
    },
}

/// Which vault.
#[derive(Args)]
struct Place {
    /// Settings from a file …
    #[arg(long, conflicts_with_all = ["data", "insecure_dev"])]
    config: Option<PathBuf>,
    /// … or a data directory, with keys in software,
    #[arg(long, required_unless_present = "config")]
    data: Option<PathBuf>,
    /// and the knowledge that these protect little.
    #[arg(long)]
    insecure_dev: bool,
}

impl Place {
    fn config(self) -> anyhow::Result<Config> {
        match (self.config, self.data) {
            (Some(path), _) => Config::read(&path),
            (None, Some(data)) => {
                Ok(Config { insecure_dev: self.insecure_dev, ..Config::development(&data) })
            }
            (None, None) => bail!("say --config or --data"),
        }
    }
}

/// What systemd does not start again for: with a wrong PIN, that would lock the token.
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:?}");
            let wrong_pin = error
                .chain()
                .any(|cause| matches!(cause.downcast_ref::<HsmError>(), Some(HsmError::Pin { .. })));
            if wrong_pin { ExitCode::from(EX_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn run() -> anyhow::Result<()> {
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
        Command::Init(place) => {
            let config = place.config()?;
            if config.hsm == (HsmConfig::Soft {}) && !config.insecure_dev {
                bail!(
                    "these would be keys in software; say --insecure-dev, or insecure_dev = true, to know that they \
                     protect little, or configure a device"
                );
            }
            println!("identity {}", Identity(setup::init(&config)?));
        }
        Command::Serve { place, listen } => {
            let from_file = place.config.is_some();
            let mut config = place.config()?;
            if !from_file {
                config.listen = listen;
            }
            serve(&config)?;
        }
        Command::Fingerprint(place) => println!("{}", Identity(setup::identity(&place.config()?)?)),
        Command::Status(place) => status(&setup::inspect(&place.config()?)?),
        Command::RotateSealKey(place) => rotate_seal_key(&place.config()?)?,
        Command::RestoreCeremony { place, phrase, anchor_lost } => {
            restore(&place.config()?, phrase.as_deref(), anchor_lost)?;
        }
        Command::EnrolWitnesses { config } => {
            let state = setup::enrol_witnesses(&Config::read(&config)?)?;
            println!("a quorum of witnesses holds commit {}", head::commits(state.seq));
        }
        Command::SignCells { place, map } => {
            let identity = setup::identity_key(&place.config()?)?;
            let text = std::fs::read_to_string(&map).context("the map of cells")?;
            std::fs::write(&map, CellMap::sign(&text, &*identity)?).context("the map of cells")?;
        }
    }
    Ok(())
}

fn status(vault: &setup::Inspected) {
    println!(
        "identity {}\nhsm {}\nanchor {}\nstore {}\nseal keys {:?}\ncommits {}\nrestores {}\nrecords {}",
        Identity(vault.identity),
        vault.hsm,
        vault.anchor,
        vault.store,
        vault.seal_keys,
        head::commits(vault.seq),
        head::restores(vault.seq),
        vault.records
    );
    if let Some(weakness) = vault.weakness {
        println!("warning: {weakness}");
    }
    for caution in &vault.cautions {
        println!("warning: {caution}");
    }
    if let Some(limit) = vault.anchor_limit {
        println!("warning: the anchor ({}): {limit}", vault.anchor);
    }
}

fn rotate_seal_key(config: &Config) -> anyhow::Result<()> {
    let (parts, _lock) = setup::open(config)?;
    let vault = Vault::start(parts, |what| eprintln!("stopped: {what}"))?;
    let key_id = reseal::rotate(&vault, |left| {
        println!("{left} records left");
        true
    })?;
    println!("seal key {key_id}");
    Ok(())
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
    let mut vault = setup::open_apart(config)?;
    let mut anchors = vault.anchors.into_all();
    let (store, digester) = (&mut *vault.store, &vault.digester);
    let done = ceremony::restore(store, &vault.keys, digester, &mut anchors, anchor_lost)?;
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

/// Opens keys, store and anchors outside the runtime: the store may wait for its lease, and PostgreSQL and the ways to
/// witnesses bring runtimes of their own.
fn serve(config: &Config) -> anyhow::Result<()> {
    let mut standby = || {
        tracing::info!("standby: another process has the store");
        let status = sd_notify::NotifyState::Status("standby: another process has the store");
        drop(sd_notify::notify(&[sd_notify::NotifyState::Ready, status]));
    };
    let (parts, _lock) = setup::open_or_wait(config, &mut standby)?;
    let identity = parts.keys.identity.clone();
    let (failed, failure) = mpsc::channel::<String>(2);
    let witness_failed = failed.clone();
    let witness = witness::config::witness(config, move |what| drop(witness_failed.try_send(what)))?;
    // others may be needed for the check, and may need this vault for theirs: it listens meanwhile
    let may_wait = witness.is_some() || !config.witnesses.is_empty();
    let (vault, starting) = Vault::begin(parts, witness, true, move |what| drop(failed.try_send(what)))?;
    let begun = Begun { vault: Arc::new(vault), starting, may_wait, failure };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()?;
    runtime.block_on(answer(config, begun, identity))
}

/// A vault that may not serve yet.
struct Begun {
    vault: Arc<Vault>,
    starting: Starting,
    may_wait: bool,
    failure: mpsc::Receiver<String>,
}

async fn answer(config: &Config, begun: Begun, identity: Arc<dyn IdentityKey>) -> anyhow::Result<()> {
    let Begun { vault, starting, may_wait, mut failure } = begun;
    let mut started = tokio::task::spawn_blocking(move || starting.wait());
    if !may_wait {
        (&mut started).await??;
    }
    let leaf = tls::Leaf::issue(&*identity)?;
    let listener = tokio::net::TcpListener::bind(config.listen).await.context("the address to listen on")?;
    let address = listener.local_addr()?;

    let (stop, stopped) = watch::channel(false);
    let stops = stopped.clone();
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
    let ready = || {
        println!("listening on https://{address} identity {}", Identity(vault.identity()));
        if let Some(lifetime_s) = config.hsm.seal_key_lifetime_s() {
            tokio::spawn(keep_seal_key_young(vault.clone(), lifetime_s, stops.clone()));
        }
    };
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
            what = failure.recv() => break match what {
                // what is durable is unknown: stop answering, start again from the disk
                Some(what) => Err(anyhow::anyhow!("stopped: {what}")),
                None if serving => Err(anyhow::anyhow!("stopped")),
                // the check at the start came to an end: that knows why
                None => Err((&mut started).await?.err().map_or_else(|| anyhow::anyhow!("stopped"), Into::into)),
            },
            _ = renewal.tick() => {
                // a device that is busy or away for a moment: the next day is early enough
                if let Err(error) = renew(&vault, &leaf, &*identity) {
                    tracing::error!(%error, "cannot renew the certificates");
                }
            }
        }
    };
    drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    stop.send_replace(true);
    server.await?;
    // an exchange of the seal key may wait for witnesses that are away
    vault.interrupt();
    outcome
}

fn renew(vault: &Vault, leaf: &tls::Leaf, identity: &dyn IdentityKey) -> anyhow::Result<()> {
    vault.renew_certificate()?;
    leaf.renew(identity)
}

/// Exchanges the key that seals records when it is old, or when an exchange was left unfinished.
async fn keep_seal_key_young(vault: Arc<Vault>, lifetime_s: u64, mut stopped: watch::Receiver<bool>) {
    let mut look = tokio::time::interval(LOOK_AT_SEAL_KEY_EVERY);
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            _ = look.tick() => {}
        }
        let (vault, stop) = (vault.clone(), stopped.clone());
        let exchange = tokio::task::spawn_blocking(move || {
            if reseal::is_due(&vault, lifetime_s)? {
                reseal::rotate(&vault, |_left| !*stop.borrow())?;
            }
            Ok::<_, ResealError>(())
        });
        if let Ok(Err(error)) = exchange.await {
            tracing::warn!(%error, "the key that seals records was not exchanged");
        }
    }
}
