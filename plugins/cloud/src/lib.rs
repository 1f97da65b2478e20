//! Object stores of the large clouds, and whatever speaks their protocols: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`,
//! `az://CONTAINER/PREFIX`. docs/stores/cloud.md is for users.
//!
//! The requests and their signatures are the crate `object_store`'s; everything else it decides otherwise than we do. In
//! reading order: [`options`] (what a store is opened with), [`service`] (from settings to something that signs
//! requests), [`http`] (every request goes through here: who may be asked, what was answered), [`watchdog`] (no total
//! timeout, but no silence either), [`answer`] (from an answer to a [`StoreError`](chatkeep_store::StoreError)), [`call`]
//! (what one call of ours has seen so far), [`page`] (one page of a listing, distrusted), [`conditions`] (whether a server
//! honours `If-None-Match`), [`store`] (the `Store` itself), [`multipart`] and [`retention`].

mod answer;
mod call;
mod conditions;
mod http;
mod multipart;
mod options;
mod page;
mod retention;
mod service;
mod store;
mod watchdog;

use std::sync::Arc;

use chatkeep_store::{Opening, Result, Store, StoreError};

pub use watchdog::Pace;

/// The schemes that [`open`] knows.
pub const SCHEMES: &[&str] = &["s3", "gs", "az"];

/// Opens an `s3:`, `gs:` or `az:` store. Asks no server: wrong credentials show at the first call.
///
/// Nothing is looked up anywhere: neither in the environment, nor in files of other programs, nor at the metadata address
/// of a cloud machine. What is missing is [`Invalid`](StoreError::Invalid) and named.
pub async fn open(opening: &Opening) -> Result<Arc<dyn Store>> {
    open_with(opening, Pace::default()).await
}

/// As [`open`], with another idea of what a dead connection is.
pub async fn open_with(opening: &Opening, pace: Pace) -> Result<Arc<dyn Store>> {
    let settings = options::Settings::of(opening)?;
    // the roots of trust are read from files
    let service = tokio::task::spawn_blocking(move || service::Service::new(settings, pace));
    let service = service.await.map_err(|error| StoreError::Transient(error.into()))??;
    Ok(Arc::new(store::CloudStore::new(service)))
}
