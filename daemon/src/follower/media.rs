//! The folders of attachments of one source: read between captures, named by entries.
//!
//! Three things happen, all on the follower's thread. A folder is *walked* when its watcher tells of a change
//! ([`folder`]). What is new is *read* in slices into blobs in the spool ([`blobs`]), so that no capture waits for
//! gigabytes. And an entry *lists* what was read since its parent ([`list`]).
//!
//! The database comes first: a capture reads the database, then walks, and reads what little is new itself, so that an
//! entry has the attachments that its database speaks of. Where that is too much, the entry is made without them and says
//! how many are missing, and the next one follows as soon as they are in the spool.

mod blobs;
mod folder;
mod list;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chatkeep_attachments::Found;
use chatkeep_format::FolderRecord;
use tracing::{debug, warn};

use crate::known::{Changes, KnownFiles, Place};
use crate::spool::Spooled;
use crate::writer::{Writer, Written};
use blobs::{Blobs, Pick};
use folder::{Amount, MediaFolder, Pending};
use list::Listed;

/// New attachments of up to this many bytes are read within a capture, 32 MiB: less than half a second.
const CAPTURE_LEN: u64 = 32 << 20;
/// An entry is made when so much is in the spool, 32 MiB, and nothing more is read until then: a crash costs no more, and
/// the disk holds no second copy of everything.
const ENTRY_LEN: u64 = 32 << 20;
/// And when so many files are: what is not in an entry is in memory.
const ENTRY_FILES: usize = 16_384;
/// A file that was written this moment is read again after a tick of the kernel's clock.
const TICK: Duration = Duration::from_millis(25);
/// After a failure (a full disk), nothing is read for this long.
const FAILED_PAUSE: Duration = Duration::from_secs(30);

/// What the thread begins with.
#[derive(Debug, Clone)]
pub struct Attachments {
    /// The folders.
    pub folders: Vec<PathBuf>,
    /// What is known of their files. It stands at the newest entry written, or knows nothing.
    pub known: KnownFiles,
    /// Key of the ids of chunks.
    pub digest_key: [u8; 32],
}

pub(super) struct Media {
    folders: Vec<MediaFolder>,
    known: Option<KnownFiles>,
    key: [u8; 32],
    blobs: Blobs,
    wake: Arc<dyn Fn() + Send + Sync>,
    /// Somebody waits for an entry with everything.
    owes: bool,
    /// Nothing is read until then, and why.
    failed: Option<(Instant, String)>,
}

/// What an entry has of attachments.
#[derive(Default)]
pub(super) struct MediaDraft {
    listed: Vec<Listed>,
    pub(super) listed_packs: Vec<[u8; 16]>,
    pub(super) objects: Vec<Spooled>,
}

impl MediaDraft {
    pub(super) fn records(&self) -> Vec<FolderRecord> {
        self.listed.iter().map(|listed| listed.record.clone()).collect()
    }
}

