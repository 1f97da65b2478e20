//! What tests of the `dav:` store share.

#![allow(clippy::unwrap_used, dead_code, reason = "tests")]

pub(crate) mod fake;

use std::sync::{Arc, Once};
use std::time::Duration;

use chatkeep_store::{Opening, PutCondition, Result, Store, StoreKey};
use chatkeep_store_dav::{Tuning, open_tuned};
use chatkeep_store_rig::dav::{Dav, PASSWORD, USER};
use zeroize::Zeroizing;

/// Patience of a test: long on a busy machine, short for a person who waits.
pub(crate) const TUNING: Tuning =
    Tuning { stall: Duration::from_secs(20), connect: Duration::from_secs(20), slowest: 1 << 30 };

pub(crate) fn install_tls() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap());
}

pub(crate) fn opening(port: u16) -> Opening {
    install_tls();
    let mut opening = Opening::of_url(&format!("dav+http://127.0.0.1:{port}/backups"));
    opening.secrets.set("username", Zeroizing::new(USER.to_owned()));
    opening.secrets.set("password", Zeroizing::new(PASSWORD.to_owned()));
    opening
}

pub(crate) async fn store(server: &Dav) -> Arc<dyn Store> {
    open_tuned(&opening(server.port()), TUNING).await.unwrap()
}

pub(crate) fn key(text: &str) -> StoreKey {
    StoreKey::try_from(text).unwrap()
}

pub(crate) async fn create(store: &dyn Store, name: &str) -> Result<()> {
    store.put(&key(name), name.to_owned().into(), PutCondition::CreateIfAbsent).await.map(|_| ())
}

pub(crate) async fn names(store: &dyn Store) -> Result<Vec<String>> {
    Ok(store.list("").await?.into_iter().map(|object| object.key.to_string()).collect())
}
