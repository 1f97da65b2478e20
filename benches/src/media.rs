//! Attachments: files that no program can compress, of the sizes that chats have.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::Result;

use crate::random::Random;

/// Writes `count` files below `folder`, `mean_bytes` on average: mostly small, some large. Returns their bytes.
pub(crate) fn create(folder: &Path, count: u64, mean_bytes: u64, seed: u64) -> Result<u64> {
    let mut total = 0;
    for number in 0..count {
        let mut random = Random::new(seed, number);
        let month = folder.join(format!("{:02}", number % 12));
        std::fs::create_dir_all(&month)?;
        // exponential around the mean
        let bytes = 1000 + (-(1.0 - random.fraction()).ln() * mean_bytes as f64) as u64;
        let mut file = File::create(month.join(format!("{number:05}.jpg")))?;
        let mut buffer = vec![0; 1 << 16];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(buffer.len() as u64) as usize;
            random.fill(&mut buffer[..part]);
            file.write_all(&buffer[..part])?;
            left -= part as u64;
        }
        total += bytes;
    }
    Ok(total)
}
