//! Puts packs that were made again from the live database where the damaged ones are.

use std::collections::BTreeSet;

use bytes::Bytes;
use chatkeep_format::ObjectName;
use tracing::{info, warn};

use super::{Job, blocking};
use crate::event::{Opened, Outcome};
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
