//! Carries commands out, and runs the loop around [`Service`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatkeep_format::{ObjectName, PageSet, entry_digest};
use chatkeep_ipc::Error;
use chatkeep_planner::SourceId;
use chatkeep_sqlite::LiveConfig;
use chatkeep_store::{CreateGuarantee, StoreError};
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::archive::{Archive, ArchiveError, Placed};
use crate::catalogue::Catalogue;
use crate::clock::Monotonic;
use crate::desktop::Desktop;
use crate::event::{Command, Event, Opened, Stored, UploadOrder, Work};
use crate::fault::{Fault, Result};
use crate::follower::{Attachments, Follower, Start, sweep_tables, table_folder, table_name, table_name_of};
use crate::guard::{LookOrder, look};
use crate::jobs::{Job, Tools, list_remote};
use crate::keyring::{Keys, Ring};
use crate::pack_pages::PackPages;
use crate::service::Service;
use crate::spool::{Holds, Spool};

/// How long what is under way may take after the order to stop; systemd's own limit is longer.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// A store that does not answer for so long (a mount that hangs) is not waited for: one object, and a whole log.
const UPLOAD_TIMEOUT: Duration = Duration::from_mins(10);
const OPEN_TIMEOUT: Duration = Duration::from_mins(30);
/// The vaults are told the newest entry within this time, or not now; and when the service leaves, within this.
const REMEMBER_TIMEOUT: Duration = Duration::from_mins(2);
const REMEMBER_AT_LAST: Duration = Duration::from_secs(3);
/// Between two looks whether a pack that is being deleted is gone, so that it can be put anew.
const DELETE_PAUSE: Duration = Duration::from_millis(50);
/// The longest sleep of the loop.
const SLEEP_MAX: Duration = Duration::from_mins(1);

/// Everything that acts.
pub struct Hands {
    tools: Tools,
    events: Sender<Event>,
    followers: BTreeMap<SourceId, Follower>,
    tasks: JoinSet<()>,
    watcher: Option<notify::RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    desktop: Desktop,
}

