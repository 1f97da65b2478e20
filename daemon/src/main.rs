//! `chatkeepd`: reads its settings, takes its places, and runs the loop.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use chatkeep_ipc::{BusAddress, ServeError, Server, Settings};
use chatkeepd::catalogue::Catalogue;
use chatkeepd::config::{Config, KeyStorage};
use chatkeepd::courier::Courier;
use chatkeepd::event::Event;
use chatkeepd::guard::Book;
use chatkeepd::jobs::Tools;
use chatkeepd::keys::{KeyFiles, KeyStore, SecretService};
use chatkeepd::paths::{Paths, private_dir};
use chatkeepd::service::Service;
use chatkeepd::stores::Opener;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Sender, channel};
use tracing::{Level, error, info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Another instance runs, or the configuration must not be run with (`EX_CONFIG`): systemd does not restart it.
const EXIT_CONFIG: u8 = 78;

/// How long a predecessor may take to leave: 3 seconds.
const LOCK_TRIES: u32 = 30;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// End-to-end encrypted backup of the databases of chat programs: the user service.
#[derive(Debug, Parser)]
#[command(name = "chatkeepd", version)]
struct Arguments {
    /// The configuration [default: $XDG_CONFIG_HOME/chatkeep/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve on the control socket only
    #[arg(long)]
    no_bus: bool,
}

/// Why the service did not start, sorted by whether starting it again can help.
enum Failed {
    /// It cannot: the user has to do something.
    ForGood(anyhow::Error),
    /// It may.
    ForNow(anyhow::Error),
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::ForNow(error)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // No core dump holds a key, and no other process of the user can read our memory.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    log_to_stderr();
    end_on_panic();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "the service cannot start");
            return ExitCode::FAILURE;
        }
    };
    let exit = match runtime.block_on(serve(arguments)) {
        Ok(status) => ExitCode::from(status),
        Err(Failed::ForGood(error)) => {
            error!("{error:#}");
            ExitCode::from(EXIT_CONFIG)
        }
        Err(Failed::ForNow(error)) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    };
    // A call that hangs in the file system must not hold up the end.
    runtime.shutdown_background();
    exit
}

/// A crash is safe, a service of which half is dead is not: a panic anywhere ends the process, and systemd starts it
/// again.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        if !chatkeepd::catalogue::OPENING.load(std::sync::atomic::Ordering::SeqCst) {
            std::process::abort();
        }
    }));
}

fn log_to_stderr() {
    // Levels by target, as `info,zbus=warn`; filters by span and field would bring regular expressions into memory.
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| {
        Targets::new()
            .with_default(Level::INFO)
            .with_target("zbus", Level::WARN)
            .with_target("sled", Level::WARN)
    });
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    // The journal has its own clock.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        registry.with(log.without_time()).init();
    } else {
        registry.with(log).init();
    }
}

async fn serve(arguments: Arguments) -> Result<u8, Failed> {
    let mut paths = Paths::from_environment().map_err(Failed::ForGood)?;
    if let Some(config) = arguments.config {
        paths.config = config;
    }
    let config = Config::load(&paths.config).map_err(|error| Failed::ForGood(error.into()))?;
    for folder in [&paths.data, &paths.state] {
        private_dir(folder)?;
    }
    private_dir(&paths.state.join("tables"))?;
    let lock = lock(&paths.state).await?;
    if let Err(error) = std::fs::remove_dir_all(paths.drills())
        && error.kind() != std::io::ErrorKind::NotFound
    {
        warn!(%error, "what an interrupted rehearsal left cannot be removed");
    }
    let key_store = key_store(&config, &paths).await?;
    let catalogue = Catalogue::open(&paths.state.join("cache")).context("the cache cannot be opened")?;
    let (events, incoming) = channel(1024);
    let server = start_server(&config, &events);
    let courier =
        Courier::new(config.service.courier_socket.clone().unwrap_or_else(|| paths.courier_socket()));
    let book = Book::new(Arc::new(courier), catalogue.clone());
    let control_socket = paths.control_socket();
    let opener = Arc::new(Opener::new(&paths, key_store.clone()).await);
    let tools = Tools {
        catalogue,
        key_store,
        opener,
        book,
        server: server.clone(),
        notify: !arguments.no_bus,
        paths: Arc::new(paths.clone()),
    };
    let service = Service::new(tools.clone(), config, paths.config.clone()).map_err(Failed::ForGood)?;
    let control = server.serve_control_socket(&control_socket).await.map_err(|error| match error {
        ServeError::SocketTaken => Failed::ForGood(error.into()),
        other => Failed::ForNow(anyhow::Error::from(other).context("the control socket cannot be served")),
    })?;
    let bus = if arguments.no_bus { None } else { join_bus(&server, &events).await? };
    if !arguments.no_bus {
        tokio::spawn(chatkeepd::line::watch_system(events.clone()));
    }
    listen_for_signals(&events).context("signals cannot be received")?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    info!(version = env!("CARGO_PKG_VERSION"), "ready");
    let status = chatkeepd::hands::run(service, tools, events, incoming).await;
    drop(bus);
    drop(control);
    drop(lock);
    info!("stopped");
    Ok(status)
}

