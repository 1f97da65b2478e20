//! From the configuration to stores and vaults.

mod managed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use chatkeep_store::Store;
use chatkeep_store_local::LocalStore;
use chatkeep_vault_client::{Identity, VaultPin};

use crate::config;
use crate::registry::ConfirmedVault;

pub use managed::Managed;

/// Opens every configured store. Whether it can be reached shows later: a drive that is not plugged in is no mistake.
///
/// Those in `used` hold archives of ours already: an empty folder in their place is a drive that is away, not a new store.
pub fn open_all(stores: &[config::Store], used: &BTreeSet<String>) -> Result<BTreeMap<String, Arc<Managed>>> {
    let mut opened = BTreeMap::new();
    for store in stores {
        let found =
            open(store, used.contains(&store.name)).with_context(|| format!("store `{}`", store.name))?;
        let retain_s = store.retain.0.map(|span| span.0 / 1000);
        opened.insert(store.name.clone(), Arc::new(Managed::new(found, retain_s)));
    }
    Ok(opened)
}

fn open(store: &config::Store, used: bool) -> Result<Arc<dyn Store>> {
    let scheme = store.url.split(':').next().unwrap_or_default();
    if scheme != "file" {
        bail!("this version cannot use `{scheme}:` stores, only `file:`");
    }
    if let Some(option) = store.options.keys().next() {
        bail!("`file:` stores have no option `{option}`");
    }
    let local = if used { LocalStore::reopen_url(&store.url) } else { LocalStore::from_url(&store.url) };
    Ok(Arc::new(local?))
}

/// The vaults with their pinned identities.
pub fn pins(vaults: &[config::Vault]) -> Result<Vec<VaultPin>> {
    let pin = |vault: &config::Vault| {
        let identity: Identity =
            vault.identity.parse().with_context(|| format!("vault `{}`: `identity`", vault.name))?;
        if !vault.url.starts_with("https://") {
            bail!("vault `{}`: `url` must begin with https://", vault.name);
        }
        Ok(VaultPin { name: vault.name.clone(), url: vault.url.clone(), identity: identity.0 })
    };
    vaults.iter().map(pin).collect()
}

/// Adds the vaults that the user confirmed, unless the configuration has them.
pub fn with_confirmed(
    mut pins: Vec<VaultPin>,
    confirmed: &BTreeMap<String, ConfirmedVault>,
) -> Vec<VaultPin> {
    for (name, vault) in confirmed {
        let Ok(identity) = vault.identity.parse::<Identity>() else { continue };
        if pins.iter().any(|pin| pin.identity == identity.0) {
            continue;
        }
        let name = free_name(&pins, name);
        pins.push(VaultPin { name, url: vault.url.clone(), identity: identity.0 });
    }
    pins
}

/// A name that no other vault has.
pub fn free_name(pins: &[VaultPin], wanted: &str) -> String {
    let taken = |name: &str| pins.iter().any(|pin| pin.name == name);
    let wanted = if wanted.is_empty() { "vault" } else { wanted };
    let others = (2..u32::MAX).map(|n| format!("{wanted}-{n}"));
    let mut names = std::iter::once(wanted.to_owned()).chain(others);
    names.find(|name| !taken(name)).expect("there are more numbers than vaults")
}