/// Runs until there is nothing left to do; returns the exit status.
pub async fn run(
    mut service: Service,
    tools: Tools,
    events: Sender<Event>,
    mut incoming: Receiver<Event>,
) -> u8 {
    let clock = Monotonic::start();
    let mut hands = Hands::new(tools, events);
    // Twice as often as systemd wants to hear from us; the loop itself feeds it, so that a loop that hangs is noticed.
    let watchdog = sd_notify::watchdog_enabled().map(|period| period / 2);
    let mut exit = hands.carry_out_all(service.begin(clock.now()));
    while exit.is_none() {
        let due = service.next_deadline().map(|at| Duration::from_millis(at.0.saturating_sub(clock.now().0)));
        let sleep = [due, watchdog].into_iter().flatten().min().unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        let event = match tokio::time::timeout(sleep, incoming.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(_) => Event::Tick,
        };
        if watchdog.is_some() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        exit = hands.carry_out_all(service.handle(event, clock.now()));
        while hands.tasks.try_join_next().is_some() {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // Nobody waits for events any more: threads that tell one must not wait for the loop.
    incoming.close();
    hands.stop().await;
    exit.unwrap_or(0)
}

impl Hands {
    fn new(tools: Tools, events: Sender<Event>) -> Self {
        Self {
            desktop: Desktop::new(tools.notify, events.clone()),
            tools,
            events,
            followers: BTreeMap::new(),
            tasks: JoinSet::new(),
            watcher: None,
            watched: BTreeSet::new(),
        }
    }

    fn carry_out_all(&mut self, commands: Vec<Command>) -> Option<u8> {
        let mut exit = None;
        for command in commands {
            if let Command::Exit(status) = command {
                exit = Some(status);
            } else {
                self.carry_out(command);
            }
        }
        exit
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Open { source, archive, pins } => {
                let tools = self.tools.clone();
                self.spawn(async move {
                    let opened = tokio::time::timeout(OPEN_TIMEOUT, open(&tools, archive, &pins)).await;
                    let result = opened.unwrap_or_else(|_| Err(hangs())).map(|opened| opened.map(Box::new));
                    Event::Opened { source, result }
                });
            }
            Command::Follow { source, databases, attachments, opened, writer, links } => {
                let tables = table_folder(&self.tools.paths.state);
                let name = table_name(&opened.archive.id, opened.head());
                sweep_tables(&tables, &opened.archive.id, &name);
                let live = |path: PathBuf| LiveConfig {
                    name: table_name_of(&name, &path),
                    path,
                    digest_key: opened.head().digest_key,
                    state_dir: tables.clone(),
                };
                let known = self.tools.catalogue.known_files(&opened.archive.id);
                let known = known.inspect_err(|error| warn!(%error, "attachments cannot be backed up"));
                let attachments = known.ok().map(|known| Attachments {
                    folders: attachments,
                    known,
                    digest_key: opened.head().digest_key,
                });
                let start = Start {
                    source,
                    databases: databases.into_iter().map(live).collect(),
                    attachments,
                    written_seq: opened.log.written.seq,
                    writer: *writer,
                    rebase: opened.log.rebase,
                    links,
                };
                match Follower::start(start, self.events.clone()) {
                    Ok(follower) => drop(self.followers.insert(source, follower)),
                    Err(error) => {
                        let fault = Box::new(error.into());
                        self.spawn(async move { Event::Lost { source, fault } });
                    }
                }
            }
            Command::Unfollow { source } => {
                let follower = self.followers.remove(&source);
                self.spawn(async move {
                    // It stops at its next safe point; the loop does not wait for that.
                    let _ = tokio::task::spawn_blocking(move || drop(follower)).await;
                    Event::Unfollowed { source }
                });
            }
            Command::Rebase { source, bad_packs } => {
                if let Some(follower) = self.followers.get(&source) {
                    follower.forget(bad_packs);
                }
            }
            Command::Rebuild { source, packs } => {
                if let Some(follower) = self.followers.get(&source) {
                    follower.rebuild(packs);
                } else {
                    let lost = packs.len();
                    self.spawn(async move { Event::Rebuilt { source, packs: Vec::new(), lost } });
                }
            }
            Command::Look { source } => {
                if let Some(follower) = self.followers.get(&source) {
                    follower.look();
                }
            }
            Command::Capture { source, order } => match self.followers.get(&source) {
                Some(follower) => follower.capture(*order),
                None => self.spawn(async move {
                    Event::Captured { source, result: Err(Fault::internal("the database is not followed")) }
                }),
            },
            Command::Upload(order) => {
                let tools = self.tools.clone();
                self.spawn(async move {
                    let (source, upload) = (order.source, order.upload);
                    let stored =
                        tokio::time::timeout(UPLOAD_TIMEOUT, self::upload(&tools.catalogue, *order)).await;
                    Event::Uploaded { source, upload, result: stored.unwrap_or_else(|_| Err(hangs())) }
                });
            }
            Command::Copy(order) => {
                let (tools, events) = (self.tools.clone(), self.events.clone());
                self.spawn(async move {
                    let (source, store) = (order.source, order.store.clone());
                    let tell = |behind| {
                        // The next one, or the end, says more.
                        let _ = events.try_send(Event::CopyTold { source, store: store.clone(), behind });
                    };
                    let result = crate::copies::bring_up(&tools.catalogue, &order, &tell).await;
                    Event::Copied { source, store, result }
                });
            }
            Command::Run { job, work, cancelled } => {
                let mut running =
                    Job { tools: self.tools.clone(), id: job.clone(), cancelled, vault: None, keys: None };
                self.spawn(async move {
                    let result = running.run(*work).await;
                    Event::JobEnded { job, result, vault: running.vault, keys: running.keys }
                });
            }
            Command::ListRemote { store, known, reply } => {
                self.tasks.spawn(async move {
                    let _ = reply.send(list_remote(&store, &known).await.map_err(|fault| fault.error));
                });
            }
            Command::KeepCredential { store, name, value, reply } => {
                let (key_store, events) = (self.tools.key_store.clone(), self.events.clone());
                self.tasks.spawn(async move {
                    let kept = match value.as_str() {
                        Some(text) => {
                            key_store.save_credential(&store, &name, text).await.map_err(Fault::from)
                        }
                        None => Err(Error::InvalidSecret("the secret is not text".to_owned()).into()),
                    };
                    if kept.is_ok() {
                        // The loop has ended when nobody listens.
                        let _ = events.send(Event::CredentialKept { store }).await;
                    }
                    let _ = reply.send(kept.map_err(|fault| fault.error));
                });
            }
            Command::WatchFolders(folders) => self.watch(folders),
            Command::Guard { source, order } => {
                let book = self.tools.book.clone();
                self.spawn(async move { Event::Guarded { source, look: look(&book, &order).await } });
            }
            Command::Remember { source, archive, keys, pins, head, at_last } => {
                let tools = self.tools.clone();
                let patience = if at_last { REMEMBER_AT_LAST } else { REMEMBER_TIMEOUT };
                self.spawn(async move {
                    let told = remember(&tools, &pins, &archive, &keys, head);
                    let done = tokio::time::timeout(patience, told).await.unwrap_or(false);
                    Event::Remembered { source, done }
                });
            }
            Command::Notify(notice) => self.desktop.notify(*notice),
            Command::Exit(_) => {}
        }
    }

    /// Runs a task whose end is an event.
    fn spawn(&mut self, task: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        self.tasks.spawn(async move {
            // The loop has ended when nobody listens.
            let _ = events.send(task.await).await;
        });
    }

    fn watch(&mut self, folders: BTreeSet<PathBuf>) {
        if self.watcher.is_none() {
            let events = self.events.clone();
            let told = move |event: notify::Result<notify::Event>| {
                if let Ok(event) = event
                    && (event.kind.is_create() || event.kind.is_modify())
                    && let Some(path) = event.paths.into_iter().next()
                {
                    // A full queue is read soon, and databases that are missing are looked for every few seconds anyway.
                    let _ = events.try_send(Event::FolderChanged { path });
                }
            };
            match notify::recommended_watcher(told) {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => {
                    warn!(%error, "folders cannot be watched");
                    return;
                }
            }
        }
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.watched.difference(&folders) {
            // It may have vanished.
            let _ = watcher.unwatch(gone);
        }
        for new in folders.difference(&self.watched) {
            if let Err(error) = watcher.watch(new, RecursiveMode::NonRecursive) {
                warn!(%error, "a folder cannot be watched");
            }
        }
        self.watched = folders;
    }

    /// Waits for what is under way, until its next safe point.
    async fn stop(mut self) {
        let followers = std::mem::take(&mut self.followers);
        let stopped = async {
            let _ = tokio::task::spawn_blocking(move || drop(followers)).await;
            while self.tasks.join_next().await.is_some() {}
        };
        if tokio::time::timeout(STOP_TIMEOUT, stopped).await.is_err() {
            info!("what is still under way is left; it is taken up at the next start");
        }
        self.tools.catalogue.flush();
    }
}

fn hangs() -> Fault {
    let text = "the store does not answer at all".to_owned();
    Fault::new(chatkeep_ipc::Error::StoreUnreachable(text), chatkeep_planner::Retry::Backoff)
}

/// Opens an archive with the keys of this device; nothing without keys.
async fn open(
    tools: &Tools,
    archive: Archive,
    pins: &[chatkeep_vault_client::VaultPin],
) -> Result<Option<Opened>> {
    let ring = Ring {
        archive: &archive,
        key_store: &*tools.key_store,
        catalogue: &tools.catalogue,
        transport: &tools.book,
        pins,
    };
    let Some(mut keys) = ring.open_on_device().await? else { return Ok(None) };
    if let Err(fault) = ring.mend(&mut keys).await {
        warn!(error = %fault.error.text(), "the keyring cannot be mended now");
    }
    let spool = Spool::open(&tools.paths.state, &archive.id)?;
    let log = crate::log::open(&archive, &keys.roots, &tools.catalogue, &spool).await?;
    let known = tools.catalogue.known_files(&archive.id).map_err(Fault::internal)?;
    let queue = (&log, spool.list()?);
    crate::known::bring_up_to_date(&known, &archive, &keys.roots, &tools.catalogue, queue).await?;
    // The number of attempts left is nice to know; an archive does not wait for a vault. What comes of the count is for the
    // guard to say: this look may be given up half way.
    let order = LookOrder {
        archive: archive.clone(),
        keys: keys.clone(),
        pins: pins.to_vec(),
        lock_s: None,
        confirm_us: u64::MAX,
        check_store: false,
    };
    let looked = tokio::time::timeout(Duration::from_secs(3), look(&tools.book, &order)).await;
    let vaults = looked.ok().flatten().map(|look| look.vaults).unwrap_or_default();
    Ok(Some(Opened { archive, keys, spool, log, vaults }))
}

/// Lets the vaults remember the newest entry, and notes that here: at the end nobody takes events any more.
async fn remember(
    tools: &Tools,
    pins: &[chatkeep_vault_client::VaultPin],
    archive: &Archive,
    keys: &Keys,
    head: (u64, [u8; 32]),
) -> bool {
    if let Err(error) = crate::witness::remember(&tools.book, pins, archive, keys, head).await {
        debug!(%error, "no vault remembers the newest entry");
        return false;
    }
    tools.catalogue.update_facts(&archive.id, |facts| {
        facts.witnessed_us = crate::clock::now_us();
        facts.witnessed_seq = head.0;
    });
    true
}

/// Puts one object into the store. With the entry, the point is announced: first the store has it, then we say so.
pub async fn upload(catalogue: &Catalogue, order: UploadOrder) -> Result<Stored> {
    let mut stored = Stored::default();
    // Also a store that was exchanged under our hands shows: the entry before this one is not there.
    let before = order.publishes.as_ref().map_or(0, |_| order.log.stored.seq);
    // Where entries were dropped from the queue no number is met that somebody else may have taken: it is looked.
    let gap = order.publishes.as_ref().is_some_and(|written| written.head.seq > before + 1);
    if !order.log.confirmed || gap || !still_there(&order, before).await? {
        let confirmed = crate::log::confirm(&order.archive, &order.keys.roots, &order.log).await?;
        (stored.confirmed, stored.rebase) = (true, confirmed.rebase);
        stored.blind = confirmed.listed.is_none();
        crate::log::note_listing(&order.archive, catalogue, &confirmed)?;
    }
    let path = order.object.path.clone();
    let sealed = tokio::task::spawn_blocking(move || std::fs::read(path)).await.map_err(Fault::internal)?;
    let sealed = match sealed {
        Ok(sealed) => Bytes::from(sealed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Stored { spoiled: true, ..stored });
        }
        Err(error) => return Err(error.into()),
    };
    // It lay on a disk since it was written: what is not what was written is not announced.
    if !is_whole(catalogue, &order, &sealed) {
        return Ok(Stored { spoiled: true, ..stored });
    }
    let (roots, name) = (&order.keys.roots, order.object.name);
    match name {
        ObjectName::Pack(id) => {
            while catalogue.is_being_deleted(&order.archive.id, id) {
                tokio::time::sleep(DELETE_PAUSE).await;
            }
            order.archive.put_pack(id, sealed, &order.object.path, roots).await?;
        }
        name => put_entry(catalogue, &order, name, sealed, stored.blind).await?,
    }
    if let Some(written) = order.publishes {
        let catalogue = catalogue.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            catalogue
                .advance(&order.archive.id, &written.head, Some(&written.point))
                .map_err(Fault::internal)?;
            if let Err(error) = order.spool.remove(&written.objects) {
                warn!(%error, "what is in the store cannot be removed from the queue");
            }
            catalogue.drop_elsewhere(&order.archive.id, written.head.seq).map_err(Fault::internal)?;
            Ok(())
        })
        .await
        .map_err(Fault::internal)??;
    }
    Ok(stored)
}

