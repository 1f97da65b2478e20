//! Reading a log's file, whole transactions from a place in its chain on, and its index.

use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::dirty::Dirty;
use crate::error::{GapReason, Trouble};
use crate::images::{Frames, Known, Log};
use crate::index::{self, IndexHeader};
use crate::os::read_at;
use crate::wal::{Chain, FRAME_HEADER_LEN, HEADER_LEN, page_of_head};

/// Frames are read in pieces of this many bytes.
const PIECE_LEN: usize = 4 << 20;
/// A header of the index caught in the middle of a change is read again this often.
const HEADER_TRIES: u32 = 20;

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

/// Whether the log is in a version that is not known, so that nothing can be said about what it holds.
pub(crate) fn is_of_another_version(wal: &File) -> io::Result<bool> {
    let mut bytes = [0; HEADER_LEN];
    let read = read_at(wal, &mut bytes, 0)?;
    Ok(read == HEADER_LEN && Chain::is_of_another_version(&bytes))
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

/// Reads the index until it is caught whole.
pub(crate) fn read_index(shm: &File) -> io::Result<Option<IndexHeader>> {
    for attempt in 0..HEADER_TRIES {
        let mut bytes = [0; index::LEN];
        if read_at(shm, &mut bytes, 0)? == index::LEN
            && let Some(header) = IndexHeader::parse(&bytes)
        {
            return Ok(Some(header));
        }
        if attempt > 2 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    Ok(None)
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

    /// Two hundred thousand headers are read while a writer publishes and resets without a pause: each one accepted
    /// tells the checksum of a frame that is there.
    #[test]
    fn a_header_read_under_a_writer_at_full_speed_is_whole_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = |suffix: &str| folder.path().join(format!("db{suffix}"));
        let app = rusqlite::Connection::open(path("")).unwrap();
        app.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 50; CREATE TABLE t(x);",
        )
        .unwrap();
        let (wal, shm) = (File::open(path("-wal")).unwrap(), File::open(path("-shm")).unwrap());
        let stop = std::sync::atomic::AtomicBool::new(false);
        let read = || {
            let mut bytes = [0; index::LEN];
            read_at(&shm, &mut bytes, 0).unwrap();
            IndexHeader::parse(&bytes)
        };
        let (mut accepted, mut resets, mut salt) = (0, 0, [0; 8]);
        std::thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    app.execute_batch("INSERT INTO t VALUES (randomblob(100));").unwrap();
                }
            });
            for _ in 0..200_000 {
                let Some(header) = read().filter(|header| header.frames > 0) else { continue };
                let mut head = [0; FRAME_HEADER_LEN];
                read_at(&wal, &mut head, crate::wal::frame_offset(header.page_size, header.frames)).unwrap();
                if read().is_some_and(|later| later.salt == header.salt) {
                    accepted += 1;
                    let there = crate::wal::Checksum::from_stored(&head[16..24]);
                    if (there, &head[8..16]) != (header.checksum, &header.salt[..]) {
                        stop.store(true, std::sync::atomic::Ordering::Relaxed);
                        panic!("{header:?}, and the frame says {there:?}");
                    }
                }
                resets += u32::from(std::mem::replace(&mut salt, header.salt) != header.salt);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(accepted > 1000 && resets > 10, "{accepted} headers, {resets} resets");
    }

    #[test]
    fn an_index_cut_short_is_no_index() {
        let shm = tempfile::tempfile().unwrap();
        for len in [0, 1, 96, index::LEN as u64 - 1] {
            shm.set_len(len).unwrap();
            assert_eq!(read_index(&shm).unwrap(), None);
        }
    }
}
