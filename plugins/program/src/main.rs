//! `chatkeep-store`: the plugin of every store that Chatkeep ships, told apart by the scheme of the URL.
//!
//! Started with a listening unix socket as file descriptor 0 (docs/plugins.md). It gets sealed bytes, and the secrets of one
//! store; it has no keys.

use std::sync::Arc;

use chatkeep_store::{Opening, Result, Store, StoreError};
use chatkeep_store_serve::{Opened, Plain};

fn main() -> std::io::Result<()> {
    if std::env::args_os().nth(1).is_some() {
        let usage = "chatkeep-store takes no arguments: it serves the socket that is its standard input (chatkeepd starts it)";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, usage));
    }
    // one provider for all of TLS below; it was set already only if somebody set the same one
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    chatkeep_store_serve::run("chatkeep-store", env!("CARGO_PKG_VERSION"), |opening: Opening| async move {
        let store = open(&opening).await?;
        Ok(Box::new(Plain(store)) as Box<dyn Opened>)
    })
}

async fn open(opening: &Opening) -> Result<Arc<dyn Store>> {
    match opening.url.split(':').next().unwrap_or_default() {
        "s3" | "gs" | "az" => chatkeep_store_cloud::open(opening).await,
        "dav" | "davs" | "dav+http" => chatkeep_store_dav::open(opening).await,
        "sftp" => chatkeep_store_sftp::open(opening).await,
        "rclone" => chatkeep_store_rclone::open(opening).await,
        _ => Err(StoreError::Invalid {
            reason: "chatkeep-store does not know the scheme of this URL".to_owned(),
        }),
    }
}
