//! What jobs do. Each runs in a task of its own, tells its progress, and ends with an [`Outcome`] for the loop.

mod drill;
mod keys;
pub mod prune;
mod repair;
mod retain;
mod stores;
mod vaults;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chatkeep_format::Keyslot;
use chatkeep_ipc::{Error, JobId, Server, VerifyDepth};
use chatkeep_vault_client::VaultPin;
use tokio::runtime::Handle;

use crate::archive::Archive;
use crate::catalogue::Catalogue;
use crate::event::{Opened, Outcome, Work};
use crate::fallback::Fallback;
use crate::fault::{Fault, Result};
use crate::guard::{Book, VaultSeen};
use crate::keyring::{Keys, Ring, mode_of};
use crate::keys::KeyStore;
use crate::paths::Paths;
use crate::restore::{Destination, Source};
use crate::stores::Opener;
use crate::witness::Compared;

pub use drill::rehearse_in;
pub use stores::list_remote;

/// What jobs work with. Cheap to clone.
#[derive(Clone)]
pub struct Tools {
    /// Where things lie.
    pub paths: Arc<Paths>,
    /// The device's keys.
    pub key_store: Arc<dyn KeyStore>,
    /// Opens stores.
    pub opener: Arc<Opener>,
    /// The cache.
    pub catalogue: Catalogue,
    /// The way to the vaults, and what this device did there.
    pub book: Book,
    /// Where progress is shown.
    pub server: Server,
    /// Tell the desktop what the user must act on; not without a session bus.
    pub notify: bool,
}

/// One job at work.
pub struct Job {
    /// What it works with.
    pub tools: Tools,
    /// Its name.
    pub id: JobId,
    /// Set to stop it.
    pub cancelled: Arc<AtomicBool>,
    /// What a vault said.
    pub vault: Option<VaultSeen>,
    /// The keys as a change that failed left them.
    pub keys: Option<Box<Keys>>,
}

impl Job {
    /// Does the work. A change of keys that failed half way is looked at again: what holds now is what the device and
    /// the store say.
    pub async fn run(&mut self, work: Work) -> Result<Outcome> {
        let changes = match &work {
            Work::ChangePassword { opened, pins, .. } | Work::Rotate { opened, pins, .. } => {
                Some((opened.archive.clone(), pins.clone()))
            }
            _ => None,
        };
        let result = self.carry_out(work).await;
        if let (Err(_), Some((archive, pins))) = (&result, changes) {
            let found = self.ring(&archive, &pins).open_on_device().await;
            self.keys = found.ok().flatten().map(Box::new);
        }
        result
    }

    async fn carry_out(&mut self, work: Work) -> Result<Outcome> {
        match work {
            Work::Restore { opened, stores, seq, destination } => {
                self.restore(&opened, stores, seq, destination).await
            }
            Work::Verify { opened, depth: VerifyDepth::Restore } => self.drill(&opened).await,
            Work::Verify { opened, depth } => self.verify(&opened, depth).await,
            Work::VerifyCopy { opened, store, copy } => self.verify_copy(&opened, store, copy).await,
            Work::Fetch { opened, copies, objects } => self.fetch(&opened, copies, objects).await,
            Work::Repair { opened, packs } => self.repair(&opened, packs).await,
            Work::EnablePassword { archive, pins, threshold, caution, password } => {
                self.enable_password(&archive, (&pins, threshold), caution, &password).await
            }
            Work::EnableKey { archive, key } => {
                self.phase("writing the keyring");
                let keys = self.ring(&archive, &[]).create(key, vec![Keyslot::Raw], None).await?;
                drop(keys);
                Ok(Outcome::Enabled { archive: archive.id, vault: String::new(), warning: None })
            }
            Work::ChangePassword { opened, pins, current, new } => {
                self.change_password(&opened, &pins, &current, &new).await
            }
            Work::Rotate { opened, pins, key } => {
                self.not_destroyed(&opened, &pins).await?;
                self.phase("writing the keyring");
                let vault = keys::vault_name(&pins, opened.keys.password_slot());
                let keys = self.ring(&opened.archive, &pins).rotate(key).await?;
                let keys = Box::new(keys);
                let warning = "what was stored before is still sealed under the old data key; somebody who knows the \
                               old key and has a copy of the store can read it";
                let warning = Some(warning.to_owned());
                Ok(Outcome::Rekeyed {
                    keys,
                    vault,
                    rotated: true,
                    store: Compared::Not,
                    confirmed: Vec::new(),
                    warning,
                })
            }
            Work::Unlock { archive, pins, secret, trust } => {
                self.unlock(&archive, &pins, &secret, &trust).await
            }
            Work::Check { opened, pins, secret, ask_vault } => {
                self.check(&opened, &pins, &secret, ask_vault).await
            }
            Work::ShowKey { opened, pins, proof, key_out } => {
                self.check(&opened, &pins, &proof, true).await?;
                key_out.write(&opened.keys.key.to_digits())?;
                Ok(Outcome::Checked)
            }
            Work::Adopt { archive, registration, restore } => {
                let ring = self.ring(&archive, &[]);
                let (candidates, _) = ring.candidates().await?;
                let readable = candidates.into_iter().find_map(|(_, keyring)| keyring.ok());
                let (keyring, _) =
                    readable.ok_or_else(|| Error::Corrupt("no keyring of it can be read".to_owned()))?;
                Ok(Outcome::Adopted { registration, restore, mode: mode_of(&keyring.slots).to_owned() })
            }
            Work::Retain { opened, stores } => self.retain(&opened, stores).await,
            Work::StoreTest { name, store } => stores::store_test(name, &*store).await,
            Work::StoreUsage { name, store } => {
                let usage = store.usage().await?;
                Ok(Outcome::StoreSeen { name, usage: Some(usage) })
            }
            Work::VaultRefresh { pin, pins, opened, confirm_us } => {
                self.vault_refresh(&pin, &pins, &opened, confirm_us).await
            }
            Work::Freeze { pins, opened, until_s, caution, confirm_us } => {
                self.freeze(&pins, &opened, until_s, (caution, confirm_us)).await
            }
            Work::Prune { opened, pins, policy, now_us, dry_run } => {
                self.phase("looking for what nobody needs");
                let (server, id) = (self.tools.server.clone(), self.id.clone());
                let progress = move |done: usize, of: usize| {
                    server.update_job(&id, |job| job.progress = done as f64 / of as f64);
                };
                let pruning = prune::Pruning {
                    opened: &opened,
                    catalogue: &self.tools.catalogue,
                    pins: &pins,
                    policy,
                    now_us,
                    dry_run,
                    cancelled: &self.cancelled,
                    progress: &progress,
                };
                Ok(Outcome::Pruned(Box::new(pruning.run().await?)))
            }
        }
    }

