//! Reads back what is stored, and goes on after damage: the report has all of it.
//!
//! *Manifest*: the keyring opens; every entry that the catalogue lists, and every entry on the way to its base, opens and is
//! the one that the newer one names; every pack that one of them names is there, with a length that a pack can have. *Chunks*:
//! every pack is read and opened as well, once however many entries name it, one at a time. *Restore* is a rehearsal
//! ([`drill`](super::drill)).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use chatkeep_format::limits::{MAX_SEALED_LEN, MIN_STREAM_LEN};
use chatkeep_format::{DatabaseRecord, Entry as LogEntry, FileSet, HEADER_LEN, ObjectName, PageSet, TAG_LEN};
use chatkeep_ipc::{Error, VerifyDepth};
use chatkeep_planner::Prunable;
use tracing::{info, warn};

use super::Job;
use crate::archive::{Archive, ArchiveError, Listing};
use crate::catalogue::{Catalogue, CopyId, Point};
use crate::damage::Damage;
use crate::event::{Opened, Outcome};
use crate::fault::Result;
use crate::pack_pages::PackPages;
use crate::restore::broken_rule;

/// The shortest pack: a header, the shortest stream and one tag.
const PACK_LEN_MIN: u64 = (HEADER_LEN + MIN_STREAM_LEN + TAG_LEN) as u64;

/// What an entry says that a pack holds.
#[derive(Debug, Clone)]
enum Holds {
    /// Pages of a database; the record is without its pages.
    Pages(Arc<DatabaseRecord>),
    /// A list of files.
    Files(Arc<str>),
    /// Pieces of files.
    Blob(Arc<str>),
}

/// A pack that some entry names.
#[derive(Debug, Clone)]
struct Named {
    holds: Holds,
    /// Pages, or files.
    items: u32,
    /// The newest entry that names it.
    seq: u64,
    /// Its length as the entry says; 0 when it says nothing.
    sealed_len: u64,
}

/// What an entry must be, because something else says so.
#[derive(Clone, Copy)]
struct Expected {
    digest: [u8; 32],
    /// Base seq and digest key of the entry that builds on it.
    chain: Option<(u64, [u8; 32])>,
}

/// One verification.
struct Verification<'a> {
    job: &'a Job,
    opened: &'a Opened,
    /// It is a copy: what it does not have says nothing about the archive.
    copy: bool,
    listing: Listing,
    damages: Vec<Damage>,
    packs: BTreeMap<[u8; 16], Named>,
    /// Lengths of the packs to read, and of those that were read.
    total: u64,
    done: u64,
}

impl Job {
    pub(super) async fn verify(&self, opened: &Opened, depth: VerifyDepth) -> Result<Outcome> {
        let mut points = self.tools.catalogue.points(&opened.archive.id);
        points.sort_by_key(|point| std::cmp::Reverse(point.seq));
        if points.is_empty() {
            return Err(Error::NotFound("there is no recovery point yet".to_owned()).into());
        }
        let damages = self.read_back(opened, &points, depth, false).await?;
        info!(?depth, damaged = damages.len(), points = points.len(), "verified");
        Ok(Outcome::Verified { depth, points: points.iter().map(|point| point.seq).collect(), damages })
    }

    /// Reads a copy back: every point that it has, with all its packs.
    pub(super) async fn verify_copy(&self, opened: &Opened, store: String, copy: Archive) -> Result<Outcome> {
        let (catalogue, id) = (&self.tools.catalogue, CopyId::new(&copy.id, &store));
        let mut points = catalogue.points(&copy.id);
        points.extend(catalogue.elsewhere(&copy.id));
        points.retain(|point| catalogue.is_copied(&id, Prunable::Entry(point.seq)));
        points.sort_by_key(|point| std::cmp::Reverse(point.seq));
        let there = Opened { archive: copy, ..opened.clone() };
        let damages = self.read_back(&there, &points, VerifyDepth::Chunks, true).await?;
        info!(store, damaged = damages.len(), points = points.len(), "a copy was verified");
        Ok(Outcome::CopyVerified { store, damages })
    }

    async fn read_back(
        &self,
        opened: &Opened,
        points: &[Point],
        depth: VerifyDepth,
        copy: bool,
    ) -> Result<Vec<Damage>> {
        self.phase("reading the keyring");
        let damages = self.check_keyring(opened).await?.into_iter().collect();
        self.phase("reading the log");
        let listing = opened.archive.list().await?;
        let mut verification = Verification {
            job: self,
            opened,
            copy,
            listing,
            damages,
            packs: BTreeMap::new(),
            total: 0,
            done: 0,
        };
        verification.read_log(points).await?;
        verification.find_packs().await?;
        if depth == VerifyDepth::Chunks {
            self.phase("reading the packs");
            verification.read_packs().await?;
        }
        let damages = verification.damages;
        for damage in &damages {
            warn!(object = %damage.object, kind = damage.kind.as_str(), "damage in the store");
        }
        Ok(damages)
    }

