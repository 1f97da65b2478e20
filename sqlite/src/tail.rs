//! Following one write-ahead log through held descriptors, without a lock.
//!
//! # Why what is accepted is right
//!
//! *Same generation* (salt of the index = salt of the position). Frames are taken only up to the last one the
//! index publishes, and each must continue the [`Chain`]. Published frames of a generation never change until
//! the log is reset, and a reset changes the salt; so what continues the chain is what was committed, and every
//! whole transaction taken on the way is good by itself, even if a later frame turns out to be overwritten.
//!
//! *Reset* (the salts differ). The old generation may still stand behind the new one: its transactions after
//! the position are read as leftovers (R of them), then the new generation from its header (N). The index
//! counts commits: `R + N == difference` means nothing was missed, for any number of resets, because R cannot
//! exceed what the old generation had after the position and N is all that the newest has: a generation in
//! between would make the difference larger.
//!
//! What could forge this equality is a counter that does not count on, or a leftover commit frame that was never
//! counted and so makes up for a commit that was missed:
//! - An index made anew: its counter starts at 0. Making it truncates the file, which is an event, and voids the proof.
//! - A commit whose writer was killed before it published it. Its descriptor was closed: an event that voids it, too.
//! - A commit frame repeated to fill a sector (`psow=0`): a repetition is not counted.
//! - A commit whose writer could not finish it (the disk refused the sync) and lived on. No event tells. While the new
//!   log is empty its index still has the checksum of the last frame published before, and the leftovers have to end
//!   there. Else it needs all of this at once: such an error in the very last transaction of a generation, at least one
//!   more generation unseen, and in those exactly as many commits as leftovers that were not counted. A commit missed
//!   like this is captured as soon as its pages are written again, or the file is read as a whole.
//!
//! A reset can only happen when every frame of the old generation is in the database file. So whoever has
//! missed nothing of the log knows every page that changed in the file: the base scan rests on this.

use std::fs::File;
use std::io;

use crate::dirty::Dirty;
use crate::error::{GapReason, Trouble};
use crate::images::{Frames, Known, Log};
use crate::index::IndexHeader;
use crate::os::{Identity, Stat, index_in_use, read_at};
use crate::run::{Reader, has_transaction_after, read_header, read_index, read_transactions};
use crate::wal::{Chain, Checksum, FRAME_HEADER_LEN, Salt};

/// What events say about the time since the last good look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evidence {
    pub(crate) index_written: bool,
    pub(crate) writer_left: bool,
    /// Off only to show that the tests would notice.
    pub(crate) proof: bool,
}

/// Where the reader is.
#[derive(Debug, Clone, Copy)]
enum At {
    /// A generation that has no frame yet: its header may not be written either.
    Nothing(Salt),
    Frame(Chain),
}

/// What a good look brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Transactions taken over.
    pub(crate) commits: u32,
    /// The smallest size, in pages, that one of them left the database with.
    pub(crate) smallest: Option<u32>,
    pub(crate) bytes_read: u64,
    pub(crate) reset: bool,
}

/// A log being followed.
pub(crate) struct Tail {
    wal: File,
    shm: File,
    pub(crate) wal_id: Identity,
    pub(crate) shm_id: Identity,
    at: At,
    /// The index's counter at the position.
    change: u32,
    pub(crate) page_size: u32,
    /// Size of the database at the position; 0 when the log has told nothing yet.
    pub(crate) pages: u32,
    /// Of this generation, up to the position.
    frames: Frames,
    /// What looks brought that came to nothing in the end.
    carried: Step,
}

/// What frames are taken over into.
pub(crate) struct Takeover<'a> {
    pub(crate) dirty: &'a mut Dirty,
    /// The images that pages had before.
    pub(crate) known: &'a Known<'a>,
}

impl Tail {
    /// Begins at nothing: the first [`advance`](Self::advance) takes the whole log as it is.
    pub(crate) fn attach(wal: File, shm: File) -> Result<Tail, Trouble> {
        let header = read_index(&shm)?.ok_or(Trouble::Again)?;
        let (wal_id, shm_id) = (Stat::of_file(&wal)?.identity, Stat::of_file(&shm)?.identity);
        let at = At::Nothing(header.salt);
        Ok(Tail {
            wal,
            shm,
            wal_id,
            shm_id,
            at,
            change: 0,
            page_size: header.page_size,
            pages: 0,
            frames: Frames::default(),
            carried: Step::default(),
        })
    }

