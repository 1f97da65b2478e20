//! Renews the locks of what is still needed, on stores that lock objects against deletion: a lock from the day of the put
//! ends while the object is still the base of everything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chatkeep_format::ObjectName;
use chatkeep_store::{Store, StoreError, StoreKey};

use super::Job;
use crate::event::{Opened, Outcome};
use crate::fault::{Fault, Result};

impl Job {
    /// Locks every object that a point needs, and the newest keyring, in each of `stores` until its time (seconds since 1970).
    /// One store that fails holds up no other; an object that is not there is for the verification to find, or no copy has it.
    pub(super) async fn retain(
        &self,
        opened: &Opened,
        stores: Vec<(Arc<dyn Store>, u64)>,
    ) -> Result<Outcome> {
        self.phase("renewing locks");
        let objects = self.needed(opened);
        let (total, mut done) = ((objects.len() * stores.len()).max(1), 0_usize);
        let mut failure: Option<Fault> = None;
        for (store, until_s) in stores {
            for name in &objects {
                if self.cancelled.load(Ordering::Relaxed) {
                    return Err(Fault::cancelled());
                }
                let key = StoreKey::try_from(name.store_key(&opened.archive.id)).map_err(Fault::internal)?;
                match store.retain(&key, until_s).await {
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(error) => {
                        failure = failure.or(Some(error.into()));
                        break;
                    }
                }
                done += 1;
                self.tools.server.update_job(&self.id, |job| job.progress = done as f64 / total as f64);
            }
        }
        failure.map_or(Ok(Outcome::Retained), Err)
    }

    fn needed(&self, opened: &Opened) -> BTreeSet<ObjectName> {
        let (id, catalogue) = (&opened.archive.id, &self.tools.catalogue);
        let points = catalogue.points(id).into_iter();
        let of_points = points.flat_map(|point| {
            let packs = point.packs.into_iter().map(ObjectName::Pack);
            packs.chain([ObjectName::Entry(point.seq)])
        });
        let keyring = catalogue.keyring(id).map(|(counter, _)| ObjectName::Keyring(counter));
        of_points.chain(keyring).collect()
    }
}
