//! Puts packs that were made again from the live database, or that a copy has intact, where the damaged ones are.

use std::collections::BTreeSet;

use bytes::Bytes;
use chatkeep_format::ObjectName;
use tracing::{debug, info, warn};

use super::{Job, blocking};
use crate::archive::Archive;
use crate::event::{Opened, Outcome};
use crate::fallback::Fallback;
use crate::fault::{Fault, Result};
use crate::spool::Spooled;

impl Job {
    /// Each of `packs` lies in the spool, synced, until it is in the store.
    pub(super) async fn repair(&self, opened: &Opened, packs: Vec<Spooled>) -> Result<Outcome> {
        self.phase("repairing");
        let mut repaired = BTreeSet::new();
        let mut failure: Option<Fault> = None;
        for spooled in packs {
            if self.check_cancelled().is_err() {
                failure = Some(Fault::cancelled());
                break;
            }
            match self.put_again(opened, &spooled).await {
                Ok(()) => drop(repaired.insert(spooled.name)),
                Err(fault) => {
                    warn!(error = %fault.error.short_name(), "a pack that was made again cannot be stored now");
                    failure = failure.or(Some(fault));
                }
            }
        }
        Ok(Outcome::Repaired { objects: repaired.into_iter().collect(), failure })
    }

    /// Brings objects back that a copy has intact: packs, and entries that are missing. What no copy has is left as it is.
    pub(super) async fn fetch(
        &self,
        opened: &Opened,
        copies: Vec<(String, Archive)>,
        objects: Vec<ObjectName>,
    ) -> Result<Outcome> {
        self.phase("reading copies");
        let (roots, catalogue) = (opened.keys.roots.clone(), self.tools.catalogue.clone());
        let reads = Fallback::new(copies, roots, catalogue);
        let mut back = Vec::new();
        for name in objects {
            self.check_cancelled()?;
            let sealed = match reads.object(name).await {
                Ok(sealed) => sealed,
                Err(error) => {
                    debug!(%error, "no copy has an object that is damaged");
                    continue;
                }
            };
            let put = match name {
                ObjectName::Pack(pack) => {
                    // Safe here before anything is deleted there.
                    let spooled = opened.spool.put_repair(pack, &sealed)?;
                    self.put_again(opened, &spooled).await
                }
                name => opened.archive.put_new(name, sealed).await.map_err(Fault::from),
            };
            match put {
                Ok(()) => {
                    info!(object = %name.store_key(&opened.archive.id), "an object was brought back from a copy");
                    back.push(name);
                }
                Err(fault) => {
                    warn!(error = %fault.error.short_name(), "an object of a copy cannot be stored now");
                }
            }
        }
        Ok(Outcome::Fetched { objects: back })
    }

    async fn put_again(&self, opened: &Opened, spooled: &Spooled) -> Result<()> {
        let ObjectName::Pack(name) = spooled.name else {
            return Err(Fault::internal("only packs are made again"));
        };
        let path = spooled.path.clone();
        let sealed = Bytes::from(blocking(move || Ok(std::fs::read(path)?)).await?);
        let roots = &opened.keys.roots;
        if chatkeep_crypto::open(&opened.archive.id, spooled.name, roots, &sealed).is_err() {
            opened.spool.remove(std::slice::from_ref(spooled))?;
            return Err(Fault::internal("a pack in the queue is damaged"));
        }
        opened.archive.put_pack(name, sealed, &spooled.path, roots).await?;
        // What the store has now is what counts.
        opened.archive.pack_body(name, roots).await?;
        opened.spool.remove(std::slice::from_ref(spooled))?;
        info!(object = %spooled.name.store_key(&opened.archive.id), "a damaged pack was made again");
        Ok(())
    }
}
