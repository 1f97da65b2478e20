//! From the configuration to stores and vaults.

mod managed;
mod plugin;
mod unusable;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use chatkeep_store::Opening;
use chatkeep_store::memory::MemoryStore;
use chatkeep_store_host::manifest::find::{Manifests, Places};
use chatkeep_store_host::manifest::trust::TrustList;
use chatkeep_store_host::{Launcher, Settings};
use chatkeep_store_local::LocalStore;
use chatkeep_vault_client::{Identity, VaultPin};
use tracing::warn;
use zeroize::Zeroizing;

use crate::config;
use crate::keys::KeyStore;
use crate::paths::Paths;
use crate::registry::ConfirmedVault;

pub use managed::Managed;
pub use plugin::Plugin;

/// What stores are opened with.
pub struct Opener {
    /// Where secrets are.
    pub key_store: Arc<dyn KeyStore>,
    /// Folder for the sockets of plugins; each gets one of its own below it.
    pub runtime: PathBuf,
    /// Remembers which manifests of the home directory the user trusts.
    pub trusted: PathBuf,
    /// Starts plugins.
    pub launcher: Arc<dyn Launcher>,
    /// Counts what was opened.
    opened: AtomicU32,
}

impl Opener {
    /// For a service with these paths. As a unit of the systemd user manager it has plugins started by that: a child would
    /// inherit its walls, and have no network.
    pub async fn new(paths: &Paths, key_store: Arc<dyn KeyStore>) -> Self {
        let session = zbus::Connection::session().await.ok();
        Self::with_launcher(paths, key_store, chatkeep_store_host::launch::usual(session))
    }

    /// As [`Opener::new`], with plugins started in this way.
    pub fn with_launcher(paths: &Paths, key_store: Arc<dyn KeyStore>, launcher: Arc<dyn Launcher>) -> Self {
        let runtime = paths.plugin_sockets();
        if let Err(error) = std::fs::remove_dir_all(&runtime)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(%error, "the sockets of earlier plugins cannot be removed");
        }
        let trusted = paths.data.join("trusted-plugins.toml");
        Self { key_store, runtime, trusted, launcher, opened: AtomicU32::new(0) }
    }

    /// Opens every configured store; what is in `kept`, usable and unchanged since `before` stays open. Whether a store can be reached
    /// shows later: a drive that is not plugged in is no mistake, and a plugin is started by the first call.
    ///
    /// Those in `used` hold archives of ours already: an empty folder in their place is a drive that is away, not a new store.
    pub fn open_all(
        &self,
        stores: &[config::Store],
        used: &BTreeSet<String>,
        (before, kept): (&[config::Store], &BTreeMap<String, Arc<Managed>>),
    ) -> Result<BTreeMap<String, Arc<Managed>>> {
        let manifests = Manifests::load(&Places::usual());
        let mut opened = BTreeMap::new();
        for store in stores {
            let same = before.contains(store).then(|| kept.get(&store.name)).flatten();
            // What may not run then may run now: somebody trusts it, or has put it back.
            let managed = match same.filter(|managed| managed.why_unusable().is_none()) {
                Some(managed) => managed.clone(),
                None => Arc::new(
                    self.open(store, used.contains(&store.name), &manifests)
                        .with_context(|| format!("store `{}`", store.name))?,
                ),
            };
            opened.insert(store.name.clone(), managed);
        }
        Ok(opened)
    }

    fn open(&self, store: &config::Store, used: bool, manifests: &Manifests) -> Result<Managed> {
        let retain_s = store.retain.0.map(|span| span.0 / 1000);
        let scheme = store.scheme();
        if matches!(scheme, "file" | "memory") {
            if let Some(option) = store.options.keys().next() {
                bail!("`{scheme}:` stores have no option `{option}`");
            }
            if let Some(secret) = store.secrets.keys().next() {
                bail!("`{scheme}:` stores have no secret `{secret}`");
            }
        }
        if scheme == "memory" {
            warn!(
                store = store.name,
                "what is in this store is gone when the service ends: it is for trying out"
            );
            return Ok(Managed::new(Arc::new(MemoryStore::new()), retain_s));
        }
        if scheme == "file" {
            if retain_s.is_some() {
                bail!("`file:` stores cannot lock objects against deletion (`retain`)");
            }
            let local =
                if used { LocalStore::reopen_url(&store.url) } else { LocalStore::from_url(&store.url) };
            return Ok(Managed::new(Arc::new(local?), retain_s));
        }
        let manifest = manifests.for_url(&store.url)?;
        let mut opening =
            Opening { url: store.url.clone(), options: store.option_texts(), ..Opening::default() };
        // Who wants locks has said so: the mode that an administrator can undo is the default, as in docs/stores/cloud.md.
        if retain_s.is_some() && manifest.options.contains_key("retain_mode") {
            opening.options.entry("retain_mode".to_owned()).or_insert_with(|| "governance".to_owned());
        }
        // The values are fetched when the store is first used; which there are is known now.
        for name in store.secrets.keys() {
            opening.secrets.set(name, Zeroizing::new(String::new()));
        }
        let complete = manifest.complete(&opening)?;
        // Unlike a wrong setting this can come and go by itself, and must not end the backups to other stores.
        let may_run = TrustList::new(&self.trusted).check(manifest);
        let launch = match may_run.and_then(|()| manifest.launch(&store.name, &complete)) {
            Ok(launch) => launch,
            Err(error) => {
                warn!(store = store.name, %error, "the store cannot be used");
                return Ok(Managed::unusable(&error, retain_s));
            }
        };
        // A folder for each: the socket of one that is being replaced is removed only when its last call has ended.
        let folder = self.runtime.join(self.opened.fetch_add(1, Ordering::Relaxed).to_string());
        let settings = Settings::new(launch, self.launcher.clone(), complete, &folder);
        let plugin = Arc::new(Plugin::new(store.clone(), settings, self.key_store.clone())?);
        Ok(Managed::of_plugin(plugin, retain_s))
    }
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