    fn ring<'a>(&'a self, archive: &'a Archive, pins: &'a [VaultPin]) -> Ring<'a> {
        Ring {
            archive,
            key_store: &*self.tools.key_store,
            catalogue: &self.tools.catalogue,
            transport: &self.tools.book,
            pins,
        }
    }

    fn phase(&self, phase: &str) {
        self.tools.server.update_job(&self.id, |job| {
            phase.clone_into(&mut job.phase);
            "running".clone_into(&mut job.state);
        });
    }

    /// Shows how far it is, in bytes.
    fn progress(&self, done: u64, total: u64) {
        self.tools.server.update_job(&self.id, |job| {
            job.bytes_done = done;
            job.bytes_total = total;
            job.progress = if total == 0 { 1.0 } else { done as f64 / total as f64 };
        });
    }

    fn source(&self, opened: &Opened) -> Source {
        let (server, id, started) = (self.tools.server.clone(), self.id.clone(), std::time::Instant::now());
        Source {
            archive: opened.archive.clone(),
            roots: opened.keys.roots.clone(),
            cancelled: self.cancelled.clone(),
            progress: Box::new(move |done, total| {
                server.update_job(&id, |job| {
                    job.bytes_done = done;
                    job.bytes_total = total;
                    job.progress = if total == 0 { 1.0 } else { done as f64 / total as f64 };
                    job.rate = (done as f64 / started.elapsed().as_secs_f64().max(0.001)) as u64;
                });
            }),
        }
    }

    /// Restores from the main store, and from copies what that one does not have.
    async fn restore(
        &self,
        opened: &Opened,
        stores: Vec<(String, Archive)>,
        seq: u64,
        destination: Destination,
    ) -> Result<Outcome> {
        self.phase("restoring");
        let mut source = self.source(opened);
        let (roots, catalogue) = (opened.keys.roots.clone(), self.tools.catalogue.clone());
        let reads = Arc::new(Fallback::new(stores, roots, catalogue));
        source.archive = Archive { store: reads.clone(), id: opened.archive.id };
        let runtime = Handle::current();
        let report = blocking(move || source.restore(seq, destination, &runtime)).await?;
        tracing::info!(seq, pages = report.pages, objects = report.objects, "restored and proved");
        let origin = reads.warning();
        let from_copies = origin.is_some();
        // What only copies have the main store does not lack.
        let is_there = self.tools.catalogue.point(&opened.archive.id, seq).is_some();
        let damages = if is_there { reads.damages() } else { Vec::new() };
        let warnings: Vec<String> = report.warning().into_iter().chain(origin).collect();
        let warning = (!warnings.is_empty()).then(|| warnings.join("; "));
        Ok(Outcome::Restored { seq, warning, from_copies, damages })
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Fault::cancelled()) } else { Ok(()) }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Fault::internal)?
}
