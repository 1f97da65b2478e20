//! `chatkeep-vault`: makes, serves and shows a Backup Key Vault.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use chatkeep_vault_protocol::{Identity, head};
use chatkeep_vault_server::cells::CellMap;
use chatkeep_vault_server::ceremony;
use chatkeep_vault_server::config::{Config, Duration, HsmConfig};
use chatkeep_vault_server::core::Terms;
use chatkeep_vault_server::hsm::HsmError;
use chatkeep_vault_server::serve::serve;
use chatkeep_vault_server::vault::Vault;
use chatkeep_vault_server::{reseal, setup};
use clap::{ArgGroup, Args, Parser, Subcommand};
use rand_core::OsRng;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

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
    /// Make invitations, and print them: one a line, this once. Also while the vault serves.
    Invite {
        /// Settings, with `[admission] kind = "invite"`.
        #[arg(long)]
        config: PathBuf,
        /// Accounts that each admits; in a vault of many cells, in each of them.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
        uses: u16,
        /// For how long: `12h`, `30d` at most.
        #[arg(long, default_value = "30d")]
        expires: Duration,
        /// How many invitations.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        count: u16,
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
#[command(group(ArgGroup::new("which").required(true).args(["config", "data"])))]
struct Place {
    /// Settings from a file …
    #[arg(long, conflicts_with = "insecure_dev")]
    config: Option<PathBuf>,
    /// … or a data directory, with keys in software,
    #[arg(long)]
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
            // one line, without a trace: whoever reads it runs a vault
            eprintln!("Error: {error:#}");
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
    log_to_stderr();
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
        Command::Invite { config, uses, expires, count } => {
            let inviter = setup::inviter(&Config::read(&config)?)?;
            let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let terms = Terms { uses, expires_s: now_s + expires.seconds };
            for _ in 0..count {
                println!("{}", *inviter.make(terms, &mut OsRng).to_text());
            }
        }
        Command::SignCells { place, map } => {
            let identity = setup::identity_key(&place.config()?)?;
            let context = || format!("the map of cells `{}`", map.display());
            let text = std::fs::read_to_string(&map).with_context(context)?;
            std::fs::write(&map, CellMap::sign(&text, &*identity)?).with_context(context)?;
        }
    }
    Ok(())
}

/// As the service on the desktop does. No record has an address of a client or the number of an account, whatever the level.
fn log_to_stderr() {
    // levels by target, as `info,chatkeep_vault_server=debug`; filters by span and field would need regular expressions
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(Level::INFO));
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    // the journal has its own clock
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        registry.with(log.without_time()).init();
    } else {
        registry.with(log).init();
    }
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
