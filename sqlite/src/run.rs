//! Reading frames from a log's file: whole transactions, from a place in its chain on.

use std::fs::File;
use std::io;
use std::num::NonZeroU32;

use crate::dirty::Dirty;
use crate::error::{GapReason, Trouble};
use crate::images::{Frames, Known, Log};
use crate::os::read_at;
use crate::wal::{Chain, FRAME_HEADER_LEN, HEADER_LEN, page_of_head};

/// Frames are read in pieces of this many bytes.
const PIECE_LEN: usize = 4 << 20;

/// What was read in one go.
pub(crate) struct Run {
    pub(crate) commits: u32,
    /// The smallest size, in pages, that a transaction left the database with.
    pub(crate) smallest: Option<u32>,
    /// The chain at the last commit.
    pub(crate) end: Chain,
    pub(crate) bytes_read: u64,
}

/// Whether a whole transaction continues the chain.
pub(crate) fn has_transaction_after(wal: &File, mut chain: Chain) -> io::Result<bool> {
    let mut raw = vec![0; chain.frame_len()];
    loop {
        let read = read_at(wal, &mut raw, chain.offset_of(chain.frame + 1))?;
        match chain.accept(&raw[..read]) {
            None => return Ok(false),
            Some(frame) if frame.commit_pages != 0 => return Ok(true),
            Some(_) => {}
        }
    }
}

/// The chain at the log's header; `None` when there is no whole one.
pub(crate) fn read_header(wal: &File) -> io::Result<Option<Chain>> {
    let mut bytes = [0; HEADER_LEN];
    let read = read_at(wal, &mut bytes, 0)?;
    Ok(Chain::parse_header(&bytes[..read]))
}

/// Tells the page of every frame up to `end`, in order, without a look at the images.
pub(crate) fn frame_heads(wal: &File, end: &Chain, each: &mut dyn FnMut(u32, NonZeroU32)) -> io::Result<()> {
    for frame in (1..=end.frame).filter_map(NonZeroU32::new) {
        let mut head = [0; FRAME_HEADER_LEN];
        if read_at(wal, &mut head, end.offset_of(frame.get()))? < head.len() {
            break;
        }
        let Some(pgno) = page_of_head(&head, end.salt) else { break };
        each(pgno, frame);
    }
    Ok(())
}

/// What transactions are read into.
pub(crate) struct Reader<'a> {
    pub(crate) dirty: &'a mut Dirty,
    /// Of the log before the place that is read from; grows with what is read.
    pub(crate) frames: &'a mut Frames,
    /// The images that pages had before.
    pub(crate) known: &'a Known<'a>,
}

/// What recovery would make of a log that nobody has open: all whole transactions from its beginning.
/// Returns the chain at its end and the size of the database, `None` when there is nothing in it.
pub(crate) fn recover(wal: &File, into: &mut Reader) -> Result<Option<(Chain, u32)>, Trouble> {
    let Some(chain) = read_header(wal)? else { return Ok(None) };
    let mut last_pages = 0;
    let run = read_run(wal, chain, u32::MAX, into, &mut |pages| last_pages = pages)?;
    Ok((run.commits > 0).then_some((run.end, last_pages)))
}

/// Publishes as dirty pages the whole transactions after `from`, up to frame `last`.
pub(crate) fn read_transactions(
    wal: &File,
    from: Chain,
    last: u32,
    into: &mut Reader,
) -> Result<Run, Trouble> {
    read_run(wal, from, last, into, &mut |_| {})
}

fn read_run(
    wal: &File,
    from: Chain,
    last: u32,
    into: &mut Reader,
    each_commit: &mut dyn FnMut(u32),
) -> Result<Run, Trouble> {
    let Reader { dirty, frames, known } = into;
    // A run that failed may have left frames that nobody committed.
    dirty.unstage();
    let mut run = Run { commits: 0, smallest: None, end: from, bytes_read: 0 };
    let mut chain = from;
    let frame_len = from.frame_len();
    let mut buffer = Vec::new();
    // The frame before, if it was a commit: SQLite repeats it to fill a sector, and counts one commit.
    let mut commit = Vec::new();
    'pieces: while chain.frame < last {
        let count = ((last - chain.frame) as usize).min((PIECE_LEN / frame_len).max(1));
        // A leftover run has no known end: begin small, so that an ordinary reset stays cheap.
        let count = if last == u32::MAX { count.min(64) } else { count };
        buffer.resize(count * frame_len, 0);
        let read = read_at(wal, &mut buffer, chain.offset_of(chain.frame + 1))?;
        run.bytes_read += read as u64;
        for raw in buffer[..read].chunks_exact(frame_len) {
            let Some(frame) = chain.accept(raw) else { break 'pieces };
            if let Err(error) = dirty.stage(frame.pgno, frame.image, NonZeroU32::new(chain.frame)) {
                tracing::warn!(%error, "changed pages cannot be kept, the whole file has to be read");
                return Err(Trouble::Gap(GapReason::TooManyChanges));
            }
            if frame.commit_pages == 0 {
                commit.clear();
            } else {
                dirty.publish(&mut |pgno, frame, room| {
                    let log = Some(Log { wal, frames });
                    // What cannot be read is not at hand.
                    let found = room.is_some_and(|room| known.find(pgno, log, room).unwrap_or(false));
                    frames.insert(pgno, frame.expect("frames of a log have a number"));
                    found
                });
                each_commit(frame.commit_pages);
                run.commits += u32::from(!same_frame(&commit, raw));
                commit.clear();
                commit.extend_from_slice(raw);
                run.smallest =
                    Some(run.smallest.map_or(frame.commit_pages, |least| least.min(frame.commit_pages)));
                run.end = chain;
            }
        }
        if read < buffer.len() {
            break;
        }
    }
    dirty.unstage();
    Ok(run)
}

/// The same page, database size and image; the running checksums differ.
fn same_frame(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a[..8] == b[..8] && a[FRAME_HEADER_LEN..] == b[FRAME_HEADER_LEN..]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::wal::fixtures::LogWriter;

    #[test]
    fn frames_left_by_a_read_that_failed_are_never_published() {
        let folder = tempfile::tempdir().unwrap();
        let spill = folder.path().join("no folder/spill");
        let mut dirty = Dirty::new(spill.clone(), 512);
        let table = crate::table::Table::open(folder.path(), "t", &[0; 32]).unwrap();
        let path = folder.path().join("wal");
        let mut read = |log: &LogWriter| {
            std::fs::write(&path, &log.bytes).unwrap();
            let wal = File::open(&path).unwrap();
            let begin = read_header(&wal).unwrap().unwrap();
            let (frames, known) = (&mut Frames::default(), &Known { key: &[0; 32], table: &table, db: None });
            let mut reader = Reader { dirty: &mut dirty, frames, known };
            let run = read_transactions(&wal, begin, u32::MAX, &mut reader);
            (run.map(|run| run.commits), dirty.pages().collect::<Vec<_>>())
        };
        // Written ahead of a commit that never came; the second one finds no room.
        let mut uncommitted = LogWriter::new(512, false, *b"saltsalt");
        uncommitted.frame(2, 0, 7);
        uncommitted.frame(3, 0, 7);
        assert!(matches!(read(&uncommitted), (Err(Trouble::Gap(GapReason::TooManyChanges)), _)));
        std::fs::create_dir(spill.parent().unwrap()).unwrap();
        let mut committed = LogWriter::new(512, false, *b"new salt");
        committed.frame(5, 9, 3);
        let (commits, pages) = read(&committed);
        assert_eq!((commits.unwrap(), pages), (1, vec![5]));
    }
}