/// One service for one state folder: two would write one queue. A predecessor that is just leaving is waited for.
async fn lock(state: &std::path::Path) -> Result<std::fs::File, Failed> {
    let path = state.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let taken = || rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    for _ in 0..LOCK_TRIES {
        match taken() {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(LOCK_PAUSE).await,
            Err(error) => {
                return Err(Failed::ForNow(
                    anyhow::Error::from(error).context("the state folder cannot be locked"),
                ));
            }
        }
    }
    Err(Failed::ForGood(anyhow::anyhow!("another chatkeepd uses {}", state.display())))
}

async fn key_store(config: &Config, paths: &Paths) -> Result<Arc<dyn KeyStore>, Failed> {
    Ok(match config.service.key_storage {
        KeyStorage::File => {
            let folder = paths.data.join("keys");
            private_dir(&folder)?;
            Arc::new(KeyFiles::new(folder))
        }
        KeyStorage::SecretService => {
            let service = SecretService::connect().await.context(
                "the desktop's keyring cannot be used; start it, or choose `key_storage = \"file\"` knowingly",
            )?;
            Arc::new(service)
        }
    })
}

/// Calls become events.
fn start_server(config: &Config, events: &Sender<Event>) -> Server {
    let (calls, mut incoming) = channel(64);
    let events = events.clone();
    tokio::spawn(async move {
        while let Some(call) = incoming.recv().await {
            if events.send(Event::Call(call)).await.is_err() {
                return;
            }
        }
    });
    Server::new(calls, Settings { allowed_apps: config.service.allowed_apps.iter().cloned().collect() })
}

/// The bus is for sandboxed apps and for watching: without one the control socket serves all the same.
async fn join_bus(
    server: &Server,
    events: &Sender<Event>,
) -> Result<Option<tokio::task::JoinHandle<()>>, Failed> {
    match server.serve_bus(&BusAddress::Session).await {
        Ok(bus) => {
            let events = events.clone();
            Ok(Some(tokio::spawn(async move {
                bus.closed().await;
                let _ = events.send(Event::BusLost).await;
            })))
        }
        Err(error @ ServeError::NameTaken) => Err(Failed::ForGood(error.into())),
        Err(error) => {
            warn!(%error, "no session bus; only the control socket is served");
            Ok(None)
        }
    }
}

fn listen_for_signals(events: &Sender<Event>) -> std::io::Result<()> {
    let wanted: [(SignalKind, fn() -> Event); 3] = [
        (SignalKind::terminate(), || Event::Stop),
        (SignalKind::interrupt(), || Event::Stop),
        (SignalKind::hangup(), || Event::Reload),
    ];
    for (kind, event) in wanted {
        let mut stream = signal(kind)?;
        let events = events.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let reload = kind == SignalKind::hangup();
                if reload {
                    notify_reloading();
                }
                let _ = events.send(event()).await;
                if reload {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                }
            }
        });
    }
    Ok(())
}

/// `Type=notify-reload` wants to know when a reload began, on its own clock.
fn notify_reloading() {
    if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading, now]);
    }
}
