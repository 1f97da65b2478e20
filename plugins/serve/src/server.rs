//! Connections: who may call, how many at once, and how they end.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::opener::{Opened, Opener};
use crate::requests::respond;

/// Connections at the same time; a host opens at most 32. More wait.
const CONNECTIONS_MAX: usize = 64;

/// A plugin that is served: its name, its version, and how it opens a store.
pub struct Plugin {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) opener: Box<dyn Opener>,
    opened: RwLock<Option<Current>>,
}

/// The store that was opened last.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) opened: Arc<dyn Opened>,
    pub(crate) read_only: bool,
}

impl Plugin {
    /// One that has opened nothing yet.
    pub fn new(name: &'static str, version: &'static str, opener: impl Opener) -> Self {
        Self { name, version, opener: Box::new(opener), opened: RwLock::new(None) }
    }

    pub(crate) fn current(&self) -> Option<Current> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn replace(&self, current: Current) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(current);
    }
}

/// Serves until `stop` completes; calls that run then have `last_calls` to end, and are dropped after it.
pub async fn serve(
    listener: UnixListener,
    plugin: Plugin,
    stop: impl Future<Output = ()>,
    last_calls: Duration,
) -> io::Result<()> {
    let plugin = Arc::new(plugin);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stopping, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            Ok::<_, io::Error>((listener.accept().await?.0, slot))
        };
        tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept => {
                let (stream, slot) = accepted?;
                let (plugin, stopped) = (Arc::clone(&plugin), stopped.clone());
                connections.spawn(async move {
                    connection(stream, plugin, stopped).await;
                    drop(slot);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(stopping);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    // what still runs after it is dropped, and by the contract of stores is then done or not done
    let _ = tokio::time::timeout(last_calls, all_ended).await;
    connections.shutdown().await;
    Ok(())
}

/// Nothing here has a time limit: the host slows bodies down and holds them, and it is the one that gives up.
async fn connection(stream: UnixStream, plugin: Arc<Plugin>, mut stopped: watch::Receiver<()>) {
    let service = service_fn(move |request| {
        let plugin = Arc::clone(&plugin);
        async move { Ok::<_, Infallible>(respond(&plugin, request).await) }
    });
    let mut served = std::pin::pin!(
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service)
    );
    // a caller that goes away is no event worth telling
    tokio::select! {
        _ = served.as_mut() => {}
        _ = stopped.changed() => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}
