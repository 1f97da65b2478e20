//! What a plugin gives: a store, and perhaps a sign-in.

use std::sync::Arc;

use async_trait::async_trait;
use chatkeep_store::protocol::{AuthAnswer, AuthRequest};
use chatkeep_store::{Opening, Result, Secrets, Store, StoreError};

/// Opens stores. Also a function of an [`Opening`] is one.
#[async_trait]
pub trait Opener: Send + Sync + 'static {
    /// Opens a store; called again when the host opens it anew, perhaps with other secrets.
    ///
    /// A store whose user has not signed in yet opens all the same, and answers each call with
    /// [`Auth`](StoreError::Auth): [`Opened::sign_in`] needs something to be asked of.
    async fn open(&self, opening: Opening) -> Result<Box<dyn Opened>>;
}

/// An open store, with what a store alone does not have.
#[async_trait]
pub trait Opened: Send + Sync + 'static {
    /// The store.
    fn store(&self) -> Arc<dyn Store>;

    /// Whether secrets were renewed that the host has not fetched yet. Asked after each call.
    fn secrets_changed(&self) -> bool {
        false
    }

    /// Hands over the secrets that were renewed, and counts them as fetched.
    fn renewed_secrets(&self) -> Secrets {
        Secrets::new()
    }

    /// One step of a sign-in that the user carries out.
    async fn sign_in(&self, step: AuthRequest) -> Result<AuthAnswer> {
        let _ = step;
        Err(StoreError::Unsupported { what: "sign in by itself: it has only the secrets it is given" })
    }
}

/// A store that renews no secrets and has no sign-in.
pub struct Plain(pub Arc<dyn Store>);

impl Opened for Plain {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.0)
    }
}

/// What an [`Opener`] returns for a store that renews no secrets and has no sign-in.
pub fn plain(store: impl Store + 'static) -> Box<dyn Opened> {
    Box::new(Plain(Arc::new(store)))
}

#[async_trait]
impl<F, Fut> Opener for F
where
    F: Fn(Opening) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Box<dyn Opened>>> + Send,
{
    async fn open(&self, opening: Opening) -> Result<Box<dyn Opened>> {
        self(opening).await
    }
}
