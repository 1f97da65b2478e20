//! Vaults and stores.

use chatkeep_ipc::proxy::{Options, StoreProxy, VaultProxy};
use serde_json::json;

use super::Context;
use crate::explain::Result;
use crate::output::{self, Colour, paint, plain};
use crate::view::Object;
use crate::{job, time};

/// From here on the user is warned.
pub(super) const FEW_ATTEMPTS: u32 = 3;

pub(super) async fn status(context: &Context) -> Result<()> {
    let connection = &context.service.connection;
    for vault in &context.view().await?.vaults {
        let proxy = VaultProxy::builder(connection).path(&vault.path)?.build().await?;
        // a vault that does not answer is shown as such
        if let Ok(path) = proxy.refresh(Options::new()).await {
            let _ = job::follow(connection, &path, false).await;
        }
    }
    let view = context.view().await?;
    if context.json {
        let vaults: Vec<_> = view.vaults.iter().map(to_json).collect();
        output::json(&json!({ "vaults": vaults }));
        return Ok(());
    }
    if view.vaults.is_empty() {
        output::line("no vault is set up");
        return Ok(());
    }
    output::print(&output::table(&rows(&view.vaults)));
    Ok(())
}

pub(super) fn to_json(vault: &Object) -> serde_json::Value {
    json!({
        "id": id(vault), "url": vault.text("Url"), "state": vault.text("State"),
        "attempts_left": vault.get::<u32>("AttemptsLeft"), "attempts_max": vault.get::<u32>("AttemptsMax"),
        "retry_after": vault.number("RetryAfter"), "last_contact": vault.number("LastContact"),
        "fingerprint": vault.text("Fingerprint"),
    })
}

pub(super) fn id(object: &Object) -> String {
    ["vault", "store"]
        .iter()
        .find_map(|kind| chatkeep_ipc::names::id_of_path(kind, object.path.as_str()))
        .unwrap_or_default()
}

pub(super) fn rows(vaults: &[Object]) -> Vec<Vec<String>> {
    let now = time::now();
    let mut rows =
        vec![["VAULT", "STATE", "ATTEMPTS LEFT", "LAST CONTACT", "FINGERPRINT"].map(str::to_owned).to_vec()];
    for vault in vaults {
        let (left, max) = (vault.get::<u32>("AttemptsLeft"), vault.get::<u32>("AttemptsMax"));
        let attempts = match max {
            0 => "-".to_owned(),
            max if left <= FEW_ATTEMPTS => paint(&format!("{left} of {max}"), Colour::Red),
            max => format!("{left} of {max}"),
        };
        let state = vault.text("State");
        let colour = if state == "ok" { Colour::Green } else { Colour::Yellow };
        rows.push(vec![
            plain(&id(vault)),
            paint(&plain(&state), colour),
            attempts,
            time::age(vault.number("LastContact"), now),
            plain(&vault.text("Fingerprint")),
        ]);
    }
    rows
}

pub(super) async fn test_store(context: &Context, id: &str) -> Result<()> {
    let view = context.view().await?;
    let path = &view.store(id)?.path;
    let store = StoreProxy::builder(&context.service.connection).path(path)?.build().await?;
    let job = store.test(Options::new()).await?;
    context.follow(&job, "the store works: a probe was written, read back and deleted").await
}
