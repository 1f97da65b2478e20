//! A copy held against its listing, and what follows from it: what is not there is sent again, what nobody needs any more
//! goes. A listing that fails or shrank deletes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use chatkeep_format::limits::MAX_SEALED_LEN;
use chatkeep_format::{HEADER_LEN, ObjectName, entry_digest};
use chatkeep_planner::{
    CopyListing, Level, PointInfo, Prunable, listing_shrank, plan_copy_prune, plan_retention,
};
use chatkeep_store::{NextStep, StoreError};
use tracing::{debug, warn};

use super::{Known, Run};
use crate::archive::{Archive, ArchiveError, Listing};
use crate::catalogue::Point;
use crate::fault::{Fault, Result};

/// A store that takes longer for a listing is given up for now.
const LIST_TIMEOUT: Duration = Duration::from_mins(30);
/// At most so many keyrings are copied, the newest ones: a hostile store may list any number.
const KEYRINGS_MAX: usize = 64;

/// What a listing of the copy showed.
pub(super) struct Listed {
    objects: BTreeSet<Prunable>,
    keyrings: BTreeSet<u64>,
    expected: usize,
    lacking: usize,
}

impl Run<'_> {
    /// Lists the copy and takes over what is there. Nothing when the store does not permit it.
    pub(super) async fn hold_against_listing(&mut self, known: &Known) -> Result<Option<Listed>> {
        let listing = match list(&self.order.to).await {
            Ok(listing) => listing,
            Err(ArchiveError::Store(StoreError::Permission(_))) => {
                let text =
                    "the store does not permit to be listed: what it has is what this device remembers";
                (self.end.blind, self.end.caution) = (true, Some(text.to_owned()));
                let now_us = u64::try_from(self.order.now_us).unwrap_or(0);
                let noted = self.catalogue.update_copy(&self.copy, |facts| facts.listed_us = now_us);
                return noted.map(|_| None).map_err(Fault::internal);
            }
            Err(error) => return Err(error.into()),
        };
        if let Some((seq, _)) = listing.entries.range(self.order.written_seq + 1..).next() {
            return Err(self.fenced(*seq));
        }
        let expected = self.catalogue.copied(&self.copy);
        let mut objects = objects_of(&listing);
        let lacking = expected.difference(&objects).count();
        // It is there, but was found damaged.
        let spoiled = self.catalogue.spoiled(&self.copy);
        objects.retain(|object| !spoiled.contains(object));
        self.prove_entries(known, &expected, &mut objects).await?;
        self.take_over(known, &expected, &objects).map_err(Fault::internal)?;
        if listing_shrank(expected.len(), lacking) {
            let (there, of) = (expected.len() - lacking, expected.len());
            warn!(store = %self.order.store, there, of, "a copy lists less than it should have");
            let text =
                format!("it lists {there} of {of} objects that it should have; nothing is deleted there");
            self.end.caution = Some(text);
        }
        self.end.listed = true;
        let keyrings = listing.keyrings.into_keys().collect();
        Ok(Some(Listed { objects, keyrings, expected: expected.len(), lacking }))
    }

    /// Reads entries that this device does not remember to have sent, and the newest one: whoever exchanged the drive, or
    /// wrote there, shows.
    async fn prove_entries(
        &self,
        known: &Known,
        expected: &BTreeSet<Prunable>,
        objects: &mut BTreeSet<Prunable>,
    ) -> Result<()> {
        let listed: Vec<u64> =
            known.points.keys().copied().filter(|seq| objects.contains(&Prunable::Entry(*seq))).collect();
        for seq in &listed {
            let object = Prunable::Entry(*seq);
            if expected.contains(&object) && Some(seq) != listed.last() {
                continue;
            }
            self.check_cancelled()?;
            let (to, roots) = (&self.order.to, &self.order.opened.keys.roots);
            match to.get(ObjectName::Entry(*seq)).await {
                Ok(sealed) if entry_digest(&sealed) == known.points[seq].digest => {}
                Ok(sealed) if to.open_entry(*seq, roots, &sealed).is_ok() => return Err(self.fenced(*seq)),
                Err(ArchiveError::Store(StoreError::Permission(_))) => return Ok(()),
                Err(ArchiveError::Store(error)) => return Err(error.into()),
                Ok(_) | Err(_) => drop(objects.remove(&object)),
            }
        }
        Ok(())
    }

    fn take_over(
        &self,
        known: &Known,
        expected: &BTreeSet<Prunable>,
        objects: &BTreeSet<Prunable>,
    ) -> anyhow::Result<()> {
        self.catalogue.put_copied(&self.copy, objects.difference(expected).copied())?;
        self.catalogue.drop_copied(&self.copy, expected.difference(objects).copied())?;
        let entries = objects.iter().filter_map(|object| match object {
            Prunable::Entry(seq) => Some(*seq),
            Prunable::Pack(_) => None,
        });
        let newest = entries.max().unwrap_or(0);
        let now_us = u64::try_from(self.order.now_us).unwrap_or(0);
        self.catalogue.update_copy(&self.copy, |facts| {
            facts.listed_us = now_us;
            facts.newest_seq = newest;
            if let Some(point) = known.points.get(&newest).filter(|_| facts.uploaded_us == 0) {
                // Nobody remembers when it came; not before it was captured.
                facts.uploaded_us = u64::try_from(point.taken_at_us).unwrap_or(0).max(1);
            }
        })?;
        Ok(())
    }

    /// Points that only copies have are judged like all others; those that the policy lets go are named by nobody from now
    /// on.
    pub(super) fn let_go(&self, known: &mut Known) -> Result<()> {
        let elsewhere = self.catalogue.elsewhere(self.id());
        if elsewhere.is_empty() {
            return Ok(());
        }
        let judged = known.points.values().filter(|point| !known.forgotten.contains(&point.seq));
        let infos: Vec<PointInfo> = judged.map(|point| self.info(point)).collect();
        let plan = plan_retention(&infos, self.order.now_us, &self.order.policy);
        let goes: BTreeSet<u64> = plan.forget.into_iter().collect();
        let waits = |seq: u64| self.order.waiting.iter().any(|point| point.seq == seq);
        for point in elsewhere.iter().filter(|point| goes.contains(&point.seq) && !waits(point.seq)) {
            self.catalogue.drop_elsewhere(self.id(), point.seq).map_err(Fault::internal)?;
            known.entries.remove(&point.seq);
            known.points.remove(&point.seq);
        }
        Ok(())
    }

    fn info(&self, point: &Point) -> PointInfo {
        PointInfo {
            seq: point.seq,
            parent_seq: point.parent_seq,
            level: Level::from_number(point.level).unwrap_or(Level::Base),
            taken_at_us: point.taken_at_us,
            pinned: self.order.pins.contains(&point.seq),
        }
    }

    /// Makes the keyrings those of the main store, and deletes what the main store does not have any more. Without a
    /// listing of the main store nothing is deleted.
    pub(super) async fn prune(&mut self, known: &Known, listed: Listed) -> Result<()> {
        let main = match list(&self.order.opened.archive).await {
            Ok(main) => main,
            Err(error) => {
                debug!(%error, "the main store cannot be listed: nothing is deleted from a copy");
                return Ok(());
            }
        };
        self.keyrings(&main, &listed.keyrings).await?;
        // Nobody knows which packs a list that could not be read names.
        if listing_shrank(listed.expected, listed.lacking)
            || known.points.values().any(|point| point.lists_unread)
        {
            return Ok(());
        }
        let (catalogue, id, now_us) = (self.catalogue, *self.id(), self.order.now_us);
        let mut named = known.named();
        // What cannot be read there may be whole here.
        named.extend(objects_of(&main));
        let plan = plan_copy_prune(
            &CopyListing {
                objects: &listed.objects,
                named: &named,
                gone: &catalogue.gone(&id, now_us).map_err(Fault::internal)?,
                unnamed_since: &catalogue.unnamed(&self.copy),
                expected: listed.expected,
                lacking: listed.lacking,
            },
            now_us,
        );
        let mut unnamed = plan.unnamed_since;
        for object in plan.delete {
            self.check_cancelled()?;
            let name = match object {
                Prunable::Entry(seq) => ObjectName::Entry(seq),
                Prunable::Pack(pack) => ObjectName::Pack(pack),
            };
            if !self.delete(name).await? {
                break;
            }
            unnamed.remove(&object);
            catalogue.drop_copied(&self.copy, [object]).map_err(Fault::internal)?;
        }
        catalogue.set_unnamed(&self.copy, &unnamed).map_err(Fault::internal)
    }

    /// Sends keyrings that the copy lacks, the newest first. One that the main store does not have any more goes, once the
    /// newest is whole on the copy: that one opens everything, and a way in that was taken away must not stay here.
    async fn keyrings(&mut self, main: &Listing, there: &BTreeSet<u64>) -> Result<()> {
        // The newest one that this device knows went up a moment ago.
        let sent = self.catalogue.copy_facts(&self.copy).keyring;
        let there: BTreeSet<u64> = there.iter().copied().chain([sent]).collect();
        let lacking =
            main.keyrings.keys().rev().take(KEYRINGS_MAX).filter(|counter| !there.contains(counter));
        for counter in lacking {
            let name = ObjectName::Keyring(*counter);
            match self.reads.object(name).await {
                Ok(sealed) => self.send(name, sealed).await?,
                Err(error) => debug!(%error, "a keyring cannot be copied"),
            }
        }
        let Some((newest, _)) = self.catalogue.keyring(self.id()) else { return Ok(()) };
        let old: Vec<u64> =
            there.range(..newest).copied().filter(|it| !main.keyrings.contains_key(it)).collect();
        if old.is_empty() || !main.keyrings.contains_key(&newest) || !self.opens(newest).await? {
            return Ok(());
        }
        for counter in old {
            if !self.delete(ObjectName::Keyring(counter)).await? {
                break;
            }
        }
        Ok(())
    }

    async fn opens(&self, counter: u64) -> Result<bool> {
        let to = &self.order.to;
        match to.keyring(counter).await {
            Ok((keyring, _)) => Ok(to.open_keyring(&keyring, &self.order.opened.keys.key).is_ok()),
            Err(ArchiveError::Store(StoreError::Permission(_))) => Ok(false),
            Err(ArchiveError::Store(error)) => Err(error.into()),
            Err(_) => Ok(false),
        }
    }

    /// Deletes one object. `false`: the store permits no deletion.
    async fn delete(&mut self, name: ObjectName) -> Result<bool> {
        match self.order.to.delete(name).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {
                self.end.deleted += 1;
                Ok(true)
            }
            Err(error) if error.next_step() == NextStep::Skip => Ok(true),
            Err(StoreError::Permission(_) | StoreError::Unsupported { .. }) => {
                let text = "the store does not permit this device to delete; what is forgotten stays there";
                self.end.caution.get_or_insert_with(|| text.to_owned());
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn fenced(&self, seq: u64) -> Fault {
        ArchiveError::WriterFenced { key: ObjectName::Entry(seq).store_key(self.id()) }.into()
    }
}

async fn list(archive: &Archive) -> Result<Listing, ArchiveError> {
    let listed = tokio::time::timeout(LIST_TIMEOUT, archive.list()).await;
    listed.unwrap_or_else(|_| Err(super::hangs()))
}

/// Entries and packs of a length that one can have.
fn objects_of(listing: &Listing) -> BTreeSet<Prunable> {
    let possible = |len: &u64| (HEADER_LEN as u64..=MAX_SEALED_LEN as u64).contains(len);
    let entries = listing.entries.iter().filter(move |(_, len)| possible(len));
    let packs = listing.packs.iter().filter(move |(_, len)| possible(len));
    let entries = entries.map(|(seq, _)| Prunable::Entry(*seq));
    entries.chain(packs.map(|(name, _)| Prunable::Pack(*name))).collect()
}
