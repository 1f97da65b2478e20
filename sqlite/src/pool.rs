//! Page images, in memory up to a limit, beyond it in a file that has no name any more.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::os::read_at;

/// Memory is taken in blocks of about this many bytes, and given back when the pool is cleared.
const BLOCK_LEN: usize = 1 << 20;
/// Set in the number of a slot that is in the file.
const SPILLED: u32 = 1 << 31;

/// Where an image is: its index, from 1, in memory or in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(NonZeroU32);

impl Slot {
    fn new(index: usize, spilled: bool) -> Slot {
        let number = (index as u32 + 1) | if spilled { SPILLED } else { 0 };
        Slot(NonZeroU32::new(number).expect("it is at least 1"))
    }

    fn index(self) -> usize {
        (self.0.get() & !SPILLED) as usize - 1
    }

    fn is_spilled(self) -> bool {
        self.0.get() & SPILLED != 0
    }
}

/// Images of one size.
pub(crate) struct Pool {
    page_len: usize,
    blocks: Vec<Vec<u8>>,
    in_memory: usize,
    memory_max: usize,
    spill_path: PathBuf,
    spill: Option<File>,
    in_spill: usize,
    spill_max: u64,
    free: Vec<Slot>,
    free_spilled: Vec<Slot>,
}

impl Pool {
    /// `spill_path` is the name under which the spill file exists for a moment; limits in bytes.
    pub(crate) fn new(spill_path: PathBuf, memory_max: usize, spill_max: u64) -> Pool {
        Pool {
            page_len: 0,
            blocks: Vec::new(),
            in_memory: 0,
            memory_max,
            spill_path,
            spill: None,
            in_spill: 0,
            spill_max,
            free: Vec::new(),
            free_spilled: Vec::new(),
        }
    }

    pub(crate) fn page_len(&self) -> usize {
        self.page_len
    }

    /// From now on, in bytes.
    pub(crate) fn limit_spill(&mut self, max: u64) {
        self.spill_max = max;
    }

    /// Forgets every image; from now on they are of this size.
    pub(crate) fn clear(&mut self, page_len: usize) {
        let path = std::mem::take(&mut self.spill_path);
        *self = Pool::new(path, self.memory_max, self.spill_max);
        self.page_len = page_len;
    }

    /// Keeps an image. [`io::ErrorKind::StorageFull`] when there is no room.
    pub(crate) fn put(&mut self, image: &[u8]) -> io::Result<Slot> {
        let slot = self.take_slot()?;
        if let Err(error) = self.write(slot, image) {
            self.release(slot);
            return Err(error);
        }
        Ok(slot)
    }

    fn take_slot(&mut self) -> io::Result<Slot> {
        if image_limit(self.memory_max as u64, self.page_len) > self.in_memory as u64 || !self.free.is_empty()
        {
            return Ok(self.free.pop().unwrap_or_else(|| {
                self.in_memory += 1;
                Slot::new(self.in_memory - 1, false)
            }));
        }
        if let Some(slot) = self.free_spilled.pop() {
            return Ok(slot);
        }
        if image_limit(self.spill_max, self.page_len).min(u64::from(SPILLED - 1)) <= self.in_spill as u64 {
            return Err(too_many());
        }
        self.in_spill += 1;
        Ok(Slot::new(self.in_spill - 1, true))
    }

    /// Replaces an image.
    pub(crate) fn write(&mut self, slot: Slot, image: &[u8]) -> io::Result<()> {
        if image.len() != self.page_len {
            return Err(io::Error::other("an image of another size"));
        }
        if slot.is_spilled() {
            let offset = slot.index() as u64 * self.page_len as u64;
            return self.spill()?.write_all_at(image, offset);
        }
        let (block, at) = self.place(slot);
        while self.blocks.len() <= block {
            // Zeroed by the system, so memory that is not used yet costs nothing.
            self.blocks.push(vec![0; self.images_of_block() * self.page_len]);
        }
        self.blocks[block][at..at + self.page_len].copy_from_slice(image);
        Ok(())
    }

    /// Reads an image into `buffer`, which is exactly as long.
    pub(crate) fn read(&self, slot: Slot, buffer: &mut [u8]) -> io::Result<()> {
        if slot.is_spilled() {
            let spill = self.spill.as_ref().ok_or_else(|| io::Error::other("no spill file"))?;
            let offset = slot.index() as u64 * self.page_len as u64;
            if read_at(spill, buffer, offset)? < buffer.len() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            return Ok(());
        }
        let (block, at) = self.place(slot);
        buffer.copy_from_slice(&self.blocks[block][at..at + self.page_len]);
        Ok(())
    }

    /// The image is not needed any more.
    pub(crate) fn release(&mut self, slot: Slot) {
        if slot.is_spilled() { &mut self.free_spilled } else { &mut self.free }.push(slot);
    }

    fn images_of_block(&self) -> usize {
        (BLOCK_LEN / self.page_len.max(1)).max(1)
    }

    fn place(&self, slot: Slot) -> (usize, usize) {
        let images = self.images_of_block();
        (slot.index() / images, slot.index() % images * self.page_len)
    }

    fn spill(&mut self) -> io::Result<&File> {
        if self.spill.is_none() {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
            let file = options.open(&self.spill_path)?;
            std::fs::remove_file(&self.spill_path)?;
            self.spill = Some(file);
        }
        self.spill.as_ref().ok_or_else(|| io::Error::other("no spill file"))
    }
}

/// How many images fit into so many bytes.
fn image_limit(bytes: u64, page_len: usize) -> u64 {
    bytes / page_len.max(1) as u64
}

/// There is no room for another image.
pub(crate) fn too_many() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "too many pages changed at once")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn images_beyond_the_limit_of_memory_go_to_a_file_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = Pool::new(dir.path().join("spill"), 2048, 3 * 1024);
        pool.clear(1024);
        let slots: Vec<Slot> = (1..=5).map(|fill| pool.put(&[fill; 1024]).unwrap()).collect();
        assert_eq!(pool.put(&[6; 1024]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the spill file has no name");
        let fill = |pool: &Pool, slot| {
            let mut image = [0; 1024];
            pool.read(slot, &mut image).unwrap();
            assert_eq!(image, [image[0]; 1024]);
            image[0]
        };
        pool.write(slots[4], &[50; 1024]).unwrap();
        assert_eq!(slots.iter().map(|slot| fill(&pool, *slot)).collect::<Vec<_>>(), [1, 2, 3, 4, 50]);
        // What is released makes room, in memory first.
        pool.release(slots[3]);
        pool.release(slots[0]);
        assert_eq!((pool.put(&[7; 1024]).unwrap(), pool.put(&[8; 1024]).unwrap()), (slots[0], slots[3]));
        assert_eq!((fill(&pool, slots[0]), fill(&pool, slots[3])), (7, 8));
    }

    #[test]
    fn pages_larger_than_a_block_of_memory_is_long_have_room() {
        let mut pool = Pool::new("nowhere/spill".into(), 20 * 65536, 0);
        pool.clear(65536);
        let slots: Vec<Slot> = (0..20).map(|fill| pool.put(&vec![fill; 65536]).unwrap()).collect();
        let mut image = vec![0; 65536];
        pool.read(slots[17], &mut image).unwrap();
        assert!(image.iter().all(|byte| *byte == 17));
        pool.put(&image).unwrap_err();
    }
}