/// Puts an entry, whose number must be free. Where nothing can be read back it is written down before: should the answer get
/// lost, what then has the number is ours.
async fn put_entry(
    catalogue: &Catalogue,
    order: &UploadOrder,
    name: ObjectName,
    sealed: Bytes,
    blind: bool,
) -> Result<()> {
    let (id, digest) = (&order.archive.id, entry_digest(&sealed));
    let was_tried = catalogue.was_tried(id, &digest);
    if (blind || order.log.blind) && !was_tried {
        catalogue.put_tried(id, &digest).map_err(Fault::internal)?;
    }
    match order.archive.place(name, sealed).await? {
        Placed::Ours => Ok(()),
        Placed::Unread if was_tried => Ok(()),
        Placed::Unread => Err(ArchiveError::WriterFenced { key: name.store_key(id) }.into()),
    }
}

/// Whether the newest entry that the store has of ours is there. Where a condition is worth little, two may have written one
/// after the other: then it has to be ours as well.
async fn still_there(order: &UploadOrder, seq: u64) -> Result<bool> {
    if seq == 0 {
        return Ok(true);
    }
    let (archive, name) = (&order.archive, ObjectName::Entry(seq));
    if archive.store.capabilities().create == CreateGuarantee::Atomic {
        return match archive.has(name).await {
            Err(ArchiveError::Store(StoreError::Permission(_))) => Ok(true),
            answer => Ok(answer?),
        };
    }
    match archive.get(name).await {
        Err(ArchiveError::Store(StoreError::Permission(_))) => Ok(true),
        Ok(sealed) => Ok(entry_digest(&sealed) == order.log.stored.digest),
        Err(ArchiveError::Missing { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether an object is what was sealed. Of a pack remembers which pages it holds: should the store lose it, it can be made
/// again from them.
fn is_whole(catalogue: &Catalogue, order: &UploadOrder, sealed: &[u8]) -> bool {
    let (id, name, roots) = (&order.archive.id, order.object.name, &order.keys.roots);
    if let Some(written) = &order.publishes {
        return entry_digest(sealed) == written.head.digest;
    }
    let pages = match &order.object.holds {
        // A pack of something else is either no page set, or one by chance, which does no harm: what is made again has
        // to have the name.
        Holds::Unknown => match chatkeep_crypto::open(id, name, roots, sealed) {
            Ok(body) => PageSet::decode(body).ok().and_then(|pages| PackPages::of(&pages, order.object.seq)),
            Err(_) => return false,
        },
        known => {
            if chatkeep_crypto::authenticate(id, name, roots, sealed).is_err() {
                return false;
            }
            match known {
                // Read ahead for an entry that had no number yet.
                Holds::Pages(pages) => Some(pages.clone().as_of(order.object.seq)),
                Holds::Unknown | Holds::Other => None,
            }
        }
    };
    if let (ObjectName::Pack(name), Some(pages)) = (name, pages)
        && let Err(error) = catalogue.put_pack_pages(id, &name, &pages)
    {
        warn!(%error, "the cache cannot be written");
    }
    true
}

/// Keeps the compiler's eye on what crosses threads.
const _: () = {
    const fn sendable<T: Send>() {}
    sendable::<Work>();
    sendable::<Arc<Opened>>();
};