impl Media {
    /// `wake` is called from other threads when there may be something to do.
    pub(super) fn new<'a>(
        start: Option<&Attachments>,
        databases: impl Iterator<Item = &'a Path>,
        (links, rebase): (bool, bool),
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let folders = start.map(|start| start.folders.clone()).unwrap_or_default();
        let databases: Vec<&Path> = databases.collect();
        let mut media = Self {
            folders: folders.into_iter().map(|path| MediaFolder::new(path, links, &databases)).collect(),
            known: start.map(|start| start.known.clone()),
            key: start.map_or([0; 32], |start| start.digest_key),
            blobs: Blobs::default(),
            wake: Arc::new(wake),
            owes: false,
            failed: None,
        };
        if let Some(known) = media.known.clone() {
            // The configuration says what there is. An app that registers says what it has: what an archive has that was
            // taken over, and nobody registered here, stays in it.
            if !links {
                media.add_absent(&known);
            } else if let Err(error) = forget_others(&known, &media.folders) {
                media.fail(&error);
            }
        }
        if rebase {
            media.list_anew();
        }
        media
    }

    fn add_absent(&mut self, known: &KnownFiles) {
        for name in known.folders() {
            if self.folders.iter().all(|folder| folder.name != name) {
                self.folders.push(MediaFolder::absent(name));
            }
        }
    }

    /// Whether there is something to do now.
    pub(super) fn has_work(&self) -> bool {
        let now = Instant::now();
        if self.failed.as_ref().is_some_and(|(until, _)| *until > now) {
            return false;
        }
        self.folders.iter().any(|folder| folder.due().is_some_and(|due| due <= now)) || self.can_read()
    }

    /// Until when there is nothing to do, if nothing happens.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        let due = self.folders.iter().filter_map(MediaFolder::due).min()?;
        let until = self.failed.as_ref().map_or(due, |(until, _)| due.max(*until));
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn can_read(&self) -> bool {
        let waiting =
            self.folders.iter().any(|folder| !folder.pending.is_empty() || !folder.later.is_empty());
        // A file that was begun is read to its end, however long it is.
        self.blobs.is_busy() || waiting && !self.is_full()
    }

    /// Whether an entry has to be made before more is read. Without a file that is ready none would make room: what is
    /// sealed is of a long file that had to be begun again.
    fn is_full(&self) -> bool {
        let files: usize = self.folders.iter().map(|folder| folder.ready.len()).sum();
        files > 0 && (self.blobs.sealed_bytes() >= ENTRY_LEN || files >= ENTRY_FILES)
    }

    /// Does a little of what there is to do. What goes wrong is tried again later.
    pub(super) fn work(&mut self, writer: &Writer) {
        let Some(known) = self.known.clone() else { return };
        let now = Instant::now();
        if self.failed.take_if(|(until, _)| *until <= now).is_some() {
            debug!("attachments are read again");
        }
        let due = self.folders.iter().position(|folder| folder.due().is_some_and(|due| due <= now));
        let done = match due {
            Some(at) => self.walk(at, &known),
            None => self.blobs.read(&mut self.folders, Pick::Slice, (&known, &self.key), writer),
        };
        if let Err(error) = done {
            self.fail(&error);
        }
    }

    fn walk(&mut self, at: usize, known: &KnownFiles) -> io::Result<()> {
        let folder = &mut self.folders[at];
        folder.reading = self.blobs.current().filter(|(of, _)| *of == at).map(|(_, found)| found.clone());
        folder.walk(known, now_ns(), &self.wake)?;
        // It is not as it was when it was begun.
        if let Some(Found { path, .. }) = folder.reading.take()
            && folder.is_pending(&path)
        {
            self.blobs.abandon(at, &path);
        }
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        warn!(%error, "attachments cannot be read into the backup now");
        self.failed = Some((Instant::now() + FAILED_PAUSE, error.to_string()));
        self.folders.iter_mut().for_each(MediaFolder::look_again);
    }

    /// Whether an entry is to be made although no database may have changed: of how many bytes, if so.
    pub(super) fn wants_entry(&self) -> Option<u64> {
        let changed = self.folders.iter().any(|folder| !folder.ready.is_empty());
        let more = self.has_more();
        let wanted = changed && (!more || self.is_full()) || self.owes && !more;
        wanted.then(|| self.blobs.sealed_bytes().max(1))
    }

    /// Whether files are still to be read that can be read now.
    fn has_more(&self) -> bool {
        let failed = self.failed.is_some();
        let waiting = self.folders.iter().any(|folder| !folder.pending.is_empty() || folder.has_beyond());
        !failed && (self.blobs.is_busy() || waiting)
    }

    /// Within a capture, after the databases: whatever they speak of is on the disk by now.
    pub(super) fn catch_up(&mut self, writer: &Writer) {
        let Some(known) = self.known.clone().filter(|_| self.failed.is_none()) else { return };
        let mut result = self.read_new(&known, writer, true);
        if result.is_ok() && self.folders.iter().any(|folder| !folder.unsettled.is_empty()) {
            std::thread::sleep(TICK);
            result = self.read_new(&known, writer, false);
        }
        if let Err(error) = result {
            self.fail(&error);
        }
    }

    fn read_new(&mut self, known: &KnownFiles, writer: &Writer, first: bool) -> io::Result<()> {
        for at in 0..self.folders.len() {
            let folder = &self.folders[at];
            if if first { folder.is_due_in_capture() } else { !folder.unsettled.is_empty() } {
                self.walk(at, known)?;
            }
        }
        let small = self.unread().bytes <= CAPTURE_LEN;
        let mut files = Vec::new();
        for (at, folder) in self.folders.iter_mut().enumerate() {
            files.extend(folder.take_pending(small).into_iter().map(|pending| (at, pending)));
        }
        if !small {
            // What is newest is most likely what the newest messages speak of.
            files.sort_by_key(|(_, pending)| std::cmp::Reverse(pending.found.mtime_ns));
            let mut bytes = 0;
            let mut within = |(_, pending): &(usize, Pending)| {
                bytes += pending.found.len;
                bytes <= CAPTURE_LEN
            };
            let count = files.iter().take_while(|file| within(file)).count();
            for (at, pending) in files.split_off(count) {
                self.folders[at].give_back(pending);
            }
        }
        if files.is_empty() && !self.blobs.is_busy() {
            return Ok(());
        }
        self.blobs.read(&mut self.folders, Pick::All { files, current: small }, (known, &self.key), writer)
    }

    /// Whether there is something for an entry.
    pub(super) fn has_news(&self) -> bool {
        // A folder that no entry lists yet is listed, empty or not.
        let listed = |folder: &MediaFolder| {
            self.known.as_ref().is_some_and(|known| known.totals(&folder.name).is_some())
        };
        self.folders.iter().any(|folder| !folder.ready.is_empty() || !listed(folder))
    }

    /// A capture ended, whatever came of it. Says whether attachments are still to be read.
    pub(super) fn captured(&mut self) -> bool {
        self.folders.iter_mut().for_each(|folder| folder.captures += 1);
        self.owes = self.has_more();
        self.owes
    }

    /// What entry `seq` has, which builds on `parent_seq` (0: on nothing). After it comes [`Media::commit`] or
    /// [`Media::abort`].
    pub(super) fn draft(
        &mut self,
        writer: &Writer,
        seq: u64,
        parent_seq: u64,
        position: u32,
    ) -> io::Result<MediaDraft> {
        let Some(known) = self.known.clone() else { return Ok(MediaDraft::default()) };
        let mut listed_packs = BTreeSet::new();
        let needed: BTreeSet<[u8; 16]> = self.folders.iter().flat_map(MediaFolder::ready_packs).collect();
        let reading = self.blobs.current().map(|(at, _)| at);
        let folders = &self.folders;
        let (listed, packs) = writer.sealing(seq, position, |sealing| {
            let list = |(at, folder): (usize, &MediaFolder)| {
                let mut listed = folder.list(&known, (seq, parent_seq), sealing, &mut listed_packs)?;
                listed.record.unread += u32::from(reading == Some(at));
                Ok(listed)
            };
            folders.iter().enumerate().map(list).collect::<io::Result<Vec<Listed>>>()
        });
        let mut packs = packs?;
        let mut listed = listed?;
        for of in &mut listed {
            of.record.packs = std::mem::take(&mut packs.parts[of.part as usize]);
        }
        let first = position + packs.objects.len() as u32;
        let taken = self.blobs.take(&needed, writer);
        let mut objects = writer.spool.assign(&taken, seq, first)?;
        objects.append(&mut packs.objects);
        Ok(MediaDraft { listed, listed_packs: listed_packs.into_iter().collect(), objects })
    }

    /// The entry is kept.
    pub(super) fn commit(&mut self, written: &Written, draft: &MediaDraft) {
        let Some(known) = self.known.clone() else { return };
        let changed = draft.listed.iter().any(|listed| listed.totals.changed == written.head.seq);
        let mut changes = Changes::default();
        for (folder, listed) in self.folders.iter_mut().zip(&draft.listed) {
            folder.note(&known, written.head.seq, listed, &mut changes);
        }
        changes.stands_at(Place { seq: written.head.seq, digest: written.head.digest });
        let kept = known.apply(changes).and_then(|()| if changed { known.flush() } else { Ok(()) });
        if let Err(error) = kept {
            // What is known is behind the log now, and is made anew from it at the next start.
            warn!(%error, "what is known of attachments cannot be written down");
            self.known_is_lost(&known);
        }
        if written.point.parent_seq == 0 {
            // Entries before this one may go, and with them what the file that is being read refers to.
            self.blobs.restart_current(&mut self.folders);
        }
    }

    fn known_is_lost(&mut self, known: &KnownFiles) {
        if let Err(error) = known.clear() {
            self.fail(&io::Error::other(error));
        }
        self.folders.iter_mut().for_each(MediaFolder::start_over);
    }

    /// The entry came to nothing, and its packs with it.
    pub(super) fn abort(&mut self, writer: &Writer) {
        self.blobs.drop_all(writer);
        self.folders.iter_mut().for_each(MediaFolder::start_over);
    }

    /// Nothing that is in the store is to be relied on: the next entry lists all files. Those that have something in these
    /// packs are read and stored again.
    pub(super) fn forget(&mut self, bad_packs: &BTreeSet<[u8; 16]>, writer: &Writer) {
        self.list_anew();
        let Some(known) = self.known.clone().filter(|_| !bad_packs.is_empty()) else { return };
        self.blobs.drop_all(writer);
        self.folders.iter_mut().for_each(MediaFolder::start_over);
        match known.forget_packs(bad_packs) {
            Ok(files) => warn!(files, "attachments that are damaged in the store are stored again"),
            Err(error) => self.fail(&io::Error::other(error)),
        }
    }

    fn list_anew(&mut self) {
        let Some(known) = &self.known else { return };
        let mut changes = Changes::default();
        for folder in &self.folders {
            if let Some(totals) = known.totals(&folder.name) {
                changes.totals(&folder.name, &crate::known::Totals { since: u64::MAX, ..totals });
            }
        }
        if let Err(error) = known.apply(changes).and_then(|()| known.flush()) {
            self.fail(&io::Error::other(error));
        }
    }

    fn unread(&self) -> Amount {
        let mut unread = Amount::default();
        for amount in self.folders.iter().map(MediaFolder::unread) {
            unread.files += amount.files;
            unread.bytes += amount.bytes;
        }
        if let Some((_, found)) = self.blobs.current() {
            unread.add(found.len);
        }
        unread
    }

    /// What the user should know.
    pub(super) fn caution(&self) -> Option<String> {
        let mut cautions = Vec::new();
        for folder in &self.folders {
            if let Some(why) = &folder.missing {
                cautions.push(format!(
                    "attachments `{}`: {why}; they stay in the backup as they were",
                    folder.name
                ));
            }
        }
        if let Some((_, why)) = &self.failed {
            cautions.push(format!("attachments cannot be read into the backup now: {why}"));
        }
        let unread = self.unread();
        if unread.files > 0 {
            let megabytes = unread.bytes.div_ceil(1_000_000);
            cautions
                .push(format!("{} files ({megabytes} MB) of attachments are still being read", unread.files));
        }
        let refused: u64 = self.folders.iter().map(MediaFolder::refused).sum();
        if refused > 0 {
            cautions.push(format!("{refused} files or folders of attachments cannot be read"));
        }
        if self.folders.iter().any(MediaFolder::is_noticed_late) {
            cautions
                .push("changes of attachments are noticed late: not all folders can be watched".to_owned());
        }
        (!cautions.is_empty()).then(|| cautions.join("; "))
    }
}

/// Forgets folders that are not backed up any more: if they ever are again, they begin anew.
fn forget_others(known: &KnownFiles, folders: &[MediaFolder]) -> io::Result<()> {
    for name in known.folders().into_iter().filter(|name| folders.iter().all(|folder| folder.name != *name)) {
        known.forget_folder(&name).map_err(io::Error::other)?;
    }
    Ok(())
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
