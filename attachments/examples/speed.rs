//! How fast a folder of attachments is looked at and read: `cargo run --release --example speed [FOLDER]`.
//!
//! Without a folder it makes one of 2,000 files of noise, 988 MB together, as in the comparison with other programs. CPU is
//! of this process, user and system; the files are in the page cache unless they do not fit.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chatkeep_attachments::{Begun, Folder, Found, ReadError, Restorer, Wanted, compare};
use rustix::time::{ClockId, clock_gettime};

const FILES: usize = 2000;
const FILE_LEN: usize = 494_000;
const KEY: [u8; 32] = [7; 32];

fn main() -> io::Result<()> {
    let made = tempfile::tempdir()?;
    let path = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => make_files(made.path())?,
    };
    let folder = Folder::open(&path)?;

    let before = measure("walk, first", || walk(&folder))?;
    let now = measure("walk, again", || walk(&folder))?;
    let changes = measure("compare", || Ok(compare(&before, &now)))?;
    let bytes: u64 = now.iter().map(|found| found.len).sum();
    println!("{} files, {} unchanged, {bytes} bytes", now.len(), changes.unchanged.len());

    let start = cpu_s();
    let (chunks, failed) = measure("read, cut, hash", || Ok(read_all(&folder, &now)))?;
    println!(
        "{chunks} chunks, {failed} files failed, {:.0} MB per CPU s",
        bytes as f64 / 1e6 / (cpu_s() - start)
    );

    // one large file, so that it is cut
    let big = tempfile::tempdir()?;
    std::fs::write(big.path().join("video"), noise(1, 512 << 20))?;
    std::thread::sleep(Duration::from_millis(100));
    let video = Folder::open(big.path())?;
    let found = walk(&video)?;
    let start = cpu_s();
    let (chunks, _) = measure("the same, 512 MiB in one file", || Ok(read_all(&video, &found)))?;
    println!("{chunks} chunks, {:.0} MB per CPU s", 536.87 / (cpu_s() - start));

    let target = tempfile::tempdir()?;
    let target = Folder::open(target.path())?;
    measure("restore", || restore(&target, &now))?;
    measure("restore again, all there", || restore(&target, &now))
}

/// Bytes of zero: what is measured is files, not noise.
fn restore(target: &Folder, files: &[Found]) -> io::Result<()> {
    let zeros = vec![0; FILE_LEN];
    let restorer = Restorer::create(target).map_err(io::Error::other)?;
    for Found { path, len, mtime_ns, mode, .. } in files {
        let wanted = Wanted { path, len: *len, mtime_ns: *mtime_ns, mode: *mode, content: None };
        if let Begun::Write(mut writer) = restorer.file(wanted).map_err(io::Error::other)? {
            let mut left = *len;
            while left > 0 {
                let piece = left.min(FILE_LEN as u64);
                writer.write(&zeros[..piece as usize]).map_err(io::Error::other)?;
                left -= piece;
            }
            writer.finish().map_err(io::Error::other)?;
        }
    }
    restorer.finish().map(drop).map_err(io::Error::other)
}

fn walk(folder: &Folder) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let _ = folder.walk(&mut |it| found.push(it))?;
    Ok(found)
}

fn read_all(folder: &Folder, files: &[Found]) -> (u64, u64) {
    let (mut chunks, mut failed) = (0, 0);
    for found in files {
        let read: Result<_, ReadError> = folder.read(found, &KEY, &mut |_| Ok(()));
        match read {
            Ok(read) => chunks += read.chunks,
            Err(_) => failed += 1,
        }
    }
    (chunks, failed)
}

fn make_files(root: &Path) -> io::Result<PathBuf> {
    for number in 0..FILES {
        let folder = root.join(format!("{:02}", number % 20));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("IMG-{number:05}.jpg")), noise(number, FILE_LEN))?;
    }
    std::thread::sleep(Duration::from_millis(100));
    Ok(root.to_owned())
}

fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn measure<T>(what: &str, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (wall, used) = (Instant::now(), cpu_s());
    let result = work()?;
    println!("{what}: {:.4} s, CPU {:.4} s", wall.elapsed().as_secs_f64(), cpu_s() - used);
    Ok(result)
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
