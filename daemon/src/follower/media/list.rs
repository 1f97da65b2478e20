//! What an entry says of a folder of attachments: all its files, or those that changed since the entry's parent.

use std::collections::BTreeSet;
use std::io;

use chatkeep_format::{FileOp, FileSet, FolderRecord};

use super::folder::{Change, MediaFolder};
use crate::known::{Changes, Known, KnownFile, KnownFiles, Totals};
use crate::sealing::Sealing;

/// A list of up to this many bytes is in the entry itself.
const INLINE_LEN: usize = 256 << 10;
/// Longer ones are cut into packs of about this many bytes.
const LIST_LEN: usize = 4 << 20;

/// The record of one folder, and what becomes of what is known when its entry is kept.
pub(super) struct Listed {
    pub(super) record: FolderRecord,
    pub(super) totals: Totals,
    /// The part whose packs are the lists.
    pub(super) part: u32,
}

struct Lister<'a, 'scope, 'env> {
    sealing: &'a mut Sealing<'scope, 'env>,
    part: u32,
    files: Vec<(Vec<u8>, FileOp)>,
    len: usize,
    sent: bool,
    /// What lists in packs name.
    packs: &'a mut BTreeSet<[u8; 16]>,
}

impl Lister<'_, '_, '_> {
    fn push(&mut self, path: Vec<u8>, op: FileOp) -> io::Result<()> {
        self.len += FileSet::byte_len_of(&path, &op);
        self.files.push((path, op));
        if self.len >= LIST_LEN { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> io::Result<()> {
        let set = FileSet::new(std::mem::take(&mut self.files)).map_err(io::Error::other)?;
        self.packs.extend(set.packs());
        (self.len, self.sent) = (0, true);
        self.sealing.bytes(self.part, set.encode(), set.len() as u32)
    }

    /// What goes into the entry itself.
    fn finish(mut self) -> io::Result<FileSet> {
        if self.len > INLINE_LEN || self.sent && !self.files.is_empty() {
            self.send()?;
        }
        FileSet::new(self.files).map_err(io::Error::other)
    }
}

impl MediaFolder {
    /// The record of this folder in entry `seq`, which builds on `parent_seq` (0: on nothing).
    pub(super) fn list(
        &self,
        known: &KnownFiles,
        (seq, parent_seq): (u64, u64),
        sealing: &mut Sealing<'_, '_>,
        packs: &mut BTreeSet<[u8; 16]>,
    ) -> io::Result<Listed> {
        let before = known.totals(&self.name);
        let is_base = parent_seq == 0 || before.is_none_or(|before| parent_seq < before.since);
        let mut totals = before.unwrap_or_default();
        for (path, change) in &self.ready {
            if let Some(Known::File(file)) = known.get(&self.name, path) {
                totals.files -= 1;
                totals.bytes -= file.record.len;
            }
            if let Change::File(_, record) = change {
                totals.files += 1;
                totals.bytes += record.len;
            }
        }
        totals.since = if is_base { seq } else { totals.since };
        totals.changed = if self.ready.is_empty() && before.is_some() { totals.changed } else { seq };
        totals.device = if self.missing.is_none() { self.device() } else { totals.device };
        let part = sealing.begin_part();
        let mut lister = Lister { sealing, part, files: Vec::new(), len: 0, sent: false, packs };
        // Nothing else changed since the parent: what is known need not be looked through.
        if !is_base && before.is_some_and(|before| before.changed <= parent_seq) {
            for (path, change) in &self.ready {
                lister.push(path.clone(), change.op())?;
            }
        } else {
            self.list_known(known, (!is_base).then_some(parent_seq), &mut lister)?;
        }
        let inline = lister.finish()?;
        let record = FolderRecord {
            name: self.name.clone(),
            is_base,
            files: totals.files,
            bytes: totals.bytes,
            unread: u32::try_from(self.unread().files + self.refused()).unwrap_or(u32::MAX),
            packs: Vec::new(),
            inline,
        };
        Ok(Listed { record, totals, part })
    }

    /// All that is known and ready, in order; with `since`, what changed after that entry.
    fn list_known(
        &self,
        known: &KnownFiles,
        since: Option<u64>,
        lister: &mut Lister<'_, '_, '_>,
    ) -> io::Result<()> {
        let list = |path: &[u8], change: &Change, lister: &mut Lister<'_, '_, '_>| {
            // Where all files are listed, one that is gone is just not listed.
            let is_listed = since.is_some() || *change != Change::Gone;
            if is_listed { lister.push(path.to_vec(), change.op()) } else { Ok(()) }
        };
        let mut ready = self.ready.iter().peekable();
        for (path, known) in known.range(&self.name, None, None) {
            while let Some((path, change)) = ready.next_if(|(ready, _)| **ready < path) {
                list(path, change, lister)?;
            }
            if let Some((path, change)) = ready.next_if(|(ready, _)| **ready == path) {
                list(path, change, lister)?;
                continue;
            }
            match (known, since) {
                (Known::File(file), None) => lister.push(path, FileOp::File(file.record))?,
                (Known::File(file), Some(since)) if file.seq > since => {
                    lister.push(path, FileOp::File(file.record))?;
                }
                (Known::Gone(seq), Some(since)) if seq > since => lister.push(path, FileOp::Gone)?,
                _ => {}
            }
        }
        ready.try_for_each(|(path, change)| list(path, change, lister))
    }

    /// The packs that what is ready needs.
    pub(super) fn ready_packs(&self) -> impl Iterator<Item = [u8; 16]> {
        let records = self.ready.values().filter_map(|change| match change {
            Change::File(_, record) => Some(record),
            Change::Gone => None,
        });
        records.flat_map(|record| &record.chunks).map(|chunk| chunk.pack)
    }

    /// The entry `seq` is kept: what was ready is known.
    pub(super) fn note(&mut self, known: &KnownFiles, seq: u64, listed: &Listed, changes: &mut Changes) {
        let ready = std::mem::take(&mut self.ready);
        for (path, change) in &ready {
            if *change == Change::Gone
                && let Some(Known::File(file)) = known.get(&self.name, path)
            {
                known.forget_chunks(changes, &self.name, path, &file.record);
            }
        }
        if listed.record.is_base {
            // Nothing will be built on an entry before this one.
            for (path, _) in
                known.range(&self.name, None, None).filter(|(_, known)| matches!(known, Known::Gone(_)))
            {
                changes.remove(&self.name, &path);
            }
        }
        for (path, change) in ready {
            match change {
                Change::File(found, record) => {
                    changes.put(&self.name, &path, &Known::File(KnownFile { seq, found, record }));
                }
                Change::Gone if listed.record.is_base => changes.remove(&self.name, &path),
                Change::Gone => changes.put(&self.name, &path, &Known::Gone(seq)),
            }
        }
        changes.totals(&self.name, &listed.totals);
    }
}

impl Change {
    fn op(&self) -> FileOp {
        match self {
            Self::File(_, record) => FileOp::File(record.clone()),
            Self::Gone => FileOp::Gone,
        }
    }
}