    /// The newest keyring that this device knows.
    async fn check_keyring(&self, opened: &Opened) -> Result<Option<Damage>> {
        let archive = &opened.archive;
        let known = self.tools.catalogue.keyring(&archive.id);
        let counter = known.map_or(opened.keys.counter, |(counter, _)| counter);
        let checked = match archive.keyring(counter).await {
            Ok((keyring, _)) => archive.open_keyring(&keyring, &opened.keys.key).map(drop),
            Err(error) => Err(error),
        };
        let damage = found(checked)?;
        Ok(damage.map(|damage| Damage { holds: "the keys".to_owned(), ..damage }))
    }
}

/// Damage goes into the report; everything else, above all a store that does not answer, ends the verification.
fn found(result: Result<(), ArchiveError>) -> Result<Option<Damage>> {
    match result {
        Ok(()) => Ok(None),
        Err(error) => match error.damage() {
            Some(damage) => Ok(Some(damage)),
            None => Err(error.into()),
        },
    }
}

impl Verification<'_> {
    fn archive(&self) -> &Archive {
        &self.opened.archive
    }

    fn report(&mut self, result: Result<(), ArchiveError>, holds: impl FnOnce() -> String) -> Result<()> {
        let damage = found(result)?;
        self.damages.extend(damage.map(|damage| Damage { holds: holds(), ..damage }));
        Ok(())
    }

    /// Reads every entry that is listed or built on, newest first.
    async fn read_log(&mut self, points: &[Point]) -> Result<()> {
        // Chains lead over forgotten points; of these nothing else is looked at.
        let forgotten = self.catalogue().forgotten(&self.archive().id);
        let known: BTreeMap<u64, &Point> =
            points.iter().chain(&forgotten).map(|point| (point.seq, point)).collect();
        let mut waiting: BTreeMap<u64, Vec<Expected>> = BTreeMap::new();
        for point in points {
            waiting.entry(point.seq).or_default().push(Expected { digest: point.digest, chain: None });
        }
        while let Some((seq, expected)) = waiting.pop_last() {
            self.job.check_cancelled()?;
            let read = self.archive().entry(seq, &self.opened.keys.roots).await;
            let entry = match read {
                Ok((entry, digest, _)) => {
                    let fits = fits(&entry, &digest, &expected);
                    let key = ObjectName::Entry(seq).store_key(&self.archive().id);
                    let checked = fits.map_err(|what| ArchiveError::Chain { key, what });
                    self.report(checked, || "the log".to_owned())?;
                    Some(entry)
                }
                Err(error) => {
                    self.report(Err(error), || "a recovery point".to_owned())?;
                    None
                }
            };
            if let (None, Some(point), true) = (&entry, known.get(&seq), self.copy) {
                // The entry is sent again; what it names has to be right as well.
                let name: Arc<str> = "a recovery point".into();
                for pack in &point.packs {
                    self.packs.entry(*pack).or_insert(Named::blob(&name, seq));
                }
            }
            match (entry, known.get(&seq)) {
                (Some(entry), point) => {
                    self.take_packs(&entry, point.copied());
                    if entry.parent_seq > 0 && entry.parent_seq < seq {
                        let chain = Some((entry.base_seq, entry.digest_key));
                        let expected = Expected { digest: entry.parent_digest, chain };
                        waiting.entry(entry.parent_seq).or_default().push(expected);
                    }
                }
                // What it named is still to be looked at: other entries may build on it.
                (None, Some(point)) if point.parent_seq > 0 && point.parent_seq < seq => {
                    waiting.entry(point.parent_seq).or_default();
                }
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// Takes note of the packs that an entry names. `point` knows also those that lists of files name.
    fn take_packs(&mut self, entry: &LogEntry, point: Option<&Point>) {
        let seq = entry.seq;
        for record in &entry.databases {
            let about = DatabaseRecord { packs: Vec::new(), inline: PageSet::default(), ..record.clone() };
            let holds = Holds::Pages(Arc::new(about));
            for pack in &record.packs {
                let named =
                    Named { holds: holds.clone(), items: pack.items, seq, sealed_len: pack.sealed_len };
                self.packs.entry(pack.name).or_insert(named);
            }
        }
        for folder in &entry.folders {
            let name: Arc<str> = folder.name.as_str().into();
            for pack in &folder.packs {
                let holds = Holds::Files(name.clone());
                let named = Named { holds, items: pack.items, seq, sealed_len: pack.sealed_len };
                self.packs.entry(pack.name).or_insert(named);
            }
            for pack in folder.inline.packs() {
                self.packs.entry(pack).or_insert(Named::blob(&name, seq));
            }
        }
        if let Some(point) = point {
            let name: Arc<str> = "files".into();
            for pack in &point.packs {
                self.packs.entry(*pack).or_insert(Named::blob(&name, seq));
            }
        }
    }

    /// Every pack is in the listing, with a length that it can have.
    async fn find_packs(&mut self) -> Result<()> {
        let names: Vec<[u8; 16]> = self.packs.keys().copied().collect();
        for name in names {
            self.job.check_cancelled()?;
            let named = self.packs[&name].clone();
            let object = ObjectName::Pack(name);
            let result = match self.listing.packs.get(&name) {
                // What a listing lacks may be there all the same.
                None if self.archive().has(object).await? => Ok(()),
                None => Err(ArchiveError::Missing { key: object.store_key(&self.archive().id) }),
                Some(len) if !(PACK_LEN_MIN..=MAX_SEALED_LEN as u64).contains(len) => {
                    Err(self.archive().damaged(object, format!("no pack has {len} bytes")))
                }
                // The same content may have been sealed again, to another length: only the object itself can tell.
                Some(len) if named.sealed_len > 0 && *len != named.sealed_len => {
                    self.archive().pack_body(name, &self.opened.keys.roots).await.map(drop)
                }
                Some(_) => Ok(()),
            };
            self.report(result, || named.holds())?;
        }
        Ok(())
    }

    /// Reads and opens every pack that was not found damaged already. Lists of files name further ones.
    async fn read_packs(&mut self) -> Result<()> {
        let damaged: BTreeSet<ObjectName> = self.damages.iter().filter_map(Damage::name).collect();
        let sound = |name: &[u8; 16]| !damaged.contains(&ObjectName::Pack(*name));
        let mut waiting: VecDeque<[u8; 16]> = self.packs.keys().copied().filter(sound).collect();
        let len = |name: &[u8; 16]| self.listing.packs.get(name).copied().unwrap_or(0);
        self.total = waiting.iter().map(len).sum();
        while let Some(name) = waiting.pop_front() {
            self.job.check_cancelled()?;
            let named = self.packs[&name].clone();
            let read = self.read_pack(name, &named).await;
            let more = read.as_ref().map_or(Vec::new(), Clone::clone);
            self.report(read.map(drop), || named.holds())?;
            for pack in more {
                let (Holds::Files(folder), Entry::Vacant(new)) = (&named.holds, self.packs.entry(pack))
                else {
                    continue;
                };
                new.insert(Named::blob(folder, named.seq));
                self.total += self.listing.packs.get(&pack).copied().unwrap_or(0);
                waiting.push_back(pack);
            }
            self.done += self.listing.packs.get(&name).copied().unwrap_or(0);
            self.job.progress(self.done, self.total);
        }
        if self.copy {
            return Ok(());
        }
        // Above all those that are missing: they are to be made again.
        let needed = |pack: &[u8; 16]| self.packs.contains_key(pack) || self.listing.packs.contains_key(pack);
        let kept = self.catalogue().retain_packs(&self.archive().id, needed);
        if let Err(error) = kept {
            warn!(%error, "the cache cannot be written");
        }
        Ok(())
    }

    /// Reads one pack; returns the packs that it names.
    async fn read_pack(&self, name: [u8; 16], named: &Named) -> Result<Vec<[u8; 16]>, ArchiveError> {
        let (archive, object) = (self.archive(), ObjectName::Pack(name));
        let body = archive.pack_body(name, &self.opened.keys.roots).await?;
        let malformed = |error: chatkeep_format::FormatError| archive.malformed(object, error.to_string());
        match &named.holds {
            Holds::Blob(_) => Ok(Vec::new()),
            Holds::Files(_) => {
                let named: BTreeSet<_> = FileSet::decode(&body).map_err(malformed)?.packs().collect();
                Ok(named.into_iter().collect())
            }
            Holds::Pages(record) => {
                let pages = PageSet::decode(body).map_err(malformed)?;
                if let Some(rule) = broken_rule(record, &pages) {
                    return Err(archive.malformed(object, rule.to_owned()));
                }
                self.remember(name, &pages, named.seq);
                Ok(Vec::new())
            }
        }
    }

    /// A pack that was read here can be made again here, should it be lost.
    fn remember(&self, name: [u8; 16], pages: &PageSet, seq: u64) {
        let Some(pages) = PackPages::of(pages, seq) else { return };
        if let Err(error) = self.catalogue().put_pack_pages(&self.archive().id, &name, &pages) {
            warn!(%error, "the cache cannot be written");
        }
    }

    fn catalogue(&self) -> &Catalogue {
        &self.job.tools.catalogue
    }
}

impl Named {
    fn blob(folder: &Arc<str>, seq: u64) -> Self {
        Self { holds: Holds::Blob(folder.clone()), items: 0, seq, sealed_len: 0 }
    }

    /// In words.
    fn holds(&self) -> String {
        match &self.holds {
            Holds::Pages(record) => format!("{} pages of {}", self.items, record.name),
            Holds::Files(folder) => format!("a list of {} files of {folder}", self.items),
            Holds::Blob(folder) => format!("pieces of {folder}"),
        }
    }
}

/// Whether an entry is what everything that names it says.
fn fits(entry: &LogEntry, digest: &[u8; 32], expected: &[Expected]) -> Result<(), &'static str> {
    for Expected { digest: named, chain } in expected {
        if named != digest {
            return Err("it is not the entry that was written: its digest is another");
        }
        if let Some((base_seq, digest_key)) = chain {
            if entry.base_seq != *base_seq {
                return Err("it names another base");
            }
            if entry.digest_key != *digest_key {
                return Err("it has another digest key");
            }
        }
    }
    Ok(())
}
