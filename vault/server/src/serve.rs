//! From a configuration to a vault that answers: opens everything, listens, renews what gets old, and ends in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chatkeep_vault_protocol::Identity;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::config::{Config, Loopback};
use crate::hsm::IdentityKey;
use crate::http::{self, Slots};
use crate::reseal::{self, ResealError};
use crate::vault::{Starting, Vault};
use crate::{setup, tls, witness};

/// Certificates live for seven days; renewing daily leaves room for six days of trouble.
const RENEW_EVERY: Duration = Duration::from_hours(24);
/// Much less than the shortest useful lifetime of a seal key.
const LOOK_AT_SEAL_KEY_EVERY: Duration = Duration::from_mins(10);
/// Threads that wait for the device: enough to keep it busy, few enough for `TasksMax=` of the unit.
const BLOCKING_THREADS_MAX: usize = 64;
/// One Prometheus needs one, and somebody who looks another.
const METRICS_CONNECTIONS_MAX: usize = 4;

/// Opens keys, store and anchors outside the runtime: the store may wait for its lease, and PostgreSQL and the ways to
/// witnesses bring runtimes of their own.
pub fn serve(config: &Config) -> anyhow::Result<()> {
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
    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr()?;

    let (stop, stopped) = watch::channel(false);
    let stops = stopped.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let slots = Slots::new(config.connections_max);
    if let Some(Loopback(address)) = config.metrics {
        let listener = listen(address, "metrics").await?;
        let routes = http::metrics_routes(vault.clone(), slots.clone());
        tokio::spawn(http::serve(
            listener,
            None,
            routes,
            Slots::new(METRICS_CONNECTIONS_MAX),
            stopped.clone(),
        ));
    }
    let (tls, routes) = (tls::server_config(leaf.clone())?, http::routes(vault.clone()));
    let server = tokio::spawn(http::serve(listener, Some(tls), routes, slots, stopped));
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

async fn listen(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (`{setting}`)"))
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