    /// Begins at a position of this log kept from earlier, if the log still has it: its header first, because after
    /// a reset the frames of the old generation stay where they were until they are overwritten.
    pub(crate) fn resume_at(&mut self, position: &Chain) -> io::Result<bool> {
        let Some(start) = self.start(position.salt)? else { return Ok(false) };
        let there = if position.frame == 0 {
            start == *position
        } else {
            let mut head = [0; FRAME_HEADER_LEN];
            read_at(&self.wal, &mut head, position.offset_of(position.frame))?;
            head[8..16] == position.salt && Checksum::from_stored(&head[16..24]) == position.checksum
        };
        if there {
            self.at = At::Frame(*position);
            self.frames = Frames::up_to(&self.wal, position)?;
        }
        Ok(there)
    }

    /// Where frames of this log are found.
    pub(crate) fn log(&self) -> Log<'_> {
        Log { wal: &self.wal, frames: &self.frames }
    }

    /// Whether any process still has the database open through this index.
    pub(crate) fn in_use(&self) -> io::Result<bool> {
        index_in_use(&self.shm)
    }

    /// The position, to be taken up again after a restart.
    pub(crate) fn position(&self) -> Option<Chain> {
        match self.at {
            At::Frame(chain) => Some(chain),
            At::Nothing(_) => None,
        }
    }

    /// The index as it is now; `None` when it cannot be read after many tries.
    pub(crate) fn index(&self) -> io::Result<Option<IndexHeader>> {
        read_index(&self.shm)
    }

    /// Takes over all that `header` publishes. On `Again` and `Gap` the position may have moved, but only to
    /// a place up to which everything was taken over.
    pub(crate) fn advance(
        &mut self,
        header: &IndexHeader,
        evidence: Evidence,
        mut into: Takeover,
    ) -> Result<Step, Trouble> {
        if header.page_size != 0 {
            if self.page_size != 0 && self.page_size != header.page_size {
                return Err(Trouble::Gap(GapReason::PageSize));
            }
            self.page_size = header.page_size;
        }
        let salt = match self.at {
            At::Nothing(salt) => salt,
            At::Frame(chain) => chain.salt,
        };
        let mut step = std::mem::take(&mut self.carried);
        let taken = if header.salt == salt {
            self.same_generation(header, &mut into, &mut step)
        } else {
            self.next_generation(header, evidence, &mut into, &mut step)
        };
        if taken.is_err() {
            self.carried = step;
        }
        taken?;
        self.change = header.change;
        self.pages = header.pages;
        Ok(step)
    }

    fn same_generation(
        &mut self,
        header: &IndexHeader,
        into: &mut Takeover,
        step: &mut Step,
    ) -> Result<(), Trouble> {
        let chain = match self.at {
            At::Nothing(_) if header.frames == 0 => return Ok(()),
            At::Nothing(salt) => self.start(salt)?.ok_or(Trouble::Again)?,
            At::Frame(chain) => chain,
        };
        if header.frames < chain.frame {
            return Err(Trouble::Gap(GapReason::Undone));
        }
        self.take(chain, header.frames, into, step)?;
        self.check_end(header)
    }

    fn next_generation(
        &mut self,
        header: &IndexHeader,
        evidence: Evidence,
        into: &mut Takeover,
        step: &mut Step,
    ) -> Result<(), Trouble> {
        if evidence.proof && evidence.index_written {
            return Err(Trouble::Gap(GapReason::IndexRemade));
        }
        if evidence.proof && evidence.writer_left {
            return Err(Trouble::Gap(GapReason::WriterLeft));
        }
        let leftovers = match self.at {
            At::Nothing(salt) => self.start(salt)?,
            At::Frame(chain) => Some(chain),
        };
        let seen = step.commits;
        if let Some(chain) = leftovers {
            self.take(chain, u32::MAX, into, step)?;
        }
        let before = step.commits;
        step.reset = true;
        if header.frames == 0 {
            let published = matches!(self.at, At::Frame(end) if end.checksum == header.checksum);
            let adds_up = self.change == header.change && (before == seen || published);
            if evidence.proof && !adds_up {
                return Err(Trouble::Gap(GapReason::Missed));
            }
            self.at = At::Nothing(header.salt);
            self.frames = Frames::default();
            return Ok(());
        }
        let chain = self.start(header.salt)?.ok_or(Trouble::Again)?;
        let (old_at, old_change) = (self.at, self.change);
        self.frames = Frames::default();
        self.take(chain, header.frames, into, step)?;
        let ended = self.check_end(header);
        let found = step.commits - before;
        if ended.is_err() || (evidence.proof && old_change.wrapping_add(found) != header.change) {
            // The position stays where everything before it was taken over.
            (self.at, self.change) = (old_at, old_change);
            step.commits = before;
            ended?;
            return Err(Trouble::Gap(GapReason::Missed));
        }
        Ok(())
    }

    fn check_end(&self, header: &IndexHeader) -> Result<(), Trouble> {
        match self.at {
            At::Frame(chain) if chain.frame < header.frames => Err(Trouble::Again),
            At::Frame(chain) if header.frames > 0 && chain.checksum != header.checksum => Err(Trouble::Again),
            At::Nothing(_) if header.frames > 0 => Err(Trouble::Again),
            _ => Ok(()),
        }
    }

    /// Takes over whole transactions after `from`, up to frame `last`, and moves there.
    fn take(&mut self, from: Chain, last: u32, into: &mut Takeover, step: &mut Step) -> Result<(), Trouble> {
        let mut reader = Reader { dirty: into.dirty, frames: &mut self.frames, known: into.known };
        let run = read_transactions(&self.wal, from, last, &mut reader)?;
        step.commits += run.commits;
        step.bytes_read += run.bytes_read;
        step.smallest = step.smallest.into_iter().chain(run.smallest).min();
        self.change = self.change.wrapping_add(run.commits);
        self.page_size = run.end.page_size;
        self.at = At::Frame(run.end);
        Ok(())
    }

    /// The chain at the log's header, if it is the header of this generation.
    fn start(&self, salt: Salt) -> io::Result<Option<Chain>> {
        Ok(read_header(&self.wal)?.filter(|chain| chain.salt == salt))
    }

    /// How many commits the index had counted at the position.
    pub(crate) fn change(&self) -> u32 {
        self.change
    }

    /// Whether the log may have a whole transaction that nobody will publish, because its writer died before it
    /// could. One that is about to be published looks the same for a moment.
    pub(crate) fn may_have_orphan(&self) -> io::Result<bool> {
        let salt = match self.at {
            At::Nothing(salt) => salt,
            At::Frame(chain) => chain.salt,
        };
        let Some(header) = read_index(&self.shm)?.filter(|header| header.salt == salt) else {
            return Ok(true);
        };
        let Some(start) = self.start(salt)? else { return Ok(header.frames > 0) };
        let end = match header.frames {
            0 => start,
            frame => Chain { frame, checksum: header.checksum, ..start },
        };
        if !has_transaction_after(&self.wal, end)? {
            return Ok(false);
        }
        // What was published since has overwritten the place an orphan would be in.
        let now = read_index(&self.shm)?;
        Ok(!now.is_some_and(|now| now.salt == salt && now.frames > header.frames))
    }

    /// Whether opening the database now would find in its log exactly what was read: asked when nobody has it open.
    pub(crate) fn would_recover_the_same(&self) -> io::Result<bool> {
        let salt = read_header(&self.wal)?.map(|chain| chain.salt);
        let same = match self.at {
            At::Nothing(ours) => salt.is_none_or(|salt| salt == ours),
            At::Frame(chain) => salt == Some(chain.salt),
        };
        Ok(same && !self.may_have_orphan()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::index::fixtures::encode;
    use crate::wal::fixtures::LogWriter;

    const PAGE_LEN: u32 = 512;
    const CALM: Evidence = Evidence { index_written: false, writer_left: false, proof: true };

    /// Takes over as if nothing were known of before.
    fn advance(
        tail: &mut Tail,
        header: &IndexHeader,
        evidence: Evidence,
        dirty: &mut Dirty,
    ) -> Result<Step, Trouble> {
        let table = crate::table::Table::open(std::path::Path::new("nowhere"), "t", &[0; 32]).unwrap();
        let known = Known { key: &[0; 32], table: &table, db: None };
        tail.advance(header, evidence, Takeover { dirty, known: &known })
    }

    /// A log and its index in files, written as an app would.
    struct Log {
        folder: tempfile::TempDir,
        writer: LogWriter,
        change: u32,
    }

    impl Log {
        fn new(salt: Salt) -> Log {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("wal"), []).unwrap();
            Log { folder, writer: LogWriter::new(PAGE_LEN, false, salt), change: 0 }
        }

        /// One transaction of one page.
        fn commit(&mut self, pgno: u32, fill: u8) {
            self.writer.frame(pgno, 9, fill);
            self.change += 1;
        }

        /// The log begins anew, over its old bytes.
        fn reset(&mut self, salt: Salt) {
            self.flush();
            self.writer = LogWriter::new(PAGE_LEN, false, salt);
        }

        fn wal(&self) -> File {
            File::options().read(true).write(true).open(self.folder.path().join("wal")).unwrap()
        }

        fn flush(&self) {
            self.wal().write_all_at(&self.writer.bytes, 0).unwrap();
        }

        /// Writes everything, and says what the index publishes.
        fn publish(&self) -> IndexHeader {
            self.flush();
            let chain = self.writer.chain;
            let header = IndexHeader {
                change: self.change,
                page_size: PAGE_LEN,
                frames: chain.frame,
                pages: 9,
                checksum: chain.checksum,
                salt: chain.salt,
            };
            std::fs::write(self.folder.path().join("shm"), encode(&header, PAGE_LEN as u16)).unwrap();
            header
        }

        fn tail(&self, dirty: &mut Dirty) -> Tail {
            let header = self.publish();
            let mut tail =
                Tail::attach(self.wal(), File::open(self.folder.path().join("shm")).unwrap()).unwrap();
            advance(&mut tail, &header, CALM, dirty).unwrap();
            tail
        }

        fn dirty(&self) -> Dirty {
            Dirty::new(self.folder.path().join("spill"), 1 << 20)
        }
    }

    /// A log followed to its third commit; then two more, and one after a reset.
    fn reset_once() -> (Log, Tail, Dirty) {
        let mut log = Log::new(*b"old salt");
        for n in 1..=3 {
            log.commit(n, 1);
        }
        let mut dirty = log.dirty();
        let tail = log.tail(&mut dirty);
        log.commit(4, 2);
        log.commit(5, 2);
        log.reset(*b"new salt");
        log.commit(5, 3);
        (log, tail, dirty)
    }

    #[track_caller]
    fn assert_gap(result: &Result<Step, Trouble>, expected: GapReason) {
        assert!(matches!(result, Err(Trouble::Gap(reason)) if *reason == expected), "{result:?}");
    }

    #[test]
    fn leftovers_and_the_new_log_that_add_up_are_taken() {
        let (log, mut tail, mut dirty) = reset_once();
        let step = advance(&mut tail, &log.publish(), CALM, &mut dirty).unwrap();
        assert_eq!((step.commits, step.reset), (3, true));
        let mut image = [0; PAGE_LEN as usize];
        assert!(dirty.read(4, &mut image).unwrap() && image[0] == 2);
        assert!(dirty.read(5, &mut image).unwrap() && image[0] == 3);
    }

    #[test]
    fn one_damaged_leftover_frame_is_a_gap() {
        let (log, mut tail, mut dirty) = reset_once();
        let header = log.publish();
        log.wal().write_all_at(&[0xff], log.writer.chain.offset_of(5) + 100).unwrap();
        assert_gap(&advance(&mut tail, &header, CALM, &mut dirty), GapReason::Missed);
    }

    #[test]
    fn a_generation_in_between_is_a_gap() {
        let (mut log, mut tail, mut dirty) = reset_once();
        log.reset(*b"newer !!");
        log.commit(6, 4);
        assert_gap(&advance(&mut tail, &log.publish(), CALM, &mut dirty), GapReason::Missed);
    }

    #[test]
    fn a_reset_proves_nothing_when_the_index_was_made_anew_or_a_writer_left() {
        let (log, mut tail, mut dirty) = reset_once();
        let header = log.publish();
        let remade = Evidence { index_written: true, ..CALM };
        assert_gap(&advance(&mut tail, &header, remade, &mut dirty), GapReason::IndexRemade);
        let left = Evidence { writer_left: true, ..CALM };
        assert_gap(&advance(&mut tail, &header, left, &mut dirty), GapReason::WriterLeft);
    }

    #[test]
    fn in_the_same_log_the_chain_alone_is_the_proof() {
        let mut log = Log::new(*b"saltsalt");
        log.commit(1, 1);
        let mut dirty = log.dirty();
        let mut tail = log.tail(&mut dirty);
        log.commit(2, 1);
        log.change = 70;
        let evidence = Evidence { index_written: true, writer_left: true, proof: true };
        assert_eq!(advance(&mut tail, &log.publish(), evidence, &mut dirty).unwrap().commits, 1);
        assert_eq!(tail.change(), 70);
    }

    #[test]
    fn an_index_ahead_of_or_behind_the_log_is_noticed() {
        let mut log = Log::new(*b"saltsalt");
        log.commit(1, 1);
        log.commit(2, 1);
        let mut dirty = log.dirty();
        let mut tail = log.tail(&mut dirty);
        let header = log.publish();
        let ahead = IndexHeader { frames: 3, ..header };
        assert!(matches!(advance(&mut tail, &ahead, CALM, &mut dirty), Err(Trouble::Again)));
        let behind = IndexHeader { frames: 1, ..header };
        assert_gap(&advance(&mut tail, &behind, CALM, &mut dirty), GapReason::Undone);
        let other = IndexHeader { checksum: Checksum(1, 2), ..header };
        assert!(matches!(advance(&mut tail, &other, CALM, &mut dirty), Err(Trouble::Again)));
    }

    #[test]
    fn frames_nobody_published_are_not_taken_but_suspected() {
        let mut log = Log::new(*b"saltsalt");
        log.commit(1, 1);
        let mut dirty = log.dirty();
        let mut tail = log.tail(&mut dirty);
        let header = log.publish();
        assert!(!tail.may_have_orphan().unwrap());
        log.writer.frame(2, 0, 5);
        log.flush();
        assert!(!tail.may_have_orphan().unwrap(), "no whole transaction");
        log.writer.frame(3, 9, 5);
        log.flush();
        assert!(tail.may_have_orphan().unwrap());
        assert_eq!(advance(&mut tail, &header, CALM, &mut dirty).unwrap().commits, 0);
        assert!(!dirty.contains(3));
    }

    #[test]
    fn a_position_is_taken_up_again_only_where_it_was() {
        let (log, tail, mut dirty) = reset_once();
        let position = tail.position().unwrap();
        let mut same = Log::new(*b"old salt");
        for n in 1..=4 {
            same.commit(n, 1);
        }
        assert!(same.tail(&mut dirty).resume_at(&position).unwrap());
        assert!(!log.tail(&mut log.dirty()).resume_at(&position).unwrap());
    }

    #[test]
    fn a_commit_frame_repeated_to_fill_a_sector_counts_once() {
        let mut log = Log::new(*b"old salt");
        for n in 1..=3 {
            log.commit(n, 1);
        }
        let mut dirty = log.dirty();
        let mut tail = log.tail(&mut dirty);
        log.commit(4, 2);
        for _ in 0..3 {
            log.writer.frame(4, 9, 2);
        }
        log.reset(*b"new salt");
        log.commit(5, 3);
        let step = advance(&mut tail, &log.publish(), CALM, &mut dirty).unwrap();
        assert_eq!(step.commits, 2);
    }

    #[test]
    fn a_repeated_commit_frame_does_not_stand_for_a_missed_commit() {
        let mut log = Log::new(*b"old salt");
        for n in 1..=3 {
            log.commit(n, 1);
        }
        let mut dirty = log.dirty();
        let mut tail = log.tail(&mut dirty);
        log.commit(4, 2);
        log.writer.frame(4, 9, 2);
        log.reset(*b"newer !!");
        log.commit(6, 4);
        log.reset(*b"new salt");
        log.commit(5, 3);
        assert_gap(&advance(&mut tail, &log.publish(), CALM, &mut dirty), GapReason::Missed);
    }

    #[test]
    fn in_an_empty_new_log_the_leftovers_must_end_where_the_index_says() {
        // The commit of page 5 was counted, or it failed and another one in a log in between was.
        for (counted, salt) in [(true, *b"new salt"), (false, *b"newer !!")] {
            let mut log = Log::new(*b"old salt");
            log.commit(1, 1);
            let mut dirty = log.dirty();
            let mut tail = log.tail(&mut dirty);
            log.commit(2, 1);
            let mut last = log.writer.chain.checksum;
            log.commit(5, 1);
            if counted {
                last = log.writer.chain.checksum;
            }
            log.reset(salt);
            let header = IndexHeader { checksum: last, ..log.publish() };
            let result = advance(&mut tail, &header, CALM, &mut dirty);
            if counted {
                assert_eq!(result.unwrap().commits, 2);
            } else {
                assert_gap(&result, GapReason::Missed);
            }
        }
    }

    #[test]
    fn what_a_look_brought_that_failed_in_the_end_is_told_by_the_next() {
        let mut log = Log::new(*b"saltsalt");
        log.commit(1, 1);
        let mut dirty = log.dirty();
        let mut tail = log.tail(&mut dirty);
        log.writer.frame(2, 4, 1);
        log.change += 1;
        log.commit(3, 1);
        let header = log.publish();
        let ahead = IndexHeader { frames: header.frames + 1, ..header };
        assert!(matches!(advance(&mut tail, &ahead, CALM, &mut dirty), Err(Trouble::Again)));
        let step = advance(&mut tail, &header, CALM, &mut dirty).unwrap();
        assert_eq!((step.commits, step.smallest), (2, Some(4)));
    }
}
